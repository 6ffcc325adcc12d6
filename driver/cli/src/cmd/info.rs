//! `quod info`: what an image file is, as `qemu-img info` tells it.
//!
//! Knows: the facts of `quod_tools::info`, and how they are printed. Must never know: headers.

use super::common::{Asked, BEHIND_OUTPUT};
use crate::out::fail;
use crate::words::failure::could_not_open;
use crate::words::format::Output;
use crate::words::{format, json, luks, qcow2, sizes};
use quod::{Error, ErrorKind, Foreign, Format};
use quod_tools::{self as tools, Below, ForeignInfo, ImageInfo};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::ExitCode;

/// A chain longer than this is refused; a loop is found before.
const LAYERS_MAX: usize = 200;

/// Show what an image file is
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    asked: Asked,
    /// Show every image of the backing chain
    #[arg(long, display_order = BEHIND_OUTPUT)]
    backing_chain: bool,
}

/// Runs the command.
pub fn run(mut args: Args) -> ExitCode {
    let format = match args.asked.format() {
        Ok(format) => format,
        Err(code) => return code,
    };
    let top = match tools::info(&args.asked.file, format, args.asked.force_share) {
        Ok(layer) => layer,
        Err(Error::File { kind: ErrorKind::Foreign(format), .. }) if !args.backing_chain => {
            return tell_foreign(&args, format);
        }
        Err(error) => return args.asked.not_opened(&error),
    };
    let mut layers = vec![top];
    while let Some(next) = next_layer(&layers, &args) {
        match next {
            Ok(layer) => layers.push(layer),
            Err(code) => return code,
        }
    }
    print(&args, &layers);
    ExitCode::SUCCESS
}

/// The image below the last one, if there is one and the chain is wanted: whole, or not at all.
fn next_layer(layers: &[ImageInfo], args: &Args) -> Option<Result<ImageInfo, ExitCode>> {
    let last = layers.last().filter(|_| args.backing_chain)?;
    let Below { path, format } = match last.below.as_ref()? {
        Ok(below) => below,
        Err(text) => {
            let name = backing_name(last).unwrap_or_default();
            return Some(Err(fail(format!("Could not open '{name}': {text}"))));
        }
    };
    if layers.len() == LAYERS_MAX || layers.iter().any(|layer| same_file(&layer.path, path)) {
        let text = format!("Backing file '{}' creates an infinite loop.", path.display());
        return Some(Err(fail(text)));
    }
    Some(tools::info(path, *format, args.asked.force_share).map_err(|error| could_not_open(path, &error)))
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn print(args: &Args, layers: &[ImageInfo]) {
    match args.asked.output {
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
    Some(layer.qcow2.as_deref()?.not_shown).filter(|bytes| *bytes > 0)
}

fn backing_name(layer: &ImageInfo) -> Option<String> {
    layer.info.backing.as_ref().map(|backing| String::from_utf8_lossy(&backing.name).into_owned())
}

/// The backing file's format as it stands in the image.
fn backing_format(layer: &ImageInfo) -> Option<String> {
    let name = layer.info.backing.as_ref()?.format_name.as_ref()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn bytes(value: u64) -> String {
    format!("{} ({value} bytes)", sizes::rounded(value))
}

fn human(layer: &ImageInfo) -> String {
    let mut lines = vec![
        format!("image: {}", layer.path.display()),
        format!("file format: {}", format::name(layer.info.format)),
        format!("virtual size: {}", bytes(virtual_size(layer))),
        format!("disk size: {}", sizes::rounded(layer.disk_size)),
    ];
    if let Some(bytes) = not_shown(layer) {
        lines.push(format!("not shown: the last {bytes} bytes (its size is no multiple of 512)"));
    }
    if is_encrypted(layer) {
        lines.push("encrypted: yes".into());
    }
    if layer.info.format != Format::Raw {
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
    if let Some(format) = backing_format(layer) {
        lines.push(format!("backing file format: {format}"));
    }
    if let Some(facts) = layer.qcow2.as_deref() {
        lines.extend(qcow2::human(layer, facts));
    }
    lines.extend(host_lines(&layer.path, layer.is_device, layer.file_len, layer.disk_size));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn host_lines(path: &Path, is_device: bool, file_len: u64, disk_size: u64) -> [String; 5] {
    [
        "Child node '/file':".into(),
        format!("    filename: {}", path.display()),
        format!("    protocol type: {}", protocol(is_device)),
        format!("    file length: {}", bytes(file_len.next_multiple_of(512))),
        format!("    disk size: {}", sizes::rounded(disk_size)),
    ]
}

/// Where the backing file is, as far as it is a file's name; a description stands for itself.
fn full_backing_name(layer: &ImageInfo) -> Option<String> {
    let path = layer.backing_path.as_ref().map(|path| path.display().to_string());
    path.or_else(|| backing_name(layer))
}

/// QEMU says `dirty-flag: false` of every QED image, whatever its need-check bit says, and so does this.
fn is_dirty(layer: &ImageInfo) -> bool {
    layer.info.format == Format::Qcow2 && layer.info.dirty
}

fn is_encrypted(layer: &ImageInfo) -> bool {
    layer.qcow2.as_deref().is_some_and(|facts| facts.encryption.is_some())
}

/// QEMU's driver of a file, or of a device.
fn protocol(is_device: bool) -> &'static str {
    if is_device { "host_device" } else { "file" }
}

fn host_object(path: &Path, is_device: bool, file_len: u64, disk_size: u64) -> Value {
    let file = json!({
        "children": [],
        "virtual-size": file_len.next_multiple_of(512),
        "filename": path.display().to_string(),
        "format": protocol(is_device),
        "actual-size": disk_size,
        "format-specific": {"type": "file", "data": {}},
        "dirty-flag": false,
    });
    json!([{"name": "file", "info": file}])
}

/// Fields in the order in which qemu-img happens to print them.
fn object(layer: &ImageInfo) -> Value {
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_string(), value);
    add("children", host_object(&layer.path, layer.is_device, layer.file_len, layer.disk_size));
    if let Some(format) = backing_format(layer) {
        add("backing-filename-format", format.into());
    }
    if let Some(facts) = layer.qcow2.as_deref().filter(|facts| !facts.snapshots.is_empty()) {
        add("snapshots", facts.snapshots.iter().map(qcow2::snapshot).collect());
    }
    add("virtual-size", virtual_size(layer).into());
    if let Some(bytes) = not_shown(layer) {
        add("not-shown", bytes.into());
    }
    add("filename", layer.path.display().to_string().into());
    if layer.info.format != Format::Raw {
        add("cluster-size", layer.info.cluster_size.into());
    }
    add("format", format::name(layer.info.format).into());
    add("actual-size", layer.disk_size.into());
    if let Some(facts) = layer.qcow2.as_deref() {
        add("format-specific", json!({"type": "qcow2", "data": qcow2::specific(layer, facts)}));
    }
    if let Some(full) = full_backing_name(layer) {
        add("full-backing-filename", full.into());
    }
    if is_encrypted(layer) {
        add("encrypted", true.into());
    }
    if let Some(name) = backing_name(layer) {
        add("backing-filename", name.into());
    }
    add("dirty-flag", is_dirty(layer).into());
    Value::Object(fields)
}

/// A file of a format that quod does not read: its name, and what its header says plainly.
fn tell_foreign(args: &Args, format: Foreign) -> ExitCode {
    let facts = match tools::foreign(&args.asked.file, format, args.asked.force_share) {
        Ok(facts) => facts,
        Err(error) => return args.asked.not_opened(&error),
    };
    match args.asked.output {
        Output::Human => say!("{}", foreign_human(&facts)),
        Output::Json => sayln!("{}", json::pretty(&foreign_object(&facts))),
    }
    ExitCode::SUCCESS
}

fn foreign_human(facts: &ForeignInfo) -> String {
    let mut lines =
        vec![format!("image: {}", facts.path.display()), format!("file format: {}", facts.format.name())];
    lines.extend(facts.virtual_size.map(|size| format!("virtual size: {}", bytes(size))));
    lines.push(format!("disk size: {}", sizes::rounded(facts.disk_size)));
    if let Some(luks) = &facts.luks {
        lines.push("encrypted: yes".into());
        lines.extend(luks::human(luks));
    }
    lines.extend(host_lines(&facts.path, facts.is_device, facts.file_len, facts.disk_size));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn foreign_object(facts: &ForeignInfo) -> Value {
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_string(), value);
    add("children", host_object(&facts.path, facts.is_device, facts.file_len, facts.disk_size));
    if let Some(size) = facts.virtual_size {
        add("virtual-size", size.into());
    }
    add("filename", facts.path.display().to_string().into());
    add("format", facts.format.name().into());
    add("actual-size", facts.disk_size.into());
    if let Some(luks) = &facts.luks {
        add("format-specific", json!({"type": "luks", "data": luks::luks(luks, None)}));
        add("encrypted", true.into());
    }
    add("dirty-flag", false.into());
    Value::Object(fields)
}
