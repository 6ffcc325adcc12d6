//! Formats by name.
//!
//! Knows: the names on the command line. Must never know: how a format is laid out.

use quod::Format;

/// The format of this name; formats that quod does not do are refused by name.
pub fn parse(name: &str) -> Result<Format, String> {
    match name {
        "raw" => Ok(Format::Raw),
        "qed" => Ok(Format::Qed),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(format!("Unknown driver '{other}'")),
    }
}

/// Names that QEMU has a driver for, and quod has not: an image's header may say them.
const OF_QEMU: [&str; 39] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "iser",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// The name of a format, whether quod does it or QEMU alone does.
pub fn is_known(name: &str) -> bool {
    parse(name).is_ok() || OF_QEMU.contains(&name)
}

/// Its name.
pub fn name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qed => "qed",
        Format::Qcow2 => "qcow2",
    }
}

/// How `info`, `check` and `map` answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}
