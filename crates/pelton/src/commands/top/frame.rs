//! How does it look? The lines of one screen, as text; nothing is drawn here.

use super::figures::{Figures, ModelFigures, Percentiles};
use crate::style::{Paint, Style};
use crate::units;

/// What is kept of earlier looks for the small charts.
#[derive(Default)]
pub(super) struct History {
    generated: Vec<f64>,
    computed: Vec<f64>,
    running: Vec<f64>,
}

/// As many as fit beside the numbers of a terminal of 80 columns.
const CHART_COLUMNS: usize = 48;

impl History {
    pub(super) fn add(&mut self, figures: &Figures) {
        for (values, value) in [
            (&mut self.generated, figures.generated),
            (&mut self.computed, figures.computed),
            (&mut self.running, Some(figures.running)),
        ] {
            values.extend(value);
            if values.len() > CHART_COLUMNS {
                values.remove(0);
            }
        }
    }
}

/// The screen's lines, the first at the top.
pub(super) fn lines(url: &str, figures: &Figures, history: &History, paint: Paint) -> Vec<String> {
    let (style, health) = match (figures.healthy, figures.ready) {
        (false, _) => (Style::Bad, "in trouble"),
        (true, false) => (Style::Warn, "loading"),
        (true, true) => (Style::Good, "ready"),
    };
    let title = paint.paint(Style::Strong, "pelton top");
    let health = paint.paint(style, &format!("\u{25cf} {health}"));
    let mut lines = vec![format!("{title}  {url}  {health}"), String::new()];
    let told = |value: Option<f64>| value.map_or("-".to_owned(), units::count);
    let row = |name: &str, value: &str, rest: &str| {
        format!(
            "{}{} {rest}",
            paint.paint(Style::Faint, &format!("{name:<14}")),
            strong(paint, value)
        )
    };
    let chart = |values: &[f64]| paint.paint(Style::Accent, &sparkline(values));
    lines.push(row("tokens/s", &told(figures.generated), &chart(&history.generated)));
    lines.push(row("with prompts", &told(figures.computed), &chart(&history.computed)));
    lines.push(row("running", &units::count(figures.running), &chart(&history.running)));
    lines.push(row("waiting", &units::count(figures.waiting), ""));
    lines.push(row("tokens a step", &told(figures.batch), ""));
    lines.push(String::new());
    lines.push(latency("first token", figures.first_token, paint));
    lines.push(latency("between", figures.next_token, paint));
    lines.push(String::new());
    lines.extend(gauges(figures, paint));
    lines.push(String::new());
    lines.extend(models(&figures.models, paint));
    lines
}

fn strong(paint: Paint, value: &str) -> String {
    paint.paint(Style::Strong, &format!("{value:>8}"))
}

fn latency(name: &str, percentiles: Percentiles, paint: Paint) -> String {
    let mut line = paint.paint(Style::Faint, &format!("{name:<14}"));
    for (share, value) in ["p50", "p95", "p99"].into_iter().zip(percentiles) {
        let value = value.map_or("-".to_owned(), units::seconds);
        line.push_str(&format!(" {}{}  ", paint.paint(Style::Faint, share), strong(paint, &value)));
    }
    line
}

fn gauges(figures: &Figures, paint: Paint) -> Vec<String> {
    let share = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
    let gauge = |name: &str, value: Option<f64>, about: String| {
        let told = value.map_or("-".to_owned(), units::percent);
        let name = paint.paint(Style::Faint, &format!("{name:<14}"));
        let about = paint.paint(Style::Faint, &about);
        format!("{name} {} {told:>6}  {about}", bar(value.unwrap_or(0.0), paint))
    };
    let (used, reserved) = (figures.heap_used, figures.heap_reserved);
    let bytes = |value: f64| units::bytes(value as u64);
    vec![
        gauge(
            "KV cache",
            share(figures.kv_used, figures.kv_total),
            format!(
                "{} of {} blocks",
                units::count(figures.kv_used),
                units::count(figures.kv_total)
            ),
        ),
        gauge("heaps", share(used, reserved), format!("{} of {}", bytes(used), bytes(reserved))),
        gauge("device", figures.device_busy, "of the time with work, computing".to_owned()),
        gauge("copies", figures.copies_hidden, "hidden beside steps".to_owned()),
        gauge("prompts", figures.prompts_found, "of tokens found in the cache".to_owned()),
    ]
}

const BAR_COLUMNS: usize = 24;

fn bar(share: f64, paint: Paint) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR_COLUMNS as f64).round() as usize;
    let filled = paint.paint(Style::Accent, &"\u{2588}".repeat(full));
    let empty = paint.paint(Style::Faint, &"\u{2591}".repeat(BAR_COLUMNS - full));
    filled + &empty
}

/// One letter a value, from an empty block to a full one.
fn sparkline(values: &[f64]) -> String {
    const STEPS: [char; 8] = [
        '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}',
        '\u{2588}',
    ];
    let most = values.iter().copied().fold(0.0, f64::max);
    let step = |value: f64| if most > 0.0 { (value / most * 7.0).round() as usize } else { 0 };
    values.iter().map(|&value| STEPS[step(value).min(7)]).collect()
}

fn models(models: &[ModelFigures], paint: Paint) -> Vec<String> {
    let width =
        models.iter().map(|model| model.name.chars().count()).max().unwrap_or(0).clamp(5, 40);
    let head = format!(
        "{:<width$}  {:<9}  {:>8}  {:>7}  {:>8}  {:>5}  {:>8}",
        "MODEL", "STATE", "RUNNING", "WAITING", "TOKENS/S", "KV", "MEMORY"
    );
    let mut lines = vec![paint.paint(Style::Faint, &head)];
    for model in models {
        let style = match model.state.as_str() {
            "ready" => Style::Good,
            "failed" => Style::Bad,
            "loading" | "unloading" => Style::Warn,
            _ => Style::Faint,
        };
        let running = match model.state.as_str() {
            "ready" => format!("{}/{}", model.running, model.running_limit),
            _ => "-".to_owned(),
        };
        let name: String = model.name.chars().take(width).collect();
        let told = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        lines.push(format!(
            "{}  {}  {running:>8}  {:>7}  {:>8}  {:>5}  {:>8}",
            paint.paint(Style::Strong, &format!("{name:<width$}")),
            paint.paint(style, &format!("{:<9}", model.state)),
            model.waiting,
            told(model.generated.map(units::count)),
            told(model.kv_share.map(units::percent)),
            told(model.memory_bytes.map(units::bytes)),
        ));
    }
    lines
}

/// A line cut to so many columns; sequences that color it take none.
pub(super) fn clipped(line: &str, columns: usize) -> String {
    let mut shown = String::new();
    let mut used = 0;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            shown.push(letter);
            for part in letters.by_ref() {
                shown.push(part);
                if part.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if used < columns {
            shown.push(letter);
            used += 1;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::counters::{Counters, Span};
    use super::*;

    fn figures() -> Figures {
        let look = |tokens: u32| {
            Counters::parse(&format!(
                "pelton_ready 1\npelton_healthy 1\npelton_generation_tokens_total {tokens}\n\
                 pelton_kv_blocks_used 30\npelton_kv_blocks_total 40\npelton_sequences_running 3\n"
            ))
        };
        let (before, after) = (look(0), look(2469));
        let span = Span { before: &before, after: &after, seconds: 2.0 };
        let models = [json!({"id": "tiny", "state": "ready", "queue": {"running": 3,
            "running_limit": 32, "waiting": 0}, "memory": {"used": {"total": 5_000_000}}})];
        Figures::new(&span, &span, &models)
    }

    #[test]
    fn a_screen_fits_into_80_columns_and_says_what_is() {
        let figures = figures();
        let mut history = History::default();
        (0..100).for_each(|_| history.add(&figures));
        let lines = lines("http://127.0.0.1:8080", &figures, &history, Paint::off());
        for line in &lines {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let text = lines.join("\n");
        for part in ["\u{25cf} ready", "1,234", "75 %", "30 of 40 blocks", "3/32", "5.0 MB"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_cut_line_keeps_its_colors_closed() {
        let line = Paint::on().paint(Style::Good, "\u{2588}23456");
        assert_eq!(clipped(&line, 3), "\u{1b}[32m\u{2588}23\u{1b}[0m");
        assert_eq!(sparkline(&[0.0, 1.0, 2.0]), "\u{2581}\u{2585}\u{2588}");
    }
}
