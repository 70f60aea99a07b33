//! How does a step reach the device? As one table of words, at fixed places, so that recorded
//! launches find it.
//!
//! The front (counts, rows, tokens, tiles of attention) is copied whole; the work list of attention
//! and the block tables behind it as far as they are used.

use device::{Capacity, RowInput, StepInputs, TokenInput};
use ops::paged_attention::Window;

use crate::gpu::Address;
use crate::memory::PAGE_TOKENS;

/// Positions that are merged before others are: 8 blocks of 64 (`kernels/paged_attention.cu`).
const STRETCH: u32 = 512;
/// Tiles of an item of the kernel for prompts, and those of a row from which it takes the row.
const WIDE_TILES: u32 = 8;
const WIDE_TILES_MIN: u32 = 8;
/// Queries of a tile: tokens times the heads that share keys.
pub(crate) const TILE_QUERIES: u32 = 16;
/// `TokenInput::Slot` as a word.
const IS_SLOT: u32 = 1 << 31;

/// Where each table starts, in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLayout {
    pub(crate) rows: usize,
    /// What ops that carry a state know of rows besides.
    pub(crate) carried: usize,
    pub(crate) token_rows: usize,
    pub(crate) sources: usize,
    /// Of each token: whether it is of its row's second text, and its adapter.
    pub(crate) texts: usize,
    pub(crate) adapters: usize,
    pub(crate) picks: usize,
    pub(crate) sampled_rows: usize,
    pub(crate) tiles: usize,
    pub(crate) items: usize,
    pub(crate) wide_items: usize,
    pub(crate) blocks: usize,
    pub(crate) end: usize,
    tokens_max: usize,
    block_count: usize,
    /// Prompts may be in these steps, and there is a kernel for them.
    pub(crate) has_wide: bool,
    /// Of blocks of threads that attend together: as many as run at once, where a kernel does that.
    pub(crate) teams: u32,
}

/// How many items of attention a step has, for each of its kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttentionItems {
    pub(crate) items: u32,
    pub(crate) wide_items: u32,
    /// Whether teams take the items, each a whole tile.
    pub(crate) by_teams: bool,
}

/// Steps of more tokens are not for teams: a number of tokens up to which launches are recorded of
/// their own (`RECORDED_TOKENS`).
pub(crate) const TEAM_TOKENS_MAX: usize = 8;
/// Stretches that a team attends at once: `TEAM_BLOCKS` of `kernels/paged_attention_team.cuh`.
const TEAM_STRETCHES: u32 = 2;
/// A team is faster than blocks of threads whose states pass through memory, on an H100, where it
/// does no more than so many such rounds.
const TEAM_ROUNDS_MAX: u32 = 2;

/// `AttentionItem` of `kernels/paged_attention.cu`.
const ITEM_WORDS: usize = 12;
pub(crate) const HEADER_WORDS: usize = 8;
/// Of the header: where the counts of tokens and of sampled tokens stand.
pub(crate) const TOKENS_WORD: usize = 0;
pub(crate) const SAMPLED_WORD: usize = 1;
pub(crate) const SAMPLED_ROWS_WORD: usize = 2;
const ITEMS_WORD: usize = 3;
const WIDE_ITEMS_WORD: usize = 5;
const ROWS_WORD: usize = 6;
/// `place` of a row that is not sampled, and the adapter of a sequence without one.
const NOT_SAMPLED_ROW: u32 = u32::MAX;
const NO_ADAPTER: u32 = u32::MAX;

/// Most words of block tables in one step: 64 MB, 128 sequences of 4 million positions each.
const BLOCK_WORDS_MAX: usize = 16 << 20;

impl StepLayout {
    /// For steps of at most `tokens_max` tokens.
    pub(crate) fn new(capacity: &Capacity, tokens_max: usize, has_wide: bool) -> Self {
        let rows_max = tokens_max.min(capacity.slots as usize);
        let sampled_max = tokens_max.min(capacity.sampled_tokens_max() as usize);
        let mut next = HEADER_WORDS;
        let mut take = |words: usize| {
            let start = next;
            next += words.next_multiple_of(4);
            start
        };
        let rows = take(4 * rows_max);
        let carried = take(4 * rows_max);
        let token_rows = take(tokens_max);
        let sources = take(tokens_max);
        let texts = take(tokens_max);
        let adapters = take(tokens_max);
        let picks = take(sampled_max);
        let sampled_rows = take(8 * rows_max);
        let tiles = take(4 * tokens_max);
        let items = take(ITEM_WORDS * (tokens_max + SPLIT_ITEMS_MAX));
        let wide_items = take(4 * tokens_max);
        let table = rows_max.saturating_mul(capacity.block_count as usize).min(BLOCK_WORDS_MAX);
        let blocks = take(table);
        Self {
            rows,
            carried,
            token_rows,
            sources,
            texts,
            adapters,
            picks,
            sampled_rows,
            tiles,
            items,
            wide_items,
            blocks,
            end: next,
            tokens_max,
            block_count: capacity.block_count as usize,
            has_wide,
            teams: 0,
        }
    }
}

/// Items of split tiles in one step; what is beyond them is attended whole.
const SPLIT_ITEMS_MAX: usize = 4096;
/// Room for the states of stretches of split tiles: of 64 sequences of 8 KV heads with 4 queries
/// each at 16,384 positions.
pub(crate) const PARTIAL_STATES_MAX: usize = 1 << 16;
/// As many items as four turns of 132 multiprocessors take, for all heads: more are made longer.
const ITEMS_WANTED: u32 = 4 * 132;

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

impl AttentionWork {
    /// How many positions the tokens of a row up to `end` see.
    fn seen_by(&self, row: &RowInput, end: u32) -> u32 {
        match self.window {
            Window::Whole => row.start + row.length,
            Window::Full | Window::Sliding(_) => end,
        }
    }
}

impl AttentionWork {
    /// Stretches that a row sees.
    fn stretches(&self, row: &RowInput) -> u32 {
        let begin = self.window.first(row.start) / STRETCH;
        (row.start + row.length - 1) / STRETCH + 1 - begin
    }

    /// Of the longest tile, if teams attend: where they are enough and rows are short.
    fn stretches_for_teams(&self, layout: &StepLayout, inputs: &StepInputs) -> Option<u32> {
        if layout.teams == 0 || inputs.tokens.len() > TEAM_TOKENS_MAX {
            return None;
        }
        let tiles = inputs.rows.iter().map(|row| row.length.div_ceil(TILE_QUERIES / self.group));
        let turns = (tiles.sum::<u32>() * self.heads_kv).div_ceil(layout.teams);
        let longest = inputs.rows.iter().map(|row| self.stretches(row)).max()?;
        let rounds = turns * longest.div_ceil(TEAM_STRETCHES);
        (rounds <= TEAM_ROUNDS_MAX).then_some(longest)
    }
}

/// What slots' owners know.
pub(crate) struct SlotFacts<'a> {
    pub(crate) is_constrained: &'a dyn Fn(u32) -> bool,
    /// Guesses of the slot's row before that were right, of a row by its place.
    pub(crate) right: &'a dyn Fn(usize) -> u32,
    /// The adapter of a slot's sequence.
    pub(crate) adapter: &'a dyn Fn(u32) -> Option<u32>,
    /// What ends the first of two texts in a row.
    pub(crate) separator: Option<u32>,
}

/// A step, as words.
pub(crate) struct StepTable {
    pub(crate) words: Vec<u32>,
    /// Words in use from the start, of both lists of items, and of the blocks.
    pub(crate) used: [std::ops::Range<usize>; 4],
    pub(crate) attention: AttentionItems,
}

impl StepTable {
    pub(crate) fn new(layout: &StepLayout) -> Self {
        Self {
            words: vec![0; layout.end],
            used: [0..0, 0..0, 0..0, 0..0],
            attention: AttentionItems::default(),
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
        slots: &SlotFacts<'_>,
    ) -> Result<(), usize> {
        assert!(inputs.tokens.len() <= layout.tokens_max, "the layout is large enough");
        if inputs.blocks.len() > layout.end - layout.blocks {
            return Err(inputs.blocks.len());
        }
        let words = &mut self.words;
        let (mut first, mut sampled_rows, mut place_next) = (0u32, 0, 0u32);
        for (index, row) in inputs.rows.iter().enumerate() {
            let entry = [first, row.start, row.blocks_start, row.slot];
            words[layout.rows + 4 * index..][..4].copy_from_slice(&entry);
            let place = row.sample_index.map_or(NOT_SAMPLED_ROW, |_| place_next);
            place_next += row.sample_index.map_or(0, |_| 1 + row.proposed);
            let carried = [row.length, row.proposed, (slots.right)(index), place];
            words[layout.carried + 4 * index..][..4].copy_from_slice(&carried);
            let adapter = (slots.adapter)(row.slot).unwrap_or(NO_ADAPTER);
            let adapters = layout.adapters + first as usize;
            words[adapters..adapters + row.length as usize].fill(adapter);
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
        if let Some(separator) = slots.separator {
            list_texts(&mut words[layout.texts..], inputs, separator);
        }
        let mut sampled = 0;
        for (place, token) in inputs.sampled_tokens().enumerate() {
            words[layout.picks + place] = token;
            sampled += 1;
        }
        for row in inputs.sampled_rows() {
            // Under a grammar a guess is checked when what may follow the one before it is known.
            let checked = !(slots.is_constrained)(row.slot);
            let proposals = if checked { row.proposals.len() as u32 } else { 0 };
            // A row's proposals are the tokens after the first that is picked.
            let first = words[layout.picks + row.place] + 1;
            let entry = [row.slot, row.sample_index, row.place as u32, first, proposals, 0, 0, 0];
            words[layout.sampled_rows + 8 * sampled_rows..][..8].copy_from_slice(&entry);
            sampled_rows += 1;
        }
        self.attention = self.list_attention(layout, work, inputs);
        let AttentionItems { items, wide_items, .. } = self.attention;
        let words = &mut self.words;
        words[layout.blocks..][..inputs.blocks.len()].copy_from_slice(&inputs.blocks);
        words[TOKENS_WORD] = inputs.tokens.len() as u32;
        words[SAMPLED_WORD] = sampled;
        words[SAMPLED_ROWS_WORD] = sampled_rows as u32;
        words[ITEMS_WORD] = items;
        words[WIDE_ITEMS_WORD] = wide_items;
        words[ROWS_WORD] = inputs.rows.len() as u32;
        self.used = [
            0..layout.items,
            layout.items..layout.items + ITEM_WORDS * items as usize,
            layout.wide_items..layout.wide_items + 4 * wide_items as usize,
            layout.blocks..layout.blocks + inputs.blocks.len(),
        ];
        Ok(())
    }

    /// Cuts rows into tiles, and long tiles of steps with few of them into stretches. How work is
    /// cut changes no result, so it may depend on the step.
    fn list_attention(
        &mut self,
        layout: &StepLayout,
        work: &AttentionWork,
        inputs: &StepInputs,
    ) -> AttentionItems {
        let per_tile = TILE_QUERIES / work.group;
        let tiles_of = |row: &RowInput| row.length.div_ceil(per_tile);
        let is_wide = |row: &RowInput| layout.has_wide && tiles_of(row) >= WIDE_TILES_MIN;
        let others = inputs.rows.iter().filter(|row| !is_wide(row));
        let stretches: u32 = others.map(|row| tiles_of(row) * work.stretches(row)).sum();
        let for_teams = work.stretches_for_teams(layout, inputs);
        let by_teams = for_teams.is_some();
        let wanted = for_teams.unwrap_or((stretches * work.heads_kv).div_ceil(ITEMS_WANTED));
        let settled = settled_positions(inputs, layout.block_count);
        let (mut tile, mut token_first) = (0u32, 0u32);
        let (mut items, mut states) = (0usize, 0usize);
        let mut wide: Vec<(u32, [u32; 4])> = Vec::new();
        for (index, row) in inputs.rows.iter().enumerate() {
            let row_tile = tile;
            for first in (0..row.length).step_by(per_tile as usize) {
                let tokens = per_tile.min(row.length - first);
                let entry = [index as u32, first, tokens, 0];
                self.words[layout.tiles + 4 * tile as usize..][..4].copy_from_slice(&entry);
                tile += 1;
                if is_wide(row) {
                    continue;
                }
                let position = row.start + first;
                let begin = work.window.first(position) / STRETCH;
                let end = work.seen_by(row, position + tokens).div_ceil(STRETCH);
                let own_states = ((end - begin) * work.heads_kv * tokens * work.group) as usize;
                let fits = items + (end - begin) as usize <= SPLIT_ITEMS_MAX
                    && states + own_states <= PARTIAL_STATES_MAX;
                let each = if fits { wanted } else { end - begin };
                let own_items = (end - begin).div_ceil(each);
                for from in (begin..end).step_by(each as usize) {
                    let to = end.min(from + each);
                    let of_row = [token_first, row.start, row.blocks_start];
                    let entry = &mut self.words[layout.items + ITEM_WORDS * items..][..ITEM_WORDS];
                    entry[..3].copy_from_slice(&of_row);
                    entry[3..7].copy_from_slice(&[first, tokens, from, to]);
                    entry[7..10].copy_from_slice(&[tile - 1, own_items, states as u32]);
                    entry[10] = settled[index];
                    entry[11] = row.start + row.length - 1;
                    items += 1;
                }
                if own_items > 1 {
                    states += own_states;
                }
            }
            token_first += row.length;
            if is_wide(row) {
                wide.extend((row_tile..tile).step_by(WIDE_TILES as usize).map(|first| {
                    let count = WIDE_TILES.min(tile - first);
                    let last = (first + count - row_tile) * per_tile;
                    (row.start + last.min(row.length), [first, count, 0, 0])
                }));
            }
        }
        // The longest first, so that in the end there are short ones for whoever has the least.
        wide.sort_by_key(|&(positions, _)| std::cmp::Reverse(positions));
        for (place, (_, entry)) in wide.iter().enumerate() {
            self.words[layout.wide_items + 4 * place..][..4].copy_from_slice(entry);
        }
        AttentionItems { items: items as u32, wide_items: wide.len() as u32, by_teams }
    }
}

/// Of each token whether it is of its row's second text; texts are whole in their row.
fn list_texts(words: &mut [u32], inputs: &StepInputs, separator: u32) {
    let mut words = words.iter_mut();
    let mut tokens = inputs.tokens.iter();
    for row in &inputs.rows {
        let mut is_second = false;
        // The tokens first: no word is taken for one that is not there.
        for (token, word) in tokens.by_ref().take(row.length as usize).zip(words.by_ref()) {
            *word = u32::from(is_second);
            is_second |= *token == TokenInput::Known(separator);
        }
    }
}

/// Of each row the positions that earlier steps wrote, in whole blocks: those before the first that
/// a row of this step writes, be it this one or another of the same sequence. A kernel may ask for
/// them while the one that writes this step's still runs.
fn settled_positions(inputs: &StepInputs, block_count: usize) -> Vec<u32> {
    let block_tokens = PAGE_TOKENS as u32;
    let table = |row: &RowInput| &inputs.blocks[row.blocks_start as usize..];
    let mut is_written = vec![false; block_count];
    for row in &inputs.rows {
        let last = (row.start + row.length - 1) / block_tokens;
        for &block in &table(row)[(row.start / block_tokens) as usize..=last as usize] {
            is_written[block as usize] = true;
        }
    }
    let settled = |row: &RowInput| {
        let own = (row.start / block_tokens) as usize;
        let mut before = table(row)[..own].iter();
        let first = before.position(|&block| is_written[block as usize]);
        first.unwrap_or(own) as u32 * block_tokens
    };
    inputs.rows.iter().map(settled).collect()
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

    const FACTS: SlotFacts<'_> = SlotFacts {
        is_constrained: &|slot| slot == 7,
        right: &|_| 0,
        adapter: &|slot| (slot == 6).then_some(2),
        separator: Some(2),
    };

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
        table.fill(&layout, work, &inputs, &FACTS).unwrap();
        (table, layout)
    }

    /// Tile, items of it, stretches from and to.
    fn items(table: &StepTable, layout: &StepLayout, count: usize) -> Vec<[u32; 4]> {
        assert!(table.attention.items as usize >= count);
        let items = table.words[layout.items..].as_chunks::<ITEM_WORDS>().0;
        items[..count].iter().map(|item| [item[7], item[8], item[5], item[6]]).collect()
    }

    #[test]
    fn counts_rows_and_samples_stand_where_kernels_look() {
        let (table, layout) = filled(vec![row(2, 10, 3, 2), row(6, 0, 1, 0)], &WORK);
        assert_eq!(&table.words[..3], [4, 4, 2]);
        assert_eq!(table.words[ROWS_WORD], 2);
        assert_eq!(&table.words[layout.rows..][..8], [0, 10, 0, 2, 3, 0, 0, 6]);
        assert_eq!(&table.words[layout.carried..][..8], [3, 2, 0, 0, 1, 0, 0, 3]);
        // Behind token 2, in its row.
        assert_eq!(&table.words[layout.texts..][..4], [0, 0, 0, 0]);
        assert_eq!(&table.words[layout.adapters..][..4], [NO_ADAPTER, NO_ADAPTER, NO_ADAPTER, 2]);
        assert_eq!(&table.words[layout.token_rows..][..4], [0, 0, 0, 1]);
        assert_eq!(&table.words[layout.sources..][..4], [5 | IS_SLOT, 1, 2, 3]);
        assert_eq!(&table.words[layout.picks..][..4], [0, 1, 2, 3]);
        let sampled = &table.words[layout.sampled_rows..][..16];
        assert_eq!(sampled, [2, 3, 0, 1, 2, 0, 0, 0, 6, 3, 3, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn each_row_has_its_own_second_text() {
        let mut inputs =
            StepInputs { rows: vec![row(0, 0, 3, 0), row(1, 0, 4, 0)], ..StepInputs::default() };
        inputs.tokens = [7, 2, 7, 7, 7, 2, 2].map(TokenInput::Known).to_vec();
        let mut words = [9; 8];
        list_texts(&mut words, &inputs, 2);
        assert_eq!(words, [0, 0, 1, 0, 0, 0, 1, 9]);
    }

    #[test]
    fn what_a_step_writes_is_not_settled() {
        let layout = StepLayout::new(&CAPACITY, 512, false);
        let mut table = StepTable::new(&layout);
        // Three rows of one sequence, the last behind the others' blocks; another sequence, which
        // shares the first block only; and one that begins.
        let tables = [(64, &[5, 6, 7][..]), (70, &[5, 6, 7]), (100, &[5, 6, 7, 8])];
        let others = [(40, &[5, 9][..]), (0, &[10])];
        let mut inputs = StepInputs::default();
        for (slot, (start, blocks)) in (0..).zip(tables.into_iter().chain(others)) {
            let blocks_start = inputs.blocks.len() as u32;
            let blocks_count = blocks.len() as u32;
            inputs.rows.push(RowInput { blocks_start, blocks_count, ..row(slot, start, 1, 0) });
            inputs.blocks.extend(blocks);
            inputs.tokens.push(TokenInput::Known(1));
        }
        table.fill(&layout, &WORK, &inputs, &FACTS).unwrap();
        let items = table.words[layout.items..].as_chunks::<ITEM_WORDS>().0;
        let settled: Vec<u32> = items[..5].iter().map(|item| item[10]).collect();
        assert_eq!(settled, [64, 64, 64, 32, 0]);
    }

    #[test]
    fn prompts_are_for_the_wide_kernel_the_longest_first() {
        let layout = StepLayout::new(&CAPACITY, 512, true);
        // Two decodes, 33 tokens in 9 tiles, a decode, 29 tokens in 8 tiles far on.
        let rows = [(9, 1), (9, 1), (20, 33), (9, 1), (900, 29)];
        let rows = (0..).zip(rows).map(|(slot, (start, length))| row(slot, start, length, 0));
        let mut table = StepTable::new(&layout);
        let mut inputs = StepInputs { rows: rows.collect(), ..StepInputs::default() };
        inputs.tokens = (0..65).map(TokenInput::Known).collect();
        inputs.blocks = (0..40).collect();
        table.fill(&layout, &WORK, &inputs, &FACTS).unwrap();
        assert_eq!(table.attention, AttentionItems { items: 3, wide_items: 3, by_teams: false });
        let expected = [[0, 1, 0, 1], [1, 1, 0, 1], [11, 1, 0, 1]];
        assert_eq!(items(&table, &layout, 3), expected);
        let expected = [[12, 8, 0, 0], [10, 1, 0, 0], [2, 8, 0, 0]];
        let wide = table.words[layout.wide_items..].as_chunks::<4>().0;
        assert_eq!(wide[..3], expected);
        // The decode behind the prompt, whole: its row, its tile and where it stands.
        let item = &table.words[layout.items + 2 * ITEM_WORDS..][..ITEM_WORDS];
        assert_eq!(item[..7], [35, 9, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn teams_take_whole_tiles_of_a_few_short_rows() {
        let of = |teams: u32, rows: &[(u32, u32)]| {
            let capacity = Capacity { block_count: 128, ..CAPACITY };
            let layout = StepLayout { teams, ..StepLayout::new(&capacity, 512, false) };
            let mut table = StepTable::new(&layout);
            let rows = (0..).zip(rows).map(|(slot, &(start, length))| row(slot, start, length, 0));
            let mut inputs = StepInputs { rows: rows.collect(), ..StepInputs::default() };
            let tokens: u32 = inputs.rows.iter().map(|row| row.length).sum();
            inputs.tokens = (0..tokens).map(TokenInput::Known).collect();
            inputs.blocks = (0..128).collect();
            table.fill(&layout, &WORK, &inputs, &FACTS).unwrap();
            (table.attention.by_teams, items(&table, &layout, table.attention.items as usize))
        };
        // Three and one stretches, as one item each; two heads of two rows are one turn of four.
        let whole = vec![[0, 1, 0, 3], [1, 1, 0, 1]];
        assert_eq!(of(4, &[(1100, 1), (20, 1)]), (true, whole));
        // No teams; too few of them; a row that is too long; too many tokens.
        assert!(!of(0, &[(1100, 1)]).0);
        assert!(!of(1, &[(1100, 1), (20, 1)]).0);
        assert!(of(4, &[(2047, 1)]).0 && !of(4, &[(2048, 1)]).0);
        assert!(of(4, &[(20, 8)]).0 && !of(4, &[(20, 9)]).0);
    }

    #[test]
    fn all_tiles_are_attended_to() {
        // A decode at 1,100 positions, three stretches; a short one.
        let (table, layout) = filled(vec![row(0, 1100, 1, 0), row(1, 20, 1, 0)], &WORK);
        let expected = [[0, 3, 0, 1], [0, 3, 1, 2], [0, 3, 2, 3], [1, 1, 0, 1]];
        assert_eq!(items(&table, &layout, 4), expected);
        assert_eq!(table.attention, AttentionItems { items: 4, wide_items: 0, by_teams: false });
        // A prompt of 9 tokens at 4 a tile, the last tile in a second stretch.
        let (table, layout) = filled(vec![row(0, 504, 9, 0)], &WORK);
        let expected = [[0, 1, 0, 1], [1, 1, 0, 1], [2, 2, 0, 1], [2, 2, 1, 2]];
        assert_eq!(items(&table, &layout, 4), expected);
        let window = AttentionWork { window: Window::Sliding(100), ..WORK };
        let (table, layout) = filled(vec![row(0, 1100, 1, 0)], &window);
        assert_eq!(items(&table, &layout, 1), [[0, 2, 1, 2]]);
        // So many that whoever takes one takes all of it.
        let many = AttentionWork { heads_kv: 2048, ..WORK };
        let (table, layout) = filled(vec![row(0, 1100, 1, 0)], &many);
        assert_eq!(items(&table, &layout, 1), [[0, 1, 0, 3]]);
    }
}
