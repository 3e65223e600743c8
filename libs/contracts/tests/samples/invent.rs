//! Invents a value of any type of messages, every optional part filled, from nothing but its `Deserialize`.
//!
//! So a sample shows every field, also those that nobody thought of when the sample was written.

use model::plan::{Container, JobDefinition, RunStep};
use serde::{
    Deserialize,
    de::{
        DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer,
        MapAccess, SeqAccess, VariantAccess, Visitor, value::Error,
    },
};
use serde_json::{Value, json};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const TIME: &str = "2026-01-02T03:04:05.678901Z";

/// A value of a type; `what` is named when that is not possible.
pub fn value<T: DeserializeOwned>(what: &str) -> T {
    T::deserialize(Invent)
        .unwrap_or_else(|error| panic!("{what}: {error}; teach tests/samples/invent.rs the type"))
}

fn json_of<T: DeserializeOwned + serde::Serialize>() -> Value {
    serde_json::to_value(value::<T>("a part")).unwrap()
}

/// Enums whose variants stand in a field: which one cannot be invented.
fn tagged(name: &str) -> Option<Value> {
    let with = |tag: &str, word: &str, mut rest: Value| {
        rest[tag] = word.into();
        rest
    };
    Some(match name {
        "Actor" => json!({ "kind": "user", "id": ID }),
        "Decision" => json!({ "decision": "pipeline", "id": ID, "number": 7 }),
        "JobKind" => json!({ "type": "build", "definition": json_of::<JobDefinition>() }),
        "Executor" => json!({ "kind": "docker", "containers": [json_of::<Container>()] }),
        "PlacementNews" => json!({ "kind": "waits", "why": "text" }),
        "RegistryAuth" => json!({ "kind": "basic", "username": "text", "password": "text" }),
        "CheckoutMethod" => json!({ "kind": "shallow", "depth": 7 }),
        "Step" => with("step", "run", json_of::<RunStep>()),
        _ => return None,
    })
}

/// Says what a visitor waits for.
fn expected(visitor: &dyn Expected) -> String {
    visitor.to_string()
}

#[derive(Clone, Copy)]
struct Invent;

macro_rules! numbers {
    ($($method:ident => $visit:ident($value:expr)),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit($value)
        }
    )*};
}

impl<'de> Deserializer<'de> for Invent {
    type Error = Error;

    numbers! {
        deserialize_bool => visit_bool(true),
        deserialize_i8 => visit_i8(7), deserialize_i16 => visit_i16(7), deserialize_i32 => visit_i32(7),
        deserialize_i64 => visit_i64(7), deserialize_u8 => visit_u8(7), deserialize_u16 => visit_u16(7),
        deserialize_u32 => visit_u32(7), deserialize_u64 => visit_u64(7), deserialize_f32 => visit_f32(1.5),
        deserialize_f64 => visit_f64(1.5), deserialize_char => visit_char('c'),
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let wanted = expected(&visitor);
        if let Some(name) = wanted.strip_prefix("internally tagged enum ") {
            let value =
                tagged(name).ok_or_else(|| Error::custom(format!("no variant of {name} is known")))?;
            return value.deserialize_any(visitor).map_err(Error::custom);
        }
        if wanted == "any valid JSON value" {
            return json!({ "key": "value" }).deserialize_any(visitor).map_err(Error::custom);
        }
        // An untagged enum: a text is the plainest of the forms that it may have.
        visitor.visit_str("text")
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let wanted = expected(&visitor);
        let text = match wanted.to_lowercase() {
            wanted if wanted.contains("uuid") => ID,
            wanted if wanted.contains("rfc 3339") || wanted.contains("date") => TIME,
            _ => "text",
        };
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(&[7])
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(&[7])
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        Visitor::visit_seq(visitor, Elements(1))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        Visitor::visit_seq(visitor, Elements(length))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        Visitor::visit_seq(visitor, Elements(length))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { names: &["key"], typed_keys: true })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { names, typed_keys: false })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(Variant(variants[0]))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("text")
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

struct Elements(usize);

impl<'de> SeqAccess<'de> for Elements {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.0 == 0 {
            return Ok(None);
        }
        self.0 -= 1;
        seed.deserialize(Invent).map(Some)
    }
}

/// Every field once; of a map one entry, whose key is invented too.
struct Fields {
    names: &'static [&'static str],
    typed_keys: bool,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, rest)) = self.names.split_first() else { return Ok(None) };
        self.names = rest;
        if self.typed_keys {
            return seed.deserialize(Invent).map(Some);
        }
        let name: serde::de::value::StrDeserializer<'_, Error> = (*name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Invent)
    }
}

struct Variant(&'static str);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: serde::de::value::StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Invent)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        Invent.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        Invent.deserialize_struct("", names, visitor)
    }
}

#[test]
fn what_is_invented_shows_every_field() {
    #[derive(Deserialize, serde::Serialize)]
    struct Outer {
        id: ids::JobId,
        at: ids::Timestamp,
        maybe: Option<Vec<(String, u32)>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hidden: Option<bool>,
    }
    let expected = json!({ "id": ID, "at": TIME, "maybe": [["text", 7]], "hidden": true });
    assert_eq!(json_of::<Outer>(), expected);
}
