//! How does a step reach the device? As one table of words, at fixed places, so that recorded
//! launches find it.
//!
//! The front (counts, rows, tokens, tiles of attention) is copied whole; the work list of attention
//! and the block tables behind it as far as they are used.

use device::{Capacity, RowInput, StepInputs, TokenInput};
use ops::paged_attention::Window;

use crate::gpu::Address;

/// Positions that a warp attends to at once.
const ATTENTION_BLOCK: u32 = 64;
/// Tiles of a row from which warps share its keys and values.
const SHARED_TILES_MIN: u32 = 3;
/// Queries of a tile: tokens times the heads that share keys.
pub(crate) const TILE_QUERIES: u32 = 16;
/// An item whose warps take a tile each, from its first position to its last.
const WHOLE: u32 = u32::MAX;
/// `TokenInput::Slot` as a word.
const IS_SLOT: u32 = 1 << 31;

/// Where each table starts, in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLayout {
    pub(crate) rows: usize,
    pub(crate) token_rows: usize,
    pub(crate) sources: usize,
    pub(crate) picks: usize,
    pub(crate) sampled_rows: usize,
    pub(crate) tiles: usize,
    pub(crate) items: usize,
    pub(crate) blocks: usize,
    pub(crate) end: usize,
    tokens_max: usize,
    /// Steps with prompts in them.
    pub(crate) may_share: bool,
}

/// Which kernel attends, as far as its lists are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttentionForm {
    /// Few tokens: 4 warps, each by itself.
    Apart,
    /// Prompts too: 6 warps, which may share the keys and values of a row.
    Shared,
}

impl AttentionForm {
    /// Of a block of threads.
    pub(crate) fn warps(self) -> u32 {
        match self {
            Self::Apart => 4,
            Self::Shared => 6,
        }
    }
}

pub(crate) const HEADER_WORDS: usize = 8;
/// Of the header: where the counts of tokens and of sampled tokens stand.
pub(crate) const TOKENS_WORD: usize = 0;
pub(crate) const SAMPLED_WORD: usize = 1;
pub(crate) const SAMPLED_ROWS_WORD: usize = 2;
const ITEMS_WORD: usize = 3;

/// Most words of block tables in one step: 64 MB, 128 sequences of 4 million positions each.
const BLOCK_WORDS_MAX: usize = 16 << 20;

impl StepLayout {
    /// For steps of at most `tokens_max` tokens.
    pub(crate) fn new(capacity: &Capacity, tokens_max: usize, may_share: bool) -> Self {
        let rows_max = tokens_max.min(capacity.slots as usize);
        let sampled_max = tokens_max.min(capacity.sampled_tokens_max() as usize);
        let mut next = HEADER_WORDS;
        let mut take = |words: usize| {
            let start = next;
            next += words.next_multiple_of(4);
            start
        };
        let rows = take(4 * rows_max);
        let token_rows = take(tokens_max);
        let sources = take(tokens_max);
        let picks = take(sampled_max);
        let sampled_rows = take(8 * rows_max);
        let tiles = take(4 * tokens_max);
        let items = take(4 * (tokens_max + SPLIT_ITEMS_MAX));
        let table = rows_max.saturating_mul(capacity.block_count as usize).min(BLOCK_WORDS_MAX);
        let blocks = take(table);
        Self {
            rows,
            token_rows,
            sources,
            picks,
            sampled_rows,
            tiles,
            items,
            blocks,
            end: next,
            tokens_max,
            may_share,
        }
    }
}

/// Items of split tiles in one step; what is beyond them is attended whole.
const SPLIT_ITEMS_MAX: usize = 4096;
/// Room for the partial states of split tiles: of 32 sequences of 8 KV heads with 4 queries each at
/// 4,096 positions.
pub(crate) const PARTIAL_STATES_MAX: usize = 1 << 16;
/// Enough warps for the device's multiprocessors, several on each: more work is not split.
const WARPS_WANTED: u32 = 1024;

/// What attention is like in this model: the same in all layers but for the window, where the
/// widest counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionWork {
    /// Heads that share keys and are attended together.
    pub(crate) group: u32,
    /// Such groups.
    pub(crate) heads_kv: u32,
    pub(crate) window: Window,
}

/// A step, as words.
pub(crate) struct StepTable {
    pub(crate) words: Vec<u32>,
    /// Words in use from the start, of the items, and of the blocks.
    pub(crate) used: [std::ops::Range<usize>; 3],
    /// The kernel that the lists are for.
    pub(crate) attention: AttentionForm,
}

impl StepTable {
    pub(crate) fn new(layout: &StepLayout) -> Self {
        Self {
            words: vec![0; layout.end],
            used: [0..0, 0..0, 0..0],
            attention: AttentionForm::Apart,
        }
    }

    /// Writes a step.
    ///
    /// # Errors
    /// The number of block table entries where they are too many.
    pub(crate) fn fill(
        &mut self,
        layout: &StepLayout,
        work: &AttentionWork,
        inputs: &StepInputs,
        is_constrained: &dyn Fn(u32) -> bool,
    ) -> Result<(), usize> {
        assert!(inputs.tokens.len() <= layout.tokens_max, "the layout is large enough");
        if inputs.blocks.len() > layout.end - layout.blocks {
            return Err(inputs.blocks.len());
        }
        let words = &mut self.words;
        let (mut first, mut sampled_rows) = (0u32, 0);
        for (index, row) in inputs.rows.iter().enumerate() {
            let entry = [first, row.start, row.blocks_start, row.slot];
            words[layout.rows + 4 * index..][..4].copy_from_slice(&entry);
            let tokens = layout.token_rows + first as usize;
            words[tokens..tokens + row.length as usize].fill(index as u32);
            first += row.length;
        }
        for (word, token) in words[layout.sources..].iter_mut().zip(&inputs.tokens) {
            *word = match *token {
                TokenInput::Known(token) => token & !IS_SLOT,
                TokenInput::Slot(slot) => slot | IS_SLOT,
            };
        }
        let mut sampled = 0;
        for (place, token) in inputs.sampled_tokens().enumerate() {
            words[layout.picks + place] = token;
            sampled += 1;
        }
        for row in inputs.sampled_rows() {
            // Under a grammar a guess is checked when what may follow the one before it is known.
            let checked = !is_constrained(row.slot);
            let proposals = if checked { row.proposals.len() as u32 } else { 0 };
            // A row's proposals are the tokens after the first that is picked.
            let first = words[layout.picks + row.place] + 1;
            let entry = [row.slot, row.sample_index, row.place as u32, first, proposals, 0, 0, 0];
            words[layout.sampled_rows + 8 * sampled_rows..][..8].copy_from_slice(&entry);
            sampled_rows += 1;
        }
        let items = self.list_attention(layout, work, inputs);
        let words = &mut self.words;
        words[layout.blocks..][..inputs.blocks.len()].copy_from_slice(&inputs.blocks);
        words[TOKENS_WORD] = inputs.tokens.len() as u32;
        words[SAMPLED_WORD] = sampled;
        words[SAMPLED_ROWS_WORD] = sampled_rows as u32;
        words[ITEMS_WORD] = items as u32;
        self.used = [
            0..layout.items,
            layout.items..layout.items + 4 * items,
            layout.blocks..layout.blocks + inputs.blocks.len(),
        ];
        Ok(())
    }

    /// Cuts rows into tiles, and long tiles of steps with few of them into blocks of positions. How
    /// work is cut changes no result, so it may depend on the step.
    fn list_attention(
        &mut self,
        layout: &StepLayout,
        work: &AttentionWork,
        inputs: &StepInputs,
    ) -> usize {
        let per_tile = TILE_QUERIES / work.group;
        let tiles_of = |length: u32| length.div_ceil(per_tile);
        let tiles_all: u32 = inputs.rows.iter().map(|row| tiles_of(row.length)).sum();
        let is_split = tiles_all * work.heads_kv < WARPS_WANTED;
        let is_long = |row: &RowInput| tiles_of(row.length) >= SHARED_TILES_MIN;
        self.attention = if layout.may_share && inputs.rows.iter().any(is_long) {
            AttentionForm::Shared
        } else {
            AttentionForm::Apart
        };
        let warps = self.attention.warps();
        let (mut tile, mut items, mut states) = (0u32, 0usize, 0usize);
        // Whole tiles share items, of other rows too: each warp looks up its own.
        let mut whole_since = 0;
        for (index, row) in inputs.rows.iter().enumerate() {
            let is_shared = self.attention == AttentionForm::Shared && is_long(row);
            if is_shared {
                items = self.list_whole(layout, items, whole_since..tile, false);
                whole_since = tile;
            }
            for first in (0..row.length).step_by(per_tile as usize) {
                let tokens = per_tile.min(row.length - first);
                let position = row.start + first;
                let begin = work.window.first(position) / ATTENTION_BLOCK;
                let blocks = (position + tokens - 1) / ATTENTION_BLOCK + 1 - begin;
                let own_items = blocks.div_ceil(warps);
                let own_states = (blocks * work.heads_kv * tokens * work.group) as usize;
                let fits = items + own_items as usize <= SPLIT_ITEMS_MAX
                    && states + own_states <= PARTIAL_STATES_MAX;
                let entry = [index as u32, first, tokens, states as u32];
                self.words[layout.tiles + 4 * tile as usize..][..4].copy_from_slice(&entry);
                if is_split && fits && blocks > 1 {
                    items = self.list_whole(layout, items, whole_since..tile, is_shared);
                    whole_since = tile + 1;
                    for item in 0..own_items {
                        let entry = [tile, own_items, begin + item * warps, 0];
                        self.words[layout.items + 4 * items..][..4].copy_from_slice(&entry);
                        items += 1;
                    }
                    states += own_states;
                }
                tile += 1;
            }
            if is_shared {
                items = self.list_whole(layout, items, whole_since..tile, true);
                whole_since = tile;
            }
        }
        self.list_whole(layout, items, whole_since..tile, false)
    }

    fn list_whole(
        &mut self,
        layout: &StepLayout,
        mut items: usize,
        tiles: std::ops::Range<u32>,
        is_shared: bool,
    ) -> usize {
        let warps = self.attention.warps();
        for first in tiles.clone().step_by(warps as usize) {
            let count = warps.min(tiles.end - first);
            let entry = [first, count, WHOLE, u32::from(is_shared)];
            self.words[layout.items + 4 * items..][..4].copy_from_slice(&entry);
            items += 1;
        }
        items
    }
}

/// A table's address when the layout lies at `base`.
pub(crate) fn at(base: Address, word: usize) -> Address {
    base.plus(4 * word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const CAPACITY: Capacity = Capacity {
        step_tokens_max: 512,
        slots: 8,
        proposed_tokens_max: 4,
        block_count: 64,
        block_tokens: 32,
        states: 0,
    };
    const WORK: AttentionWork = AttentionWork { group: 4, heads_kv: 2, window: Window::Full };

    fn row(slot: u32, start: u32, length: u32, proposed: u32) -> RowInput {
        let blocks_count = (start + length).div_ceil(32);
        let (blocks_start, sample_index) = (0, Some(3));
        RowInput { slot, start, length, blocks_start, blocks_count, sample_index, proposed }
    }

    fn filled(rows: Vec<RowInput>, work: &AttentionWork) -> (StepTable, StepLayout) {
        let layout = StepLayout::new(&CAPACITY, 512, false);
        let mut table = StepTable::new(&layout);
        let mut inputs = StepInputs { rows, ..StepInputs::default() };
        let tokens: u32 = inputs.rows.iter().map(|row| row.length).sum();
        inputs.tokens = (0..tokens).map(TokenInput::Known).collect();
        inputs.tokens[0] = TokenInput::Slot(5);
        inputs.blocks = (0..40).collect();
        table.fill(&layout, work, &inputs, &|slot| slot == 7).unwrap();
        (table, layout)
    }

    /// Every tile of every row is listed once: whole, or all of its blocks.
    fn covered(table: &StepTable, layout: &StepLayout) -> Vec<(u32, u32)> {
        let mut blocks = Vec::new();
        for item in 0..table.words[ITEMS_WORD] as usize {
            let entry = &table.words[layout.items + 4 * item..][..4];
            match entry[2] {
                WHOLE => blocks.extend((0..entry[1]).map(|tile| (entry[0] + tile, WHOLE))),
                first => blocks.push((entry[0], first)),
            }
        }
        blocks.sort_unstable();
        blocks
    }

    #[test]
    fn counts_rows_and_samples_stand_where_kernels_look() {
        let (table, layout) = filled(vec![row(2, 10, 3, 2), row(6, 0, 1, 0)], &WORK);
        assert_eq!(&table.words[..3], [4, 4, 2]);
        assert_eq!(&table.words[layout.rows..][..8], [0, 10, 0, 2, 3, 0, 0, 6]);
        assert_eq!(&table.words[layout.token_rows..][..4], [0, 0, 0, 1]);
        assert_eq!(&table.words[layout.sources..][..4], [5 | IS_SLOT, 1, 2, 3]);
        assert_eq!(&table.words[layout.picks..][..4], [0, 1, 2, 3]);
        let sampled = &table.words[layout.sampled_rows..][..16];
        assert_eq!(sampled, [2, 3, 0, 1, 2, 0, 0, 0, 6, 3, 3, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn warps_share_the_tiles_of_one_row() {
        let layout = StepLayout::new(&CAPACITY, 512, true);
        // Two decodes, 33 tokens in 9 tiles, a decode; none beyond a block of positions.
        let rows = vec![row(0, 9, 1, 0), row(1, 9, 1, 0), row(2, 20, 33, 0), row(3, 9, 1, 0)];
        let mut table = StepTable::new(&layout);
        let mut inputs = StepInputs { rows, ..StepInputs::default() };
        inputs.tokens = (0..36).map(TokenInput::Known).collect();
        inputs.blocks = (0..40).collect();
        table.fill(&layout, &WORK, &inputs, &|slot| slot == 7).unwrap();
        let items = &table.words[layout.items..][..4 * table.words[ITEMS_WORD] as usize];
        let expected = [[0, 2, WHOLE, 0], [2, 6, WHOLE, 1], [8, 3, WHOLE, 1], [11, 1, WHOLE, 0]];
        assert_eq!(items.as_chunks::<4>().0, expected);
    }

    #[test]
    fn all_tiles_are_attended_to() {
        // A decode at 600 positions: ten blocks, in three items; a short one stays whole.
        let (table, layout) = filled(vec![row(0, 600, 1, 0), row(1, 20, 1, 0)], &WORK);
        assert_eq!(covered(&table, &layout), [(0, 0), (0, 4), (0, 8), (1, WHOLE)]);
        // A prompt of 41 tokens at 4 a tile: 11 tiles, the last ones beyond a block.
        let (table, layout) = filled(vec![row(0, 40, 41, 0)], &WORK);
        let split = (0..11u32).filter(|tile| (40 + 4 * tile + 3).min(80) >= 64);
        let expected =
            (0..11).map(|tile| (tile, if split.clone().any(|t| t == tile) { 0 } else { WHOLE }));
        assert_eq!(covered(&table, &layout), expected.collect::<Vec<_>>());
        let window = AttentionWork { window: Window::Sliding(100), ..WORK };
        let (table, layout) = filled(vec![row(0, 600, 1, 0)], &window);
        assert_eq!(covered(&table, &layout), [(0, 7)]);
    }
}
