//! `quod-fuzz replay FILE`: a schedule is told step by step, with its verdict.

use std::process::{Command, Output};

fn replay(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schedule");
    std::fs::write(&file, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_quod-fuzz")).arg("replay").arg(&file).output().unwrap()
}

#[test]
fn a_schedule_is_told() {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let answer = replay("quod-schedule 1\nrun target ops\nchoices 0 0 3\n");
    assert!(answer.status.success() && text(&answer.stdout) == "passes\n", "{answer:?}");
    // a disk that forgets: what happened, then why it is wrong
    let choices = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 19";
    let answer = replay(&format!("quod-schedule 1\nrun target canary\nchoices {choices}\n"));
    assert!(!answer.status.success() && text(&answer.stdout).contains("Write { offset: 0"), "{answer:?}");
    assert!(text(&answer.stderr).starts_with("sector 0"), "{answer:?}");
    for (schedule, why) in [("", "the first line must be"), ("quod-schedule 1\nrun x\n", "no such run: x")] {
        let answer = replay(schedule);
        assert!(!answer.status.success() && text(&answer.stderr).contains(why), "{answer:?}");
    }
}
