//! Which markup does a model use? Told by its chat template, which prints earlier calls in it.

/// How a family writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallFormat {
    /// V3.1 and later.
    DeepSeek,
    /// V3 and R1: arguments in a fence.
    DeepSeekFenced,
    /// Version 4.
    Gemma,
    /// 4.5 and later.
    Glm,
    /// 4 and 0414: a line of its own for the name.
    GlmLines,
    Harmony,
    Hermes,
    Llama,
    /// Up to Nemo: a JSON list.
    Mistral,
    /// A name and its arguments.
    MistralNamed,
    Olmo,
    Phi,
    Pythonic,
    QwenXml,
    Seed,
}

/// Around what the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThoughtMarkers {
    pub begin: &'static str,
    /// A word behind it that is no thought.
    pub title: &'static str,
    pub end: &'static str,
}

/// How a model writes its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AnswerFormat {
    pub calls: CallFormat,
    /// `None`: the model is not known to think aloud.
    pub thoughts: Option<ThoughtMarkers>,
    /// Whether the template tells the model of tools. Where it does not, the request must.
    pub template_knows_tools: bool,
}

const THINK: ThoughtMarkers = ThoughtMarkers { begin: "<think>", title: "", end: "</think>" };
const MISTRAL_THINK: ThoughtMarkers =
    ThoughtMarkers { begin: "[THINK]", title: "", end: "[/THINK]" };
const SEED_THINK: ThoughtMarkers =
    ThoughtMarkers { begin: "<seed:think>", title: "", end: "</seed:think>" };
const GEMMA_THINK: ThoughtMarkers =
    ThoughtMarkers { begin: "<|channel>", title: "thought", end: "<channel|>" };
/// Thoughts are a channel of their own, and end where the answer's begins.
const HARMONY_THINK: ThoughtMarkers = ThoughtMarkers {
    begin: "<|channel|>analysis<|message|>",
    title: "",
    end: "<|channel|>final<|message|>",
};

/// Names for the setting, each with its format.
const NAMES: &[(&str, CallFormat)] = &[
    ("deepseek", CallFormat::DeepSeek),
    ("deepseek-fenced", CallFormat::DeepSeekFenced),
    ("gemma", CallFormat::Gemma),
    ("glm", CallFormat::Glm),
    ("glm-lines", CallFormat::GlmLines),
    ("harmony", CallFormat::Harmony),
    ("hermes", CallFormat::Hermes),
    ("llama", CallFormat::Llama),
    ("mistral", CallFormat::Mistral),
    ("mistral-named", CallFormat::MistralNamed),
    ("olmo", CallFormat::Olmo),
    ("phi", CallFormat::Phi),
    ("pythonic", CallFormat::Pythonic),
    ("qwen-xml", CallFormat::QwenXml),
    ("seed", CallFormat::Seed),
];

/// What only one family's templates say; the first that is found decides.
const SIGNS: &[(&str, CallFormat)] = &[
    ("<|channel|>", CallFormat::Harmony),
    ("<｜tool▁calls▁begin｜>", CallFormat::DeepSeek),
    ("[ARGS]", CallFormat::MistralNamed),
    ("[TOOL_CALLS]", CallFormat::Mistral),
    ("<|tool_call>", CallFormat::Gemma),
    ("<arg_key>", CallFormat::Glm),
    ("<seed:tool_call>", CallFormat::Seed),
    ("<parameter=", CallFormat::QwenXml),
    ("<|tool_call|>", CallFormat::Phi),
    ("<|tool|>", CallFormat::Phi),
    ("functools[", CallFormat::Phi),
    // SmolLM3's and Qwen's say `<tool_call>`, and may speak of pythonic tools, too.
    ("<tool_call>", CallFormat::Hermes),
    ("<|python_tag|>", CallFormat::Llama),
    ("Environment: ipython", CallFormat::Llama),
    ("<function_calls>", CallFormat::Olmo),
    ("tool_code", CallFormat::Pythonic),
    ("<|python_start|>", CallFormat::Pythonic),
    // Of all generations of GLM, and of some that learned from it: after the others.
    ("<|observation|>", CallFormat::GlmLines),
];

impl CallFormat {
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, format)| format)
    }

    /// Every name, in order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|&(name, _)| name)
    }

    pub fn name(self) -> &'static str {
        NAMES.iter().find(|&&(_, format)| format == self).map_or("hermes", |&(name, _)| name)
    }
}

impl AnswerFormat {
    /// What a template says; models without one complete texts only, in Hermes' format if at all.
    pub fn of_template(template: Option<&str>) -> Self {
        let template = template.unwrap_or_default();
        let sign = SIGNS.iter().find(|(sign, _)| template.contains(sign));
        let calls = match sign.map(|&(_, format)| format) {
            Some(CallFormat::DeepSeek) if template.contains("```json") => {
                CallFormat::DeepSeekFenced
            }
            found => found.unwrap_or(CallFormat::Hermes),
        };
        let thoughts = if calls == CallFormat::Harmony {
            Some(HARMONY_THINK)
        } else if template.contains("[THINK]") {
            Some(MISTRAL_THINK)
        } else if template.contains(GEMMA_THINK.end) {
            Some(GEMMA_THINK)
        } else if template.contains(SEED_THINK.end) {
            Some(SEED_THINK)
        } else {
            template.contains("</think>").then_some(THINK)
        };
        Self { calls, thoughts, template_knows_tools: names_tools(template) }
    }

    /// The same with another format of calls, where an operator knows better.
    #[must_use]
    pub fn with_calls(self, calls: CallFormat) -> Self {
        let thoughts = match (calls, self.thoughts) {
            (CallFormat::Harmony, _) => Some(HARMONY_THINK),
            (_, Some(HARMONY_THINK)) => None,
            (_, thoughts) => thoughts,
        };
        Self { calls, thoughts, ..self }
    }

    /// Control tokens that a reader must see: they are left out of answers otherwise.
    pub fn control_texts(self) -> Vec<&'static str> {
        let mut texts = self.calls.control_texts().to_vec();
        if let Some(ThoughtMarkers { begin, end, .. }) = self.thoughts
            && self.calls != CallFormat::Harmony
        {
            texts.extend([begin, end]);
        }
        texts
    }
}

impl Default for AnswerFormat {
    fn default() -> Self {
        Self::of_template(None)
    }
}

/// Whether a template uses the variable `tools`.
fn names_tools(template: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = template.as_bytes();
    template.match_indices("tools").any(|(at, word)| {
        let before = at.checked_sub(1).map(|before| bytes[before]);
        let after = bytes.get(at + word.len()).copied();
        let is_alone = !before.is_some_and(|byte| is_word(byte) || byte == b'.')
            && !after.is_some_and(is_word);
        is_alone && is_inside_tag(&template[..at])
    })
}

/// Whether a text ends within `{% %}` or `{{ }}`, outside quotes.
fn is_inside_tag(before: &str) -> bool {
    let opened = before.rfind("{%").max(before.rfind("{{"));
    let Some(opened) = opened else { return false };
    let inside = &before[opened..];
    let is_open = !inside.contains("%}") && !inside.contains("}}");
    is_open
        && inside.matches('\'').count().is_multiple_of(2)
        && inside.matches('"').count().is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_say_which_format() {
        for (template, calls, thoughts, knows_tools) in [
            ("", CallFormat::Hermes, None, false),
            ("{{ messages }} tools", CallFormat::Hermes, None, false),
            ("{% if tools %}<tool_call>{% endif %}</think>", CallFormat::Hermes, Some(THINK), true),
            ("{%- for tool in tools %}[TOOL_CALLS]", CallFormat::Mistral, None, true),
            ("{{ message.tools }}<|tool|>", CallFormat::Phi, None, false),
            ("{{ 'tools' }}<parameter=", CallFormat::QwenXml, None, false),
            ("{{ tools|tojson }}<|channel|>", CallFormat::Harmony, Some(HARMONY_THINK), true),
            ("{% if tools %}<|tool_call><channel|>", CallFormat::Gemma, Some(GEMMA_THINK), true),
            ("{% if tools %}<seed:tool_call><parameter=", CallFormat::Seed, None, true),
            ("</seed:think>", CallFormat::Hermes, Some(SEED_THINK), false),
            ("{{ tools }}<function_calls>", CallFormat::Olmo, None, true),
            ("{% if tools %}<|observation|>", CallFormat::GlmLines, None, true),
            ("{% if tools %}<|observation|><arg_key>", CallFormat::Glm, None, true),
        ] {
            let format = AnswerFormat::of_template(Some(template));
            let expected = AnswerFormat { calls, thoughts, template_knows_tools: knows_tools };
            assert_eq!(format, expected, "{template}");
        }
    }

    #[test]
    fn names_and_formats_are_pairs() {
        for name in CallFormat::names() {
            assert_eq!(CallFormat::named(name).map(CallFormat::name), Some(name));
        }
        let harmony = AnswerFormat::of_template(None).with_calls(CallFormat::Harmony);
        assert_eq!(harmony.thoughts, Some(HARMONY_THINK));
        assert_eq!(harmony.with_calls(CallFormat::Llama).thoughts, None);
    }
}
