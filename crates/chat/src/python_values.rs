//! Values that Python has and the template engine has not: a None that nobody may loop over, and
//! generators, which are true, have no length, and are empty when they are read again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Value};
use minijinja::{Environment, Error, State, filters};

/// What templates are given for tools that a request has not.
#[derive(Debug)]
struct Nothing;

impl Object for Nothing {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        false
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("None")
    }
}

/// What filters give that Python works out as somebody asks.
#[derive(Debug)]
struct Generator(Mutex<Vec<Value>>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Enumerator::Values(std::mem::take(&mut *items))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("<generator object>")
    }
}

pub(crate) fn nothing() -> Value {
    Value::from_object(Nothing)
}

/// Python's None, whoever made it.
pub(crate) fn is_none(value: &Value) -> bool {
    value.is_none() || value.downcast_object_ref::<Nothing>().is_some()
}

pub(crate) fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// Makes filters give generators that do in Python.
pub(crate) fn add_generators(environment: &mut Environment<'static>) {
    environment.add_filter("_map", filters::map);
    environment.add_filter("_select", filters::select);
    environment.add_filter("_selectattr", filters::selectattr);
    environment.add_filter("_reject", filters::reject);
    environment.add_filter("_rejectattr", filters::rejectattr);
    environment.add_filter("_unique", filters::unique);
    for (name, own) in [
        ("map", "_map"),
        ("select", "_select"),
        ("selectattr", "_selectattr"),
        ("reject", "_reject"),
        ("rejectattr", "_rejectattr"),
        ("unique", "_unique"),
    ] {
        let generate = move |state: &mut State, value: Value, rest: Rest<Value>, named: Kwargs| {
            // Python asks whether there is anything before it loops.
            let value = if value.is_true() { value } else { Value::from_iter([(); 0]) };
            let mut arguments = vec![value];
            arguments.extend(rest.0);
            if named.args().next().is_some() {
                arguments.push(named.into());
            }
            let items: Vec<Value> = state.apply_filter(own, &arguments)?.try_iter()?.collect();
            Ok::<Value, Error>(Value::from_object(Generator(Mutex::new(items))))
        };
        environment.add_filter(name, generate);
    }
}
