//! Every rule of an entry by name; decode and encode are inverse; no bits make decode panic.

use super::*;
use proptest::prelude::*;

const STANDARD: Shape = Shape { version: 3, cluster_bits: 16, extended: false, data_file: false };
const EXTENDED: Shape = Shape { extended: true, ..STANDARD };
const EXTERNAL: Shape = Shape { data_file: true, ..STANDARD };

fn what(result: Result<L2, Error>) -> &'static str {
    match result {
        Err(Error::Corrupt(fault)) => fault.prose().1,
        other => panic!("{other:?}"),
    }
}

#[test]
fn standard_entries() {
    let decode = |entry| STANDARD.decode_l2(0, entry, 0);
    assert_eq!(decode(0), Ok(L2::Unallocated));
    assert_eq!(decode(COPIED), Ok(L2::Unallocated));
    assert_eq!(decode(1), Ok(L2::ZeroPlain));
    assert_eq!(decode(0x5_0001), Ok(L2::ZeroAllocated { host: 0x5_0000, copied: false }));
    assert_eq!(decode(COPIED | 0x5_0000), Ok(L2::Normal { host: 0x5_0000, copied: true }));
    assert_eq!(what(decode(0x5_0002)), "reserved bits are set");
    assert_eq!(what(decode(1 << 56)), "reserved bits are set");
    assert_eq!(what(decode(0x5_0200)), "the data does not begin at a cluster");
    let old = Shape { version: 2, ..STANDARD };
    assert_eq!(what(old.decode_l2(0, 1, 0)), "the zero flag is set in an image of version 2");
}

#[test]
fn a_data_file_has_a_cluster_at_offset_zero() {
    assert_eq!(EXTERNAL.decode_l2(0, COPIED, 0), Ok(L2::Normal { host: 0, copied: true }));
    assert_eq!(EXTERNAL.decode_l2(0, COPIED | 1, 0), Ok(L2::ZeroAllocated { host: 0, copied: true }));
    assert_eq!(EXTERNAL.decode_l2(0, 0, 0), Ok(L2::Unallocated));
    let place = what(EXTERNAL.decode_l2(0, COMPRESSED, 0));
    assert_eq!(place, "compressed data in an image with a data file");
}

#[test]
fn l1_and_refcount_table_entries() {
    assert_eq!(STANDARD.decode_l1(0, 0), Ok(L1::Unallocated));
    assert_eq!(STANDARD.decode_l1(0, COPIED | 0x3_0000), Ok(L1::Table { host: 0x3_0000, copied: true }));
    for bad in [1, 0x200, 1 << 56, COMPRESSED, 0x1_0100] {
        assert!(STANDARD.decode_l1(0, bad).is_err(), "{bad:#x}");
    }
    assert_eq!(STANDARD.decode_reftable(0, 0), Ok(None));
    assert_eq!(STANDARD.decode_reftable(0, 0x2_0000), Ok(Some(0x2_0000)));
    assert!(STANDARD.decode_reftable(0, 0x2_0001).is_err());
    assert!(STANDARD.decode_reftable(0, 0x2_0200).is_err());
}

#[test]
fn extended_entries() {
    let decode = |entry, bitmap| EXTENDED.decode_l2(0, entry, bitmap);
    assert_eq!(decode(0, 0), Ok(L2::Unallocated));
    assert!(matches!(decode(0, 1 << 32), Ok(L2::Split { host: None, .. })));
    assert!(matches!(decode(COPIED | 0x5_0000, 1), Ok(L2::Split { host: Some(0x5_0000), copied: true, .. })));
    assert_eq!(what(decode(0x5_0000, 1 | 1 << 32)), "a subcluster is both allocated and zero");
    assert_eq!(what(decode(0, 1)), "subclusters are allocated, the cluster is not");
    assert_eq!(what(decode(0x5_0001, 0)), "the zero flag is set in an extended entry");
    assert_eq!(what(decode(COMPRESSED, 1)), "compressed data with subclusters");
    let map = Subclusters::default().with(0b0110, Sub::Allocated).with(0b0100, Sub::Zero);
    assert_eq!([map.get(0), map.get(1), map.get(2)], [Sub::Unallocated, Sub::Allocated, Sub::Zero]);
    assert_eq!(map.with(!0, Sub::Unallocated), Subclusters::default());
    assert!(Subclusters::ALL_ZERO.is_valid() && Subclusters::ALL_ALLOCATED.is_valid());
}

/// The table of widths: cluster bits, bits of the offset, bits of the sector count.
#[test]
fn compressed_widths() {
    for (cluster_bits, offset, sectors) in
        [(9, 61, 1), (12, 58, 4), (14, 56, 6), (16, 54, 8), (20, 50, 12), (21, 49, 13)]
    {
        let shape = Shape { cluster_bits, ..STANDARD };
        assert_eq!(shape.offset_width(), offset);
        let host = (1 << offset.min(56)) - 1;
        let most = 1u32 << sectors;
        // the last byte of a sector, then as many sectors as the field can say
        let len = (most - 1) * 512 + 1;
        let entry = shape.encode_compressed(host, len).unwrap();
        assert_eq!(shape.decode_l2(0, entry, 0), Ok(L2::Compressed { host, len }));
        assert_eq!(shape.encode_compressed(host, len + 1), None);
        assert_eq!(shape.encode_compressed(host + 1, 1), None);
        assert_eq!(shape.encode_compressed(0, 0), None);
        assert_eq!(shape.compressed_range(u64::MAX).1, (most * 512) - 511);
        assert!(shape.decode_l2(0, entry | COPIED, 0).is_err());
    }
}

#[test]
fn l1_entries_of_a_size() {
    assert_eq!(STANDARD.l1_entries(0), 0);
    assert_eq!(STANDARD.l1_entries(1), 1);
    assert_eq!(STANDARD.l1_entries(512 << 20), 1);
    assert_eq!(STANDARD.l1_entries((512 << 20) + 1), 2);
    assert_eq!(EXTENDED.l1_entries(512 << 20), 2);
    assert_eq!(STANDARD.l1_entries(u64::MAX), 1 << 35);
}

fn shapes() -> impl Strategy<Value = Shape> {
    (2..=3u32, 9..=21u32, any::<bool>(), any::<bool>()).prop_map(
        |(version, cluster_bits, extended, data_file)| Shape { version, cluster_bits, extended, data_file },
    )
}

proptest! {
    #[test]
    fn decode_then_encode(shape in shapes(), entry: u64, bitmap: u64, mask: u64) {
        let entry = entry & (mask | OFFSET | COPIED | COMPRESSED);
        let bitmap = if shape.extended { bitmap & mask } else { 0 };
        if let Ok(decoded) = shape.decode_l2(0, entry, bitmap) {
            let (again, bits) = shape.encode_l2(decoded);
            prop_assert_eq!(again & !COPIED, entry & !COPIED);
            prop_assert_eq!(bits, bitmap);
            prop_assert_eq!(shape.decode_l2(0, again, bits), Ok(decoded));
        }
        if let Ok(decoded) = shape.decode_l1(0, entry) {
            prop_assert_eq!(shape.decode_l1(0, decoded.encode()), Ok(decoded));
        }
        let _ = shape.decode_reftable(0, entry);
    }

    #[test]
    fn compressed_ranges_fit(shape in shapes(), host in 0..1u64 << 49, len in 1..=1u32 << 21) {
        let shape = Shape { extended: false, data_file: false, ..shape };
        if let Some(entry) = shape.encode_compressed(host, len) {
            let (from, got) = shape.compressed_range(entry);
            prop_assert_eq!(from, host);
            prop_assert!(got >= len && got - len < 512);
            prop_assert!((from + u64::from(got)).is_multiple_of(512));
        } else {
            prop_assert!(u64::from(len) + host % 512 > shape.cluster_size() * 2);
        }
    }
}
