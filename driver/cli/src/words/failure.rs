//! Failures in words: what went wrong, with which file, on stderr.
//!
//! Knows: the driver's errors, the name that the program was called by. Must never know: how to recover.

use crate::out::{fail, program, stands_in};
use quod::fault::{ExtensionFault, FormatLack, HeaderFault, L1Fault, QedFault, ReftableFault};
use quod::{Bitmaps, DiskInfo, Error, ErrorKind, Fault, FileOp, FileRole, Format, Lack, describe};
use quod_tools::ImageInfo;
use std::path::Path;
use std::process::ExitCode;

/// Why an image could not be opened, in QEMU's words where it has some.
pub fn why_not_opened(image: &Path, error: &Error) -> String {
    let Error::File { path, role, kind } = error else { return error.to_string() };
    let text = of_kind(image, path, *role, kind).unwrap_or_else(|| error.to_string());
    if role.is_below() && is_its_own(kind) { format!("Could not open backing file: {text}") } else { text }
}

/// What QEMU says of a file of the image. None: it has no words for it.
fn of_kind(image: &Path, file: &Path, role: FileRole, kind: &ErrorKind) -> Option<String> {
    let shown = file.display();
    match kind {
        ErrorKind::Io { op: FileOp::OpenDirect, .. } => {
            Some(format!("Could not open '{shown}': filesystem does not support O_DIRECT"))
        }
        ErrorKind::Io { op: FileOp::LockWithout, .. } => Some(format!(
            "Could not open '{shown}': its file system has no locks; file.locking=off (--image-opts) opens \
             it without, and then nothing keeps two writers apart"
        )),
        ErrorKind::Io { errno, .. } => {
            let hint = if *errno == libc::ENOENT { namesake(image, file) } else { None };
            Some(format!("Could not open '{shown}': {}{}", describe(*errno), hint.unwrap_or_default()))
        }
        ErrorKind::Locked(lock) => {
            let lock = lock.name();
            Some(format!("Failed to get \"{lock}\" lock\nIs another process using the image [{shown}]?"))
        }
        ErrorKind::Foreign(format) => {
            let raw = match role.is_below() {
                false => "'-f raw' takes its bytes as they are",
                true => "an image that names its backing format 'raw' takes its bytes as they are",
            };
            let format = format.name();
            Some(format!("'{shown}' is a {format} image; quod reads raw, qed and qcow2, and {raw}"))
        }
        ErrorKind::Corrupt(fault) => of_fault(fault),
        ErrorKind::Unsupported(lack) => of_lack(lack),
        ErrorKind::Device { .. }
        | ErrorKind::Gone { .. }
        | ErrorKind::NoSnapshot
        | ErrorKind::NoBitmap
        | ErrorKind::NoSpace
        | ErrorKind::Occupied { .. }
        | ErrorKind::DeviceTooSmall { .. }
        | ErrorKind::Poisoned
        | ErrorKind::NotAllowed { .. }
        | ErrorKind::Ambiguous { .. }
        | ErrorKind::BackingLoop { .. }
        | ErrorKind::TooDeep { .. } => None,
    }
}

/// It is about the file itself, and not about another one that it names.
fn is_its_own(kind: &ErrorKind) -> bool {
    match kind {
        ErrorKind::NotAllowed { .. }
        | ErrorKind::Ambiguous { .. }
        | ErrorKind::BackingLoop { .. }
        | ErrorKind::TooDeep { .. } => false,
        ErrorKind::Unsupported(_)
        | ErrorKind::Foreign(_)
        | ErrorKind::Corrupt(_)
        | ErrorKind::Device { .. }
        | ErrorKind::Gone { .. }
        | ErrorKind::NoSnapshot
        | ErrorKind::NoBitmap
        | ErrorKind::NoSpace
        | ErrorKind::Occupied { .. }
        | ErrorKind::DeviceTooSmall { .. }
        | ErrorKind::Poisoned
        | ErrorKind::Locked(_)
        | ErrorKind::Io { .. } => true,
    }
}

/// A name that led to nothing from the working directory would have led to a file from the image's folder.
fn namesake(image: &Path, file: &Path) -> Option<String> {
    let beside = image.parent()?.join(file);
    let other = file != image && !file.is_absolute() && beside != file && beside.exists();
    other.then(|| format!(" (it starts at the working directory; '{}' is another file)", beside.display()))
}

/// What QEMU says of an image that contradicts its format. It opens images whose tables do.
fn of_fault(fault: &Fault) -> Option<String> {
    match *fault {
        Fault::QedHeader { why, .. } => of_qed_header(why).map(String::from),
        Fault::Header { why: HeaderFault::ClusterBits, value } => {
            Some(format!("Unsupported cluster size: 2^{value}"))
        }
        Fault::Header { why: HeaderFault::Compression, value } => {
            let must = if value == 0 { "must not be" } else { "must be" };
            Some(format!("qcow2: Compression type incompatible feature bit {must} set"))
        }
        Fault::Header { why, .. } => of_header(why).map(String::from),
        Fault::Extension { why, .. } => of_extension(why).map(String::from),
        Fault::New { .. }
        | Fault::L1Entry { .. }
        | Fault::L2Entry { .. }
        | Fault::Pointer { .. }
        | Fault::L2Walk { .. }
        | Fault::Reftable { .. }
        | Fault::Refcount { .. }
        | Fault::Snapshot { .. }
        | Fault::Bitmap { .. }
        | Fault::BitmapTable { .. }
        | Fault::Cluster { .. }
        | Fault::Reference { .. }
        | Fault::Overlap { .. }
        | Fault::TooManyDangling { .. }
        | Fault::Dangling { .. }
        | Fault::Compressed { .. }
        | Fault::Luks { .. } => None,
    }
}

fn of_qed_header(why: QedFault) -> Option<&'static str> {
    match why {
        QedFault::Magic => Some("Image not in QED format"),
        QedFault::ClusterSize => Some("QED cluster size is invalid"),
        QedFault::TableSize => Some("QED table size is invalid"),
        QedFault::SizeUnaligned | QedFault::SizeTooLarge => Some("QED image size is invalid"),
        QedFault::NoHeader
        | QedFault::HeaderTooLarge
        | QedFault::L1Unaligned
        | QedFault::L1InHeader
        | QedFault::L1Beyond => Some("QED table offset is invalid"),
        QedFault::BackingTooLong | QedFault::BackingOutside => None,
    }
}

fn of_header(why: HeaderFault) -> Option<&'static str> {
    Some(match why {
        HeaderFault::Magic => "Image is not in qcow2 format",
        HeaderFault::TooShort => "qcow2 header too short",
        HeaderFault::TooLong => "qcow2 header exceeds cluster size",
        HeaderFault::BackingOutside => "Invalid backing file offset",
        HeaderFault::BackingTooLong => "Backing file name too long",
        HeaderFault::MarkedCorrupt | HeaderFault::NotRepaired => {
            "qcow2: Image is corrupt; cannot be opened read/write"
        }
        HeaderFault::RefcountOrder => "Reference count entry width too large; may not exceed 64 bits",
        HeaderFault::NoReftable => "Image does not contain a reference count table",
        HeaderFault::ReftableTooLarge => "Reference count table too large",
        HeaderFault::ReftableUnaligned | HeaderFault::ReftableBeyond => {
            "Reference count table offset invalid"
        }
        HeaderFault::SnapshotsTooLarge => "Snapshot table too large",
        HeaderFault::SnapshotsUnaligned => "Snapshot table offset invalid",
        HeaderFault::L1TooLarge => "Active L1 table too large",
        HeaderFault::L1Unaligned | HeaderFault::L1Beyond => "Active L1 table offset invalid",
        HeaderFault::L1TooSmall => "L1 table is too small",
        HeaderFault::SizeTooLarge => "Image is too big",
        HeaderFault::Subclusters | HeaderFault::RawDataFile => return None,
        // of these two QEMU tells the value
        HeaderFault::ClusterBits | HeaderFault::Compression => return None,
    })
}

fn of_extension(why: ExtensionFault) -> Option<&'static str> {
    match why {
        ExtensionFault::TooLong => Some("Header extension too large"),
        ExtensionFault::BackingFormat
        | ExtensionFault::NotLuks
        | ExtensionFault::Luks
        | ExtensionFault::BitmapsLength
        | ExtensionFault::BitmapsReserved
        | ExtensionFault::BitmapsCount
        | ExtensionFault::BitmapsUnaligned
        | ExtensionFault::BitmapsTooLong => None,
    }
}

/// What QEMU says of what it does not do either, or of what it would do.
fn of_lack(lack: &Lack) -> Option<String> {
    match lack {
        Lack::Format(lack) => of_format_lack(lack),
        Lack::UnnamedDataFile => Some("'data-file' is required for this image".into()),
        Lack::Decoder(_)
        | Lack::Protocol { .. }
        | Lack::DataFileName(_)
        | Lack::RebaseDamaged
        | Lack::Rebase(_)
        | Lack::CheckRaw => None,
    }
}

fn of_format_lack(lack: &FormatLack) -> Option<String> {
    Some(match lack {
        FormatLack::QedFeatures(bits) => format!("Unsupported QED features: {bits:x}"),
        FormatLack::Version(version) => format!("Unsupported qcow2 version {version}"),
        FormatLack::Compression(kind) => format!("qcow2: unknown compression type: {kind}"),
        FormatLack::Features { named, unknown } => {
            let mut features: Vec<String> =
                named.iter().map(|name| name.escape_debug().to_string()).collect();
            if *unknown != 0 {
                features.push(format!("Unknown incompatible feature: {unknown:x}"));
            }
            format!("Unsupported qcow2 feature(s): {}", features.join(", "))
        }
        FormatLack::BackingFormat(name) => {
            format!("Could not open backing file: Unknown driver '{}'", name.escape_debug())
        }
        FormatLack::QedCompatFeatures(_)
        | FormatLack::Encryption(_)
        | FormatLack::SmallClusters(_)
        | FormatLack::Check(_)
        | FormatLack::ShrinkQed
        | FormatLack::GrowQed
        | FormatLack::ResizeVersion2
        | FormatLack::ResizeDataFile
        | FormatLack::ResizeDevice(_)
        | FormatLack::RefcountOverflow(_)
        | FormatLack::TooManySnapshots
        | FormatLack::SnapshotBitmaps
        | FormatLack::SnapshotDataFile
        | FormatLack::Snapshots(_)
        | FormatLack::WriteCompressed
        | FormatLack::Bitmap(_) => return None,
    })
}

/// What QEMU says on stderr when it meets this in an open image. None: it has no words for it.
pub fn met_corruption(error: &Error, writable: bool) -> Option<String> {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    // as C prints it
    let hex = |number: u64| if number == 0 { "0".into() } else { format!("{number:#x}") };
    let Some(ErrorKind::Corrupt(fault)) = error.kind() else { return None };
    let what = match *fault {
        Fault::Reftable { index, entry, why: ReftableFault::Unaligned } => {
            format!("Refblock offset {entry:#x} unaligned (reftable index: {})", hex(index))
        }
        Fault::L1Entry { index, entry, why: L1Fault::Unaligned } => {
            format!("L2 table offset {:#x} unaligned (L1 index: {})", entry & OFFSET, hex(index))
        }
        _ => return None,
    };
    Some(match writable {
        true => {
            format!("qcow2: Marking image as corrupt: {what}; further corruption events will be suppressed")
        }
        false => {
            format!("qcow2: Image is corrupt: {what}; further non-fatal corruption events will be suppressed")
        }
    })
}

/// Which field, which value, what is wrong: for a header that is one of its format, but a broken one.
fn detail(error: &Error) -> Option<String> {
    let Some(ErrorKind::Corrupt(fault)) = error.kind() else { return None };
    if matches!(
        fault,
        Fault::Header { why: HeaderFault::Magic, .. } | Fault::QedHeader { why: QedFault::Magic, .. }
    ) {
        return None;
    }
    of_fault(fault)?;
    let ((place, what), (_, value)) = (fault.prose(), fault.numbers());
    Some(format!("{place} = {value:#x}: {what}"))
}

/// Said when an image is opened for writing that nobody called raw.
pub fn warn_about_probing(path: &Path) {
    complain!(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
        path.display()
    );
}

/// Said before an image is changed for the first time, if that ends bitmaps that were valid until now.
pub fn warn_about_bitmaps(path: &Path, bitmaps: &Bitmaps) {
    warn_about(path, &bitmaps.names, bitmaps.valid, bitmaps.dropped);
}

fn warn_about(path: &Path, names: &[Vec<u8>], valid: u32, dropped: bool) {
    let names: Vec<String> =
        names.iter().map(|name| format!("\"{}\"", String::from_utf8_lossy(name).escape_debug())).collect();
    let several = valid > 1;
    let list = match (names.len() as u32, valid) {
        (0, valid) => format!("{valid} persistent bitmap{}", if several { "s" } else { "" }),
        (known, valid) => {
            let more = if known < valid { format!(" and {} more", valid - known) } else { String::new() };
            format!("the persistent bitmap{} {}{more}", if several { "s" } else { "" }, names.join(", "))
        }
    };
    let why = match dropped {
        true => "the image was not closed cleanly, and its repair makes",
        false => "changing the image makes",
    };
    complain!("{}: warning: '{}': {why} {list} inconsistent", program(), path.display());
}

/// The same of an image that was looked at, whose disk is about to get another size.
pub fn warn_of_bitmaps(image: &ImageInfo) {
    const IN_USE: u32 = 1;
    let all = image.qcow2.as_deref().map_or(&[][..], |facts| &facts.bitmaps);
    let valid = all.iter().filter(|bitmap| bitmap.flags & IN_USE == 0);
    let names: Vec<Vec<u8>> = valid.map(|bitmap| bitmap.name.clone()).collect();
    if !names.is_empty() {
        warn_about(&image.path, &names, names.len() as u32, false);
    }
}

/// The same of a disk that was just opened, which is about to be changed: if its bitmaps are not kept up.
pub fn warn_of_change(path: &Path, disk: Option<&DiskInfo>) {
    if let Some(bitmaps) = bitmaps_of(disk).filter(|bitmaps| !bitmaps.kept) {
        warn_about_bitmaps(path, bitmaps);
    }
}

/// The same of one that is about to get another size.
pub fn warn_of_size(path: &Path, disk: Option<&DiskInfo>) {
    if let Some(bitmaps) = bitmaps_of(disk) {
        warn_about_bitmaps(path, bitmaps);
    }
}

fn bitmaps_of(disk: Option<&DiskInfo>) -> Option<&Bitmaps> {
    disk.and_then(|disk| disk.image().info.bitmaps.as_ref())
}

/// Ends a command with the reason why its image could not be opened.
pub fn could_not_open(path: &Path, error: &Error) -> ExitCode {
    let text = format!("Could not open '{}': {}", path.display(), why_not_opened(path, error));
    // who asked for qemu-img gets its words alone
    match detail(error).filter(|_| !stands_in()) {
        Some(detail) => fail(format!("{text} ({detail})")),
        None => fail(text),
    }
}

/// Rules of formats that QEMU has words of its own for.
pub fn resize_rule(format: Format, old: u64, new: u64) -> Option<&'static str> {
    match format {
        Format::Qed if !new.is_multiple_of(512) => Some("Invalid image size specified"),
        Format::Qed if new < old => Some("Shrinking images is currently not supported"),
        Format::Qcow2 if !new.is_multiple_of(512) => Some("The new size must be a multiple of 512"),
        _ => None,
    }
}
