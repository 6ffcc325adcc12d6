//! Alignment.

use super::*;
use quod_backend::{Buffer, Store};

fn stat(offset_align: u32, memory_align: u32) -> Stat {
    Stat {
        len: 1 << 20,
        identity: (1, 1),
        offset_align,
        memory_align,
        block_device: false,
        store: Store::Known,
    }
}

#[test]
fn reads_are_rounded_out_to_the_grain() {
    assert_eq!(round_out(&stat(1, 1), 77, 13), (77, 13, 0));
    assert_eq!(round_out(&stat(512, 4), 77, 13), (0, 512, 77));
    assert_eq!(round_out(&stat(512, 4), 500, 600), (0, 1536, 500));
    assert_eq!(round_out(&stat(4096, 4), 8192, 4096), (8192, 4096, 0));
}

#[test]
fn direct_transfers_need_offset_length_and_address() {
    let mut buffer = Buffer::zeroed(8192);
    let mut piece = |at, len| buffers::part(&mut buffer, at, len);
    let (whole, odd, short) = (piece(0, 4096), piece(4099, 512), piece(4096, 500));
    assert!(fits(&stat(1, 1), 3, &[odd, short]));
    assert!(fits(&stat(512, 4), 512, &[whole]));
    assert!(!fits(&stat(512, 4), 100, &[whole]), "offset");
    assert!(!fits(&stat(512, 4), 512, &[odd]), "address");
    assert!(!fits(&stat(512, 4), 512, &[whole, short]), "length");
    assert!(!fits(&stat(1, 1), 0, &vec![short; MOST_PIECES + 1]), "number of pieces");
}
