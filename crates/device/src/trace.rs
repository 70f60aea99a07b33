//! What happened when? Spans of the ring and of copies, for a timeline.
//!
//! Memory for all spans is taken at the start; what is over is counted and left out, so that a
//! recording changes little of what it records.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who did it: a line of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    /// The thread that plans and settles.
    Planner,
    /// The thread that runs steps.
    Device,
    /// A lane of the queue of copies.
    Copies(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub track: Track,
    pub name: &'static str,
    /// Since the recording began.
    pub start: Duration,
    pub duration: Duration,
    /// The step, or the block.
    pub number: u64,
}

/// A recording. A handle: copies record into the same one.
#[derive(Clone, Debug)]
pub struct Trace {
    start: Instant,
    spans: Arc<Mutex<Spans>>,
}

#[derive(Debug)]
struct Spans {
    spans: Vec<Span>,
    left_out: u64,
}

impl Trace {
    /// Room for `spans_max` spans.
    pub fn new(spans_max: usize) -> Self {
        let spans = Spans { spans: Vec::with_capacity(spans_max), left_out: 0 };
        Self { start: Instant::now(), spans: Arc::new(Mutex::new(spans)) }
    }

    pub fn add(&self, track: Track, name: &'static str, since: Instant, number: u64) {
        let start = since.saturating_duration_since(self.start);
        let span = Span { track, name, start, duration: since.elapsed(), number };
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.spans.len() < spans.spans.capacity() {
            spans.spans.push(span);
        } else {
            spans.left_out += 1;
        }
    }

    /// What was recorded, and how many spans had no room.
    pub fn spans(&self) -> (Vec<Span>, u64) {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        (spans.spans.clone(), spans.left_out)
    }
}

/// Records a span if there is a recording.
pub(crate) fn record(
    trace: Option<&Trace>,
    track: Track,
    name: &'static str,
    since: Instant,
    number: u64,
) {
    if let Some(trace) = trace {
        trace.add(track, name, since, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_bounded() {
        let trace = Trace::new(2);
        for number in 0..3 {
            trace.clone().add(Track::Device, "step", Instant::now(), number);
        }
        let (spans, left_out) = trace.spans();
        assert_eq!((spans.len(), left_out), (2, 1));
        assert!(spans[0].start <= spans[1].start && spans[1].number == 1);
    }
}
