//! Do the templates that models are published with give the prompts that transformers gives, with
//! tools and without, with a system message and none, and fail where it fails?
//!
//! The templates are their publishers' and not kept here:
//! `tools/golden/make_published_templates.py` says where they come from, `.ci/run` fetches them,
//! and PELTON_TEST_TEMPLATES names their folder. Without it the test says so and passes.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use chat::{ChatError, Message, RenderRequest, TemplateLimits, TemplateSetup, TemplateWorker};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn request(golden: &Value, conversation: &Value, add_generation_prompt: bool) -> RenderRequest {
    let messages = conversation["messages"].clone();
    RenderRequest {
        messages: serde_json::from_value::<Vec<Message>>(messages).unwrap(),
        tools: conversation.get("tools").cloned(),
        add_generation_prompt,
        extra: conversation["extra"].as_object().cloned().unwrap_or_default(),
        now_unix_s: golden["now_unix_s"].as_i64().unwrap(),
    }
}

fn worker(source: &str) -> Result<TemplateWorker, ChatError> {
    let setup = TemplateSetup {
        source: source.to_owned(),
        bos_token: Some("<s>".to_owned()),
        eos_token: Some("</s>".to_owned()),
        limits: TemplateLimits { deadline: Duration::from_secs(60), ..TemplateLimits::default() },
        ..TemplateSetup::default()
    };
    TemplateWorker::spawn(Command::new(env!("CARGO_BIN_EXE_template-worker-test")), setup)
}

/// What differs, or nothing. The texts of Python's own errors are not ours to copy.
fn difference(found: &Result<String, ChatError>, expected: &Value) -> Option<String> {
    match (found, expected.as_str(), expected["raised"].as_str()) {
        (Ok(text), Some(expected), _) if hash(text).starts_with(expected) => None,
        (Err(ChatError::Raised { text }), _, Some(raised)) if text == raised => None,
        (Err(ChatError::RenderFailed { .. }), None, None) => None,
        _ => Some(format!("{found:?}, not {expected}")),
    }
}

#[test]
fn prompts_of_published_templates_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/published.json")).unwrap();
    let templates = golden["templates"].as_object().unwrap();
    assert!(templates.len() >= 40);
    let Some(folder) = std::env::var_os("PELTON_TEST_TEMPLATES").map(PathBuf::from) else {
        println!("skipped: PELTON_TEST_TEMPLATES names no folder of published templates");
        return;
    };
    let (mut checked, mut wrong) = (0, Vec::new());
    for (name, expected) in templates {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        assert_eq!(hash(&source), expected["sha256"].as_str().unwrap(), "{name}: another edition");
        let worker = match worker(&source) {
            Ok(worker) => worker,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (conversation, outcomes) in expected["cases"].as_object().unwrap() {
            for (add, expected) in [(false, &outcomes[0]), (true, &outcomes[1])] {
                let given = &golden["conversations"][conversation];
                let found = worker.render(&request(&golden, given, add));
                let Some(difference) = difference(&found, expected) else {
                    checked += 1;
                    continue;
                };
                wrong.push(format!("{name}, {conversation}, {add}: {difference}"));
            }
        }
    }
    println!("{checked} prompts are the same, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(checked, 1960);
}
