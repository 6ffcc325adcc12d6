//! Targets about an image's life: what the simulator does, in pieces that a fuzzer can steer.
//!
//! Checks: requests against the model without a fault; power cuts and recoveries; an operation that fails;
//! all of it (the simulator's own run); and, as the canary, a disk that forgets.
//!
//! Knows: which parts make a life. Must never know: what is right (the world judges).

use crate::nth;
use crate::schedule::Told;
use crate::sim::dice::{ask, chance};
use crate::sim::setup::{self, Place};
use crate::sim::{self, act, panic_text, recover};
use crate::world::{Ask, World, as_is};
use quod_backend::sim::Chooser;
use quod_bench::contract::{Checked, fail};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A random image, and what happens to it.
fn live(
    chooser: &mut dyn Chooser,
    tell: bool,
    body: fn(&mut dyn Chooser, &mut World, &Place) -> Checked,
) -> Told {
    let built = setup::build(chooser, as_is);
    let (mut world, place) = built.map_err(|failure| (failure, Vec::new()))?;
    if tell {
        world.tell();
        world.note(|| format!("{place:?}"));
    }
    // what was written down before a panic is worth reading
    let outcome = catch_unwind(AssertUnwindSafe(|| body(chooser, &mut world, &place)));
    let outcome = outcome.unwrap_or_else(|panic| fail(format!("panic: {}", panic_text(&*panic))));
    outcome.map_err(|failure| (failure, world.told().to_vec()))
}

/// Some steps of the guest and of the disk.
fn steps(chooser: &mut dyn Chooser, world: &mut World, place: &Place) -> Checked {
    for _ in 0..[30, 8, 80, 200][ask(chooser, 4)] {
        act(chooser, world, place)?;
    }
    Ok(())
}

/// Requests against the model, a close, and the same bytes afterwards.
pub(super) fn ops(chooser: &mut dyn Chooser, tell: bool) -> Told {
    live(chooser, tell, |chooser, world, place| {
        world.open(chooser)?;
        steps(chooser, world, place)?;
        world.drain(chooser)?;
        if !world.close()? {
            return fail("nothing failed, and the close is not clean");
        }
        world.reopen(place.session(chooser, as_is))
    })
}

/// Requests, a power cut at any moment, another one while the image recovers, and what is left.
pub(super) fn crash(chooser: &mut dyn Chooser, tell: bool) -> Told {
    live(chooser, tell, |chooser, world, place| {
        world.open(chooser)?;
        for _ in 0..1 + ask(chooser, 2) {
            steps(chooser, world, place)?;
            world.cut_power(chooser)?;
            let session = place.session(chooser, as_is);
            recover(chooser, world, session, [3, 2])?;
        }
        Ok(())
    })
}

/// The n-th operation fails, once or for ever; then a power cut or a close.
pub(super) fn nth(chooser: &mut dyn Chooser, tell: bool) -> Told {
    live(chooser, tell, |chooser, world, place| {
        let mut faults = nth::faults(ask(chooser, 80) as u64);
        let fault = faults.swap_remove(ask(chooser, faults.len()));
        world.arm(Some(fault));
        let opened = world.open(chooser)?;
        if opened {
            steps(chooser, world, place)?;
        }
        if !opened || chance(chooser, 2) {
            world.cut_power(chooser)?;
            return world.recover(true).map(drop);
        }
        world.close()?;
        world.reopen(place.session(chooser, as_is))
    })
}

/// The simulator's run.
pub(super) fn life(chooser: &mut dyn Chooser, tell: bool) -> Told {
    sim::run(chooser, as_is, tell).map(drop)
}

/// Fails wherever a flush has promised something: the disk forgets all that happened since it was opened.
pub(super) fn canary(chooser: &mut dyn Chooser, tell: bool) -> Told {
    live(chooser, tell, |chooser, world, place| {
        world.open(chooser)?;
        let before = world.sim().crash_plan().build(|_| 0);
        steps(chooser, world, place)?;
        world.drain(chooser)?;
        world.ask(Ask::Flush)?;
        world.drain(chooser)?;
        world.replace(before);
        world.recover(false).map(drop)
    })
}
