//! Where the chain of an image goes on: its backing file by name, or by QEMU's `json:` description of one.
//!
//! Knows: what a name means. Must never know: whether the file is there.
//! Invariant: what is not understood whole is not followed; nothing in it is passed over that could change
//! what the bytes mean.

use quod::{Named, Role};
use quod_states::{Backing, Format};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The next image of a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Below {
    /// Its file. A relative name in a description starts at the working directory, as for QEMU; of others
    /// see [`Named::path`].
    pub path: PathBuf,
    /// Its format; None: probe.
    pub format: Option<Format>,
}

/// Options of a description that change how a file is opened and not what is in it.
const HARMLESS: [&str; 8] = [
    "auto-read-only",
    "cache",
    "detect-zeroes",
    "discard",
    "force-share",
    "locking",
    "node-name",
    "read-only",
];

/// The image below `image`, or why it is not known.
pub(crate) fn below(image: &Path, backing: &Backing) -> Result<Below, String> {
    let format = match (backing.format, &backing.format_name) {
        (None, Some(name)) => return Err(format!("Unknown driver '{}'", String::from_utf8_lossy(name))),
        (format, _) => format,
    };
    if let Some(text) = backing.name.strip_prefix(b"json:") {
        return described(text, format);
    }
    match (Named { image, name: &backing.name, role: Role::Backing }).path() {
        Some(path) => Ok(Below { path, format }),
        None => Err("the name is that of a protocol, and only files are opened".into()),
    }
}

/// What `json:` is followed by: a format over a file, or a file. The format that the image names beside it
/// comes first.
fn described(text: &[u8], named: Option<Format>) -> Result<Below, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let Value::Object(fields) = value else { return Err("the description is no JSON object".into()) };
    let node = Node::read(fields, "")?;
    match node {
        Node { driver: Some(driver), file: None, filename: Some(path) } if driver == "file" => match named {
            // QEMU makes the named format of it then, and misses the file
            Some(_) => Err("A block device must be specified for \"file\"".into()),
            None => Ok(Below { path, format: Some(Format::Raw) }),
        },
        Node { driver, file: Some(path), filename: None } => {
            let said = driver.as_deref().map(format_named).transpose()?;
            Ok(Below { path, format: named.or(said) })
        }
        _ => Err("the description names no file".into()),
    }
}

fn format_named(name: &str) -> Result<Format, String> {
    [Format::Raw, Format::Qed, Format::Qcow2]
        .into_iter()
        .find(|format| format.name() == name)
        .ok_or_else(|| format!("Unknown driver '{name}'"))
}

/// A node of a description.
#[derive(Default)]
struct Node {
    driver: Option<String>,
    /// The file of its child `file`.
    file: Option<PathBuf>,
    filename: Option<PathBuf>,
}

impl Node {
    /// Fields may be nested (`"file": {"filename": ...}`) or have dots in their names (`"file.filename"`).
    fn read(fields: Map<String, Value>, within: &str) -> Result<Node, String> {
        let mut node = Node::default();
        let mut child = Map::new();
        for (name, value) in fields {
            let first = name.split('.').next().unwrap_or_default();
            match (name.as_str(), value) {
                ("driver", Value::String(text)) => node.driver = Some(text),
                ("filename", Value::String(text)) => node.filename = Some(PathBuf::from(text)),
                ("file", Value::Object(fields)) if within.is_empty() => child.extend(fields),
                (dotted, value) if first == "file" && dotted != "file" && within.is_empty() => {
                    child.insert(dotted["file.".len()..].to_string(), value);
                }
                _ if HARMLESS.contains(&first) => {}
                _ => return Err(format!("the description has '{within}{name}', which is not known")),
            }
        }
        if !child.is_empty() {
            node.file = match Node::read(child, "file.")? {
                Node { driver: Some(driver), .. } if driver != "file" => {
                    return Err(format!("Unknown driver '{driver}'"));
                }
                Node { filename, .. } => filename,
            };
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(name: &str, format: Option<Format>) -> Result<(String, Option<Format>), String> {
        let format_name = format.map(|format| format.name().as_bytes().to_vec());
        let backing = Backing { name: name.as_bytes().to_vec(), format, format_name };
        below(Path::new("d/top"), &backing).map(|below| (below.path.display().to_string(), below.format))
    }

    #[test]
    fn what_is_understood_is_followed() {
        let (raw, qcow2) = (Some(Format::Raw), Some(Format::Qcow2));
        for (name, format, path, found) in [
            ("base", None, "d/base", None),
            ("/base", qcow2, "/base", qcow2),
            (r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/b"}}"#, None, "/b", qcow2),
            (r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/b"}}"#, raw, "/b", raw),
            (r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"b"}"#, None, "b", qcow2),
            (r#"json:{"file":{"filename":"b","locking":"off"},"node-name":"x"}"#, qcow2, "b", qcow2),
            (r#"json:{"file.filename":"b","discard":"unmap","cache.direct":true}"#, None, "b", None),
            (r#"json:{"driver":"file","filename":"b"}"#, None, "b", raw),
        ] {
            assert_eq!(follow(name, format), Ok((path.to_string(), found)), "{name}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for name in [
            "nbd://host/x",
            "json:",
            "json:[]",
            "json:{}",
            r#"json:{"driver":"qcow2"}"#,
            r#"json:{"driver":"vmdk","file":{"driver":"file","filename":"b"}}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"nbd","host":"b"}}"#,
            r#"json:{"driver":"qcow2","file":"node"}"#,
            r#"json:{"driver":"qcow2","file":{"driver":"raw","file":{"filename":"b"}}}"#,
            r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"b"}}"#,
            r#"json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"b"}}"#,
            r#"json:{"driver":"qcow2","filename":"a","file":{"driver":"file","filename":"b"}}"#,
        ] {
            assert!(follow(name, None).is_err(), "{name}: {:?}", follow(name, None));
        }
        assert!(follow(r#"json:{"driver":"file","filename":"b"}"#, Some(Format::Raw)).is_err());
        let foreign = Backing { name: b"b".to_vec(), format: None, format_name: Some(b"vmdk".to_vec()) };
        assert_eq!(below(Path::new("a"), &foreign), Err("Unknown driver 'vmdk'".into()));
    }
}
