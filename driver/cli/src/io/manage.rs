//! Commands about the tool itself: open, reopen, close, quit, help, and those that quod refuses.
//!
//! Knows: their flags. Must never know: how an image is opened.

use super::commands::{self, COMMANDS};
use super::engine::Engine;
use super::open::{Mode, image_options};
use super::tool::{Failed, Tool};
use crate::failure::{strerror, warn_about_probing};
use crate::getopt::Found;
use std::path::{Path, PathBuf};

/// `open [-rsCnkU] [-t cache] [-d discard] [-o options] [path]`
pub fn open(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (found, operands) = Tool::sort(words, "snCro:ki:t:d:U");
    let mut mode = Mode { format: None, ..Mode::default() };
    let mut file = None;
    for item in found {
        let result = match item {
            Found::Option('s', _) => {
                mode.snapshot = true;
                Ok(())
            }
            Found::Option('n', _) => mode.set_cache("none"),
            Found::Option('C', _) => {
                mode.copy_on_read = true;
                Ok(())
            }
            Found::Option('r', _) => {
                mode.read_only = true;
                Ok(())
            }
            Found::Option('k', _) => mode.set_engine("native"),
            Found::Option('i', value) => mode.set_engine(&value),
            Found::Option('t', value) => mode.set_cache(&value),
            Found::Option('d', value) => mode.set_discard(&value),
            Found::Option('U', _) => {
                mode.force_share = true;
                Ok(())
            }
            Found::Option(_, value) => image_options(&value, &mut mode).map(|path| file = Some(path)),
            Found::Bad(text) => return Err(tool.bad_option(words, &text)),
        };
        if let Err(text) = result {
            return Err(tool.complain(&text));
        }
    }
    match (operands.as_slice(), file) {
        ([path], None) => open_image(tool, Path::new(path), mode, true),
        ([], Some(path)) => open_image(tool, &path, mode, false),
        _ => Err(tool.usage("open")),
    }
}

/// Opens an image; `named`: by its file's name, not by an option string.
pub fn open_image(tool: &mut Tool, path: &Path, mode: Mode, named: bool) -> Result<(), Failed> {
    if tool.engine.is_some() {
        return Err(tool.complain("file open already, try 'help close'"));
    }
    match Engine::open(path, mode) {
        Ok(engine) => {
            if engine.guarded() {
                warn_about_probing(path);
            }
            tool.engine = Some(engine);
            Ok(())
        }
        Err(text) if named => Err(tool.complain(&format!("can't open device {}: {text}", path.display()))),
        Err(text) => Err(tool.complain(&format!("can't open: {text}"))),
    }
}

/// `reopen [(-r|-w)] [-c cache] [-o options]`: closes and opens again.
pub fn reopen(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (found, operands) = Tool::sort(words, "c:o:rw");
    let Some(engine) = tool.engine.as_ref() else { return Err(Failed) };
    let (mut mode, path): (Mode, PathBuf) = (engine.mode.clone(), engine.path.clone());
    let mut writable = None;
    for item in found {
        let result = match item {
            Found::Option('c', value) => mode.set_cache(&value),
            Found::Option('r' | 'w', _) if writable.is_some() => {
                Err("Only one -r/-w option may be given".into())
            }
            Found::Option('r', _) => {
                writable = Some(false);
                Ok(())
            }
            Found::Option('w', _) => {
                writable = Some(true);
                Ok(())
            }
            Found::Option(_, value) => Err(format!(
                "Cannot change the option '{}'",
                value.split(['=', ',']).next().unwrap_or_default()
            )),
            Found::Bad(text) => return Err(tool.bad_option(words, &text)),
        };
        if let Err(text) = result {
            return Err(tool.complain(&text));
        }
    }
    if !operands.is_empty() {
        return Err(tool.usage("reopen"));
    }
    mode.read_only = writable.map_or(mode.read_only, |writable| !writable);
    if mode.format.is_none() {
        mode.format = engine.info().map(|info| info.format);
    }
    if mode.snapshot {
        // the overlay would be lost with everything in it
        return Err(tool.complain("an image opened with a temporary overlay cannot be reopened"));
    }
    tool.close()?;
    open_image(tool, &path, mode, true)
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
    if tool.engine.is_some() {
        // what was started has reached the host, as it has when QEMU's threads run on for a moment
        let _ = tool.with(|engine| engine.turn());
    }
    std::process::abort()
}

/// `help [command]`
pub fn help(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let Some(name) = words.get(1) else {
        let all: String = COMMANDS.iter().map(|command| command.usage(command.name)).collect();
        tool.say(&all);
        tool.say("\nUse 'help commandname' for extended help.\n");
        return Ok(());
    };
    match commands::find(name) {
        Some(command) => {
            tool.say(&command.usage(name));
            Ok(())
        }
        None => Err(tool.refuse(&format!("command {name} not found"))),
    }
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
    tool.refuse(&format!("Could not {what}: {}", strerror(libc::ENOTSUP)))
}
