//! Requests and replies of the control socket, a line of JSON each.
//!
//! Knows: the words of docs/serve.md. Must never know: sockets, disks.
//! Invariant: whatever bytes a line has, it is a command or an error with a text, and never more than one.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Longest request, bytes, its end included.
pub(crate) const LINE_MAX: usize = 4096;
/// A quiesce ends by itself after so many seconds, if nothing else is said.
const HOLD_DEFAULT: u64 = 60;
/// And at most.
const HOLD_MAX: u64 = 3600;

/// The kinds of error, by the names that replies have for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// It is no request.
    Invalid,
    CommandNotFound,
    /// No image of this name, or none was named and there are several.
    DeviceNotFound,
    /// Something else is under way for the image.
    Busy,
    /// It is not quiesced, or not any more.
    NotQuiesced,
    /// The server is ending.
    Ending,
    /// The driver could not do it.
    Failed,
}

/// Why a request is not done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub class: Class,
    pub text: String,
}

impl Refused {
    pub fn new(class: Class, text: impl Into<String>) -> Refused {
        Refused { class, text: text.into() }
    }
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Stats,
    /// `image` None: all of them.
    Quiesce {
        image: Option<String>,
        most: Duration,
        /// It ends with the connection as well.
        tied: bool,
    },
    Resume {
        image: Option<String>,
    },
    Resize {
        image: Option<String>,
        size: u64,
        shrink: bool,
    },
    Stop,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    execute: String,
    #[serde(default)]
    arguments: Map<String, Value>,
    /// Given back as it is.
    id: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quiesce {
    image: Option<String>,
    timeout: Option<u64>,
    #[serde(default)]
    tied: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resume {
    image: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    image: Option<String>,
    size: u64,
    #[serde(default)]
    shrink: bool,
}

/// A request, and what its reply is known by.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Request {
    pub id: Option<Value>,
    pub command: Result<Command, Refused>,
}

impl Request {
    /// Reads a line, without its end.
    pub fn read(line: &[u8]) -> Request {
        match serde_json::from_slice::<Line>(line) {
            Ok(line) => Request { id: line.id, command: command(&line.execute, line.arguments) },
            Err(error) => Request { id: None, command: Err(invalid(&error)) },
        }
    }

    /// One that is longer than it may be.
    pub fn too_long() -> Request {
        let text = format!("a request has at most {LINE_MAX} bytes; the connection ends");
        Request { id: None, command: Err(Refused::new(Class::Invalid, text)) }
    }
}

fn invalid(error: &serde_json::Error) -> Refused {
    Refused::new(Class::Invalid, format!("not a request: {error}"))
}

/// Arguments as a struct: what is missing, unknown or of a wrong kind is said.
fn arguments<'de, T: Deserialize<'de>>(arguments: Map<String, Value>) -> Result<T, Refused> {
    T::deserialize(Value::Object(arguments)).map_err(|error| invalid(&error))
}

fn command(name: &str, given: Map<String, Value>) -> Result<Command, Refused> {
    match name {
        "stats" => arguments(given).map(|Nothing {}| Command::Stats),
        "quiesce" => {
            let Quiesce { image, timeout, tied } = arguments(given)?;
            let most = timeout.unwrap_or(HOLD_DEFAULT);
            if !(1..=HOLD_MAX).contains(&most) {
                let text = format!("timeout: seconds, from 1 to {HOLD_MAX}");
                return Err(Refused::new(Class::Invalid, text));
            }
            Ok(Command::Quiesce { image, most: Duration::from_secs(most), tied })
        }
        "resume" => arguments(given).map(|Resume { image }| Command::Resume { image }),
        "resize" => {
            let Resize { image, size, shrink } = arguments(given)?;
            Ok(Command::Resize { image, size, shrink })
        }
        "stop" => arguments(given).map(|Nothing {}| Command::Stop),
        _ => {
            let text = "commands are stats, quiesce, resume, resize, stop";
            Err(Refused::new(Class::CommandNotFound, text))
        }
    }
}

/// A reply's line.
pub(crate) fn reply(id: Option<Value>, result: Result<Value, Refused>) -> Vec<u8> {
    let mut reply = match result {
        Ok(value) => json!({ "return": value }),
        Err(Refused { class, text }) => {
            json!({ "error": { "class": format!("{class:?}"), "desc": text } })
        }
    };
    if let (Some(id), Some(fields)) = (id, reply.as_object_mut()) {
        fields.insert("id".into(), id);
    }
    let mut line = reply.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(line: &str) -> Class {
        Request::read(line.as_bytes()).command.unwrap_err().class
    }

    fn read(line: &str) -> Command {
        Request::read(line.as_bytes()).command.unwrap()
    }

    #[test]
    fn commands_are_read() {
        assert_eq!(read(r#"{"execute": "stats"}"#), Command::Stats);
        assert_eq!(read(r#"{"execute": "stop", "arguments": {}}"#), Command::Stop);
        let all = Command::Quiesce { image: None, most: Duration::from_secs(60), tied: false };
        assert_eq!(read(r#"{"execute": "quiesce"}"#), all);
        let one = Command::Quiesce { image: Some("a".into()), most: Duration::from_secs(5), tied: true };
        let line = r#"{"execute": "quiesce", "arguments": {"image": "a", "timeout": 5, "tied": true}}"#;
        assert_eq!(read(line), one);
        assert_eq!(read(r#"{"execute": "resume"}"#), Command::Resume { image: None });
        let resize = Command::Resize { image: None, size: 1 << 20, shrink: false };
        assert_eq!(read(r#"{"execute": "resize", "arguments": {"size": 1048576}}"#), resize);
    }

    #[test]
    fn what_is_no_request_is_said() {
        for line in [
            "",
            "x",
            "{",
            "[]",
            "null",
            "{}",
            r#"{"execute": 1}"#,
            r#"{"execute": "stats", "more": 1}"#,
            r#"{"execute": "stats", "arguments": {"x": 1}}"#,
            r#"{"execute": "stats", "arguments": []}"#,
            r#"{"execute": "quiesce", "arguments": {"timeout": 0}}"#,
            r#"{"execute": "quiesce", "arguments": {"timeout": 3601}}"#,
            r#"{"execute": "quiesce", "arguments": {"timeout": -1}}"#,
            r#"{"execute": "resize"}"#,
            r#"{"execute": "resize", "arguments": {"size": "1M"}}"#,
            r#"{"execute": "resize", "arguments": {"size": 1e30}}"#,
            "{\"execute\": \"stats\"} {\"execute\": \"stats\"}",
            "\u{0}\u{1}",
        ] {
            assert_eq!(class(line), Class::Invalid, "{line}");
        }
        assert_eq!(class(r#"{"execute": "quit"}"#), Class::CommandNotFound);
        // no bytes and no depth are too much
        assert_eq!(class(&"[".repeat(LINE_MAX)), Class::Invalid);
        assert!(Request::read(&[0xff; 64]).command.is_err());
        let deep = format!(r#"{{"execute": "stats", "id": {}1{}}}"#, "[".repeat(100), "]".repeat(100));
        assert_eq!(read(&deep), Command::Stats);
    }

    #[test]
    fn replies_are_lines_with_the_id_that_was_given() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(text(reply(None, Ok(json!({})))), "{\"return\":{}}\n");
        let refused = Refused::new(Class::NotQuiesced, "no\n");
        assert_eq!(
            text(reply(Some(json!([1])), Err(refused))),
            "{\"error\":{\"class\":\"NotQuiesced\",\"desc\":\"no\\n\"},\"id\":[1]}\n"
        );
    }
}
