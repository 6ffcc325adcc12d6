//! The `quod` command: one file a subcommand (`cmd`), each a thin caller of the libraries, with QEMU's words
//! (`words`); and qemu-io's shell (`io`). Beside this file: the process's streams, files and signals.
//!
//! Knows: names of subcommands. Must never know: images, offsets, requests.
//! Called by the name `qemu-io`, it behaves as `quod io`; by the name `qemu-img`, it says what that says of
//! itself and of words that it does not know.

#[macro_use]
mod out;

mod cmd;
mod interrupt;
mod io;
mod output;
mod words;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use cmd::{
    amend, bench, bitmap, check, commit, compare, control, convert, create, dd, dump, info, map, measure,
    mount, rebase, replay, resize, restore, serve, snapshot,
};
use std::path::Path;
use std::process::ExitCode;

/// Create, inspect, check, resize, exercise and replay disk images
#[derive(Parser)]
#[command(name = "quod", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Args),
    Info(info::Args),
    Check(check::Args),
    Map(map::Args),
    Compare(compare::Args),
    Commit(commit::Args),
    Convert(convert::Args),
    Rebase(rebase::Args),
    Dd(dd::Args),
    Amend(amend::Args),
    Resize(resize::Args),
    Measure(measure::Args),
    Snapshot(snapshot::Args),
    Bitmap(bitmap::Args),
    Dump(dump::Args),
    Restore(restore::Args),
    /// Read and write an image by commands, as qemu-io does ('quod io -h' tells more)
    #[command(disable_help_flag = true)]
    Io {
        /// Options of qemu-io, and an image
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    Mount(mount::Args),
    #[command(hide = true, name = mount::UNMOUNTER)]
    Unmounter(mount::UnmounterArgs),
    Serve(serve::Args),
    Control(control::Args),
    Bench(bench::Args),
    Replay(replay::Args),
}

fn main() -> ExitCode {
    interrupt::end(out::end(command()))
}

fn command() -> ExitCode {
    interrupt::survive_file_limits();
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_else(|| "quod".into());
    let called = Path::new(&called).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    if called == "qemu-io" {
        out::set_program("qemu-io");
        return io::run(&words);
    }
    let stands_in = called == "qemu-img";
    out::set_program(if stands_in { "qemu-img" } else { "quod" });
    if words.first().is_some_and(|word| word == "io") {
        return io::run(&words[1..]);
    }
    let parser = if stands_in { as_qemu_img() } else { Cli::command() };
    let parsed = parser.try_get_matches().and_then(|found| Cli::from_arg_matches(&found));
    match parsed {
        Ok(cli) => run(cli.command),
        Err(error) if stands_in && error.use_stderr() => not_understood(&words, &error),
        Err(error) => {
            let printed = error.print();
            if error.use_stderr() {
                return ExitCode::FAILURE;
            }
            out::keep(printed);
            ExitCode::SUCCESS
        }
    }
}

/// By the name of the program that it stands in for. Of its version only the first number and the form are
/// looked at by others; it is that of the release whose texts these are.
fn as_qemu_img() -> clap::Command {
    let version = concat!("version 10.0.2 (quod ", env!("CARGO_PKG_VERSION"), ")");
    Cli::command().name("qemu-img").bin_name("qemu-img").version(version)
}

/// What qemu-img says of words that it does not know.
fn not_understood(words: &[String], error: &clap::Error) -> ExitCode {
    let command = words.first().map_or("", String::as_str);
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    match error.kind() {
        _ if words.is_empty() => complain!("qemu-img: Not enough arguments"),
        ErrorKind::InvalidSubcommand => complain!("qemu-img: Command not found: {command}"),
        ErrorKind::UnknownArgument if unknown.starts_with("--") => {
            complain!("qemu-img {command}: unrecognized option '{unknown}'");
        }
        ErrorKind::UnknownArgument => {
            complain!("qemu-img {command}: invalid option -- '{}'", unknown.trim_start_matches('-'));
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            complain!("qemu-img: {}", first.strip_prefix("error: ").unwrap_or(first));
        }
    }
    match error.kind() {
        ErrorKind::UnknownArgument => complain!("Try 'qemu-img {command} --help' for more info"),
        _ => complain!("Try 'qemu-img --help' for more info"),
    }
    ExitCode::FAILURE
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Create(args) => create::run(args),
        Command::Measure(args) => measure::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Bitmap(args) => bitmap::run(args),
        Command::Dump(args) => dump::run(args),
        Command::Restore(args) => restore::run(args),
        Command::Info(args) => info::run(args),
        Command::Check(args) => check::run(args),
        Command::Map(args) => map::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Commit(args) => commit::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Rebase(args) => rebase::run(args),
        Command::Dd(args) => dd::run(args),
        Command::Amend(args) => amend::run(args),
        Command::Resize(args) => resize::run(args),
        Command::Io { args } => io::run(&args),
        Command::Mount(args) => mount::run(args),
        Command::Unmounter(args) => mount::run_unmounter(&args),
        Command::Serve(args) => serve::run(args),
        Command::Control(args) => control::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Replay(args) => replay::run(args),
    }
}
