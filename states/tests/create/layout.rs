//! Where the parts of new qcow2 images lie.
//!
//! Checks: literal places of header, refcount table and blocks, L1 and L2 tables and data, over
//! preallocation modes, cluster sizes and refcount widths, at sizes where a refcount table has to move, a
//! block falls between data, or a run of data ends early; that each cluster in use is counted once and no
//! other; the range whose space is to be reserved. The places are those of `qemu-img create` (10.0).

use quod_states::qcow2::{CreateOptions, Created, Header, Preallocation, Purpose, create};
use std::collections::BTreeMap;
use std::ops::Range;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;

/// The image as its pieces make it: clusters that are not all zeros.
struct Clusters {
    bits: u32,
    bytes: BTreeMap<u64, Vec<u8>>,
}

impl Clusters {
    fn new(created: &Created) -> Clusters {
        let bits = created.header().cluster_bits;
        let size = 1 << bits;
        let mut bytes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (offset, piece) in created.pieces() {
            assert_eq!(offset % size, 0, "each piece begins a cluster");
            for (at, part) in (offset >> bits..).zip(piece.chunks(size as usize)) {
                let mut part = part.to_vec();
                part.resize(size as usize, 0);
                bytes.insert(at, part);
            }
        }
        Clusters { bits, bytes }
    }

    fn long(&self, offset: u64) -> u64 {
        let within = (offset & ((1 << self.bits) - 1)) as usize;
        self.bytes
            .get(&(offset >> self.bits))
            .map_or(0, |bytes| u64::from_be_bytes(bytes[within..within + 8].try_into().unwrap()))
    }

    /// Entries of a table that lead somewhere: index, and cluster.
    fn entries(&self, table: u64, count: u64, flags: u64) -> Vec<(u64, u64)> {
        let entry = |index| (index, self.long(table + index * 8));
        let used = (0..count).map(entry).filter(|(_, entry)| *entry != 0);
        used.map(|(index, entry)| {
            assert_eq!(entry & !OFFSET, flags, "entry {index} of the table at {table:#x}");
            (index, (entry & OFFSET) >> self.bits)
        })
        .collect()
    }
}

/// Runs of places, of those that begin in `window`: where the first is, where it leads to, how many.
fn runs(places: &[(u64, u64)], window: &Range<u64>) -> String {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for (from, to) in places {
        match runs.last_mut() {
            Some((first, start, count)) if *first + *count == *from && *start + *count == *to => *count += 1,
            _ => runs.push((*from, *to, 1)),
        }
    }
    runs.retain(|(_, start, _)| window.contains(start));
    let text = runs.iter().map(|(first, start, count)| format!("{first}>{start}+{count}"));
    text.collect::<Vec<_>>().join(" ")
}

/// Where everything lies, in clusters, as text; and that the counts are right.
fn layout(options: &CreateOptions<'_>, window: Range<u64>) -> String {
    let created = create(options).unwrap();
    assert!(!created.is_empty(), "there is a header at least");
    let clusters = Clusters::new(&created);
    let header = Header::parse(&clusters.bytes[&0], Purpose::Write).unwrap();
    let bits = header.cluster_bits;
    let table = (header.reftable_offset >> bits, u64::from(header.reftable_clusters));
    let blocks = clusters.entries(header.reftable_offset, table.1 << (bits - 3), 0);
    let l1_clusters = (u64::from(header.l1_entries) * 8).div_ceil(header.cluster_size());
    let l2 = clusters.entries(header.l1_offset, header.l1_entries.into(), COPIED);
    let per_table = header.shape().l2_entries();
    let data: Vec<(u64, u64)> = l2
        .iter()
        .flat_map(|(index, at)| {
            let entries = clusters.entries(at << bits, per_table, COPIED).into_iter();
            entries.map(move |(entry, host)| (index * per_table + entry, host))
        })
        .collect();
    let mut used = vec![0];
    used.extend(table.0..table.0 + table.1);
    used.extend((header.l1_offset >> bits..).take(l1_clusters as usize));
    used.extend(blocks.iter().chain(&l2).chain(&data).map(|(_, at)| *at));
    used.sort_unstable();
    let counts = header.refcounts();
    let mut counted = Vec::new();
    for (index, at) in &blocks {
        let first = index << counts.block_bits();
        let block = &clusters.bytes[at];
        for within in 0..counts.block_entries() {
            let count = counts.get(block, within);
            assert!(count <= 1, "cluster {}", first + within);
            counted.extend((count > 0).then_some(first + within));
        }
    }
    assert!(counted == used, "each cluster in use is counted once, and no other");
    let reserved = created
        .data_range()
        .map_or("none".into(), |(offset, len)| format!("{}+{}", offset >> bits, len >> bits));
    assert_eq!(created.len() % header.cluster_size(), 0);
    format!(
        "table {}+{} L1 {}+{l1_clusters} blocks {} L2 {} data {} file {} reserved {}",
        table.0,
        table.1,
        header.l1_offset >> bits,
        runs(&blocks, &window),
        runs(&l2, &window),
        runs(&data, &window),
        created.len() >> bits,
        reserved
    )
}

fn small(refcount_bits: u32, preallocation: Preallocation, clusters: u64) -> CreateOptions<'static> {
    let size = clusters * 512;
    CreateOptions { size, cluster_size: 512, refcount_bits, preallocation, ..CreateOptions::default() }
}

const ALL: Range<u64> = 0..u64::MAX;

#[test]
fn space_that_is_reserved_lies_in_one_run_behind_a_new_refcount_table() {
    for (bits, clusters, expected) in [
        (16, 1, "table 4+1 L1 3+1 blocks 0>2+1 L2 0>1+1 data 0>5+1 file 6 reserved 5+1"),
        (64, 56, "table 4+1 L1 3+1 blocks 0>2+1 L2 0>1+1 data 0>5+56 file 61 reserved 5+56"),
        // one more, and it needs a second block
        (64, 57, "table 5+1 L1 3+1 blocks 0>2+1 1>4+1 L2 0>1+1 data 0>6+57 file 63 reserved 6+57"),
        (64, 58, "table 5+1 L1 3+1 blocks 0>2+1 1>4+1 L2 0>1+1 data 0>6+58 file 64 reserved 6+58"),
        (
            64,
            119,
            "table 6+1 L1 3+1 blocks 0>2+1 1>4+2 L2 0>1+1 1>126+1 data 0>7+119 file 127 reserved 7+119",
        ),
        (
            64,
            4026,
            "table 69+2 L1 3+1 blocks 0>2+1 1>4+65 L2 0>1+1 1>4097+62 data 0>71+4026 file 4159 \
             reserved 71+4026",
        ),
        (
            32,
            16121,
            "table 136+3 L1 3+4 blocks 0>2+1 1>7+129 L2 0>1+1 1>16260+251 data 0>139+16121 file 16511 \
             reserved 139+16121",
        ),
    ] {
        let layout = layout(&small(bits, Preallocation::Falloc, clusters), ALL);
        assert_eq!(layout, expected, "{clusters} clusters");
    }
}

#[test]
fn what_the_caller_has_to_reserve_is_told() {
    let of = |preallocation, size| {
        let created = create(&CreateOptions { size, preallocation, ..CreateOptions::default() }).unwrap();
        (created.len(), created.data_range())
    };
    const CLUSTER: u64 = 65536;
    for mode in [Preallocation::Falloc, Preallocation::Full] {
        assert_eq!(of(mode, 10 * CLUSTER), (15 * CLUSTER, Some((5 * CLUSTER, 10 * CLUSTER))));
        assert_eq!(of(mode, 0), (4 * CLUSTER, Some((4 * CLUSTER, 0))));
    }
    assert_eq!(of(Preallocation::Metadata, 10 * CLUSTER), (15 * CLUSTER, None));
    assert_eq!(of(Preallocation::Off, 10 * CLUSTER), (3 * CLUSTER + 8, None));
    assert_eq!(of(Preallocation::Off, 0), (3 * CLUSTER, None));
}

#[test]
fn tables_and_data_take_turns() {
    for (bits, clusters, window, expected) in [
        (16, 1, ALL, "table 1+1 L1 3+1 blocks 0>2+1 L2 0>4+1 data 0>5+1 file 6 reserved none"),
        (64, 57, ALL, "table 1+1 L1 3+1 blocks 0>2+1 L2 0>4+1 data 0>5+57 file 62 reserved none"),
        (
            64,
            200,
            ALL,
            "table 1+1 L1 3+1 blocks 0>2+1 1>69+1 2>135+1 3>201+1 L2 0>4+1 1>70+1 2>136+1 3>202+1 \
             data 0>5+64 64>71+64 128>137+64 192>203+8 file 211 reserved none",
        ),
        // the refcount table moves while data is allocated
        (
            64,
            5000,
            3960..4300,
            "table 4162+2 L1 3+2 blocks 61>3965+1 62>4031+1 63>4033+1 64>4098+1 65>4160+2 67>4293+1 \
             L2 60>3966+1 61>4032+1 62>4099+1 63>4228+1 64>4294+1 data 3840>3967+64 3904>4034+64 \
             3968>4164+64 4032>4229+64 4096>4295+64 file 5227 reserved none",
        ),
        // it moves while an L2 table is, which takes the place of the old one: the data goes on in one run
        (
            16,
            275_827,
            16300..16600,
            "table 278789+26 L1 3+68 blocks 64>16385+1 L2 249>16319+1 251>16449+1 252>16514+1 \
             253>16579+1 data 15936>16320+65 16001>16386+63 16064>16450+64 16128>16515+64 \
             file 281472 reserved none",
        ),
    ] {
        let layout = layout(&small(bits, Preallocation::Metadata, clusters), window);
        assert_eq!(layout, expected, "{clusters} clusters");
    }
}

#[test]
fn an_old_refcount_table_stands_where_nothing_took_its_place() {
    let created = create(&small(64, Preallocation::Metadata, 5000)).unwrap();
    let old = Clusters::new(&created).entries(512, 64, 0);
    assert_eq!(old.len(), 64);
    assert_eq!((old[0], old[1], old[63]), ((0, 2), (1, 70), (63, 4033)));
    // here an L2 table did
    let created = create(&small(64, Preallocation::Falloc, 4026)).unwrap();
    assert_eq!(Clusters::new(&created).entries(512, 64, COPIED)[..2], [(0, 71), (1, 72)]);
}

/// No more than 2^31 - 1 bytes are allocated at once: a refcount block that is met then lies behind those.
#[test]
fn a_refcount_block_lies_behind_two_gigabytes() {
    let options = CreateOptions {
        size: 2 << 30,
        cluster_size: 128 << 10,
        refcount_bits: 64,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    };
    let expected = "table 1+1 L1 3+1 blocks 0>2+1 1>16388+1 L2 0>4+1 data 0>5+16383 16383>16389+1 \
                    file 16390 reserved none";
    assert_eq!(layout(&options, ALL), expected);
}

/// L1 tables alone, so long that the refcount table moves: it counts itself and half as much again.
#[test]
fn a_long_l1_table_moves_the_refcount_table() {
    for (clusters, expected) in [
        (
            4000,
            "table 1+1 L1 3+4000 blocks 0>2+1 1>4003+1 2>4005+28 30>4034+32 62>4004+1 63>4033+1 L2  data  \
             file 4066 reserved none",
        ),
        (
            4100,
            "table 4162+2 L1 3+4100 blocks 0>2+1 1>4103+1 2>4105+55 57>4164+7 64>4104+1 65>4160+2 L2  \
             data  file 4171 reserved none",
        ),
        (
            7905,
            "table 7939+3 L1 3+7905 blocks 0>2+1 1>7908+1 2>7910+26 28>7942+95 123>7909+1 124>7936+3 \
             L2  data  file 8037 reserved none",
        ),
    ] {
        let size = clusters * 64 * 64 * 512;
        let options = CreateOptions { size, ..small(64, Preallocation::Off, 0) };
        assert_eq!(layout(&options, ALL), expected, "{clusters} clusters");
    }
}
