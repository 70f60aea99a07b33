//! Flags, output and exit codes.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::running::{Home, text};

#[test]
fn run_streams_an_answer_and_ends_with_statistics() {
    let home = Home::new();
    let tiny = home.tiny();
    let model = ["--model", tiny.to_str().unwrap(), "--temperature", "0", "--max-tokens", "5"];
    let output = home.run(&[&["run", "hello"], &model[..]].concat());
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("5 tokens at"), "{output:?}");
    let json = home.run(&[&["run", "hello", "--json"], &model[..]].concat());
    let object: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(object["completion_tokens"], 5);
    let said = object["text"].as_str().unwrap();
    assert_eq!(text(&output.stdout).strip_suffix('\n').unwrap(), said);
}

#[test]
fn run_reads_a_prompt_from_stdin() {
    let home = Home::new();
    let tiny = home.tiny();
    let arguments =
        ["run", "--model", tiny.to_str().unwrap(), "--max-tokens", "2", "--seed", "1", "--json"];
    let mut child =
        home.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed elsewhere").unwrap();
    let output = child.wait_with_output().unwrap();
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["completion_tokens"], 2);
}

#[test]
fn mistakes_are_named_and_exit_with_a_failure() {
    let home = Home::new();
    let tiny = home.tiny();
    let tiny = tiny.to_str().unwrap();
    for (arguments, named) in [
        (&["run", "x", "--model", "smolm2"][..], "smollm2"),
        (&["run", "x", "--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (&["run", "x", "--model", tiny, "--device", "gpu"], "reference"),
        (&["run", "x", "--model", tiny, "--isa", "mmx"], "portable"),
        (&["run", "x", "--model", tiny, "--kv-dtype", "int4"], "int16"),
        (&["run", "x", "--model", tiny, "--threads", "0"], "threads"),
        (&["run", "x", "--model", tiny, "--temperature", "9"], "temperature"),
        (&["run", "x", "--model", tiny, "--max-tokens", "100000"], "max_tokens"),
        (&["run", "x", "--model", tiny, "--context-tokens", "9999"], "256"),
        (&["serve", "--model", tiny, "--host", "0.0.0.0", "--port", "0"], "0.0.0.0"),
        (&["rm", "nothing"], "nothing"),
        (&["run", "x", "--colour"], "--colour"),
    ] {
        let output = home.run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        let said = text(&output.stderr);
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn check_tells_good_files_from_bad_ones() {
    let home = Home::new();
    let tiny = home.tiny();
    let good = home.run(&["check", tiny.to_str().unwrap()]);
    assert!(good.status.success() && text(&good.stdout).contains("loads and runs"), "{good:?}");
    let json = home.run(&["check", tiny.to_str().unwrap(), "--json"]);
    let object: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&object["runs"], &object["architecture"]), (&true.into(), &"llama".into()));
    let bytes = std::fs::read(&tiny).unwrap();
    let bad = home.path().join("bad.gguf");
    std::fs::write(&bad, &bytes[..bytes.len() - 100]).unwrap();
    let cut = home.run(&["check", bad.to_str().unwrap()]);
    assert!(!cut.status.success());
    let said = text(&cut.stderr);
    assert!(said.contains("byte") && said.contains("bad.gguf"), "{said}");
}

#[test]
fn show_and_list_print_json() {
    let home = Home::new();
    let tiny = home.tiny();
    let output = home.run(&["show", tiny.to_str().unwrap(), "--json"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["architecture"], "llama");
    assert_eq!(object["formats"][0]["format"], "Q4_1");
    assert_eq!(object["type"], "gguf");
    assert!(object["runs_on"].is_string(), "{object}");
    let devices = object["devices"].as_array().unwrap();
    let cpu = devices.iter().find(|device| device["device"] == "cpu").unwrap();
    let needs = cpu["needs"].as_array().unwrap();
    assert_eq!(needs.last().unwrap()["context_tokens"], object["context_tokens"]);
    assert!(needs[0]["weights_bytes"].as_u64().unwrap() > 0, "{needs:?}");
    let output = home.run(&["list", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), serde_json::json!([]));
}

#[test]
fn show_tells_what_a_file_is_that_does_not_run() {
    let home = Home::new();
    let tiny = home.tiny();
    let shown = home.run(&["show", tiny.to_str().unwrap(), "--tensors"]);
    let said = text(&shown.stdout);
    assert!(said.contains("runs here       yes") && said.contains("token_embd.weight"), "{said}");
    let strange = home.path().join("strange.gguf");
    let bytes = std::fs::read(&tiny).unwrap();
    // The architecture's name is the first `llama` of the file that is no part of a key.
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 12;
    let mut bytes = bytes;
    bytes[at..at + 5].copy_from_slice(b"zebra");
    std::fs::write(&strange, bytes).unwrap();
    let shown = home.run(&["show", strange.to_str().unwrap()]);
    let said = text(&shown.stdout);
    assert!(shown.status.success(), "{shown:?}");
    assert!(said.contains("runs here       no") && said.contains("zebra"), "{said}");
    assert!(said.contains("Q4_1"), "{said}");
}

#[test]
fn quantize_makes_a_file_that_runs() {
    let home = Home::new();
    let (tiny, out) = (home.tiny(), home.path().join("small.gguf"));
    let (tiny, out) = (tiny.to_str().unwrap(), out.to_str().unwrap());
    let made = home.run(&["quantize", tiny, out, "--gguf", "q8_0", "--json"]);
    assert!(made.status.success(), "{made:?}");
    let object: Value = serde_json::from_slice(&made.stdout).unwrap();
    let tensors = object["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|tensor| tensor["to"] == "Q8_0"), "{object}");
    assert!(object["relative_error"].as_f64().unwrap() < 0.01, "{object}");
    let checked = home.run(&["check", out]);
    assert!(checked.status.success(), "{checked:?}");
    for (arguments, named) in [
        (&["--gguf", "Q4_0"][..], "is there already"),
        (&["--gguf", "Q3_K"], "Q4_K_M"),
        (&["--gguf", "Q4_0", "--force", "--tensor", "nothing=Q8_0"], "nothing"),
        (&["--gguf", "Q4_0", "--force", "--tensor", "*=huge"], "huge"),
        (&["--mlx-bits", "4"], "is there already"),
        (&[], "--gguf"),
    ] {
        let refused = home.run(&[&["quantize", tiny, out], arguments].concat());
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains(named), "{arguments:?}: {said}");
    }
    assert!(home.run(&["check", out]).status.success(), "what was there is there");
    let folder = home.path().join("folder");
    let folder = folder.to_str().unwrap();
    let made = home.run(&["quantize", tiny, folder, "--mlx-bits", "8", "--group", "32"]);
    assert!(made.status.success(), "{made:?}");
    let checked = home.run(&["check", folder]);
    assert!(checked.status.success(), "{checked:?}");
}
