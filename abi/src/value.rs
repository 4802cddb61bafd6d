//! Typed metadata values: a type, and bytes that guests and the host encode in the same way. The standard's
//! `proxy_get_property` returns the same bytes, so the encoding is that of properties.

/// Types of values.
pub mod kind {
    /// UTF-8.
    pub const TEXT: i32 = 0;
    /// Any bytes.
    pub const BYTES: i32 = 1;
    /// A little-endian i64.
    pub const INTEGER: i32 = 2;
    /// A little-endian f64.
    pub const NUMBER: i32 = 3;
    /// One byte, 0 or 1.
    pub const BOOL: i32 = 4;
    /// Each type with its name.
    pub const NAMES: &[(i32, &str)] =
        &[(TEXT, "TEXT"), (BYTES, "BYTES"), (INTEGER, "INTEGER"), (NUMBER, "NUMBER"), (BOOL, "BOOL")];
}

/// A value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// Any bytes.
    Bytes(&'a [u8]),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A boolean.
    Bool(bool),
}

impl<'a> Value<'a> {
    /// Decodes a value. `None` if there is no such type or the bytes do not match it.
    pub fn decode(kind: i32, bytes: &'a [u8]) -> Option<Value<'a>> {
        Some(match kind {
            kind::TEXT => Value::Text(core::str::from_utf8(bytes).ok()?),
            kind::BYTES => Value::Bytes(bytes),
            kind::INTEGER => Value::Integer(i64::from_le_bytes(bytes.try_into().ok()?)),
            kind::NUMBER => Value::Number(f64::from_le_bytes(bytes.try_into().ok()?)),
            kind::BOOL => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            _ => return None,
        })
    }

    /// The value's type.
    pub fn kind(&self) -> i32 {
        match self {
            Value::Text(_) => kind::TEXT,
            Value::Bytes(_) => kind::BYTES,
            Value::Integer(_) => kind::INTEGER,
            Value::Number(_) => kind::NUMBER,
            Value::Bool(_) => kind::BOOL,
        }
    }

    /// Runs `f` on the value's bytes.
    pub fn with_bytes<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Value::Text(text) => f(text.as_bytes()),
            Value::Bytes(bytes) => f(bytes),
            Value::Integer(n) => f(&n.to_le_bytes()),
            Value::Number(n) => f(&n.to_le_bytes()),
            Value::Bool(b) => f(&[u8::from(*b)]),
        }
    }
}

macro_rules! from {
    ($($variant:ident: $ty:ty),*) => {$(
        impl<'a> From<$ty> for Value<'a> {
            fn from(value: $ty) -> Self {
                Value::$variant(value)
            }
        }
    )*};
}
from!(Text: &'a str, Bytes: &'a [u8], Integer: i64, Number: f64, Bool: bool);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_encoding_and_decoding() {
        let all = [
            Value::Text("caf\u{e9}"),
            Value::Bytes(b"\xff\0"),
            Value::Integer(-7),
            Value::Number(0.5),
            Value::Bool(true),
            Value::Bool(false),
        ];
        for value in all {
            value.with_bytes(|bytes| assert_eq!(Value::decode(value.kind(), bytes), Some(value)));
        }
        let bad: [(i32, &[u8]); 7] =
            [(0, b"\xff"), (2, b"1234567"), (3, b"123456789"), (4, b""), (4, b"\x02"), (5, b""), (-1, b"")];
        for (kind, bytes) in bad {
            assert_eq!(Value::decode(kind, bytes), None, "{kind} {bytes:?}");
        }
    }
}
