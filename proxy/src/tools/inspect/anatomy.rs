//! The structure of a module, read without compiling or running it.

use std::collections::BTreeMap;

use tollgate_abi::{fast, proxy_wasm, wasi};
use wasmparser::{ExternalKind, KnownCustom, Parser, Payload, TypeRef};

use super::report::{Export, Group, Import, Memory, Producer, Section};
use crate::wasm::is_offered;

/// The parts of a module.
#[derive(Debug, Default)]
pub struct Anatomy {
    pub producers: Vec<Producer>,
    pub imports: Vec<Import>,
    pub exports: Vec<Export>,
    pub memory: Option<Memory>,
    /// In the order of the module; custom ones by name.
    pub sections: Vec<Section>,
    /// The number of functions, without imports.
    pub functions: u32,
}

/// The default page size, in bytes.
const PAGE: u64 = 64 << 10;

/// Parses a module.
///
/// # Errors The bytes are not a WebAssembly module.
pub fn anatomy(bytes: &[u8]) -> wasmparser::Result<Anatomy> {
    let mut found = Anatomy::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        if let Some((id, range)) = payload.as_section() {
            let name = match &payload {
                Payload::CustomSection(section) => format!("custom `{}`", section.name()),
                _ => section_name(id).to_owned(),
            };
            found.sections.push(Section { name, bytes: range.len() });
        }
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    let kind = if matches!(import.ty, TypeRef::Func(_)) { "function" } else { "other" };
                    found.imports.push(of_import(import.module, import.name, kind == "function"));
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory?;
                    let bytes = |pages: u64| pages.saturating_mul(memory.page_size_log2.map_or(PAGE, |log| 1 << log));
                    found.memory = Some(Memory { initial: bytes(memory.initial), max: memory.maximum.map(bytes) });
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        found.exports.push(of_export(export.name));
                    }
                }
            }
            Payload::FunctionSection(section) => found.functions = section.count(),
            Payload::CustomSection(section) => {
                if let KnownCustom::Producers(fields) = section.as_known() {
                    for field in fields {
                        let field = field?;
                        for value in field.values {
                            let value = value?;
                            let (field, name, version) =
                                (field.name.to_owned(), value.name.to_owned(), value.version.to_owned());
                            found.producers.push(Producer { field, name, version });
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn of_import(module: &str, name: &str, is_function: bool) -> Import {
    let group = match (module, is_function && is_offered(module, name)) {
        (_, false) => Group::Unknown,
        (proxy_wasm::MODULE, true) => Group::Standard,
        (fast::MODULE, true) => Group::TollgateV1,
        (_, true) => Group::Wasi,
    };
    debug_assert!(group != Group::Wasi || wasi::MODULES.contains(&module));
    Import { module: module.to_owned(), name: name.to_owned(), group }
}

fn of_export(name: &str) -> Export {
    let mut callbacks = proxy_wasm::CALLBACKS.iter().chain(fast::CALLBACKS);
    Export { name: name.to_owned(), is_callback: callbacks.any(|f| f.name == name) }
}

fn section_name(id: u8) -> &'static str {
    const NAMES: [&str; 14] = [
        "custom",
        "types",
        "imports",
        "functions",
        "tables",
        "memory",
        "globals",
        "exports",
        "start",
        "elements",
        "code",
        "data",
        "data count",
        "tags",
    ];
    NAMES.get(usize::from(id)).copied().unwrap_or("unknown")
}

impl Anatomy {
    /// Returns the total size in bytes of code, data, custom sections, and the rest.
    pub fn sizes(&self) -> BTreeMap<&'static str, usize> {
        let mut sizes = BTreeMap::new();
        for Section { name, bytes } in &self.sections {
            let kind = match name.as_str() {
                "code" => "code",
                "data" => "data",
                custom if custom.starts_with("custom") => "custom",
                _ => "other",
            };
            *sizes.entry(kind).or_default() += bytes;
        }
        sizes
    }

    /// Whether the module imports a function.
    pub fn imports(&self, name: &str) -> bool {
        self.imports.iter().any(|import| import.name == name)
    }

    /// Whether the module exports a function.
    pub fn exports(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export.name == name)
    }
}
