//! `quod bitmap`: persistent bitmaps of an image, with the words of `qemu-img bitmap`.
//!
//! Knows: the command line, QEMU's words. Must never know: how a bitmap is changed.

use super::named::{Image, Naming};
use crate::interrupt;
use crate::out::{fail, note};
use crate::words::failure::warn_about_probing;
use crate::words::sizes::{self, SizeError};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use quod::fault::{BitmapLack, FormatLack};
use quod::{BitmapAsk, BitmapBits, BitmapChange, Error, ErrorKind, Lack, Request};
use quod_tools::Session;
use std::path::PathBuf;
use std::process::ExitCode;

/// The longest name, bytes.
const NAME_MAX: usize = 1023;

/// Add, remove, clear, enable, disable or merge a persistent bitmap of an image
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    actions: Actions,
    /// Granularity of the bitmap that is added (default: a cluster, between 4k and 64k)
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    granularity: Option<String>,
    /// Merge from this image
    #[arg(short = 'b', long, value_name = "FILE")]
    source_file: Option<PathBuf>,
    /// Format of that image (default: probe)
    #[arg(short = 'F', long, value_name = "FMT")]
    source_format: Option<String>,
    #[command(flatten)]
    naming: Naming,
    /// The image, and the name of the bitmap
    #[arg(value_name = "FILE BITMAP")]
    operands: Vec<String>,
}

/// What is done, one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Action {
    const fn verb(&self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Clear => "clear",
            Action::Enable => "enable",
            Action::Disable => "disable",
            Action::Merge(_) => "merge",
        }
    }
}

/// Those of the command line, in their order.
struct Actions(Vec<Action>);

/// Option, what it does, whether it has a value.
const OPTIONS: [(&str, &str, bool); 6] = [
    ("add", "Add the bitmap, enabled and without a bit that is set", false),
    ("remove", "Remove the bitmap", false),
    ("clear", "Clear all bits of the bitmap", false),
    ("enable", "Have the bitmap kept up from now on", false),
    ("disable", "Have the bitmap left as it is from now on", false),
    ("merge", "Set the bits of this bitmap in the bitmap, too", true),
];

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Actions, clap::Error> {
        let mut found = Vec::new();
        for (option, _, _) in OPTIONS {
            let places = matches.indices_of(option).into_iter().flatten();
            let values = matches.get_many::<String>(option).into_iter().flatten();
            found.extend(places.zip(values).map(|(place, value)| {
                let action = match option {
                    "add" => Action::Add,
                    "remove" => Action::Remove,
                    "clear" => Action::Clear,
                    "enable" => Action::Enable,
                    "disable" => Action::Disable,
                    _ => Action::Merge(value.clone()),
                };
                (place, action)
            }));
        }
        found.sort_by_key(|(place, _)| *place);
        Ok(Actions(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Actions::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Actions {
    fn augment_args(command: Command) -> Command {
        OPTIONS.into_iter().fold(command, |command, (option, help, has_value)| {
            let arg = Arg::new(option).long(option).help(help).action(ArgAction::Append);
            command.arg(match has_value {
                true => arg.value_name("SOURCE"),
                false => arg.num_args(0).default_missing_value(""),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Actions::augment_args(command)
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    interrupt::watch();
    match change(&args) {
        Ok(()) => {
            if interrupt::asked() {
                note("interrupted: the bitmap is dealt with and the image closed cleanly");
            }
            ExitCode::SUCCESS
        }
        Err(text) => fail(text),
    }
}

/// The granularity that was asked for; 0: none was.
fn granularity(args: &Args) -> Result<u64, String> {
    let Some(text) = &args.granularity else { return Ok(0) };
    sizes::parse(text).map_err(|error| match error {
        SizeError::NotANumber => format!("Invalid granularity specified: '{text}'."),
        SizeError::OutOfRange => {
            format!("Invalid granularity specified. Must be between 0 and {}.", i64::MAX)
        }
    })
}

fn change(args: &Args) -> Result<(), String> {
    let granularity = granularity(args)?;
    let actions = &args.actions.0;
    let merges = actions.iter().any(|action| matches!(action, Action::Merge(_)));
    match args {
        _ if actions.is_empty() => {
            Err("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
        }
        _ if granularity != 0 && !actions.contains(&Action::Add) => {
            Err("granularity only supported with --add")
        }
        Args { source_file: Some(_), .. } if !merges => {
            Err("Merge bitmap source file only supported with --merge")
        }
        Args { source_file: None, source_format: Some(_), .. } => Err("-F only supported with -b"),
        _ => Ok(()),
    }?;
    let [file, name] = args.operands.as_slice() else {
        return Err("Expecting filename and bitmap name".into());
    };
    let image = args.naming.image(file.as_ref())?;
    let options = image.writable()?.tolerate_writers(false);
    let mut session = Session::open(&image.path, options).map_err(|error| image.not_opened(&error))?;
    if session.first_sector().is_some() {
        warn_about_probing(&image.path);
    }
    let work = Work { image: &image, name, granularity };
    let done = source(args).and_then(|source| {
        actions.iter().try_for_each(|action| {
            let done = work.act(&mut session, action, source.as_ref());
            done.map_err(|why| format!("Operation {} on bitmap {name} failed: {why}", action.verb()))
        })
    });
    // what could not be done is closed as it was
    let closed = session.close().map_err(|error| error.to_string());
    done.and(closed)
}

/// The image that is merged from, if it is another one: it can be opened.
fn source(args: &Args) -> Result<Option<Image>, String> {
    let Some(file) = &args.source_file else { return Ok(None) };
    let image = Image::named(file, args.source_format.as_deref(), false)?;
    let opened = Session::open(&image.path, image.options()?);
    opened.and_then(Session::close).map_err(|error| image.not_opened(&error))?;
    Ok(Some(image))
}

/// The bitmap that is changed.
struct Work<'a> {
    image: &'a Image,
    name: &'a str,
    /// 0: as QEMU chooses it.
    granularity: u64,
}

impl Work<'_> {
    fn act(&self, session: &mut Session, action: &Action, source: Option<&Image>) -> Result<(), String> {
        let change = match action {
            Action::Add => self.addition()?,
            Action::Remove => BitmapChange::Remove,
            Action::Clear => BitmapChange::Clear,
            Action::Enable => BitmapChange::Enable,
            Action::Disable => BitmapChange::Disable,
            Action::Merge(from) => {
                self.find()?;
                BitmapChange::Merge(self.bits(from, source)?)
            }
        };
        // no image has one of that name
        if *action != Action::Add && !(1..=NAME_MAX).contains(&self.name.len()) {
            return Err(not_found(self.name));
        }
        let ask = BitmapAsk { name: self.name.into(), change };
        session.run(Request::bitmap(ask, 0)).map(drop).map_err(|error| self.why(action, &error))
    }

    fn addition(&self) -> Result<BitmapChange, String> {
        if self.name.is_empty() {
            return Err("Bitmap name cannot be empty".into());
        }
        let bits = match self.granularity {
            0 => None,
            granularity if granularity.is_power_of_two() && (512..1 << 32).contains(&granularity) => {
                Some(granularity.trailing_zeros() as u8)
            }
            _ => return Err("Granularity must be power of 2 and at least 512".into()),
        };
        if self.name.len() > NAME_MAX {
            return Err(self.not_persistent(&format!("Name length exceeds maximum ({NAME_MAX} characters)")));
        }
        Ok(BitmapChange::Add { granularity_bits: bits, enabled: true })
    }

    /// It is there, and can be used.
    fn find(&self) -> Result<(), String> {
        let facts = quod_tools::info(&self.image.path, self.image.mode.format, true);
        let facts = facts.map_err(|error| self.image.not_opened(&error))?;
        let mut bitmaps = facts.qcow2.iter().flat_map(|facts| &facts.bitmaps);
        match bitmaps.find(|bitmap| bitmap.name == self.name.as_bytes()) {
            None => Err(not_found(self.name)),
            Some(bitmap) if bitmap.flags & 1 != 0 => Err(inconsistent(self.name)),
            Some(_) => Ok(()),
        }
    }

    /// The bits of a bitmap, in this image or the other one.
    fn bits(&self, from: &str, source: Option<&Image>) -> Result<BitmapBits, String> {
        let image = source.unwrap_or(self.image);
        // this image is locked by the session
        let shared = source.is_none();
        quod_tools::bitmap_bits(&image.path, image.mode.format, from.as_bytes(), shared).map_err(|error| {
            match lack(&error) {
                _ if error.kind() == Some(&ErrorKind::NoBitmap) => not_found(from),
                Some(BitmapLack::InUse) => inconsistent(from),
                _ => error.to_string(),
            }
        })
    }

    fn not_persistent(&self, why: &str) -> String {
        let (name, file) = (self.name, self.image.path.display());
        format!("Can't make bitmap '{name}' persistent in '{file}': {why}")
    }

    /// Why it was not done, in QEMU's words where it has some.
    fn why(&self, action: &Action, error: &Error) -> String {
        let (name, file) = (self.name, self.image.path.display());
        if error.kind() == Some(&ErrorKind::NoBitmap) {
            return not_found(name);
        }
        let Some(lack) = lack(error) else { return error.to_string() };
        match lack {
            // what has none has none that could be found
            BitmapLack::Format(_) | BitmapLack::Version2 if *action != Action::Add => not_found(name),
            BitmapLack::Format(_) => {
                format!("Can't store persistent bitmaps to {file}: Operation not supported")
            }
            BitmapLack::Version2 => self.not_persistent("Cannot store dirty bitmaps in qcow2 v2 files"),
            BitmapLack::Exists => format!("Bitmap already exists: {name}"),
            BitmapLack::InUse => inconsistent(name),
            BitmapLack::TooMany => {
                self.not_persistent("Maximum number of persistent bitmaps is already reached")
            }
            BitmapLack::TooLarge => {
                self.not_persistent("Too much space will be occupied by the bitmap. Use larger granularity")
            }
            BitmapLack::OtherSize(own, theirs) => format!(
                "Bitmaps are of different sizes (destination size is {own}, source size is {theirs}) and \
                 can't be merged"
            ),
            BitmapLack::EmptyDisk | BitmapLack::TooLargeToMerge | BitmapLack::HeaderFull => error.to_string(),
        }
    }
}

fn not_found(name: &str) -> String {
    format!("Dirty bitmap '{name}' not found")
}

fn inconsistent(name: &str) -> String {
    format!(
        "Bitmap '{name}' is inconsistent and cannot be used\n\
         Try block-dirty-bitmap-remove to delete this bitmap from disk"
    )
}

fn lack(error: &Error) -> Option<BitmapLack> {
    match error.kind() {
        Some(ErrorKind::Unsupported(Lack::Format(FormatLack::Bitmap(lack)))) => Some(*lack),
        _ => None,
    }
}
