//! Errors as C sees them: a struct with texts, kept where a rule says for how long.
//!
//! Knows: the errors of `quod`, errno(3). Must never know: which call failed.
//! Invariant: a text lives as long as what it is about is the last of its place: of a thread, or of a driver.

use crate::types::{quod_error, quod_error_kind, quod_role};
use quod::{Error, ErrorKind, FileRole};
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Quod(Error),
    /// A panic, in this call or in an earlier one.
    Panicked,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Quod(error)
    }
}

impl Failure {
    fn number(&self) -> c_int {
        match self {
            Failure::Quod(error) => error.errno(),
            Failure::Panicked => libc::ENOTRECOVERABLE,
        }
    }
}

/// An error with its texts, for C to look at. The struct points to them, so they stay together.
pub(crate) struct Shown {
    error: quod_error,
    _text: CString,
    _path: Option<CString>,
}

impl Shown {
    pub(crate) fn of(failure: &Failure) -> Box<Shown> {
        let (text, path, role) = match failure {
            Failure::Quod(error) => {
                let path = error.path().map(|path| text_of(path.as_os_str().as_bytes()));
                (error.to_string(), path, role(error.role()))
            }
            Failure::Panicked => ("libquod has failed inside: free the driver".into(), None, role(None)),
        };
        let text = text_of(text.as_bytes());
        let error = quod_error {
            kind: kind(failure),
            number: failure.number(),
            text: text.as_ptr(),
            path: path.as_ref().map_or(ptr::null::<c_char>(), |path| path.as_ptr()),
            role: role.0,
            depth: role.1,
        };
        Box::new(Shown { error, _text: text, _path: path })
    }

    pub(crate) fn error(&self) -> *const quod_error {
        &raw const self.error
    }
}

/// As C has texts: a NUL inside is shown as a space.
fn text_of(bytes: &[u8]) -> CString {
    let bytes: Vec<u8> = bytes.iter().map(|&byte| if byte == 0 { b' ' } else { byte }).collect();
    // cannot fail: no NUL is left
    CString::new(bytes).unwrap_or_default()
}

fn role(role: Option<FileRole>) -> (quod_role, u32) {
    match role {
        None => (quod_role::None, 0),
        Some(FileRole::Image) => (quod_role::Image, 0),
        Some(FileRole::Data) => (quod_role::Data, 0),
        Some(FileRole::Backing(depth)) => (quod_role::Backing, depth),
        Some(FileRole::BackingData(depth)) => (quod_role::BackingData, depth),
    }
}

fn kind(failure: &Failure) -> quod_error_kind {
    use quod_error_kind as Kind;
    let error = match failure {
        Failure::Quod(error) => error,
        Failure::Panicked => return Kind::Panicked,
    };
    match error {
        Error::Misuse(_) => Kind::Misuse,
        Error::WrongThread => Kind::WrongThread,
        Error::Busy => Kind::Busy,
        Error::Closed => Kind::Closed,
        Error::Cancelled => Kind::Cancelled,
        Error::Backend { .. } => Kind::Backend,
        Error::File { kind, .. } => match kind {
            ErrorKind::Unsupported(_) => Kind::Unsupported,
            ErrorKind::Foreign(_) => Kind::Foreign,
            ErrorKind::Corrupt(_) => Kind::Corrupt,
            ErrorKind::Device { .. } => Kind::Device,
            ErrorKind::Gone { .. } => Kind::Gone,
            ErrorKind::NoSnapshot | ErrorKind::NoBitmap => Kind::Other,
            ErrorKind::NoSpace | ErrorKind::DeviceTooSmall { .. } => Kind::NoSpace,
            ErrorKind::Occupied { .. } => Kind::Occupied,
            ErrorKind::Poisoned => Kind::Poisoned,
            ErrorKind::NotAllowed { .. } => Kind::NotAllowed,
            ErrorKind::Ambiguous { .. } => Kind::Ambiguous,
            ErrorKind::Locked(_) => Kind::Locked,
            ErrorKind::BackingLoop { .. } => Kind::BackingLoop,
            ErrorKind::TooDeep { .. } => Kind::TooDeep,
            ErrorKind::Io { .. } => Kind::Io,
        },
        _ => Kind::Other,
    }
}

/// The last failure of a thread, put into words when somebody asks.
#[derive(Default)]
struct Last {
    failure: Option<Failure>,
    shown: Option<Box<Shown>>,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// Keeps why a call fails for `quod_last_error`; what the call returns.
#[cold]
pub(crate) fn failed(failure: Failure) -> c_int {
    let number = failure.number();
    // a thread that ends has nobody left who asks
    let _ = LAST.try_with(|last| last.replace(Last { failure: Some(failure), shown: None }));
    -number
}

/// Why the last function of libquod failed that did so on this thread: returned a negative number, or NULL
/// where it says so. NULL: none has failed. Errors of requests come with their completions, not here.
///
/// The library owns the answer, which is valid until a function of libquod fails on this thread the next
/// time, or the thread ends. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn quod_last_error() -> *const quod_error {
    let show = |last: &RefCell<Last>| {
        let mut last = last.try_borrow_mut().ok()?;
        let Last { failure, shown } = &mut *last;
        let failure = failure.as_ref()?;
        Some(shown.get_or_insert_with(|| Shown::of(failure)).error())
    };
    LAST.try_with(show).ok().flatten().unwrap_or(ptr::null())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn the_last_error_of_a_thread_is_its_own() {
        std::thread::spawn(|| assert!(quod_last_error().is_null())).join().unwrap();
        assert_eq!(failed(Error::Busy.into()), -libc::EAGAIN);
        let first = quod_last_error();
        assert_eq!(first, quod_last_error(), "asking twice is the same");
        // SAFETY: nothing has failed since.
        let (kind, text) = unsafe { ((*first).kind, CStr::from_ptr((*first).text)) };
        assert_eq!((kind, text.to_str()), (quod_error_kind::Busy, Ok("all request slots are in use")));
        assert_eq!(failed(Failure::Panicked), -libc::ENOTRECOVERABLE);
        // SAFETY: nothing has failed since.
        assert_eq!(unsafe { (*quod_last_error()).kind }, quod_error_kind::Panicked);
    }

    #[test]
    fn a_file_has_its_path_and_role() {
        let file = |name: &[u8]| Error::File {
            path: std::path::Path::new(std::ffi::OsStr::from_bytes(name)).to_path_buf(),
            role: FileRole::Backing(2),
            kind: ErrorKind::NoSpace,
        };
        let shown = Shown::of(&file(b"a\xff\0b").into());
        let error = shown.error();
        // SAFETY: `shown` is there.
        let (error, path) = unsafe { (&*error, CStr::from_ptr((*error).path)) };
        assert_eq!((error.kind, error.number), (quod_error_kind::NoSpace, libc::ENOSPC));
        assert_eq!((error.role, error.depth), (quod_role::Backing, 2));
        assert_eq!(path.to_bytes(), b"a\xff b");
    }
}
