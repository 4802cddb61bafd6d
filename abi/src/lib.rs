//! The contract between Tollgate and its filters: names, numbers, signatures, wire formats and limits.
//!
//! The host and the SDK both compile against this crate, so that neither can drift from the other; `abi/golden.txt` holds
//! its rendering and a test compares the two. [`proxy_wasm`] is the standard, [`fast`] the lane beside it, [`doc`] the
//! documents that are handed over at configure time, [`pairs`] the encoding of header maps, [`path`] that of properties' paths,
//! [`value`] that of typed metadata, [`wasi`] what there is of WASI, [`spelling`] the one spelling of paths, hosts and methods.

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

/// A value's type on the Wasm side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ty {
    /// A 32-bit integer, a guest address or a length.
    I32,
    /// A 64-bit integer.
    I64,
}

/// A function of the contract: one that the host offers, or one that a module may export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Its name as import or export.
    pub name: &'static str,
    /// Its parameters' names and types, in order.
    pub params: &'static [(&'static str, Ty)],
    /// What it returns.
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
