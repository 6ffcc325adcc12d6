//! What a server gives up when its images are open: files (Landlock), system calls (seccomp).
//!
//! Knows: what a serving process still does. Must never know: who is served.
//!
//! Invariants: nothing is allowed by name that opens, connects, or starts another program; a call that is not
//! allowed fails with EPERM, and the server goes on: a C library that tries a new call first must not end a
//! guest's disk, and a call that fails has given nothing away.

#[cfg(test)]
mod tests;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What was not to be had, and why.
pub type Lacking = Vec<String>;

/// Calls that are allowed whatever their arguments are, by what they are for.
const CALLS: &[&[i64]] = &[
    // memory
    &[libc::SYS_brk, libc::SYS_madvise, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mremap],
    &[libc::SYS_munmap, libc::SYS_getrandom],
    // threads, signals, ends; clone has a rule of its own
    &[libc::SYS_exit, libc::SYS_exit_group, libc::SYS_futex, libc::SYS_getpid, libc::SYS_gettid],
    &[libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask],
    &[libc::SYS_rt_sigreturn, libc::SYS_sched_getaffinity, libc::SYS_sched_yield],
    &[libc::SYS_set_robust_list, libc::SYS_sigaltstack],
    // those that decompress are less important
    &[libc::SYS_getpriority, libc::SYS_setpriority],
    // time, where the kernel's page has none
    &[libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_gettimeofday],
    // waiting
    &[libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_eventfd2, libc::SYS_ppoll],
    // descriptors that are there
    &[libc::SYS_close, libc::SYS_fcntl, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_lseek],
    &[libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev, libc::SYS_statx],
    &[libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_newfstatat],
    // the image's file, by a worker
    &[libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_ftruncate],
    // the ring that is there
    &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register],
    // clients
    &[libc::SYS_accept4, libc::SYS_getpeername, libc::SYS_getsockname, libc::SYS_getsockopt],
    &[libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_sendto],
    &[libc::SYS_setsockopt, libc::SYS_shutdown],
    // the sockets' names go at the end
    &[libc::SYS_unlinkat],
    LEGACY,
];
/// Of older architectures: newer ones have the calls above alone.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] =
    &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_lstat, libc::SYS_stat, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];
/// What may be asked of a device: its size, and that nobody needs a range (BLKGETSIZE64, BLKDISCARD).
const IOCTLS: [u64; 2] = [0x8008_1272, 0x1277];
/// What one kind of server needs beside that.
#[derive(Clone, Copy)]
pub struct Needs {
    calls: &'static [i64],
    ioctls: &'static [u64],
}

impl Needs {
    /// Nothing: its clients are sockets.
    pub const NBD: Needs = Needs { calls: &[], ioctls: &[] };
    /// Memory that is shared with front ends (what is under way is written down there), and how many bytes a
    /// socket has; that it does not block (FIONREAD, FIONBIO).
    pub const VHOST_USER: Needs = Needs { calls: &[libc::SYS_memfd_create], ioctls: &[0x541b, 0x5421] };
    /// Nothing: the kernel's requests are read and written, and another process unmounts.
    pub const MOUNT: Needs = Needs { calls: &[], ioctls: &[] };
}

/// The name of a thread.
const PR_SET_NAME: u64 = libc::PR_SET_NAME as u64;

/// Gives up what is not needed any more; `renew` replaces threads that are not confined. Sockets in these
/// folders may be removed at the end.
pub fn confine<E>(
    needs: Needs,
    folders: &[PathBuf],
    renew: impl FnOnce() -> Result<(), E>,
) -> Result<Lacking, E> {
    let mut lacking = Vec::new();
    lacking.extend(give_up_files(folders).err());
    // it holds for this thread, and for those that it starts from now on
    renew()?;
    lacking.extend(give_up_calls(needs).err());
    Ok(lacking)
}

/// No file is opened, made, or removed but in these folders, no TCP socket bound or connected, no abstract
/// socket of others connected to, nobody else signalled.
fn give_up_files(folders: &[PathBuf]) -> Result<(), String> {
    let all = ABI::V6;
    let made = || {
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(all))?
            .handle_access(AccessNet::from_all(all))?
            .scope(Scope::from_all(all))?;
        let mut ruleset = ruleset.create()?;
        for folder in folders {
            if let Ok(folder) = PathFd::new(folder) {
                ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
            }
        }
        ruleset.restrict_self()
    };
    match made().map(|status| status.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => Ok(()),
        Ok(RulesetStatus::PartiallyEnforced) => {
            Err("this kernel's Landlock knows files alone, or not all of that".into())
        }
        Ok(RulesetStatus::NotEnforced) => Err("this kernel has no Landlock, which confines files".into()),
        Err(error) => Err(format!("Landlock, which confines files: {error}")),
    }
}

/// No call but those that serving takes.
fn give_up_calls(needs: Needs) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("seccomp, which confines system calls: {error}");
    for filter in filters(needs).map_err(|error| failed(&error))? {
        seccompiler::apply_filter_all_threads(&filter).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// One filter says that there is no clone3, whose flags nobody can see, so that the C library takes clone;
/// the other has what is allowed. The stricter answer counts.
fn filters(needs: Needs) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    let rule = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().copied().chain([needs.calls]).flatten().map(|call| (*call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    allowed.insert(libc::SYS_clone3, Vec::new());
    allowed.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    allowed.insert(libc::SYS_prctl, vec![rule(0, SeccompCmpOp::Eq, PR_SET_NAME)?]);
    // a second signal ends the process
    allowed.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, std::process::id().into())?]);
    let mut commands = Vec::new();
    for command in IOCTLS.iter().chain(needs.ioctls) {
        commands.push(rule(1, SeccompCmpOp::Eq, *command)?);
    }
    allowed.insert(libc::SYS_ioctl, commands);
    let refuse = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompFilter::new(absent, SeccompAction::Allow, refuse(libc::ENOSYS), arch)?;
    let allowed = SeccompFilter::new(allowed, refuse(libc::EPERM), SeccompAction::Allow, arch)?;
    // installing the last filter takes calls that it does not allow
    Ok([absent.try_into()?, allowed.try_into()?])
}
