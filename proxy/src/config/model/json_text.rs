//! A JSON value that is kept as its text. A tree of maps takes about fifteen times as much memory, and filters receive the
//! text anyway.

use std::fmt;

use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// A JSON value as compact text, cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonText(Bytes);

impl JsonText {
    /// Whether the value is null.
    pub fn is_null(&self) -> bool {
        &*self.0 == b"null"
    }

    /// The value as a tree.
    pub fn value(&self) -> Value {
        // It was made of a value.
        serde_json::from_slice(&self.0).unwrap_or_default()
    }

    /// The value as a filter receives it: text verbatim, null as empty, everything else as JSON.
    pub fn to_guest(&self) -> Bytes {
        match &self.0[..] {
            b"null" => Bytes::new(),
            [b'"', ..] => serde_json::from_slice::<String>(&self.0).unwrap_or_default().into(),
            _ => self.0.clone(),
        }
    }

    /// Calls a function with every text in the value, names of fields included.
    pub fn each_text(&self, call: &mut dyn FnMut(&str)) {
        let mut texts = serde_json::Deserializer::from_slice(&self.0);
        let _ = texts.deserialize_any(Texts(call));
    }
}

impl Default for JsonText {
    fn default() -> JsonText {
        JsonText(Bytes::from_static(b"null"))
    }
}

impl From<&Value> for JsonText {
    fn from(value: &Value) -> JsonText {
        JsonText(value.to_string().into())
    }
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonText, D::Error> {
        Value::deserialize(deserializer).map(|value| JsonText::from(&value))
    }
}

impl JsonSchema for JsonText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Value::schema_name()
    }

    fn inline_schema() -> bool {
        Value::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Value::json_schema(generator)
    }
}

/// Finds the texts in a value without making a tree of it.
struct Texts<'c>(&'c mut dyn FnMut(&str));

impl<'de> serde::de::DeserializeSeed<'de> for Texts<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        (self.0)(text);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Texts(self.0))?.is_some() {
            map.next_value_seed(Texts(self.0))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Texts(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn value_stays_the_same() {
        for value in [json!(null), json!("a\"b"), json!(1.5), json!({"z": [1, {"a": true}], "b": "\u{e9}"})] {
            let text: JsonText = serde_json::from_value(value.clone()).unwrap();
            assert_eq!((text.value(), serde_json::to_value(&text).unwrap()), (value.clone(), value.clone()));
            assert_eq!(text.is_null(), value.is_null());
        }
        assert!(JsonText::default().is_null());
    }

    #[test]
    fn filters_receive_text_verbatim_and_all_else_as_json() {
        let guest = |value: Value| JsonText::from(&value).to_guest();
        assert_eq!(guest(json!(null)), "");
        assert_eq!(guest(json!("a \"b\"\n")), "a \"b\"\n");
        assert_eq!(guest(json!({"a": [1, null]})), r#"{"a":[1,null]}"#);
        assert_eq!(guest(json!(false)), "false");
    }

    #[test]
    fn every_text_is_found() {
        let value = json!({"a": ["b", 1, -1, 0.5, null, true, {"c": {"d": "e\n"}}]});
        let mut texts = Vec::new();
        JsonText::from(&value).each_text(&mut |text| texts.push(text.to_owned()));
        assert_eq!(texts, ["a", "b", "c", "d", "e\n"]);
    }
}
