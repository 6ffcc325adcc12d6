//! Every field out of range is refused by name; what is written is what is read.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

fn valid() -> Header {
    let options = CreateOptions {
        size: 1 << 30,
        cluster_size: 65536,
        table_size: 4,
        backing: Some(b"base.img"),
        backing_raw: true,
    };
    Header::create(&options).unwrap()
}

fn reparse(header: &Header) -> Result<Header, Error> {
    let mut block = vec![0; 512];
    block[..64].copy_from_slice(&header.encode());
    Header::parse(&block, 65536 * 5)
}

#[test]
fn each_bad_field_is_named() {
    type Case = (&'static str, fn(&mut Header));
    let cases: [Case; 17] = [
        ("features", |h| h.features |= 8),
        ("features", |h| h.features |= 1 << 63),
        ("cluster_size", |h| h.cluster_size = 2048),
        ("cluster_size", |h| h.cluster_size = 1 << 27),
        ("cluster_size", |h| h.cluster_size = 65537),
        ("cluster_size", |h| h.cluster_size = 0),
        ("table_size", |h| h.table_size = 0),
        ("table_size", |h| h.table_size = 3),
        ("table_size", |h| h.table_size = 32),
        ("header_size", |h| h.header_size = 0),
        ("header_size", |h| h.header_size = 65536),
        ("image_size", |h| h.image_size = 1),
        ("image_size", |h| h.image_size = !511),
        ("l1_table_offset", |h| h.l1_table_offset = 65537),
        ("l1_table_offset", |h| h.l1_table_offset = 0),
        ("l1_table_offset", |h| h.l1_table_offset = !65535),
        ("l1_table_offset", |h| h.l1_table_offset = 2 * 65536),
    ];
    assert!(reparse(&valid()).is_ok());
    for (field, damage) in cases {
        let mut header = valid();
        damage(&mut header);
        let error = reparse(&header).unwrap_err();
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
    for (field, damage) in [
        ("backing_filename_size", (|h: &mut Header| h.backing_filename_size = 4096) as fn(&mut Header)),
        ("backing_filename_offset", |h| h.backing_filename_offset = u32::MAX),
        ("backing_filename_offset", |h| h.backing_filename_offset = 65536 - 7),
    ] {
        let mut header = valid();
        damage(&mut header);
        let error = reparse(&header).unwrap_err();
        assert!(error.to_string().contains(field), "{field}: {error}");
        header.features = 0;
        assert!(reparse(&header).is_ok(), "without the feature bit the fields mean nothing");
    }
}

/// The last value that is good, and the first that is not.
#[test]
fn limits_are_where_they_should_be() {
    let large = |header_size: u32, len: u64| {
        let header = Header {
            cluster_size: 1 << 12,
            table_size: 1,
            image_size: 512,
            header_size,
            l1_table_offset: u64::from(header_size) << 12,
            ..valid()
        };
        let mut block = vec![0; 512];
        block[..64].copy_from_slice(&header.encode());
        Header::parse(&block, len).map(|header| header.geometry().data_start)
    };
    assert_eq!(large(3, 4 << 12), Ok(3 << 12), "what lies behind the header is data");
    assert!(large(3, (4 << 12) - 1).is_err());
    assert_eq!(large((1 << 20) - 1, 1 << 33), Ok((1 << 32) - 4096));
    assert!(large(1 << 20, 1 << 33).is_err(), "4 GiB");
    let name = |offset, size| {
        let header = Header { backing_filename_offset: offset, backing_filename_size: size, ..valid() };
        reparse(&header).is_ok()
    };
    assert!(name(64, 4095) && !name(64, 4096));
    assert!(name(65536 - 8, 8) && !name(65536 - 8, 9) && name(65536, 0) && !name(65536, 1));
    assert!(name(300, 300), "their sum counts, not their product");
    assert!(reparse(&valid()).is_ok_and(|header| header.backing_raw()));
    let long = |len| {
        let (size, cluster_size, backing) = (1 << 20, 65536, Some(&[b'x'; 5000][..len]));
        Header::create(&CreateOptions { size, cluster_size, table_size: 2, backing, backing_raw: false })
    };
    assert!(long(4095).is_ok_and(|header| !header.backing_raw()) && long(4096).is_err());
}

#[test]
fn a_name_may_fill_the_header() {
    for (clusters, most) in [(1, 4096 - 64), (2, 4095)] {
        let mut header = Header { cluster_size: 4096, header_size: clusters, ..valid() };
        header.set_backing(Some(&[b'x'; 5000][..most]), true).unwrap();
        assert_eq!((header.backing_name(), header.backing_raw()), (Some((64, most as u32)), true));
        assert!(header.set_backing(Some(&[b'x'; 5000][..most + 1]), true).is_err());
    }
    let mut header = valid();
    header.set_need_check(true);
    header.set_need_check(true);
    assert!(header.need_check());
    header.set_backing(Some(b"other"), true).unwrap();
    header.set_backing(Some(b"other"), true).unwrap();
    assert!(header.backing_raw() && header.need_check());
    header.set_backing(None, true).unwrap();
    header.set_backing(None, true).unwrap();
    assert_eq!((header.backing_name(), header.backing_raw(), header.need_check()), (None, false, true));
}

#[test]
fn unknown_compatible_and_autoclear_bits_are_accepted() {
    let header = Header { compat_features: u64::MAX, autoclear_features: u64::MAX, ..valid() };
    assert!(reparse(&header).is_ok());
}

#[test]
fn sizes_at_the_numeric_edge() {
    // Q2: QEMU's 64-bit arithmetic says "less than 0 bytes" for these
    assert_eq!(size_max(4 << 20, 4), (1 << 63) - 512);
    assert_eq!(size_max(65536, 4), 1 << 46);
    assert_eq!(size_max(4096, 1), 1 << 30);
    for size in [u64::MAX, 1 << 63] {
        let options =
            CreateOptions { size, cluster_size: 1 << 26, table_size: 16, backing: None, backing_raw: false };
        assert!(Header::create(&options).is_err());
    }
}

#[test]
fn a_backing_name_that_does_not_fit_is_refused() {
    let mut header = valid();
    header.set_backing(Some(&[b'x'; 4095]), false).unwrap();
    assert_eq!((header.backing_name(), header.backing_raw()), (Some((64, 4095)), false));
    assert!(header.set_backing(Some(&[b'x'; 4096]), false).is_err());
    let create = |len| {
        let name = vec![b'x'; len];
        let (size, cluster_size, backing) = (1 << 20, 4096, Some(&name[..]));
        Header::create(&CreateOptions { size, cluster_size, table_size: 2, backing, backing_raw: false })
    };
    assert!(create(4032).is_ok() && create(4033).is_err());
    header.set_backing(None, false).unwrap();
    assert_eq!(header.backing_name(), None);
    header.compat_features = 1;
    assert!(header.set_backing(Some(b"a"), false).is_err(), "what lies behind the header is not known");
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), len: u64) {
        let mut bytes = bytes;
        if let Some(magic) = bytes.get_mut(..4) {
            magic.copy_from_slice(b"QED\0");
        }
        if let Ok(header) = Header::parse(&bytes, len) {
            let mut block = vec![0; bytes.len()];
            header.encode_block(&mut block);
            prop_assert_eq!(block, bytes, "encode is the inverse of parse");
        }
    }

    #[test]
    fn what_create_makes_parses(size: u64, cluster_bits in 12u32..=26, table_bits in 0u32..=4) {
        let options = CreateOptions {
            size, cluster_size: 1 << cluster_bits, table_size: 1 << table_bits,
            backing: None, backing_raw: false,
        };
        if let Ok(header) = Header::create(&options) {
            let mut block = vec![0; 512];
            block[..64].copy_from_slice(&header.encode());
            let parsed = Header::parse(&block, header.l1_table_offset + header.table_bytes()).unwrap();
            prop_assert_eq!(parsed.image_size, size.next_multiple_of(512));
            prop_assert_eq!(parsed.encode(), header.encode());
        } else {
            prop_assert!(size > size_max(1 << cluster_bits, 1 << table_bits) - 512);
        }
    }
}
