//! How much room an image takes: for a device that it shall lie on.
//!
//! Knows: sizes, which bytes of a disk are data. Must never know: devices, how a disk is copied.

use crate::create::{CreateOptions, plan_qcow2, plan_qed};
use crate::disks::{Disks, Walk};
use crate::info::ImageInfo;
use quod::{Config, Error, Format, OpenOptions};
use quod_states::qcow2::Preallocation;
use std::path::Path;

/// What an image takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measure {
    /// Bytes when nothing is written yet, all tables included; with everything that was preallocated.
    pub required: u64,
    /// Bytes when the whole disk is written: a device of this size never runs out of space, as long as there
    /// are no snapshots.
    pub fully_allocated: u64,
}

/// The same of an image that a disk is copied to: `options.size` is the disk's, and zeros take no room.
/// With a backing file all of it may have to be written.
///
/// # Errors
/// As of [`measure`]; those of [`Driver::open`](quod::Driver::open), and a table that cannot be read.
pub fn measure_copy(
    source: &Path,
    opening: OpenOptions,
    options: &mut CreateOptions,
) -> Result<Measure, Error> {
    let mut disks = Disks::new(Config::default().requests(64))?;
    let disk = disks.open(source, opening)?;
    let mut walk = Walk::new(&disks, disk)?;
    options.size = walk.size();
    let whole = measure(options)?;
    let data = whole.fully_allocated - whole.required;
    let cluster = u64::from(options.cluster_size.unwrap_or(64 << 10));
    if options.format == Format::Raw || options.backing.is_some() || data == 0 {
        return Ok(Measure { required: whole.fully_allocated, ..whole });
    }
    let (mut at, mut used) = (0, 0);
    while at < options.size {
        let run = walk.at(&mut disks, at)?;
        let (zero, end) = (run.zero, (run.start + run.length).min(options.size));
        // clusters that have a byte of it, each once
        at = match zero {
            true => end,
            false => {
                let last = end.next_multiple_of(cluster);
                used += last - at / cluster * cluster;
                last
            }
        };
    }
    disks.close(disk)?;
    Ok(Measure { required: whole.required + used.min(data), ..whole })
}

/// Bytes that the bitmaps of an image would take in a copy of it; None: the copy, or the image, has none.
pub fn measure_bitmaps(image: &ImageInfo, options: &CreateOptions) -> Option<u64> {
    /// Fields of an entry of the directory.
    const FIXED: u64 = 24;
    const IN_USE: u32 = 1;
    let facts = image.qcow2.as_deref().filter(|_| image.info.version >= 3)?;
    if options.format != Format::Qcow2 || options.qcow2.version < 3 {
        return None;
    }
    let cluster = u64::from(options.cluster_size.unwrap_or(64 << 10));
    let (mut bytes, mut directory) = (0, 0);
    for bitmap in facts.bitmaps.iter().filter(|bitmap| bitmap.flags & IN_USE == 0) {
        let bits = image.info.virtual_size.div_ceil(1 << bitmap.granularity_bits);
        let clusters = bits.div_ceil(8).div_ceil(cluster);
        bytes += clusters * cluster + (clusters * 8).next_multiple_of(cluster);
        directory += (FIXED + bitmap.name.len() as u64).next_multiple_of(8);
    }
    Some(bytes + directory.next_multiple_of(cluster))
}

/// What an image made with these options would take. Nothing is made; a backing file is no matter, and of an
/// image with a data file only the image itself counts.
///
/// ```
/// use quod::Format;
/// use quod_tools::{CreateOptions, measure};
/// let volume = measure(&CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// assert_eq!(volume.fully_allocated, (1 << 30) + volume.required);
/// # Ok::<(), quod::Error>(())
/// ```
///
/// # Errors
/// As [`create`](crate::create) of options that contradict each other, and sizes that the format cannot have.
pub fn measure(options: &CreateOptions) -> Result<Measure, Error> {
    let path = Path::new("");
    // its name would only have to fit
    let alone = CreateOptions { backing: None, ..options.clone() };
    let (fully_allocated, data) = match options.format {
        Format::Raw => (options.size, 0),
        Format::Qed => {
            let header = plan_qed(path, &alone)?;
            let (cluster, table) = (u64::from(header.cluster_size), header.table_bytes());
            let data = options.size.next_multiple_of(cluster);
            let tables = options.size.div_ceil(table / 8 * cluster);
            (header.l1_table_offset + table + tables * table + data, data)
        }
        Format::Qcow2 => {
            let own = &options.qcow2;
            let image = plan_qcow2(path, &alone, own.data_file.as_deref(), Preallocation::Metadata)?;
            let inside = own.data_file.is_none();
            let cluster = u64::from(options.cluster_size.unwrap_or(64 << 10));
            let whole = |bytes: u64| bytes.next_multiple_of(cluster);
            (whole(image.len()), if inside { whole(options.size) } else { 0 })
        }
    };
    let whole = matches!(options.qcow2.preallocation, Preallocation::Falloc | Preallocation::Full);
    let data = if whole && options.format == Format::Qcow2 { 0 } else { data };
    Ok(Measure { required: fully_allocated - data.min(fully_allocated), fully_allocated })
}
