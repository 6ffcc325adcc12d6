//! What `-o` asks of a qcow2 image: values by name, and QEMU's words for wishes that exclude each other.
//!
//! Knows: names of values, QEMU's complaints and their order. Must never know: how an image is laid out.

use super::options::Values;
use quod::Compression;
use quod_tools::{Preallocation, Qcow2Options};

/// Reads the options.
pub fn options(values: &Values) -> Result<Qcow2Options, String> {
    let unknown =
        |name: &str, value: &str| Err(format!("Parameter '{name}' does not accept value '{value}'"));
    let version = match values.text("compat") {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return unknown("version", other),
    };
    let preallocation = match values.text("preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return unknown("preallocation", other),
    };
    let compression = match values.text("compression_type") {
        None | Some("zlib") => Compression::Deflate,
        Some("zstd") => Compression::Zstd,
        Some(other) => return unknown("compression-type", other),
    };
    let options = Qcow2Options {
        version,
        refcount_bits: values.number("refcount_bits").and_then(|bits| u32::try_from(bits).ok()).unwrap_or(0),
        lazy_refcounts: values.switch("lazy_refcounts"),
        extended_l2: values.switch("extended_l2"),
        compression,
        data_file: values.text("data_file").map(String::from),
        data_file_raw: values.switch("data_file_raw"),
        preallocation,
    };
    match conflict(values, &options) {
        Some(text) => Err(text),
        None => Ok(options),
    }
}

/// The first rule that is broken, in QEMU's order.
fn conflict(values: &Values, options: &Qcow2Options) -> Option<String> {
    const NEW: &str = "compatibility level 1.1 and above (use version=v3 or greater)";
    let old = options.version < 3;
    let cluster = values.size("cluster_size").unwrap_or(0);
    let backing = values.text("backing_file").is_some();
    let bits = options.refcount_bits;
    let rules = [
        (options.extended_l2 && old, format!("Extended L2 entries are only supported with {NEW}")),
        (
            !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster),
            "Cluster size must be a power of two between 512 and 2048k".into(),
        ),
        (
            options.extended_l2 && cluster < 16384,
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes".into(),
        ),
        (
            backing && options.preallocation != Preallocation::Off && !options.extended_l2,
            "Backing file and preallocation can only be used at the same time if extended_l2 is on".into(),
        ),
        (
            values.text("backing_fmt").is_some() && !backing,
            "Backing format cannot be used without backing file".into(),
        ),
        (options.lazy_refcounts && old, format!("Lazy refcounts only supported with {NEW}")),
        (
            !bits.is_power_of_two() || bits > 64,
            "Refcount width must be a power of two and may not exceed 64 bits".into(),
        ),
        (
            bits != 16 && old,
            "Different refcount widths than 16 bits require compatibility level 1.1 or above \
             (use version=v3 or greater)"
                .into(),
        ),
        (options.data_file_raw && options.data_file.is_none(), "data-file-raw requires data-file".into()),
        (
            options.data_file_raw && backing,
            "Backing file and data-file-raw cannot be used at the same time".into(),
        ),
        (options.data_file.is_some() && old, format!("External data files are only supported with {NEW}")),
        (
            options.compression != Compression::Deflate && old,
            format!("Non-zlib compression type is only supported with {NEW}"),
        ),
    ];
    rules.into_iter().find(|(broken, _)| *broken).map(|(_, text)| text)
}
