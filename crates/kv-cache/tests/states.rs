//! Is a prefix taken only up to a state that was kept, and is each place of one block?

use std::sync::Arc;

use kv_cache::{BlockPool, BlockTable, CachedPrefix};
use messages::{CacheNamespace, StateIndex, TokenId};

fn name() -> Arc<CacheNamespace> {
    Arc::new(CacheNamespace::default())
}

/// A pool that keeps `states`, with `tokens` computed by a table.
fn published(blocks: u32, states: u32, tokens: &[TokenId]) -> (BlockPool, BlockTable) {
    let mut pool = BlockPool::new(blocks, 4);
    pool.keep_states(states);
    let table = publish(&mut pool, tokens);
    (pool, table)
}

fn publish(pool: &mut BlockPool, tokens: &[TokenId]) -> BlockTable {
    let mut table = BlockTable::default();
    pool.enter(&mut table, &name());
    pool.take_cached(&mut table, tokens, None);
    assert!(pool.grow(&mut table, tokens.len() as u32));
    pool.publish(&mut table, tokens, None);
    table
}

#[test]
fn state_conserved() {
    let tokens: Vec<TokenId> = (0..13).collect();
    let (mut pool, mut table) = published(8, 2, &tokens);
    let all = CachedPrefix { blocks: 0, in_tree: 3, owned: 0 };
    assert_eq!(pool.cached_prefix(&name(), &tokens), all, "no state, no prefix");
    let state = pool.take_state();
    assert_eq!(state, Some(StateIndex(0)));
    pool.audit_states(1);
    pool.attach_state(&table, 8, StateIndex(0));
    pool.audit_states(0);
    let found = pool.cached_prefix(&name(), &tokens);
    assert_eq!(found, CachedPrefix { blocks: 2, in_tree: 3, owned: 2 });

    let mut other = BlockTable::default();
    pool.enter(&mut other, &name());
    assert_eq!(pool.take_cached(&mut other, &tokens, None), 8, "up to the state");
    assert_eq!(pool.state_behind(&other), Some(StateIndex(0)));
    pool.audit([&table, &other].into_iter());

    // A second state of the same block, and one of a block that is not in the tree, are let go.
    let _ = pool.take_state();
    pool.attach_state(&table, 8, StateIndex(1));
    let _ = pool.take_state();
    pool.attach_state(&BlockTable::default(), 4, StateIndex(1));
    pool.audit_states(0);
    for table in [&mut table, &mut other] {
        pool.release(table, None);
    }
    // A block that is given away takes its state along.
    let mut large = BlockTable::default();
    assert!(pool.grow(&mut large, 32));
    pool.audit_states(0);
    assert_eq!(pool.cached_prefix(&name(), &tokens), CachedPrefix::default());
    assert_eq!((pool.take_state().is_some(), pool.take_state().is_some()), (true, true));
    assert_eq!(pool.take_state(), None, "two places, both taken");
    pool.audit_states(2);
}

#[test]
fn who_was_wanted_last_stays() {
    let texts: [[TokenId; 4]; 3] = [[1; 4], [2; 4], [3; 4]];
    let (mut pool, first) = published(8, 2, &texts[0]);
    let second = publish(&mut pool, &texts[1]);
    let third = publish(&mut pool, &texts[2]);
    let keep = |pool: &mut BlockPool, table: &BlockTable| {
        let state = pool.take_state();
        state.iter().for_each(|&state| pool.attach_state(table, 4, state));
        pool.audit_states(0);
    };
    keep(&mut pool, &first);
    keep(&mut pool, &second);
    // The first is taken up again, so the second goes.
    assert!(pool.state_behind(&first).is_some());
    keep(&mut pool, &third);
    let is_there = |text: &[TokenId]| pool.cached_prefix(&name(), text).blocks == 1;
    assert_eq!([0, 1, 2].map(|text| is_there(&texts[text])), [true, false, true]);
}

#[test]
#[should_panic(expected = "state_conserved")]
fn a_lost_state_is_noticed() {
    let mut pool = BlockPool::new(2, 4);
    pool.keep_states(1);
    let _lost = pool.take_state();
    pool.audit_states(0);
}
