//! Which cached block is given up first?
//!
//! The one of least value among those that nobody holds and no other cached block follows:
//!
//! > value = age + cost, cost = [`BLOCK_COST`] + position of the block's first token
//!
//! `age` is the value of the block evicted last, so it grows as the cache turns over and a block
//! touched recently is worth more than one touched before: recency, without a clock. The cost is
//! what computing the block again takes: its linear part is the same for every block, its
//! attention grows with the position, and the two are equal at `6 * width` positions (12 * width^2
//! multiply-adds a layer and token against 2 * width a position), 3,456 for a width of 576. A block
//! there stays twice as long as one at the start. Blocks of equal value leave in the order in which
//! they were last used. This is the GreedyDual algorithm (Young 1994,
//! <https://arxiv.org/abs/cs/0205033>).

use messages::BlockIndex;

/// Positions at which attention costs as much as the rest of a token: `6 * 683`.
const BLOCK_COST: u64 = 4096;
const NOWHERE: u32 = u32::MAX;

/// What a block is worth; smaller goes first. The number of its last use breaks ties, and is never
/// the same for two blocks that could be evicted at once.
type Value = (u64, u64, BlockIndex);

/// Blocks that may be evicted, in a heap with the least valuable on top. All its memory is
/// allocated at the start.
#[derive(Clone, Debug)]
pub(crate) struct EvictionHeap {
    heap: Vec<Value>,
    /// Where each block is in `heap`.
    places: Vec<u32>,
    /// What each block was worth when it was last let go.
    values: Vec<Value>,
    age: u64,
    uses: u64,
}

impl EvictionHeap {
    pub(crate) fn new(block_count: usize) -> Self {
        Self {
            heap: Vec::with_capacity(block_count),
            places: vec![NOWHERE; block_count],
            values: vec![(0, 0, BlockIndex(0)); block_count],
            age: 0,
            uses: 0,
        }
    }

    /// A table is about to let go of its blocks: all of them are used at the same time.
    pub(crate) fn next_use(&mut self) {
        self.uses += 1;
    }

    /// The last holder of `block` lets go of it; its first token is at `position`.
    pub(crate) fn value(&mut self, block: BlockIndex, position: u64) {
        let value = self.age + BLOCK_COST + position;
        self.values[block.0 as usize] = (value, self.uses, block);
    }

    pub(crate) fn push(&mut self, block: BlockIndex) {
        assert!(!self.contains(block), "{block:?} is to be evicted twice");
        self.places[block.0 as usize] = self.heap.len() as u32;
        self.heap.push(self.values[block.0 as usize]);
        self.rise(self.heap.len() - 1);
    }

    /// Takes `block` out if it is here.
    pub(crate) fn remove(&mut self, block: BlockIndex) {
        if !self.contains(block) {
            return;
        }
        let place = std::mem::replace(&mut self.places[block.0 as usize], NOWHERE) as usize;
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            let moved = self.heap[place].2;
            self.places[moved.0 as usize] = place as u32;
            self.rise(place);
            self.sink(self.places[moved.0 as usize] as usize);
        }
    }

    /// Takes out the least valuable block.
    pub(crate) fn pop(&mut self) -> Option<BlockIndex> {
        let &(value, _, block) = self.heap.first()?;
        // A block freed from behind a more valuable one may be worth less than that was.
        self.age = self.age.max(value);
        self.remove(block);
        Some(block)
    }

    pub(crate) fn contains(&self, block: BlockIndex) -> bool {
        self.places[block.0 as usize] != NOWHERE
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let children = [2 * place + 1, 2 * place + 2].into_iter();
            let least = children.filter(|&c| c < self.heap.len()).min_by_key(|&c| self.heap[c]);
            let Some(child) = least.filter(|&child| self.heap[child] < self.heap[place]) else {
                return;
            };
            self.swap(place, child);
            place = child;
        }
    }

    fn swap(&mut self, left: usize, right: usize) {
        self.heap.swap(left, right);
        for place in [left, right] {
            self.places[self.heap[place].2.0 as usize] = place as u32;
        }
    }

    /// # Panics
    /// When a parent is worth more than its child, or a place is wrong.
    pub(crate) fn audit(&self) {
        for (place, &(_, _, block)) in self.heap.iter().enumerate() {
            assert_eq!(self.places[block.0 as usize] as usize, place, "the place of {block:?}");
            let parent = place.saturating_sub(1) / 2;
            assert!(
                self.heap[parent] <= self.heap[place],
                "{block:?} is worth less than those above"
            );
        }
        let placed = self.places.iter().filter(|&&place| place != NOWHERE).count();
        assert_eq!(placed, self.heap.len(), "a block has a place and is not there");
    }
}
