//! The disks that a power cut may leave: all of them, or a sample that always has none, all, each one
//! missing, each one kept, tables only, data only.
//!
//! Knows: candidates and versions. Must never know: what a disk has to keep.

use crate::image;
use crate::world::TOP;
use quod_backend::sim::{Candidate, Choice, Chooser, CrashPlan, Seeded, Sim, Volatile};

/// Of more unsynced sectors than this only a sample is alone in missing, or in being kept.
const MANY: usize = 512;

/// The disk with these versions.
pub fn build(plan: &CrashPlan, versions: &[u32]) -> Sim {
    let mut next = versions.iter();
    // a schedule made by hand may be short, or ask for more versions than there are
    plan.build(|candidate| (next.next().copied().unwrap_or(0) as usize).min(candidate.versions - 1))
}

/// What an image is made of, for a person.
pub fn describe(plan: &CrashPlan, versions: &[u32]) -> String {
    let parts: Vec<String> = plan
        .candidates()
        .iter()
        .zip(versions)
        .map(|(candidate, version)| {
            format!("{:?} version {version} of {}", candidate.what, candidate.versions)
        })
        .collect();
    format!("power cut: {}", parts.join(", "))
}

/// Which disks are looked at.
pub struct Lists {
    /// Of each the version of each candidate.
    pub all: Vec<Vec<u32>>,
    /// There are more.
    pub sampled: bool,
}

/// Is this candidate metadata? A data file has none.
fn is_meta(candidate: &Candidate, tables: &[(u64, u64)]) -> bool {
    match candidate.what {
        Volatile::Unit { .. } if candidate.file != 0 => false,
        Volatile::Unit { offset, .. } => {
            offset == 0 || tables.iter().any(|(start, end)| *start <= offset && offset < *end)
        }
        Volatile::Length => true,
    }
}

/// All up to the bound, beyond it a sample; `sim` says which clusters are tables.
pub fn lists(sim: &Sim, plan: &CrashPlan, bound: usize) -> Lists {
    let counts: Vec<u32> = plan.candidates().iter().map(|candidate| candidate.versions as u32).collect();
    let product = counts.iter().try_fold(1usize, |product, n| product.checked_mul(*n as usize));
    if product.is_some_and(|product| product <= bound) {
        let mut all = vec![vec![0; counts.len()]];
        for index in 0..all[0].len() {
            let more: Vec<Vec<u32>> = (1..counts[index])
                .flat_map(|version| {
                    all.iter().map(move |list| {
                        let mut list = list.clone();
                        list[index] = version;
                        list
                    })
                })
                .collect();
            all.extend(more);
        }
        return Lists { all, sampled: false };
    }
    let none = vec![0; counts.len()];
    let full: Vec<u32> = counts.iter().map(|n| n - 1).collect();
    let tables = image::tables(sim, TOP).unwrap_or_default();
    let meta: Vec<bool> = plan.candidates().iter().map(|candidate| is_meta(candidate, &tables)).collect();
    let stride = if counts.len() > MANY { counts.len() / 16 } else { 1 };
    let mut all = vec![none.clone(), full.clone()];
    for index in (0..counts.len()).filter(|index| meta[*index] || index % stride == 0) {
        for version in 0..counts[index] {
            for mut list in [none.clone(), full.clone()] {
                list[index] = version;
                all.push(list);
            }
        }
    }
    for keep in [true, false] {
        all.push(full.iter().zip(&meta).map(|(last, meta)| if *meta == keep { *last } else { 0 }).collect());
    }
    let mut random = Seeded::new(counts.len() as u64 ^ 0x51ed);
    while all.len() < bound {
        all.push(counts.iter().map(|n| random.choose(Choice::Survive, *n as usize) as u32).collect());
    }
    Lists { all, sampled: true }
}
