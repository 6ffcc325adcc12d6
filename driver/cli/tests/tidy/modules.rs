//! Reads Rust source just well enough to know which file a path in it leads to: modules, imports, paths.
//!
//! Knows: the grammar of modules, `use` and paths. Must never know: which rules there are.
//! Test code is not read: a module may know its own tests, and they it.

use super::scan::lines;
use std::collections::{HashMap, HashSet};

/// A path as it stands in the code, with the line that it stands in (counted from 1).
#[derive(Clone, Debug)]
pub struct Mention {
    pub segments: Vec<String>,
    pub line: usize,
}

/// One leaf of a `use`.
#[derive(Clone, Debug)]
pub struct Import {
    pub path: Mention,
    /// The name that it binds; `*`: all of a module.
    pub binds: String,
    /// It is there for others.
    pub public: bool,
}

/// `mod name;`, a file of its own.
#[derive(Clone, Debug)]
pub struct Child {
    pub name: String,
    /// `#[path = "..."]`
    pub path: Option<String>,
    /// It is a test: it belongs to the crate, and what it imports is not looked at.
    pub test: bool,
}

/// A module: a file's, or one in braces.
#[derive(Clone, Debug, Default)]
pub struct Module {
    pub name: String,
    pub imports: Vec<Import>,
    pub mentions: Vec<Mention>,
    /// Modules in braces.
    pub inline: Vec<Module>,
    pub children: Vec<Child>,
    /// Names of items, where they are made.
    pub items: HashSet<String>,
    /// How often a name stands in the code, imports and its making apart.
    pub names: HashMap<String, usize>,
    /// Macros by example that are made here, and those that are called, with the line.
    pub macros: Vec<String>,
    pub calls: Vec<(String, usize)>,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// Reads a file.
pub fn read(source: &str) -> Module {
    let raw: Vec<&str> = source.lines().collect();
    let (tokens, tests) = tokens(source);
    let mut reader = Reader { raw, tokens, at: 0 };
    let mut module = reader.module(String::new());
    module.children.extend(tests.into_iter().map(|name| Child { name, path: None, test: true }));
    module
}

/// Words, `::` and single characters of the code that is no test's, and the names of files of tests.
fn tokens(source: &str) -> (Vec<Token>, Vec<String>) {
    let (mut tokens, mut tests): (Vec<Token>, Vec<String>) = (Vec::new(), Vec::new());
    // the item behind `#[cfg(test)]`, up to its `;`, if it has no body
    let mut test_item = false;
    for (index, line) in lines(source).iter().enumerate() {
        if line.in_test {
            test_item = line.code.trim_end().ends_with("#[cfg(test)]");
            continue;
        }
        if test_item {
            let item = line.code.trim();
            let item = item.strip_prefix("pub(crate) ").unwrap_or(item);
            let name = item.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
            tests.extend(name.map(String::from));
            test_item = !line.code.contains(';');
            continue;
        }
        let mut rest = line.code.as_str();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let len = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                word => word,
            };
            if !first.is_whitespace() {
                tokens.push(Token { text: rest[..len].to_string(), line: index + 1 });
            }
            rest = &rest[len..];
        }
    }
    (tokens, tests)
}

struct Reader<'a> {
    raw: Vec<&'a str>,
    tokens: Vec<Token>,
    at: usize,
}

const MAKERS: [&str; 8] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union"];

impl Reader<'_> {
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    fn word(&self, at: usize) -> Option<String> {
        self.tokens.get(at).filter(|token| token.is_word()).map(|token| token.text.clone())
    }

    /// Reads up to the brace that closes the module, or the end of the file.
    fn module(&mut self, name: String) -> Module {
        let mut module = Module { name, ..Module::default() };
        let mut depth = 0;
        while self.at < self.tokens.len() {
            let text = self.text(self.at).to_string();
            match text.as_str() {
                "{" => depth += 1,
                "}" if depth == 0 => break,
                "}" => depth -= 1,
                "mod" if self.module_item(&mut module) => continue,
                "use" => {
                    self.imports(&mut module);
                    continue;
                }
                "pub" if self.text(self.at + 1) == "(" && self.text(self.at + 2) == "in" => {
                    while self.text(self.at) != ")" {
                        self.at += 1;
                    }
                }
                "macro_rules" if self.text(self.at + 1) == "!" => {
                    module.macros.extend(self.word(self.at + 2));
                    self.at += 2;
                }
                maker if MAKERS.contains(&maker) && self.word(self.at + 1).is_some() => {
                    module.items.extend(self.word(self.at + 1));
                    self.at += 1;
                }
                _ => self.mention(&mut module),
            }
            self.at += 1;
        }
        module
    }

    /// `mod name;` or `mod name { ... }`. False: it is no such thing.
    fn module_item(&mut self, module: &mut Module) -> bool {
        let Some(name) = self.word(self.at + 1) else { return false };
        let line = self.tokens[self.at].line;
        match self.text(self.at + 2) {
            ";" => {
                // the text of a literal is not in the tokens; other attributes may stand between
                let before = self.raw.iter().take(line.saturating_sub(1)).rev().map(|text| text.trim());
                let path = before.take_while(|text| text.starts_with("#[")).find_map(|text| {
                    text.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"))
                });
                let path = path.map(String::from);
                module.children.push(Child { name, path, test: false });
                self.at += 3;
            }
            "{" => {
                self.at += 3;
                let inner = self.module(name);
                module.inline.push(inner);
                self.at += 1;
            }
            _ => return false,
        }
        true
    }

    /// `use ...;`
    fn imports(&mut self, module: &mut Module) {
        let before = self.text(self.at.wrapping_sub(1));
        // `pub use`, `pub(crate) use`
        let public = before == "pub" || before == ")";
        self.at += 1;
        self.tree(&mut Vec::new(), public, module);
        while self.at < self.tokens.len() && self.text(self.at) != ";" {
            self.at += 1;
        }
        self.at += 1;
    }

    /// One tree of an import, up to the `,`, `}` or `;` behind it.
    fn tree(&mut self, before: &mut Vec<String>, public: bool, module: &mut Module) {
        let outer = before.len();
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        loop {
            match self.text(self.at) {
                "::" => self.at += 1,
                "{" => {
                    self.at += 1;
                    while !matches!(self.text(self.at), "}" | "") {
                        self.tree(before, public, module);
                        self.at += usize::from(self.text(self.at) == ",");
                    }
                    self.at += 1;
                    break;
                }
                "," | "}" | ";" | "" => {
                    self.leaf(before, None, line, public, module);
                    break;
                }
                "as" => {
                    let alias = self.text(self.at + 1).to_string();
                    self.at += 2;
                    self.leaf(before, Some(alias), line, public, module);
                    break;
                }
                text => {
                    before.push(text.to_string());
                    self.at += 1;
                }
            }
        }
        before.truncate(outer);
    }

    fn leaf(&self, path: &[String], alias: Option<String>, line: usize, public: bool, module: &mut Module) {
        let mut segments = path.to_vec();
        // `a::{self}` is `a`
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        let star = segments.last().is_some_and(|last| last == "*");
        let Some(last) = segments.last().cloned() else { return };
        if star {
            segments.pop();
        }
        let path = Mention { segments, line };
        module.imports.push(Import { path, binds: alias.unwrap_or(last), public });
    }

    /// A path, a macro's call or a name.
    fn mention(&mut self, module: &mut Module) {
        let Some(first) = self.word(self.at) else { return };
        let before = self.text(self.at.wrapping_sub(1));
        let line = self.tokens[self.at].line;
        if self.text(self.at + 1) == "!" && self.text(self.at + 2) != "=" {
            module.calls.push((first.clone(), line));
        }
        *module.names.entry(first.clone()).or_default() += 1;
        // a part of a longer path, a field, a macro's own crate
        if matches!(before, "::" | "." | "$") {
            return;
        }
        let mut segments = vec![first];
        while self.text(self.at + 1) == "::"
            && let Some(next) = self.word(self.at + 2)
        {
            segments.push(next);
            self.at += 2;
        }
        if segments.len() > 1 {
            module.mentions.push(Mention { segments, line });
        }
    }
}
