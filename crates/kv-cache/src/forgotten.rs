//! Was a block cached once, and made room? Marks of the blocks evicted last, for explanations only:
//! a mark names the namespace and all tokens to the end of its block in 64 bits, so nobody learns
//! of texts that are not in the own namespace, and two that are equal by chance mislead nobody but
//! a reader of explanations.

use messages::{BlockIndex, CacheNamespace, TokenId};

#[derive(Clone, Debug)]
pub(crate) struct Forgotten {
    /// By block in the tree.
    marks: Vec<u64>,
    /// Of evicted blocks, each at a place that its mark tells; 0: none. The last one stays.
    evicted: Vec<u64>,
}

/// Names a block's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    pub(crate) fn of_namespace(namespace: &CacheNamespace) -> Self {
        let CacheNamespace { tenant, salt, adapter } = namespace;
        let parts = [tenant, salt, adapter];
        let bytes = parts.iter().flat_map(|part| part.bytes().map(u64::from).chain([256]));
        Self(bytes.fold(0, mix))
    }

    #[must_use]
    pub(crate) fn then(self, tokens: &[TokenId]) -> Self {
        Self(tokens.iter().fold(mix(self.0, 1), |mark, &token| mix(mark, u64::from(token))))
    }

    /// 0 says that there is none.
    fn stored(self) -> u64 {
        self.0.max(1)
    }
}

impl Forgotten {
    pub(crate) fn new(block_count: usize) -> Self {
        Self { marks: vec![0; block_count], evicted: vec![0; block_count.next_power_of_two()] }
    }

    pub(crate) fn mark(&self, block: BlockIndex) -> Mark {
        Mark(self.marks[block.0 as usize])
    }

    /// A block is in the tree.
    pub(crate) fn enters(&mut self, block: BlockIndex, mark: Mark) {
        self.marks[block.0 as usize] = mark.0;
        if self.was_evicted(mark) {
            let place = self.place(mark);
            self.evicted[place] = 0;
        }
    }

    /// A block is out of it.
    pub(crate) fn leaves(&mut self, block: BlockIndex) {
        let mark = self.mark(block);
        let place = self.place(mark);
        self.evicted[place] = mark.stored();
    }

    pub(crate) fn was_evicted(&self, mark: Mark) -> bool {
        self.evicted[self.place(mark)] == mark.stored()
    }

    fn place(&self, mark: Mark) -> usize {
        (mark.0 >> 32) as usize & (self.evicted.len() - 1)
    }
}

/// Multiplication by 2^64 / golden ratio (Knuth, volume 3, 6.4), folded after each word.
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 29
}
