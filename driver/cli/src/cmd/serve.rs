//! `quod serve`: images for others, a file a protocol.
//!
//! Knows: names of protocols. Must never know: how one is spoken.

mod nbd;
mod vhost_user;

use clap::Subcommand;
use std::process::ExitCode;

/// Serve images to others until a signal ends it (SIGTERM, SIGINT)
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    protocol: Protocol,
}

#[derive(Subcommand)]
enum Protocol {
    Nbd(nbd::Args),
    VhostUser(vhost_user::Args),
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match args.protocol {
        Protocol::Nbd(args) => nbd::run(args),
        Protocol::VhostUser(args) => vhost_user::run(args),
    }
}
