//! New images.
//!
//! Knows: what the formats' own `create` takes. Must never know: what the guest writes.

use super::form::{DATA, Data, Form, Qcow2, Shape};
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::Format;
use quod_states::qcow2::header::Compression;
use quod_states::qcow2::{self, Preallocation};
use quod_states::qed::{self, CreateOptions};

/// A new image.
pub fn create(shape: &Shape) -> Checked<Vec<u8>> {
    match shape.form {
        Form::Raw if shape.backing.is_some() => fail("a raw image has no backing file"),
        Form::Raw => Ok(vec![0; shape.size as usize]),
        Form::Qed { cluster, table } => create_qed(shape, cluster, table),
        Form::Qcow2(options) => create_qcow2(shape, &options),
    }
}

fn create_qed(shape: &Shape, cluster_size: u32, table_size: u32) -> Checked<Vec<u8>> {
    let options = CreateOptions {
        size: shape.size,
        cluster_size,
        table_size,
        backing: shape.backing.as_ref().map(|(name, _)| name.as_bytes()),
        backing_raw: shape.backing.as_ref().is_some_and(|(_, format)| *format == Format::Raw),
    };
    let header = qed::Header::create(&options).map_err(|error| Failure(format!("{shape:?}: {error}")))?;
    let mut bytes = vec![0; cluster_size as usize * (1 + table_size as usize)];
    bytes[..64].copy_from_slice(&header.encode());
    if let Some((name, _)) = &shape.backing {
        bytes[64..64 + name.len()].copy_from_slice(name.as_bytes());
    }
    Ok(bytes)
}

fn create_qcow2(shape: &Shape, options: &Qcow2) -> Checked<Vec<u8>> {
    let created = qcow2::create(&qcow2::CreateOptions {
        size: shape.size,
        version: options.version,
        cluster_size: options.cluster,
        refcount_bits: options.refcount_bits,
        lazy_refcounts: options.lazy_refcounts,
        extended_l2: options.extended_l2,
        backing: shape.backing.as_ref().map(|(name, _)| name.as_bytes()),
        backing_format: shape.backing.as_ref().map(|(_, format)| format.name().as_bytes()),
        preallocation: if options.preallocated { Preallocation::Metadata } else { Preallocation::Off },
        compression: if options.zstd { Compression::Zstd } else { Compression::Deflate },
        data_file: (options.data != Data::Inside).then_some(DATA.as_bytes()),
        data_file_raw: options.data == Data::Raw,
    });
    let created = created.map_err(|error| Failure(format!("{shape:?}: {error}")))?;
    let mut bytes = vec![0; created.len() as usize];
    for (offset, piece) in created.pieces() {
        bytes[offset as usize..offset as usize + piece.len()].copy_from_slice(&piece);
    }
    Ok(bytes)
}
