//! How an image is opened: cache, discard and engine modes, and options of an image.
//!
//! Knows: names of modes and options. Must never know: requests.

use super::nodes::{self, Filters};
use super::runtime::{Runtime, switch};
use super::{format, keyval};
use quod::{BackendKind, Format, OpenOptions};
use quod_tools::ImageInfo;
use std::path::{Path, PathBuf};

/// Bytes of tables that are kept of an image that is read once from its beginning to its end.
pub const TABLES_ONCE: u64 = 1 << 20;
/// Milliseconds: where a job ends with a flush, mappings are written when there are enough of them, and then.
pub const COMMIT_MS: u32 = 3_600_000;
const NEITHER: &str = "Must specify either driver or file";

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct Mode {
    /// None: probe.
    pub format: Option<Format>,
    /// No writes.
    pub read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Every write is durable when it completes.
    pub writethrough: bool,
    /// Flushes do nothing.
    pub unsafe_cache: bool,
    /// Discards do not reach the image.
    pub keep_discarded: bool,
    /// Zeros that are written are written as zeros are; true: their space may be given up.
    pub detect_zeroes: Option<bool>,
    /// Writes go to a temporary overlay.
    pub snapshot: bool,
    /// What is read from a backing file is written to the image.
    pub copy_on_read: bool,
    /// No locks, though a writer may have the image open.
    pub force_share: bool,
    /// No locks: for stores that have none.
    pub unlocked: bool,
    /// Whether the data file is locked, if that was said.
    pub data_locked: Option<bool>,
    /// `native` was asked for, which needs `direct`.
    pub native: bool,
    /// The engine.
    pub engine: BackendKind,
    /// The external data file, instead of the one that the image names.
    pub data_file: Option<PathBuf>,
    /// The backing file is not opened.
    pub no_backing: bool,
    /// What stands above the image, or around its file.
    pub filters: Filters,
    /// Options that only qcow2 has: the first one's name, and what was said.
    pub runtime: (Option<String>, Runtime),
    /// An option that no format has.
    pub unknown: Option<String>,
}

/// What options come to with one image.
#[derive(Clone, Copy, Default, Debug)]
pub struct Fitted {
    /// Bytes for tables, if something was said about them.
    tables: Option<u64>,
    /// The blocks that transfers keep to, if that was said.
    align: Option<u32>,
}

impl Fitted {
    /// Adds it to how an image is opened.
    pub fn add_to(self, options: OpenOptions) -> OpenOptions {
        let options = self.tables.into_iter().fold(options, OpenOptions::cache_bytes);
        self.align.into_iter().fold(options, OpenOptions::align)
    }
}

impl Mode {
    /// Sets the cache mode.
    pub fn set_cache(&mut self, name: &str) -> Result<(), String> {
        (self.direct, self.writethrough, self.unsafe_cache) = match name {
            "none" | "off" => (true, false, false),
            "directsync" => (true, true, false),
            "writeback" => (false, false, false),
            "writethrough" => (false, true, false),
            "unsafe" => (false, false, true),
            _ => return Err(format!("Invalid cache option: {name}")),
        };
        Ok(())
    }

    /// Sets whether discards reach the image.
    pub fn set_discard(&mut self, name: &str) -> Result<(), String> {
        self.keep_discarded = match name {
            "off" | "ignore" => true,
            "on" | "unmap" => false,
            _ => return Err(format!("Invalid discard option: {name}")),
        };
        Ok(())
    }

    fn set_detect_zeroes(&mut self, name: &str) -> Result<(), String> {
        self.detect_zeroes = match name {
            "off" => None,
            "on" => Some(false),
            "unmap" => Some(true),
            _ => return Err(format!("invalid parameter value: {name}")),
        };
        Ok(())
    }

    /// Sets the engine. `native` is Linux AIO in QEMU; here it is io_uring.
    pub fn set_engine(&mut self, name: &str) -> Result<(), String> {
        self.native = name == "native";
        self.engine = match name {
            "threads" => BackendKind::Threads,
            "native" | "io_uring" => BackendKind::Uring,
            _ => return Err(format!("Invalid aio option: {name}")),
        };
        Ok(())
    }

    /// Files are locked when they are opened.
    pub fn takes_locks(&self) -> bool {
        !self.force_share && !self.unlocked
    }

    /// Modes that exclude each other.
    pub fn contradiction(&self) -> Option<&'static str> {
        if self.force_share && !self.read_only {
            return Some("force-share=on can only be used with read-only images");
        }
        if self.filters.copy_on_read && self.read_only {
            return Some("Block node is read-only");
        }
        if self.copy_on_read && self.read_only {
            return Some("Can't use copy-on-read on read-only device");
        }
        if self.detect_zeroes == Some(true) && self.keep_discarded {
            return Some(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            );
        }
        if self.snapshot && self.data_file.is_some() {
            return Some("a data file cannot be named together with a temporary overlay");
        }
        if self.native && !self.direct {
            return Some(
                "aio=native was specified, but it requires cache.direct=on, which was not specified.",
            );
        }
        None
    }

    /// An option that may be said again when the image is reopened. None: it is none of these.
    pub fn set_option(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let done = match name {
            "read-only" => switch(name, value).map(|on| self.read_only = on),
            "cache.direct" => switch(name, value).map(|on| self.direct = on),
            "cache.no-flush" => switch(name, value).map(|on| self.unsafe_cache = on),
            "discard" => self.set_discard(value),
            "detect-zeroes" => self.set_detect_zeroes(value),
            "auto-read-only" => match switch(name, value) {
                Ok(true) => Err(format!("{name}=on is not supported")),
                other => other.map(drop),
            },
            _ => {
                let done = self.runtime.1.set(name, value)?;
                self.runtime.0.get_or_insert_with(|| name.to_string());
                done
            }
        };
        Some(done)
    }

    /// Something was said that the image must be looked at for.
    pub fn needs_facts(&self) -> bool {
        self.runtime.0.is_some() || self.unknown.is_some() || self.filters.align.is_some()
    }

    /// Do the options suit the image?
    pub fn fit(&self, image: &ImageInfo) -> Result<Fitted, String> {
        let foreign = self.runtime.0.as_ref().filter(|_| image.info.format != Format::Qcow2);
        if let Some(name) = self.unknown.as_ref().or(foreign) {
            return Err(unknown(name, format::name(image.info.format)));
        }
        // a block is not larger than a cluster: what is not the cluster's own is never written with it
        let align = self.filters.align.unwrap_or(1);
        let align = match image.info.format {
            Format::Qcow2 => align.min(image.info.cluster_size),
            _ => align,
        };
        Ok(Fitted { tables: self.runtime.1.fit(image)?, align: Some(align) })
    }
}

/// Reads `driver=qed,file.filename=...`: sets what it says in `mode`, answers the file. `path`: the file,
/// named beside the options. Other options are refused by name.
pub fn image_options(text: &str, path: Option<&Path>, mode: &mut Mode) -> Result<PathBuf, String> {
    let pairs = match text.is_empty() && path.is_some() {
        true => Vec::new(),
        false => keyval::parse(text).ok_or_else(|| format!("Invalid option list: {text}"))?,
    };
    let (pairs, mut file, filters) = nodes::peel(pairs, path)?;
    mode.filters = filters;
    let driver = pairs.iter().find(|(name, _)| name == "driver").map(|(_, value)| value.as_str());
    let file_driver = driver == Some("file");
    if let Some(name) = driver.filter(|_| !file_driver) {
        mode.format = Some(format::parse(name)?);
    } else if file_driver {
        mode.format = Some(Format::Raw);
    }
    for (name, value) in &pairs {
        match name.as_str() {
            "driver" => {}
            "file.driver" if value == "file" => {}
            "file.driver" => return Err(format!("Unknown driver '{value}'")),
            "file.filename" if !file_driver => file = Some(PathBuf::from(value)),
            "filename" if file_driver => file = Some(PathBuf::from(value)),
            "data-file.driver" if value == "file" => {}
            "file.locking" if !file_driver => mode.unlocked = !locking(value)?,
            "locking" if file_driver => mode.unlocked = !locking(value)?,
            "data-file.locking" => mode.data_locked = Some(locking(value)?),
            "data-file.filename" => mode.data_file = Some(PathBuf::from(value)),
            "backing" if value.is_empty() => mode.no_backing = true,
            "force-share" => mode.force_share = switch(name, value)?,
            "file" => return Err(format!("Cannot find device='{value}' nor node-name='{value}'")),
            _ => match (mode.set_option(name, value), driver) {
                (Some(done), _) => done?,
                (None, Some(driver)) => return Err(unknown(name, driver)),
                (None, None) if of_file(name).is_some() => return Err(unknown(name, "file")),
                (None, None) if name == "filename" => return Err(NEITHER.into()),
                (None, None) => mode.unknown = mode.unknown.take().or(Some(name.clone())),
            },
        }
    }
    if mode.data_locked.is_some() && mode.data_file.is_none() {
        return Err(NEITHER.into());
    }
    file.ok_or_else(|| match driver {
        Some("file") => "The 'file' block driver requires a file name".into(),
        Some(_) => "A block device must be specified for \"file\"".into(),
        None => NEITHER.into(),
    })
}

/// The file that a word of the command line names: what is behind `file:`, as itself.
pub fn file_named(word: &Path) -> PathBuf {
    let Some(rest) = word.to_str().and_then(|text| text.strip_prefix("file:")) else {
        return word.to_path_buf();
    };
    // its own colon is none of a protocol's
    let colon = rest.split('/').next().is_some_and(|first| first.contains(':'));
    if colon { Path::new(".").join(rest) } else { PathBuf::from(rest) }
}

/// Is a file locked? As QEMU takes it; `auto` takes locks where the kernel has them, which is everywhere.
fn locking(value: &str) -> Result<bool, String> {
    match value {
        "on" | "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("invalid parameter value: {value}")),
    }
}

/// What an option says of a file, of the image's or the data's.
fn of_file(name: &str) -> Option<&str> {
    name.strip_prefix("data-").unwrap_or(name).strip_prefix("file.")
}

fn unknown(name: &str, driver: &str) -> String {
    match of_file(name) {
        Some(rest) => format!("Block protocol 'file' doesn't support the option '{rest}'"),
        None => format!("Block format '{driver}' does not support the option '{name}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_named_as_one() {
        let named = |word: &str| file_named(Path::new(word)).display().to_string();
        for (word, file) in [
            ("a", "a"),
            ("file:a", "a"),
            ("file:/x/a:b", "/x/a:b"),
            ("file:a:b", "./a:b"),
            ("file:x/a:b", "x/a:b"),
            ("a:b", "a:b"),
        ] {
            assert_eq!(named(word), file, "{word}");
        }
    }

    #[test]
    fn option_strings_are_read_or_refused_by_name() {
        let read = |text: &str| {
            let mut mode = Mode::default();
            image_options(text, None, &mut mode)
                .map(|file| (file.display().to_string(), mode.format, mode.read_only))
        };
        let qed = Some(Format::Qed);
        assert_eq!(read("driver=qed,file.driver=file,file.filename=a,,b"), Ok(("a,b".into(), qed, false)));
        assert_eq!(read("file.filename=x,read-only=on"), Ok(("x".into(), None, true)));
        assert_eq!(read("driver=file,filename=x"), Ok(("x".into(), Some(Format::Raw), false)));
        let unlocked = |text: &str| {
            let mut mode = Mode::default();
            image_options(text, None, &mut mode).map(|_| mode.unlocked)
        };
        for (value, off) in [("on", false), ("auto", false), ("off", true)] {
            assert_eq!(unlocked(&format!("driver=qcow2,file.filename=x,file.locking={value}")), Ok(off));
            assert_eq!(unlocked(&format!("file.filename=x,file.locking={value}")), Ok(off));
            assert_eq!(unlocked(&format!("driver=file,filename=x,locking={value}")), Ok(off));
        }
        let data = |text: &str| {
            let mut mode = Mode::default();
            let text = format!("driver=qcow2,file.filename=x,{text}");
            image_options(&text, None, &mut mode).map(|_| (mode.unlocked, mode.data_locked))
        };
        let named = "data-file.driver=file,data-file.filename=d";
        assert_eq!(data(named), Ok((false, None)));
        assert_eq!(data(&format!("{named},data-file.locking=off")), Ok((false, Some(false))));
        assert_eq!(data(&format!("{named},file.locking=off,data-file.locking=auto")), Ok((true, Some(true))));
        let refused = [
            ("driver=qed,file.filename=x,foo=1", "Block format 'qed' does not support the option 'foo'"),
            (
                "driver=qed,file.filename=x,file.foo=1",
                "Block protocol 'file' doesn't support the option 'foo'",
            ),
            ("driver=vmdk,file.filename=x", "Unknown driver 'vmdk'"),
            ("driver=qed,file.driver=nbd", "Unknown driver 'nbd'"),
            ("filename=x", "Must specify either driver or file"),
            ("driver=qed,file.filename=x,file.locking=maybe", "invalid parameter value: maybe"),
            ("driver=qcow2,file.filename=x,data-file.locking=off", "Must specify either driver or file"),
            (
                "driver=qcow2,file.filename=x,data-file.foo=off",
                "Block protocol 'file' doesn't support the option 'foo'",
            ),
            (
                "driver=qed,file.filename=x,locking=off",
                "Block format 'qed' does not support the option 'locking'",
            ),
        ];
        for (text, error) in refused {
            assert_eq!(read(text), Err(error.to_string()), "{text}");
        }
    }
}
