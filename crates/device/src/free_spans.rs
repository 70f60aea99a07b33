//! Which parts of one heap are free? Spans in lists by size class, merged with their neighbors.
//!
//! Offsets only: no memory is touched here. A span's class is the power of two that it reaches;
//! a request looks through the list of its own class, where a span may be too small, then takes
//! any span of a higher class. What is left of a span stays free, what comes back is merged with
//! free neighbors at once, so nothing is lost to rounding but up to [`GRAIN`].

use std::collections::BTreeMap;

/// Sizes and offsets are multiples of this: what graphics devices want of a binding's offset, and
/// whole cache lines.
pub const GRAIN: usize = 256;
/// Class `c` holds sizes from `2^c` up to `2^(c + 1)`.
pub(crate) const CLASSES: usize = usize::BITS as usize;

/// The class of a size that is not 0.
pub(crate) fn size_class(bytes: usize) -> usize {
    bytes.ilog2() as usize
}

#[derive(Debug)]
pub(crate) struct FreeSpans {
    bytes: usize,
    /// Length of each free span by its start.
    by_start: BTreeMap<usize, usize>,
    /// Starts of free spans by class.
    lists: Vec<Vec<usize>>,
    /// From here on nothing was ever taken.
    untouched: usize,
}

impl FreeSpans {
    /// All free. What a size is short of a whole grain is never given out.
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = bytes - bytes % GRAIN;
        let lists = vec![Vec::new(); CLASSES];
        let mut spans = Self { bytes, by_start: BTreeMap::new(), lists, untouched: 0 };
        if bytes > 0 {
            spans.insert(0, bytes);
        }
        spans
    }

    /// Takes `bytes`, a multiple of the grain: where they start, and whether they were never taken
    /// before.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<(usize, bool)> {
        assert!(bytes > 0 && bytes.is_multiple_of(GRAIN), "a whole number of grains");
        let class = size_class(bytes);
        let own = self.lists[class].iter().find(|start| self.by_start[start] >= bytes);
        let start = own.or_else(|| self.lists[class + 1..].iter().find_map(|list| list.last()));
        let start = *start?;
        let length = self.remove(start);
        if length > bytes {
            self.insert(start + bytes, length - bytes);
        }
        let is_untouched = start >= self.untouched;
        self.untouched = self.untouched.max(start + bytes);
        Some((start, is_untouched))
    }

    /// Takes back what [`FreeSpans::take`] gave.
    pub(crate) fn give_back(&mut self, start: usize, bytes: usize) {
        assert!(start + bytes <= self.bytes, "a span of another heap");
        let (mut start, mut end) = (start, start + bytes);
        let next = self.by_start.range(start..).next().map(|(&next, _)| next);
        assert!(next.is_none_or(|next| next >= end), "bytes came back twice");
        if next == Some(end) {
            end += self.remove(end);
        }
        let before = self.by_start.range(..start).next_back().map(|(&at, &length)| (at, length));
        if let Some((at, length)) = before {
            assert!(at + length <= start, "bytes came back twice");
            if at + length == start {
                self.remove(at);
                start = at;
            }
        }
        self.insert(start, end - start);
    }

    pub(crate) fn largest(&self) -> usize {
        let list = self.lists.iter().rev().find(|list| !list.is_empty());
        list.into_iter().flatten().map(|start| self.by_start[start]).max().unwrap_or(0)
    }

    /// Free spans and their bytes by class.
    pub(crate) fn count(&self, each: &mut dyn FnMut(usize, usize)) {
        for &length in self.by_start.values() {
            each(size_class(length), length);
        }
    }

    fn insert(&mut self, start: usize, bytes: usize) {
        self.by_start.insert(start, bytes);
        self.lists[size_class(bytes)].push(start);
    }

    fn remove(&mut self, start: usize) -> usize {
        let bytes = self.by_start.remove(&start).expect("invariant: the lists name free spans");
        let list = &mut self.lists[size_class(bytes)];
        let place = list.iter().position(|&listed| listed == start);
        list.swap_remove(place.expect("invariant: a free span is in its class's list"));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_are_merged_and_nothing_is_lost() {
        const PIECE: usize = 10 * GRAIN;
        let mut spans = FreeSpans::new(10 * PIECE + GRAIN - 1);
        assert_eq!(spans.largest(), 10 * PIECE);
        for index in 0..10 {
            assert_eq!(spans.take(PIECE), Some((index * PIECE, true)));
        }
        assert_eq!(spans.take(GRAIN), None);
        for index in [1, 3, 2, 9, 0] {
            spans.give_back(index * PIECE, PIECE);
        }
        assert_eq!(spans.largest(), 4 * PIECE);
        assert_eq!(spans.by_start.len(), 2);
        assert_eq!(spans.take(4 * PIECE), Some((0, false)));
        assert_eq!(spans.take(PIECE + GRAIN), None);
        assert_eq!(spans.take(PIECE), Some((9 * PIECE, false)));
    }

    /// Against a plain map of bytes: the slow twin.
    #[test]
    fn spans_never_overlap() {
        const GRAINS: usize = 300;
        let mut spans = FreeSpans::new(GRAINS * GRAIN);
        let mut used = [false; GRAINS];
        let mut held: Vec<(usize, usize)> = Vec::new();
        let mut random = 12345_u64;
        let mut next = |limit: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % limit
        };
        let mut failures = 0;
        for _ in 0..20_000 {
            if next(2) == 0 {
                let size = next(6);
                let grains = 1 + next(1 << size);
                let run = used.split(|used| *used).map(<[bool]>::len).max().unwrap_or(0);
                assert_eq!(spans.largest(), run * GRAIN);
                match spans.take(grains * GRAIN) {
                    Some((start, _)) => {
                        let range = start / GRAIN..start / GRAIN + grains;
                        assert!(used[range.clone()].iter().all(|used| !used));
                        used[range].fill(true);
                        held.push((start, grains));
                    }
                    None => {
                        assert!(run < grains, "{grains} fit into {run}");
                        failures += 1;
                    }
                }
            } else if !held.is_empty() {
                let (start, grains) = held.swap_remove(next(held.len()));
                spans.give_back(start, grains * GRAIN);
                used[start / GRAIN..start / GRAIN + grains].fill(false);
            }
        }
        assert!(failures > 100, "{failures} requests found no room");
    }

    #[test]
    #[should_panic(expected = "came back twice")]
    fn a_span_comes_back_once() {
        let mut spans = FreeSpans::new(8 * GRAIN);
        let (start, _) = spans.take(2 * GRAIN).expect("room");
        spans.give_back(start, 2 * GRAIN);
        spans.give_back(start, 2 * GRAIN);
    }
}
