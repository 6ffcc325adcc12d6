//! Option conflicts, and that what is laid out is a valid image; the bytes are compared with qemu-img's
//! elsewhere.

use super::super::header::Purpose;
use super::*;
use proptest::prelude::*;

#[test]
fn conflicts_are_named() {
    let old = CreateOptions { version: 2, ..CreateOptions::default() };
    let new = CreateOptions::default();
    let cases = [
        (CreateOptions { extended_l2: true, ..old }, "extended_l2"),
        (CreateOptions { extended_l2: true, cluster_size: 8192, ..new }, "16k"),
        (CreateOptions { cluster_size: 256, ..new }, "cluster_size"),
        (CreateOptions { cluster_size: 65537, ..new }, "cluster_size"),
        (CreateOptions { cluster_size: 4 << 20, ..new }, "cluster_size"),
        (
            CreateOptions { backing: Some(b"b"), preallocation: Preallocation::Metadata, ..new },
            "backing_file and preallocation",
        ),
        (CreateOptions { backing_format: Some(b"raw"), ..new }, "backing_fmt"),
        (CreateOptions { lazy_refcounts: true, ..old }, "lazy_refcounts"),
        (CreateOptions { refcount_bits: 3, ..new }, "refcount_bits"),
        (CreateOptions { refcount_bits: 0, ..new }, "refcount_bits"),
        (CreateOptions { refcount_bits: 128, ..new }, "refcount_bits"),
        (CreateOptions { refcount_bits: 8, ..old }, "refcount_bits"),
        (CreateOptions { data_file_raw: true, ..new }, "data_file_raw needs"),
        (
            CreateOptions { data_file: Some(b"d"), data_file_raw: true, backing: Some(b"b"), ..new },
            "data_file_raw exclude",
        ),
        (CreateOptions { data_file: Some(b"d"), ..old }, "data_file needs"),
        (CreateOptions { compression: Compression::Zstd, ..old }, "compression_type"),
        (CreateOptions { version: 1, ..new }, "compat"),
    ];
    for (options, word) in cases {
        match create(&options) {
            Err(Error::Misuse(what)) => assert!(what.contains(word), "{what}, not {word}"),
            other => panic!("{word}: {other:?}"),
        }
    }
}

#[test]
fn sizes_at_the_limit() {
    let small = CreateOptions { cluster_size: 512, ..CreateOptions::default() };
    assert!(create(&CreateOptions { size: 128 << 30, ..small }).is_ok());
    assert!(create(&CreateOptions { size: (128 << 30) + 1, ..small }).is_err());
    assert!(create(&CreateOptions { size: u64::MAX, ..CreateOptions::default() }).is_err());
    let name = [b'n'; 1000];
    assert_eq!(create(&CreateOptions { backing: Some(&name), ..small }), Err(Error::NoSpace));
}

proptest! {
    #[test]
    fn a_new_header_is_valid(
        (version, cluster_bits, order) in (2..=3u32, 9..=21u32, 0..=6u32),
        size in 0..1u64 << 36,
        (lazy_refcounts, extended_l2, zstd, raw) in any::<(bool, bool, bool, bool)>(),
        mode in 0..4usize,
    ) {
        let preallocation = [
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
            Preallocation::Full,
        ][mode];
        let options = CreateOptions {
            // as many clusters as can be looked at
            size: size & ((1 << (cluster_bits + 13)) - 1),
            version,
            cluster_size: 1 << cluster_bits,
            refcount_bits: 1 << order,
            lazy_refcounts,
            extended_l2,
            compression: if zstd { Compression::Zstd } else { Compression::Deflate },
            data_file: raw.then_some(&b"data"[..]),
            data_file_raw: raw,
            preallocation,
            ..CreateOptions::default()
        };
        if let Ok(created) = create(&options) {
            let (_, first) = created.pieces().find(|(offset, _)| *offset == 0).unwrap();
            let header = Header::parse(&first, Purpose::Write).unwrap();
            prop_assert_eq!(header.guest_size(), options.size.next_multiple_of(512));
            for (offset, bytes) in created.pieces() {
                prop_assert!(offset + bytes.len() as u64 <= created.len());
            }
        }
    }
}
