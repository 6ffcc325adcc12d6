//! Where a trace comes from.
//!
//! Knows: files, pipes, text in memory. Must never know: what is in a line.
//!
//! Invariant: a trace can be read as often as anybody likes. What can be read once only is copied to a file
//! that has no name, and checked line by line meanwhile: an endless pipe ends at its first bad line, or at
//! [`COPY_MAX`].

use super::iolog::{Reader, Waits};
use super::record::TraceError;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The trace that ships with the project: an ext4 guest runs mkfs, unpacks files, syncs small ones, copies,
/// deletes, trims, and loads a database of 8 KiB pages. 8540 operations on a disk of 1 GiB.
pub const SHIPPED: &[u8] = include_bytes!("../../traces/ext4-guest.iolog");

/// The name of [`SHIPPED`] in reports.
pub const SHIPPED_NAME: &str = "ext4-guest (shipped)";

/// Bytes of a trace from a pipe, at most.
pub const COPY_MAX: u64 = 1 << 30;

/// Where a trace comes from. It is read twice: once for its extent, once to play it.
#[derive(Clone, Debug)]
pub enum Source {
    /// [`SHIPPED`].
    Shipped,
    /// A regular file.
    File(PathBuf),
    /// Text in memory.
    Text(Vec<u8>),
    /// What came from a pipe.
    Copy(Arc<File>, String),
}

impl Source {
    /// What `path` leads to: a file, a pipe, or stdin if it is `-`.
    pub fn of_path(path: &Path) -> Result<Source, TraceError> {
        if path.as_os_str() == "-" {
            return Source::copy_of(io::stdin().lock(), "stdin".to_owned());
        }
        if std::fs::metadata(path)?.is_file() {
            return Ok(Source::File(path.to_path_buf()));
        }
        Source::copy_of(File::open(path)?, path.display().to_string())
    }

    /// Reads all of something that can be read once.
    pub fn copy_of(input: impl Read, name: String) -> Result<Source, TraceError> {
        let file = tempfile::tempfile()?;
        let tee = Tee { input, output: BufWriter::new(&file), left: COPY_MAX };
        let mut reader = Reader::new(BufReader::new(tee))?;
        while reader.next_record()?.is_some() {}
        reader.into_input().into_inner().output.flush()?;
        Ok(Source::Copy(Arc::new(file), name))
    }

    /// A reader at the beginning.
    pub fn open(&self, waits: Waits) -> Result<Reader<Box<dyn BufRead + '_>>, TraceError> {
        let input: Box<dyn BufRead + '_> = match self {
            Source::Shipped => Box::new(SHIPPED),
            Source::File(path) => Box::new(BufReader::new(File::open(path)?)),
            Source::Text(text) => Box::new(text.as_slice()),
            Source::Copy(file, _) => Box::new(BufReader::new(Again { file, offset: 0 })),
        };
        Reader::with_waits(input, waits)
    }

    /// Its name in reports.
    pub fn name(&self) -> String {
        match self {
            Source::Shipped => SHIPPED_NAME.to_owned(),
            Source::File(path) => Path::display(path).to_string(),
            Source::Text(_) => "text".to_owned(),
            Source::Copy(_, name) => name.clone(),
        }
    }
}

/// Keeps what is read.
struct Tee<R, W> {
    input: R,
    output: W,
    left: u64,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(bytes)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!("longer than {COPY_MAX} bytes; a trace in a file has no limit"))
        })?;
        self.output.write_all(&bytes[..count])?;
        Ok(count)
    }
}

/// Reads a file from its start, wherever others read it.
struct Again<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Again<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &Source) -> u64 {
        let mut reader = source.open(Waits::default()).unwrap();
        std::iter::from_fn(|| reader.next_record().unwrap()).count() as u64
    }

    #[test]
    fn what_can_be_read_once_is_played_twice() {
        let text = format!("fio version 3 iolog\n{}", "0 d read 0 512\n".repeat(2000));
        let source = Source::copy_of(text.as_bytes(), "pipe".into()).unwrap();
        assert_eq!((lines(&source), lines(&source), source.name()), (2000, 2000, "pipe".to_owned()));
    }

    #[test]
    fn endless_input_ends() {
        for byte in [0, b'7'] {
            let error = Source::copy_of(io::repeat(byte), String::new()).unwrap_err();
            assert!(error.to_string().contains("trace line 1: longer than 4096 bytes"), "{error}");
        }
        let head = b"fio version 2 iolog\n".chain(io::repeat(b'x'));
        let error = Source::copy_of(head, String::new()).unwrap_err();
        assert!(error.to_string().contains("trace line 2"), "{error}");
    }

    #[test]
    fn a_copy_has_a_limit() {
        let mut tee = Tee { input: io::repeat(b'\n'), output: io::sink(), left: 10 };
        assert_eq!(tee.read(&mut [0; 8]).unwrap(), 8);
        assert!(tee.read(&mut [0; 8]).unwrap_err().to_string().contains("longer than"));
    }
}
