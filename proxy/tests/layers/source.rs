//! Parses the modules of a crate and resolves the paths in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{Attribute, Item, UseTree};

use super::walk::Walk;

/// A place in `from` that refers to something defined in `to` (files below the crate's `src`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    pub from: PathBuf,
    pub line: usize,
    pub to: PathBuf,
    /// The path as written.
    pub text: String,
}

pub struct Module {
    pub path: Vec<String>,
    pub file: PathBuf,
    pub parent: Option<usize>,
    /// Whether it is written as `mod x { … }` in its parent's file.
    pub inline: bool,
    pub names: BTreeMap<String, Vec<Def>>,
    pub globs: Vec<Vec<String>>,
}

pub enum Def {
    Item,
    Module(usize),
    Import(Vec<String>),
}

/// The target of a path.
pub struct Target {
    /// The module that defines the item, or the module that the path names.
    pub module: usize,
    /// The item and the rest of the path; empty if the path names a module.
    pub rest: Vec<String>,
    /// The modules whose imports were followed.
    pub hops: Vec<usize>,
    /// Whether it was found through a glob.
    pub glob: bool,
}

pub struct Crate {
    pub modules: Vec<Module>,
    files: BTreeMap<PathBuf, (syn::File, usize)>,
}

/// Reads a source file: from the disk, or from a table in tests.
type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Crate {
    pub fn load(src: &Path) -> Result<Crate, String> {
        Crate::read(&|path| fs::read_to_string(src.join(path)).ok())
    }

    pub fn read(read: Read) -> Result<Crate, String> {
        let mut krate = Crate { modules: vec![], files: BTreeMap::new() };
        krate.module_file(read, Path::new("lib.rs"), vec![], None)?;
        Ok(krate)
    }

    fn module_file(
        &mut self,
        read: Read,
        file: &Path,
        path: Vec<String>,
        parent: Option<usize>,
    ) -> Result<usize, String> {
        let text = read(file).ok_or_else(|| format!("{}: not found", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        let id = self.add(path, file, parent, false);
        self.items(read, id, &parsed.items)?;
        self.files.insert(file.to_owned(), (parsed, id));
        Ok(id)
    }

    fn add(&mut self, path: Vec<String>, file: &Path, parent: Option<usize>, inline: bool) -> usize {
        self.modules.push(Module {
            path,
            file: file.to_owned(),
            parent,
            inline,
            names: BTreeMap::new(),
            globs: vec![],
        });
        self.modules.len() - 1
    }

    fn name(&mut self, module: usize, name: impl ToString, def: Def) {
        self.modules[module].names.entry(name.to_string()).or_default().push(def);
    }

    fn items(&mut self, read: Read, id: usize, items: &[Item]) -> Result<(), String> {
        for item in items {
            let (attrs, name) = parts(item);
            if is_test(attrs) {
                continue;
            }
            match item {
                Item::Mod(m) => {
                    let mut path = self.modules[id].path.clone();
                    path.push(m.ident.to_string());
                    let child = match &m.content {
                        Some((_, items)) => {
                            let file = self.modules[id].file.clone();
                            let child = self.add(path, &file, Some(id), true);
                            self.items(read, child, items)?;
                            child
                        }
                        None => {
                            let file = self.file_of(read, id, &m.ident.to_string(), attrs);
                            self.module_file(read, &file, path, Some(id))?
                        }
                    };
                    self.name(id, &m.ident, Def::Module(child));
                }
                Item::Use(u) => {
                    for leaf in leaves(&u.tree, u.leading_colon.is_some()) {
                        match leaf.name {
                            Some(name) if name != "_" => self.name(id, name, Def::Import(leaf.path)),
                            Some(_) => {}
                            None => self.modules[id].globs.push(leaf.path),
                        }
                    }
                }
                Item::ForeignMod(block) => {
                    for item in &block.items {
                        if let syn::ForeignItem::Fn(f) = item {
                            self.name(id, &f.sig.ident, Def::Item);
                        }
                    }
                }
                Item::Macro(m) => {
                    if let Some(name) = &m.ident {
                        let exported = m.attrs.iter().any(|a| a.path().is_ident("macro_export"));
                        self.name(if exported { 0 } else { id }, name, Def::Item);
                    }
                }
                _ => {
                    if let Some(name) = name {
                        self.name(id, name, Def::Item);
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the file of `mod name;`, found as the compiler does.
    fn file_of(&self, read: Read, id: usize, name: &str, attrs: &[Attribute]) -> PathBuf {
        let module = &self.modules[id];
        let dir = module.file.parent().unwrap_or(Path::new(""));
        if let Some(path) = path_attribute(attrs) {
            return normal(&dir.join(path));
        }
        let mut below = dir.to_owned();
        let stem = module.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !matches!(&*stem, "mod" | "lib" | "main") {
            below.push(&stem);
        }
        // Enclosing inline modules are folders.
        let mut inline = vec![];
        let mut at = id;
        while self.modules[at].inline {
            inline.push(self.modules[at].path.last().cloned().unwrap_or_default());
            at = self.modules[at].parent.unwrap_or(0);
        }
        below.extend(inline.iter().rev());
        let flat = below.join(format!("{name}.rs"));
        if read(&flat).is_some() { flat } else { below.join(name).join("mod.rs") }
    }

    /// Returns the module in which an item with this path is, also for paths of modules.
    pub fn module_at(&self, path: &[String]) -> Option<usize> {
        self.modules.iter().position(|m| m.path == path)
    }

    /// Resolves `path`, written in `from`. `None` if it leaves the crate or is local.
    pub fn resolve(&self, from: usize, path: &[String]) -> Option<Target> {
        self.follow(from, path, &mut BTreeSet::new())
    }

    fn follow(&self, from: usize, path: &[String], seen: &mut BTreeSet<(usize, Vec<String>)>) -> Option<Target> {
        if !seen.insert((from, path.to_vec())) {
            return None;
        }
        let mut at = Target { module: from, rest: vec![], hops: vec![], glob: false };
        let mut index = 0;
        match &*path[0] {
            "crate" | "$crate" => (at.module, index) = (0, 1),
            "self" => index = 1,
            "super" => {
                while path.get(index).is_some_and(|s| s == "super") {
                    at.module = self.modules[at.module].parent?;
                    index += 1;
                }
            }
            "" => return None,
            _ => {}
        }
        let rooted = index > 0;
        while let Some(name) = path.get(index) {
            let last = index + 1 == path.len();
            match self.lookup(at.module, name, last, seen) {
                Some(Found::Item) => {
                    at.rest = path[index..].to_vec();
                    return Some(at);
                }
                Some(Found::Module(child)) => at.module = child,
                Some(Found::Through(target, glob)) => {
                    let by = at.module;
                    let mut hops = std::mem::take(&mut at.hops);
                    // A private import is only for the module itself and is not re-exported.
                    if index > 0 || by != from {
                        hops.push(by);
                    }
                    hops.extend(target.hops);
                    at = Target { module: target.module, rest: target.rest, hops, glob };
                    if !at.rest.is_empty() {
                        at.rest.extend_from_slice(&path[index + 1..]);
                        return Some(at);
                    }
                }
                None if rooted => {
                    // No such item is visible: a macro may define it.
                    at.rest = path[index..].to_vec();
                    return Some(at);
                }
                None => return None,
            }
            index += 1;
        }
        Some(at)
    }

    fn lookup(
        &self,
        module: usize,
        name: &str,
        last: bool,
        seen: &mut BTreeSet<(usize, Vec<String>)>,
    ) -> Option<Found> {
        let m = &self.modules[module];
        let defs = m.names.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut found: Option<Found> = None;
        for def in defs {
            let this = match def {
                Def::Item => Some(Found::Item),
                Def::Module(child) => Some(Found::Module(*child)),
                // `use http::{self, …}` in a module with a child `http` does not occur; a name that imports itself is
                // external.
                Def::Import(path) => self.follow(module, path, seen).map(|t| Found::Through(t, false)),
            };
            // A module and a function may have the same name: within a path it is the module, at the end the item.
            let better = match (&found, &this) {
                (_, None) => false,
                (None, _) => true,
                (Some(old), Some(new)) => new.is_module() != last && old.is_module() == last,
            };
            if better {
                found = this;
            }
        }
        if found.is_some() || !defs.is_empty() {
            return found;
        }
        for glob in &m.globs {
            let Some(target) = self.follow(module, glob, seen) else { continue };
            if !target.rest.is_empty() {
                continue;
            }
            match self.lookup(target.module, name, last, seen) {
                Some(Found::Item) => {
                    return Some(Found::Through(Target { rest: vec![name.to_owned()], glob: true, ..target }, true));
                }
                Some(Found::Module(child)) => {
                    return Some(Found::Through(Target { module: child, glob: true, ..target }, true));
                }
                Some(Found::Through(t, _)) => return Some(Found::Through(t, true)),
                None => {}
            }
        }
        None
    }

    /// Returns all dependencies between files.
    pub fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = BTreeSet::new();
        for (parsed, id) in self.files.values() {
            Walk { krate: self, module: *id, arrows: &mut arrows }.items(&parsed.items);
        }
        arrows.into_iter().collect()
    }

    pub fn is_ancestor(&self, above: usize, below: usize) -> bool {
        self.modules[below].path.starts_with(&self.modules[above].path)
    }
}

enum Found {
    Item,
    Module(usize),
    Through(Target, bool),
}

impl Found {
    fn is_module(&self) -> bool {
        match self {
            Found::Item => false,
            Found::Module(_) => true,
            Found::Through(t, _) => t.rest.is_empty(),
        }
    }
}

/// A name that a `use` brings.
pub struct Leaf {
    pub path: Vec<String>,
    /// The name here; `None` for a glob.
    pub name: Option<String>,
    pub span: Span,
}

pub fn leaves(tree: &UseTree, leading: bool) -> Vec<Leaf> {
    let mut found = vec![];
    walk_use(tree, &mut if leading { vec![String::new()] } else { vec![] }, &mut found);
    found
}

fn walk_use(tree: &UseTree, path: &mut Vec<String>, found: &mut Vec<Leaf>) {
    let leaf = |path: &[String], ident: &proc_macro2::Ident, name: String| {
        let mut path = path.to_vec();
        if ident != "self" || path.is_empty() {
            path.push(ident.to_string());
        }
        Leaf { name: Some(if name == "self" { path[path.len() - 1].clone() } else { name }), path, span: ident.span() }
    };
    match tree {
        UseTree::Path(p) => {
            path.push(p.ident.to_string());
            walk_use(&p.tree, path, found);
            path.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                walk_use(tree, path, found);
            }
        }
        UseTree::Name(n) => found.push(leaf(path, &n.ident, n.ident.to_string())),
        UseTree::Rename(r) => found.push(leaf(path, &r.ident, r.rename.to_string())),
        UseTree::Glob(g) => found.push(Leaf { path: path.clone(), name: None, span: g.star_token.spans[0] }),
    }
}

pub fn parts(item: &Item) -> (&[Attribute], Option<&proc_macro2::Ident>) {
    match item {
        Item::Const(i) => (&i.attrs, Some(&i.ident)),
        Item::Enum(i) => (&i.attrs, Some(&i.ident)),
        Item::ExternCrate(i) => (&i.attrs, None),
        Item::Fn(i) => (&i.attrs, Some(&i.sig.ident)),
        Item::ForeignMod(i) => (&i.attrs, None),
        Item::Impl(i) => (&i.attrs, None),
        Item::Macro(i) => (&i.attrs, i.ident.as_ref()),
        Item::Mod(i) => (&i.attrs, Some(&i.ident)),
        Item::Static(i) => (&i.attrs, Some(&i.ident)),
        Item::Struct(i) => (&i.attrs, Some(&i.ident)),
        Item::Trait(i) => (&i.attrs, Some(&i.ident)),
        Item::TraitAlias(i) => (&i.attrs, Some(&i.ident)),
        Item::Type(i) => (&i.attrs, Some(&i.ident)),
        Item::Union(i) => (&i.attrs, Some(&i.ident)),
        Item::Use(i) => (&i.attrs, None),
        _ => (&[], None),
    }
}

/// Returns whether attributes contain `#[test]`, or a `#[cfg(…)]` that requires `test`.
pub fn is_test(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|a| {
        let last = a.path().segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
        match &a.meta {
            syn::Meta::List(list) if a.path().is_ident("cfg") => needs_test(list.tokens.clone()),
            _ => last == "test" || last == "bench",
        }
    })
}

fn needs_test(tokens: TokenStream) -> bool {
    let mut iter = tokens.into_iter().peekable();
    while let Some(tree) = iter.next() {
        let TokenTree::Ident(ident) = tree else { continue };
        match (&*ident.to_string(), iter.peek()) {
            ("test", _) => return true,
            // The SDK runs natively only in its test host.
            ("not", Some(TokenTree::Group(group)))
                if group.stream().to_string().replace(' ', "") == "target_arch=\"wasm32\"" =>
            {
                return true;
            }
            ("all", Some(TokenTree::Group(group))) if needs_test(group.stream()) => return true,
            _ => {}
        }
    }
    false
}

fn path_attribute(attrs: &[Attribute]) -> Option<String> {
    attrs.iter().find(|a| a.path().is_ident("path")).and_then(|a| match &a.meta {
        syn::Meta::NameValue(syn::MetaNameValue {
            value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(s), .. }),
            ..
        }) => Some(s.value()),
        _ => None,
    })
}

fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            // Above the sources: a test's helper elsewhere in the workspace.
            std::path::Component::ParentDir if out.ends_with("..") || out.as_os_str().is_empty() => out.push(".."),
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}
