//! Commands about the tool itself: open, reopen, close, quit, and those that quod refuses.
//!
//! Knows: their flags. Must never know: how an image is opened.

use super::target::Target;
use super::tool::{Failed, Tool};
use crate::words::failure::{warn_about_probing, why_not_opened};
use crate::words::nodes::is_description;
use crate::words::open::{Mode, image_options};
use crate::words::{format, keyval};
use quod::{Format, describe};
use quod_tools as tools;
use std::path::{Path, PathBuf};

/// `open [-rsCnkU] [-t cache] [-d discard] [-o options] [path]`
pub fn open(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let mut mode = Mode { format: None, ..Mode::default() };
    let mut options: Option<String> = None;
    let mut set = |letter, value: String| -> Result<(), String> {
        match letter {
            's' => mode.snapshot = true,
            'n' => mode.set_cache("none")?,
            'C' => mode.copy_on_read = true,
            'r' => mode.read_only = true,
            'k' => mode.set_engine("native")?,
            'i' => mode.set_engine(&value)?,
            't' => mode.set_cache(&value)?,
            'd' => mode.set_discard(&value)?,
            'U' => mode.force_share = true,
            _ => options = Some(options.take().map_or(value.clone(), |before| format!("{before},{value}"))),
        }
        Ok(())
    };
    let operands = tool.options(words, "snCro:ki:t:d:U", |tool, letter, value| {
        set(letter, value).map_err(|text| tool.complain(&text))
    })?;
    let path = match (operands.as_slice(), &options) {
        ([path], _) => Some(Path::new(path)),
        ([], Some(_)) => None,
        _ => return Err(tool.usage("open")),
    };
    let file = match (&options, path) {
        (Some(text), path) => image_options(text, path, &mut mode),
        (None, Some(path)) if is_description(path) => image_options("", Some(path), &mut mode),
        (None, path) => Ok(path.map(Path::to_path_buf).unwrap_or_default()),
    };
    match (file, path) {
        (Ok(file), path) => open_image(tool, &file, mode, path.is_some()),
        (Err(text), Some(path)) => {
            Err(tool.complain(&format!("can't open device {}: {text}", path.display())))
        }
        (Err(text), None) => Err(tool.complain(&format!("can't open: {text}"))),
    }
}

/// Opens an image; `named`: by its file's name, not by an option string.
pub fn open_image(tool: &mut Tool, path: &Path, mode: Mode, named: bool) -> Result<(), Failed> {
    if tool.target.is_some() {
        return Err(tool.complain("file open already, try 'help close'"));
    }
    match Target::open(path, mode) {
        Ok(target) => {
            if target.guarded() {
                warn_about_probing(path);
            }
            tool.target = Some(target);
            Ok(())
        }
        Err(text) if named => Err(tool.complain(&format!("can't open device {}: {text}", path.display()))),
        Err(text) => Err(tool.complain(&format!("can't open: {text}"))),
    }
}

/// `reopen [(-r|-w)] [-c cache] [-o options]`: closes and opens again.
pub fn reopen(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let Some(target) = tool.target.as_ref() else { return Err(Failed) };
    let (mut mode, path): (Mode, PathBuf) = (target.mode.clone(), target.path.clone());
    let layers =
        target.info().map(|info| info.layers().iter().map(|layer| layer.info.format).collect::<Vec<_>>());
    let layers = layers.unwrap_or_default();
    let (mut writable, mut cache, mut options) = (None, false, Vec::new());
    let mut set = |letter, value: String| -> Result<(), String> {
        match letter {
            'c' => {
                cache = true;
                mode.set_cache(&value)?;
            }
            'r' | 'w' if writable.is_some() => return Err("Only one -r/-w option may be given".into()),
            'r' | 'w' => writable = Some(letter == 'w'),
            _ => {
                let pairs = keyval::parse(&value);
                options.extend(pairs.ok_or_else(|| format!("Invalid option list: {value}"))?);
            }
        }
        Ok(())
    };
    let operands = tool.options(words, "c:o:rw", |tool, letter, value| {
        set(letter, value).map_err(|text| tool.complain(&text))
    })?;
    if !operands.is_empty() {
        return Err(tool.usage("reopen"));
    }
    mode.read_only = writable.map_or(mode.read_only, |writable| !writable);
    mode.format = mode.format.or(layers.first().copied());
    let changed = change(&mut mode, &layers, &options, (writable.is_some(), cache));
    if let Err(text) = changed.and_then(|()| still_fits(&path, &mode)) {
        return Err(tool.complain(&text));
    }
    if mode.snapshot {
        // the overlay would be lost with everything in it
        return Err(tool.complain("an image opened with a temporary overlay cannot be reopened"));
    }
    tool.close()?;
    open_image(tool, &path, mode, true)
}

/// What `reopen -o` asks for. `given`: `-r` or `-w`, and `-c`, which exclude the options of that name.
fn change(
    mode: &mut Mode,
    layers: &[Format],
    options: &[(String, String)],
    given: (bool, bool),
) -> Result<(), String> {
    let has = |wanted: &[&str]| options.iter().any(|(name, _)| wanted.contains(&name.as_str()));
    if given.0 && has(&["read-only"]) {
        return Err("Cannot set both -r/-w and 'read-only'".into());
    }
    if given.1 && has(&["cache.direct", "cache.no-flush"]) {
        return Err("Cannot set both -c and the cache options".into());
    }
    mode.runtime = Default::default();
    for (name, value) in options {
        let same = match name.as_str() {
            "driver" => layers.first().is_some_and(|&top| format::name(top) == value),
            "backing.driver" => layers.get(1).is_some_and(|&below| format::name(below) == value),
            "file.driver" => value == "file",
            _ => false,
        };
        if same {
            continue;
        }
        match mode.set_option(name, value) {
            Some(done) => done?,
            None => {
                let last = name.rsplit('.').next().unwrap_or_default();
                return Err(format!("Cannot change the option '{last}'"));
            }
        }
    }
    Ok(())
}

/// Options that do not suit the image are refused before it is closed.
fn still_fits(path: &Path, mode: &Mode) -> Result<(), String> {
    if !mode.needs_facts() {
        return Ok(());
    }
    let image = tools::info(path, mode.format, true).map_err(|error| why_not_opened(path, &error))?;
    mode.fit(&image).map(drop)
}

/// `close`
pub fn close(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    tool.close()
}

/// `quit`
pub fn quit(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    tool.leaving = true;
    Ok(())
}

/// `abort`: ends without closing anything.
pub fn abort(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    if tool.target.is_some() {
        // what was started has reached the host, as it has when QEMU's threads run on for a moment
        let _ = tool.with(|target| target.turn());
    }
    std::process::abort()
}

/// `break`
pub fn set_break(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    Err(no_breakpoints(tool, "set breakpoint"))
}

/// `remove_break`
pub fn remove_break(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let tag = words.get(1).map_or("", String::as_str);
    Err(no_breakpoints(tool, &format!("remove breakpoint {tag}")))
}

/// `resume`
pub fn resume(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    Err(no_breakpoints(tool, "resume request"))
}

/// `wait_break`
pub fn wait_break(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    resume(tool, words)
}

/// Breakpoints are a matter of QEMU's blkdebug.
fn no_breakpoints(tool: &mut Tool, what: &str) -> Failed {
    tool.refuse(&format!("Could not {what}: {}", describe(libc::ENOTSUP)))
}
