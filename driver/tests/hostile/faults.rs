//! Every fault that there is (`quod::Fault`) is met in an image of the list, or it is said why not.
//!
//! Checks: no fault is left out; no reason stands for a fault that is met; whatever may lie on metadata does
//! so in some image (which piece of a pair is named depends on which lies first).

use crate::judge::was_met;
use quod::Fault;
use quod::fault::{
    BitmapFault, By, DanglingFault, ExtensionFault, HeaderFault, QedFault, ReferenceFault, ReftableFault,
    SnapshotFault, WalkFault,
};

/// Why no image of the list has this fault. None: it should.
fn reason(fault: &Fault) -> Option<&'static str> {
    let codec = Some("the codec's own tests have it");
    let many = Some("takes more entries than an image of the list has; tests of states have it");
    match fault {
        Fault::New { .. } => Some("refused before anything is written"),
        Fault::Luks { .. } | Fault::Extension { why: ExtensionFault::Luks, .. } => {
            Some("an encrypted image is refused before; `quod info` alone reads on")
        }
        Fault::QedHeader { why: QedFault::BackingOutside | QedFault::BackingTooLong, .. } => codec,
        Fault::Extension { why: ExtensionFault::BitmapsLength, .. } | Fault::BitmapTable { .. } => codec,
        Fault::Bitmap {
            why:
                BitmapFault::MoreEntries
                | BitmapFault::FewerEntries
                | BitmapFault::ExtraData
                | BitmapFault::TableUnaligned
                | BitmapFault::TableBeyond
                | BitmapFault::Flags
                | BitmapFault::Name
                | BitmapFault::Kind
                | BitmapFault::TooLarge
                | BitmapFault::TooSmall,
            ..
        } => codec,
        Fault::L2Walk { why: WalkFault::NotTheGuests, .. }
        | Fault::Snapshot { why: SnapshotFault::DataFile, .. } => {
            Some("no image of the list has a data file; tests of states have it")
        }
        Fault::Header { why: HeaderFault::NotRepaired, .. }
        | Fault::Snapshot { why: SnapshotFault::L1TooSmall, .. }
        | Fault::Dangling { why: DanglingFault::Used, .. } => Some("tests of states have it"),
        Fault::Reftable { why: ReftableFault::TooLarge, .. }
        | Fault::Reference { why: ReferenceFault::TooManyBeyond, .. }
        | Fault::TooManyDangling { .. } => many,
        _ => None,
    }
}

/// The section of docs/hostile.md; after the images of both formats were judged.
pub fn list() -> String {
    let (overlaps, mut all): (Vec<Fault>, Vec<Fault>) =
        Fault::every(0, 0).into_iter().partition(|fault| matches!(fault, Fault::Overlap { .. }));
    let met = |wanted: fn(&By) -> bool| {
        overlaps
            .iter()
            .any(|fault| matches!(fault, Fault::Overlap { by, .. } if wanted(by) && was_met(fault)))
    };
    assert!(met(|by| matches!(by, By::Metadata(_))) && met(|by| *by == By::L2Table));
    assert!(met(|by| *by == By::Data) && met(|by| *by == By::Free));
    all.sort_by_key(Fault::prose);
    let count = all.iter().filter(|fault| was_met(fault)).count();
    let (mut rows, mut wrong) = (String::new(), Vec::new());
    for fault in &all {
        let (place, what) = fault.prose();
        match (was_met(fault), reason(fault)) {
            (true, None) => {}
            (false, Some(reason)) => rows += &format!("| {place} | {what} | {reason} |\n"),
            (true, Some(_)) => wrong.push(format!("{place}: {what}: is met, and a reason says why not")),
            (false, None) => wrong.push(format!("{place}: {what}: {fault:?} is met nowhere")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    format!(
        "## Faults\n\nOf {} faults that there are, overlaps apart, these images show {count}. The others:\n\n\
         | place | what is wrong | why no image has it |\n| --- | --- | --- |\n{rows}",
        all.len()
    )
}
