//! Do the pool's invariants hold, and does it agree with a naive model of it?

#![allow(clippy::unwrap_used, reason = "tests")]

use kv_cache::{BlockPool, BlockTable};
use messages::{BlockIndex, StepIndex};
use proptest::prelude::*;

fn grown(pool: &mut BlockPool, positions: u32) -> BlockTable {
    let mut table = BlockTable::default();
    assert!(pool.grow(&mut table, positions));
    table
}

#[test]
fn kv_conserved() {
    let mut pool = BlockPool::new(5, 4);
    let mut first = grown(&mut pool, 9);
    let mut second = grown(&mut pool, 8);
    assert_eq!((pool.free_count(), pool.owned_count()), (0, 5));
    let mut third = BlockTable::default();
    assert!(!pool.grow(&mut third, 1), "nothing is left");
    assert!(pool.grow(&mut first, 12), "the third block has room for 12 positions");
    assert!(!pool.grow(&mut first, 13));
    pool.audit([&first, &second, &third].into_iter());

    pool.release(&mut first, None);
    assert_eq!(pool.free_count(), 3);
    assert!(!pool.grow(&mut third, 13), "all or nothing");
    assert!(third.is_empty());
    assert_eq!(pool.free_count(), 3);
    pool.release(&mut second, None);
    assert_eq!(pool.free_count(), 5);
    pool.audit([&first, &second, &third].into_iter());
}

#[test]
#[should_panic(expected = "kv_conserved")]
fn a_forgotten_table_is_noticed() {
    let mut pool = BlockPool::new(5, 4);
    let _lost = grown(&mut pool, 9);
    pool.audit([].into_iter());
}

#[test]
fn kv_single_writer() {
    let mut pool = BlockPool::new(8, 4);
    let mut source = grown(&mut pool, 10);
    let mut target = BlockTable::default();
    assert_eq!(pool.share(&mut source, &mut target, 10), 8, "only full blocks are shared");
    assert_eq!(target.blocks(), &source.blocks()[..2]);
    assert_eq!((source.sealed(), target.sealed()), (2, 2));
    assert!(pool.grow(&mut target, 10));
    assert_ne!(target.blocks()[2], source.blocks()[2], "each writes its own third block");
    pool.audit([&source, &target].into_iter());

    pool.release(&mut source, None);
    assert_eq!(pool.owned_count(), 3, "the shared blocks stay with their other holder");
    pool.audit([&source, &target].into_iter());
    pool.release(&mut target, None);
    assert_eq!(pool.free_count(), 8);
}

#[test]
fn release_after_last_use() {
    let mut pool = BlockPool::new(4, 4);
    let mut table = grown(&mut pool, 8);
    let blocks: Vec<BlockIndex> = table.blocks().to_vec();
    pool.settle(StepIndex(0));
    pool.release(&mut table, Some(StepIndex(2)));
    assert_eq!((pool.free_count(), pool.pending_count()), (2, 2));
    let mut other = BlockTable::default();
    assert!(!pool.grow(&mut other, 9), "pending blocks cannot be taken");
    pool.settle(StepIndex(1));
    assert!(blocks.iter().all(|&block| !pool.is_free(block)));
    pool.settle(StepIndex(2));
    assert!(blocks.iter().all(|&block| pool.is_free(block)));
    pool.audit([&table, &other].into_iter());
}

#[test]
fn a_shared_block_waits_for_its_last_user_not_its_last_holder() {
    let mut pool = BlockPool::new(4, 4);
    let mut source = grown(&mut pool, 4);
    let mut target = BlockTable::default();
    pool.share(&mut source, &mut target, 4);
    pool.release(&mut source, Some(StepIndex(1)));
    pool.release(&mut target, None);
    assert_eq!(pool.pending_count(), 1);
    pool.settle(StepIndex(0));
    assert_eq!(pool.pending_count(), 1);
    pool.settle(StepIndex(1));
    assert_eq!(pool.free_count(), 4);
}

/// What a caller may do; numbers are reduced to what exists.
#[derive(Clone, Debug)]
enum Act {
    Grow {
        table: usize,
        positions: u32,
    },
    Share {
        source: usize,
        target: usize,
        positions: u32,
    },
    Release {
        table: usize,
    },
    /// Submits a step that names the tables whose bit is set.
    Submit {
        tables: u8,
    },
    Settle,
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..8_usize, 0..30_u32).prop_map(|(table, positions)| Act::Grow { table, positions }),
        2 => (0..8_usize, 0..8_usize, 0..30_u32).prop_map(|(source, target, positions)| {
            Act::Share { source, target, positions }
        }),
        3 => (0..8_usize).prop_map(|table| Act::Release { table }),
        3 => any::<u8>().prop_map(|tables| Act::Submit { tables }),
        3 => Just(Act::Settle),
    ]
}

const BLOCKS: u32 = 12;
const BLOCK_TOKENS: u32 = 3;

/// The naive twin: plain lists, and "free" computed from its definition each time it is asked.
struct Naive {
    tables: Vec<Vec<BlockIndex>>,
    last_use: Vec<Option<StepIndex>>,
    /// The blocks each submitted step names; settled steps are emptied.
    steps: Vec<Vec<BlockIndex>>,
    settled: usize,
}

impl Naive {
    fn is_free(&self, block: BlockIndex) -> bool {
        !self.tables.iter().chain(&self.steps).any(|list| list.contains(&block))
    }

    fn free_count(&self) -> usize {
        (0..BLOCKS).filter(|&block| self.is_free(BlockIndex(block))).count()
    }
}

fn apply(act: &Act, pool: &mut BlockPool, tables: &mut [BlockTable], naive: &mut Naive) {
    match *act {
        Act::Grow { table, positions } => {
            let missing = pool.blocks_for(positions).saturating_sub(naive.tables[table].len());
            let fits = missing <= naive.free_count();
            assert_eq!(pool.grow(&mut tables[table], positions), fits);
            let news = &tables[table].blocks()[naive.tables[table].len()..];
            assert!(news.iter().all(|&block| naive.is_free(block)), "took a block in use");
            naive.tables[table] = tables[table].blocks().to_vec();
        }
        Act::Share { source, target, positions } => {
            if source == target || !naive.tables[target].is_empty() {
                return;
            }
            let positions = positions.min(naive.tables[source].len() as u32 * BLOCK_TOKENS);
            let mut giver = std::mem::take(&mut tables[source]);
            let shared = pool.share(&mut giver, &mut tables[target], positions);
            tables[source] = giver;
            let full = (positions / BLOCK_TOKENS) as usize;
            assert_eq!(shared as usize, full * BLOCK_TOKENS as usize);
            naive.tables[target] = naive.tables[source][..full].to_vec();
            assert_eq!(tables[target].blocks(), naive.tables[target]);
        }
        Act::Release { table } => {
            let last_use = naive.last_use[table].take();
            pool.release(&mut tables[table], last_use);
            let blocks = std::mem::take(&mut naive.tables[table]);
            // The contract: blocks taken after the last use wait for it too.
            if let Some(step) = last_use.filter(|step| step.0 >= naive.settled as u64) {
                naive.steps[step.0 as usize].extend(blocks);
            }
        }
        Act::Submit { tables: mask } => {
            let step = StepIndex(naive.steps.len() as u64);
            let mut named = Vec::new();
            for table in (0..tables.len()).filter(|table| mask >> table & 1 == 1) {
                named.extend_from_slice(&naive.tables[table]);
                naive.last_use[table] = Some(step);
            }
            naive.steps.push(named);
        }
        Act::Settle => {
            if naive.settled == naive.steps.len() {
                return;
            }
            naive.steps[naive.settled].clear();
            pool.settle(StepIndex(naive.settled as u64));
            naive.settled += 1;
        }
    }
}

proptest! {
    #[test]
    fn pool_agrees_with_the_naive_model(acts in proptest::collection::vec(acts(), 1..120)) {
        let mut pool = BlockPool::new(BLOCKS, BLOCK_TOKENS);
        let mut tables = vec![BlockTable::default(); 8];
        let mut naive = Naive {
            tables: vec![Vec::new(); 8],
            last_use: vec![None; 8],
            steps: Vec::new(),
            settled: 0,
        };
        for act in &acts {
            apply(act, &mut pool, &mut tables, &mut naive);
            for block in (0..BLOCKS).map(BlockIndex) {
                prop_assert_eq!(pool.is_free(block), naive.is_free(block));
            }
            prop_assert_eq!(pool.free_count(), naive.free_count());
            pool.audit(tables.iter());
        }
    }
}
