//! What is to be written, before any of it is: windows of the file as they shall be, in a file of their own.
//!
//! Knows: bytes and where they go. Must never know: the text.
//!
//! Invariants:
//! * the image is only read until `carry_out`;
//! * memory is two windows, and an entry for each window that changes.

use super::error::{RestoreError, Restored};
use crate::host::Host;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a window.
const WINDOW: u64 = 64 << 10;
/// Bytes that are the same between two that differ are written with them, if they are no more than this.
const GAP: usize = 64;

/// See the module.
pub(super) struct Plan {
    host: Host,
    /// Windows as they shall be, one behind the other, once there is one.
    spool: Option<File>,
    /// Which of the spool's windows is which of the file's.
    windows: BTreeMap<u64, u64>,
    /// The window that is being changed.
    open: Option<u64>,
    bytes: Vec<u8>,
    changed: bool,
}

impl Plan {
    pub(super) fn new(host: Host) -> Plan {
        Plan { host, spool: None, windows: BTreeMap::new(), open: None, bytes: Vec::new(), changed: false }
    }

    pub(super) fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    /// So many bytes from `at` on shall be what `fill` makes of them: it is given their place within the
    /// range, and them, as often as there are windows.
    pub(super) fn change(
        &mut self,
        at: u64,
        len: u64,
        mut fill: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), RestoreError> {
        let mut done = 0;
        while done < len {
            let window = (at + done) / WINDOW;
            self.enter(window)?;
            let from = (at + done - window * WINDOW) as usize;
            let now = (len - done).min(WINDOW - from as u64);
            let bytes = &mut self.bytes[from..from + now as usize];
            let before = bytes.to_vec();
            fill(done, bytes);
            self.changed |= *bytes != before[..];
            done += now;
        }
        Ok(())
    }

    fn enter(&mut self, window: u64) -> Result<(), RestoreError> {
        if self.open == Some(window) {
            return Ok(());
        }
        self.leave()?;
        self.host.go_on()?;
        self.bytes = self.as_it_shall_be(window)?;
        self.open = Some(window);
        Ok(())
    }

    fn as_it_is(&mut self, window: u64) -> Result<Vec<u8>, RestoreError> {
        let mut bytes = self.host.read(window * WINDOW, WINDOW as usize)?;
        bytes.resize(WINDOW as usize, 0);
        Ok(bytes)
    }

    fn as_it_shall_be(&mut self, window: u64) -> Result<Vec<u8>, RestoreError> {
        match (self.windows.get(&window), &self.spool) {
            (Some(slot), Some(spool)) => {
                let mut bytes = vec![0; WINDOW as usize];
                spool.read_exact_at(&mut bytes, slot * WINDOW).map_err(RestoreError::Spool)?;
                Ok(bytes)
            }
            _ => self.as_it_is(window),
        }
    }

    /// Puts the window that was changed aside.
    fn leave(&mut self) -> Result<(), RestoreError> {
        let Some(window) = self.open.take() else { return Ok(()) };
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let spool = match self.spool.take() {
            Some(spool) => spool,
            None => tempfile::tempfile().map_err(RestoreError::Spool)?,
        };
        let next = self.windows.len() as u64;
        let slot = *self.windows.entry(window).or_insert(next);
        spool.write_all_at(&self.bytes, slot * WINDOW).map_err(RestoreError::Spool)?;
        self.spool = Some(spool);
        Ok(())
    }

    /// The file's first bytes as they are, and as they shall be.
    pub(super) fn first_bytes(&mut self) -> Result<(Vec<u8>, Vec<u8>), RestoreError> {
        self.leave()?;
        // a header may be 2 MiB long
        let mut both = (Vec::new(), Vec::new());
        for window in 0..(2 << 20) / WINDOW {
            both.0.extend(self.as_it_is(window)?);
            both.1.extend(self.as_it_shall_be(window)?);
        }
        Ok(both)
    }

    /// Writes all that differs; the first window last.
    pub(super) fn carry_out(mut self, dry: bool, told: fn(u64, u64)) -> Result<Restored, RestoreError> {
        self.leave()?;
        self.host.go_on()?;
        // from here on it goes to its end
        self.host.stop = || false;
        let mut done = Restored::default();
        let windows: Vec<u64> = self.windows.keys().copied().collect();
        let first = windows.first() == Some(&0);
        for window in windows.iter().skip(usize::from(first)) {
            self.write(*window, dry, told, &mut done)?;
        }
        if first {
            if !dry && done.places > 0 {
                self.host.sync()?;
            }
            self.write(0, dry, told, &mut done)?;
        }
        if !dry && done.places > 0 {
            self.host.sync()?;
        }
        Ok(done)
    }

    fn write(
        &mut self,
        window: u64,
        dry: bool,
        told: fn(u64, u64),
        done: &mut Restored,
    ) -> Result<(), RestoreError> {
        let (old, new) = (self.as_it_is(window)?, self.as_it_shall_be(window)?);
        for (from, to) in differences(&old, &new) {
            let at = window * WINDOW + from as u64;
            if !dry {
                self.host.write(at, &new[from..to])?;
            }
            done.bytes += (from..to).filter(|n| old[*n] != new[*n]).count() as u64;
            done.places += 1;
            told(at, (to - from) as u64);
        }
        Ok(())
    }
}

/// Ranges in which two windows differ.
fn differences(old: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for at in (0..old.len()).filter(|at| old[*at] != new[*at]) {
        match ranges.last_mut() {
            Some((_, end)) if at - *end <= GAP => *end = at + 1,
            _ => ranges.push((at, at + 1)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_differ() {
        let old = vec![0; 1000];
        let mut new = old.clone();
        assert_eq!(differences(&old, &new), []);
        for at in [0, 10, 11, 200, 999] {
            new[at] = 1;
        }
        assert_eq!(differences(&old, &new), [(0, 12), (200, 201), (999, 1000)]);
    }
}
