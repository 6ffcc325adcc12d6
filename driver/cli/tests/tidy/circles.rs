//! Imports that run in a circle of files.
//!
//! A file imports another if its code names something that is made there, whichever way the name comes to it:
//! `use`, a path, a macro by example. What only passes a name on (`pub use child::Name`) does not import it,
//! and neither does `mod child;`. Test code may import what it likes. A method that is called through a value
//! imports nothing, so a circle of `impl` blocks is not seen here.
//!
//! Knows: the modules of one crate. Must never know: other crates, which cargo keeps from running in circles.

use super::modules::{Import, Mention, Module, read};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A module of the crate, in the tree of all.
struct Node {
    file: usize,
    parent: Option<usize>,
    /// Modules below it, by name.
    below: HashMap<String, usize>,
    module: Module,
}

/// One crate: its files, and what they import.
pub struct Crate {
    pub files: Vec<String>,
    nodes: Vec<Node>,
    macros: HashMap<String, usize>,
    /// From file to file, with the place of one such import.
    pub imports: BTreeMap<(usize, usize), String>,
}

/// Where a path leads.
#[derive(Clone, Copy)]
enum Place {
    Module(usize),
    /// Something made in this file.
    Item(usize),
}

/// A path without `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Longer chains of names that are passed on are given up.
const HOPS: usize = 16;

impl Crate {
    /// Reads a crate from its root on. `source` answers the text of a file, if there is one.
    pub fn read(root: &str, source: &dyn Fn(&str) -> Option<String>) -> Crate {
        let mut all =
            Crate { files: Vec::new(), nodes: Vec::new(), macros: HashMap::new(), imports: BTreeMap::new() };
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        all.file((root, folder), false, None, source);
        for node in &all.nodes {
            all.macros.extend(node.module.macros.iter().map(|name| (name.clone(), node.file)));
        }
        for index in 0..all.nodes.len() {
            all.follow(index);
        }
        all
    }

    /// Adds a file, whose modules lie in `folder`.
    fn file(
        &mut self,
        (name, folder): (&str, &str),
        test: bool,
        parent: Option<usize>,
        source: &dyn Fn(&str) -> Option<String>,
    ) -> Option<usize> {
        let text = source(name)?;
        let module = read(if test { "" } else { &text });
        self.files.push(name.to_string());
        Some(self.node(module, self.files.len() - 1, folder, parent, source))
    }

    fn node(
        &mut self,
        module: Module,
        file: usize,
        folder: &str,
        parent: Option<usize>,
        source: &dyn Fn(&str) -> Option<String>,
    ) -> usize {
        let index = self.nodes.len();
        let (children, inline) = (module.children.clone(), module.inline.clone());
        self.nodes.push(Node { file, parent, below: HashMap::new(), module });
        let here = self.files[file].rsplit_once('/').map_or("", |(folder, _)| folder).to_string();
        for child in children {
            let name = &child.name;
            let below = format!("{folder}/{name}");
            let tries = match &child.path {
                // its modules lie beside it, as those of a `mod.rs`
                Some(path) => {
                    let path = normal(&format!("{here}/{path}"));
                    let beside = path.rsplit_once('/').map_or("", |(beside, _)| beside).to_string();
                    vec![(path, beside)]
                }
                None => vec![(format!("{below}.rs"), below.clone()), (format!("{below}/mod.rs"), below)],
            };
            let mut tries = tries.iter();
            let found =
                tries.find_map(|(file, folder)| self.file((file, folder), child.test, Some(index), source));
            if let Some(found) = found {
                self.nodes[index].below.insert(child.name.clone(), found);
            }
        }
        for inner in inline {
            let name = inner.name.clone();
            let found = self.node(inner, file, &format!("{folder}/{name}"), Some(index), source);
            self.nodes[index].below.insert(name, found);
        }
        index
    }

    /// Notes what a module imports.
    fn follow(&mut self, index: usize) {
        let Module { imports, mentions, calls, names, .. } = self.nodes[index].module.clone();
        let from = self.nodes[index].file;
        for Import { path, binds, public } in imports {
            let place = self.resolve(index, &path.segments, HOPS);
            let to = match place {
                // the names behind it are looked at, where they are used
                Some(Place::Module(_)) if binds != "*" => continue,
                Some(Place::Module(node)) => self.nodes[node].file,
                Some(Place::Item(file)) => file,
                None => continue,
            };
            // what is only passed on
            let passed_on = public && !names.contains_key(&binds);
            if !passed_on {
                self.import(from, to, &path);
            }
        }
        for path in mentions {
            if let Some(Place::Item(to)) = self.resolve(index, &path.segments, HOPS) {
                self.import(from, to, &path);
            }
        }
        for (name, line) in calls {
            if let Some(&to) = self.macros.get(&name) {
                self.import(from, to, &Mention { segments: vec![format!("{name}!")], line });
            }
        }
    }

    fn import(&mut self, from: usize, to: usize, path: &Mention) {
        if from != to {
            let place = format!("{}:{}: {}", self.files[from], path.line, path.segments.join("::"));
            self.imports.entry((from, to)).or_insert(place);
        }
    }

    /// Where a path leads that stands in this module. None: to another crate, or nowhere that is known.
    fn resolve(&self, index: usize, segments: &[String], hops: usize) -> Option<Place> {
        let (first, mut rest) = segments.split_first()?;
        let mut at = match first.as_str() {
            "crate" => 0,
            "self" => index,
            "super" => self.nodes[index].parent?,
            name => match self.look_up(index, name, hops)? {
                Place::Module(node) => node,
                item => return Some(item),
            },
        };
        while let Some((name, behind)) = rest.split_first() {
            rest = behind;
            at = match name.as_str() {
                "super" => self.nodes[at].parent?,
                name => match self.look_up(at, name, hops) {
                    Some(Place::Module(node)) => node,
                    Some(item) => return Some(item),
                    // made in some way that is not seen: a macro's, for instance
                    None => return Some(Place::Item(self.nodes[at].file)),
                },
            };
        }
        Some(Place::Module(at))
    }

    /// What a name in this module is.
    fn look_up(&self, index: usize, name: &str, hops: usize) -> Option<Place> {
        let node = &self.nodes[index];
        if let Some(&below) = node.below.get(name) {
            return Some(Place::Module(below));
        }
        if node.module.items.contains(name) {
            return Some(Place::Item(node.file));
        }
        let hops = hops.checked_sub(1)?;
        let imports = &node.module.imports;
        if let Some(import) = imports.iter().find(|import| import.binds == name) {
            return self.resolve(index, &import.path.segments, hops);
        }
        let stars = imports.iter().filter(|import| import.binds == "*");
        stars.into_iter().find_map(|star| match self.resolve(index, &star.path.segments, hops)? {
            Place::Module(all) if all != index => self.look_up(all, name, hops),
            _ => None,
        })
    }

    /// The circles: sets of files in which each imports each other, over others perhaps.
    pub fn circles(&self) -> Vec<Vec<usize>> {
        let reach: Vec<BTreeSet<usize>> = (0..self.files.len()).map(|file| self.reach(file)).collect();
        let mut circles: Vec<Vec<usize>> = Vec::new();
        for file in 0..self.files.len() {
            let known = circles.iter().any(|circle| circle.contains(&file));
            if known || !reach[file].contains(&file) {
                continue;
            }
            circles.push(reach[file].iter().copied().filter(|other| reach[*other].contains(&file)).collect());
        }
        circles
    }

    /// All files that this one imports, and that those import.
    fn reach(&self, file: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut open = vec![file];
        while let Some(at) = open.pop() {
            let next = self.imports.range((at, 0)..(at + 1, 0)).map(|((_, to), _)| *to);
            open.extend(next.filter(|to| reached.insert(*to)).collect::<Vec<usize>>());
        }
        reached
    }

    /// A circle in words: the places of its imports.
    pub fn tell(&self, circle: &[usize]) -> String {
        let inside = self.imports.iter();
        let inside = inside.filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
        let places: Vec<String> =
            inside.map(|((_, to), place)| format!("  {place} is in {}", self.files[*to])).collect();
        format!("{} files in a circle:\n{}", circle.len(), places.join("\n"))
    }
}
