//! Lists the public paths of a crate from its sources: each path that other crates can name, with signature, fields,
//! variants and implemented traits. Re-exports are followed, so the module that defines an item does not matter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use quote::ToTokens;
use syn::{Attribute, Generics, ImplItem, Item, ItemImpl, ItemUse, TraitItem, Type, UseTree, Visibility};

/// Returns all public paths of the crate in this folder, one per line.
pub fn paths(src: &Path) -> String {
    let file = read(&src.join("lib.rs"));
    let root = Module::load(file, src, &[]);
    let mut walk = Walk { root: &root, lines: BTreeSet::new(), found: BTreeMap::new() };
    walk.module(&root, "");
    let found = std::mem::take(&mut walk.found);
    found.iter().for_each(|((module, name), paths)| walk.describe(module, name, paths));
    walk.lines.into_iter().map(|line| line + "\n").collect()
}

struct Module {
    path: Vec<String>,
    items: Vec<Item>,
    children: Vec<Module>,
}

impl Module {
    fn load(items: Vec<Item>, dir: &Path, path: &[String]) -> Module {
        let mut children = Vec::new();
        for item in &items {
            let Item::Mod(module) = item else { continue };
            if module.attrs.iter().any(|attribute| text(&attribute.meta) == "cfg (test)") {
                continue;
            }
            let name = module.ident.to_string();
            let inner = dir.join(&name);
            let items = match &module.content {
                Some((_, items)) => items.clone(),
                None => {
                    let beside = dir.join(format!("{name}.rs"));
                    read(&if beside.exists() { beside } else { inner.join("mod.rs") })
                }
            };
            children.push(Module::load(items, &inner, &[path, &[name]].concat()));
        }
        Module { path: path.to_vec(), items, children }
    }

    fn child(&self, name: &str) -> Option<&Module> {
        self.children.iter().find(|child| child.path.last().is_some_and(|last| last == name))
    }

    fn at<'m>(&'m self, path: &[String]) -> Option<&'m Module> {
        path.iter().try_fold(self, |module, name| module.child(name))
    }

    /// Returns all `impl` blocks in this module and below.
    fn blocks(&self) -> Vec<&ItemImpl> {
        let own = self.items.iter().filter_map(|item| match item {
            Item::Impl(block) => Some(block),
            _ => None,
        });
        own.chain(self.children.iter().flat_map(Module::blocks)).collect()
    }
}

fn read(file: &Path) -> Vec<Item> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display())).items
}

struct Walk<'m> {
    root: &'m Module,
    lines: BTreeSet<String>,
    /// The paths of each item, by its module and name.
    found: BTreeMap<(&'m [String], String), BTreeSet<String>>,
}

impl<'m> Walk<'m> {
    fn line(&mut self, line: String) {
        self.lines.insert(line.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    /// Lists a member of a type or trait.
    fn member(&mut self, attributes: &[Attribute], line: String) {
        if !is_hidden(attributes) {
            self.line(line);
        }
    }

    fn module(&mut self, module: &'m Module, prefix: &str) {
        for item in &module.items {
            match item {
                Item::Macro(m) if m.attrs.iter().any(|a| a.path().is_ident("macro_export")) => {
                    self.line(format!("{}!", m.ident.as_ref().map(ToString::to_string).unwrap_or_default()));
                }
                Item::Use(import) if is_public(&import.vis) && !is_hidden(&import.attrs) => {
                    for (path, name) in leaves(import) {
                        self.import(module, &path, &format!("{prefix}{name}"));
                    }
                }
                item => {
                    if let Some((name, vis, attributes)) = named(item)
                        && is_public(vis)
                        && !is_hidden(attributes)
                    {
                        self.item(module, &name, &format!("{prefix}{name}"));
                    }
                }
            }
        }
    }

    /// Follows a path from a module. The result is listed as `shown`, which ends with `*` for a glob.
    fn import(&mut self, from: &'m Module, path: &[String], shown: &str) {
        let supers = path.iter().take_while(|segment| *segment == "super").count();
        let (base, rest) = match path[0].as_str() {
            "crate" => (Some(self.root), &path[1..]),
            "self" => (Some(from), &path[1..]),
            _ => (self.root.at(&from.path[..from.path.len() - supers]), &path[supers..]),
        };
        let base = base.expect("a parent");
        if let Some(module) = base.at(rest) {
            let prefix = shown.strip_suffix('*').map_or_else(|| format!("{shown}::"), str::to_owned);
            return self.module(module, &prefix);
        }
        match rest.split_last().and_then(|(item, module)| Some((base.at(module)?, item))) {
            Some((module, item)) if module.items.iter().any(|i| provides(i, item)) => self.item(module, item, shown),
            _ => self.line(format!("{shown} = {}", path.join("::"))),
        }
    }

    /// Lists the items with this name in a module.
    fn item(&mut self, module: &'m Module, name: &str, path: &str) {
        for item in module.items.iter().filter(|item| provides(item, name)) {
            match item {
                Item::Mod(_) => {
                    if let Some(child) = module.child(name) {
                        self.module(child, &format!("{path}::"));
                    }
                }
                Item::Use(import) => {
                    let found = leaves(import).into_iter().find(|(_, leaf)| leaf == name);
                    found.into_iter().for_each(|(target, _)| self.import(module, &target, path));
                }
                _ => _ = self.found.entry((&module.path, name.to_owned())).or_default().insert(path.to_owned()),
            }
        }
    }

    /// Describes an item under the shortest of its paths.
    fn describe(&mut self, module: &[String], name: &str, paths: &BTreeSet<String>) {
        let path = paths.iter().min_by_key(|path| path.len()).expect("a path");
        paths.iter().filter(|other| *other != path).for_each(|other| self.line(format!("{other} = {path}")));
        let module = self.root.at(module).expect("its module");
        for item in module.items.iter().filter(|item| provides(item, name)) {
            match item {
                Item::Fn(f) => self.line(format!("{path}: {}", text(&f.sig))),
                Item::Const(c) => self.line(format!("{path}: const {}", text(&c.ty))),
                Item::Type(t) => self.line(format!("{path}: type {}", text(&t.ty))),
                Item::Struct(s) => {
                    self.type_of("struct", path, name, &s.generics, &s.attrs);
                    for (i, field) in s.fields.iter().enumerate().filter(|(_, field)| is_public(&field.vis)) {
                        let name = field.ident.as_ref().map_or_else(|| i.to_string(), ToString::to_string);
                        self.line(format!("{path}.{name}: {}", text(&field.ty)));
                    }
                }
                Item::Enum(e) => {
                    self.type_of("enum", path, name, &e.generics, &e.attrs);
                    e.variants.iter().for_each(|v| self.line(format!("{path}::{} {}", v.ident, text(&v.fields))));
                }
                Item::Trait(t) => {
                    self.line(format!("{path}: trait {} {}", text(&t.generics), text(&t.supertraits)));
                    for item in &t.items {
                        match item {
                            TraitItem::Fn(f) => {
                                self.member(&f.attrs, format!("{path}::{}: {}", f.sig.ident, text(&f.sig)))
                            }
                            TraitItem::Type(t) => self.member(&t.attrs, format!("{path}::{}: type", t.ident)),
                            TraitItem::Const(c) => {
                                self.member(&c.attrs, format!("{path}::{}: const {}", c.ident, text(&c.ty)))
                            }
                            _ => {}
                        }
                    }
                }
                other => panic!("{path}: {}", text(other)),
            }
        }
    }

    /// Describes a type with its derived and implemented traits, wherever in the crate they are.
    fn type_of(&mut self, kind: &str, path: &str, name: &str, generics: &Generics, attributes: &[Attribute]) {
        self.line(format!("{path}: {kind} {}", text(generics)));
        for attribute in attributes.iter().filter(|a| a.path().is_ident("derive")) {
            let _ = attribute.parse_nested_meta(|meta| {
                self.line(format!("{path}: impl {}", text(&meta.path)));
                Ok(())
            });
        }
        for block in self.root.blocks() {
            let is_its =
                matches!(&*block.self_ty, Type::Path(of) if of.path.segments.last().is_some_and(|s| s.ident == name));
            match &block.trait_ {
                _ if !is_its => {}
                Some((_, of, _)) => self.line(format!("{path}: impl {}", text(of))),
                None => {
                    for item in &block.items {
                        match item {
                            ImplItem::Fn(f) if is_public(&f.vis) => {
                                self.member(&f.attrs, format!("{path}::{}: {}", f.sig.ident, text(&f.sig)));
                            }
                            ImplItem::Const(c) if is_public(&c.vis) => {
                                self.member(&c.attrs, format!("{path}::{}: const {}", c.ident, text(&c.ty)));
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
    }
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// Returns whether an item is hidden: it is only for the expansion of the SDK's own macros.
fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| text(&attribute.meta) == "doc (hidden)")
}

fn named(item: &Item) -> Option<(String, &Visibility, &[Attribute])> {
    let (ident, vis, attributes) = match item {
        Item::Const(i) => (&i.ident, &i.vis, &i.attrs),
        Item::Enum(i) => (&i.ident, &i.vis, &i.attrs),
        Item::Fn(i) => (&i.sig.ident, &i.vis, &i.attrs),
        Item::Mod(i) => (&i.ident, &i.vis, &i.attrs),
        Item::Struct(i) => (&i.ident, &i.vis, &i.attrs),
        Item::Trait(i) => (&i.ident, &i.vis, &i.attrs),
        Item::Type(i) => (&i.ident, &i.vis, &i.attrs),
        _ => return None,
    };
    Some((ident.to_string(), vis, attributes))
}

/// Returns whether an item defines or re-exports this name.
fn provides(item: &Item, name: &str) -> bool {
    match item {
        Item::Use(import) => leaves(import).iter().any(|(_, leaf)| leaf == name),
        item => named(item).is_some_and(|(its, ..)| its == name),
    }
}

/// Returns the paths of a `use` with the name that each brings; `*` for a glob.
fn leaves(import: &ItemUse) -> Vec<(Vec<String>, String)> {
    fn collect(tree: &UseTree, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
        let with = |name: &syn::Ident| match name == "self" && !before.is_empty() {
            true => before.to_vec(),
            false => [before, &[name.to_string()]].concat(),
        };
        match tree {
            UseTree::Path(path) => collect(&path.tree, &with(&path.ident), found),
            UseTree::Name(name) => {
                let path = with(&name.ident);
                found.push((path.clone(), path[path.len() - 1].clone()));
            }
            UseTree::Rename(rename) => found.push((with(&rename.ident), rename.rename.to_string())),
            UseTree::Glob(_) => found.push((before.to_vec(), "*".to_owned())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| collect(tree, before, found)),
        }
    }
    let mut found = Vec::new();
    collect(&import.tree, &[], &mut found);
    found
}

/// Formats tokens without the modules in paths: a type is the same wherever it is defined.
fn text(tokens: &impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string();
    let words: Vec<&str> = text.split(' ').collect();
    let is_module = |word: &str| word.starts_with(|c: char| c.is_ascii_lowercase());
    let mut kept: Vec<&str> = Vec::new();
    for word in words {
        if let [.., before, "::"] = kept[..]
            && is_module(before)
        {
            kept.truncate(kept.len() - 2);
        }
        kept.push(word);
    }
    kept.join(" ")
}
