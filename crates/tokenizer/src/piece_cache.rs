//! Which tokens did this piece become the last time?
//!
//! Text repeats its words: on English prose and code nineteen pieces of twenty were seen before.
//! A table keeps short pieces with their tokens, one place for each hash; a newcomer replaces what
//! was there. It doubles when as many were kept as it has places, up to the size it may have. So
//! memory is bounded whatever the text, a short text takes little of it, nothing is ever searched
//! for long, and a text made to miss costs a merge a piece, as without the table.
//!
//! The hash has a random seed, and entries are compared byte by byte: a table that texts of several
//! people share gives nothing away but, to a clock that tells nanoseconds, that a word is common.

use crate::token_table::{fold, random_seed};

/// Longer pieces are rare, and are merged.
pub(crate) const PIECE_BYTES_MAX: usize = 16;
const TOKENS_MAX: usize = 3;

/// 512 KiB, which a core's own cache has room for.
const ENTRIES_FIRST: usize = (512 << 10) / size_of::<Entry>();

/// Half a cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
struct Entry {
    key: (u64, u64),
    /// 0: nothing here yet.
    length: u8,
    count: u8,
    tokens: [u32; TOKENS_MAX],
}

const _: () = assert!(size_of::<Entry>() == 32);

#[derive(Debug, Default)]
pub(crate) struct PieceCache {
    seed: u64,
    /// None, or a power of two.
    entries: Vec<Entry>,
    /// What it may have.
    entries_max: usize,
    /// Pieces kept since it has this size.
    kept: usize,
    hits: u64,
    misses: u64,
}

/// A piece that may be in the table, and its place there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    key: (u64, u64),
    length: u8,
    index: usize,
}

impl PieceCache {
    /// A table of at most `bytes`, perhaps none.
    pub(crate) fn new(bytes: usize) -> PieceCache {
        let most = bytes / size_of::<Entry>();
        let entries_max = if most == 0 { 0 } else { 1 << most.ilog2() };
        let entries = vec![Entry::default(); entries_max.min(ENTRIES_FIRST)];
        PieceCache { seed: random_seed(), entries, entries_max, kept: 0, hits: 0, misses: 0 }
    }

    /// Where this piece is or would be; `None` for one that is never kept.
    pub(crate) fn place(&self, piece: &[u8]) -> Option<Place> {
        let length = piece.len();
        if length == 0 || length > PIECE_BYTES_MAX || self.entries.is_empty() {
            return None;
        }
        let (key, length) = (key_of(piece), length as u8);
        Some(Place { key, length, index: self.index(key, length) })
    }

    fn index(&self, (low, high): (u64, u64), length: u8) -> usize {
        let mixed = fold(low ^ self.seed, (high ^ self.seed.rotate_left(32)) | 1);
        let hash = fold(mixed ^ u64::from(length), 0x9E37_79B9_7F4A_7C15 ^ self.seed);
        hash as usize & (self.entries.len() - 1)
    }

    /// The tokens of the piece, if it is here.
    pub(crate) fn find(&mut self, place: Place) -> Option<&[u32]> {
        let entry = &self.entries[place.index];
        if entry.length == place.length && entry.key == place.key {
            self.hits += 1;
            Some(&entry.tokens[..usize::from(entry.count)])
        } else {
            self.misses += 1;
            None
        }
    }

    /// Hits and misses since the last call.
    pub(crate) fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.hits), std::mem::take(&mut self.misses))
    }

    /// Keeps a piece's tokens, if they are few.
    pub(crate) fn keep(&mut self, place: Place, found: &[u32]) {
        let mut tokens = [0; TOKENS_MAX];
        let Some(part) = tokens.get_mut(..found.len()) else { return };
        part.copy_from_slice(found);
        let (key, length, count) = (place.key, place.length, found.len() as u8);
        // A place that was found before the table grew is one of the smaller table.
        let index = self.index(key, length);
        self.entries[index] = Entry { key, length, count, tokens };
        self.kept += 1;
        if self.kept >= self.entries.len() && self.entries.len() < self.entries_max {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let more = vec![Entry::default(); 2 * self.entries.len()];
        let before = std::mem::replace(&mut self.entries, more);
        self.kept = 0;
        for entry in before.into_iter().filter(|entry| entry.length > 0) {
            let index = self.index(entry.key, entry.length);
            self.entries[index] = entry;
        }
    }
}

/// The piece as two numbers, which may overlap; with its length they tell it from all others.
fn key_of(piece: &[u8]) -> (u64, u64) {
    let word = |bytes: &[u8]| {
        let bytes = bytes.first_chunk::<8>().expect("invariant: eight bytes or more");
        u64::from_le_bytes(*bytes)
    };
    let half = |bytes: &[u8]| {
        let bytes = bytes.first_chunk::<4>().expect("invariant: four bytes or more");
        u64::from(u32::from_le_bytes(*bytes))
    };
    match piece.len() {
        8.. => (word(piece), word(&piece[piece.len() - 8..])),
        4..8 => (half(piece), half(&piece[piece.len() - 4..])),
        length => {
            let at = |index: usize| u64::from(piece[index.min(length - 1)]);
            (at(0) | at(1) << 8 | at(2) << 16, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_was_kept_is_found_and_nothing_else() {
        let mut cache = PieceCache::new(1 << 16);
        let mut naive = std::collections::BTreeMap::new();
        let mut found = 0;
        for round in 0..3 {
            for number in 0..5000u32 {
                let text = format!("{number:x}").repeat(1 + number as usize % 4);
                let Some(place) = cache.place(text.as_bytes()) else { continue };
                match cache.find(place) {
                    Some(tokens) => {
                        assert_eq!(Some(&tokens.to_vec()), naive.get(&text), "{text}");
                        found += 1;
                    }
                    None => {
                        let tokens: Vec<u32> = (0..number % 5).map(|n| number + n).collect();
                        cache.keep(place, &tokens);
                        naive.insert(text, tokens);
                    }
                }
            }
            assert!(round == 0 || found > 0);
        }
        assert_eq!(cache.hits, found);
    }

    #[test]
    fn memory_is_taken_as_pieces_come() {
        let mut cache = PieceCache::new(1 << 30);
        let keep = |cache: &mut PieceCache, numbers: std::ops::Range<u32>| {
            for number in numbers {
                let place = cache.place(&number.to_le_bytes()).unwrap();
                cache.keep(place, &[number]);
            }
        };
        keep(&mut cache, 0..1000);
        assert_eq!(cache.entries.len(), ENTRIES_FIRST, "a short text");
        keep(&mut cache, 1000..100_000);
        let found = (0..100_000u32).filter(|number| {
            let place = cache.place(&number.to_le_bytes()).unwrap();
            cache.find(place) == Some(&[*number])
        });
        let found = found.count();
        let places = cache.entries.len();
        assert_eq!(places, 4 * ENTRIES_FIRST, "twice as large behind 16,384 and 49,152");
        // Of pieces at random, 24,000 were left in 32,768 places, and 51,000 came behind them:
        // 1 - exp(-75 / 65.5) of the places have one. Without what moved it were 35,000.
        assert!(found > 42_000, "{found}: what was kept moves when it grows");
        let mut small = PieceCache::new(1 << 20);
        keep(&mut small, 0..200_000);
        assert_eq!(small.entries.len() * size_of::<Entry>(), 1 << 20);
    }

    #[test]
    fn keys_of_a_length_are_unique() {
        for length in 1..=PIECE_BYTES_MAX {
            for changed in 0..length {
                let mut other = vec![7; length];
                other[changed] = 8;
                assert_ne!(key_of(&other), key_of(&vec![7; length]), "{length} {changed}");
            }
        }
    }

    #[test]
    fn a_table_of_no_bytes_keeps_nothing() {
        assert!(PieceCache::new(31).place(b"a").is_none());
        assert!(PieceCache::new(1 << 12).place(&[b'a'; 17]).is_none());
        assert!(PieceCache::new(1 << 12).place(b"").is_none());
    }
}
