//! What the machine asks for, and what a table says, in words that a test can list.

use crate::qcow2::{header, l2_at, l2_entry};
use crate::{Disk, request};
use quod_states::{FillSource, Image, IoOp, Part, Request, RequestKind};

/// Data and holes; nothing of tables, syncs and the file's length.
pub fn words(op: &IoOp) -> Option<String> {
    Some(match *op {
        IoOp::WriteData { host, head, len, tail, zero, .. } => {
            let what = if zero && len > 0 { "zeros" } else { "write" };
            format!("{what} {:#x} = {head}+{len}+{tail}", host - u64::from(head))
        }
        IoOp::ReadFill { part, part_len, at, len, source, .. } => {
            let part = if part == Part::Head { "head" } else { "tail" };
            let from = match source {
                FillSource::Host(host) => format!("host {host:#x}"),
                FillSource::Backing(guest) => format!("backing {guest:#x}"),
                FillSource::Compressed { within, .. } => format!("compressed {within:#x}"),
            };
            format!("{part} {at}+{len} of {part_len} from {from}")
        }
        IoOp::ZeroRange { host, len, unmap } => {
            format!("{} {host:#x} {len}", if unmap { "unmap" } else { "zero" })
        }
        IoOp::ReadData { host, len, .. } => format!("read {host:#x} {len}"),
        IoOp::ReadBacking { guest, len, .. } => format!("backing {guest:#x} {len}"),
        IoOp::Yield => "yield".into(),
        _ => return None,
    })
}

/// All of the log that has words.
pub fn listed(disk: &Disk) -> Vec<String> {
    disk.log.iter().filter_map(|step| words(&step.op)).collect()
}

/// Completes everything, oldest first.
pub fn complete_all(disk: &mut Disk, image: &mut Image) {
    while !disk.pending.is_empty() {
        disk.complete_first(image);
    }
}

/// What one request alone asks for.
pub fn asked(disk: &mut Disk, image: &mut Image, wanted: Request) -> Vec<String> {
    disk.log.clear();
    let len = if wanted.kind == RequestKind::Write { wanted.len as usize } else { 0 };
    disk.submit(image, wanted, (0..len).map(|at| (at / 512 % 251 + 1) as u8).collect()).unwrap();
    complete_all(disk, image);
    disk.done.pop().expect("answered").1.unwrap();
    listed(disk)
}

/// A write alone.
pub fn writes(disk: &mut Disk, image: &mut Image, offset: u64, len: u64) -> Vec<String> {
    asked(disk, image, request(RequestKind::Write, offset, len, 1))
}

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What the entries of these guest clusters say. `-`: nothing, `c`: compressed, `d`: data, `z`: zeros, with
/// the number of the host cluster if there is one, and `!` if the copied flag is not set; of extended
/// entries that number and the subclusters with data and with zeros, bit i for subcluster i.
pub fn mapped(file: &[u8], clusters: std::ops::Range<u64>) -> String {
    let (extended, bits) = (header(file).shape().extended, header(file).cluster_bits);
    let one = |cluster: u64| {
        let entry = l2_entry(file, cluster << bits);
        let host = (entry & OFFSET) >> bits;
        let shared = if host != 0 && entry & COPIED == 0 { "!" } else { "" };
        let at = if host == 0 { String::new() } else { format!("{host}{shared}") };
        match (entry & COMPRESSED != 0, entry & 1 != 0) {
            (true, _) => "c".into(),
            _ if extended => {
                let map = l2_at(file, cluster << bits)
                    .map_or(0, |at| u64::from_be_bytes(file[at as usize + 8..][..8].try_into().unwrap()));
                format!("{at}:{:x}/{:x}", map as u32, map >> 32)
            }
            (_, true) => format!("z{at}"),
            _ if host == 0 => "-".into(),
            _ => format!("d{at}"),
        }
    };
    clusters.map(one).collect::<Vec<_>>().join(" ")
}
