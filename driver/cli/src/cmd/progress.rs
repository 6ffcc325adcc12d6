//! `-p`: how far a command is, as qemu-img shows it.
//!
//! Knows: percent. Must never know: of what.

use crate::out;

/// A line that is written over as the work goes on.
pub struct Progress {
    shown: bool,
    /// Percent between two lines at least.
    step: f64,
    done: f64,
    last: f64,
}

impl Progress {
    /// Begins at 0. Nothing is shown unless somebody wants it.
    pub fn begin(shown: bool, step: f64) -> Progress {
        Progress { shown, step, done: 0.0, last: 0.0 }
    }

    /// So much more of the whole is done.
    pub fn advance(&mut self, part: u64, whole: u64) {
        self.done = (self.done + part as f64 / whole.max(1) as f64 * 100.0).min(100.0);
        if self.done > self.last + self.step || self.done == 0.0 || self.done == 100.0 {
            self.last = self.done;
            self.show();
        }
    }

    /// The job has ended, all of it or not.
    pub fn finish(mut self, all: bool) {
        if all {
            self.done = 100.0;
            self.show();
        }
        self.end();
    }

    /// The command says other things from now on.
    pub fn end(self) {
        if self.shown {
            sayln!();
        }
    }

    fn show(&self) {
        if self.shown {
            say!("    ({:.2}/100%)\r", self.done);
            out::flush();
        }
    }
}
