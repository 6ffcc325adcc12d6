//! The seeded simulation: a long random life of one image, with faults, power cuts and reopenings.
//!
//! Knows: how often what shall happen. Must never know: what is right (the world judges). Invariant: every
//! decision is the chooser's, so a list of choices is the whole run; choice 0 is the plain alternative
//! everywhere, so a shorter list is a simpler run.

pub(crate) mod dice;
mod random;
pub(crate) mod setup;

use crate::schedule::{Recorder, Schedule, Told, shrink};
use crate::world::{Ask, Session, Tally, Tweak, World};
use dice::{ask, chance};
use quod_backend::sim::{Aftermath, Chooser, Fault, OpKind, Script, Seeded, When};
use quod_bench::contract::{Checked, Failure, fail};
use setup::Place;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A run that ended well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimReport {
    /// What it covered.
    pub tally: Tally,
    /// Of everything that the guest could see at the end of each life, and of the disk.
    pub digest: u128,
}

/// A run. `tell`: write down what happens.
pub fn run(chooser: &mut dyn Chooser, tweak: Tweak, tell: bool) -> Told<SimReport> {
    let built = setup::build(chooser, tweak);
    let (mut world, place) = built.map_err(|failure| (failure, Vec::new()))?;
    if tell {
        world.tell();
        world.note(|| format!("{place:?}"));
    }
    let mut digest = 0;
    // what was written down before a panic is worth reading
    let lives = catch_unwind(AssertUnwindSafe(|| live(chooser, &mut world, &place, tweak, &mut digest)));
    match lives.unwrap_or_else(|panic| fail(format!("panic: {}", panic_text(&*panic)))) {
        Ok(()) => Ok(SimReport { tally: world.tally, digest }),
        Err(failure) => Err((failure, world.told().to_vec())),
    }
}

/// Several lives, each ended by a power cut or a close.
fn live(
    chooser: &mut dyn Chooser,
    world: &mut World,
    place: &Place,
    tweak: Tweak,
    digest: &mut u128,
) -> Checked {
    world.open(chooser)?;
    let lives = 1 + ask(chooser, 5);
    for life in 0..lives {
        arm(chooser, world);
        let steps = [40, 120, 250, 20][ask(chooser, 4)];
        for _ in 0..steps {
            act(chooser, world, place)?;
        }
        *digest = digest.rotate_left(9) ^ world.trace_digest();
        let last = life + 1 == lives;
        end_of_life(chooser, world, place, tweak, last)?;
    }
    *digest = digest.rotate_left(9) ^ world.trace_digest();
    Ok(())
}

/// What may fail in this life.
fn arm(chooser: &mut dyn Chooser, world: &mut World) {
    use OpKind::{Grow, Read, SetLen, Sync, Write, ZeroRange};
    let nth = |chooser: &mut dyn Chooser| When::Nth(ask(chooser, 40) as u64);
    let fault = match ask(chooser, 12) {
        0..=4 => None,
        5 => Some(Fault::new(&[Read, Write, Sync, ZeroRange, Grow, SetLen], When::OneIn(60), libc::EIO)),
        6 => Some(Fault::new(&[Write], nth(chooser), libc::EIO).leaving(Aftermath::Torn)),
        7 => Some(Fault::new(&[Write, Grow], When::From(ask(chooser, 30) as u64), libc::ENOSPC).extending()),
        8 => Some(Fault::new(&[Sync], nth(chooser), libc::EIO).leaving(Aftermath::DropUnsynced)),
        9 => Some(Fault::new(&[Sync, Write, Read], nth(chooser), libc::EIO)),
        10 => Some(Fault::new(&OpKind::CHANGES, When::OneIn(40), libc::EIO).leaving(Aftermath::All)),
        _ => Some(Fault::new(&[Read], When::OneIn(8), libc::EIO)),
    };
    world.arm(fault);
}

/// One thing happens.
pub(crate) fn act(chooser: &mut dyn Chooser, world: &mut World, place: &Place) -> Checked {
    match ask(chooser, 20) {
        0..=9 => world.step(chooser).map(drop),
        10 if chance(chooser, 3) => world.fire().map(drop),
        11 => world.ask(Ask::Flush).map(drop),
        12 if chance(chooser, 4) => world.ask(Ask::Quiesce).map(drop),
        12 if chance(chooser, 2) => world.ask(Ask::Cancel { back: 1 + ask(chooser, 8) as u64 }).map(drop),
        13 if place.grows && chance(chooser, 12) => {
            let (size, by) = (world.model().len(), 512 * (1 + ask(chooser, 64) as u64));
            if !place.shrinks || ask(chooser, 2) == 0 {
                return world.ask(Ask::Resize { len: size + by }).map(drop);
            }
            // nothing else is asked for meanwhile: what lies behind the new end would be refused
            world.drain(chooser)?;
            world.ask(Ask::Resize { len: size.saturating_sub(by).max(512) })?;
            world.drain(chooser)
        }
        14 => {
            let (offset, len) = place.range(chooser, world.model().len());
            world.ask(Ask::Zero { offset, len, fua: chance(chooser, 6) }).map(drop)
        }
        15 => {
            let (offset, len) = place.range(chooser, world.model().len());
            world.ask(Ask::Read { offset, len }).map(drop)
        }
        17 if chance(chooser, 60) => world.ask(Ask::Empty).map(drop),
        16 if chance(chooser, 3) => {
            let (offset, len) = place.range(chooser, world.model().len());
            world.ask(Ask::Discard { offset, len }).map(drop)
        }
        17 if chance(chooser, 3) => {
            let size = world.model().len();
            let (offset, _) = place.range(chooser, size);
            let cluster = place.cluster();
            let offset = offset - offset % cluster;
            let (len, fua) = (cluster.min(size - offset), chance(chooser, 6));
            world.ask(Ask::Pack { offset, len, fua }).map(drop)
        }
        _ => {
            let (offset, len) = place.range(chooser, world.model().len());
            world.ask(Ask::Write { offset, len, fua: chance(chooser, 8) }).map(drop)
        }
    }
}

fn end_of_life(
    chooser: &mut dyn Chooser,
    world: &mut World,
    place: &Place,
    tweak: Tweak,
    last: bool,
) -> Checked {
    if world.is_poisoned() {
        world.tally.poisoned += 1;
    }
    let session = place.session(chooser, tweak);
    if last || ask(chooser, 3) == 1 {
        if chance(chooser, 2) {
            world.drain(chooser)?;
        }
        world.close()?;
        return world.reopen(session);
    }
    world.cut_power(chooser)?;
    recover(chooser, world, session, [4, 4])
}

/// After a power cut: one in so many openings is cut, too, and one in so many is for reading alone first.
pub(crate) fn recover(
    chooser: &mut dyn Chooser,
    world: &mut World,
    session: Session,
    [cut, twice]: [usize; 2],
) -> Checked {
    world.set_session(session);
    if chance(chooser, cut) {
        let operations = ask(chooser, 16);
        world.cut_opening(operations, chooser)?;
    }
    let content = world.recover(chance(chooser, twice))?;
    world.settle(&content);
    Ok(())
}

/// One seed. A failure, or a panic anywhere in the code under test, comes back as a schedule.
pub fn seed(seed: u64, tweak: Tweak) -> Result<SimReport, Box<(Failure, Schedule)>> {
    let mut recorder = Recorder::new(Seeded::new(seed.wrapping_mul(0xA076_1D64_78BD_642F)));
    let outcome = guarded(&mut |tell| run(&mut recorder, tweak, tell));
    outcome.map_err(|failure| {
        let schedule = Schedule { run: "sim".into(), choices: recorder.made, ..Schedule::default() };
        Box::new((Failure(format!("seed {seed}: {failure}")), schedule))
    })
}

/// Runs a list of choices; the story of what happened comes with a failure.
pub fn replay(choices: &[u32], tweak: Tweak) -> Told<SimReport> {
    run(&mut Script::new(choices.to_vec()), tweak, true)
}

/// A panic is a failure like another.
fn guarded(run: &mut dyn FnMut(bool) -> Told<SimReport>) -> Checked<SimReport> {
    match catch_unwind(AssertUnwindSafe(|| run(false))) {
        Ok(outcome) => outcome.map_err(|(failure, _)| failure),
        Err(panic) => Err(Failure(format!("panic: {}", panic_text(&*panic)))),
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| String::from("?"))
}

/// The smallest schedule found that still fails, with its story.
pub fn shrunk(schedule: &Schedule, tweak: Tweak, tries: usize) -> Schedule {
    let mut fails =
        |choices: &[u32]| guarded(&mut |_| run(&mut Script::new(choices.to_vec()), tweak, false)).is_err();
    let choices = shrink(schedule.choices.clone(), tries, &mut fails);
    let told = catch_unwind(AssertUnwindSafe(|| replay(&choices, tweak)));
    let story = match told {
        Ok(Ok(_)) => vec![String::from("does not fail any more")],
        Ok(Err((failure, mut story))) => {
            story.push(failure.0);
            story
        }
        Err(panic) => vec![format!("panic: {}", panic_text(&*panic))],
    };
    Schedule { choices, story, ..schedule.clone() }
}
