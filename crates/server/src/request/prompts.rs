//! Which prompts does a completion request hold? A text, texts, ids, or lists of ids.

use std::borrow::Cow;
use std::fmt;

use engine::{Prompt, VectorInput};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::Fields;
use crate::reply::ApiError;

pub(crate) fn read_prompts(
    fields: &mut Fields<'_>,
    prompts_max: u32,
) -> Result<Vec<Prompt>, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("prompt"), text));
    let Some(given) = fields.typed::<Given>("prompt")? else {
        return refuse("prompt is missing: send a text".to_owned());
    };
    let prompts = match given {
        Given::Text(text) => vec![Prompt::Text(text)],
        Given::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Given::Ids(ids) => vec![Prompt::Tokens(ids)],
        Given::IdLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    if prompts.is_empty() || prompts.len() > prompts_max as usize {
        let count = prompts.len();
        return refuse(format!("there are {count} prompts, there must be 1 to {prompts_max}"));
    }
    if prompts.iter().any(|prompt| matches!(prompt, Prompt::Tokens(ids) if ids.is_empty())) {
        return refuse("a prompt of ids has none".to_owned());
    }
    Ok(prompts)
}

/// The texts of an embeddings request, in the same shapes.
pub(crate) fn read_inputs(
    fields: &mut Fields<'_>,
    inputs_max: usize,
    cuts: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("input"), text));
    let Some(given) = fields.typed::<Given>("input")? else {
        return refuse("input is missing: send a text or a list of texts".to_owned());
    };
    let text = |text| VectorInput::Text { text, cuts };
    let inputs: Vec<VectorInput> = match given {
        Given::Text(one) => vec![text(one)],
        Given::Texts(texts) => texts.into_iter().map(text).collect(),
        Given::Ids(ids) => vec![VectorInput::Tokens(ids)],
        Given::IdLists(lists) => lists.into_iter().map(VectorInput::Tokens).collect(),
    };
    if inputs.is_empty() || inputs.len() > inputs_max {
        let count = inputs.len();
        return refuse(format!("there are {count} inputs, there must be 1 to {inputs_max}"));
    }
    let is_empty = |input: &VectorInput| match input {
        VectorInput::Text { text, .. } => text.is_empty(),
        VectorInput::Tokens(ids) => ids.is_empty(),
        VectorInput::Pair(_) => false,
    };
    if let Some(index) = inputs.iter().position(is_empty) {
        return refuse(format!("input {index} is empty: send a text"));
    }
    Ok(inputs.into_iter().map(Prompt::Vector).collect())
}

enum Given {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

/// An element of the outer list; the first decides what the others must be.
enum Item {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl JsonSchema for Given {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Texts".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let text = json!({"type": "string"});
        let ids = json!({"type": "array", "items": {"type": "integer", "minimum": 0}});
        let texts = json!({"type": "array", "items": text});
        let id_lists = json!({"type": "array", "items": ids});
        json_schema!({"anyOf": [text, texts, ids, id_lists]})
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GivenVisitor)
    }
}

struct GivenVisitor;

impl<'de> Visitor<'de> for GivenVisitor {
    type Value = Given;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, an array of strings, of token ids, or of arrays of them")
    }

    fn visit_str<E>(self, text: &str) -> Result<Given, E> {
        Ok(Given::Text(text.to_owned()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Given, S::Error> {
        Ok(match items.next_element()? {
            None => Given::Texts(Vec::new()),
            Some(Item::Text(text)) => Given::Texts(the_rest(text, items)?),
            Some(Item::Id(id)) => Given::Ids(the_rest(id, items)?),
            Some(Item::Ids(ids)) => Given::IdLists(the_rest(ids, items)?),
        })
    }
}

fn the_rest<'de, T: Deserialize<'de>, S: SeqAccess<'de>>(
    first: T,
    mut items: S,
) -> Result<Vec<T>, S::Error> {
    let mut all = vec![first];
    while let Some(item) = items.next_element()? {
        all.push(item);
    }
    Ok(all)
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, a token id or an array of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
        u32::try_from(id).map(Item::Id).map_err(|_| E::custom("a token id must be below 2^32"))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Item, S::Error> {
        let mut ids = Vec::new();
        while let Some(id) = items.next_element()? {
            ids.push(id);
        }
        Ok(Item::Ids(ids))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(prompt: &str) -> Result<Vec<Prompt>, ApiError> {
        let body = format!("{{\"prompt\": {prompt}}}");
        read_prompts(&mut Fields::parse(body.as_bytes()).unwrap(), 4)
    }

    #[test]
    fn the_four_shapes_are_read() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(read("\"a\"").unwrap(), [text("a")]);
        assert_eq!(read("[\"a\", \"b\"]").unwrap(), [text("a"), text("b")]);
        assert_eq!(read("[1, 2]").unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(
            read("[[1], [2, 3]]").unwrap(),
            [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]
        );
    }

    #[test]
    fn other_shapes_are_refused_by_name() {
        for prompt in [
            "null",
            "[]",
            "{}",
            "5",
            "true",
            "[1, \"a\"]",
            "[\"a\", 1]",
            "[[1], 2]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[[]]",
            "[[[1]]]",
            "[\"1\",\"2\",\"3\",\"4\",\"5\"]",
        ] {
            let error = read(prompt).unwrap_err();
            let param = error.body.param.unwrap();
            assert!(param.starts_with("prompt"), "{prompt}: {param}");
        }
    }
}
