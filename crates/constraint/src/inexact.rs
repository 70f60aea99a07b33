//! What of a schema would be followed only nearly? It is refused, for an answer that breaks its
//! schema is worse than none.
//!
//! The library computes bounds of numbers as `f64`, lets a bare whole number through where it is
//! an exclusive bound, and counts two members of one name as two.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords with a schema, a list of schemas, or an object of them.
const ONE: &[&str] = &[
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
const LISTS: &[&str] = &["allOf", "anyOf", "items", "oneOf", "prefixItems"];
const NAMED: &[&str] =
    &["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];
/// Those that say more of the same value.
const SAME_VALUE: &[&str] = &["allOf", "anyOf", "oneOf"];
/// From here on an `f64` leaves out whole numbers.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// # Errors
/// Which keyword cannot be followed exactly, and what to write instead.
pub(crate) fn check(root: &Value) -> Result<(), String> {
    for schema in reachable(root, root, true) {
        for name in ["const", "enum"] {
            schema.get(name).map_or(Ok(()), check_literals)?;
        }
        check_bounds(schema)?;
        check_count(schema)?;
        check_exclusive(root, schema)?;
    }
    Ok(())
}

/// The schemas within this one and behind its references; `is_all`: of other values, too.
fn reachable<'a>(root: &'a Value, from: &'a Value, is_all: bool) -> Vec<&'a Map<String, Value>> {
    let (mut found, mut named) = (Vec::new(), BTreeSet::new());
    let mut waiting = vec![from];
    while let Some(schema) = waiting.pop() {
        let Some(schema) = schema.as_object() else { continue };
        found.push(schema);
        if let Some(target) = schema.get("$ref").and_then(Value::as_str)
            && named.insert(target)
        {
            // Others are the library's to resolve, or refuse.
            waiting.extend(target.strip_prefix('#').and_then(|place| root.pointer(place)));
        }
        let lists = if is_all { LISTS } else { SAME_VALUE };
        let list = |name: &&str| schema.get(*name).and_then(Value::as_array);
        waiting.extend(lists.iter().filter_map(list).flatten());
        if is_all {
            waiting.extend(ONE.iter().filter_map(|name| schema.get(*name)));
            let members = |name: &&str| schema.get(*name).and_then(Value::as_object);
            waiting.extend(NAMED.iter().filter_map(members).flat_map(Map::values));
        }
    }
    found
}

/// Numbers within a value that must be written as it stands.
fn check_literals(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(_) if !is_exact(value) => Err(format!(
            "the number {value} has more digits than can be held exactly: write it as a string"
        )),
        Value::Array(values) => values.iter().try_for_each(check_literals),
        Value::Object(members) => members.values().try_for_each(check_literals),
        _ => Ok(()),
    }
}

/// Whether an `f64` holds it. What was no 64-bit integer has been rounded before.
fn is_exact(number: &Value) -> bool {
    match whole(number) {
        Some(whole) => whole as f64 as i128 == whole,
        None => number.as_f64().is_some_and(|float| float.abs() < u64::MAX as f64),
    }
}

fn whole(number: &Value) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

/// What the library makes of a bound must allow nothing that the bound does not.
fn check_bounds(schema: &Map<String, Value>) -> Result<(), String> {
    let is_integer = schema.get("type").is_some_and(|kind| kind == "integer");
    for name in ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"] {
        let Some(bound) = schema.get(name) else { continue };
        let Some(float) = bound.as_f64().filter(|float| float.abs() >= EXACT_MAX) else { continue };
        let is_lower = name.ends_with("inimum");
        let is_exclusive = name.starts_with("exclusive")
            || schema.get(&exclusive(name)) == Some(&Value::Bool(true));
        let step = match (is_exclusive, is_lower) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => -1,
        };
        // Saturating: no float is compared that an integer cannot be.
        let asked = whole(bound).unwrap_or(float as i128).saturating_add(step);
        let as_integer = i128::from((float + step as f64) as i64);
        let as_number = (float as i128).saturating_add(step);
        let fits = |made: i128| if is_lower { made >= asked } else { made <= asked };
        if !fits(as_integer) || (!is_integer && !fits(as_number)) {
            return Err(format!(
                "{name} is {bound}, more than can be held exactly: take one within 2^53"
            ));
        }
    }
    Ok(())
}

/// Draft 4's keyword beside `minimum` or `maximum`.
fn exclusive(name: &str) -> String {
    if name == "minimum" { "exclusiveMinimum".to_owned() } else { "exclusiveMaximum".to_owned() }
}

/// Members beyond those that are required by name may have one name twice.
fn check_count(schema: &Map<String, Value>) -> Result<(), String> {
    let Some(least) = schema.get("minProperties").and_then(Value::as_f64) else { return Ok(()) };
    let required = schema.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    if least <= required as f64 + 1.0 {
        return Ok(());
    }
    Err(format!(
        "minProperties is {least}, and that names differ can be held only of those in required, \
         and of one more: list them there"
    ))
}

/// An exclusive bound that is a whole number, and another within the same whole number.
fn check_exclusive(root: &Value, schema: &Map<String, Value>) -> Result<(), String> {
    if schema.get("type").is_some_and(|kind| kind == "integer") {
        return Ok(());
    }
    let own = Value::Object(schema.clone());
    let around = reachable(root, &own, false);
    // Upside down, an exclusive maximum is an exclusive minimum.
    for (sign, word, opposite) in [(1.0, "inimum", "aximum"), (-1.0, "aximum", "inimum")] {
        let edges = around.iter().filter_map(|part| exclusive_bound(part, word));
        let others = |part: &&Map<String, Value>| {
            let names = [format!("m{opposite}"), format!("exclusiveM{opposite}")];
            names.map(|name| part.get(&name).and_then(Value::as_f64))
        };
        let others: Vec<f64> = around.iter().flat_map(others).flatten().collect();
        for edge in edges.map(|edge| edge * sign).filter(|edge| *edge >= 0.0) {
            let is_near = |other: &f64| other * sign > edge && (other * sign).trunc() == edge;
            if edge.fract() == 0.0 && others.iter().any(is_near) {
                return Err(format!(
                    "the exclusive bound {} beside one less than 1 away cannot be held exactly: \
                     give one that is no whole number",
                    edge * sign
                ));
            }
        }
    }
    Ok(())
}

/// In the newest form, or in draft 4's: `minimum` with `exclusiveMinimum: true`.
fn exclusive_bound(schema: &Map<String, Value>, word: &str) -> Option<f64> {
    let exclusive = schema.get(&format!("exclusiveM{word}"))?;
    let is_older = *exclusive == Value::Bool(true);
    let older = || schema.get(&format!("m{word}")).filter(|_| is_older);
    exclusive.as_f64().or_else(|| older()?.as_f64())
}
