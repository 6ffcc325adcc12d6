//! Puts the metadata that a text tells back into an image.
//!
//! Knows: which text fits which image, the order of writes. Must never know: what entries mean.
//!
//! Invariants:
//! * nothing is written before all of the text was read, understood, and found to fit;
//! * bytes are written where they differ, and nowhere else; nothing behind the length that the text names;
//! * the header comes last, and is written when all else is durable.

use crate::host::Host;
use plan::Plan;
use quod::Format;
use quod_states::qcow2::{self, Purpose};
use quod_states::qed;
use std::io::BufRead;
use std::path::Path;

mod error;
mod line;
mod plan;
mod read;

pub use error::{RestoreError, Restored, TextFault, Unfit};

/// How metadata is put back.
#[derive(Clone, Copy)]
pub struct RestoreOptions {
    /// Also if the image is not the one that the text was made of, as far as can be told.
    pub force: bool,
    /// Nothing is written; what would be is told.
    pub dry_run: bool,
    /// Asked until the first byte is written: true ends with [`quod::Error::Cancelled`].
    pub stop: fn() -> bool,
    /// Told of each place that is written: its offset, and how many bytes.
    pub told: fn(u64, u64),
}

impl Default for RestoreOptions {
    fn default() -> RestoreOptions {
        RestoreOptions { force: false, dry_run: false, stop: || false, told: |_, _| {} }
    }
}

/// Puts the metadata that a text of [`dump`](crate::dump) tells into an image: header, tables, refcounts,
/// where the text says otherwise than the image does. What the text leaves out stays as it is, so a person
/// may cut it down to the lines that matter, and change them. Data is not touched. The image is locked as for
/// writing.
///
/// # Errors
/// [`RestoreError`]. A write that fails in the middle can be done again: the text has all that was meant.
pub fn restore(
    path: impl AsRef<Path>,
    text: &mut dyn BufRead,
    options: RestoreOptions,
) -> Result<Restored, RestoreError> {
    let mut host = Host::open(path.as_ref(), !options.dry_run, true)?;
    host.stop = options.stop;
    let mut plan = Plan::new(host);
    let format = read::read(text, &mut plan, |host, format, length| {
        if options.force {
            return Ok(());
        }
        fits(host, format, length)
    })?;
    if !options.force && !same_disk(&mut plan, format)? {
        return Err(RestoreError::Unfit(Unfit::Disk));
    }
    plan.carry_out(options.dry_run, options.told)
}

/// The image can be the one that the text was made of.
fn fits(host: &mut Host, text: Format, length: u64) -> Result<(), RestoreError> {
    if length != host.len() {
        return Err(RestoreError::Unfit(Unfit::Length { text: length, file: host.len() }));
    }
    match host.probe() {
        // a header that is destroyed is no sign
        Ok(image) if image != text && image != Format::Raw => {
            Err(RestoreError::Unfit(Unfit::Format { text, image }))
        }
        _ => Ok(()),
    }
}

/// The header as it is and as it will be are of one disk, if both make sense.
fn same_disk(plan: &mut Plan, format: Format) -> Result<bool, RestoreError> {
    let (old, new) = plan.first_bytes()?;
    let shape = |bytes: &[u8]| match format {
        Format::Qed => {
            let header = qed::Header::parse(bytes, u64::MAX).ok()?;
            Some((u64::from(header.cluster_size), u64::from(header.table_size), header.image_size))
        }
        _ => {
            let header = qcow2::Header::parse(bytes, Purpose::Look).ok()?;
            Some((u64::from(header.cluster_bits), u64::from(header.refcount_order), header.size))
        }
    };
    Ok(match (shape(&old), shape(&new)) {
        (Some(old), Some(new)) => old == new,
        _ => true,
    })
}
