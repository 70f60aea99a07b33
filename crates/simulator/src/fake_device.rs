//! What would a device answer that obeys the plan to the letter?
//!
//! It has a KV memory and slots. As keys and values depend on all tokens before theirs, a position
//! keeps its token id and a hash of those up to it, computed through the row's block table. A
//! sampled token is a hash of what is read there and of the sample's number: nothing but the right
//! blocks with the right content gives the right answer, whoever wrote them.
//!
//! A step may fail, before or after all of its work. Either way its slots are lost until they are
//! set again, and rows of them are left out: so it is with a ring's steps behind one that failed.

use messages::{
    BlockIndex, Limits, PlanRow, SampledToken, SequenceId, SlotIndex, StateIndex, StateMove,
    StepPlan, StepResult, TokenId, TokenSource,
};

use crate::random::mix;
use crate::tier::Prefix;

/// Few, so that stop tokens are met by chance.
pub(crate) const VOCABULARY: u32 = 40;

/// What the device must know to sample, as a slot reset brings it.
#[derive(Clone, Debug)]
pub(crate) struct SlotReset {
    pub(crate) slot: SlotIndex,
    pub(crate) sequence: SequenceId,
    pub(crate) generated_count: u32,
    pub(crate) min_tokens: u32,
    pub(crate) stop_tokens: Vec<TokenId>,
}

/// A submitted step.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    pub(crate) copies: Vec<BlockCopy>,
    /// What the copies out are the ends of, blocks' and states'.
    pub(crate) prefixes: [Vec<Prefix>; 2],
    pub(crate) plan: StepPlan,
    pub(crate) resets: Vec<SlotReset>,
    /// The turn from which on it may be settled.
    pub(crate) due: u64,
}

#[derive(Clone, Debug)]
struct Slot {
    reset: SlotReset,
    last_token: Option<TokenId>,
    generated_count: u32,
}

/// A block on its way between the device and whoever keeps it, before the rows of its step.
#[derive(Clone, Debug)]
pub(crate) enum BlockCopy {
    Out(BlockIndex),
    In(BlockIndex, Content),
    StateOut(StateIndex),
    StateIn(SlotIndex, Carried),
}

/// How far what a slot carries stands, and a hash of the tokens up to there.
pub(crate) type Carried = (u32, u64);

/// What a step copied out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copied {
    pub(crate) blocks: Vec<Content>,
    pub(crate) states: Vec<Carried>,
}

/// What a block holds: `[block_tokens]`.
pub(crate) type Content = Vec<Option<Position>>;

/// What stands for the keys and values of one position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    token: TokenId,
    /// Of all tokens of its sequence up to this one.
    prefix_hash: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct FakeDevice {
    block_tokens: u32,
    /// `[blocks, block_tokens]`
    memory: Vec<Option<Position>>,
    slots: Vec<Option<Slot>>,
    /// Slots of failed steps; of failed rows, too.
    lost: Vec<bool>,
    /// What each slot carries, where sequences carry a state: how far it stands, and a hash of the
    /// tokens up to there, with those of guesses behind.
    carried: Vec<Vec<Carried>>,
    /// The same in places besides; `None`: sequences carry nothing.
    kept: Option<Vec<Option<Carried>>>,
}

impl FakeDevice {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            block_tokens: limits.block_tokens,
            memory: vec![None; limits.pool_tokens() as usize],
            slots: vec![None; limits.sequences_max as usize],
            lost: vec![false; limits.sequences_max as usize],
            carried: vec![vec![(0, 0)]; limits.sequences_max as usize],
            kept: None,
        }
    }

    pub(crate) fn keep_states(&mut self, count: u32) {
        self.kept = Some(vec![None; count as usize]);
    }

    /// Whether a row of a submitted step will be left out, for an earlier step of its slot failed.
    pub(crate) fn leaves_out(&self, submission: &Submission, row: &PlanRow) -> bool {
        let is_set = submission.resets.iter().any(|reset| reset.slot == row.slot);
        self.lost[row.slot.0 as usize] && !is_set
    }

    /// What the first `count` rows of a step leave in their slots is unknown.
    pub(crate) fn lose(&mut self, plan: &StepPlan, count: usize) {
        for row in &plan.rows[..count] {
            self.lost[row.slot.0 as usize] = true;
        }
    }

    /// A step failed before it did anything: nobody sees the tokens that stand for its samples.
    pub(crate) fn fail(&mut self, plan: &StepPlan) -> StepResult {
        self.lose(plan, plan.rows.len());
        let sampled = plan.rows.iter().filter(|row| row.sample_index.is_some());
        let samples = sampled.map(|row| no_sample(row.sequence)).collect();
        StepResult { step: plan.step, samples }
    }

    /// Runs a step; `copied` gets what it copied out.
    pub(crate) fn execute(&mut self, submission: &Submission, copied: &mut Copied) -> StepResult {
        for copy in &submission.copies {
            match copy {
                BlockCopy::Out(block) => copied.blocks.push(self.block(*block).to_vec()),
                BlockCopy::In(block, content) => self.block(*block).copy_from_slice(content),
                BlockCopy::StateOut(place) => copied.states.push(self.kept(*place)),
                // Its slot is reset first.
                BlockCopy::StateIn(..) => {}
            }
        }
        for reset in &submission.resets {
            self.lost[reset.slot.0 as usize] = false;
            self.slots[reset.slot.0 as usize] = Some(Slot {
                reset: reset.clone(),
                last_token: None,
                generated_count: reset.generated_count,
            });
        }
        let plan = &submission.plan;
        for reset in &submission.resets {
            self.carried[reset.slot.0 as usize] = vec![(0, 0)];
        }
        for copy in &submission.copies {
            if let BlockCopy::StateIn(slot, state) = copy {
                self.carried[slot.0 as usize] = vec![*state];
            }
        }
        self.load_states(plan);
        let mut samples = Vec::new();
        let mut sources = plan.tokens.iter();
        for (index, row) in plan.rows.iter().enumerate() {
            let table = plan.block_table(index);
            if self.lost[row.slot.0 as usize] {
                sources.by_ref().take(row.length as usize).for_each(drop);
                samples.extend(row.sample_index.map(|_| no_sample(row.sequence)));
                continue;
            }
            let slot = self.slots[row.slot.0 as usize].as_ref().expect("the slot was reset");
            assert_eq!(slot.reset.sequence, row.sequence, "the slot is another sequence's");
            self.carry_to_start(row);
            for position in row.start..row.start + row.length {
                let source = sources.next().expect("a source for each position");
                let token = self.resolve(*source);
                let before = position.checked_sub(1).map(|before| self.read(table, before));
                let hash = before.map_or(0, |before| before.prefix_hash);
                let place = self.place(table, position);
                let prefix_hash = mix(hash, u64::from(token));
                self.memory[place] = Some(Position { token, prefix_hash });
                self.carry(row, position, token);
            }
            if let Some(sample_index) = row.sample_index {
                self.sample_row(plan, index, sample_index, &mut samples);
            }
        }
        self.save_states(plan);
        StepResult { step: plan.step, samples }
    }

    fn load_states(&mut self, plan: &StepPlan) {
        for copy in &plan.states {
            if let StateMove::Load { from, to } = *copy {
                self.carried[to.0 as usize] = vec![self.kept(from)];
            }
        }
    }

    fn kept(&self, place: StateIndex) -> Carried {
        let kept = self.kept.as_ref().expect("a state is read where none are carried");
        kept[place.0 as usize].expect("a state is read that was never kept")
    }

    fn save_states(&mut self, plan: &StepPlan) {
        for copy in &plan.states {
            if let StateMove::Save { from, to } = *copy {
                if self.lost[from.0 as usize] {
                    continue;
                }
                let [state] = self.carried[from.0 as usize][..] else { panic!("it has guesses") };
                let kept = self.kept.as_mut().expect("a state is kept where none are carried");
                kept[to.0 as usize] = Some(state);
            }
        }
    }

    /// `state_at_start`: the slot's state, with the guesses that were right, stands at the row's
    /// start. Those behind are forgotten.
    fn carry_to_start(&mut self, row: &PlanRow) {
        if self.kept.is_none() {
            return;
        }
        let carried = &mut self.carried[row.slot.0 as usize];
        let place = carried.iter().position(|&(position, _)| position == row.start);
        let place = place.expect("state_at_start: the row starts elsewhere than its state");
        *carried = vec![carried[place]];
    }

    /// One token more; guesses are kept apart until it is known which were right.
    fn carry(&mut self, row: &PlanRow, position: u32, token: TokenId) {
        if self.kept.is_none() {
            return;
        }
        let carried = &mut self.carried[row.slot.0 as usize];
        let &(before, hash) = carried.last().expect("a slot carries something");
        assert_eq!(before, position, "state_at_start: tokens come one after another");
        let state = (position + 1, mix(hash, u64::from(token)));
        if position < row.start + row.length - row.proposed {
            carried.clear();
        }
        carried.push(state);
    }

    fn block(&mut self, block: BlockIndex) -> &mut [Option<Position>] {
        let start = (block.0 * self.block_tokens) as usize;
        &mut self.memory[start..start + self.block_tokens as usize]
    }

    /// Samples after the row's last token that is no guess, and after each guess that was right.
    fn sample_row(
        &mut self,
        plan: &StepPlan,
        index: usize,
        sample_index: u32,
        samples: &mut Vec<SampledToken>,
    ) {
        let (row, table) = (plan.rows[index], plan.block_table(index));
        let before: u32 = plan.rows[..=index].iter().map(|row| row.length).sum();
        let guesses = &plan.tokens[(before - row.proposed) as usize..before as usize];
        let first_end = row.start + row.length - row.proposed;
        for (end, sample_index) in (first_end..=row.start + row.length).zip(sample_index..) {
            let token = self.sample(row.slot, table, end, sample_index);
            samples.push(SampledToken { sequence: row.sequence, token, logprob: None });
            let guess = guesses.get((end - first_end) as usize);
            if guess != Some(&TokenSource::Known(token)) {
                break;
            }
        }
    }

    fn resolve(&self, source: TokenSource) -> TokenId {
        match source {
            TokenSource::Known(token) => token,
            TokenSource::Slot(slot) => self.slots[slot.0 as usize]
                .as_ref()
                .and_then(|slot| slot.last_token)
                .expect("the slot has sampled since its reset"),
        }
    }

    fn place(&self, table: &[BlockIndex], position: u32) -> usize {
        let block = table[(position / self.block_tokens) as usize];
        (block.0 * self.block_tokens + position % self.block_tokens) as usize
    }

    fn read(&self, table: &[BlockIndex], position: u32) -> Position {
        self.memory[self.place(table, position)].expect("written before")
    }

    fn sample(
        &mut self,
        slot: SlotIndex,
        table: &[BlockIndex],
        positions: u32,
        sample_index: u32,
    ) -> TokenId {
        let hash = (0..positions).fold(0, |hash, position| {
            let read = self.read(table, position);
            let expected = mix(hash, u64::from(read.token));
            assert_eq!(read.prefix_hash, expected, "position {position} is of another prefix");
            expected
        });
        if self.kept.is_some() {
            let carried = &self.carried[slot.0 as usize];
            let is_there = carried.contains(&(positions, hash));
            assert!(is_there, "state_at_start: the slot carries what came of other tokens");
        }
        let slot = self.slots[slot.0 as usize].as_mut().expect("the slot was reset");
        assert_eq!(sample_index, slot.generated_count, "samples are numbered without gaps");
        let reset = &slot.reset;
        let token = token_of(hash, sample_index, reset.min_tokens, &reset.stop_tokens);
        slot.generated_count += 1;
        slot.last_token = Some(token);
        token
    }
}

fn no_sample(sequence: SequenceId) -> SampledToken {
    SampledToken { sequence, token: 0, logprob: None }
}

/// The token after a content of this hash; stop tokens are banned before `min_tokens`.
pub(crate) fn token_of(
    hash: u64,
    sample_index: u32,
    min_tokens: u32,
    stop_tokens: &[TokenId],
) -> TokenId {
    let first = (mix(hash, u64::from(sample_index)) % u64::from(VOCABULARY)) as u32;
    let banned = |token: &TokenId| sample_index < min_tokens && stop_tokens.contains(token);
    (0..VOCABULARY)
        .map(|offset| (first + offset) % VOCABULARY)
        .find(|token| !banned(token))
        .expect("stop tokens are fewer than the vocabulary")
}
