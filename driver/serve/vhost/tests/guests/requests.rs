//! What a guest may ask for.

use super::*;

/// Feature bits.
const EVENT_INDEX: u64 = 1 << 29;

#[test]
fn data_go_both_ways_however_they_are_cut() {
    for (without, register) in [(0, false), (EVENT_INDEX, false), (0, true)] {
        let served = Served::with(|options| options.register_memory(register), true);
        let mut guest = served.connect(Options { without, queues: 3, ..Options::default() });
        let data = guest.data();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n * 7 / 5) as u8).collect();
        put(&guest, data + 1, &bytes);
        let pieces = [(data + 1, 511), (data + 512, 1), (data + 513, 100_000), (data + 100_513, 352)];
        let whole: u32 = pieces.iter().map(|piece| piece.1).sum();
        assert_eq!(whole % 512, 0);
        for queue in 0..3 {
            assert_eq!(ask(&mut guest, queue, Ask::Write, 1000 + 300 * queue as u64, &pieces), (0, 1));
        }
        let to = data + (1 << 20);
        for queue in 0..3 {
            put(&guest, to, &vec![0; whole as usize]);
            let pieces = [(to, 3), (to + 3, 50_000), (to + 50_003, whole - 50_003)];
            let sector = 1000 + 300 * queue as u64;
            assert_eq!(ask(&mut guest, queue, Ask::Read, sector, &pieces), (0, whole + 1));
            assert_eq!(get(&guest, to, whole as usize), bytes[..whole as usize]);
        }
        drop(guest);
        served.end_with(|image| assert_eq!(read_image(image, 512_000, 100_000), bytes[..100_000]));
    }
}

#[test]
fn the_disk_tells_what_it_is() {
    let served = Served::with(|options| options.queues(5), true);
    let mut guest = served.connect(Options::default());
    let word = |at: usize| u32::from_le_bytes(guest.config[at..at + 4].try_into().unwrap());
    assert_eq!((guest.config.len(), word(0), word(4)), (57, (DISK / 512) as u32, 0));
    assert_eq!(u16::from_le_bytes([guest.config[34], guest.config[35]]), 5);
    assert_eq!(guest.features & (1 << 5), 0);
    let data = guest.data();
    put(&guest, data, &[0xff; 32]);
    assert_eq!(ask(&mut guest, 0, Ask::Id, 0, &[(data, 7), (data + 7, 25)]), (0, 21));
    let id = get(&guest, data, 32);
    assert!(id.starts_with(b"quod-") && id[20..] == [0xff; 12], "{id:?}");
    drop(guest);
    served.end();
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let served = Served::new();
    let mut guest = served.connect(Options::default());
    let data = guest.data();
    let (ranges, to) = (data + (2 << 20), data + (3 << 20));
    put(&guest, data, &[7; 1 << 20]);
    assert_eq!(ask(&mut guest, 0, Ask::Write, 0, &[(data, 1 << 20)]), (0, 1));
    put(&guest, ranges, &[range(8, 8, 0), range(100, 1, 1), range(5, 0, 0)].concat());
    assert_eq!(ask(&mut guest, 0, Ask::WriteZeroes, 0, &[(ranges, 20), (ranges + 20, 28)]), (0, 1));
    put(&guest, ranges, &[range(256, 128, 0), range(1024, 128, 0)].concat());
    assert_eq!(ask(&mut guest, 0, Ask::Discard, 0, &[(ranges, 32)]), (0, 1));
    assert_eq!(ask(&mut guest, 0, Ask::Flush, 0, &[]), (0, 1));
    assert_eq!(ask(&mut guest, 0, Ask::Read, 0, &[(to, 1 << 20)]), (0, (1 << 20) + 1));
    let found = get(&guest, to, 1 << 20);
    let zero = |sector: usize| found[sector * 512..][..512] == [0; 512];
    for sector in 0..2048 {
        let zeroed = (8..16).contains(&sector) || sector == 100;
        // whole clusters that are discarded read as zeros
        let discarded = (256..384).contains(&sector) || (1024..1152).contains(&sector);
        assert_eq!(zero(sector), zeroed || discarded, "sector {sector}");
    }
    // one that is wrong stops all of them
    put(&guest, ranges, &[range(0, 8, 0), range(DISK / 512, 1, 0)].concat());
    assert_eq!(ask(&mut guest, 0, Ask::WriteZeroes, 0, &[(ranges, 32)]), (1, 1));
    put(&guest, ranges, &range(0, 8, 2));
    assert_eq!(ask(&mut guest, 0, Ask::WriteZeroes, 0, &[(ranges, 16)]), (2, 1));
    assert_eq!(ask(&mut guest, 0, Ask::Read, 0, &[(to, 512)]), (0, 513));
    assert_eq!(get(&guest, to, 512), [7; 512]);
    drop(guest);
    served.end();
}

#[test]
fn a_disk_that_is_read_only_changes_nothing() {
    let served = Served::with(|options| options, false);
    let mut guest = served.connect(Options::default());
    assert_ne!(guest.features & (1 << 5), 0);
    let data = guest.data();
    put(&guest, data, &range(0, 8, 0));
    assert_eq!(ask(&mut guest, 0, Ask::Write, 0, &[(data, 512)]), (1, 1));
    assert_eq!(ask(&mut guest, 0, Ask::WriteZeroes, 0, &[(data, 16)]), (1, 1));
    assert_eq!(ask(&mut guest, 0, Ask::Discard, 0, &[(data, 16)]), (1, 1));
    assert_eq!(ask(&mut guest, 0, Ask::Flush, 0, &[]), (0, 1));
    assert_eq!(ask(&mut guest, 0, Ask::Read, 0, &[(data, 512)]), (0, 513));
    assert_eq!(get(&guest, data, 512), [0; 512]);
    drop(guest);
    served.end();
}

/// More than the driver takes, on several queues: all of them end, none twice.
#[test]
fn many_requests_at_once_end_once() {
    let config = quod::Config::default().requests(20).queue_depth(8);
    let served = Served::with(|options| options.config(config), true);
    let mut guest = served.connect(Options { queues: 4, size: 256, ..Options::default() });
    let data = guest.data();
    let mut left = 0;
    for queue in 0..4 {
        for n in 0..256 {
            let at = data + (queue * 256 + n) * 4096;
            put(&guest, at, &[(queue * 31 + n) as u8; 4096]);
            let sector = (queue * 256 + n) * 8;
            let asked = guest.queues[queue as usize].request(Ask::Write, sector, &[(at, 4096)]).unwrap();
            assert!(asked.is_some());
            left += 1;
        }
        guest.queues[queue as usize].kick().unwrap();
    }
    while left > 0 {
        for queue in 0..4 {
            while let Some((head, len)) = guest.queues[queue].ended().unwrap() {
                assert_eq!((guest.queues[queue].status(head), len), (0, 1));
                left -= 1;
            }
        }
        assert!(left == 0 || guest.wait(LONG).unwrap());
    }
    drop(guest);
    served.end_with(|image| {
        let found = read_image(image, 0, 4 << 20);
        for (n, block) in found.chunks(4096).enumerate() {
            let (queue, n) = (n / 256, n % 256);
            assert!(block.iter().all(|&byte| byte == (queue * 31 + n) as u8), "{queue} {n}");
        }
    });
}
