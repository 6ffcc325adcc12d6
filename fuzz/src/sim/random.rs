//! Random images: options that go together, and parts that make something of them.
//!
//! Knows: which values are worth trying. Must never know: what is done with them.

use super::dice::{ask, chance};
use crate::image::{Data, Form, Part, Qcow2};
use quod_backend::sim::Chooser;

/// QED, of some geometry.
pub(super) fn qed(chooser: &mut dyn Chooser) -> Form {
    // very rarely clusters that are copied in several pieces
    let huge = chance(chooser, 50);
    let cluster = 4096 << if huge { 9 } else { [0, 1, 2, 4, 3][ask(chooser, 5)] };
    Form::Qed { cluster, table: 1 << [0, 1, 2, 4][ask(chooser, 4)] }
}

/// qcow2, of some geometry.
pub(super) fn qcow2(chooser: &mut dyn Chooser, backed: bool) -> Qcow2 {
    let cluster = 512 << [3, 0, 1, 2, 5, 7][ask(chooser, 6)];
    let plain = Qcow2::new(cluster);
    if chance(chooser, 6) {
        return Qcow2 { version: 2, preallocated: !backed && chance(chooser, 6), ..plain };
    }
    let extended_l2 = cluster >= 16 << 10 && ask(chooser, 2) == 1;
    Qcow2 {
        refcount_bits: [16, 64, 8, 1, 2, 32][ask(chooser, 6)],
        extended_l2,
        lazy_refcounts: chance(chooser, 4),
        preallocated: (!backed || extended_l2) && chance(chooser, 8),
        zstd: chance(chooser, 3),
        ..plain
    }
}

/// The same for the image itself, which may have its clusters in a file of their own.
pub(super) fn top(chooser: &mut dyn Chooser, backed: bool) -> Qcow2 {
    let qcow2 = qcow2(chooser, backed);
    if qcow2.version == 2 || !chance(chooser, 8) {
        return qcow2;
    }
    let data = if !backed && ask(chooser, 2) == 1 { Data::Raw } else { Data::File };
    Qcow2 { data, preallocated: false, ..qcow2 }
}

/// What such an image begins with. `small`: nothing that needs many host clusters.
pub(super) fn parts(chooser: &mut dyn Chooser, qcow2: &Qcow2, size: u64, small: bool) -> Vec<Part> {
    let clusters = size.div_ceil(qcow2.cluster.into());
    let mut parts = Vec::new();
    let mut shared = 0;
    for _ in 0..[2, 0, 4, 8][ask(chooser, 4)] {
        let first = ask(chooser, clusters as usize) as u64;
        let count = (1 + ask(chooser, 6) as u64).min(clusters - first);
        parts.push(match ask(chooser, 6) {
            1 if qcow2.version > 2 => Part::Zero { first, count, keep: ask(chooser, 2) == 1 },
            2 if qcow2.cluster > 512 => Part::Compressed { first, count },
            // refcounts of few bits do not reach
            3 if qcow2.refcount_bits >= 8 && shared < 3 => {
                shared += 1;
                Part::Snapshot
            }
            4 if qcow2.extended_l2 => {
                let data = (ask(chooser, 1 << 16) as u32).wrapping_mul(0x0001_0003);
                let zero = (ask(chooser, 1 << 16) as u32).wrapping_mul(0x0003_0001);
                Part::Subclusters { at: first, data, zero }
            }
            _ => Part::Data { first, count },
        });
    }
    // the next refcount block, or the next refcount table, is near
    let block = u64::from(qcow2.cluster) * 8 / u64::from(qcow2.refcount_bits);
    let table = block * u64::from(qcow2.cluster) / 8;
    if !small && chance(chooser, 3) && block <= 4096 {
        let end = if table <= 8192 && ask(chooser, 2) == 1 { table } else { block };
        parts.push(Part::Leaks { end: end - ask(chooser, 6.min(end as usize)) as u64 });
    }
    parts
}
