//! How is a recording shown? As the trace events that browsers' and Perfetto's timelines read.

use std::path::Path;

use anyhow::{Context, Result};
use engine::{Span, Trace, Track};
use serde_json::{Value, json};

/// Some minutes of a small model's steps: 10 MB.
const SPANS_MAX: usize = 200_000;

pub(super) fn recording() -> Trace {
    Trace::new(SPANS_MAX)
}

/// Writes what was recorded to `path`.
pub(super) fn write(trace: &Trace, path: &Path) -> Result<()> {
    let (spans, left_out) = trace.spans();
    let tracks: std::collections::BTreeSet<Track> = spans.iter().map(|span| span.track).collect();
    let names = tracks.iter().map(|&track| {
        let (name, args) = ("thread_name", json!({"name": track_name(track)}));
        json!({"name": name, "ph": "M", "pid": 1, "tid": thread(track), "args": args})
    });
    let events: Vec<Value> = names.chain(spans.iter().map(event)).collect();
    let text = json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"spans_left_out": left_out},
    });
    std::fs::write(path, text.to_string())
        .with_context(|| format!("--trace {}: it cannot be written", path.display()))
}

/// Times in microseconds.
fn event(span: &Span) -> Value {
    let category = match span.track {
        Track::Planner | Track::Device => "ring",
        Track::Copies(_) => "blit",
    };
    json!({
        "name": span.name,
        "cat": category,
        "ph": "X",
        "pid": 1,
        "tid": thread(span.track),
        "ts": span.start.as_secs_f64() * 1e6,
        "dur": span.duration.as_secs_f64() * 1e6,
        "args": {"number": span.number},
    })
}

fn thread(track: Track) -> u32 {
    match track {
        Track::Planner => 1,
        Track::Device => 2,
        Track::Copies(lane) => 3 + lane,
    }
}

fn track_name(track: Track) -> String {
    match track {
        Track::Planner => "engine: plans".to_owned(),
        Track::Device => "device: steps".to_owned(),
        Track::Copies(lane) => format!("copies {lane}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Instant;

    use super::*;

    #[test]
    fn spans_become_complete_events() {
        let trace = recording();
        trace.add(Track::Device, "step", Instant::now(), 7);
        trace.add(Track::Copies(1), "block out", Instant::now(), 3);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        write(&trace, &path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        let events = written["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 4, "two names, two spans");
        assert_eq!(events[1]["args"]["name"], "copies 1");
        let step = events.iter().find(|event| event["name"] == "step").unwrap();
        assert_eq!(
            (&step["ph"], &step["cat"], &step["tid"]),
            (&json!("X"), &json!("ring"), &json!(2))
        );
        assert_eq!(step["args"]["number"], 7);
        assert!(step["dur"].as_f64().is_some_and(|time| time >= 0.0));
    }
}
