//! How an image is opened: cache, discard and engine modes, and images named by option strings.
//!
//! Knows: names of modes and options. Must never know: requests.

use crate::{format, keyval};
use quod::{BackendKind, Format};
use std::path::PathBuf;

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
    /// Discards reach the image.
    pub discard: bool,
    /// Writes go to a temporary overlay.
    pub snapshot: bool,
    /// What is read from a backing file is written to the image.
    pub copy_on_read: bool,
    /// No locks.
    pub force_share: bool,
    /// `native` was asked for, which needs `direct`.
    pub native: bool,
    /// The engine.
    pub engine: BackendKind,
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
        self.discard = match name {
            "off" | "ignore" => false,
            "on" | "unmap" => true,
            _ => return Err(format!("Invalid discard option: {name}")),
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

    /// Modes that exclude each other.
    pub fn contradiction(&self) -> Option<&'static str> {
        if self.force_share && !self.read_only {
            return Some("force-share=on can only be used with read-only images");
        }
        if self.native && !self.direct {
            return Some(
                "aio=native was specified, but it requires cache.direct=on, which was not specified.",
            );
        }
        None
    }
}

/// Reads `driver=qed,file.filename=...`: sets what it says in `mode`, answers the file. Other options are
/// refused by name.
pub fn image_options(text: &str, mode: &mut Mode) -> Result<PathBuf, String> {
    let pairs = keyval::parse(text).ok_or_else(|| format!("Invalid option list: {text}"))?;
    let mut file = None;
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
            "read-only" => mode.read_only = switch(name, value)?,
            "force-share" => mode.force_share = switch(name, value)?,
            "cache.direct" => mode.direct = switch(name, value)?,
            "cache.no-flush" => mode.unsafe_cache = switch(name, value)?,
            "discard" => mode.set_discard(value)?,
            "file" => return Err(format!("Cannot find device='{value}' nor node-name='{value}'")),
            _ => return Err(unknown(name, driver)),
        }
    }
    file.ok_or_else(|| match driver {
        Some(name) => format!("A block device must be specified for \"file\" (driver '{name}')"),
        None => "Must specify either driver or file".into(),
    })
}

fn unknown(name: &str, driver: Option<&str>) -> String {
    match (name.strip_prefix("file."), driver) {
        (Some(rest), _) => format!("Block protocol 'file' doesn't support the option '{rest}'"),
        (None, Some(driver)) => format!("Block format '{driver}' does not support the option '{name}'"),
        (None, None) => "Must specify either driver or file".into(),
    }
}

fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_strings_are_read_or_refused_by_name() {
        let read = |text: &str| {
            let mut mode = Mode::default();
            image_options(text, &mut mode)
                .map(|file| (file.display().to_string(), mode.format, mode.read_only))
        };
        let qed = Some(Format::Qed);
        assert_eq!(read("driver=qed,file.driver=file,file.filename=a,,b"), Ok(("a,b".into(), qed, false)));
        assert_eq!(read("file.filename=x,read-only=on"), Ok(("x".into(), None, true)));
        assert_eq!(read("driver=file,filename=x"), Ok(("x".into(), Some(Format::Raw), false)));
        let refused = [
            ("driver=qed,file.filename=x,foo=1", "Block format 'qed' does not support the option 'foo'"),
            (
                "driver=qed,file.filename=x,file.foo=1",
                "Block protocol 'file' doesn't support the option 'foo'",
            ),
            ("driver=vmdk,file.filename=x", "Unknown driver 'vmdk'"),
            ("driver=qed,file.driver=blkdebug", "Unknown driver 'blkdebug'"),
            ("filename=x", "Must specify either driver or file"),
        ];
        for (text, error) in refused {
            assert_eq!(read(text), Err(error.to_string()), "{text}");
        }
    }
}
