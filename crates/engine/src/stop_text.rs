//! Does the answer contain a stop text? Holds back what may still become one.

/// Looks for stop texts in a growing answer.
pub(crate) struct StopText {
    stops: Vec<String>,
    include: bool,
    held: String,
}

/// What is certain after some text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) text: String,
    /// The stop text that ended the answer.
    pub(crate) stop: Option<String>,
}

impl StopText {
    pub(crate) fn new(stops: Vec<String>, include: bool) -> Self {
        Self { stops, include, held: String::new() }
    }

    /// Takes more text; gives what no stop text can begin in.
    pub(crate) fn push(&mut self, text: &str) -> Seen {
        if self.stops.is_empty() {
            return Seen { text: text.to_owned(), stop: None };
        }
        self.held.push_str(text);
        let first = |stop: &String| self.held.find(stop.as_str()).map(|at| (at, stop.len()));
        // The earliest match ends the answer; of two at one place, the one listed first.
        let found = self.stops.iter().filter_map(first).min_by_key(|&(at, _)| at);
        if let Some((at, length)) = found {
            let stop = self.held[at..at + length].to_owned();
            let end = if self.include { at + length } else { at };
            self.held.truncate(end);
            return Seen { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let kept = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(kept);
        Seen { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The answer ended for another reason: what was held back is text after all.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that begin a stop text.
    fn longest_beginning(&self) -> usize {
        let beginnings = self.stops.iter().map(|stop| {
            let longest = self.held.len().min(stop.len() - 1);
            (1..=longest)
                .rev()
                .find(|&length| {
                    stop.is_char_boundary(length) && self.held.ends_with(&stop[..length])
                })
                .unwrap_or(0)
        });
        beginnings.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::StopText;

    /// What comes out for each piece, then the end.
    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stop_text = StopText::new(stops, include);
        let mut out = Vec::new();
        for piece in pieces {
            let seen = stop_text.push(piece);
            out.push(seen.text);
            if seen.stop.is_some() {
                return (out, seen.stop);
            }
        }
        out.push(stop_text.finish());
        (out, None)
    }

    #[test]
    fn text_before_a_stop_is_given_and_nothing_after() {
        let (out, stop) = run(&["END"], false, &["one E", "N", "D two"]);
        assert_eq!(out, ["one ", "", ""]);
        assert_eq!(stop.as_deref(), Some("END"));
        assert_eq!(run(&["END"], true, &["one E", "N", "D two"]).0.concat(), "one END");
    }

    #[test]
    fn false_beginnings_are_given_back() {
        let (out, stop) = run(&["aab"], false, &["aa", "a", "c"]);
        assert_eq!((out.concat().as_str(), stop), ("aaac", None));
        assert_eq!(run(&["ééx"], false, &["é", "é", "é"]).0.concat(), "ééé");
    }

    #[test]
    fn the_earliest_match_wins() {
        let (out, stop) = run(&["world", "lo w"], false, &["hello world"]);
        assert_eq!((out.concat().as_str(), stop.as_deref()), ("hel", Some("lo w")));
    }
}
