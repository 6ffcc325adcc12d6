//! Formats that quod knows by name only.
//!
//! Knows: their names. Must never know: how they are recognised (`probe` does).

/// A format that quod knows by name only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Foreign {
    /// Bochs' redo logs.
    Bochs,
    /// Compressed loop images.
    Cloop,
    /// Apple's disk images.
    Dmg,
    /// LUKS version 1. Version 2 is raw for QEMU, and so it is here: guests put it on their disks.
    Luks,
    /// Parallels, old and extended.
    Parallels,
    /// qcow, version 1.
    Qcow,
    /// VirtualBox.
    Vdi,
    /// Hyper-V, the new one.
    Vhdx,
    /// VMware: sparse files of two kinds, and text that names other files.
    Vmdk,
    /// Virtual PC, Hyper-V, Azure: the old one (VHD).
    Vpc,
}

impl Foreign {
    /// All of them.
    pub const ALL: [Foreign; 10] = [
        Foreign::Bochs,
        Foreign::Cloop,
        Foreign::Dmg,
        Foreign::Luks,
        Foreign::Parallels,
        Foreign::Qcow,
        Foreign::Vdi,
        Foreign::Vhdx,
        Foreign::Vmdk,
        Foreign::Vpc,
    ];

    /// As qemu-img calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Foreign::Bochs => "bochs",
            Foreign::Cloop => "cloop",
            Foreign::Dmg => "dmg",
            Foreign::Luks => "luks",
            Foreign::Parallels => "parallels",
            Foreign::Qcow => "qcow",
            Foreign::Vdi => "vdi",
            Foreign::Vhdx => "vhdx",
            Foreign::Vmdk => "vmdk",
            Foreign::Vpc => "vpc",
        }
    }
}
