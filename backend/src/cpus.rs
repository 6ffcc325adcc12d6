//! Processors by number.
//!
//! Knows: the kernel's set of them. Must never know: who runs where, and why.

use std::io;

/// The kernel's set has so many.
const MOST: usize = libc::CPU_SETSIZE as usize;

/// A set of processors, numbered as in `/proc/cpuinfo`: 0 to 1,023.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuSet {
    words: [u64; MOST / 64],
}

impl CpuSet {
    /// With this one, too. None: there are no numbers from 1,024 on.
    pub fn with(mut self, cpu: usize) -> Option<CpuSet> {
        *self.words.get_mut(cpu / 64)? |= 1 << (cpu % 64);
        Some(self)
    }

    /// It is one of them.
    pub fn has(&self, cpu: usize) -> bool {
        self.words.get(cpu / 64).is_some_and(|word| word & 1 << (cpu % 64) != 0)
    }

    pub(crate) fn to_kernel(self) -> libc::cpu_set_t {
        // SAFETY: all zero bytes are the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for cpu in (0..MOST).filter(|cpu| self.has(*cpu)) {
            // SAFETY: below the set's size.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        set
    }

    /// From now on the calling thread runs on these.
    pub(crate) fn confine(self) -> io::Result<()> {
        let set = self.to_kernel();
        // SAFETY: a set of the length that is told, only read; 0 is the calling thread.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        let set = CpuSet::default().with(0).and_then(|set| set.with(1023)).unwrap();
        assert_eq!((0..2000).filter(|cpu| set.has(*cpu)).collect::<Vec<_>>(), [0, 1023]);
        assert_eq!(set.with(1024), None);
        let kernel = set.to_kernel();
        // SAFETY: below the set's size.
        let has = |cpu| unsafe { libc::CPU_ISSET(cpu, &kernel) };
        assert_eq!((0..MOST).filter(|cpu| has(*cpu)).collect::<Vec<_>>(), [0, 1023]);
    }

    #[test]
    fn no_processor_at_all_is_refused() {
        assert_eq!(CpuSet::default().confine().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
