//! Every field out of range is refused by name and in QEMU's order; what is written is what was read.

use super::*;
use crate::fault::NewFault;
use alloc::string::{String, ToString};
use alloc::vec;
use proptest::prelude::*;

/// 64 KiB clusters, a disk of 1 GiB, as QEMU lays it out, with a backing file.
fn valid(version: u32) -> Vec<u8> {
    let mut header = Header::new(version, 16, 4, [0; 3], None).unwrap();
    header.size = 1 << 30;
    header.l1_entries = 2;
    header.l1_offset = 0x3_0000;
    header.set_backing(Some(b"base.img"), Some(b"raw")).unwrap();
    let mut bytes = header.encode();
    bytes.resize(65536, 0);
    bytes
}

fn refusal(bytes: &[u8], purpose: Purpose) -> String {
    Header::parse(bytes, purpose).expect_err("must be refused").to_string()
}

/// Bytes at an offset, and a word of the error.
type Case = (usize, &'static [u8], &'static str);

#[test]
fn each_bad_field_is_named() {
    let cases: [Case; 24] = [
        (0, b"X", "magic"),
        (4, &[0, 0, 0, 1], "version 1"),
        (4, &[0, 0, 0, 4], "version 4"),
        (20, &[0, 0, 0, 8], "cluster_bits"),
        (20, &[0, 0, 0, 22], "cluster_bits"),
        (20, &[0x80, 0, 0, 0], "cluster_bits"),
        (100, &[0, 0, 0, 103], "header_length"),
        (100, &[0, 1, 0, 1], "header_length"),
        (8, &[0, 0, 0, 0, 0, 1, 0, 1], "backing_file_offset"),
        (8, &[0xff; 8], "backing_file_offset"),
        (104, &[2], "compression type 2"),
        (104, &[1], "compression_type"),
        (79, &[8], "compression_type"),
        (79, &[2], "marked corrupt"),
        (96, &[0, 0, 0, 7], "refcount_order"),
        (32, &[0, 0, 0, 1], "AES"),
        (32, &[0, 0, 0, 2], "LUKS"),
        (56, &[0, 0, 0, 0], "refcount_table_clusters"),
        (56, &[0, 0, 0, 129], "too large"),
        (48, &[0, 0, 0, 0, 0, 1, 2, 0], "refcount_table_offset"),
        (60, &[0, 1, 0, 1], "too large"),
        (64, &[0, 0, 0, 0, 0, 0, 2, 0], "snapshots_offset"),
        (36, &[0, 0, 0, 1], "l1_size"),
        (95, &[2], "autoclear_features"),
    ];
    for (at, bytes, word) in cases {
        let mut block = valid(3);
        be::put(&mut block, at, bytes);
        let error = refusal(&block, Purpose::Write);
        assert!(error.contains(word), "{at}: {error}, not {word}");
    }
    for (at, bytes, word) in [
        (36, &[0, 0x40, 0, 1][..], "too large"),
        (40, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], "ok"),
        (40, &[0x80, 0, 0, 0, 0, 0, 0, 0], "l1_table_offset"),
        (24, &[0x7f, 0, 0, 0, 0, 0, 0, 0], "size"),
        (16, &[0, 0, 4, 0], "backing_file_size"),
    ] {
        let mut block = valid(2);
        be::put(&mut block, at, bytes);
        let error =
            Header::parse(&block, Purpose::Write).map_or_else(|error| error.to_string(), |_| "ok".into());
        assert!(error.contains(word), "{at}: {error}, not {word}");
    }
}

/// Whoever only looks is told how an image is encrypted; nobody reads it as plain data.
#[test]
fn encrypted_images_are_looked_at_and_not_opened() {
    let looked = |method: u8, extension: Option<&[u8]>| {
        let mut header = Header::new(3, 16, 4, [0; 3], None).unwrap();
        if let Some(data) = extension {
            header.extensions.push(Extension { kind: Extension::ENCRYPTION, data: data.to_vec() });
            header.lay_out().unwrap();
        }
        let mut bytes = header.encode();
        bytes.resize(65536, 0);
        bytes[35] = method;
        assert!(method == 0 || Header::parse(&bytes, Purpose::Read).is_err());
        assert!(method == 0 || Header::parse(&bytes, Purpose::Check).is_err());
        Header::parse(&bytes, Purpose::Look).map(|header| header.encryption)
    };
    let place = |offset: u64| [offset.to_be_bytes(), 5000u64.to_be_bytes()].concat();
    assert_eq!(looked(0, None), Ok(None));
    assert_eq!(looked(1, None), Ok(Some(Encryption::Aes)));
    assert_eq!(looked(2, Some(&place(0x4_0000))), Ok(Some(Encryption::Luks { offset: 0x4_0000, len: 5000 })));
    assert!(looked(3, None).is_err());
    for (method, data) in [(0, &place(0x4_0000)[..]), (1, &place(0x4_0000)), (2, &place(512)), (2, &[0; 15])]
    {
        assert!(looked(method, Some(data)).is_err(), "{method} {data:?}");
    }
}

/// The last value that is good, and the first that is not.
#[test]
fn limits_are_where_they_should_be() {
    let parse = |version, fields: &[(usize, &[u8])]| {
        let mut block = valid(version);
        fields.iter().for_each(|(at, bytes)| be::put(&mut block, *at, bytes));
        Header::parse(&block, Purpose::Write).map_err(|error| error.to_string())
    };
    let one = |version, at, bytes: &[u8]| parse(version, &[(at, bytes)]).map(|_| ());
    assert_eq!(one(3, 56, &[0, 0, 0, 128]), Ok(()), "8 MiB of refcount table");
    assert_eq!(one(3, 60, &[0, 1, 0, 0]), Ok(()), "65536 snapshots");
    let said = one(3, 60, &[0, 1, 0, 1]).unwrap_err();
    assert!(said.contains("= 0x280028: the table is too large"), "{said}");
    assert_eq!(one(3, 36, &[0, 0x40, 0, 0]), Ok(()), "32 MiB of L1 table");
    assert!(one(3, 36, &[0, 0x40, 0, 1]).is_err());
    // two entries end at 2^63 - 1 at the latest
    assert!(one(3, 40, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]).is_ok());
    // 2^31 - 1 entries of tables of 64 entries of 512 bytes
    let most = (i32::MAX as u64) << 15;
    let small = |size: u64| {
        let fields =
            [(20, &[0, 0, 0, 9][..]), (24, &size.to_be_bytes()), (8, &[0; 8]), (100, &[0, 0, 0, 112])];
        parse(3, &fields).unwrap_err()
    };
    assert!(small(most).contains("l1_size"), "{}", small(most));
    assert!(small(most + 1).contains("more than an L1 table can map"), "{}", small(most + 1));
}

#[test]
fn a_name_may_end_with_its_cluster() {
    let parse = |offset: u64, len: u32| {
        let mut block = valid(2);
        be::put_u64(&mut block, 8, offset);
        be::put_u32(&mut block, 16, len);
        Header::parse(&block, Purpose::Write)
    };
    assert_eq!(parse(65536, 0).map(|header| header.backing), Ok(Some(vec![])), "at the end of the cluster");
    assert!(parse(65537, 0).is_err());
    assert!(parse(65536 - 8, 8).is_ok());
    assert!(parse(65536 - 8, 9).is_err());
    assert!(parse(4096, 1023).is_ok());
    assert!(parse(4096, 1024).is_err());
    // what belongs to the header is kept: to the end of the name
    assert_eq!(parse(5000, 100).unwrap().block.len(), 8192);
    assert_eq!(parse(1000, 100).unwrap().block.len(), 4096);
}

#[test]
fn the_purpose_decides() {
    let mut block = valid(3);
    be::put_u32(&mut block, 56, 0);
    be::put_u32(&mut block, 60, 70_000);
    assert!(Header::parse(&block, Purpose::Check).is_ok_and(|header| header.check_snapshots().is_err()));
    let mut block = valid(3);
    be::put_u64(&mut block, 72, incompatible::CORRUPT | incompatible::DIRTY);
    let header = Header::parse(&block, Purpose::Read).unwrap();
    assert!(header.is_corrupt() && header.is_dirty());
    assert!(Header::parse(&block, Purpose::Check).is_ok());
}

#[test]
fn extended_entries_need_large_clusters() {
    let header = Header::new(3, 13, 4, [incompatible::EXTENDED_L2, 0, 0], None).unwrap();
    let mut bytes = header.encode();
    bytes.resize(8192, 0);
    assert!(refusal(&bytes, Purpose::Read).contains("subclusters"));
}

#[test]
fn unknown_incompatible_bits_are_named() {
    let mut block = valid(3);
    be::put_u64(&mut block, 72, 1 << 40 | 1 << 50 | 1);
    let error = refusal(&block, Purpose::Read);
    assert_eq!(error, "unsupported: qcow2 feature(s): unknown incompatible bits 0x4010000000000");
    let at = block.windows(9).position(|bytes| bytes == b"dirty bit").unwrap();
    block[at - 1] = 40;
    be::put(&mut block, at, b"time walk");
    let error = refusal(&block, Purpose::Read);
    assert_eq!(error, "unsupported: qcow2 feature(s): time walk, unknown incompatible bits 0x4000000000000");
    // a table whose last record ends with its name
    be::put_u32(&mut block, at - 6, 11);
    be::put_u64(&mut block, at - 2 + 16, 0);
    assert_eq!(refusal(&block, Purpose::Read), error);
    be::put_u32(&mut block, at - 6, 2);
    be::put_u64(&mut block, at - 2 + 8, 0);
    assert!(refusal(&block, Purpose::Read).ends_with("unknown incompatible bits 0x4010000000000"));
}

fn with_extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut header = Header::parse(&valid(3), Purpose::Read).unwrap();
    header.extensions.push(Extension { kind, data: data.to_vec() });
    header.lay_out().unwrap();
    let mut bytes = header.encode();
    bytes.resize(65536, 0);
    bytes
}

/// Its length is whatever the image says: what follows begins there, on a multiple of eight or not.
#[test]
fn a_header_of_an_odd_length_can_be_laid_out_anew() {
    for length in [104, 105, 111, 113, 119, 121] {
        let mut block = valid(3);
        block[112..].fill(0);
        be::put_u32(&mut block, 100, length);
        let mut header = Header::parse(&block, Purpose::Read).unwrap();
        header.set_backing(Some(b"base.img"), Some(b"raw")).unwrap();
        let mut bytes = header.encode();
        bytes.resize(65536, 0);
        let again = Header::parse(&bytes, Purpose::Read).unwrap();
        assert_eq!((again.backing(), again.backing_format()), (Some(&b"base.img"[..]), Some(&b"raw"[..])));
        assert_eq!(again.extensions(), header.extensions());
    }
}

#[test]
fn extensions_are_checked() {
    assert!(refusal(&with_extension(Extension::ENCRYPTION, &[0; 16]), Purpose::Read).contains("encryption"));
    let mut block = valid(3);
    be::put_u32(&mut block, 116, 60_000);
    assert!(refusal(&block, Purpose::Read).contains("beyond"));
    let block16 = with_extension(Extension::BACKING_FORMAT, &[b'a'; 16]);
    assert!(refusal(&block16, Purpose::Read).contains("backing format"));
    be::put_u32(&mut block, 116, u32::MAX);
    assert!(refusal(&block, Purpose::Read).contains("beyond"));
    let mut block = valid(3);
    be::put_u32(&mut block, 112, Extension::BITMAPS);
    assert!(Header::parse(&block, Purpose::Read).is_ok_and(|header| header.bitmaps().is_none()));
    be::put_u64(&mut block, 88, BITMAPS);
    assert!(refusal(&block, Purpose::Read).contains("bitmaps"));
}

#[test]
fn unknown_things_survive_a_new_layout() {
    // QEMU up to 5.0 wrote 104 bytes; a later one may write more than 112
    for length in [104, 112, 120, 136] {
        let mut block = with_extension(0x1234_5678, b"keep me");
        block.splice(112..112, vec![0xee; length.max(112) - 112]);
        block.drain(length.min(112)..112);
        block.resize(65536, 0);
        be::put_u32(&mut block, 100, length as u32);
        let offset = be::u64_at(&block, 8) + length as u64 - 112;
        be::put_u64(&mut block, 8, offset);
        let mut header = Header::parse(&block, Purpose::Write).unwrap();
        let same = header.encode();
        assert_eq!(same, block[..same.len()]);
        header.set_backing(Some(b"another name"), None).unwrap();
        let mut again = header.encode();
        again.resize(65536, 0);
        let header = Header::parse(&again, Purpose::Write).unwrap();
        assert_eq!(header.backing(), Some(&b"another name"[..]));
        assert_eq!(header.backing_format(), None);
        assert_eq!(header.extension(0x1234_5678), Some(&b"keep me"[..]));
        assert_eq!(again[112..length.max(112)], vec![0xee; length.max(112) - 112]);
    }
}

#[test]
fn changed_fields_stand_where_they_belong() {
    let block = valid(3);
    let mut header = Header::parse(&block, Purpose::Write).unwrap();
    header.set_dirty(true);
    header.set_corrupt(true);
    (header.size, header.l1_entries, header.l1_offset) = (2 << 30, 4, 0x9_0000);
    (header.reftable_offset, header.reftable_clusters) = (0xa_0000, 2);
    let new = header.encode();
    let changed: Vec<_> = (0..new.len()).filter(|at| new[*at] != block[*at]).collect();
    assert_eq!(changed, [28, 39, 45, 53, 59, 79]);
    header.set_dirty(false);
    header.set_corrupt(false);
    assert_eq!(header.encode()[72..80], [0; 8]);
    header.autoclear = 0xff;
    assert_eq!(header.stale_autoclear(BITMAPS), 0xfe);
    header.clear_autoclear(0);
    assert_eq!(header.autoclear, 0);
}

#[test]
fn a_name_that_does_not_fit() {
    let mut small = Header::new(3, 9, 4, [0; 3], None).unwrap();
    assert_eq!(small.set_backing(Some(&[b'a'; 400]), None), Err(Error::NoSpace));
    assert_eq!(small.backing(), None);
    small.set_backing(Some(&[b'a'; 392]), None).unwrap();
    assert!(small.set_backing(Some(&[b'a'; 1024]), None).is_err());
    assert!(small.set_backing(None, Some(&[b'a'; 16])).is_err());
    assert_eq!(small.block_len(), 512);
    let mut raw = Header::new(3, 16, 4, [incompatible::DATA_FILE, 0, RAW_DATA_FILE], Some(b"data")).unwrap();
    assert_eq!(raw.data_file(), Some(&b"data"[..]));
    assert!(matches!(raw.set_backing(Some(b"base"), None), Err(Error::Misuse(_))));
}

#[test]
fn names_of_the_longest_kind() {
    let mut header = Header::new(3, 16, 4, [0; 3], None).unwrap();
    header.set_backing(Some(&[b'a'; 1023]), Some(&[b'f'; 15])).unwrap();
    assert_eq!((header.backing(), header.backing_format()), (Some(&[b'a'; 1023][..]), Some(&[b'f'; 15][..])));
    let error = |value, why| Err(Error::Corrupt(Fault::New { value, why }));
    let long = error(1024, NewFault::BackingTooLong);
    assert_eq!(header.set_backing(Some(&[b'a'; 1024]), None), long);
    let long = error(16, NewFault::BackingFormat);
    assert_eq!(header.set_backing(None, Some(&[b'f'; 16])), long);
    // twice is as good as once
    for set in [true, true, false, false] {
        header.set_dirty(set);
        header.set_corrupt(set);
        assert_eq!((header.is_dirty(), header.is_corrupt()), (set, set));
    }
}

/// A header of version 3 whose extensions are these bytes, in clusters of 512 bytes.
fn with_extensions(bytes: &[u8]) -> Result<Header, Error> {
    let mut header = Header::new(3, 9, 4, [0; 3], None).unwrap();
    header.lay_out().unwrap();
    let mut block = header.encode();
    block[112..].fill(0xee);
    be::put(&mut block, 112, bytes);
    Header::parse(&block, Purpose::Read)
}

#[test]
fn extensions_end_with_their_list_or_their_space() {
    let kinds = |bytes: &[u8]| {
        with_extensions(bytes)
            .map(|header| header.extensions().iter().map(|one| one.kind).collect::<Vec<_>>())
    };
    let one = |kind: u32, len: u32| [kind.to_be_bytes(), len.to_be_bytes()].concat();
    let list = [one(7, 3), vec![1; 8], one(8, 0), one(0, 0)].concat();
    assert_eq!(kinds(&list), Ok(vec![7, 8]));
    // 400 bytes are there: the last one may fill them, and needs no end
    assert_eq!(kinds(&[one(7, 392), vec![1; 392]].concat()), Ok(vec![7]));
    assert_eq!(kinds(&[one(7, 384), vec![1; 384], one(8, 0)].concat()), Ok(vec![7, 8]));
    let beyond = |len| {
        let why = ExtensionFault::TooLong;
        Err(Error::Corrupt(Fault::Extension { value: len, why }))
    };
    assert_eq!(kinds(&[one(7, 393), vec![1; 392]].concat()), beyond(393));
    assert_eq!(kinds(&[one(7, 384), vec![1; 384], one(8, 1)].concat()), beyond(1));
}

#[test]
fn a_long_extension_belongs_to_the_header() {
    // its end lies in the third block of 4096 bytes
    let mut block = with_extension(0x1234_5678, &[7; 8200]);
    let header = Header::parse(&block, Purpose::Write).unwrap();
    assert_eq!(header.encode(), block[..12288]);
    // without the name behind it likewise
    be::put_u64(&mut block, 8, 0);
    let header = Header::parse(&block, Purpose::Write).unwrap();
    assert_eq!((header.backing(), header.block_len()), (None, 12288));
    let fields = with_extension(0x1234_5678, &[7; 3000]);
    assert_eq!(Header::parse(&fields, Purpose::Write).unwrap().block_len(), 4096);
}

#[test]
fn bitmaps_and_a_data_file_stay_where_they_are_known() {
    let mut directory = vec![0; 24];
    be::put_u32(&mut directory, 0, 2);
    be::put_u64(&mut directory, 8, 64);
    be::put_u64(&mut directory, 16, 0x5_0000);
    let mut block = with_extension(Extension::BITMAPS, &directory);
    // the bitmaps were left out of the layout: they were not valid
    assert_eq!(Header::parse(&block, Purpose::Write).unwrap().extension(Extension::BITMAPS), None);
    let mut header = Header::parse(&valid(3), Purpose::Write).unwrap();
    header.extensions.push(Extension { kind: Extension::BITMAPS, data: directory.clone() });
    header.bitmaps = Some(bitmap::Extension { count: 2, directory_size: 64, directory_offset: 0x5_0000 });
    header.autoclear = BITMAPS;
    header.lay_out().unwrap();
    block = header.encode();
    block.resize(65536, 0);
    let mut again = Header::parse(&block, Purpose::Write).unwrap();
    assert_eq!(
        (again.bitmaps(), again.extension(Extension::BITMAPS)),
        (header.bitmaps(), Some(&directory[..]))
    );
    again.clear_autoclear(BITMAPS);
    assert!(again.bitmaps().is_some());
    again.clear_autoclear(RAW_DATA_FILE);
    assert_eq!((again.bitmaps(), again.autoclear), (None, 0));
    // an offset within a cluster of this image's size
    for (offset, good) in [(65536, true), (512, false), (32768, false)] {
        let at = block.windows(8).position(|bytes| bytes == 0x5_0000u64.to_be_bytes()).unwrap();
        let mut block = block.clone();
        be::put_u64(&mut block, at, offset);
        assert_eq!(Header::parse(&block, Purpose::Write).is_ok(), good, "{offset}");
    }
    let features = [incompatible::DATA_FILE, 0, 0];
    let mut remote = Header::new(3, 16, 4, features, Some(b"data")).unwrap();
    remote.incompatible = 0;
    remote.lay_out().unwrap();
    assert_eq!(remote.extension(Extension::DATA_FILE), None, "there is no data file any more");
}

#[test]
fn region_is_bounded() {
    assert_eq!(Header::region(&[]), 512);
    assert_eq!(Header::region(&[0xff; 512]), 2 << 20);
    assert!(Header::region(&valid(3)) < 4096);
}

proptest! {
    #[test]
    fn untouched_headers_are_written_as_they_were(
        version in 2..=3u32,
        changes in prop::collection::vec((0..600usize, any::<u8>()), 0..6),
        check: bool,
    ) {
        let mut block = valid(version);
        for (at, byte) in changes {
            block[at] = byte;
        }
        let purpose = if check { Purpose::Check } else { Purpose::Write };
        if let Ok(mut header) = Header::parse(&block, purpose) {
            let same = header.encode();
            prop_assert_eq!(&same[..], &block[..same.len()]);
            let shape = header.shape();
            prop_assert!(shape.l1_entries(header.size) <= u64::from(header.l1_entries));
            if header.set_backing(Some(b"other"), Some(b"qcow2")).is_ok() {
                let mut bytes = header.encode();
                bytes.resize(bytes.len().max(65536), 0);
                let again = Header::parse(&bytes, purpose);
                let found = again.as_ref().ok().and_then(Header::backing);
                prop_assert_eq!(found, Some(&b"other"[..]));
            }
        }
    }

    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..700), magic: bool) {
        if magic && bytes.len() >= 8 {
            be::put(&mut bytes, 0, b"QFI\xfb\0\0\0\x03");
        }
        let _ = Header::parse(&bytes, Purpose::Check);
        prop_assert!(Header::region(&bytes) <= 2 << 20);
    }
}
