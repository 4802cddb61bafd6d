//! The ABI contract between Tollgate and its filters: names, numbers, signatures, wire formats and limits.
//!
//! The host and the SDK both compile against this crate, so that they cannot diverge; a test compares its rendering
//! with `abi/golden.txt`. [`proxy_wasm`] is the standard, [`fast`] the fast lane next to it, [`doc`] the documents
//! passed at configure time, [`pairs`] the encoding of header maps, [`path`] the encoding of property paths, [`value`]
//! the encoding of typed metadata, [`wasi`] the supported part of WASI, and [`spelling`] the normal form of paths,
//! hosts and methods.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod doc;
pub mod fast;
pub mod gcra;
pub mod pairs;
pub mod path;
pub mod proxy_wasm;
pub mod spelling;
pub mod value;
pub mod wasi;

/// A Wasm value type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ty {
    /// A 32-bit integer, a guest address or a length.
    I32,
    /// A 64-bit integer.
    I64,
}

/// A function of the contract: a host function, or a callback that a module may export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Its import or export name.
    pub name: &'static str,
    /// Its parameters' names and types, in order.
    pub params: &'static [(&'static str, Ty)],
    /// Its result.
    pub result: Option<Ty>,
}

impl core::fmt::Display for Function {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let ty = |t: Ty| if t == Ty::I32 { "i32" } else { "i64" };
        write!(f, "{}(", self.name)?;
        for (i, (name, t)) in self.params.iter().enumerate() {
            write!(f, "{}{name}: {}", if i == 0 { "" } else { ", " }, ty(*t))?;
        }
        write!(f, ")")?;
        self.result.map_or(Ok(()), |t| write!(f, " -> {}", ty(t)))
    }
}

/// Expands a list of functions to [`Function`]s.
#[doc(hidden)]
#[macro_export]
macro_rules! function_table {
    ($( $(#[$doc:meta])* fn $name:ident($($param:ident: $ty:ident),* $(,)?) $(-> $ret:ident)?; )*) => {
        &[$($crate::Function {
            name: stringify!($name),
            params: &[$((stringify!($param), $crate::function_table!(@ty $ty))),*],
            result: $crate::function_table!(@ret $($ret)?),
        }),*]
    };
    (@ty i32) => { $crate::Ty::I32 };
    (@ty i64) => { $crate::Ty::I64 };
    (@ret) => { None };
    (@ret $ret:ident) => { Some($crate::function_table!(@ty $ret)) };
}
