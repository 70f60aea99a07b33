//! Where in the file does each key stand?

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// The value of every key that the file has, sections and items of lists among them.
#[derive(Debug, Default)]
pub(crate) struct Places(BTreeMap<String, Location>);

impl Places {
    pub(crate) fn read(text: &str) -> Result<Self, serde_saphyr::Error> {
        let root: Node = serde_saphyr::from_str(text)?;
        let mut places = BTreeMap::new();
        root.note("", &mut places);
        Ok(Self(places))
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub(crate) fn line(&self, path: &str) -> Option<u64> {
        self.0.get(path).map(Location::line)
    }

    /// The innermost key whose value begins there.
    pub(crate) fn at(&self, location: &Location) -> Option<&str> {
        let is_there = |place: &Location| {
            (place.line(), place.column()) == (location.line(), location.column())
        };
        let found = self.0.iter().filter(|(_, place)| is_there(place)).map(|(path, _)| path);
        found.max_by_key(|path| path.len()).map(String::as_str)
    }
}

/// A file's shape without its values.
struct Node(Spanned<Shape>);

enum Shape {
    Value,
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn note(&self, path: &str, places: &mut BTreeMap<String, Location>) {
        if !path.is_empty() {
            places.insert(path.to_owned(), self.0.referenced);
        }
        match &self.0.value {
            Shape::Value => {}
            Shape::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.note(&format!("{path}[{index}]"), places);
                }
            }
            Shape::Map(entries) => {
                for (name, below) in entries {
                    let dot = if path.is_empty() { "" } else { "." };
                    below.note(&format!("{path}{dot}{name}"), places);
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key()? {
            entries.push((name, map.next_value()?));
        }
        Ok(Shape::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Shape::List(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Value)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Shape::Value)
    }
}
