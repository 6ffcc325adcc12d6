//! Checks: both versions are understood, times are right, the shipped trace is whole, hostile text is refused
//! by line and never panics, what is written is read back.

use super::*;
use proptest::prelude::*;

fn read_all(text: &[u8]) -> Result<Vec<Record>, Error> {
    let mut reader = Reader::new(text)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    Ok(records)
}

fn fails_at(text: &str, wanted: u64) {
    match read_all(text.as_bytes()) {
        Err(Error::Line { line, .. }) => assert_eq!(line, wanted, "{text}"),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_shipped_trace_is_whole() {
    let summary = summarise(&Source::Shipped, 64 << 20).unwrap();
    assert_eq!(summary.operations, 4740 + 1247 + 39 + 2514);
    assert_eq!(summary.max_extent, 1 << 30);
    assert_eq!(summary.duration_us, 33_068_319);
}

#[test]
fn version_2_sums_its_waits() {
    let text = "fio version 2 iolog\nd add\nd open\nd read 0 512\nd wait 150 0\nd write 512 512\nd wait 50\n\
                d trim 0 1024\nd sync\nd datasync 0 0\nd close\n";
    let records = read_all(text.as_bytes()).unwrap();
    let seen: Vec<_> = records.iter().map(|r| (r.at_us, r.op, r.offset, r.len)).collect();
    let sync = (200, Op::Sync, 0, 0);
    assert_eq!(
        seen,
        [(0, Op::Read, 0, 512), (150, Op::Write, 512, 512), (200, Op::Trim, 0, 1024), sync, sync]
    );
}

#[test]
fn errors_name_the_line() {
    let head = "fio version 3 iolog\n0 d add\n";
    for (lines, line) in [
        ("x d read 0 512", 3),
        ("0 d read 0", 3),
        ("0 d read -1 512", 3),
        ("0 d read 0 512 9", 3),
        ("0 d read 99999999999999999999 512", 3),
        ("0 d read 18446744073709551615 1", 3),
        ("0 d read 9223372036854775807 1", 3),
        ("0 d wait 5 0", 3),
        ("0 d\n", 3),
        ("0 d frob 0 0", 3),
        ("\n\n0 d add 5", 5),
    ] {
        fails_at(&format!("{head}{lines}"), line);
    }
    fails_at("", 1);
    fails_at("fio version 1 iolog\n", 1);
    fails_at(&format!("{head}0 {} read 0 512", "n".repeat(300)), 3);
    fails_at(&format!("{head}0 d read 0 {}", "5".repeat(5000)), 3);
}

#[test]
fn a_replay_refuses_what_it_cannot_play() {
    for (lines, line) in
        [("0 d read 1 512", 2), ("0 d read 0 1024\n0 e read 0 512", 3), ("0 d write 0 4096", 2)]
    {
        let text = format!("fio version 3 iolog\n{lines}\n").into_bytes();
        match summarise(&Source::Text(text), 2048) {
            Err(Error::Line { line: found, .. }) => assert_eq!(found, line),
            other => panic!("{other:?}"),
        }
    }
}

fn record() -> impl Strategy<Value = (u64, Op, u64, u64)> {
    let op = prop_oneof![Just(Op::Read), Just(Op::Write), Just(Op::Trim), Just(Op::Sync)];
    (0..1u64 << 40, op, 0..1u64 << 50, 0..1u64 << 30).prop_map(|(step, op, offset, len)| {
        if op == Op::Sync { (step, op, 0, 0) } else { (step, op, offset, len) }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(steps in prop::collection::vec(record(), 0..50), three in any::<bool>()) {
        let version = if three { Version::V3 } else { Version::V2 };
        let mut writer = Writer::new(Vec::new(), version, "disk").unwrap();
        let mut at_us = 0;
        let mut wanted = Vec::new();
        for (step, op, offset, len) in steps {
            at_us += step;
            let record = Record { at_us, file: 0, op, offset, len, line: 0 };
            writer.write(&record).unwrap();
            wanted.push(record);
        }
        let text = writer.finish().unwrap();
        let mut found = read_all(&text).unwrap();
        found.iter_mut().for_each(|record| record.line = 0);
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn hostile_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_all(&text);
        for head in ["fio version 3 iolog\n", "fio version 2 iolog\n"] {
            let _ = read_all(&[head.as_bytes(), &text].concat());
        }
    }

    #[test]
    fn near_misses_never_panic(
        text in "([0-9]{0,22} ?(d|e)? ?(read|write|trim|wait|sync|add)? ?[0-9-]{0,21}\n?){0,20}",
    ) {
        for head in ["fio version 3 iolog\n", "fio version 2 iolog\n"] {
            let _ = read_all(format!("{head}{text}").as_bytes());
        }
    }
}
