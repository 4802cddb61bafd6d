//! Finds the paths in a file that refer to another module.

use std::collections::BTreeSet;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{Attribute, Item, visit::Visit};

use super::source::{Arrow, Crate, Target, is_test, leaves, parts};

/// The walk over one file.
pub struct Walk<'a> {
    pub krate: &'a Crate,
    /// The current module.
    pub module: usize,
    pub arrows: &'a mut BTreeSet<Arrow>,
}

impl Walk<'_> {
    pub fn items(&mut self, items: &[Item]) {
        for item in items {
            self.visit_item(item);
        }
    }

    fn path(&mut self, path: &[String], span: Span, single: bool) {
        let Some(target) = self.krate.resolve(self.module, path) else { return };
        // A single word is local or imported by the file, unless it came from a glob.
        if single && !target.glob {
            return;
        }
        self.arrow(&target, path, span);
    }

    fn arrow(&mut self, target: &Target, path: &[String], span: Span) {
        let from = self.krate.modules[self.module].file.clone();
        let hops = target.hops.iter().copied().filter(|&hop| !self.krate.is_ancestor(hop, self.module));
        for module in hops.chain([target.module]) {
            let to = self.krate.modules[module].file.clone();
            if to != from {
                self.arrows.insert(Arrow { from: from.clone(), line: span.start().line, to, text: path.join("::") });
            }
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        for (path, span) in paths_in(tokens) {
            if path.len() > 1 {
                self.path(&path, span, false);
            }
        }
    }
}

/// Returns paths of at least two segments in unparsed tokens: arguments and bodies of macros.
fn paths_in(tokens: TokenStream) -> Vec<(Vec<String>, Span)> {
    let mut found = vec![];
    collect(tokens, &mut found);
    found
}

fn collect(tokens: TokenStream, found: &mut Vec<(Vec<String>, Span)>) {
    let mut path: Vec<String> = vec![];
    let mut start: Option<Span> = None;
    let mut colons = 0;
    let mut dollar = false;
    let mut flush = |path: &mut Vec<String>, start: &mut Option<Span>| {
        if let Some(span) = start.take() {
            found.push((std::mem::take(path), span));
        }
        path.clear();
    };
    let mut inner = vec![];
    for tree in tokens {
        match tree {
            TokenTree::Ident(ident) => {
                let text = if dollar && ident == "crate" { "$crate".to_owned() } else { ident.to_string() };
                if colons == 2 && start.is_some() {
                    path.push(text);
                } else {
                    flush(&mut path, &mut start);
                    if colons == 2 {
                        // `::http::x`, or what follows `<T as X>`: external.
                        path.push(String::new());
                    }
                    path.push(text);
                    start = Some(ident.span());
                }
                (colons, dollar) = (0, false);
            }
            TokenTree::Punct(p) if p.as_char() == ':' => {
                colons += 1;
                dollar = false;
            }
            TokenTree::Punct(p) => {
                flush(&mut path, &mut start);
                colons = 0;
                dollar = p.as_char() == '$';
            }
            TokenTree::Group(group) => {
                flush(&mut path, &mut start);
                (colons, dollar) = (0, false);
                inner.push(group.stream());
            }
            TokenTree::Literal(_) => {
                flush(&mut path, &mut start);
                (colons, dollar) = (0, false);
            }
        }
    }
    flush(&mut path, &mut start);
    for stream in inner {
        collect(stream, found);
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_test(parts(item).0) {
            return;
        }
        if let Item::Mod(m) = item {
            let Some((_, items)) = &m.content else { return };
            let mut path = self.krate.modules[self.module].path.clone();
            path.push(m.ident.to_string());
            if let Some(id) = self.krate.module_at(&path) {
                let outer = std::mem::replace(&mut self.module, id);
                self.items(items);
                self.module = outer;
            }
            return;
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        for leaf in leaves(&item.tree, item.leading_colon.is_some()) {
            let Some(target) = self.krate.resolve(self.module, &leaf.path) else { continue };
            // A module that re-exports what its children define does not depend on them.
            if public && self.krate.is_ancestor(self.module, target.module) {
                continue;
            }
            self.arrow(&target, &leaf.path, leaf.span);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let segments: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
            let span = path.segments[0].ident.span();
            self.path(&segments, span, segments.len() == 1);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.visit_path(&mac.path);
        self.tokens(mac.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let syn::Meta::List(list) = &attribute.meta else { return };
        self.tokens(list.tokens.clone());
        for (text, span) in strings(list.tokens.clone()) {
            let path: Vec<_> = text.split("::").map(str::to_owned).collect();
            if path.len() > 1
                && path.iter().all(|s| !s.is_empty() && s.chars().all(|c| c.is_alphanumeric() || c == '_'))
            {
                self.path(&path, span, false);
            }
        }
    }
}

fn strings(tokens: TokenStream) -> Vec<(String, Span)> {
    let mut found = vec![];
    for tree in tokens {
        match tree {
            TokenTree::Group(group) => found.extend(strings(group.stream())),
            TokenTree::Literal(literal) => {
                if let syn::Lit::Str(text) = syn::Lit::new(literal.clone()) {
                    found.push((text.value(), literal.span()));
                }
            }
            _ => {}
        }
    }
    found
}
