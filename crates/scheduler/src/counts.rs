//! How full is everything, what happened since the start, and what is to come?

use kv_cache::PrefixCounts;
use messages::{ProposalCounts, SequenceId};

use crate::Scheduler;
use crate::sequence::Sequence;

/// How full everything is, and what happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences holding a slot.
    pub running: usize,
    /// Those of them whose prompts are not read yet.
    pub reading: usize,
    /// Sequences without a slot, the preempted ones included.
    pub waiting: usize,
    /// Those of each priority, lowest first.
    pub waiting_by_priority: [usize; 3],
    /// Tenants with a sequence here.
    pub tenants: usize,
    /// Prompt tokens of all sequences here that are not computed yet, as far as is known.
    pub unread_tokens: u64,
    pub steps_in_flight: usize,
    pub blocks_free: usize,
    /// Used by nobody, and given to whoever needs them; they hold prefixes until then.
    pub blocks_cached: usize,
    /// Released, but still named by an unfinished step.
    pub blocks_pending: usize,
    pub blocks_owned: usize,
    pub finished_total: u64,
    pub cancelled_total: u64,
    pub preemptions_total: u64,
    /// Blocks of preempted sequences that were copied in and not computed again.
    pub returned_blocks_total: u64,
    pub prefixes: PrefixCounts,
    /// Prompt tokens of sequences that were admitted and might have taken a cached prefix.
    pub prefix_queried_tokens_total: u64,
    /// Those of them that were cached.
    pub prefix_hit_tokens_total: u64,
    pub proposals_total: ProposalCounts,
}

/// What the next plan has to do, for whoever sets its pace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Sequences that lack one token.
    pub streams: u32,
    /// Tokens before theirs, which theirs attend to.
    pub stream_positions: u64,
    /// Prompts that are being read, or wait for a place that is free.
    pub prompts: u32,
    /// The furthest that a prompt being read has come.
    pub prompt_position_max: u32,
}

impl Scheduler {
    pub fn counts(&self) -> Counts {
        let mut waiting_by_priority = [0; 3];
        self.waiting.iter().for_each(|waits| waiting_by_priority[waits.priority as usize] += 1);
        let reads = |sequence: &&Sequence| sequence.remaining() > 1;
        let unread_running = self.running.iter().filter(reads).map(Sequence::remaining);
        let unread = unread_running.chain(self.waiting.iter().map(Sequence::known));
        Counts {
            running: self.running.len(),
            reading: self.running.iter().filter(reads).count(),
            waiting: self.waiting.len(),
            waiting_by_priority,
            tenants: self.tenants.count(),
            unread_tokens: unread.map(u64::from).sum(),
            steps_in_flight: self.steps_in_flight(),
            blocks_free: self.pool.free_count(),
            blocks_cached: self.pool.cached_count(),
            blocks_pending: self.pool.pending_count(),
            blocks_owned: self.pool.owned_count(),
            finished_total: self.finished_total,
            cancelled_total: self.cancelled_total,
            preemptions_total: self.preemptions_total,
            returned_blocks_total: self.returned_blocks_total,
            prefixes: self.pool.prefix_counts(),
            prefix_queried_tokens_total: self.prefix_queried_tokens_total,
            prefix_hit_tokens_total: self.prefix_hit_tokens_total,
            proposals_total: self.proposals_total,
        }
    }

    pub fn outlook(&self) -> Outlook {
        let free = (self.running_max as usize).saturating_sub(self.running.len());
        let starting = self.waiting.len().min(free) as u32;
        let mut outlook = Outlook { prompts: starting, ..Outlook::default() };
        for sequence in &self.running {
            match sequence.remaining() {
                0 => {}
                1 => {
                    outlook.streams += 1;
                    outlook.stream_positions += u64::from(sequence.computed);
                }
                _ => {
                    outlook.prompts += 1;
                    let position = outlook.prompt_position_max.max(sequence.computed);
                    outlook.prompt_position_max = position;
                }
            }
        }
        outlook
    }

    /// Sequences that would get a slot before `id`, as things stand; `None`: it does not wait.
    pub fn waiting_ahead_of(&self, id: SequenceId) -> Option<usize> {
        self.waiting.ahead_of(id, &self.tenants, self.planned_count)
    }
}
