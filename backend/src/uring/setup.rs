//! Building a ring: which mode, which opcodes.
//!
//! Knows: kernel versions' differences. Must never know: operations in flight.
//! Invariant: a ring that comes out of here can do all required opcodes; what is optional is written down.

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, Submitter, opcode, squeue};
use std::io;

/// Entries that no kernel refuses.
const MAX_DEPTH: u32 = 32768;

/// Opcodes that have another way where the kernel lacks them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Supported {
    pub(super) open: bool,
    pub(super) close: bool,
    pub(super) statx: bool,
    pub(super) fallocate: bool,
    pub(super) ftruncate: bool,
    pub(super) files_update: bool,
    /// Commands of files: the kernel may have none for block devices still.
    pub(super) commands: bool,
    /// Scatter lists in registered memory (Linux 6.15).
    pub(super) vectored_fixed: bool,
}

impl Supported {
    /// What is left when a ring only moves bytes: workers open, close, examine and command.
    pub(super) fn restricted(self) -> Supported {
        Supported { open: false, close: false, statx: false, commands: false, ..self }
    }
}

/// A ring and what it can do.
pub(super) struct Ring {
    pub(super) ring: IoUring,
    pub(super) supported: Supported,
    /// Built disabled: the thread that enables it owns it.
    pub(super) disabled: bool,
    /// TASKRUN_FLAG: without that flag set there is nothing to collect.
    pub(super) tells_taskrun: bool,
}

const REQUIRED: [(u8, &str); 7] = [
    (opcode::Read::CODE, "IORING_OP_READ"),
    (opcode::Write::CODE, "IORING_OP_WRITE"),
    (opcode::Readv::CODE, "IORING_OP_READV"),
    (opcode::Writev::CODE, "IORING_OP_WRITEV"),
    (opcode::ReadFixed::CODE, "IORING_OP_READ_FIXED"),
    (opcode::WriteFixed::CODE, "IORING_OP_WRITE_FIXED"),
    (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
];

/// The first required opcode that `has` denies, as an error.
fn require(has: impl Fn(u8) -> bool) -> io::Result<()> {
    match REQUIRED.iter().find(|(code, _)| !has(*code)) {
        None => Ok(()),
        Some((_, name)) => {
            let message = format!("this kernel's io_uring lacks {name} (Linux 5.6 has it)");
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        }
    }
}

fn probe(ring: &IoUring) -> io::Result<Supported> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| {
        let message =
            format!("this kernel's io_uring lacks IORING_REGISTER_PROBE (Linux 5.6 has it): {error}");
        io::Error::new(io::ErrorKind::Unsupported, message)
    })?;
    require(|code| probe.is_supported(code))?;
    Ok(Supported {
        open: probe.is_supported(opcode::OpenAt::CODE),
        close: probe.is_supported(opcode::Close::CODE),
        statx: probe.is_supported(opcode::Statx::CODE),
        fallocate: probe.is_supported(opcode::Fallocate::CODE),
        ftruncate: probe.is_supported(opcode::Ftruncate::CODE),
        files_update: probe.is_supported(opcode::FilesUpdate::CODE),
        commands: probe.is_supported(opcode::UringCmd16::CODE),
        vectored_fixed: probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE),
    })
}

/// What may be asked of a restricted ring: bytes of files, and the table of files.
const ALLOWED: [u8; 12] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::ReadvFixed::CODE,
    opcode::WritevFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::Ftruncate::CODE,
    opcode::FilesUpdate::CODE,
];
/// And of io_uring_register(2): IORING_UNREGISTER_FILES, IORING_REGISTER_BUFFERS2,
/// IORING_REGISTER_BUFFERS_UPDATE, IORING_REGISTER_IOWQ_AFF.
const ALLOWED_REGISTER: [u8; 4] = [3, 15, 16, 17];

/// Leaves a ring that is not enabled yet with [`ALLOWED`], for ever.
pub(super) fn restrict(submitter: &Submitter<'_>) -> io::Result<()> {
    let flags = squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC;
    let mut all = vec![Restriction::sqe_flags_allowed(flags.bits())];
    all.extend(ALLOWED.map(Restriction::sqe_op));
    all.extend(ALLOWED_REGISTER.map(Restriction::register_op));
    submitter.register_restrictions(&mut all)
}

/// How much a ring's completions cost; best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Completions are processed by our own enter, and by nothing else (Linux 6.1).
    Defer,
    /// At our next system call of any kind, without interrupting us (5.19).
    Cooperative,
    Plain,
}

pub(super) fn build(depth: u32) -> io::Result<Ring> {
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for mode in [Mode::Defer, Mode::Cooperative, Mode::Plain] {
        match build_mode(mode, depth) {
            // an unknown flag; anything else is a refusal that another mode would meet too
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            other => return other,
        }
    }
    Err(last)
}

pub(super) fn build_mode(mode: Mode, depth: u32) -> io::Result<Ring> {
    let mut builder = IoUring::builder();
    match mode {
        Mode::Defer => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_r_disabled();
            builder.setup_taskrun_flag().setup_submit_all();
        }
        Mode::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        Mode::Plain => {}
    }
    let ring = builder.build(depth.clamp(1, MAX_DEPTH))?;
    let supported = probe(&ring)?;
    Ok(Ring { ring, supported, disabled: mode == Mode::Defer, tells_taskrun: mode != Mode::Plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_opcode_is_named() {
        assert!(require(|_| true).is_ok());
        for (missing, name) in REQUIRED {
            let error = require(|code| code != missing).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn this_kernel_has_a_ring() {
        let ring = build(5).unwrap();
        assert!(ring.ring.params().sq_entries() >= 5);
        assert!(ring.ring.params().cq_entries() >= ring.ring.params().sq_entries());
    }
}
