//! Open gates: an image names another file as its backing file, or as its data file (qcow2), and somebody
//! must say which file that is, and whether it may be opened.
//!
//! Knows: paths and the bytes of the name, what QEMU takes a name for, the working directory. Must never
//! know: open files, machines.
//! Invariants: no file is opened on an image's word alone, and the default gate opens nothing; a name leads
//! where it leads QEMU, or nowhere.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What an image needs a file for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// What the image does not hold is read from it.
    Backing,
    /// It has the guest's data (qcow2). It is opened as its image is: for writing too, if that is.
    Data,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Backing => "backing",
            Role::Data => "data",
        }
    }
}

/// A file that an image names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named<'a> {
    /// The path that the image was opened by.
    pub image: &'a Path,
    /// The name as it stands in the image: any bytes.
    pub name: &'a [u8],
    /// What it is for.
    pub role: Role,
}

impl<'a> Named<'a> {
    /// The file that QEMU opens for this name; None if it opens no file for it, but a protocol (a colon
    /// before any slash) or a description (`json:`).
    ///
    /// A relative path that comes out is one from the working directory. A relative backing name starts at
    /// the image's folder, the path of the image's as it was opened by; but behind `file:`, and for a data
    /// file, it starts at the working directory, wherever the image is.
    pub fn path(&self) -> Option<PathBuf> {
        match self.role {
            Role::Data => Some(PathBuf::from(OsStr::from_bytes(self.name))),
            Role::Backing => match self.name.strip_prefix(b"file:") {
                Some(rest) => Some(PathBuf::from(OsStr::from_bytes(rest))),
                None => (!names_protocol(self.name)).then(|| beside(self.image, self.name)),
            },
        }
    }

    /// The file of this name beside the image, if that is another than [`Named::path`]: what may have been
    /// meant by whoever made the image in its folder.
    pub fn beside(&self) -> Option<PathBuf> {
        let path = self.path()?;
        let beside = beside(self.image, path.as_os_str().as_bytes());
        let same = match (std::path::absolute(&path), std::path::absolute(&beside)) {
            (Ok(path), Ok(beside)) => path == beside,
            _ => path == beside,
        };
        let from_image = self.role == Role::Backing && !self.name.starts_with(b"file:");
        (!same && !from_image).then_some(beside)
    }
}

/// Decides which backing and data files may be opened, on the thread of the driver, inside
/// [`Driver::turn`](crate::Driver::turn): it must not block. A closure is a gate too
/// ([`OpenOptions::open_gate_fn`](crate::OpenOptions::open_gate_fn)).
///
/// ```
/// use quod::{Config, Driver, Error, ErrorKind, Format, Named, OpenGate, OpenOptions, Role};
/// use std::path::{Path, PathBuf};
///
/// /// Templates may be read, from one folder, whatever folder the image names.
/// struct Templates(PathBuf);
///
/// impl OpenGate for Templates {
///     fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
///         let file = Path::new(std::str::from_utf8(named.name).ok()?).file_name()?;
///         (named.role == Role::Backing).then(|| self.0.join(file))
///     }
/// }
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # let templates = folder.path().join("templates");
/// # std::fs::create_dir(&templates)?;
/// # let mut options = quod_tools::CreateOptions::new(Format::Raw, 1 << 20);
/// # quod_tools::create(templates.join("base.raw"), &options)?;
/// # options.format = Format::Qcow2;
/// # options.backing = Some(("/elsewhere/base.raw".into(), Some(Format::Raw)));
/// # quod_tools::create(&path, &options)?;
/// let mut driver = Driver::new(Config::default())?;
/// let refused = driver.open(&path, OpenOptions::new())?; // the default allows nothing
/// let disk = driver.open(&path, OpenOptions::new().open_gate(Templates(templates.clone())))?;
/// let mut left = 2;
/// while left > 0 {
///     driver.wait(None)?;
///     while let Some(done) = driver.next_completion() {
///         left -= 1;
///         match done.result {
///             Err(Error::File { kind: ErrorKind::NotAllowed { name }, .. }) => {
///                 assert_eq!((done.disk, name.as_str()), (refused, "/elsewhere/base.raw"));
///             }
///             result => result?,
///         }
///     }
/// }
/// let layers = driver.disk_info(disk).map(|info| info.layers()).unwrap_or_default();
/// assert_eq!(layers[1].path, templates.join("base.raw"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait OpenGate {
    /// Answers the path to open, [`Named::path`] or another one, or None: refused, which ends the opening
    /// with [`ErrorKind::NotAllowed`](crate::ErrorKind::NotAllowed) or, where two files may be meant,
    /// [`ErrorKind::Ambiguous`](crate::ErrorKind::Ambiguous). It is not asked about names that are no file's.
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf>;

    /// What the driver asks: as [`OpenGate::allow`], for a gate that has files open already. With one that
    /// only answers descriptors the driver opens no file by itself.
    fn give(&mut self, named: &Named<'_>) -> Option<Allowed> {
        self.allow(named).map(Allowed::Path)
    }
}

/// A file that a gate allows.
#[derive(Debug)]
#[non_exhaustive]
pub enum Allowed {
    /// It is opened by this path.
    Path(PathBuf),
    /// It is open (see [`Driver::open_fd`](crate::Driver::open_fd) for what is asked of a descriptor).
    Fd {
        /// The driver's from now on.
        fd: OwnedFd,
        /// What errors and [`LayerInfo::path`](crate::LayerInfo) call it, and where the relative names in it
        /// start.
        name: PathBuf,
    },
}

impl<F: FnMut(&Named<'_>) -> Option<PathBuf>> OpenGate for F {
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
        self(named)
    }
}

/// Refuses every file: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyBacking;

impl OpenGate for DenyBacking {
    fn allow(&mut self, _named: &Named<'_>) -> Option<PathBuf> {
        None
    }
}

/// Allows files directly in the directory of the image that names them. Symbolic links there are the
/// embedder's own business: this gate looks at names only. A name that leads from the working directory is
/// allowed if that is the image's directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameDirectory;

impl OpenGate for SameDirectory {
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
        let path = named.path()?;
        let plain = matches!(path.components().next_back(), Some(Component::Normal(_)));
        let whole = |path: &Path| std::path::absolute(path).ok();
        let (found, image) = (whole(&path)?, whole(named.image)?);
        (plain && found.parent() == image.parent()).then_some(path)
    }
}

/// Allows files in this directory and below it, whatever directory the image is in: for templates that many
/// images share. As [`SameDirectory`] it looks at names only, and refuses every name with a `..` in it.
///
/// ```
/// use quod::{InDirectory, Named, OpenGate, Role};
/// let mut gate = InDirectory::new("/templates");
/// let mut ask = |name: &[u8]| {
///     gate.allow(&Named { image: "/images/disk.qcow2".as_ref(), name, role: Role::Backing })
/// };
/// assert_eq!(ask(b"/templates/debian/12.qcow2"), Some("/templates/debian/12.qcow2".into()));
/// assert_eq!(ask(b"base.qcow2"), None); // that is /images/base.qcow2
/// assert_eq!(ask(b"/templates/../etc/shadow"), None);
/// ```
#[derive(Clone, Debug)]
pub struct InDirectory {
    directory: PathBuf,
}

impl InDirectory {
    /// Of this directory; a relative path starts at the working directory.
    pub fn new(directory: impl AsRef<Path>) -> InDirectory {
        InDirectory { directory: directory.as_ref().to_path_buf() }
    }
}

impl OpenGate for InDirectory {
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
        let path = named.path()?;
        let (found, directory) =
            (std::path::absolute(&path).ok()?, std::path::absolute(&self.directory).ok()?);
        let climbs = found.components().any(|part| part == Component::ParentDir);
        (!climbs && found != directory && found.starts_with(&directory)).then_some(path)
    }
}

/// Allows every file, and takes a name for what QEMU takes it for, which may be a file of the working
/// directory: for tools whose user vouches for the image.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl OpenGate for AllowAll {
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
        named.path()
    }
}

/// A colon before any slash.
fn names_protocol(name: &[u8]) -> bool {
    let end = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    name[..end].contains(&b':')
}

/// A name as a path: relative names start at the image's directory.
fn beside(image: &Path, name: &[u8]) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing<'a>(image: &'a str, name: &'a str) -> Named<'a> {
        Named { image: Path::new(image), name: name.as_bytes(), role: Role::Backing }
    }

    fn data<'a>(image: &'a str, name: &'a str) -> Named<'a> {
        Named { role: Role::Data, ..backing(image, name) }
    }

    /// The table of docs/compat.md.
    #[test]
    fn names_lead_where_they_lead_qemu() {
        let path = |name| backing("s/i", name).path().map(|path| path.display().to_string());
        let cases = [
            ("b", Some("s/b")),
            ("/x/b", Some("/x/b")),
            ("./a:b", Some("s/./a:b")),
            ("x/a:b", Some("s/x/a:b")),
            ("file:b", Some("b")),
            ("file:/x/b", Some("/x/b")),
            ("file:a:b", Some("a:b")),
            ("a:b", None),
            ("nbd://host/x", None),
            ("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"b\"}}", None),
        ];
        for (name, leads) in cases {
            assert_eq!(path(name).as_deref(), leads, "{name}");
        }
        for name in ["d", "./d", "/x/d", "a:b", "file:d", "json:{}"] {
            assert_eq!(data("s/i", name).path(), Some(PathBuf::from(name)));
        }
    }

    #[test]
    fn a_name_that_may_mean_two_files_is_known_for_it() {
        assert_eq!(backing("s/i", "b").beside(), None);
        assert_eq!(backing("s/i", "file:b").beside(), Some("s/b".into()));
        assert_eq!(backing("s/i", "file:/x/b").beside(), None);
        assert_eq!(data("s/i", "d").beside(), Some("s/d".into()));
        assert_eq!(data("s/i", "/x/d").beside(), None);
        // both are the same one
        let here = std::env::current_dir().unwrap().join("i");
        for image in ["i", "./i", here.to_str().unwrap()] {
            assert_eq!((data(image, "d").beside(), backing(image, "file:b").beside()), (None, None));
        }
    }

    #[test]
    fn same_directory_lets_nobody_climb() {
        let ask = |name| SameDirectory.allow(&backing("/images/top.qed", name));
        assert_eq!(ask("base.raw"), Some(PathBuf::from("/images/base.raw")));
        assert_eq!(ask("/images/base.raw"), Some(PathBuf::from("/images/base.raw")));
        for name in ["../etc/shadow", "sub/base.raw", "..", "", "/etc/shadow", "file:base.raw", "a:b"] {
            assert_eq!(ask(name), None, "{name}");
        }
        assert_eq!(SameDirectory.allow(&backing("top.qed", "base")), Some(PathBuf::from("base")));
        assert_eq!(SameDirectory.allow(&backing("top.qed", "file:base")), Some(PathBuf::from("base")));
    }

    #[test]
    fn same_directory_takes_no_other_file_than_qemu() {
        let ask = |image, name| SameDirectory.allow(&data(image, name));
        assert_eq!(ask("/images/i", "d"), None);
        assert_eq!(ask("/images/i", "/images/d"), Some(PathBuf::from("/images/d")));
        assert_eq!(ask("i", "d"), Some(PathBuf::from("d")));
    }

    #[test]
    fn in_a_directory_is_below_it_by_name() {
        let ask = |named: &Named<'_>| InDirectory::new("/images").allow(named);
        for name in ["/images/b", "/images/sub/b", "/images/./b", "file:/images/b"] {
            let named = backing("/elsewhere/i", name);
            assert_eq!(ask(&named), named.path(), "{name}");
        }
        assert_eq!(ask(&backing("/images/i", "b")), Some("/images/b".into()));
        assert_eq!(ask(&data("/images/i", "/images/d")), Some("/images/d".into()));
        for name in ["b", "/images", "/images/", "/images2/b", "/images/../b", "../images/b", "a:b", ""] {
            assert_eq!(ask(&backing("/elsewhere/i", name)), None, "{name}");
        }
        assert_eq!(ask(&data("/images/i", "d")), None, "it starts at the working directory");
        let here = std::env::current_dir().unwrap();
        assert_eq!(InDirectory::new(".").allow(&data("/images/i", "d")), Some("d".into()));
        assert_eq!(InDirectory::new(&here).allow(&data("/images/i", "d")), Some("d".into()));
    }

    #[test]
    fn the_default_opens_nothing() {
        assert_eq!(DenyBacking.allow(&backing("a", "b")), None);
        assert_eq!(AllowAll.allow(&backing("d/a", "b")), Some(PathBuf::from("d/b")));
        assert_eq!(AllowAll.allow(&backing("d/a", "/b")), Some(PathBuf::from("/b")));
    }
}
