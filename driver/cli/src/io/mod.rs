//! `quod io`: qemu-io's commands, options and texts, on the quod driver. QEMU's own tests run with it.
//!
//! Knows: the tool's options. Must never know: what a command does.

mod aio;
mod arguments;
mod bytes;
mod commands;
mod manage;
mod misc;
mod prompt;
mod read;
mod report;
mod shell;
mod target;
mod tool;
mod write;

use crate::interrupt;
use crate::out::{fail, program};
use crate::words::getopt::{Found, Spec};
use crate::words::nodes::is_description;
use crate::words::open::{Mode, image_options};
use crate::words::{format, getopt};
use std::path::Path;
use std::process::ExitCode;
use tool::Tool;

const SPEC: Spec = Spec {
    letters: "hVc:d:f:rsnCmki:t:T:U",
    names: &[
        ("help", false, 'h'),
        ("version", false, 'V'),
        ("cmd", true, 'c'),
        ("format", true, 'f'),
        ("read-only", false, 'r'),
        ("snapshot", false, 's'),
        ("nocache", false, 'n'),
        ("copy-on-read", false, 'C'),
        ("misalign", false, 'm'),
        ("native-aio", false, 'k'),
        ("aio", true, 'i'),
        ("discard", true, 'd'),
        ("cache", true, 't'),
        ("trace", true, 'T'),
        ("force-share", false, 'U'),
        ("object", true, 'O'),
        ("image-opts", false, 'I'),
    ],
};

const USAGE: &str = "[OPTIONS]... [-c STRING]... [file]
Reads and writes an image by commands, with the options and texts of qemu-io

  --image-opts         the image is an option string (driver=qed,file.filename=...)
  -c, --cmd STRING     run a command; without any, commands come from stdin
  -f, --format FMT     format of the image: raw, qed or qcow2 (default: probe)
  -r, --read-only      no writes
  -s, --snapshot       writes go to a temporary overlay
  -n, --nocache        past the host's cache, as -t none
  -C, --copy-on-read   what is read from a backing file is written to the image
  -m, --misalign       accepted; the driver aligns what it must
  -k, --native-aio     as -i native
  -i, --aio=MODE       threads, native or io_uring; native means io_uring here
  -t, --cache=MODE     none, writeback, writethrough, directsync or unsafe
  -d, --discard=MODE   unmap (default) or ignore
  -T, --trace ...      accepted and ignored
  -U, --force-share    no locks
  -h, --help           this text
  -V, --version        the version

'-c help' lists the commands.
";

/// What the command line asks for.
#[derive(Default)]
struct Asked {
    mode: Mode,
    format: Option<String>,
    option_string: bool,
    commands: Vec<String>,
    /// Not to run at all, but to end with this.
    end: Option<ExitCode>,
}

/// Runs the tool with these words (without its name).
pub fn run(words: &[String]) -> ExitCode {
    let (found, operands) = getopt::sort(words, &SPEC);
    let asked = match read_options(found) {
        Ok(asked) => asked,
        Err(text) => return fail(text),
    };
    if let Some(code) = asked.end {
        return code;
    }
    if operands.len() > 1 {
        return usage(ExitCode::FAILURE);
    }
    if asked.format.is_some() && asked.option_string {
        return fail("--image-opts and -f are mutually exclusive");
    }
    interrupt::watch();
    let mut tool = Tool::new();
    if let Some(image) = operands.first()
        && open_operand(&mut tool, image, &asked).is_err()
    {
        return ExitCode::FAILURE;
    }
    let failed = run_commands(&mut tool, &asked.commands);
    let is_open = tool.target.is_some();
    let closed = tool.close();
    tool.show();
    if interrupt::asked() && is_open && closed.is_ok() {
        complain!("{}: interrupted; the image is closed cleanly", program());
    }
    if failed || closed.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn open_operand(tool: &mut Tool, image: &str, asked: &Asked) -> Result<(), tool::Failed> {
    let mut mode = asked.mode.clone();
    if !asked.option_string && is_description(Path::new(image)) {
        return match image_options("", Some(Path::new(image)), &mut mode) {
            Ok(path) => manage::open_image(tool, &path, mode, true),
            Err(text) => Err(tool.complain(&format!("can't open device {image}: {text}"))),
        };
    }
    if !asked.option_string {
        mode.format = match asked.format.as_deref().map(format::parse).transpose() {
            Ok(format) => format,
            Err(text) => return Err(tool.complain(&format!("can't open device {image}: {text}"))),
        };
        return manage::open_image(tool, Path::new(image), mode, true);
    }
    match image_options(image, None, &mut mode) {
        Ok(path) => manage::open_image(tool, &path, mode, false),
        Err(text) => Err(tool.complain(&format!("can't open: {text}"))),
    }
}

fn run_commands(tool: &mut Tool, commands: &[String]) -> bool {
    if commands.is_empty() {
        return prompt::run(tool);
    }
    let mut any_failed = false;
    for command in commands {
        any_failed |= shell::line(tool, command).is_err();
        if tool.leaving || interrupt::asked() {
            break;
        }
    }
    any_failed
}

fn read_options(found: Vec<Found>) -> Result<Asked, String> {
    let mut asked = Asked::default();
    for item in found {
        match item {
            Found::Option('h', _) => asked.end = Some(usage(ExitCode::SUCCESS)),
            Found::Option('V', _) => {
                sayln!("{} version {} (quod)", program(), env!("CARGO_PKG_VERSION"));
                asked.end = Some(ExitCode::SUCCESS);
            }
            Found::Option('c', value) => asked.commands.push(value),
            Found::Option('f', value) => asked.format = Some(value),
            Found::Option('r', _) => asked.mode.read_only = true,
            Found::Option('s', _) => asked.mode.snapshot = true,
            Found::Option('n', _) => asked.mode.set_cache("none")?,
            Found::Option('C', _) => asked.mode.copy_on_read = true,
            Found::Option('k', _) => asked.mode.set_engine("native")?,
            Found::Option('i', value) => asked.mode.set_engine(&value)?,
            Found::Option('d', value) => asked.mode.set_discard(&value)?,
            Found::Option('t', value) => asked.mode.set_cache(&value)?,
            Found::Option('U', _) => asked.mode.force_share = true,
            Found::Option('I', _) => asked.option_string = true,
            Found::Option('O', value) => return Err(format!("--object {value} is not supported")),
            // -m and -T: nothing to do
            Found::Option(..) => {}
            Found::Bad(text) => {
                fail(text);
                asked.end = Some(usage(ExitCode::FAILURE));
            }
        }
        if asked.end.is_some() {
            break;
        }
    }
    Ok(asked)
}

fn usage(code: ExitCode) -> ExitCode {
    let name = if program() == "quod" { "quod io" } else { program() };
    say!("Usage: {name} {USAGE}");
    code
}
