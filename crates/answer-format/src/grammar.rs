//! Which grammar are answers held to that must call a tool?
//!
//! A [`Shape`] says how a format writes calls; rules in the notation of Lark are made of it and of
//! the tools. Names in them stand for what a tokenizer and a schema compiler must know: `marker_0`
//! for a marker, `schema_0` for JSON of a schema, `until` for a text and the first marker behind
//! it, `free` for a text without that marker.

use serde_json::Value;

use crate::{CallFormat, Tool, ToolChoice};

/// Rules, and what their names stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallGrammar {
    pub rules: String,
    pub markers: Vec<String>,
    pub schemas: Vec<String>,
}

impl CallGrammar {
    /// The same, or JSON of a schema instead of calls.
    #[must_use]
    pub fn or_answer(mut self, schema: &str) -> Self {
        let answer = self.schemas.len();
        self.schemas.push(schema.to_owned());
        let rules = self.rules.replacen("start:", "calls:", 1);
        self.rules = format!("start: calls | schema_{answer}\n{rules}");
        self
    }
}

/// How a format writes one or more calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) before: &'static [Term],
    pub(crate) call: &'static [Term],
    /// `None`: an answer has one call.
    pub(crate) between: Option<&'static [Term]>,
    pub(crate) after: &'static [Term],
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Term {
    Text(&'static str),
    /// May be a token of its own.
    Marker(&'static str),
    Name,
    /// One JSON object.
    Json,
    /// Each argument for itself.
    Each(Argument),
    /// Thoughts in GPT-OSS's way, or none.
    Analysis,
}

/// What stands around an argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument {
    pub(crate) before_key: &'static str,
    pub(crate) before_value: &'static str,
    pub(crate) after_value: &'static str,
    /// Between two arguments.
    pub(crate) between: &'static str,
    /// Whether texts stand without quotes.
    pub(crate) has_bare_texts: bool,
}

/// Calls in one answer: models without judgement would go on for ever.
const CALLS_MAX: usize = 16;

impl CallFormat {
    /// What an answer is held to that must call; `is_parallel`: more than once, if it likes.
    pub fn call_grammar(
        self,
        tools: &[Tool],
        choice: &ToolChoice,
        is_parallel: bool,
    ) -> CallGrammar {
        let shape = self.shape();
        let mut writer = Writer::default();
        let offered = tools.iter().filter(|tool| match choice {
            ToolChoice::Named(name) => tool.name == *name,
            ToolChoice::Auto | ToolChoice::Required => true,
        });
        let calls: Vec<String> = offered.map(|tool| writer.terms(shape.call, Some(tool))).collect();
        let (before, after) = (writer.terms(shape.before, None), writer.terms(shape.after, None));
        let more = match shape.between.filter(|_| is_parallel) {
            Some(between) => {
                let between = writer.terms(between, None);
                format!(" ({between} call){{0,{}}}", CALLS_MAX - 1)
            }
            None => String::new(),
        };
        writer.rules.insert(0, format!("start: {before} call{more} {after}"));
        writer.finish(&calls)
    }

    /// What an answer is held to that may call, or say what it likes; `None`: nothing marks where
    /// a call of this format begins.
    pub fn lazy_call_grammar(self, tools: &[Tool], is_parallel: bool) -> Option<CallGrammar> {
        let shape = self.shape();
        // The first marker is what free text ends in.
        let mut writer = Writer::default();
        let (before, call) = match (shape.before, shape.call) {
            ([Term::Marker(first), before @ ..], call) => {
                writer.marker(first);
                (before, call)
            }
            ([], [Term::Marker(first), call @ ..]) => {
                writer.marker(first);
                (&[][..], call)
            }
            _ => return None,
        };
        let calls: Vec<String> = tools.iter().map(|tool| writer.terms(call, Some(tool))).collect();
        let (before, after) = (writer.terms(before, None), writer.terms(shape.after, None));
        let times = if is_parallel { CALLS_MAX } else { 1 };
        let start = format!("start: (until {before} call {after}){{0,{times}}} free");
        writer.rules.insert(0, start);
        Some(writer.finish(&calls))
    }
}

#[derive(Default)]
struct Writer {
    rules: Vec<String>,
    markers: Vec<String>,
    schemas: Vec<String>,
}

impl Writer {
    fn finish(mut self, calls: &[String]) -> CallGrammar {
        self.rules.push(format!("call: {}", calls.join(" | ")));
        let Self { rules, markers, schemas } = self;
        CallGrammar { rules: rules.join("\n"), markers, schemas }
    }

    fn terms(&mut self, terms: &[Term], tool: Option<&Tool>) -> String {
        let written: Vec<String> = terms.iter().map(|term| self.term(*term, tool)).collect();
        written.join(" ")
    }

    fn term(&mut self, term: Term, tool: Option<&Tool>) -> String {
        match (term, tool) {
            (Term::Text(text), _) => literal(text),
            (Term::Marker(text), _) => self.marker(text),
            (Term::Name, Some(tool)) => literal(&tool.name),
            (Term::Json, Some(tool)) => self.schema(&tool.parameters),
            (Term::Each(argument), Some(tool)) => self.each(argument, tool),
            (Term::Analysis, _) => {
                let terms = [
                    Term::Marker("<|channel|>"),
                    Term::Text("analysis"),
                    Term::Marker("<|message|>"),
                ];
                let end =
                    [Term::Marker("<|end|>"), Term::Marker("<|start|>"), Term::Text("assistant")];
                let (begin, end) = (self.terms(&terms, None), self.terms(&end, None));
                format!("({begin} /(?s:.*)/ {end})?")
            }
            (Term::Name | Term::Json | Term::Each(_), None) => String::new(),
        }
    }

    fn marker(&mut self, text: &str) -> String {
        let known = self.markers.iter().position(|marker| marker == text);
        let index = known.unwrap_or_else(|| {
            self.markers.push(text.to_owned());
            self.markers.len() - 1
        });
        format!("marker_{index}")
    }

    fn schema(&mut self, schema: &Value) -> String {
        self.schemas.push(schema.to_string());
        format!("schema_{}", self.schemas.len() - 1)
    }

    /// The arguments in the order of the schema; those that are not required may be left out.
    fn each(&mut self, around: Argument, tool: &Tool) -> String {
        let Some(Value::Object(properties)) = tool.parameters.get("properties") else {
            return String::new();
        };
        let required = tool.parameters.get("required").and_then(Value::as_array);
        let is_required = |key: &str| required.is_some_and(|list| list.iter().any(|r| r == key));
        // Required ones first: what separates arguments is then known to have something before it.
        let (first, then): (Vec<_>, Vec<_>) =
            properties.iter().partition(|(key, _)| is_required(key));
        let mut rule = String::new();
        let mut open = 0;
        for (index, (key, schema)) in first.iter().chain(&then).enumerate() {
            let between = if index == 0 { "" } else { around.between };
            let begin =
                literal(&format!("{between}{}{key}{}", around.before_key, around.before_value));
            let value = self.value(around, schema, &tool.parameters);
            if index < first.len() {
                rule.push_str(&format!(" {begin} {value}"));
            } else if index == 0 && !around.between.is_empty() {
                rule.push_str(&format!(" ({begin} {value}"));
                open += 1;
            } else {
                rule.push_str(&format!(" ({begin} {value})?"));
            }
        }
        rule + &")?".repeat(open)
    }

    fn value(&mut self, around: Argument, schema: &Value, root: &Value) -> String {
        if around.has_bare_texts && schema.get("type").is_some_and(|kind| kind == "string") {
            if let Some(Value::Array(values)) = schema.get("enum") {
                let one = |value: &Value| value.as_str().map(literal);
                let all: Vec<String> = values.iter().filter_map(one).collect();
                return format!("({}) {}", all.join(" | "), literal(around.after_value));
            }
            let name = format!("bare_{}", self.rules.len());
            let suffix = literal(around.after_value);
            self.rules.push(format!("{name}[suffix={suffix}]: /(?s:.*)/"));
            return name;
        }
        let mut schema = if schema.is_object() { schema.clone() } else { Value::from(()) };
        for key in ["$defs", "definitions"] {
            if let (Some(shared), Some(object)) = (root.get(key), schema.as_object_mut()) {
                object.insert(key.to_owned(), shared.clone());
            }
        }
        let value = self.schema(&schema);
        if around.after_value.is_empty() {
            return value;
        }
        format!("{value} {}", literal(around.after_value))
    }
}

/// A text in quotes, as Lark and JSON both write it.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn tools() -> Vec<Tool> {
        let parameters = json!({"type": "object", "required": ["city"], "properties": {
            "days": {"type": "integer"}, "city": {"type": "string"}}});
        ["weather", "stop"]
            .map(|name| Tool { name: name.to_owned(), parameters: parameters.clone() })
            .to_vec()
    }

    #[test]
    fn rules_name_what_they_do_not_spell() {
        let choice = ToolChoice::Named("stop".to_owned());
        let grammar = CallFormat::Hermes.call_grammar(&tools(), &choice, false);
        assert_eq!(grammar.markers, ["<tool_call>", "</tool_call>"]);
        assert_eq!(grammar.schemas.len(), 1);
        let expected = "start:  call \ncall: marker_0 \"\\n{\\\"name\\\": \\\"\" \"stop\" \
                        \"\\\", \\\"arguments\\\": \" schema_0 \"}\\n\" marker_1";
        assert_eq!(grammar.rules, expected);
        let many = CallFormat::Hermes.call_grammar(&tools(), &ToolChoice::Required, true);
        assert!(many.rules.starts_with("start:  call (\"\\n\" call){0,15} \n"), "{}", many.rules);
        assert_eq!(many.schemas.len(), 2);
    }

    #[test]
    fn required_arguments_come_first() {
        let grammar = CallFormat::QwenXml.call_grammar(&tools()[..1], &ToolChoice::Required, false);
        let rules = &grammar.rules;
        assert!(rules.find("=city>").unwrap() < rules.find("(\"<parameter=days>").unwrap());
        assert!(rules.contains("bare_0[suffix=\"\\n</parameter>\\n\"]"), "{rules}");
    }

    #[test]
    fn free_text_needs_a_marker() {
        assert_eq!(CallFormat::Llama.lazy_call_grammar(&tools(), true), None);
        let grammar = CallFormat::Phi.lazy_call_grammar(&tools(), false).unwrap();
        assert!(grammar.rules.starts_with("start: (until \"[\" call \"]\" marker_1){0,1} free"));
    }
}
