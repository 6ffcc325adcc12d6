//! The arithmetic of both formats, beside the same sums written another way.
//!
//! Checks: every field and every place of a qcow2 geometry for all cluster sizes; tables of a few entries and
//! of the most; which table and data entries are accepted, to the byte, and what the error of each other one
//! says.

use quod_states::Error;
use quod_states::base::geometry::{Geometry, SliceNumber};

const MIB: u64 = 1 << 20;

/// What an entry's error says: its place, index and value, and why.
type Fault = Option<(&'static str, u64, u64, &'static str)>;

fn fault(result: Result<(), Error>) -> Fault {
    match result {
        Ok(()) => None,
        Err(Error::Corrupt(fault)) => {
            let ((place, what), (index, value)) = (fault.prose(), fault.numbers());
            Some((place, index, value, what))
        }
        Err(other) => panic!("not a fault of the image: {other}"),
    }
}

#[test]
fn a_qcow2_geometry_is_what_the_cluster_size_says() {
    for (bits, extended) in (9..=21).flat_map(|bits| [(bits, false), (bits, true)]) {
        let g = Geometry::qcow2(bits, extended, 7 << bits);
        let (cluster, words) = (1u64 << bits, if extended { 2 } else { 1 });
        let entry_bytes = 8 * words;
        let entries = cluster / entry_bytes;
        let slice = cluster.min(4096);
        assert_eq!((g.cluster_size(), g.table_bytes, g.table_span()), (cluster, cluster, cluster * entries));
        assert_eq!((u64::from(g.slice_bytes()), g.slice_words() as u64), (slice, slice / 8));
        assert_eq!((g.slice_span(), g.slices_per_table()), (slice / entry_bytes * cluster, cluster / slice));
        // numbers: those of 32 MiB of L1 table, those of the blocks that 8 MiB of refcount table lead to, L2
        let blocks = MIB * cluster.div_ceil(4096);
        assert_eq!((g.l1_slice_bytes(), g.l1_slices, g.l2_base), (4096, 8192, 8192 + blocks));
        assert_eq!(g.slice_count(0), 8192 + blocks);
        assert_eq!(g.slice_count(g.slice_span() * 5 + 1), 8192 + blocks + 6);
        assert_eq!(g.l1_slice(512 * 9 + 13), (SliceNumber(9), 13));
        assert_eq!(g.l1_slice_host(SliceNumber(3)), 7 * cluster + 3 * 4096);
        for (block, within) in [(0, 0), (0, cluster - 1), (5, cluster / 2), (MIB - 1, cluster - 8)] {
            let number = g.refcount_slice(block, within);
            assert_eq!(number.0, 8192 + block * cluster.div_ceil(4096) + within / 4096);
            assert!(g.is_refcount(number) && !g.is_l1(number));
        }
        for (number, l1, refcount) in [(8191, true, false), (8192, false, true), (g.l2_base, false, false)] {
            assert_eq!((g.is_l1(SliceNumber(number)), g.is_refcount(SliceNumber(number))), (l1, refcount));
        }
        for at in [0, cluster * 3 + 5, g.table_span() - 1, g.table_span() * 3 + cluster * 11] {
            let (n, entry) = (at / cluster, (at / cluster) % entries);
            let (table, within) = (n / entries, entry * entry_bytes);
            assert_eq!(g.l1_index(at), table);
            let slices = cluster / slice;
            assert_eq!(g.l2_slice(at).0.0, g.l2_base + table * slices + within / slice);
            assert_eq!(g.l2_slice(at).1 as u64, within % slice / 8);
            assert_eq!(g.l2_slice_host(MIB * 5, at), MIB * 5 + within / slice * slice);
        }
    }
}

#[test]
fn tables_of_few_entries_and_of_the_most() {
    for (entries, bytes) in [(4, 512), (32, 512), (64, 512), (128, 1024), (512, 4096), (8192, 4096)] {
        let g = Geometry::new(12, entries, entries * 8, 4096, 4096);
        assert_eq!(g.l1_slice_bytes(), bytes, "a slice of an L1 table of {entries} entries");
        assert_eq!(u64::from(g.slice_bytes()), (entries * 8).min(4096));
        assert_eq!(g.slice_count(g.table_span() + 1), g.slices_per_table() * 2 + 1);
    }
    let largest = Geometry::new(31, 1 << 32, 1 << 35, 1 << 31, 1 << 31);
    assert_eq!((largest.table_span(), largest.l1_index(u64::MAX)), (1 << 63, 1));
    let larger = Geometry::new(31, 1 << 33, 1 << 36, 1 << 31, 1 << 31);
    assert_eq!((larger.table_span(), larger.l1_index(u64::MAX)), (1 << 63, 0));
}

/// Entries around everything that matters, and ends of the file that are no whole clusters.
fn entries_and_ends() -> impl Iterator<Item = (u64, u64)> {
    let near = |at: u64| {
        [
            at.saturating_sub(4096),
            at.saturating_sub(512),
            at.saturating_sub(1),
            at,
            at + 1,
            at + 512,
            at + 4096,
        ]
    };
    [8192, 40960, 1 << 40].into_iter().flat_map(move |end| {
        let entries = [4096, 8192, end - 8192, end].into_iter().flat_map(near);
        entries.flat_map(move |entry| near(end).map(|end| (entry, end)))
    })
}

#[test]
fn an_entry_is_accepted_when_it_fits_to_the_byte() {
    // the header takes two clusters, a table four
    let g = Geometry::new(12, 2048, 16384, 8192, 8192);
    let (mut good, mut bad) = ([0, 0], 0);
    for (entry, end) in entries_and_ends() {
        let told = |place, index, len: u64, whats: [&'static str; 3]| {
            let what = match () {
                () if entry % 4096 != 0 => whats[0],
                () if entry < 8192 => whats[1],
                () if entry + len > end => whats[2],
                () => return None,
            };
            Some((place, index, entry, what))
        };
        let data = told(
            "L2 table, guest cluster",
            3,
            4096,
            [
                "data offset is not aligned to a cluster",
                "data offset points into the header",
                "data cluster lies beyond the end of the file",
            ],
        );
        assert_eq!(fault(g.check_data(3 * 4096 + 17, entry, end)), data, "{entry:#x} of {end:#x}");
        let table = told(
            "L1 table",
            5,
            16384,
            [
                "L2 table offset is not aligned to a cluster",
                "L2 table offset points into the header",
                "L2 table lies beyond the end of the file",
            ],
        );
        assert_eq!(fault(g.check_table(5, entry, end)), table, "{entry:#x} of {end:#x}");
        good[0] += u32::from(data.is_none());
        good[1] += u32::from(table.is_none());
        bad += u32::from(data.is_some());
    }
    assert!(good[0] > 20 && good[1] > 10 && bad > 100, "{good:?} {bad}");
    assert!(g.check_table(0, u64::MAX - 4095, 1 << 63).is_err(), "a sum beyond 64 bits");
}
