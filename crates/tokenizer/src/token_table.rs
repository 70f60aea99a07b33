//! Which bytes belong to an id, and which id to these bytes?
//!
//! Two flat structures instead of one string per token: loading 49,152 tokens costs two
//! allocations, and looking a slice of the user's text up copies nothing.

use std::hash::{BuildHasher, RandomState};

/// Byte strings back to back, found by id.
#[derive(Debug, Default, Clone)]
pub(crate) struct ByteArena {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl ByteArena {
    pub(crate) fn with_capacity(strings: usize, bytes: usize) -> ByteArena {
        ByteArena { data: Vec::with_capacity(bytes), ends: Vec::with_capacity(strings) }
    }

    /// Appends the string of the next id. The caller bounds the total under `u32::MAX` bytes.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.data);
        let end = u32::try_from(self.data.len()).expect("invariant: texts were bounded before");
        self.ends.push(end);
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.data[start..end])
    }
}

/// A random number for each table, so that a file cannot be made to collide.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// Multiplies to 128 bits and folds the halves: every input bit reaches every output bit.
pub(crate) fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product as u64) ^ ((product >> 64) as u64)
}

/// An odd constant with no pattern (the golden ratio in 64 bits).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let multiplier = seed.rotate_left(32) | 1;
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(SPREAD);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("invariant: chunks of eight"));
        state = fold(state ^ word, multiplier);
    }
    let mut tail = 0u64;
    for &byte in chunks.remainder() {
        tail = tail << 8 | u64::from(byte);
    }
    fold(fold(state ^ tail, multiplier), SPREAD ^ seed)
}

const EMPTY: u32 = u32::MAX;

/// Finds the id of a byte string of an arena. Open addressing, at most half full.
#[derive(Debug, Clone)]
pub(crate) struct TokenTable {
    seed: u64,
    slots: Vec<u32>,
}

impl TokenTable {
    pub(crate) fn with_capacity(strings: usize) -> TokenTable {
        let slots = (strings.max(1) * 2).next_power_of_two();
        TokenTable { seed: random_seed(), slots: vec![EMPTY; slots] }
    }

    /// The slot where these bytes are, or the free one where they would go.
    fn slot(&self, arena: &ByteArena, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash_bytes(self.seed, bytes) as usize & mask;
        loop {
            let id = self.slots[slot];
            if id == EMPTY || arena.get(id) == Some(bytes) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    pub(crate) fn find(&self, arena: &ByteArena, bytes: &[u8]) -> Option<u32> {
        let id = self.slots[self.slot(arena, bytes)];
        (id != EMPTY).then_some(id)
    }

    /// Enters an id of the arena, unless its bytes are there already: then `Err(that id)`.
    /// The caller enters no more ids than the capacity it asked for.
    pub(crate) fn insert(&mut self, arena: &ByteArena, id: u32) -> Result<(), u32> {
        let bytes = arena.get(id).expect("invariant: only ids of the arena are entered");
        let slot = self.slot(arena, bytes);
        match self.slots[slot] {
            EMPTY => {
                self.slots[slot] = id;
                Ok(())
            }
            first => Err(first),
        }
    }
}

const NO_PAIR: u64 = u64::MAX;

/// Finds the rank of a pair of ids. Open addressing, at most half full.
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    seed: u64,
    slots: Vec<(u64, u32)>,
}

impl PairTable {
    pub(crate) fn with_capacity(pairs: usize) -> PairTable {
        let slots = (pairs.max(1) * 2).next_power_of_two();
        PairTable { seed: random_seed(), slots: vec![(NO_PAIR, 0); slots] }
    }

    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = fold(key ^ self.seed, SPREAD ^ self.seed.rotate_left(17)) as usize & mask;
        while self.slots[slot].0 != key && self.slots[slot].0 != NO_PAIR {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << 32 | u64::from(right)
    }

    pub(crate) fn find(&self, left: u32, right: u32) -> Option<u32> {
        let (key, rank) = self.slots[self.slot(PairTable::key(left, right))];
        (key != NO_PAIR).then_some(rank)
    }

    /// Enters a pair; the first rank given to a pair stays. Ids are below `u32::MAX`.
    pub(crate) fn insert(&mut self, left: u32, right: u32, rank: u32) {
        let key = PairTable::key(left, right);
        let slot = self.slot(key);
        if self.slots[slot].0 == NO_PAIR {
            self.slots[slot] = (key, rank);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn finds_what_was_entered_and_nothing_else() {
        let words: Vec<String> =
            (0..5000).map(|n| format!("{n:x}-{}", "z".repeat(n % 19))).collect();
        let mut arena = ByteArena::default();
        let mut table = TokenTable::with_capacity(words.len());
        for (id, word) in (0u32..).zip(&words) {
            arena.push(|data| data.extend_from_slice(word.as_bytes()));
            table.insert(&arena, id).unwrap();
        }
        for (id, word) in (0u32..).zip(&words) {
            assert_eq!(table.find(&arena, word.as_bytes()), Some(id));
            assert_eq!(table.find(&arena, format!("{word}!").as_bytes()), None);
        }
        arena.push(|data| data.extend_from_slice(words[7].as_bytes()));
        assert_eq!(table.insert(&arena, 5000), Err(7));
    }

    #[test]
    fn the_first_rank_of_a_pair_stays() {
        let mut pairs = PairTable::with_capacity(3);
        pairs.insert(1, 2, 10);
        pairs.insert(2, 1, 11);
        pairs.insert(1, 2, 12);
        assert_eq!(pairs.find(1, 2), Some(10));
        assert_eq!(pairs.find(2, 1), Some(11));
        assert_eq!(pairs.find(2, 2), None);
    }
}
