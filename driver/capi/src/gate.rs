//! The open gates that C chooses from, and the one that it writes itself.
//!
//! Knows: the gates of `quod`, a function and what it is called with. Must never know: disks.
//! Invariant: a callback that answers nonsense has refused.

use crate::types::{QUOD_PATH_MAX, quod_allowed, quod_gate, quod_named, quod_open_options, quod_role};
use quod::{AllowAll, Allowed, Error, InDirectory, Named, OpenGate, OpenOptions, Role, SameDirectory};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

type Function = unsafe extern "C" fn(*mut c_void, *const quod_named, *mut quod_allowed) -> c_int;

/// A gate that C wrote.
struct Callback {
    function: Function,
    data: *mut c_void,
}

// SAFETY: `quod` asks a gate inside `turn` and `wait` only, which the door lets one thread call; C was told
// that it is that one.
unsafe impl Send for Callback {}

/// Copies a path with its NUL to the front of `to`.
fn put(path: &Path, to: &mut [c_char; QUOD_PATH_MAX]) -> Option<()> {
    let bytes = CString::new(path.as_os_str().as_bytes()).ok()?;
    let bytes = bytes.as_bytes_with_nul();
    let (front, _) = to.split_at_mut_checked(bytes.len())?;
    for (to, &from) in front.iter_mut().zip(bytes) {
        *to = from as c_char;
    }
    Some(())
}

/// The path up to its NUL, if there is one, and something before it.
fn take(from: &[c_char; QUOD_PATH_MAX]) -> Option<PathBuf> {
    let bytes: Vec<u8> = from.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    let whole = !bytes.is_empty() && bytes.len() < from.len();
    whole.then(|| PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// Is it an open descriptor?
pub(crate) fn is_open(fd: c_int) -> bool {
    // SAFETY: reads a flag, of any number.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

impl OpenGate for Callback {
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
        match self.give(named) {
            Some(Allowed::Path(path)) => Some(path),
            _ => None,
        }
    }

    fn give(&mut self, named: &Named<'_>) -> Option<Allowed> {
        let image = CString::new(named.image.as_os_str().as_bytes()).ok()?;
        let role = match named.role {
            Role::Backing => quod_role::Backing,
            Role::Data => quod_role::Data,
        };
        let (name, name_length) = (named.name.as_ptr(), named.name.len());
        let asked = quod_named { image: image.as_ptr(), name, name_length, role, reserved: 0 };
        let mut answer = quod_allowed { fd: -1, path: [0; QUOD_PATH_MAX] };
        put(&named.path()?, &mut answer.path)?;
        // SAFETY: C gave the function for this call; both structs live through it.
        if unsafe { (self.function)(self.data, &raw const asked, &raw mut answer) } != 1 {
            return None;
        }
        let path = take(&answer.path)?;
        if answer.fd < 0 {
            return Some(Allowed::Path(path));
        }
        // SAFETY: it is open, and C gave it away.
        is_open(answer.fd).then(|| Allowed::Fd { fd: unsafe { OwnedFd::from_raw_fd(answer.fd) }, name: path })
    }
}

/// Text of C's, if it is not NULL.
///
/// # Safety
/// `text` is NULL, or ends with a NUL.
pub(crate) unsafe fn path<'a>(text: *const c_char) -> Option<&'a Path> {
    // SAFETY: passed on.
    (!text.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(text) }.to_bytes())))
}

/// The gate that the options choose.
///
/// # Safety
/// The directory is NULL, or ends with a NUL; the function is NULL, or may be called with the data until the
/// opening has ended.
pub(crate) unsafe fn choose(from: &quod_open_options, to: OpenOptions) -> Result<OpenOptions, Error> {
    // SAFETY: passed on.
    let directory = unsafe { path(from.gate_directory) };
    match (from.gate, directory, from.gate_fn) {
        (gate, None, None) if gate == quod_gate::Deny as u32 => Ok(to),
        (gate, None, None) if gate == quod_gate::SameDirectory as u32 => Ok(to.open_gate(SameDirectory)),
        (gate, None, None) if gate == quod_gate::All as u32 => Ok(to.open_gate(AllowAll)),
        (gate, Some(directory), None) if gate == quod_gate::Directory as u32 => {
            Ok(to.open_gate(InDirectory::new(directory)))
        }
        (gate, None, Some(function)) if gate == quod_gate::Callback as u32 => {
            Ok(to.open_gate(Callback { function, data: from.gate_data }))
        }
        _ => Err(Error::Misuse("no such open gate, or one without, or with more than, what it needs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fit_with_their_end() {
        let mut place = [1; QUOD_PATH_MAX];
        let longest = "x".repeat(QUOD_PATH_MAX - 1);
        for text in ["a", "/b/c", &longest] {
            put(Path::new(text), &mut place).unwrap();
            assert_eq!(take(&place), Some(PathBuf::from(text)));
        }
        assert_eq!(put(Path::new(&format!("{longest}x")), &mut place), None);
        assert_eq!(put(Path::new("a\0b"), &mut place), None);
        assert_eq!((take(&[1; QUOD_PATH_MAX]), take(&[0; QUOD_PATH_MAX])), (None, None));
    }
}
