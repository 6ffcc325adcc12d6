//! Open gates: an image names another file as its backing file, or as its data file (qcow2), and somebody
//! must say whether it may be opened.
//!
//! Knows: paths and the bytes of the name. Must never know: open files, machines.
//! Invariant: no file is opened on an image's word alone; the default gate opens nothing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Decides which backing and data files may be opened. A data file is opened as its image is: for writing
/// too, if that is.
pub trait OpenGate {
    /// `image` is the path of the image that names `name` (raw bytes from its header, never a protocol name).
    /// Answers the path to open, or None: refused.
    fn allow(&mut self, image: &Path, name: &[u8]) -> Option<PathBuf>;
}

impl<F: FnMut(&Path, &[u8]) -> Option<PathBuf>> OpenGate for F {
    fn allow(&mut self, image: &Path, name: &[u8]) -> Option<PathBuf> {
        self(image, name)
    }
}

/// Refuses every file: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyBacking;

impl OpenGate for DenyBacking {
    fn allow(&mut self, _image: &Path, _name: &[u8]) -> Option<PathBuf> {
        None
    }
}

/// Allows files directly in the directory of the image that names them. Symbolic links there are the
/// embedder's own business: this gate looks at names only.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameDirectory;

impl OpenGate for SameDirectory {
    fn allow(&mut self, image: &Path, name: &[u8]) -> Option<PathBuf> {
        let path = resolve(image, name);
        let plain = matches!(path.components().next_back(), Some(Component::Normal(_)));
        (plain && path.parent() == Some(directory(image))).then_some(path)
    }
}

/// Allows every file, as QEMU does: for tools whose user vouches for the image.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl OpenGate for AllowAll {
    fn allow(&mut self, image: &Path, name: &[u8]) -> Option<PathBuf> {
        Some(resolve(image, name))
    }
}

/// The directory that holds `image`; empty for a bare file name.
fn directory(image: &Path) -> &Path {
    image.parent().unwrap_or(Path::new(""))
}

/// A name in an image as a path: relative names start at the image's directory.
pub fn resolve(image: &Path, name: &[u8]) -> PathBuf {
    directory(image).join(OsStr::from_bytes(name))
}

/// The file name in `name`, without its `file:` prefix; None if it names another protocol (a colon before any
/// slash).
pub(crate) fn plain_name(name: &[u8]) -> Option<&[u8]> {
    if let Some(rest) = name.strip_prefix(b"file:") {
        return Some(rest);
    }
    let end = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    (!name[..end].contains(&b':')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_from_file_names() {
        assert_eq!(plain_name(b"base.img"), Some(&b"base.img"[..]));
        assert_eq!(plain_name(b"file:base.img"), Some(&b"base.img"[..]));
        assert_eq!(plain_name(b"dir/with:colon"), Some(&b"dir/with:colon"[..]));
        assert_eq!(plain_name(b"json:{\"driver\":\"nbd\"}"), None);
        assert_eq!(plain_name(b"nbd://host/x"), None);
        assert_eq!(plain_name(b""), Some(&b""[..]));
    }

    #[test]
    fn same_directory_lets_nobody_climb() {
        let image = Path::new("/images/top.qed");
        let ask = |name: &[u8]| SameDirectory.allow(image, name);
        assert_eq!(ask(b"base.raw"), Some(PathBuf::from("/images/base.raw")));
        assert_eq!(ask(b"/images/base.raw"), Some(PathBuf::from("/images/base.raw")));
        assert_eq!(ask(b"../etc/shadow"), None);
        assert_eq!(ask(b"sub/base.raw"), None);
        assert_eq!(ask(b".."), None);
        assert_eq!(ask(b""), None);
        assert_eq!(ask(b"/etc/shadow"), None);
        assert_eq!(SameDirectory.allow(Path::new("top.qed"), b"base"), Some(PathBuf::from("base")));
    }

    #[test]
    fn the_default_opens_nothing() {
        assert_eq!(DenyBacking.allow(Path::new("a"), b"b"), None);
        assert_eq!(AllowAll.allow(Path::new("d/a"), b"b"), Some(PathBuf::from("d/b")));
        assert_eq!(AllowAll.allow(Path::new("d/a"), b"/b"), Some(PathBuf::from("/b")));
    }
}
