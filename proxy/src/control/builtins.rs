//! The standard filters that the binary carries.

include!(concat!(env!("OUT_DIR"), "/builtins.rs"));

/// The module of a standard filter.
pub fn get(name: &str) -> Option<&'static [u8]> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}
