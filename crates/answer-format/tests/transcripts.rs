//! Are the parts of an answer the same however it is cut, and is nothing lost of what is no call?
#![allow(clippy::unwrap_used, reason = "tests")]

use answer_format::{AnswerFormat, CallFormat, Held, Part, Reader, ReaderSetup, Tool};
use serde_json::json;

const CASES: &str = include_str!("transcripts.txt");

fn tools() -> Vec<Tool> {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}}});
    let tool = |name: &str| Tool { name: name.to_owned(), parameters: parameters.clone() };
    vec![tool("get_weather"), tool("stop")]
}

/// A format as its template would say it, with thoughts between the usual markers.
fn format(name: &str) -> AnswerFormat {
    let thinks = match name {
        "mistral" => "[THINK]",
        "gemma" => "<channel|>",
        "seed" => "</seed:think>",
        _ => "</think>",
    };
    AnswerFormat::of_template(Some(thinks)).with_calls(CallFormat::named(name).unwrap())
}

fn setup(name: &str, is_held: bool) -> ReaderSetup {
    let held = if is_held { Held::MayCall { is_cut: false } } else { Held::No };
    ReaderSetup { format: format(name), tools: tools(), held }
}

/// The parts of an answer in pieces, those of a kind put together, one a line.
fn read(setup: &ReaderSetup, prompt_end: &str, pieces: &[&str]) -> String {
    let mut reader = Reader::new(setup.clone(), prompt_end);
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    let mut lines: Vec<(&str, String)> = Vec::new();
    for part in parts {
        let (kind, text) = match part {
            Part::Thought(text) => ("thought", text),
            Part::Text(text) => ("text", text),
            Part::CallName(text) => ("call", text),
            Part::CallArguments(text) => ("arguments", text),
        };
        match lines.last_mut() {
            Some((last, before)) if *last == kind && kind != "call" => before.push_str(&text),
            _ => lines.push((kind, text)),
        }
    }
    let show = |(kind, text): (&str, String)| format!("{kind}: {}\n", text.replace('\n', "\\n"));
    lines.into_iter().map(show).collect()
}

/// Format, end of the prompt, answer, and what is expected of it.
fn cases() -> Vec<(&'static str, String, String, &'static str)> {
    let text = |line: &str| line.replace("\\n", "\n");
    let case = |block: &'static str| {
        let mut lines = block.splitn(4, '\n');
        let format = lines.next().unwrap().strip_prefix("# ").unwrap();
        let prompt = text(lines.next().unwrap().strip_prefix("prompt: ").unwrap());
        let answer = text(lines.next().unwrap().strip_prefix("answer: ").unwrap());
        (format, prompt, answer, lines.next().unwrap_or(""))
    };
    CASES.trim_end().split("\n\n").map(case).collect()
}

fn boundaries(text: &str) -> Vec<usize> {
    (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect()
}

#[test]
fn every_cut_gives_the_same_parts() {
    for (format, prompt, answer, expected) in cases() {
        let is_markup = |line: &str| line.starts_with("text: ") && line.contains(['{', '[', '<']);
        // What a grammar holds is never wrong.
        let can_be_held = !expected.lines().any(is_markup);
        for is_held in [false, true].into_iter().filter(|&is_held| !is_held || can_be_held) {
            let setup = setup(format, is_held);
            let whole = read(&setup, &prompt, &[&answer]);
            assert_eq!(whole.trim_end(), expected.trim_end(), "{format}: {answer}");
            for at in boundaries(&answer) {
                let (first, second) = answer.split_at(at);
                let cut = read(&setup, &prompt, &[first, second]);
                assert_eq!(cut, whole, "{format}: {first:?} | {second:?}");
            }
            let cuts = boundaries(&answer);
            let letters: Vec<&str> = cuts.windows(2).map(|at| &answer[at[0]..at[1]]).collect();
            assert_eq!(read(&setup, &prompt, &letters), whole, "{format}: letters of {answer}");
        }
    }
}

/// An answer that was broken off anywhere gives no error and loses nothing but white space.
#[test]
fn what_is_broken_off_is_text() {
    for (format, prompt, answer, _) in cases() {
        let setup = setup(format, false);
        for at in boundaries(&answer) {
            let whole = read(&setup, &prompt, &[&answer[..at]]);
            let letters: Vec<String> = answer[..at].chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(read(&setup, &prompt, &letters), whole, "{format}: {:?}", &answer[..at]);
            if whole.contains("call: ") || whole.contains("thought: ") || format == "harmony" {
                continue;
            }
            let text = whole.trim_end_matches('\n').strip_prefix("text: ").unwrap_or("");
            let given = answer[..at].replace('\n', "\\n");
            let thinks = ["<think>", "[THINK]", "<|channel>", "<seed:think>"]
                .iter()
                .any(|it| given.contains(it));
            let is_whole = text == given || thinks && prompt.is_empty() && given.ends_with(text);
            assert!(is_whole, "{format}: {given:?} {text:?}");
        }
    }
}

#[test]
fn text_before_a_call_goes_out_at_once() {
    let mut reader = Reader::new(setup("hermes", false), "");
    let text = |text: &str| vec![Part::Text(text.to_owned())];
    assert_eq!(reader.push("Let me see."), text("Let me see."));
    assert_eq!(reader.push("\n<tool"), []);
    assert_eq!(reader.push("box> is"), text("\n<toolbox> is"));
    assert_eq!(reader.push(" <tool_call>"), []);
    assert_eq!(reader.push("{nothing}"), [text(" <tool_call>"), text("{nothing}")].concat());
}

#[test]
fn held_arguments_are_told_as_they_come() {
    for (format, begin) in [
        ("hermes", "<tool_call>\n{\"name\": \"stop\", \"arguments\": "),
        ("llama", "{\"name\": \"stop\", \"parameters\": "),
        ("mistral", "[TOOL_CALLS][{\"name\": \"stop\", \"arguments\": "),
        ("mistral", "[TOOL_CALLS]stop[ARGS]"),
        ("glm-lines", "stop\n"),
        ("phi", "<|tool_call|>[{\"name\": \"stop\", \"arguments\": "),
    ] {
        let mut reader = Reader::new(setup(format, true), "");
        assert_eq!(reader.push(begin), [], "{format}");
        let name = Part::CallName("stop".to_owned());
        let more = |text: &str| Part::CallArguments(text.to_owned());
        assert_eq!(reader.push("{\"city\""), [name, more("{\"city\"")], "{format}");
        assert_eq!(reader.push(": \"Rome\"}"), [more(": \"Rome\"}")], "{format}");
        assert_eq!(reader.finish(), [], "{format}");
    }
}

/// Whatever is cut off of an answer that must call: calls, or the beginning of one.
#[test]
fn what_is_broken_off_of_a_held_call_is_nothing() {
    let harmony =
        "<|channel|>commentary to=functions.stop <|constrain|>json<|message|>{\"city\": 1}";
    for (format, answer) in [
        (
            "hermes",
            "<tool_call>\n{\"name\": \"stop\", \"arguments\": {\"city\": \"R\"}}\n</tool_call>",
        ),
        ("llama", "{\"name\": \"stop\", \"parameters\": {\"city\": \"Rome\"}}"),
        ("glm-lines", "stop\n{\"city\": \"Rome\"}"),
        ("mistral-named", "[TOOL_CALLS]stop[ARGS]{\"city\": \"Rome\"}"),
        ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>stop<｜tool▁sep｜>{}"),
        ("qwen-xml", "<tool_call>\n<function=stop>\n<parameter=city>\nRome\n</parameter>\n"),
        ("pythonic", "[stop(city=\"Rome\")"),
        ("harmony", harmony),
    ] {
        let whole = setup(format, false);
        for at in boundaries(answer) {
            let only = ReaderSetup { held: Held::OnlyCalls, ..whole.clone() };
            let lines = read(&only, "", &[&answer[..at]]);
            assert!(!lines.contains("text: "), "{format}: {:?} {lines}", &answer[..at]);
            let after = format!("I see.{}", &answer[..at]);
            let begun = ["<tool_call>", "[TOOL_CALLS]", "<｜tool▁calls▁begin｜>"];
            for is_cut in [true, false].iter().filter(|_| begun.iter().any(|b| after.contains(b))) {
                let may = ReaderSetup { held: Held::MayCall { is_cut: *is_cut }, ..whole.clone() };
                let lines = read(&may, "", &[&after]);
                let (text, call) = lines.split_once('\n').unwrap();
                assert_eq!(text, "text: I see.", "{format}: {after:?}");
                let is_whole = call.contains('}') || call.is_empty();
                assert!(!is_cut || is_whole, "{format}: {after:?} {lines}");
            }
        }
    }
}

#[test]
fn without_tools_markup_is_text_and_thoughts_are_not() {
    let setup = ReaderSetup { tools: Vec::new(), ..setup("hermes", false) };
    let answer = "<think>hm</think><tool_call>{\"name\": \"f\"}</tool_call>";
    let expected = "thought: hm\ntext: <tool_call>{\"name\": \"f\"}</tool_call>\n";
    assert_eq!(read(&setup, "", &[answer]), expected);
}

#[test]
fn thinking_is_known() {
    let mut reader = Reader::new(setup("hermes", false), "assistant\n<think>\n");
    assert!(reader.is_thinking());
    reader.push("hm</think>");
    assert!(!reader.is_thinking());
    assert!(!Reader::new(setup("hermes", false), "<think>\n\n</think>\n\n").is_thinking());
}
