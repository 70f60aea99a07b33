//! Do the pool's invariants hold, and are prefixes found, kept apart and given up as documented?

use std::sync::Arc;

use kv_cache::{BlockPool, BlockTable, CachedPrefix};
use messages::{BlockIndex, CacheNamespace, StepIndex, TokenId};

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

fn namespace(tenant: &str) -> Arc<CacheNamespace> {
    Arc::new(CacheNamespace { tenant: tenant.to_owned(), ..CacheNamespace::default() })
}

/// A table in `namespace` with what is cached of `tokens`, and room for all of them.
fn entered(pool: &mut BlockPool, name: &Arc<CacheNamespace>, tokens: &[TokenId]) -> BlockTable {
    let mut table = BlockTable::default();
    pool.enter(&mut table, name);
    pool.take_cached(&mut table, tokens, None);
    assert!(pool.grow(&mut table, tokens.len() as u32));
    table
}

#[test]
fn kv_single_writer() {
    let mut pool = BlockPool::new(8, 4);
    let name = namespace("");
    let tokens: Vec<TokenId> = (0..10).collect();
    let mut source = entered(&mut pool, &name, &tokens);
    assert_eq!(source.sealed(), 0, "nothing was cached");
    pool.publish(&mut source, &tokens, None);
    assert_eq!(source.sealed(), 2, "only full blocks are shared");
    let mut target = entered(&mut pool, &name, &tokens);
    assert_eq!(target.blocks()[..2], source.blocks()[..2]);
    assert_eq!(target.sealed(), 2);
    assert_ne!(target.blocks()[2], source.blocks()[2], "each writes its own third block");
    pool.audit([&source, &target].into_iter());

    pool.release(&mut source, None);
    assert_eq!(pool.owned_count(), 3, "the shared blocks stay with their other holder");
    pool.audit([&source, &target].into_iter());
    pool.release(&mut target, None);
    assert_eq!((pool.free_count(), pool.cached_count()), (6, 2));
    pool.audit([].into_iter());
}

#[test]
fn two_that_compute_the_same_block_end_with_one() {
    let mut pool = BlockPool::new(8, 4);
    let name = namespace("");
    let tokens = [1, 2, 3, 4, 5];
    let mut first = entered(&mut pool, &name, &tokens);
    let mut second = entered(&mut pool, &name, &tokens);
    let own = second.blocks()[0];
    assert_ne!(first.blocks()[0], own);
    pool.publish(&mut first, &tokens, Some(StepIndex(0)));
    pool.publish(&mut second, &tokens, Some(StepIndex(1)));
    assert_eq!(first.blocks()[0], second.blocks()[0]);
    assert_eq!(pool.pending_count(), 1, "a step in flight may still write its own");
    pool.audit([&first, &second].into_iter());
    pool.settle(StepIndex(0));
    pool.settle(StepIndex(1));
    assert!(pool.is_available(own) && !pool.is_cached(own));
    pool.audit([&first, &second].into_iter());
}

#[test]
fn namespaces_never_meet() {
    let mut pool = BlockPool::new(8, 4);
    let tokens = [1, 2, 3, 4];
    let mut table = entered(&mut pool, &namespace("ann"), &tokens);
    pool.publish(&mut table, &tokens, None);
    for other in [
        CacheNamespace::default(),
        CacheNamespace { salt: "ann".to_owned(), ..CacheNamespace::default() },
        CacheNamespace { salt: "x".to_owned(), ..namespace("ann").as_ref().clone() },
        CacheNamespace { adapter: "x".to_owned(), ..namespace("ann").as_ref().clone() },
    ] {
        assert_eq!(pool.cached_prefix(&other, &tokens), CachedPrefix::default(), "{other:?}");
    }
    let found = CachedPrefix { blocks: 1, in_tree: 1, owned: 1 };
    assert_eq!(pool.cached_prefix(&namespace("ann"), &tokens), found);
    assert_eq!(pool.cached_prefix(&namespace("ann"), &[1, 2, 3, 5]), CachedPrefix::default());
    assert_eq!(pool.cached_prefix(&namespace("ann"), &tokens[..3]), CachedPrefix::default());
}

#[test]
fn the_least_valuable_block_goes_first() {
    let mut pool = BlockPool::new(4, 4);
    let name = namespace("");
    let texts: [[TokenId; 8]; 2] = [[1; 8], [2; 8]];
    for text in &texts {
        let mut table = entered(&mut pool, &name, text);
        pool.publish(&mut table, text, None);
        pool.release(&mut table, None);
    }
    assert_eq!((pool.free_count(), pool.cached_count()), (0, 4));
    // The first text is used once more, so the other goes, from its end.
    let mut again = entered(&mut pool, &name, &texts[0]);
    pool.release(&mut again, None);
    let cached = |pool: &BlockPool, text: &[TokenId]| pool.cached_prefix(&name, text).blocks;
    let mut taker = BlockTable::default();
    let mut left = Vec::new();
    for blocks in 1..=4 {
        assert!(pool.grow(&mut taker, 4 * blocks));
        left.push((cached(&pool, &texts[0]), cached(&pool, &texts[1])));
        pool.audit([&taker].into_iter());
    }
    assert_eq!(left, [(2, 1), (2, 0), (1, 0), (0, 0)]);
    assert_eq!(pool.prefix_counts().evicted_blocks_total, 4);
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
    assert!(blocks.iter().all(|&block| !pool.is_available(block)));
    pool.settle(StepIndex(2));
    assert!(blocks.iter().all(|&block| pool.is_available(block)));
    pool.audit([&table, &other].into_iter());
}

#[test]
fn a_shared_block_waits_for_its_last_user_not_its_last_holder() {
    let mut pool = BlockPool::new(4, 4);
    let name = namespace("");
    let mut source = entered(&mut pool, &name, &[1; 4]);
    pool.publish(&mut source, &[1; 4], None);
    let mut target = entered(&mut pool, &name, &[1; 4]);
    pool.release(&mut source, Some(StepIndex(1)));
    pool.release(&mut target, None);
    assert_eq!(pool.pending_count(), 1);
    pool.settle(StepIndex(0));
    assert_eq!(pool.pending_count(), 1);
    // Who takes it while it is pending need not wait: it is only read.
    let mut reader = entered(&mut pool, &name, &[1; 4]);
    assert_eq!((pool.pending_count(), pool.owned_count()), (0, 1));
    pool.audit([&reader].into_iter());
    pool.release(&mut reader, None);
    pool.settle(StepIndex(1));
    assert_eq!(pool.available_count(), 4);
}
