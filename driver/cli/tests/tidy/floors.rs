//! The floors of driver/src: a file imports from its own floor and from those below, never from above.
//!
//! Knows: which room stands on which floor, how a path begins. Must never know: what is in a room.

use crate::scan::lines;

/// The floors with their rooms (a folder, or a file beside lib.rs), from the top down.
const FLOORS: [(&str, &[&str]); 6] = [
    ("face", &["lib", "driver", "event_loop", "registered"]),
    ("engine", &["engine"]),
    ("transform", &["transform"]),
    ("layer", &["layer"]),
    (
        "words",
        &[
            "completion",
            "config",
            "error",
            "fault",
            "gate",
            "hold",
            "info",
            "refusal",
            "request",
            "stats",
            "trace",
        ],
    ),
    ("memory", &["memory"]),
];
const ROOT: &str = "driver/src/";

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|(_, rooms)| rooms.contains(&room))
}

/// The identifier at the beginning of a text.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// What follows each `path` in the code, which is no part of a longer word.
fn after<'a>(code: &'a str, path: &'a str) -> impl Iterator<Item = &'a str> {
    let whole = |at: &usize| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c));
    code.match_indices(path).map(|(at, _)| at).filter(whole).map(move |at| &code[at + path.len()..])
}

/// What is wrong with the imports of one file of driver/src. Tests may look at everything.
pub fn imports(name: &str, source: &str) -> Vec<String> {
    let Some(inside) = name.strip_prefix(ROOT) else { return Vec::new() };
    if inside.ends_with("/tests.rs") {
        return Vec::new();
    }
    let room = identifier(inside);
    let Some(own) = floor(room) else { return vec![format!("{name}: {room} stands on no floor")] };
    if own == 0 {
        return Vec::new();
    }
    let (is_root, is_deep) = (inside.ends_with("/mod.rs"), inside.matches('/').count());
    let mut wrong = Vec::new();
    for (n, line) in lines(source).iter().enumerate().filter(|(_, line)| !line.in_test) {
        let mut say = |what: String| wrong.push(format!("{name}:{}: {what}", n + 1));
        for path in after(&line.code, "crate::") {
            let other = identifier(path);
            match floor(other) {
                Some(floor) if floor >= own => {}
                Some(floor) => say(format!("{} imports up, from {}", FLOORS[own].0, FLOORS[floor].0)),
                None => say(format!("crate::{other}: below the face an import names its room")),
            }
        }
        // out of the room by the back stairs
        let leaves = |steps: &str| after(&line.code, steps).next().is_some();
        if (is_root || is_deep == 0) && leaves("super::") || is_deep < 2 && leaves("super::super::") {
            say("super leads out of the room".into());
        }
    }
    wrong
}

mod samples {
    use super::imports;

    fn wrong(name: &str, body: &str) -> usize {
        imports(&format!("driver/src/{name}"), &format!("//! A header.\n{body}")).len()
    }

    #[test]
    fn an_arrow_up_is_found() {
        for (name, bad) in [
            ("memory/arena.rs", "use crate::layer::port::Port;"),
            ("memory/arena.rs", "use crate::error::Error;"),
            ("request.rs", "use crate::layer::Layer;"),
            ("layer/port.rs", "fn f() { crate::engine::pump::f() }"),
            ("layer/clusters.rs", "use crate::transform::Transform;"),
            ("transform/serve.rs", "use {crate::engine::Engine, std::io};"),
            ("engine/pump.rs", "use crate::driver::Driver;"),
            ("engine/pump.rs", "use crate::Driver;"),
            ("engine/pump.rs", "use crate::{driver::Driver, layer::Layer};"),
            ("layer/port.rs", "use super::super::engine::Engine;"),
            ("layer/mod.rs", "use super::engine::Engine;"),
            ("stats.rs", "use super::driver::Driver;"),
            ("attic/mod.rs", ""),
        ] {
            assert_eq!(wrong(name, bad), 1, "{name}: {bad}");
        }
    }

    #[test]
    fn the_way_down_is_free() {
        for (name, good) in [
            ("driver.rs", "use crate::engine::Engine;"),
            ("engine/turn.rs", "use super::Engine;\nuse crate::transform::COPY;\nuse crate::error::Error;"),
            ("transform/drive.rs", "use crate::layer::out::Out; // not crate::engine"),
            ("layer/out.rs", "use super::port::Port;\nuse crate::layer::Layer;"),
            ("layer/out.rs", "#[cfg(test)]\nmod tests {\n    use crate::Driver;\n}"),
            ("layer/out/tests.rs", "use crate::Driver;"),
            ("stats.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}\nuse crate::hold::Hold;"),
            ("memory/fill.rs", "pub(crate) fn f() { let x = \"crate::engine\"; }"),
        ] {
            assert_eq!(wrong(name, good), 0, "{name}: {good}");
        }
        assert!(imports("driver/cli/src/main.rs", "use crate::engine::Engine;").is_empty());
    }
}
