//! `pelton ps`: which models does a running server have, and what are they doing?

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::asking::ServerArguments;
use crate::printing::{self, say, visible};
use crate::style::{Paint, Style};
use crate::units;

#[derive(Args)]
pub(crate) struct PsArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &PsArguments) -> Result<()> {
    let models = arguments.server.open()?.models()?;
    if arguments.json {
        say!("{:#}", Value::from(models));
        return Ok(());
    }
    printing::painted(&table(&models, Paint::stdout()));
    Ok(())
}

/// A line for each model, below a head.
pub(super) fn table(models: &[Value], paint: Paint) -> String {
    let head = ["MODEL", "STATE", "RUNNING", "WAITING", "MEMORY"].map(str::to_owned);
    let rows: Vec<[String; 5]> = models.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| &row[column]).chain([&head[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in std::iter::once(&head).chain(&rows).enumerate() {
        let style = match (index, row[1].as_str()) {
            (0, _) => Style::Faint,
            (_, "ready") => Style::Good,
            (_, "failed") => Style::Bad,
            (_, "loading" | "unloading") => Style::Warn,
            _ => Style::Faint,
        };
        let name = format!("{:<1$}", row[0], widths[0]);
        let state = format!("{:<1$}", row[1], widths[1]);
        let name = paint.paint(if index == 0 { Style::Faint } else { Style::Strong }, &name);
        let numbers = format!(
            "{:>3$}  {:>4$}  {:>5$}",
            row[2], row[3], row[4], widths[2], widths[3], widths[4]
        );
        let numbers = if index == 0 { paint.paint(Style::Faint, &numbers) } else { numbers };
        text.push_str(&format!("{name}  {}  {numbers}\n", paint.paint(style, &state)));
    }
    for model in models.iter().filter(|model| model["state_reason"].is_string()) {
        let [name, why] = ["id", "state_reason"].map(|key| told(&model[key]));
        text.push_str(&format!("{}: {why}\n", paint.paint(Style::Strong, &name)));
    }
    text
}

fn row(model: &Value) -> [String; 5] {
    let (queue, memory) = (&model["queue"], &model["memory"]);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let waiting = number(&queue["waiting"]) + number(&model["requests_waiting_for_load"]);
    let running = match model["state"].as_str() {
        Some("ready") => {
            format!("{}/{}", number(&queue["running"]), number(&queue["running_limit"]))
        }
        _ => "-".to_owned(),
    };
    let memory = match memory["used"]["total"].as_u64() {
        Some(used) => units::bytes(used),
        None => format!("({})", units::bytes(number(&memory["estimate"]["total"]))),
    };
    [told(&model["id"]), told(&model["state"]), running, waiting.to_string(), memory]
}

fn told(value: &Value) -> String {
    visible(value.as_str().unwrap_or("?")).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_stand_under_their_heads_and_names_cannot_talk_to_the_terminal() {
        let models = [
            json!({"id": "a\u{1b}[31m", "state": "ready",
                   "queue": {"running": 3, "running_limit": 32, "waiting": 1},
                   "memory": {"used": {"total": 612_345_678_u64}}}),
            json!({"id": "second", "state": "failed", "state_reason": "no room",
                   "queue": {}, "memory": {"estimate": {"total": 6_200_000_000_u64}}}),
        ];
        assert_eq!(
            table(&models, Paint::off()),
            "MODEL   STATE   RUNNING  WAITING    MEMORY\n\
             a\u{fffd}[31m  ready      3/32        1    612 MB\n\
             second  failed        -        0  (6.2 GB)\n\
             second: no room\n"
        );
        assert!(table(&models, Paint::on()).contains("\x1b[32mready \x1b[0m"));
    }
}
