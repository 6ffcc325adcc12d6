//! Checks: both versions are understood, times are right, the shipped trace is whole, hostile text is refused
//! by line and never panics, what is written is read back.

use super::*;
use proptest::prelude::*;

fn read_all(text: &[u8]) -> Result<Vec<Record>, TraceError> {
    let mut reader = Reader::new(text)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    Ok(records)
}

fn fails_at(text: &str, wanted: u64) {
    match read_all(text.as_bytes()) {
        Err(TraceError::Line { line, .. }) => assert_eq!(line, wanted, "{text}"),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_shipped_trace_is_whole() {
    let summary = summarise(&Source::Shipped, &Choice::default(), 64 << 20).unwrap();
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
fn waits_may_be_moments() {
    let text = "fio version 2 iolog\nd add\nd read 0 512\nd wait 3 0\nd read 1 512\nd wait 2 0\n\
                d read 2 512\nd wait 5\nd read 3 512\n";
    let mut reader = Reader::with_waits(text.as_bytes(), Waits::Millis).unwrap();
    let times: Vec<u64> = std::iter::from_fn(|| reader.next_record().unwrap()).map(|r| r.at_us).collect();
    assert_eq!(times, [0, 3000, 3000, 5000]);
    assert_eq!(reader.extras(), Extras { logs: 1, waits: 3, ranges: 0 });
    let late = format!("fio version 2 iolog\nd wait {}\n", u64::MAX);
    assert!(Reader::with_waits(late.as_bytes(), Waits::Millis).unwrap().next_record().is_err());
}

/// As fio 3.33 writes it, with `sync_file_range=write:2` and `fdatasync=3`; a second run appended its log.
const APPENDED: &str = "fio version 3 iolog
2 f.img add
148 f.img open
177 f.img write 0 4096
214 f.img write 4096 4096
284 f.img sync_file_range 4096 0
372 f.img write 8192 4096
403 f.img datasync 8192 0
821 f.img close
fio version 3 iolog
1 f.img add
78 f.img open
83 f.img write 0 4096
128 f.img close
";

#[test]
fn logs_as_fio_leaves_them() {
    let records = read_all(APPENDED.as_bytes()).unwrap();
    let seen: Vec<_> = records.iter().map(|r| (r.line, r.at_us, r.op, r.offset)).collect();
    let (write, sync) = (Op::Write, Op::Sync);
    // the second log begins where the first one ended
    assert_eq!(
        seen,
        [
            (4, 177, write, 0),
            (5, 214, write, 4096),
            (7, 372, write, 8192),
            (8, 403, sync, 0),
            (13, 904, write, 0)
        ]
    );
    let source = Source::Text(APPENDED.into());
    let summary = summarise(&source, &Choice::default(), 4096).unwrap();
    assert_eq!(
        summary.notes(),
        ["2 logs, one behind the other", "skipped: 1 sync_file_range, which no disk is asked for"]
    );
    // another version may follow
    let text = "fio version 3 iolog\n7 d read 0 512\nfio version 2 iolog\nd wait 5\nd read 0 512\n";
    assert_eq!(read_all(text.as_bytes()).unwrap()[1].at_us, 12);
    fails_at("fio version 3 iolog\nfio version 4 iolog\n", 2);
}

#[test]
fn one_file_of_several_is_played() {
    let text = "fio version 3 iolog\n0 a add\n0 b add\n0 c add\n1 b read 0 512\n2 c read 7 7\n\
                3 b read 512 512\n4 d sync\n";
    let source = Source::Text(text.into());
    let choose = |file: Option<&str>| {
        summarise(&source, &Choice { file: file.map(String::from), ..Choice::default() }, 4096)
    };
    // the first that has an operation; of the others no line is looked at
    let summary = choose(None).unwrap();
    assert_eq!((summary.operations, summary.max_extent, summary.file_name.as_str()), (2, 1024, "b"));
    assert_eq!(summary.notes(), ["file b; left out: c (1 operation), d (1 operation)"]);
    assert_eq!(choose(Some("d")).unwrap().operations, 1);
    assert!(matches!(choose(Some("c")), Err(TraceError::Line { line: 6, .. })));
    for (name, there) in [("a", "c (1 operation)"), ("nobody", "b (2 operations)")] {
        let error = choose(Some(name)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("no operation of the file '{name}'")) && error.contains(there),
            "{error}"
        );
    }
}

#[test]
fn errors_show_the_line() {
    for (line, shown) in [
        ("0 d frob 0 0", "trace line 2: bad action `frob`: `0 d frob 0 0`"),
        ("0 d read 5", "trace line 2: no length: `0 d read 5`"),
        ("\x07\x00", "trace line 2: bad timestamp `\\x07\\x00`: `\\x07\\x00`"),
    ] {
        let error = read_all(format!("fio version 3 iolog\n{line}\n").as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), shown);
    }
    let error = read_all(&[b'z'; 9000]).unwrap_err().to_string();
    assert!(error.starts_with("trace line 1: longer than 4096 bytes: `zzz") && error.len() < 120, "{error}");
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
        [("0 d read 1 512", 2), ("0 d read 0 1024\n0 d write 0 0", 3), ("0 d write 0 4096", 2)]
    {
        let text = format!("fio version 3 iolog\n{lines}\n").into_bytes();
        match summarise(&Source::Text(text), &Choice::default(), 2048) {
            Err(TraceError::Line { line: found, .. }) => assert_eq!(found, line),
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
