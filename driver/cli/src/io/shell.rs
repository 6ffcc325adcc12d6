//! The way from a line to a command.
//!
//! Knows: lines, the table of commands. Must never know: flags of a command.

use super::commands;
use super::tool::{Failed, Tool};

/// Runs one line.
pub fn line(tool: &mut Tool, line: &str) -> Result<(), Failed> {
    let words: Vec<String> =
        line.split([' ', '\t']).filter(|word| !word.is_empty()).map(String::from).collect();
    let Some(name) = words.first() else { return Ok(()) };
    let Some(command) = commands::find(name) else {
        complain!("command \"{name}\" not found");
        return Err(Failed);
    };
    if !command.closed && tool.target.is_none() {
        complain!("no file open, try 'help open'");
        return Err(Failed);
    }
    if let Some(text) = commands::bad_count(command, name, words.len() - 1) {
        complain!("{text}");
        return Err(Failed);
    }
    if command.writes && tool.target.as_ref().is_some_and(|target| target.mode.read_only) {
        return Err(tool.complain("Block node is read-only"));
    }
    let result = (command.run)(tool, &words);
    if let Some(misused) = tool.misused.take().and_then(|name| commands::find(&name)) {
        tool.say(&misused.usage(misused.name));
    }
    result
}
