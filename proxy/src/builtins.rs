//! The built-in filters, which are part of the binary: one per directory of `filters/`. `build.rs` finds and compiles
//! them.

use std::sync::OnceLock;

use crate::digest::sha256_hex;

// `NAMES`, and in the same order `MODULES`.
include!(concat!(env!("OUT_DIR"), "/builtins.rs"));

/// Marks the name of a built-in filter where the configuration could also contain the path of a file.
const PREFIX: &str = "builtin:";

/// Returns the name of a built-in filter, or `None` for the path of a file.
pub fn name(wasm: &str) -> Option<&str> {
    wasm.strip_prefix(PREFIX)
}

/// Returns the compiled module of a built-in filter.
pub fn module(name: &str) -> Option<&'static [u8]> {
    position(name).map(|i| MODULES[i])
}

/// Returns the SHA-256 of a built-in filter, in hex. It is computed on first use only, because every reload needs it.
pub fn hash(name: &str) -> Option<&'static str> {
    static HASHES: [OnceLock<String>; NAMES.len()] = [const { OnceLock::new() }; NAMES.len()];
    position(name).map(|i| HASHES[i].get_or_init(|| sha256_hex(MODULES[i])).as_str())
}

fn position(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_of_filters_is_built_in() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../filters");
        let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap());
        let folders = folders.filter(|entry| entry.file_type().unwrap().is_dir());
        let mut folders: Vec<_> = folders.map(|folder| folder.file_name().into_string().unwrap()).collect();
        let mut names = NAMES.to_vec();
        folders.sort();
        names.sort();
        assert_eq!(names, folders);
        assert!(names.iter().all(|name| module(name).is_some_and(|module| module.starts_with(b"\0asm"))));
    }

    #[test]
    fn every_hash_is_of_the_module_of_that_name() {
        for name in NAMES {
            assert_eq!(hash(name), module(name).map(sha256_hex).as_deref(), "{name}");
        }
        assert_eq!(hash("none"), None);
    }
}
