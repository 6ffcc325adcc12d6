//! How much room an image takes: for a device that it shall lie on.
//!
//! Knows: sizes. Must never know: files, devices.

use crate::create::{CreateOptions, plan_qcow2, plan_qed};
use quod::{Error, Format};
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
