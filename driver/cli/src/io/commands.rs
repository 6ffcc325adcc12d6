//! The table of commands: names, how many arguments, what they need, who does them; and `help`, which lists
//! it.
//!
//! Knows: every command's one line. Must never know: how any other of them works.

use super::tool::{Failed, Tool};
use super::{aio, manage, misc, read, write};

/// No upper limit on arguments.
const MANY: usize = usize::MAX;

/// One command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Its short name.
    pub short: Option<&'static str>,
    /// Arguments at least.
    pub least: usize,
    /// Arguments at most.
    pub most: usize,
    /// It works without an open image.
    pub closed: bool,
    /// It writes.
    pub writes: bool,
    /// Its arguments, for people.
    pub arguments: &'static str,
    /// What it does, in one line.
    pub line: &'static str,
    /// Does it. The first word is the name as it was typed.
    pub run: fn(&mut Tool, &[String]) -> Result<(), Failed>,
}

impl Command {
    /// `name arguments -- what it does`.
    pub fn usage(&self, name: &str) -> String {
        let space = if self.arguments.is_empty() && self.name != "map" { "" } else { " " };
        format!("{name}{space}{} -- {}\n", self.arguments, self.line)
    }
}

const fn command(
    name: &'static str,
    short: Option<&'static str>,
    (least, most): (usize, usize),
    arguments: &'static str,
    line: &'static str,
    run: fn(&mut Tool, &[String]) -> Result<(), Failed>,
) -> Command {
    Command { name, short, least, most, closed: false, writes: false, arguments, line, run }
}

const fn writing(command: Command) -> Command {
    Command { writes: true, ..command }
}

const fn always(command: Command) -> Command {
    Command { closed: true, ..command }
}

/// All commands, by name.
pub const COMMANDS: &[Command] = &[
    always(command("abort", None, (0, 0), "", "simulate a program crash using abort(3)", manage::abort)),
    command("aio_flush", None, (0, 0), "", "completes all outstanding aio requests", aio::flush),
    command(
        "aio_read",
        None,
        (2, MANY),
        "[-Ciqrv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        aio::read,
    ),
    writing(command(
        "aio_write",
        None,
        (2, MANY),
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
        aio::write,
    )),
    command(
        "alloc",
        Some("a"),
        (1, 2),
        "offset [count]",
        "checks if offset is allocated in the file",
        misc::alloc,
    ),
    command(
        "break",
        None,
        (2, 2),
        "event tag",
        "sets a breakpoint on event and tags the stopped request as tag",
        manage::set_break,
    ),
    command("close", Some("c"), (0, 0), "", "close the current open file", manage::close),
    writing(command(
        "discard",
        Some("d"),
        (2, MANY),
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
        misc::discard,
    )),
    command("flush", Some("f"), (0, 0), "", "flush all in-core file state to disk", misc::flush),
    always(command("help", Some("?"), (0, 1), "[command]", "help for one or all commands", help)),
    command("info", Some("i"), (0, 0), "", "prints information about the current file", misc::info),
    command("length", Some("l"), (0, 0), "", "gets the length of the current file", misc::length),
    command("map", None, (0, 0), "", "prints the allocated areas of a file", misc::map),
    always(command(
        "open",
        Some("o"),
        (1, MANY),
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open the file specified by path",
        manage::open,
    )),
    always(command("quit", Some("q"), (0, 0), "", "exit the program", manage::quit)),
    command(
        "read",
        Some("r"),
        (2, MANY),
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        read::read,
    ),
    command(
        "readv",
        None,
        (2, MANY),
        "[-Cqrv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        read::readv,
    ),
    command("remove_break", None, (1, 1), "tag", "remove a breakpoint by tag", manage::remove_break),
    command(
        "reopen",
        None,
        (0, MANY),
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
        manage::reopen,
    ),
    command("resume", None, (1, 1), "tag", "resumes the request tagged as tag", manage::resume),
    always(command("sigraise", None, (1, 1), "signal", "raises a signal", misc::sigraise)),
    always(command("sleep", None, (1, 1), "", "waits for the given value in milliseconds", misc::sleep)),
    writing(command(
        "truncate",
        Some("t"),
        (1, 3),
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
        misc::truncate,
    )),
    command("wait_break", None, (1, 1), "tag", "waits for the suspension of a request", manage::wait_break),
    writing(command(
        "write",
        Some("w"),
        (2, MANY),
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
        write::write,
    )),
    writing(command(
        "writev",
        None,
        (2, MANY),
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        write::writev,
    )),
];

/// The command of a name, long or short.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || command.short == Some(name))
}

/// `help [command]`
fn help(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let Some(name) = words.get(1) else {
        let all: String = COMMANDS.iter().map(|command| command.usage(command.name)).collect();
        tool.say(&all);
        tool.say("\nUse 'help commandname' for extended help.\n");
        return Ok(());
    };
    match find(name) {
        Some(command) => {
            tool.say(&command.usage(name));
            Ok(())
        }
        None => Err(tool.refuse(&format!("command {name} not found"))),
    }
}

/// The complaint about a wrong number of arguments.
pub fn bad_count(command: &Command, name: &str, count: usize) -> Option<String> {
    if (command.least..=command.most).contains(&count) {
        return None;
    }
    let expected = match (command.least, command.most) {
        (least, MANY) => format!("at least {least} arguments"),
        (least, most) if least == most => format!("{least} arguments"),
        (least, most) => format!("between {least} and {most} arguments"),
    };
    Some(format!("bad argument count {count} to {name}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_and_sorted() {
        assert!(COMMANDS.is_sorted_by_key(|command| command.name));
        assert_eq!(find("w").map(|command| command.name), Some("write"));
        assert!(find("m").is_none());
        let count = |name, count| find(name).and_then(|command| bad_count(command, name, count)).unwrap();
        assert_eq!(count("write", 0), "bad argument count 0 to write, expected at least 2 arguments");
        assert_eq!(count("flush", 1), "bad argument count 1 to flush, expected 0 arguments");
        assert_eq!(count("a", 0), "bad argument count 0 to a, expected between 1 and 2 arguments");
    }
}
