//! Processor time of this process, its worker threads included.
//!
//! Knows: one system call. Must never know: what the time was spent on.

use std::time::Duration;

/// User and system time so far; zero where the system does not tell.
pub fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one rusage to memory that has its size and alignment.
    let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    if status != 0 {
        return Duration::ZERO;
    }
    // SAFETY: an rusage is integers only; it was zeroed, and the call filled it.
    let usage = unsafe { usage.assume_init() };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_does_not_run_backwards() {
        let before = super::cpu_time();
        let sum = (0..1_000_000u64).fold(0u64, |sum, i| sum.wrapping_mul(31).wrapping_add(i));
        assert!(std::hint::black_box(sum) > 0);
        assert!(super::cpu_time() >= before);
    }
}
