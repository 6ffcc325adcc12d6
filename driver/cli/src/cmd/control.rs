//! `quod control`: one request to the control socket of what serves, and its answer.
//!
//! Knows: the words of docs/serve.md, a socket as a client sees it. Must never know: what serves, how it does
//! what it is asked for.

use crate::out::fail;
use crate::words::errno::words;
use crate::words::{json, sizes};
use clap::Subcommand;
use serde_json::{Map, Value};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

/// A reply is no longer, whatever is at the other end.
const REPLY_MAX: u64 = 16 << 20;

/// Ask what 'quod serve' or 'quod mount' serves, at its control socket (--control), and tell it what to do
#[derive(clap::Args)]
pub struct Args {
    /// The control socket
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print numbers of the server and of each image, as JSON
    Stats,
    /// Let requests wait, and make the files self-consistent: they can be copied until 'resume'
    Quiesce {
        #[command(flatten)]
        image: Image,
        /// Requests go on by themselves after so many seconds (1 to 3600)
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
    },
    /// Let requests go on; fails if they have done so already, so that a copy may be torn
    Resume(Image),
    /// Give a disk another size
    Resize {
        #[command(flatten)]
        image: Image,
        /// The disk may lose its end
        #[arg(long)]
        shrink: bool,
        /// The new size (b k K M G T P E; 1024 based)
        size: String,
    },
    /// End the server: what is under way is answered, everything committed, the images closed
    Stop,
}

#[derive(clap::Args)]
struct Image {
    /// The name of the export, of which the default's is empty (default: all; of a new size: the only one)
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
}

impl Command {
    /// Its name in the protocol, and its arguments.
    fn request(self) -> Result<(&'static str, Map<String, Value>), String> {
        let mut arguments = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            arguments.extend(value.map(|value| (name.to_string(), value)));
        };
        let name = match self {
            Command::Stats => "stats",
            Command::Quiesce { image, timeout } => {
                put("image", image.image.map(Value::from));
                put("timeout", Some(timeout.into()));
                "quiesce"
            }
            Command::Resume(image) => {
                put("image", image.image.map(Value::from));
                "resume"
            }
            Command::Resize { image, shrink, size } => {
                put("image", image.image.map(Value::from));
                put("shrink", Some(shrink.into()));
                put("size", Some(sizes::option("size", &size)?.into()));
                "resize"
            }
            Command::Stop => "stop",
        };
        Ok((name, arguments))
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let Args { socket, command } = args;
    let (name, arguments) = match command.request() {
        Ok(request) => request,
        Err(text) => return fail(text),
    };
    let request = serde_json::json!({ "execute": name, "arguments": arguments });
    let asked = UnixStream::connect(&socket).and_then(|stream| ask(stream, &request));
    let reply = match asked {
        Ok(line) => line,
        Err(error) => return fail(format_args!("{}: {}", socket.display(), words(&error))),
    };
    let Some(fields) = serde_json::from_slice::<Map<String, Value>>(&reply).ok() else {
        return fail(format_args!("{}: its answer is none of a control socket's", socket.display()));
    };
    if let Some(value) = fields.get("return") {
        if value.as_object().is_some_and(|told| !told.is_empty()) {
            sayln!("{}", json::pretty(value));
        }
        return ExitCode::SUCCESS;
    }
    let text = fields.get("error").and_then(|error| error.get("desc")).and_then(Value::as_str);
    fail(text.unwrap_or("the server has refused it, and does not say why"))
}

/// Sends a line, and takes one.
fn ask(mut stream: UnixStream, request: &Value) -> std::io::Result<Vec<u8>> {
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut reply = Vec::new();
    BufReader::new(stream.take(REPLY_MAX)).read_until(b'\n', &mut reply)?;
    Ok(reply)
}
