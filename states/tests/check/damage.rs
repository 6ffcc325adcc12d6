//! Damage, at random and with purpose.

use quod_states::qcow2::Header;
use quod_states_tests::Rng;
use quod_states_tests::qcow2::{header, set_count};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn be(file: &[u8], at: u64) -> u64 {
    file.get(at as usize..at as usize + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
}

fn set_be(file: &mut [u8], at: u64, value: u64) {
    if let Some(to) = file.get_mut(at as usize..at as usize + 8) {
        to.copy_from_slice(&value.to_be_bytes());
    }
}

/// Some L2 table of the active disk.
fn table(file: &[u8], header: &Header, rng: &mut Rng) -> Option<u64> {
    let entries = u64::from(header.l1_entries).min(64);
    let tables = (0..entries).map(|n| be(file, header.l1_offset + n * 8) & OFFSET);
    let tables: Vec<u64> = tables.filter(|table| *table != 0).collect();
    (!tables.is_empty()).then(|| tables[rng.below(tables.len() as u64) as usize])
}

/// A place that somebody has, or nobody.
fn place(file: &[u8], header: &Header, rng: &mut Rng) -> u64 {
    let (cluster, clusters) = (header.cluster_size(), file.len() as u64 >> header.cluster_bits);
    match rng.below(14) {
        0 => 0,
        1 => header.l1_offset,
        2 => header.reftable_offset,
        3 => be(file, header.reftable_offset) & OFFSET,
        4 => header.snapshots_offset,
        5 => be(file, header.snapshots_offset),
        6 | 7 => table(file, header, rng).unwrap_or(0),
        8 => clusters * cluster,
        9 => (clusters + rng.below(20)) * cluster,
        10 => 1 << (rng.below(56)),
        _ => rng.below(clusters.max(1)) * cluster,
    }
}

/// The flags of an entry, mostly those that it may have.
fn flags(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0..=2 => 1 << 63,
        3 => 1,
        4 => 1 << 63 | 1,
        5 if rng.below(3) == 0 => 1 << rng.below(64),
        _ => 0,
    }
}

fn l1(file: &mut [u8], header: &Header, rng: &mut Rng) -> String {
    let entries = u64::from(header.l1_entries).clamp(1, 64);
    let (to, from) = (rng.below(entries), rng.below(entries));
    let value = match rng.below(3) {
        0 => be(file, header.l1_offset + from * 8),
        1 => be(file, header.l1_offset + from * 8) & OFFSET,
        _ => place(file, header, rng) | flags(rng) & !1,
    };
    set_be(file, header.l1_offset + to * 8, value);
    format!("L1 entry {to} is {value:#x}")
}

fn l2(file: &mut [u8], header: &Header, rng: &mut Rng) -> String {
    let Some(table) = table(file, header, rng) else { return "nothing".into() };
    let shape = header.shape();
    let (step, count) = (shape.l2_entry_bytes(), shape.l2_entries());
    let (to, from) = (table + rng.below(count.min(256)) * step, table + rng.below(count.min(256)) * step);
    let value = match rng.below(6) {
        0 => be(file, from),
        1 => be(file, from) & OFFSET,
        2 => be(file, to) ^ flags(rng),
        3 => {
            let host = place(file, header, rng) + rng.below(shape.cluster_size());
            shape.encode_compressed(host, 1 + rng.below(shape.cluster_size()) as u32).unwrap_or(1 << 62)
        }
        _ => place(file, header, rng) | flags(rng),
    };
    set_be(file, to, value);
    let mut bitmap = 0;
    if shape.extended && rng.below(2) == 0 {
        bitmap = rng.word() & rng.word();
        bitmap = if rng.below(2) == 0 { bitmap & !(bitmap >> 32) } else { bitmap };
        set_be(file, to + 8, bitmap);
    }
    format!("L2 entry at {to:#x} is {value:#x} {bitmap:#x}")
}

/// Two entries of one table, or the same entry of two, share a cluster.
fn share(file: &mut [u8], header: &Header, rng: &mut Rng) -> String {
    let (Some(one), Some(two)) = (table(file, header, rng), table(file, header, rng)) else {
        return "nothing".into();
    };
    let step = header.shape().l2_entry_bytes();
    let count = header.shape().l2_entries();
    let used = |n: &u64| be(file, one + n * step) & OFFSET != 0 && be(file, one + n * step) >> 62 & 1 == 0;
    let Some(from) = (0..count).filter(used).nth(rng.below(8) as usize) else { return "nothing".into() };
    let value = be(file, one + from * step) & !(1 << 63);
    set_be(file, one + from * step, value);
    let to = rng.below(count.min(64));
    set_be(file, two + to * step, value);
    if step == 16 {
        let bitmap = be(file, one + from * step + 8);
        set_be(file, two + to * step + 8, bitmap);
    }
    format!("entries {from} at {one:#x} and {to} at {two:#x} share {value:#x}")
}

fn counts(file: &mut [u8], header: &Header, rng: &mut Rng) -> String {
    let max = header.refcounts().max();
    let block = be(file, header.reftable_offset) & OFFSET;
    if block == 0 || block + header.cluster_size() > file.len() as u64 {
        return "nothing".into();
    }
    let per_block = header.refcounts().block_entries();
    let cluster = rng.below((file.len() as u64 >> header.cluster_bits).min(per_block).max(1));
    let count = rng.below(4).min(max);
    set_count(file, cluster, count);
    format!("count {count} of cluster {cluster}")
}

fn fields(file: &mut [u8], header: &Header, rng: &mut Rng) -> String {
    let somewhere = place(file, header, rng);
    match rng.below(9) {
        0 => set_be(file, 40, somewhere),
        1 => set_be(file, 48, somewhere),
        2 => set_be(file, 64, somewhere),
        3 => file[60..64].copy_from_slice(&(rng.below(3) as u32).to_be_bytes()),
        4 => file[36..40].copy_from_slice(&(header.l1_entries + rng.below(5) as u32).to_be_bytes()),
        5 => file[56..60].copy_from_slice(&(1 + rng.below(3) as u32).to_be_bytes()),
        6 => file[7] = 2,
        // the dirty bit
        7 if header.version == 3 => file[79] |= 1,
        _ => {
            let entry = rng.below(header.cluster_size().min(4096) / 8);
            let at = header.reftable_offset + if rng.below(2) == 0 { 0 } else { entry * 8 };
            set_be(file, at, somewhere);
        }
    }
    format!("header {:x?}", &file[..112])
}

fn snapshots(file: &mut [u8], header: &Header, rng: &mut Rng) -> String {
    if header.snapshots == 0 {
        return l1(file, header, rng);
    }
    let (table, somewhere) = (header.snapshots_offset, place(file, header, rng));
    let l1 = be(file, table);
    let entries = u64::from(header.l1_entries).clamp(1, 64);
    match rng.below(3) {
        0 => set_be(file, table, somewhere),
        1 => set_be(file, l1 + rng.below(entries) * 8, somewhere | flags(rng) & !1),
        _ => {
            let from = be(file, header.l1_offset + rng.below(entries) * 8);
            set_be(file, l1 + rng.below(entries) * 8, from & OFFSET);
        }
    }
    format!("snapshot: {somewhere:#x}")
}

fn cut(file: &mut Vec<u8>, header: &Header, rng: &mut Rng) -> String {
    let len = file.len() as u64;
    let cluster = header.cluster_size();
    let wanted = match rng.below(4) {
        0 => len - rng.below(cluster).min(len),
        1 => len + rng.below(3 * cluster),
        2 => len - (cluster * (1 + rng.below(4))).min(len),
        _ => cluster + rng.below(len),
    };
    file.resize(wanted.max(cluster) as usize, 0);
    format!("length {} of {len}", file.len())
}

/// Damages the image: how.
pub fn damage(file: &mut Vec<u8>, rng: &mut Rng) -> String {
    let before = header(file);
    let kept = file[..4096.min(file.len())].to_vec();
    let what = match rng.below(16) {
        0..=3 => l1(file, &before, rng),
        4..=7 => l2(file, &before, rng),
        8 | 9 => share(file, &before, rng),
        10 | 11 => counts(file, &before, rng),
        12 => fields(file, &before, rng),
        13 => snapshots(file, &before, rng),
        14 => cut(file, &before, rng),
        _ => {
            let (at, bit) = (rng.below(file.len() as u64) as usize, rng.below(8));
            file[at] ^= 1 << bit;
            format!("bit {bit} of byte {at:#x}")
        }
    };
    // what is no image any more is none of this test's
    if quod_states_tests::qcow2::try_header(file).is_none() {
        let len = kept.len().min(file.len());
        file[..len].copy_from_slice(&kept[..len]);
        return "nothing".into();
    }
    what
}
