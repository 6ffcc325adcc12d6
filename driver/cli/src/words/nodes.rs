//! Images that are described as a tree of nodes: `json:{...}`, filters above the image, `blkdebug` around it.
//!
//! Knows: the names of nodes and of their options. Must never know: what is done with an image.
//!
//! Of QEMU's filters there are `copy-on-read`, `compress`, and of `blkdebug` what has a meaning here: the
//! blocks that transfers keep to, and errors of what copy-on-read writes. Its limits of a request's length
//! concern QEMU's own splitting of requests: they are accepted, and change nothing.

use super::sizes;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Options with their values.
pub type Pairs = Vec<(String, String)>;

/// A description that goes deeper is refused.
const DEPTH_MAX: usize = 16;
/// Limits of requests.
const LIMITS: [&str; 5] = ["max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"];
/// What copy-on-read writes.
pub const COPIED: &str = "cor_write";

/// An error that is to happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Injected {
    /// At which of QEMU's events.
    event: String,
    /// In requests that touch this byte alone.
    at: Option<u64>,
    errno: i32,
}

/// What filters ask for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Filters {
    /// What is read from a backing file is written to the image.
    pub copy_on_read: bool,
    /// What is written becomes compressed clusters.
    pub compress: bool,
    /// Transfers keep to blocks of so many bytes.
    pub align: Option<u32>,
    injected: Vec<Injected>,
}

impl Filters {
    /// The error that a request of this range gets at this event.
    pub fn fails(&self, event: &str, offset: u64, len: u64) -> Option<i32> {
        let hit = |rule: &&Injected| {
            rule.event == event && rule.at.is_none_or(|at| offset <= at && at - offset < len)
        };
        self.injected.iter().find(hit).map(|rule| rule.errno)
    }

    /// An option of `blkdebug`. None: it has none of that name.
    fn set(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let done = match name {
            "align" => sizes::option(name, value).and_then(|bytes| self.set_align(bytes)),
            "config" if value.is_empty() => Ok(()),
            "config" => self.read_config(Path::new(value)),
            _ if LIMITS.contains(&name) => sizes::option(name, value).map(drop),
            _ => return None,
        };
        Some(done)
    }

    fn set_align(&mut self, bytes: u64) -> Result<(), String> {
        let align = u32::try_from(bytes).ok().filter(|bytes| bytes.is_power_of_two());
        self.align = Some(align.ok_or_else(|| format!("Cannot meet constraints with align {bytes}"))?);
        Ok(())
    }

    /// Rules in a file: `[inject-error]`, then `name = "value"` a line.
    fn read_config(&mut self, path: &Path) -> Result<(), String> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            format!("Could not read blkdebug config file: {}", quod::describe(errno))
        })?;
        let mut rule: Option<Pairs> = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                rule.take().map_or(Ok(()), |rule| self.inject(&rule))?;
                match section {
                    "inject-error" => rule = Some(Pairs::new()),
                    other => return Err(unsupported(other)),
                }
                continue;
            }
            let pair = line
                .split_once('=')
                .map(|(name, value)| (name.trim().to_string(), value.trim().trim_matches('"').to_string()));
            match (&mut rule, pair) {
                (Some(rule), Some(pair)) => rule.push(pair),
                _ => return Err("Could not parse blkdebug config file".into()),
            }
        }
        rule.map_or(Ok(()), |rule| self.inject(&rule))
    }

    /// One rule.
    fn inject(&mut self, rule: &Pairs) -> Result<(), String> {
        let mut injected = Injected { event: String::new(), at: None, errno: libc::EIO };
        for (name, value) in rule {
            let number = || value.parse::<u32>().map_err(|_| format!("Parameter '{name}' expects a number"));
            match name.as_str() {
                "event" if value == COPIED => injected.event.clone_from(value),
                "event" => return Err(unsupported(value)),
                "sector" => injected.at = Some(u64::from(number()?) << 9),
                "errno" => injected.errno = i32::try_from(number()?).unwrap_or(libc::EIO),
                other => return Err(unsupported(other)),
            }
        }
        if injected.event.is_empty() {
            return Err("Missing event name for rule".into());
        }
        self.injected.push(injected);
        Ok(())
    }
}

fn unsupported(what: &str) -> String {
    format!("blkdebug: '{what}' is not supported")
}

/// Options under a name, and the others.
fn split(pairs: Pairs, name: &str) -> (Pairs, Pairs) {
    let (mut below, mut own) = (Pairs::new(), Pairs::new());
    for (option, value) in pairs {
        match option.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => below.push((rest.to_string(), value)),
            None => own.push((option, value)),
        }
    }
    (below, own)
}

/// A word that is not a file's name alone.
pub fn is_description(word: &Path) -> bool {
    word.to_str().is_some_and(|text| text.starts_with("json:") || text.starts_with("blkdebug:"))
}

/// What is below the filters: its options, and the file if `word` names one.
pub fn peel(mut pairs: Pairs, word: Option<&Path>) -> Result<(Pairs, Option<PathBuf>, Filters), String> {
    let mut filters = Filters::default();
    let text = word.and_then(Path::to_str).unwrap_or_default();
    let mut file = word.map(Path::to_path_buf);
    if let Some(json) = text.strip_prefix("json:") {
        pairs.extend(flat(json)?);
        file = None;
    }
    let mut around = None;
    if let Some(rest) = text.strip_prefix("blkdebug:") {
        let (config, image) =
            rest.split_once(':').ok_or("blkdebug requires both config file and image path")?;
        around = Some(config.to_string());
        file = Some(PathBuf::from(image));
    }
    for _ in 0..DEPTH_MAX {
        let driver = pairs.iter().find(|(name, _)| name == "driver").map(|(_, value)| value.clone());
        let below = match driver.as_deref() {
            Some("copy-on-read" | "compress") => "file",
            Some("blkdebug") => "image",
            _ => {
                let (below, own) = split(pairs, "file");
                let wraps =
                    around.is_some() || below.iter().any(|pair| pair.0 == "driver" && pair.1 == "blkdebug");
                let below = if wraps { debugged(below, around.take(), &mut filters)? } else { below };
                let below = below.into_iter().map(|(name, value)| (format!("file.{name}"), value));
                return Ok((below.chain(own).collect(), file, filters));
            }
        };
        let (inner, own) = split(pairs, below);
        if below == "file" {
            let compress = driver.as_deref() == Some("compress");
            *(if compress { &mut filters.compress } else { &mut filters.copy_on_read }) = true;
        } else if let Some(config) = around.take() {
            filters.set("config", &config).unwrap_or(Ok(()))?;
        }
        take(own, &mut filters, driver.as_deref().unwrap_or_default())?;
        pairs = inner;
    }
    Err("The description is nested too deep".into())
}

/// A filter's own options.
fn take(own: Pairs, filters: &mut Filters, driver: &str) -> Result<(), String> {
    let (mut rules, own) = split(own, "inject-error");
    for (name, value) in own.iter().filter(|pair| pair.0 != "driver") {
        let done = if driver == "blkdebug" { filters.set(name, value) } else { None };
        done.ok_or_else(|| format!("Block format '{driver}' does not support the option '{name}'"))??;
    }
    while let Some(index) = rules.first().and_then(|pair| pair.0.split('.').next()).map(String::from) {
        let (rule, others) = split(rules, &index);
        if driver != "blkdebug" || rule.is_empty() {
            return Err(unsupported("inject-error"));
        }
        filters.inject(&rule)?;
        rules = others;
    }
    Ok(())
}

/// What is around the file: blocks alone.
fn debugged(below: Pairs, config: Option<String>, filters: &mut Filters) -> Result<Pairs, String> {
    let (image, own) = split(below, "image");
    let before = filters.injected.len();
    filters.set("config", config.as_deref().unwrap_or_default()).unwrap_or(Ok(()))?;
    take(own, filters, "blkdebug")?;
    if filters.injected.len() > before {
        return Err(unsupported(COPIED));
    }
    Ok(image)
}

/// The options of a description in JSON: names joined by points, members of lists by their number.
fn flat(text: &str) -> Result<Pairs, String> {
    let value = serde_json::from_str::<Value>(&quoted(text));
    let value = value.ok().filter(Value::is_object).ok_or("Could not parse the JSON options")?;
    let mut pairs = Pairs::new();
    flatten(&value, String::new(), &mut pairs);
    Ok(pairs)
}

fn flatten(value: &Value, name: String, pairs: &mut Pairs) {
    let join = |part: &str| if name.is_empty() { part.to_string() } else { format!("{name}.{part}") };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(part, value)| flatten(value, join(part), pairs));
        }
        Value::Array(members) => {
            members.iter().enumerate().for_each(|(n, value)| flatten(value, join(&n.to_string()), pairs));
        }
        Value::String(text) => pairs.push((name, text.clone())),
        Value::Bool(on) => pairs.push((name, if *on { "on" } else { "off" }.into())),
        Value::Null => pairs.push((name, String::new())),
        Value::Number(number) => pairs.push((name, number.to_string())),
    }
}

/// Texts between single quotes, as QEMU takes them, too.
fn quoted(text: &str) -> String {
    let (mut out, mut open, mut escaped) = (String::new(), None, false);
    for c in text.chars() {
        match (open, c) {
            (None, '"' | '\'') => {
                open = Some(c);
                out.push('"');
            }
            (Some(_), c) if escaped => {
                escaped = false;
                if c != '\'' {
                    out.push('\\');
                }
                out.push(c);
            }
            (Some(_), '\\') => escaped = true,
            (Some(quote), c) if c == quote => {
                open = None;
                out.push('"');
            }
            (Some(_), '"') => out.push_str("\\\""),
            (_, c) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::keyval;
    use super::*;

    fn peeled(text: &str, word: Option<&str>) -> Result<(Pairs, Option<PathBuf>, Filters), String> {
        let pairs = if text.is_empty() { Pairs::new() } else { keyval::parse(text).unwrap() };
        peel(pairs, word.map(Path::new))
    }

    fn pairs(list: &[(&str, &str)]) -> Pairs {
        list.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
    }

    #[test]
    fn filters_are_taken_off() {
        let (below, file, filters) = peeled("driver=copy-on-read,file.driver=qcow2", Some("a")).unwrap();
        assert_eq!((below, file), (pairs(&[("driver", "qcow2")]), Some("a".into())));
        assert!(filters.copy_on_read && filters.align.is_none());
        let (below, file, filters) =
            peeled("driver=blkdebug,image.driver=qcow2,align=4k,max-transfer=64k", Some("blkdebug::x"))
                .unwrap();
        assert_eq!((below, file), (pairs(&[("driver", "qcow2")]), Some("x".into())));
        assert_eq!(filters.align, Some(4096));
        let (below, _, filters) = peeled("driver=qed,file.align=512", Some("blkdebug::x")).unwrap();
        assert_eq!((below, filters.align), (pairs(&[("driver", "qed")]), Some(512)));
        let (below, file, filters) =
            peeled("driver=compress,file.driver=qcow2,file.file.filename=a", None).unwrap();
        assert_eq!((below, file), (pairs(&[("file.filename", "a"), ("driver", "qcow2")]), None));
        assert!(filters.compress && !filters.copy_on_read);
        let deep = "file.".repeat(20);
        let deep: Vec<String> = (0..20).map(|n| format!("{}driver=copy-on-read", &deep[..5 * n])).collect();
        assert!(peeled(&deep.join(","), Some("x")).is_err());
    }

    #[test]
    fn errors_hit_what_they_are_for() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        std::fs::write(&config, "[inject-error]\nevent = \"cor_write\"\nsector = \"2048\"\n").unwrap();
        let text = format!(
            "driver=copy-on-read,file.driver=blkdebug,file.config={},file.image.driver=qcow2",
            config.display()
        );
        let (below, _, filters) = peeled(&text, Some("a")).unwrap();
        assert_eq!(below, pairs(&[("driver", "qcow2")]));
        assert_eq!(filters.fails(COPIED, 1 << 20, 512), Some(libc::EIO));
        assert_eq!(filters.fails(COPIED, (1 << 20) - 512, 512), None);
        assert_eq!(filters.fails(COPIED, (1 << 20) + 512, 65536), None);
        assert_eq!(filters.fails("write_aio", 1 << 20, 512), None);
        for (text, word) in [
            (
                "driver=qcow2,file.driver=blkdebug,file.inject-error.0.event=l2_load,file.image.filename=x",
                None,
            ),
            ("driver=blkdebug,image.driver=qcow2,foo=1", Some("x")),
            ("driver=blkdebug,image.driver=qcow2,set-state.0.event=cor_write", Some("x")),
            ("", Some("blkdebug:x")),
            ("", Some("blkdebug:/no/such/file:x")),
            ("", Some("json:{")),
            ("driver=qed,file.align=3", Some("blkdebug::x")),
        ] {
            assert!(peeled(text, word).is_err(), "{text} {word:?}");
        }
    }

    #[test]
    fn json_is_read_as_qemu_reads_it() {
        let json = "json:{'driver': 'qcow2', \"file\": {'filename': 'a\"b\\'c', \
            'n': [1, {'x': true}]}, 'backing': null}";
        let (below, file, _) = peeled("", Some(json)).unwrap();
        assert_eq!(file, None);
        let wanted = [
            ("file.filename", "a\"b'c"),
            ("file.n.0", "1"),
            ("file.n.1.x", "on"),
            ("backing", ""),
            ("driver", "qcow2"),
        ];
        let (mut below, mut wanted) = (below, pairs(&wanted));
        below.sort();
        wanted.sort();
        assert_eq!(below, wanted);
    }
}
