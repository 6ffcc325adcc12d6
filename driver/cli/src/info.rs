//! `quod info`: what an image file is, as `qemu-img info` tells it.
//!
//! Knows: the facts of `quod::tools::info`, and how they are printed. Must never know: headers.

use crate::failure::could_not_open;
use crate::format::{self, Output};
use crate::{failure, json, qcow2, sizes};
use quod::Format;
use quod::tools::{self, ImageInfo};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A chain longer than this is refused; a loop is found before.
const LAYERS_MAX: usize = 200;

/// Show what an image file is
#[derive(clap::Args)]
pub struct Args {
    /// Format of the image (default: probe)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// How to answer
    #[arg(long, value_enum, value_name = "OFMT", default_value_t)]
    output: Output,
    /// Show every image of the backing chain
    #[arg(long)]
    backing_chain: bool,
    /// Look even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    file: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let mut format = match args.format.as_deref().map(format::parse).transpose() {
        Ok(format) => format,
        Err(text) => return failure::fail(format!("Could not open '{}': {text}", args.file.display())),
    };
    let mut layers: Vec<ImageInfo> = Vec::new();
    let mut next = Some(args.file.clone());
    while let Some(path) = next.take() {
        if layers.len() == LAYERS_MAX || layers.iter().any(|layer| same_file(&layer.path, &path)) {
            return failure::fail(format!("Backing file '{}' creates an infinite loop.", path.display()));
        }
        let layer = match tools::info(&path, format, args.force_share) {
            Ok(layer) => layer,
            Err(error) => return could_not_open(&path, &error),
        };
        if args.backing_chain {
            next = layer.backing_path.clone();
            format = layer.info.backing.as_ref().and_then(|backing| backing.format);
        }
        layers.push(layer);
    }
    print(&args, &layers);
    ExitCode::SUCCESS
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn print(args: &Args, layers: &[ImageInfo]) {
    match args.output {
        Output::Human => {
            let texts: Vec<String> = layers.iter().map(human).collect();
            say!("{}", texts.join("\n"));
        }
        Output::Json if args.backing_chain => {
            sayln!("{}", json::pretty(&Value::Array(layers.iter().map(object).collect())));
        }
        Output::Json => {
            let all: Vec<String> = layers.iter().map(|layer| json::pretty(&object(layer))).collect();
            sayln!("{}", all.join("\n"));
        }
    }
}

/// The length of the guest disk; of a raw file, whole sectors.
fn virtual_size(layer: &ImageInfo) -> u64 {
    layer.info.virtual_size.next_multiple_of(512)
}

/// Bytes at the end of a qcow2 image's disk that no guest sees, for QEMU as for us.
fn not_shown(layer: &ImageInfo) -> Option<u64> {
    let header = &layer.qcow2.as_ref()?.header;
    header.size.checked_sub(header.guest_size()).filter(|bytes| *bytes > 0)
}

fn backing_name(layer: &ImageInfo) -> Option<String> {
    layer.info.backing.as_ref().map(|backing| String::from_utf8_lossy(&backing.name).into_owned())
}

fn human(layer: &ImageInfo) -> String {
    let bytes = |value| format!("{} ({value} bytes)", sizes::rounded(value));
    let path = layer.path.display();
    let mut lines = vec![
        format!("image: {path}"),
        format!("file format: {}", format::name(layer.format)),
        format!("virtual size: {}", bytes(virtual_size(layer))),
        format!("disk size: {}", sizes::rounded(layer.disk_size)),
    ];
    if let Some(bytes) = not_shown(layer) {
        lines.push(format!("not shown: the last {bytes} bytes (its size is no multiple of 512)"));
    }
    if layer.format != Format::Raw {
        lines.push(format!("cluster_size: {}", layer.info.cluster_size));
    }
    if is_dirty(layer) {
        lines.push("cleanly shut down: no".into());
    }
    if let Some(name) = backing_name(layer) {
        let full = full_backing_name(layer);
        lines.push(match full {
            Some(full) if full != name => format!("backing file: {name} (actual path: {full})"),
            _ => format!("backing file: {name}"),
        });
    }
    if let Some(format) = layer.info.backing.as_ref().and_then(|backing| backing.format) {
        lines.push(format!("backing file format: {}", format::name(format)));
    }
    if let Some(facts) = &layer.qcow2 {
        lines.extend(qcow2::human(facts));
    }
    lines.push("Child node '/file':".into());
    lines.push(format!("    filename: {path}"));
    lines.push("    protocol type: file".into());
    lines.push(format!("    file length: {}", bytes(layer.file_len.next_multiple_of(512))));
    lines.push(format!("    disk size: {}", sizes::rounded(layer.disk_size)));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn full_backing_name(layer: &ImageInfo) -> Option<String> {
    layer.backing_path.as_ref().map(|path| path.display().to_string())
}

/// QEMU says `dirty-flag: false` of every QED image, whatever its need-check bit says, and so does this.
fn is_dirty(layer: &ImageInfo) -> bool {
    layer.format == Format::Qcow2 && layer.info.dirty
}

/// Fields in the order in which qemu-img happens to print them.
fn object(layer: &ImageInfo) -> Value {
    let path = layer.path.display().to_string();
    let file = json!({
        "children": [],
        "virtual-size": layer.file_len.next_multiple_of(512),
        "filename": path,
        "format": "file",
        "actual-size": layer.disk_size,
        "format-specific": {"type": "file", "data": {}},
        "dirty-flag": false,
    });
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_string(), value);
    add("children", json!([{"name": "file", "info": file}]));
    if let Some(format) = layer.info.backing.as_ref().and_then(|backing| backing.format) {
        add("backing-filename-format", format::name(format).into());
    }
    if let Some(facts) = layer.qcow2.as_ref().filter(|facts| !facts.snapshots.is_empty()) {
        add("snapshots", facts.snapshots.iter().map(qcow2::snapshot).collect());
    }
    add("virtual-size", virtual_size(layer).into());
    if let Some(bytes) = not_shown(layer) {
        add("not-shown", bytes.into());
    }
    add("filename", path.into());
    if layer.format != Format::Raw {
        add("cluster-size", layer.info.cluster_size.into());
    }
    add("format", format::name(layer.format).into());
    add("actual-size", layer.disk_size.into());
    if let Some(facts) = &layer.qcow2 {
        add("format-specific", json!({"type": "qcow2", "data": qcow2::specific(facts)}));
    }
    if let Some(full) = full_backing_name(layer) {
        add("full-backing-filename", full.into());
    }
    if let Some(name) = backing_name(layer) {
        add("backing-filename", name.into());
    }
    add("dirty-flag", is_dirty(layer).into());
    Value::Object(fields)
}
