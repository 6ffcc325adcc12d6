//! `quod create`: makes an image, with the options and the words of `qemu-img create`.
//!
//! Knows: names and limits of options, backing files as arguments. Must never know: how an image is laid out.

use crate::interrupt;
use crate::out::{fail, note};
use crate::words::failure::why_not_opened;
use crate::words::open::file_named;
use crate::words::sizes::SizeError;
use crate::words::{format, sizes};
pub use options::{Refused, Values, WINDOW, help};
use quod::fault::NewFault;
use quod::{AllowAll, DeviceOp, Error, ErrorKind, Fault, Format, Named, OpenOptions, Role, describe};
use quod_tools::{self as tools, CreateOptions, Qcow2Options, Session};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod options;
mod qcow2;

/// Bytes of a QED cluster unless an option says otherwise.
const CLUSTER_SIZE: u64 = 65536;
/// Clusters of a QED table unless an option says otherwise.
const TABLE_SIZE: u64 = 4;

/// Bytes of a backing file's name at most.
const NAME_MAX: usize = 1023;

/// Make a new image
#[derive(clap::Args)]
pub struct Args {
    /// Format of the new image: raw, qed or qcow2
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the format, NAME=VALUE[,...]; 'help' lists them
    #[arg(short, value_name = "OPTS")]
    options: Vec<String>,
    /// Backing file
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Do not look whether the backing file exists
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The new image
    file: Option<PathBuf>,
    /// Size of the guest disk (b k K M G T P E; 1024 based)
    #[arg(allow_hyphen_values = true)]
    size: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    if args.options.iter().any(|list| list == "help" || list == "?") {
        return match format::parse(&args.format) {
            Ok(format) => {
                say!("{}", options::help(format));
                ExitCode::SUCCESS
            }
            Err(_) => fail(format!("Unknown file format '{}'", args.format)),
        };
    }
    let Some(file) = args.file.clone() else { return fail("Expecting image file name") };
    interrupt::watch();
    match make(&args, &file) {
        Ok(()) => {
            if interrupt::asked() {
                note(format_args!("interrupted: '{}' is complete", file.display()));
            }
            ExitCode::SUCCESS
        }
        Err(text) => fail(text),
    }
}

fn make(args: &Args, file: &Path) -> Result<(), String> {
    let here = |text: String| format!("{}: {text}", file.display());
    let format =
        format::parse(&args.format).map_err(|_| here(format!("Unknown file format '{}'", args.format)))?;
    let mut values = read_options(args, format).map_err(|refused| match refused {
        Refused::List(list) => format!("Invalid option list: {list}"),
        Refused::Item(text) => here(text),
    })?;
    if values.text(WINDOW).is_some() {
        return Err(here(format!("'{WINDOW}' is said where clusters are written: convert -c")));
    }
    if let Some(text) = &args.size {
        if values.text("size").is_some() {
            return Err(here("The image size must be specified only once".into()));
        }
        values.set("size", image_size(text)?.to_string());
    }
    let backing_format = look_at_backing(args, file, &mut values).map_err(here)?;
    let size = values.size("size").ok_or_else(|| here("Image creation needs a size parameter".into()))?;
    if !args.quiet {
        sayln!("Formatting '{}', fmt={}{}", file.display(), args.format, values.announce());
    }
    let options = image_options(format, size, &values, backing_format).map_err(here)?;
    tools::create_until(file_named(file), &options, interrupt::asked)
        .map_err(|error| why_not_created(&options, &error).map_or_else(|| error.to_string(), here))
}

/// The options in the driver's terms; what excludes each other is refused in QEMU's words.
pub fn image_options(
    format: Format,
    size: u64,
    values: &Values,
    backing: Option<Format>,
) -> Result<CreateOptions, String> {
    let qcow2 = match format {
        Format::Qcow2 => qcow2::options(values)?,
        Format::Qed => {
            validate_qed(values, size)?;
            Qcow2Options::default()
        }
        Format::Raw => Qcow2Options::default(),
    };
    if values.size("extent_size_hint").is_some_and(|hint| u32::try_from(hint).is_err()) {
        return Err("Extent size hint is too large".into());
    }
    let usual = CreateOptions::new(format, size);
    let small = |name| values.size(name).and_then(|value| u32::try_from(value).ok());
    Ok(CreateOptions {
        format,
        size: size.next_multiple_of(512),
        cluster_size: small("cluster_size"),
        table_size: small("table_size"),
        backing: values.text("backing_file").map(|name| (name.to_string(), backing)),
        extent_size_hint: small("extent_size_hint").unwrap_or(usual.extent_size_hint),
        qcow2,
    })
}

/// QEMU's words, if it has some, and the image's name is not said yet.
pub fn why_not_created(options: &CreateOptions, error: &Error) -> Option<String> {
    let file = error.path().unwrap_or(Path::new(""));
    let named = |errno| format!("Could not create '{}': {}", file.display(), describe(errno));
    let kind = match error {
        Error::Cancelled => return Some("interrupted; what was made is removed".into()),
        Error::Backend { errno, .. } => return Some(named(*errno)),
        Error::Misuse(_) => return why_not_assigned(options),
        Error::File { kind, .. } => kind,
        _ => return None,
    };
    Some(match kind {
        ErrorKind::Io { errno, .. }
        | ErrorKind::Device { op: DeviceOp::Write | DeviceOp::Reserve, errno, .. } => named(*errno),
        ErrorKind::NoSpace => named(libc::ENOSPC),
        ErrorKind::Locked(_) => why_not_opened(file, error),
        ErrorKind::Device { errno: libc::EFBIG, .. } if options.format == Format::Raw => {
            "The image size is too large for file format 'raw'".into()
        }
        ErrorKind::Corrupt(Fault::New { why: NewFault::QedSize | NewFault::Size, .. }) => format!(
            "The image size is too large for file format '{}' (try using a larger cluster size)",
            options.format.name()
        ),
        ErrorKind::Corrupt(_) => return why_not_assigned(options),
        _ => return None,
    })
}

/// Wishes that exclude each other were refused before: what is left is a name that does not fit.
fn why_not_assigned(options: &CreateOptions) -> Option<String> {
    let (name, format) = options.backing.as_ref()?;
    let format = format.map_or("", Format::name);
    let why = describe(if name.len() > NAME_MAX { libc::EINVAL } else { libc::ENOSPC });
    Some(format!("Could not assign backing file '{name}' with format '{format}': {why}"))
}

fn image_size(text: &str) -> Result<u64, String> {
    sizes::parse(text).map_err(|error| match error {
        SizeError::NotANumber => format!("Invalid image size specified: '{text}'."),
        SizeError::OutOfRange => {
            format!("Invalid image size specified. Must be between 0 and {}.", i64::MAX)
        }
    })
}

/// What quod does not do for a raw image.
pub fn lacks_of_raw(values: &Values) -> Result<(), String> {
    match values.text("preallocation").filter(|value| *value != "off") {
        Some(value) => Err(format!("Parameter 'preallocation' does not accept value '{value}' (only off)")),
        None => Ok(()),
    }
}

fn read_options(args: &Args, format: Format) -> Result<Values, Refused> {
    let mut values = Values::new(format);
    args.options.iter().try_for_each(|list| values.read(list))?;
    if format == Format::Raw {
        lacks_of_raw(&values).map_err(Refused::Item)?;
        let given = [("file", args.backing.is_some()), ("format", args.backing_format.is_some())];
        if let Some((what, _)) = given.into_iter().find(|(_, given)| *given) {
            let text = format!("Backing {what} not supported for file format '{}'", args.format);
            return Err(Refused::Item(text));
        }
    }
    if let Some(name) = &args.backing {
        values.set("backing_file", name.clone());
    }
    if let Some(name) = &args.backing_format {
        values.set("backing_fmt", name.clone());
    }
    Ok(values)
}

/// Checks what is said of the backing file and takes the size from it if none was given. The backing format.
fn look_at_backing(args: &Args, file: &Path, values: &mut Values) -> Result<Option<Format>, String> {
    let format = match values.text("backing_fmt") {
        Some(name) => {
            Some(format::parse(name).map_err(|text| format!("{text}\nCould not open backing image."))?)
        }
        None => None,
    };
    let Some(name) = values.text("backing_file") else { return Ok(format) };
    if name.is_empty() {
        return Err("Expected backing file name, got empty string".into());
    }
    let path = Named { image: file, name: name.as_bytes(), role: Role::Backing }.path();
    if path.as_deref() == Some(file) {
        return Err("Error: Trying to create an image with the same filename as the backing file".into());
    }
    if args.backing_unsafe {
        let none = format.is_none();
        return if none { Err("Backing file specified without backing format".into()) } else { Ok(format) };
    }
    let could_not = |text: String| format!("{text}\nCould not open backing image.");
    let path = path.ok_or_else(|| could_not(no_file(name)))?;
    // with everything below it: an overlay that nobody can open is not made
    let options = OpenOptions::new().format(format).lock(false).open_gate(AllowAll);
    let session = Session::open(&path, options).map_err(|error| could_not(why_not_opened(&path, &error)))?;
    let info = session.info().cloned().ok_or_else(|| could_not(Error::Closed.to_string()))?;
    session.close().map_err(|error| could_not(error.to_string()))?;
    if format.is_none() {
        let found = format::name(info.format());
        return Err(format!("Backing file specified without backing format\nDetected format of {found}."));
    }
    if values.text("size").is_none() {
        values.set("size", info.virtual_size().to_string());
    }
    Ok(format)
}

/// Of a name that leads QEMU to no file.
fn no_file(name: &str) -> String {
    match name.split_once(':') {
        Some(("json", _)) => format!("'{name}' describes a block device; only files are opened"),
        Some((protocol, _)) => format!("Unknown protocol '{protocol}'"),
        None => format!("'{name}' is no file's name"),
    }
}

fn validate_qed(values: &Values, size: u64) -> Result<(), String> {
    let cluster = values.size("cluster_size").unwrap_or(CLUSTER_SIZE);
    let table = values.size("table_size").unwrap_or(TABLE_SIZE);
    if !(4096..=67_108_864).contains(&cluster) || !cluster.is_power_of_two() {
        return Err("QED cluster size must be within range [4096, 67108864] and power of 2".into());
    }
    if !(1..=16).contains(&table) || !table.is_power_of_two() {
        return Err("QED table size must be within range [1, 16] and power of 2".into());
    }
    let entries = u128::from(table * cluster / 8);
    let limit = entries * entries * u128::from(cluster);
    if u128::from(size) > limit {
        return Err(format!(
            "QED image size must be a non-zero multiple of cluster size and less than {limit} bytes"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_does_not_wrap() {
        let wanted = |options: &str| {
            let mut values = Values::new(Format::Qed);
            values.read(options).unwrap();
            values
        };
        let plain = Values::new(Format::Qed);
        assert_eq!(validate_qed(&plain, 1 << 46), Ok(()));
        assert!(validate_qed(&plain, (1 << 46) + 512).unwrap_err().contains("70368744177664"));
        let small = wanted("cluster_size=4k,table_size=1");
        assert!(validate_qed(&small, 2 << 30).unwrap_err().contains("1073741824"));
        assert_eq!(validate_qed(&wanted("cluster_size=64M,table_size=16"), i64::MAX as u64), Ok(()));
        assert!(validate_qed(&wanted("cluster_size=3000"), 0).is_err());
        assert!(validate_qed(&wanted("cluster_size=4k,table_size=3"), 0).is_err());
    }
}
