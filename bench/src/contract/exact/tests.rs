//! Checks: what the contract allows and forbids, each rule alone.

use super::*;

const SIZE: u64 = 4096;

fn holds(model: &Model, fill: Option<Fill>, view: View) -> bool {
    let bytes = match fill {
        None => vec![0xb5; 512],
        Some(Fill::Zero) => vec![0; 512],
        Some(Fill::Data(id)) => payload::bytes(id, 512, 1024),
    };
    model.check_sector(1, &bytes, view).is_ok()
}

fn model() -> Model {
    Model::new(vec![0xb5; SIZE as usize])
}

#[test]
fn unflushed_writes_may_be_there_or_not() {
    let mut model = model();
    assert!(holds(&model, None, View::Crash) && !holds(&model, Some(Fill::Zero), View::Crash));
    let a = model.submit(0, 2048, Fill::Data(1), false);
    assert!(holds(&model, None, View::Crash) && holds(&model, Some(Fill::Data(1)), View::Crash));
    model.end(a, true, false);
    let now = model.tick();
    assert!(holds(&model, None, View::Crash), "not flushed");
    assert!(!holds(&model, None, View::Live(now)) && holds(&model, Some(Fill::Data(1)), View::Live(now)));
    assert!(!holds(&model, Some(Fill::Data(2)), View::Crash));
}

#[test]
fn a_flush_covers_what_completed_before_it_was_submitted() {
    let mut model = model();
    let a = model.submit(0, 2048, Fill::Data(1), false);
    let early = model.tick();
    model.end(a, true, false);
    model.flushed(early);
    assert!(holds(&model, None, View::Crash));
    let late = model.tick();
    model.flushed(late);
    assert!(!holds(&model, None, View::Crash) && holds(&model, Some(Fill::Data(1)), View::Crash));
    let b = model.submit(512, 1024, Fill::Zero, false);
    model.end(b, false, false);
    assert!(holds(&model, Some(Fill::Zero), View::Crash) && holds(&model, Some(Fill::Data(1)), View::Crash));
}

#[test]
fn writes_in_flight_together_have_no_order() {
    let mut model = model();
    let a = model.submit(512, 1024, Fill::Data(1), false);
    let b = model.submit(512, 1024, Fill::Data(2), false);
    model.end(a, true, true);
    model.end(b, true, true);
    let now = model.tick();
    for view in [View::Live(now), View::Crash] {
        assert!(holds(&model, Some(Fill::Data(1)), view) && holds(&model, Some(Fill::Data(2)), view));
        assert!(!holds(&model, None, view));
    }
    let c = model.submit(512, 1024, Fill::Data(3), false);
    model.end(c, true, true);
    assert!(
        !holds(&model, Some(Fill::Data(1)), View::Crash) && holds(&model, Some(Fill::Data(3)), View::Crash)
    );
}

#[test]
fn a_discard_is_never_sure() {
    let mut model = model();
    let a = model.submit(512, 1024, Fill::Zero, true);
    model.end(a, true, false);
    let now = model.tick();
    model.flushed(now);
    assert!(holds(&model, None, View::Crash) && holds(&model, Some(Fill::Zero), View::Live(now)));
}

#[test]
fn what_a_smaller_disk_lost_is_zero_when_it_grows() {
    let mut model = model();
    let a = model.submit(512, 1024, Fill::Data(1), false);
    model.end(a, true, true);
    model.resize(512);
    model.resize(SIZE);
    let now = model.tick();
    assert!(holds(&model, Some(Fill::Zero), View::Live(now)) && !holds(&model, None, View::Crash));
    assert!(!holds(&model, Some(Fill::Data(1)), View::Crash));
}

#[test]
fn bytes_of_partly_written_sectors_are_judged_alone() {
    let mut model = model();
    let a = model.submit(600, 700, Fill::Data(1), false);
    model.end(a, true, true);
    let mut bytes = vec![0xb5; 512];
    assert!(model.check_sector(1, &bytes, View::Crash).is_err());
    payload::fill(1, 600, &mut bytes[88..188]);
    model.check_sector(1, &bytes, View::Crash).unwrap();
    model.check_bytes(601, &bytes[89..400], View::Crash).unwrap();
    bytes[187] = 0xb5;
    assert!(model.check_sector(1, &bytes, View::Crash).is_err());
    assert!(model.check_bytes(601, &bytes[89..400], View::Crash).is_err());
}
