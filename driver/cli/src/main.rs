//! The `quod` command: one file a subcommand (`cmd`), each a thin caller of the libraries, with QEMU's words
//! (`words`); and qemu-io's shell (`io`). Beside this file: the process's streams, files and signals.
//!
//! Knows: names of subcommands. Must never know: images, offsets, requests.
//! Called by the name `qemu-io`, it behaves as `quod io`.

#[macro_use]
mod out;

mod cmd;
mod interrupt;
mod io;
mod output;
mod words;

use clap::{Parser, Subcommand};
use cmd::{
    bench, check, compare, convert, create, info, map, measure, mount, replay, resize, serve, snapshot,
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
    Convert(convert::Args),
    Resize(resize::Args),
    Measure(measure::Args),
    Snapshot(snapshot::Args),
    /// Read and write an image by commands, as qemu-io does ('quod io -h' tells more)
    #[command(disable_help_flag = true)]
    Io {
        /// Options of qemu-io, and an image
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    Mount(mount::Args),
    Serve(serve::Args),
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
    out::set_program("quod");
    if words.first().is_some_and(|word| word == "io") {
        return io::run(&words[1..]);
    }
    match Cli::try_parse() {
        Ok(cli) => run(cli.command),
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

fn run(command: Command) -> ExitCode {
    match command {
        Command::Create(args) => create::run(args),
        Command::Measure(args) => measure::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Info(args) => info::run(args),
        Command::Check(args) => check::run(args),
        Command::Map(args) => map::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Resize(args) => resize::run(args),
        Command::Io { args } => io::run(&args),
        Command::Mount(args) => mount::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Replay(args) => replay::run(args),
    }
}
