//! What did a llama-bench measure? JSON of llama.cpp's and ik_llama.cpp's, and of pelton's own
//! `bench`; lines of JSON or a table of llama-batched-bench. All of it is checked: another
//! program's output is foreign input.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::samples::Samples;
use super::workload::{Kind, Test};

/// One test's runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) test: Test,
    pub(super) samples: Samples,
    /// The commit that the program says it was built from.
    pub(super) commit: Option<String>,
    /// The most that the machine could do, where the program says so.
    pub(super) roof: Option<f64>,
}

/// More characters than these of what cannot be read help nobody.
const QUOTED_CHARACTERS_MAX: usize = 120;

/// Reads `llama-bench -o json`.
pub(super) fn read_bench(text: &str) -> Result<Vec<Measured>> {
    let start = text.find('[').with_context(|| format!("it printed {}", quoted(text)))?;
    let entries: Vec<Value> = serde_json::from_str(&text[start..])
        .with_context(|| format!("it printed {}", quoted(&text[start..])))?;
    ensure!(!entries.is_empty(), "it measured nothing");
    let read =
        |entry: &Value| read_entry(entry).with_context(|| format!("in {}", quoted_json(entry)));
    entries.iter().filter_map(|entry| read(entry).transpose()).collect()
}

/// `None` for a test of another kind, as prompt and answer together.
fn read_entry(entry: &Value) -> Result<Option<Measured>> {
    let count = |name: &str| -> Result<u32> {
        let value = entry.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(number(value).with_context(|| format!("{name} is no number"))? as u32)
    };
    let (prompt, answer) = (count("n_prompt")?, count("n_gen")?);
    let depth = if entry.get("n_depth").is_some() { count("n_depth")? } else { 0 };
    // ik_llama.cpp says `tg128@pp2048` where the prompt is only the depth.
    let label = entry.get("test").and_then(Value::as_str).unwrap_or_default();
    let (kind, tokens, depth) = match (prompt, answer) {
        (prompt, 0) => (Kind::Prefill, prompt, depth),
        (0, answer) => (Kind::Decode, answer, depth),
        (prompt, answer) if label.contains('@') => (Kind::Decode, answer, prompt),
        _ => return Ok(None),
    };
    let runs = match entry.get("samples_ts").and_then(Value::as_array) {
        Some(runs) if !runs.is_empty() => runs.iter().map(rate).collect::<Result<_>>()?,
        _ => vec![rate(entry.get("avg_ts").context("there is no samples_ts and no avg_ts")?)?],
    };
    Ok(Some(Measured {
        test: Test { kind, tokens, depth, batch: 1 },
        samples: Samples::new(runs),
        commit: entry.get("build_commit").and_then(Value::as_str).map(str::to_owned),
        roof: None,
    }))
}

/// Finds the rate of `test` in what llama-batched-bench printed.
pub(super) fn read_batched(text: &str, test: &Test) -> Result<Measured> {
    for line in text.lines().map(str::trim) {
        let found = if line.starts_with('{') {
            batched_json(line)
        } else if line.starts_with('|') {
            batched_table(line)
        } else {
            None
        };
        let Some((answer, sequences, rate)) = found else { continue };
        if (answer, sequences) == (test.tokens, test.batch) {
            ensure!(rate.is_finite() && rate > 0.0, "a rate of {rate} tokens a second is none");
            let samples = Samples::new(vec![rate]);
            return Ok(Measured { test: *test, samples, commit: None, roof: None });
        }
    }
    bail!("it printed {}", quoted(text))
}

/// Tokens of each sequence, sequences, and their tokens a second.
fn batched_json(line: &str) -> Option<(u32, u32, f64)> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| number(entry.get(name)?);
    Some((field("tg")? as u32, field("pl")? as u32, field("speed_tg")?))
}

/// `| PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |`
fn batched_table(line: &str) -> Option<(u32, u32, f64)> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    if cells.len() != 10 {
        return None;
    }
    Some((cells[1].parse().ok()?, cells[2].parse().ok()?, cells[7].parse().ok()?))
}

/// Reads `pelton bench --json`.
pub(super) fn read_own(text: &str) -> Result<Vec<Measured>> {
    let object: Value =
        serde_json::from_str(text).with_context(|| format!("it printed {}", quoted(text)))?;
    let rows = object.get("results").and_then(Value::as_array).context("there are no results")?;
    rows.iter().map(|row| read_own_row(row).context("a row of results is wrong")).collect()
}

fn read_own_row(row: &Value) -> Result<Measured> {
    let count = |name: &str| -> Result<u32> {
        let value = row.get(name).and_then(Value::as_u64);
        Ok(u32::try_from(value.with_context(|| format!("there is no {name}"))?)?)
    };
    let kind = match row.get("test").and_then(Value::as_str) {
        Some("prefill") => Kind::Prefill,
        Some("decode") => Kind::Decode,
        _ => bail!("there is no test"),
    };
    let (tokens, depth, batch) = (count("tokens")?, count("depth")?, count("batch")?);
    let runs = row.get("runs").and_then(Value::as_array).context("there are no runs")?;
    ensure!(!runs.is_empty(), "there are no runs");
    Ok(Measured {
        test: Test { kind, tokens, depth, batch },
        samples: Samples::new(runs.iter().map(rate).collect::<Result<_>>()?),
        commit: None,
        roof: row.get("roof").and_then(|roof| number(roof.get("tokens_per_second")?)),
    })
}

fn rate(value: &Value) -> Result<f64> {
    let rate = number(value).context("a rate is no number")?;
    ensure!(rate.is_finite() && rate > 0.0, "a rate of {rate} tokens a second is none");
    Ok(rate)
}

/// A number, also where it was written as text.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn quoted(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return "nothing".to_owned();
    }
    let start: String = text.chars().take(QUOTED_CHARACTERS_MAX).collect();
    format!("`{start}`{}", if start.len() < text.len() { "..." } else { "" })
}

fn quoted_json(value: &Value) -> String {
    quoted(&value.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn shown(measured: &[Measured]) -> Vec<String> {
        let show = |one: &Measured| format!("{}: {}", one.test.describe(), one.samples.spread());
        measured.iter().map(show).collect()
    }

    #[test]
    fn llama_cpp_names_the_depth() {
        let text = r#"[
            {"build_commit": "0c1e570", "n_prompt": 512, "n_gen": 0, "n_depth": 0,
             "avg_ts": 2.0, "samples_ts": [1.5, 2.5]},
            {"n_prompt": 0, "n_gen": 128, "n_depth": 2048, "avg_ts": 3.0, "samples_ts": []},
            {"n_prompt": 512, "n_gen": 128, "n_depth": 0, "avg_ts": 3.0}
        ]"#;
        let measured = read_bench(text).unwrap();
        assert_eq!(shown(&measured), ["prefill 512: 1.5 to 2.5", "decode 128 at 2048: 3.0 to 3.0"]);
        assert_eq!(measured[0].commit.as_deref(), Some("0c1e570"));
    }

    #[test]
    fn ik_llama_cpp_says_it_in_the_label() {
        let text = r#"warming up [
            {"n_prompt": "2048", "n_gen": "128", "test": "tg128@pp2048", "samples_ts": [ 7 ]}]"#;
        assert!(read_bench(text).is_ok(), "text before the array is skipped");
        assert_eq!(shown(&read_bench(text).unwrap()), ["decode 128 at 2048: 7.0 to 7.0"]);
    }

    #[test]
    fn what_is_no_measurement_is_an_error() {
        for (text, wanted) in [
            ("", "it printed nothing"),
            ("Segmentation fault", "it printed `Segmentation fault`"),
            ("[", "it printed `[`"),
            ("[]", "it measured nothing"),
            (r#"[{"n_prompt": 1}]"#, "there is no n_gen"),
            (r#"[{"n_prompt": 1, "n_gen": 0}]"#, "no samples_ts"),
            (r#"[{"n_prompt": 1, "n_gen": 0, "samples_ts": [0]}]"#, "is none"),
            (r#"[{"n_prompt": 1, "n_gen": 0, "samples_ts": [null]}]"#, "no number"),
        ] {
            let error = format!("{:#}", read_bench(text).unwrap_err());
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn batched_rates_come_as_lines_or_as_a_table() {
        let test = Test { kind: Kind::Decode, tokens: 128, depth: 0, batch: 8 };
        let lines = "log\n{\"pp\": 1, \"tg\": 128, \"pl\": 4, \"speed_tg\": 11.5}\n\
                     {\"pp\": 1, \"tg\": 128, \"pl\": 8, \"speed_tg\": 17.5}\n";
        let table = "\
            | PP |  TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |\n\
            |----|-----|---|------|--------|----------|--------|----------|-----|-------|\n\
            |  1 | 128 | 8 | 1032 |  0.100 |    80.00 |  5.000 |    17.50 | 5.1 |  20.0 |\n";
        for text in [lines, table] {
            let measured = read_batched(text, &test).unwrap();
            assert_eq!(shown(&[measured]), ["decode 128, 8 sequences: 17.5 to 17.5"]);
        }
        let error = read_batched("usage: ...", &test).unwrap_err().to_string();
        assert!(error.contains("usage: ..."), "{error}");
    }
}
