//! Files that a command writes when it ends: opened before it begins, so that a name that cannot be written
//! to is told at once and not after the run. `-` is stdout.
//!
//! Knows: files. Must never know: what is in them.
//! Invariant: what was in the file stays there until there is something to replace it with.

use crate::out;
use crate::words::errno::words;
use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::path::{Path, PathBuf};

/// A file that will be written.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    /// None: stdout.
    file: Option<File>,
    /// It was not there before, and has nothing yet.
    fresh: bool,
}

impl Output {
    /// Opens it, and leaves it as it is. If it is stdout, what is said to people goes to stderr from now on.
    pub fn open(path: &Path) -> Result<Output, String> {
        if path.as_os_str() == "-" {
            out::talk_on_stderr();
            return Ok(Output { path: path.to_path_buf(), file: None, fresh: false });
        }
        let fresh = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| cannot(path, &error))?;
        Ok(Output { path: path.to_path_buf(), file: Some(file), fresh })
    }

    /// Replaces what it holds.
    pub fn write(mut self, text: &str) -> Result<(), String> {
        self.fresh = false;
        self.replace(text).map_err(|error| cannot(&self.path, &error))
    }

    fn replace(&mut self, text: &str) -> Result<(), Error> {
        let Some(file) = &mut self.file else {
            out::write(text.as_bytes());
            return Ok(());
        };
        // a pipe or a terminal has nothing to replace
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        file.write_all(text.as_bytes())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.fresh {
            // an empty file says nothing; one that cannot be removed does no harm
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn cannot(path: &Path, error: &Error) -> String {
    format!("cannot write '{}': {}", path.display(), words(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_until_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        drop(Output::open(&path).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "something longer").unwrap();
        drop(Output::open(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "something longer");
        Output::open(&path).unwrap().write("short").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
    }

    #[test]
    fn a_failure_names_the_file() {
        let error = Output::open(Path::new("/nowhere/report")).unwrap_err();
        assert_eq!(error, "cannot write '/nowhere/report': No such file or directory");
        let full = Output::open(Path::new("/dev/full")).unwrap().write("text").unwrap_err();
        assert_eq!(full, "cannot write '/dev/full': No space left on device");
    }
}
