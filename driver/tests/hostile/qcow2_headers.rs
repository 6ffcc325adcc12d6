//! qcow2 images with bad headers: fields, extensions, names of other files; files that end early.

use crate::qcow2_sample::{
    Base, DATA, DIRECTORY, END, Image, L1, L2A, L2B, PACKED, REFBLOCK, REFTABLE, Sample, add,
};

const MAX: u64 = u64::MAX;
const WORD: u64 = u32::MAX as u64;
const K4: u64 = 4096;

/// Field, place, width, value, whether the image is of another disk then.
const FIELDS: &[(&str, usize, usize, u64, bool)] = &[
    ("magic", 0, 4, 0, false),
    ("magic", 0, 4, 0xfb49_4651, false),
    ("version", 4, 4, 0, false),
    ("version", 4, 4, 1, false),
    ("version", 4, 4, 4, false),
    ("version", 4, 4, WORD, false),
    ("backing_file_offset", 8, 8, 1, true),
    ("backing_file_offset", 8, 8, K4, true),
    ("backing_file_offset", 8, 8, K4 + 1, false),
    ("backing_file_offset", 8, 8, 1 << 63, false),
    ("backing_file_offset", 8, 8, MAX, false),
    ("backing_file_size", 16, 4, WORD, true),
    ("cluster_bits", 20, 4, 0, false),
    ("cluster_bits", 20, 4, 8, false),
    ("cluster_bits", 20, 4, 9, true),
    ("cluster_bits", 20, 4, 13, true),
    ("cluster_bits", 20, 4, 21, true),
    ("cluster_bits", 20, 4, 22, false),
    ("cluster_bits", 20, 4, 63, false),
    ("cluster_bits", 20, 4, WORD, false),
    ("size", 24, 8, 0, false),
    ("size", 24, 8, 1, false),
    ("size", 24, 8, 511, false),
    ("size", 24, 8, (4 << 20) - 1, false),
    ("size", 24, 8, (4 << 20) + 1, false),
    ("size", 24, 8, 1 << 40, false),
    ("size", 24, 8, (1 << 63) - 512, false),
    ("size", 24, 8, 1 << 63, false),
    ("size", 24, 8, MAX, false),
    ("crypt_method", 32, 4, 1, false),
    ("crypt_method", 32, 4, 2, false),
    ("crypt_method", 32, 4, WORD, false),
    ("l1_size", 36, 4, 0, false),
    ("l1_size", 36, 4, 1, false),
    ("l1_size", 36, 4, 3, false),
    ("l1_size", 36, 4, 513, false),
    ("l1_size", 36, 4, 4 << 20, false),
    ("l1_size", 36, 4, (4 << 20) + 1, false),
    ("l1_size", 36, 4, WORD, false),
    ("l1_table_offset", 40, 8, 0, true),
    ("l1_table_offset", 40, 8, 3 * K4 + 512, false),
    ("l1_table_offset", 40, 8, REFTABLE as u64 * K4, true),
    ("l1_table_offset", 40, 8, REFBLOCK as u64 * K4, true),
    ("l1_table_offset", 40, 8, L2A as u64 * K4, true),
    ("l1_table_offset", 40, 8, DATA as u64 * K4, true),
    ("l1_table_offset", 40, 8, END as u64 * K4, true),
    ("l1_table_offset", 40, 8, 1 << 40, true),
    ("l1_table_offset", 40, 8, 1 << 63, false),
    ("l1_table_offset", 40, 8, MAX - 4095, false),
    ("refcount_table_offset", 48, 8, 0, false),
    ("refcount_table_offset", 48, 8, K4 + 512, false),
    ("refcount_table_offset", 48, 8, L1 as u64 * K4, false),
    ("refcount_table_offset", 48, 8, L2A as u64 * K4, false),
    ("refcount_table_offset", 48, 8, DATA as u64 * K4, false),
    ("refcount_table_offset", 48, 8, END as u64 * K4, false),
    ("refcount_table_offset", 48, 8, 1 << 40, false),
    ("refcount_table_offset", 48, 8, 1 << 63, false),
    ("refcount_table_offset", 48, 8, MAX - 4095, false),
    ("refcount_table_clusters", 56, 4, 0, false),
    ("refcount_table_clusters", 56, 4, 2, false),
    ("refcount_table_clusters", 56, 4, 2048, false),
    ("refcount_table_clusters", 56, 4, 2049, false),
    ("refcount_table_clusters", 56, 4, WORD, false),
    ("nb_snapshots", 60, 4, 1, false),
    ("nb_snapshots", 60, 4, 65536, false),
    ("nb_snapshots", 60, 4, 65537, false),
    ("nb_snapshots", 60, 4, WORD, false),
    ("snapshots_offset", 64, 8, 512, false),
    ("snapshots_offset", 64, 8, MAX, false),
    ("incompatible_features", 72, 8, 1, false),
    ("incompatible_features", 72, 8, 2, false),
    ("incompatible_features", 72, 8, 3, false),
    ("incompatible_features", 72, 8, 4, false),
    ("incompatible_features", 72, 8, 8, false),
    ("incompatible_features", 72, 8, 16, false),
    ("incompatible_features", 72, 8, 32, false),
    ("incompatible_features", 72, 8, 1 << 63, false),
    ("incompatible_features", 72, 8, MAX, false),
    ("compatible_features", 80, 8, 1, false),
    ("compatible_features", 80, 8, MAX, false),
    ("autoclear_features", 88, 8, 1, false),
    ("autoclear_features", 88, 8, 2, false),
    ("autoclear_features", 88, 8, MAX - 2, false),
    ("refcount_order", 96, 4, 0, false),
    ("refcount_order", 96, 4, 3, false),
    ("refcount_order", 96, 4, 5, false),
    ("refcount_order", 96, 4, 6, false),
    ("refcount_order", 96, 4, 7, false),
    ("refcount_order", 96, 4, WORD, false),
    ("header_length", 100, 4, 0, false),
    ("header_length", 100, 4, 103, false),
    ("header_length", 100, 4, 104, false),
    ("header_length", 100, 4, 105, false),
    ("header_length", 100, 4, K4, false),
    ("header_length", 100, 4, K4 + 1, false),
    ("header_length", 100, 4, WORD, false),
    ("compression_type", 104, 1, 1, false),
    ("compression_type", 104, 1, 2, false),
    ("compression_type", 104, 1, 255, false),
];

pub fn add_all(list: &mut Vec<Image>) {
    fields(list);
    extensions(list);
    names(list);
    cuts(list);
}

fn fields(list: &mut Vec<Image>) {
    for &(field, at, width, value, other) in FIELDS {
        let name = format!("{field} {value:#x}");
        // the counts are read elsewhere, or in another width: what they say of data is not true any more
        let counts = field.starts_with("refcount_");
        add(list, Base::Plain, &name, &format!("the header says {value:#x}"), move |sample| {
            sample.put(at, &value.to_be_bytes()[8 - width..]);
            if field == "backing_file_offset" {
                sample.word(16, 5);
            } else if field == "backing_file_size" {
                sample.long(8, 1024);
            }
            (sample.other, sample.uncounted) = (other, counts);
            sample.crossed = counts || field.starts_with("l1_");
        });
    }
}

fn extensions(list: &mut Vec<Image>) {
    let mut plain =
        |name: &str, about: &str, spoil: fn(&mut Sample)| add(list, Base::Plain, name, about, spoil);
    plain("extension beyond the header", "its length is 1 GiB", |s| {
        s.word(112, 0x1234_5678).word(116, 1 << 30);
    });
    plain("extension of 4 GiB", "its length is all ones", |s| {
        s.word(112, 0x1234_5678).word(116, u32::MAX);
    });
    plain("extension to the cluster's end", "it leaves no room for an end", |s| {
        s.word(112, 0x1234_5678).word(116, 4096 - 120);
    });
    plain("unknown extension", "nobody knows its kind", |s| {
        s.extend(0xdead_beef, b"something");
    });
    plain("backing format without a file", "of an image that has no backing file", |s| {
        s.extend(0xe279_2aca, b"raw");
    });
    plain("backing format of 16 bytes", "is longer than any", |s| {
        s.extend(0xe279_2aca, &[b'r'; 16]);
    });
    plain("backing format twice", "two extensions of one kind", |s| {
        s.extend(0xe279_2aca, b"raw").extend(0xe279_2aca, b"qcow2");
    });
    plain("feature table of 40 bytes", "not a multiple of an entry's 48", |s| {
        s.extend(0x6803_f857, &[0xff; 40]);
    });
    plain("encryption header", "of an image that is not encrypted", |s| {
        s.extend(0x0537_be77, &[0; 16]);
    });
    let mut bitmap =
        |name: &str, about: &str, spoil: fn(&mut Sample)| add(list, Base::Bitmap, name, about, spoil);
    bitmap("bitmaps extension of 16 bytes", "must have 24", |s| {
        s.word(116, 16);
    });
    bitmap("bitmaps extension twice", "two extensions of one kind", |s| {
        s.extend(0x2385_2875, &[0; 24]);
    });
    bitmap("no bitmaps", "the extension says 0", |s| {
        s.word(120, 0);
    });
    bitmap("too many bitmaps", "the extension says 2^32 - 1", |s| {
        s.word(120, u32::MAX);
    });
    bitmap("bitmaps reserved field", "is not zero", |s| {
        s.word(124, 1);
    });
    bitmap("bitmap directory too long", "2^63 bytes", |s| {
        s.long(128, 1 << 63);
    });
    bitmap("bitmap directory beyond the file", "at 2^40", |s| {
        s.long(136, 1 << 40);
    });
    bitmap("bitmap directory at the numeric edge", "below 2^64", |s| {
        s.long(136, u64::MAX - 4095);
    });
    bitmap("bitmap directory not at a cluster", "at an odd place", |s| {
        s.long(136, DIRECTORY as u64 * K4 + 8);
    });
    bitmap("bitmap directory on the L1 table", "one cluster for both", |s| {
        s.long(136, L1 as u64 * K4);
    });
    bitmap("bitmap name too long", "longer than its directory", |s| {
        s.put(DIRECTORY * 4096 + 18, &[0xff; 2]);
    });
    bitmap("bitmap extra data", "4 GiB of it", |s| {
        s.word(DIRECTORY * 4096 + 20, u32::MAX);
    });
    bitmap("bitmap granularity", "2^255", |s| {
        s.put(DIRECTORY * 4096 + 17, &[255]);
    });
    bitmap("bitmap table beyond the file", "at 2^40", |s| {
        s.long(DIRECTORY * 4096, 1 << 40);
    });
    bitmap("bitmap table too large", "2^32 - 1 entries", |s| {
        s.word(DIRECTORY * 4096 + 8, u32::MAX);
    });
    bitmap("bitmap bits on an L2 table", "one cluster for both", |s| {
        s.long((DIRECTORY + 1) * 4096, L2B as u64 * K4);
    });
    bitmap("bitmap bits beyond the file", "at 2^40", |s| {
        s.long((DIRECTORY + 1) * 4096, 1 << 40);
    });
}

fn names(list: &mut Vec<Image>) {
    let names: [(&str, &[u8]); 12] = [
        ("itself", b"image.qcow2"),
        ("itself by a long way", b"./././image.qcow2"),
        ("a file that is not there", b"gone.raw"),
        ("a directory", b"."),
        ("an empty name", b""),
        ("a zero byte in it", b"base.raw\0x"),
        ("no text", b"\xff\xfe\x80"),
        ("a protocol", b"nbd://host/disk"),
        ("JSON", b"json:{\"driver\":\"raw\"}"),
        ("a device", b"/dev/zero"),
        ("a short file", b"base.raw"),
        ("a long name", &[b'x'; 1023]),
    ];
    for (name, bytes) in names {
        let (name, about) = (format!("backing: {name}"), "the backing file's name");
        add(list, Base::Plain, &name, about, move |s| {
            s.backing(bytes);
        });
        let name = name.replace("backing", "data file");
        add(list, Base::Plain, &name, "the data file's name", move |s| {
            s.long(72, 4).extend(0x4441_5441, bytes).other = true;
            (s.other, s.uncounted) = (true, true);
        });
    }
    add(list, Base::Plain, "backing: 1024 bytes", "the name is too long", |s| {
        s.backing(&[b'x'; 1024]);
    });
    add(list, Base::Plain, "backing: of format vmdk", "a format that is not there", |s| {
        s.backing(b"base.raw").extend(0xe279_2aca, b"vmdk");
    });
    add(list, Base::Plain, "backing: raw, of format qcow2", "the file is something else", |s| {
        s.backing(b"base.raw").extend(0xe279_2aca, b"qcow2");
    });
    add(list, Base::Plain, "data file: raw, and a backing file", "one forbids the other", |s| {
        s.backing(b"base.raw").long(72, 4).long(88, 2).extend(0x4441_5441, b"data.raw").uncounted = true;
    });
    add(list, Base::Plain, "data file: name without the bit", "the feature bit is not set", |s| {
        s.extend(0x4441_5441, b"data.raw");
    });
}

/// Files that end early, and hardly begin.
fn cuts(list: &mut Vec<Image>) {
    for len in [0usize, 1, 3, 4, 8, 20, 24, 48, 71, 72, 73, 100, 103, 104, 105, 111, 112, 200, 511, 512] {
        add(list, Base::Plain, &format!("cut to {len}"), "only a header, or less", move |s| {
            s.bytes.truncate(len);
            (s.other, s.uncounted) = (true, true);
        });
    }
    for cluster in REFTABLE..END {
        for more in [0, 1, 512, 4095] {
            let len = cluster * 4096 + more;
            let name = format!("cut in cluster {cluster} at {more}");
            add(list, Base::Plain, &name, "the file ends there", move |s| {
                s.bytes.truncate(len);
                s.other = len < (L2B + 1) * 4096;
                // a refcount block that is cut off counts nothing
                s.uncounted = len < (REFBLOCK + 1) * 4096;
                // an entry's compressed data may be complete before its last sector ends
                if (DATA..PACKED).contains(&cluster) && more > 0 {
                    s.unknown.push(s.filled()[cluster - DATA]);
                }
                if cluster == PACKED {
                    s.unknown.extend([8, 9]);
                }
            });
        }
    }
}
