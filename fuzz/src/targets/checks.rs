//! Targets about checks and repairs of damaged images, and about new ones.
//!
//! Checks: a check ends; a repaired image is as its repair says, and a second repair changes nothing;
//! the verdict is that of `qemu-img check`; an image of any options is refused, or valid, sound and without
//! leaks.
//!
//! Knows: verdicts, create options. Must never know: how a check works.

use crate::image;
use crate::schedule::Told;
use crate::sim::dice::{ask, chance};
use crate::world::TOP;
use quod::Format;
use quod_backend::sim::{Chooser, FileOptions, Sim};
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::fault::{ClusterFault, WalkFault};
use quod_states::qcow2::{self, Compression, Preallocation, Purpose};
use quod_states::{Error, Fault, probe, qed};
use quod_tools as tools;
use std::process::{Command, Stdio};

/// A new image that is made and checked is no longer.
const MADE_MAX: u64 = 4 << 20;
/// Names of backing files, up to those that are too long.
const NAMES: [usize; 5] = [4, 1, 1023, 1024, 5000];

fn disk(bytes: &[u8]) -> Sim {
    let mut sim = Sim::new();
    sim.insert_file(TOP, bytes, FileOptions::default());
    sim
}

/// A check, a repair, and a second one.
pub(super) fn check_and_repair(input: &[u8]) -> Checked {
    let sim = disk(input);
    if image::probe(&sim, TOP) == Format::Raw || image::check(&sim, TOP).is_err() {
        return Ok(());
    }
    let Ok((first, left)) = image::repaired(&sim, TOP) else { return Ok(()) };
    let sim = disk(&first);
    let found = image::check(&sim, TOP).map_err(|error| Failure(format!("after a repair: {error}")))?;
    // what a repair leaves hides other things, and the next may mend it, as with QEMU
    if left.corruptions + left.check_errors + left.leaks > 0 {
        return Ok(());
    }
    if !found.is_sound() || found.leaks > 0 {
        return fail(format!("a repair says that nothing is left, a check finds {found:?}"));
    }
    let (second, again) = image::repaired(&sim, TOP)?;
    if again.corruptions_fixed + again.leaks_fixed > 0 || again.corruptions != left.corruptions {
        return fail(format!("a second repair {again:?}, the first {left:?}"));
    }
    match second == first {
        true => Ok(()),
        false => fail("a second repair changes the file"),
    }
}

/// Does QEMU look at other files, or is it known to judge otherwise (docs/compat.md)?
fn excepted(input: &[u8]) -> bool {
    let word = |at: usize| input.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 4]);
    match probe::head(&input[..input.len().min(512)]).unwrap_or(Format::Raw) {
        Format::Raw => true,
        Format::Qed => {
            let [cluster, table, header, l1] =
                [4, 8, 12, 40].map(|at| u64::from(u32::from_le_bytes(word(at))));
            let cut = l1 + cluster * table > input.len() as u64;
            word(16)[0] & 1 != 0 || header == 0 || cluster >= 4 << 20 || table == 1 || cut
        }
        Format::Qcow2 => word(8) != [0; 4] || word(12) != [0; 4] || word(76)[3] & 4 != 0,
    }
}

/// The verdict of `qemu-img check`, by its exit code: 0 is sound, 2 is corrupt, 3 has leaks, all else is an
/// image that cannot be checked. QEMU's programs must be installed.
pub(super) fn same_verdict(input: &[u8]) -> Checked {
    if excepted(input) {
        return Ok(());
    }
    let host = |error: std::io::Error| Failure(format!("the host: {error}"));
    let folder = tempfile::tempdir().map_err(host)?;
    let path = folder.path().join(TOP);
    std::fs::write(&path, input).map_err(host)?;
    let format = probe::head(&input[..input.len().min(512)]).unwrap_or(Format::Raw);
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "-f", format.name()]).arg(&path);
    let output = command.stdin(Stdio::null()).output().map_err(host)?;
    let theirs = output.status.code().filter(|code| [0, 2, 3].contains(code)).unwrap_or(1);
    let report = tools::check(&path, Some(format), None);
    let ours = match &report {
        Ok(report) => match (report.corruptions, report.leaks, report.check_errors) {
            (_, _, 1..) => 1,
            (1.., _, _) => 2,
            (0, 1.., _) => 3,
            (0, 0, 0) => 0,
        },
        Err(_) => 1,
    };
    // where QEMU gives up because the refcount table leads nowhere, quod counts what is wrong; and where all
    // counts are right, quod looks for more
    let more =
        report.as_ref().is_ok_and(|report| report.problems.iter().all(|problem| is_hidden(&problem.what)));
    match ours == theirs || (ours, theirs) == (2, 1) || ours == 2 && [0, 3].contains(&theirs) && more {
        true => Ok(()),
        false => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            fail(format!("qemu-img check: {theirs} ({text}), quod: {ours} ({report:?})"))
        }
    }
}

/// What QEMU's check does not look for (docs/compat.md).
fn is_hidden(problem: &Error) -> bool {
    match problem {
        Error::Corrupt(Fault::Cluster { why, .. }) => *why == ClusterFault::Metadata,
        Error::Corrupt(Fault::L2Walk { why, .. }) => matches!(
            why,
            WalkFault::CompressedBeyond
                | WalkFault::ZeroInVersion2
                | WalkFault::ZeroInExtended
                | WalkFault::NotTheGuests
        ),
        _ => false,
    }
}

/// A new image of any options.
pub(super) fn create(chooser: &mut dyn Chooser, _tell: bool) -> Told {
    let made = if ask(chooser, 3) == 0 { create_qed(chooser) } else { create_qcow2(chooser) };
    made.map_err(|failure| (failure, Vec::new()))
}

/// Small, at a power of two, or anything.
fn size(chooser: &mut dyn Chooser) -> u64 {
    match ask(chooser, 3) {
        0 => ask(chooser, 1 << 22) as u64,
        1 => (1u64 << ask(chooser, 64)).wrapping_add(ask(chooser, 1025) as u64).wrapping_sub(512),
        _ => (0..4).fold(0, |sum, _| sum << 16 | ask(chooser, 1 << 16) as u64),
    }
}

/// A power of two around what is allowed, or a bit beside it.
fn power(chooser: &mut dyn Chooser, first: u32, count: usize) -> u32 {
    let power = 1u32 << (first + ask(chooser, count) as u32);
    if chance(chooser, 16) { power + 1 + ask(chooser, 512) as u32 } else { power }
}

fn name(chooser: &mut dyn Chooser) -> Option<Vec<u8>> {
    (ask(chooser, 3) == 1).then(|| vec![b'n'; NAMES[ask(chooser, NAMES.len())]])
}

fn create_qed(chooser: &mut dyn Chooser) -> Checked {
    let backing = name(chooser);
    let options = qed::CreateOptions {
        size: size(chooser),
        cluster_size: power(chooser, 10, 18),
        table_size: power(chooser, 0, 7),
        backing: backing.as_deref(),
        backing_raw: ask(chooser, 2) == 1,
    };
    let Ok(header) = qed::Header::create(&options) else { return Ok(()) };
    let len = header.l1_table_offset + header.table_bytes();
    let mut bytes = header.encode().to_vec();
    bytes.extend(backing.iter().flatten());
    let again = qed::Header::parse(&bytes, len);
    let again = again.map_err(|error| Failure(format!("{options:?} is not read: {error}")))?;
    if again.encode() != header.encode() {
        return fail(format!("{options:?}: {header:?} is read as {again:?}"));
    }
    if len <= MADE_MAX {
        bytes.resize(len as usize, 0);
        return sound(&bytes, &format!("{options:?}"));
    }
    Ok(())
}

fn create_qcow2(chooser: &mut dyn Chooser) -> Checked {
    use Preallocation::{Falloc, Full, Metadata, Off};
    let (backing, data_file) = (name(chooser), if chance(chooser, 5) { name(chooser) } else { None });
    let preallocation = [Off, Metadata, Falloc, Full][ask(chooser, 4)];
    let size = size(chooser);
    let options = qcow2::CreateOptions {
        // all tables of a larger disk take long
        size: if preallocation == Off { size } else { size % (1 << 31) },
        version: 3 - u32::from(chance(chooser, 4)),
        cluster_size: power(chooser, 9, 13),
        refcount_bits: power(chooser, 0, 8),
        lazy_refcounts: ask(chooser, 2) == 1,
        extended_l2: ask(chooser, 3) == 1,
        compression: [Compression::Deflate, Compression::Zstd][ask(chooser, 2)],
        backing: backing.as_deref(),
        backing_format: (backing.is_some() && ask(chooser, 2) == 1).then_some(b"raw"),
        data_file: data_file.as_deref(),
        data_file_raw: ask(chooser, 4) == 1,
        preallocation,
    };
    let Ok(created) = qcow2::create(&options) else { return Ok(()) };
    let header = created.header().encode();
    let mut block = header.clone();
    block.resize(qcow2::Header::region(&header).max(header.len()), 0);
    let again = qcow2::Header::parse(&block, Purpose::Write);
    let again = again.map_err(|error| Failure(format!("{options:?} is not read: {error}")))?;
    if again.encode() != header || again.backing() != options.backing {
        return fail(format!("{options:?}: {:?} is read as {again:?}", created.header()));
    }
    if created.len() > MADE_MAX {
        return Ok(());
    }
    let mut bytes = vec![0; created.len() as usize];
    for (offset, piece) in created.pieces() {
        let Some(to) = bytes.get_mut(offset as usize..offset as usize + piece.len()) else {
            return fail(format!("{options:?}: a piece at {offset} goes beyond the end"));
        };
        to.copy_from_slice(&piece);
    }
    sound(&bytes, &format!("{options:?}"))
}

fn sound(bytes: &[u8], what: &str) -> Checked {
    let report = image::sound(&disk(bytes), TOP, what)?;
    match report.leaks {
        0 => Ok(()),
        leaks => fail(format!("{what}: {leaks} leaks in a new image")),
    }
}
