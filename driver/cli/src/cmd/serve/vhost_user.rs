//! `quod serve vhost-user`: an image as a disk of a virtual machine.
//!
//! Knows: options, addresses as people and systemd give them. Must never know: the protocol, the loop.

use crate::cmd::sandbox::Needs;
use crate::cmd::serving::{Managing, Opening, ended_by_signal, not_listening};
use crate::interrupt;
use crate::out::{fail, flush, has_failed};
use crate::words::failure::{could_not_open, warn_of_change};
use clap::value_parser;
use listenfd::ListenFd;
use quod::Config;
use quod_vhost::{Address, Control, Device, DeviceOptions, Listener, VhostError};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serve an image to a virtual machine, as a vhost-user-blk device
#[derive(clap::Args)]
pub struct Args {
    /// Listen at this UNIX socket
    #[arg(short = 'k', long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    opening: Opening,
    /// Queues that the guest may use; QEMU wants as many as it has processors (1 to 256)
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u16).range(1..=256))]
    num_queues: u16,
    /// Lock the guest's memory and register it with the ring; never with a balloon, free page reporting or
    /// virtio-mem: the guest would lose data
    #[arg(long)]
    register_memory: bool,
    #[command(flatten)]
    managing: Managing,
    /// The image
    image: PathBuf,
}

/// Requests at once, and as deep a queue of the driver's.
const REQUESTS: u32 = 512;

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match prepare(&args) {
        Ok((listener, control, options)) => match serve(listener, control, &args, options) {
            Ok(code) => code,
            Err(VhostError::Open(error)) => could_not_open(&args.image, &error),
            Err(error) => fail(format_args!("{}: {error}", args.image.display())),
        },
        Err(code) => code,
    }
}

fn prepare(args: &Args) -> Result<(Listener, Option<Control>, DeviceOptions), ExitCode> {
    args.managing.log()?;
    let options = DeviceOptions::new(args.opening.options()?);
    let config = args.managing.config(Config::default().requests(REQUESTS).queue_depth(REQUESTS));
    let options = options.config(config).queues(args.num_queues).register_memory(args.register_memory);
    Ok((listener(args)?, args.managing.control()?, options))
}

fn listener(args: &Args) -> Result<Listener, ExitCode> {
    let Some(path) = &args.socket else {
        return match ListenFd::from_env().take_unix_listener(0) {
            Ok(Some(listener)) => Listener::given_unix(listener).map_err(fail),
            _ => Err(fail("nowhere to listen: --socket PATH, or a UNIX socket from systemd")),
        };
    };
    let address = Address::Unix(path.clone());
    let listeners = Listener::at(&address).map_err(|error| fail(not_listening(&address, &error)))?;
    // one, of a UNIX socket
    listeners.into_iter().next().ok_or(ExitCode::FAILURE)
}

fn serve(
    listener: Listener,
    control: Option<Control>,
    args: &Args,
    options: DeviceOptions,
) -> Result<ExitCode, VhostError> {
    let mut device = Device::new(listener, &args.image, options)?;
    if let Some(control) = control {
        device.use_control(control)?;
    }
    device.stop_when_readable(ended_by_signal().map_err(VhostError::Wait)?)?;
    warn_of_change(&args.image, Some(device.info()));
    let sockets = args.socket.iter().cloned().map(Address::Unix);
    let restricted = device.has_restricted_ring();
    let renew = || device.is_confined();
    if let Err(code) = args.managing.confine(Needs::VHOST_USER, sockets, restricted, renew) {
        return Ok(code);
    }
    if let Some(path) = &args.socket {
        sayln!("Serving at {}", path.display());
    }
    // whoever started the server waits for this line
    flush();
    if has_failed() {
        return Ok(ExitCode::FAILURE);
    }
    device.run()?;
    interrupt::forget();
    Ok(ExitCode::SUCCESS)
}
