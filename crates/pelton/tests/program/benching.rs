//! `pelton bench`, alone and against small programs that talk as llama-bench does.

use std::path::Path;

use serde_json::Value;

use crate::running::{Home, text};

#[test]
fn bench_reports_every_combination() {
    let home = Home::new();
    let tiny = home.tiny();
    let lists = ["--prompt-tokens", "8,16", "--generate-tokens", "4", "--depth", "0,40"];
    let more = ["--batch", "1,3", "--repeat", "2", "--json", "--model", tiny.to_str().unwrap()];
    let output = home.run(&[&["bench"], &lists[..], &more].concat());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["results"].as_array().unwrap();
    let shape = |row: &Value| {
        let [tokens, depth, batch] = ["tokens", "depth", "batch"].map(|name| row[name].to_string());
        format!("{} {tokens} {depth} {batch}", row["test"].as_str().unwrap())
    };
    let shapes: Vec<String> = rows.iter().map(shape).collect();
    let expected = [
        "prefill 8 0 1",
        "prefill 16 0 1",
        "prefill 8 0 3",
        "prefill 16 0 3",
        "decode 4 0 1",
        "decode 4 40 1",
        "decode 4 0 3",
        "decode 4 40 3",
    ];
    assert_eq!(shapes, expected);
    for row in rows {
        assert_eq!(row["runs"].as_array().unwrap().len(), 2);
        assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(row["roof"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    assert!(report["ceilings"]["read_bytes_per_second"].as_f64().unwrap() > 0.0);
    let seconds = |name: &str| report[name].as_f64().unwrap();
    assert!(seconds("first_token_seconds") >= seconds("load_seconds"));
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    let home = Home::new();
    let tiny = home.tiny();
    for (arguments, named) in [
        (&["--generate-tokens", "1"][..], "--generate-tokens"),
        (&["--batch", "0"], "--batch"),
        (&["--prompt-tokens", "0", "--generate-tokens", "0"], "--prompt-tokens"),
        (&["--repeat", "0"], "--repeat"),
        (&["--rounds", "2"], "--against"),
        (&["--prompt-tokens", "300"], "256"),
        (
            &[
                "--prompt-tokens=0",
                "--generate-tokens=4",
                "--depth=100",
                "--batch=24",
                "--kv-cache-mb=1",
            ],
            "--kv-cache-mb",
        ),
        (&["--ablate-scale", "2"], "--ablate"),
        (&["--ablate", "sharing", "--batch", "7"], "--batch"),
        (&["--ablate", "sharing", "--depth", "4"], "--depth"),
        (&["--ablate", "sharing", "--repeat", "2"], "--repeat"),
        (&["--ablate", "sharing,sharing"], "twice"),
        (&["--against", "llama-bench-of-nobody"], "llama-bench-of-nobody"),
        (&["--against", "/nowhere/llama-bench -fa 1"], "/nowhere/llama-bench"),
    ] {
        let ceilings: &[&str] = if arguments[0] == "--ablate" { &[] } else { &["--no-ceilings"] };
        let model = [&["bench", "--model", tiny.to_str().unwrap()], ceilings].concat();
        let output = home.run(&[&model[..], arguments].concat());
        assert!(!output.status.success(), "{arguments:?} succeeded");
        let said = text(&output.stderr);
        assert!(said.contains(named), "{arguments:?}: {said}");
    }
}

/// Answers as llama.cpp's does, and writes down how it was called.
const LLAMA: &str = r#"#!/bin/sh
case "$*" in *--help*) echo "-m -p <n> -n -t -r -o <csv|json> -d -fa <0|1>"; exit 0;; esac
echo "$*" >> "$0.calls"
case "$*" in
  *"-d 40"*) echo '[{"build_commit": "abc", "n_prompt": 0, "n_gen": 4, "n_depth": 40,
                     "samples_ts": [4.0, 2.0]}]';;
  *) echo '[{"build_commit": "abc", "n_prompt": 8, "n_gen": 0, "samples_ts": [10.0]},
            {"build_commit": "abc", "n_prompt": 0, "n_gen": 4, "samples_ts": [20.0]}]';;
esac
"#;

const BATCHED: &str = r#"#!/bin/sh
case "$*" in *--help*) echo "-m -npp -ntg -npl -fa [on|off|auto]"; exit 0;; esac
echo "$*" >> "$0.calls"
echo "|  1 |  4 |  3 |  15 | 0.1 | 30.0 | 0.4 | 30.5 | 0.5 | 30.0 |" >&2
"#;

#[cfg(unix)]
fn program(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn bench_compares_with_a_program_on_the_path() {
    let home = Home::new();
    let tiny = home.tiny();
    let bench = home.path().join("llama-bench");
    program(&bench, LLAMA);
    program(&home.path().join("llama-batched-bench"), BATCHED);
    let path = format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap());
    let lists = ["--prompt-tokens", "8", "--generate-tokens", "4", "--depth", "0,40"];
    let more = ["--batch", "1,3", "--rounds", "2", "--repeat", "1", "--threads", "1"];
    let end = ["--against", "llama-bench -fa 0,1", "--no-ceilings", "--model"];
    let arguments = [&["bench"], &lists[..], &more, &end, &[tiny.to_str().unwrap()]].concat();
    let output = home.command(&arguments).env("PATH", &path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stdout);
    for wanted in ["prefill 8", "llama-bench abc -fa 0", "llama-bench abc -fa 1", "20.0 to 20.0"] {
        assert!(said.contains(wanted), "{wanted} is missing: {said}");
    }
    let json = [&arguments[..], &["--json"]].concat();
    let output = home.command(&json).env("PATH", &path).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let deep = report["results"].as_array().unwrap().iter();
    let deep = deep.filter(|row| row["depth"] == 40).collect::<Vec<_>>();
    let theirs = &deep[0]["programs"][1];
    // Two rounds of the two runs 4 and 2.
    assert_eq!(theirs["tokens_per_second"], 3.0);
    let ours = deep[0]["programs"][0]["tokens_per_second"].as_f64().unwrap();
    assert!((theirs["pelton_is"].as_f64().unwrap() - ours / 3.0).abs() < 1e-9);
    let calls = std::fs::read_to_string(format!("{}.calls", bench.display())).unwrap();
    let calls: Vec<&str> = calls.lines().collect();
    assert_eq!(calls.len(), 2 * 2 * 2 * 2, "calls, rounds, settings and two reports");
    let expected = format!("-m {} -t 1 -r 1 -o json -p 8 -n 4 -fa 0", tiny.display());
    assert_eq!(calls[0], expected);
    let batched = std::fs::read_to_string(home.path().join("llama-batched-bench.calls")).unwrap();
    assert!(batched.lines().any(|call| call.ends_with("-npl 3 -c 768 -fa on")), "{batched}");
}

#[cfg(unix)]
#[test]
fn bench_says_what_is_wrong_with_another_program() {
    let home = Home::new();
    let tiny = home.tiny();
    let help = "case \"$*\" in *--help*) echo '-m -p -n -t -r -o'; exit 0;; esac\n";
    for (script, named) in [
        ("echo hello\n".to_owned(), "no llama-bench"),
        (format!("{help}echo Segmentation fault >&2; exit 3\n"), "Segmentation fault"),
        (format!("{help}echo all is well\n"), "all is well"),
        (format!("{help}echo '[{{\"n_prompt\": 8, \"n_gen\": 0, \"avg_ts\": -1}}]'\n"), "-1"),
    ] {
        let other = home.path().join("other-bench");
        program(&other, &format!("#!/bin/sh\n{script}"));
        let output = home.run(&[
            "bench",
            "--against",
            other.to_str().unwrap(),
            "--no-ceilings",
            "--prompt-tokens",
            "8",
            "--generate-tokens",
            "4",
            "--rounds",
            "1",
            "--model",
            tiny.to_str().unwrap(),
        ]);
        assert!(!output.status.success(), "{script} succeeded");
        let said = text(&output.stderr);
        assert!(said.contains(named) && said.contains("other-bench"), "{script}: {said}");
    }
}

#[test]
fn bench_switches_each_system_off_in_turn() {
    let home = Home::new();
    let tiny = home.tiny();
    let start = ["bench", "--model", tiny.to_str().unwrap(), "--rounds", "1", "--threads", "1"];
    let lists = ["--ablate", "sharing,prefix_cache,repack_cache", "--ablate-scale", "0.02"];
    let output = home.run(&[&start[..], &lists, &["--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = |list: &str, field: &str| -> Vec<String> {
        let list = report[list].as_array().unwrap().iter();
        list.map(|one| one[field].as_str().unwrap().to_owned()).collect()
    };
    let systems = ["repack_cache", "prefix_cache", "sharing"];
    let alone = systems.map(|name| format!("{name} off"));
    assert_eq!(names("arms", "arm")[..2], ["all on", "all off"]);
    assert_eq!(names("arms", "arm")[2..], alone);
    assert_eq!(names("worth", "system"), [&systems[..], &["all together"]].concat());
    for arm in report["arms"].as_array().unwrap() {
        let median = arm["median"].as_object().unwrap();
        assert_eq!(median.len(), 5);
        assert!(median.values().all(|value| value.as_f64().unwrap() > 0.0), "{arm}");
    }
    // Off by flags, and on all the same, or both arms would be one.
    let off = ["--ablate", "sharing", "--no-sharing", "--ablate-scale", "0.02", "--json"];
    let output = home.run(&[&start[..], &off].concat());
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("sharing is off as configured"), "{said}");
    let wrong = home.run(&[&start[..], &["--ablate", "shareing"]].concat());
    assert!(text(&wrong.stderr).contains("prefix_cache"), "{wrong:?}");
}
