//! Reads Rust source just well enough for the rules: code apart from comments and literals, functions, test
//! code.
//!
//! Knows: the lexical grammar. Must never know: which rules there are.

/// A line of a source file.
#[derive(Debug, Default)]
pub struct Line {
    /// Its code; the contents of strings and characters are gone.
    pub code: String,
    /// The text of its comments.
    pub comment: String,
    /// It is part of `#[cfg(test)]` code.
    pub in_test: bool,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Index of the line with its `fn`.
    pub first: usize,
    /// Index of the line with its closing brace.
    pub last: usize,
}

impl Function {
    pub fn line_count(&self) -> usize {
        self.last - self.first + 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
}

/// Splits a source file into lines, code and comments apart.
pub fn lines(source: &str) -> Vec<Line> {
    let chars: Vec<char> = source.chars().collect();
    let mut lines = vec![Line::default()];
    let (mut mode, mut at) = (Mode::Code, 0);
    while let Some(&c) = chars.get(at) {
        if c == '\n' {
            lines.push(Line::default());
            if mode == Mode::LineComment {
                mode = Mode::Code;
            }
            at += 1;
            continue;
        }
        let Some(line) = lines.last_mut() else { break };
        (mode, at) = step(&chars, at, mode, line);
    }
    mark_tests(&mut lines);
    lines
}

/// One step of the lexer: the mode and the position behind it.
fn step(chars: &[char], at: usize, mode: Mode, line: &mut Line) -> (Mode, usize) {
    let c = chars[at];
    let next = chars.get(at + 1).copied().unwrap_or('\n');
    match mode {
        Mode::LineComment => line.comment.push(c),
        Mode::BlockComment(depth) => {
            if (c, next) == ('/', '*') {
                return (Mode::BlockComment(depth + 1), at + 2);
            }
            if (c, next) == ('*', '/') {
                return (if depth == 0 { Mode::Code } else { Mode::BlockComment(depth - 1) }, at + 2);
            }
            line.comment.push(c);
        }
        // the end of a line is never skipped: it is counted
        Mode::Text if c == '\\' => return (mode, at + if next == '\n' { 1 } else { 2 }),
        Mode::Text if c == '"' => {
            line.code.push('"');
            return (Mode::Code, at + 1);
        }
        Mode::RawText(hashes) if c == '"' && (1..=hashes).all(|n| chars.get(at + n) == Some(&'#')) => {
            line.code.push('"');
            return (Mode::Code, at + 1 + hashes);
        }
        Mode::Text | Mode::RawText(_) => {}
        Mode::Code => return code_step(chars, at, line),
    }
    (mode, at + 1)
}

fn code_step(chars: &[char], at: usize, line: &mut Line) -> (Mode, usize) {
    let c = chars[at];
    let next = chars.get(at + 1).copied().unwrap_or('\n');
    let in_word = at > 0 && is_word(chars[at - 1]);
    match c {
        '/' if next == '/' => return (Mode::LineComment, at + 2),
        '/' if next == '*' => return (Mode::BlockComment(0), at + 2),
        '"' => {
            line.code.push('"');
            return (Mode::Text, at + 1);
        }
        'r' if !in_word || (chars[at - 1] == 'b' && (at < 2 || !is_word(chars[at - 2]))) => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if chars.get(at + 1 + hashes) == Some(&'"') {
                line.code.push('"');
                return (Mode::RawText(hashes), at + 2 + hashes);
            }
        }
        '\'' => {
            if let Some(end) = char_end(chars, at) {
                line.code.push_str("''");
                return (Mode::Code, end);
            }
        }
        _ => {}
    }
    line.code.push(c);
    (Mode::Code, at + 1)
}

/// The position behind a character literal that starts here; None: a lifetime.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    let mut end = at + 2;
    if chars.get(at + 1) == Some(&'\\') {
        end = at + 3;
        while chars.get(end).is_some_and(|c| *c != '\'' && *c != '\n') {
            end += 1;
        }
    }
    (chars.get(end) == Some(&'\'')).then_some(end + 1)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The characters of the code, each with the index of its line.
fn code_chars(lines: &[Line]) -> Vec<(usize, char)> {
    let numbered = lines.iter().enumerate();
    numbered.flat_map(|(n, line)| line.code.chars().chain(['\n']).map(move |c| (n, c))).collect()
}

/// The position of the brace that closes the first one opened at or behind `at`; None if a `;` comes first.
fn body_end(code: &[(usize, char)], at: usize) -> Option<usize> {
    let (mut braces, mut others) = (0u32, 0u32);
    for (position, &(_, c)) in code.iter().enumerate().skip(at) {
        match c {
            '(' | '[' => others += 1,
            ')' | ']' => others = others.saturating_sub(1),
            '{' => braces += 1,
            '}' if braces == 1 => return Some(position),
            '}' => braces = braces.saturating_sub(1),
            ';' if braces == 0 && others == 0 => return None,
            _ => {}
        }
    }
    None
}

fn mark_tests(lines: &mut [Line]) {
    let code = code_chars(lines);
    let text: String = code.iter().map(|(_, c)| *c).collect();
    // positions are counted in characters, as in `code`
    let starts: Vec<usize> =
        text.match_indices("#[cfg(test)]").map(|(byte, _)| text[..byte].chars().count()).collect();
    for start in starts {
        let after = start + "#[cfg(test)]".len();
        let first = code[start].0;
        let last = body_end(&code, after).map_or(first, |end| code[end].0);
        for line in &mut lines[first..=last] {
            line.in_test = true;
        }
    }
}

/// The functions that have a body.
pub fn functions(lines: &[Line]) -> Vec<Function> {
    let code = code_chars(lines);
    let mut found = Vec::new();
    for at in 0..code.len() {
        let word = |n: usize| code.get(at + n).map(|(_, c)| *c);
        let starts_word = at == 0 || !is_word(code[at - 1].1);
        if !starts_word || word(0) != Some('f') || word(1) != Some('n') || word(2) != Some(' ') {
            continue;
        }
        let name: String = code[at + 3..].iter().map(|(_, c)| *c).take_while(|c| is_word(*c)).collect();
        if name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(&code, at) {
            found.push(Function { name, first: code[at].0, last: code[end].0 });
        }
    }
    found
}

/// The code contains this word, not as a part of another.
pub fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_none_or(|c| !is_word(c));
        let behind = code[at + word.len()..].chars().next().is_none_or(|c| !is_word(c));
        before && behind
    })
}
