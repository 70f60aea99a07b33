//! Which field did an endpoint look for, and what may it be? As JSON Schema, for the description of
//! the server.

use std::ops::RangeInclusive;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

/// A field that was asked for while a body was read.
pub(crate) struct KnownField {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// What a field may be; `null` is always as good as its absence.
pub(crate) enum Kind {
    Boolean,
    Text,
    Number(RangeInclusive<f64>),
    Whole(RangeInclusive<i64>),
    /// One of these, in JSON.
    Only(&'static [&'static str]),
    /// Of the type that reads it.
    Shape(fn(&mut SchemaGenerator) -> Schema),
    /// An object that is read by itself.
    Object,
    Anything,
}

impl Kind {
    pub(crate) fn of<T: JsonSchema>() -> Self {
        Self::Shape(SchemaGenerator::subschema_for::<T>)
    }

    pub(crate) fn schema(&self, shapes: &mut SchemaGenerator) -> Value {
        match self {
            Self::Boolean => json!({"type": ["boolean", "null"]}),
            Self::Text => json!({"type": ["string", "null"]}),
            Self::Number(range) => {
                json!({"type": ["number", "null"], "minimum": range.start(),
                    "maximum": range.end()})
            }
            Self::Whole(range) => {
                json!({"type": ["integer", "null"], "minimum": range.start(),
                    "maximum": range.end()})
            }
            Self::Only(values) => {
                let value = |text: &&str| serde_json::from_str(text).unwrap_or(Value::Null);
                let values = values.iter().map(value).chain([Value::Null]);
                json!({"enum": values.collect::<Vec<_>>()})
            }
            Self::Shape(make) => json!({"anyOf": [make(shapes), {"type": "null"}]}),
            Self::Object => json!({"type": ["object", "null"]}),
            Self::Anything => json!({}),
        }
    }
}
