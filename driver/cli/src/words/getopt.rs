//! Options as getopt_long reads them: bundled letters, long names that may be cut short, `--`, options
//! after operands.
//!
//! Knows: which letters and names take a value. Must never know: what they mean.
//! Invariant: findings come in the order of the command line, so that the first bad thing is the
//! one reported.

/// What a tool or a command accepts.
pub struct Spec<'a> {
    /// Letters; a `:` behind one says that it takes a value.
    pub letters: &'a str,
    /// Long names, whether they take a value, and the letter that they stand for.
    pub names: &'a [(&'a str, bool, char)],
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// An option, and its value if it takes one.
    Option(char, String),
    /// What is wrong, in getopt's words, without the name of the program.
    Bad(String),
}

/// Sorts arguments (without the program's or command's name) into options and operands.
pub fn sort(args: &[String], spec: &Spec) -> (Vec<Found>, Vec<String>) {
    let mut found = Vec::new();
    let mut operands = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            operands.extend(rest.by_ref().cloned());
        } else if let Some(long) = arg.strip_prefix("--").filter(|_| !spec.names.is_empty()) {
            found.push(read_long(long, &mut rest, spec));
        } else if arg.len() > 1 && arg.starts_with('-') {
            read_letters(&arg[1..], &mut rest, spec, &mut found);
        } else {
            operands.push(arg.clone());
        }
    }
    (found, operands)
}

fn read_long(text: &str, rest: &mut std::slice::Iter<String>, spec: &Spec) -> Found {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_string())),
        None => (text, None),
    };
    let exact = spec.names.iter().find(|(known, ..)| *known == name);
    let mut starts = spec.names.iter().filter(|(known, ..)| known.starts_with(name));
    let entry = match exact {
        Some(entry) => entry,
        None => match (starts.next(), starts.next()) {
            (Some(entry), None) => entry,
            (Some(_), Some(_)) => return Found::Bad(format!("option '--{name}' is ambiguous")),
            _ => return Found::Bad(format!("unrecognized option '--{text}'")),
        },
    };
    match (entry.1, value) {
        (true, Some(value)) => Found::Option(entry.2, value),
        (true, None) => match rest.next() {
            Some(value) => Found::Option(entry.2, value.clone()),
            None => Found::Bad(format!("option '--{}' requires an argument", entry.0)),
        },
        (false, Some(_)) => Found::Bad(format!("option '--{}' doesn't allow an argument", entry.0)),
        (false, None) => Found::Option(entry.2, String::new()),
    }
}

fn read_letters(text: &str, rest: &mut std::slice::Iter<String>, spec: &Spec, found: &mut Vec<Found>) {
    for (at, letter) in text.char_indices() {
        let place = spec.letters.find(letter).filter(|_| letter != ':');
        let Some(place) = place else {
            found.push(Found::Bad(format!("invalid option -- '{letter}'")));
            continue;
        };
        if !spec.letters[place + letter.len_utf8()..].starts_with(':') {
            found.push(Found::Option(letter, String::new()));
            continue;
        }
        let inside = &text[at + letter.len_utf8()..];
        let value = if inside.is_empty() { rest.next().cloned() } else { Some(inside.to_string()) };
        found.push(match value {
            Some(value) => Found::Option(letter, value),
            None => Found::Bad(format!("option requires an argument -- '{letter}'")),
        });
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn letters_are_bundled_and_take_values() {
        let spec = Spec { letters: "CqvP:s:", names: &[] };
        let (found, operands) = sort(&strings("-qvP 7 0 -s12 512 -C -- -q"), &spec);
        let option = |letter, value: &str| Found::Option(letter, value.into());
        let expected =
            [option('q', ""), option('v', ""), option('P', "7"), option('s', "12"), option('C', "")];
        assert_eq!(found, expected);
        assert_eq!(operands, ["0", "512", "-q"]);
        let (found, _) = sort(&strings("0 -5 -P"), &spec);
        let bad = |text: &str| Found::Bad(text.into());
        assert_eq!(found, [bad("invalid option -- '5'"), bad("option requires an argument -- 'P'")]);
    }

    #[test]
    fn names_may_be_cut_short() {
        let spec =
            Spec { letters: "c:", names: &[("cmd", true, 'c'), ("cache", true, 't'), ("help", false, 'h')] };
        let (found, operands) =
            sort(&strings("--cmd length --ca=none --he --c x --bad --help=3 --cmd"), &spec);
        let option = |letter, value: &str| Found::Option(letter, value.into());
        let bad = |text: &str| Found::Bad(text.into());
        let expected = [
            option('c', "length"),
            option('t', "none"),
            option('h', ""),
            bad("option '--c' is ambiguous"),
            bad("unrecognized option '--bad'"),
            bad("option '--help' doesn't allow an argument"),
            bad("option '--cmd' requires an argument"),
        ];
        assert_eq!(found, expected);
        assert_eq!(operands, ["x"]);
    }
}
