//! Does the pool agree with a naive model of it: lists of prefixes, and everything else computed
//! from its definition each time it is asked?

use std::sync::Arc;

use kv_cache::{BlockPool, BlockTable};
use messages::{BlockIndex, CacheNamespace, CachedEnd, StepIndex, TokenId};
use proptest::prelude::*;

const BLOCKS: u32 = 12;
const BLOCK_TOKENS: u32 = 3;
const TABLES: usize = 6;
const POSITIONS_MAX: u32 = 30;
/// As documented: what computing a block again costs beyond its position.
const BLOCK_COST: u64 = 4096;

/// What a caller may do; numbers are reduced to what exists.
#[derive(Clone, Debug)]
enum Act {
    /// An empty table takes what is cached of a text.
    Enter {
        table: usize,
        namespace: usize,
        text: u32,
        positions: u32,
    },
    Grow {
        table: usize,
        positions: u32,
    },
    /// A table takes what others have published since.
    Take {
        table: usize,
        positions: u32,
    },
    Publish {
        table: usize,
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
    let table = 0..TABLES;
    let positions = 0..POSITIONS_MAX;
    prop_oneof![
        4 => (table.clone(), 0..2_usize, 0..5_u32, positions.clone()).prop_map(
            |(table, namespace, text, positions)| Act::Enter { table, namespace, text, positions }
        ),
        4 => (table.clone(), positions.clone())
            .prop_map(|(table, positions)| Act::Grow { table, positions }),
        2 => (table.clone(), positions.clone())
            .prop_map(|(table, positions)| Act::Take { table, positions }),
        4 => (table.clone(), positions)
            .prop_map(|(table, positions)| Act::Publish { table, positions }),
        3 => table.prop_map(|table| Act::Release { table }),
        3 => any::<u8>().prop_map(|tables| Act::Submit { tables }),
        3 => Just(Act::Settle),
    ]
}

/// Texts that share their first `6 * text` tokens with all later ones.
fn tokens(text: u32, positions: u32) -> Vec<TokenId> {
    (0..positions).map(|position| if position < 6 * text { 0 } else { 1 + text }).collect()
}

#[derive(Clone, Debug, Default)]
struct NaiveTable {
    /// `None`: the table is in no namespace.
    prefixes_of: Option<(usize, u32)>,
    blocks: Vec<BlockIndex>,
    sealed: usize,
    last_use: Option<StepIndex>,
}

/// One cached prefix: its last block has the content.
#[derive(Clone, Debug)]
struct Prefix {
    namespace: usize,
    tokens: Vec<TokenId>,
    block: BlockIndex,
    value: u64,
    used: u64,
}

struct Naive {
    tables: Vec<NaiveTable>,
    prefixes: Vec<Prefix>,
    /// The blocks each submitted step names; settled steps are emptied.
    steps: Vec<Vec<BlockIndex>>,
    settled: usize,
    age: u64,
    uses: u64,
    evicted: Vec<(BlockIndex, usize, Vec<TokenId>)>,
    /// Evicted at any time, and not cached since.
    forgotten: Vec<(usize, Vec<TokenId>)>,
}

impl Naive {
    fn is_held(&self, block: BlockIndex) -> bool {
        self.tables.iter().any(|table| table.blocks.contains(&block))
    }

    fn is_available(&self, block: BlockIndex) -> bool {
        !self.is_held(block) && !self.steps.iter().any(|step| step.contains(&block))
    }

    fn is_cached(&self, block: BlockIndex) -> bool {
        self.prefixes.iter().any(|prefix| prefix.block == block)
    }

    fn count(&self, condition: impl Fn(BlockIndex) -> bool) -> usize {
        (0..BLOCKS).filter(|&block| condition(BlockIndex(block))).count()
    }

    fn find(&self, namespace: usize, tokens: &[TokenId]) -> Option<BlockIndex> {
        let same = |prefix: &&Prefix| prefix.namespace == namespace && prefix.tokens == tokens;
        self.prefixes.iter().find(same).map(|prefix| prefix.block)
    }

    fn evict(&mut self) {
        let is_leaf = |prefix: &Prefix| {
            let follows = |other: &Prefix| {
                other.namespace == prefix.namespace
                    && other.tokens.len() > prefix.tokens.len()
                    && other.tokens.starts_with(&prefix.tokens)
            };
            !self.prefixes.iter().any(follows)
        };
        let candidates = (0..self.prefixes.len())
            .filter(|&place| self.is_available(self.prefixes[place].block))
            .filter(|&place| is_leaf(&self.prefixes[place]));
        let least = candidates.min_by_key(|&place| {
            let prefix = &self.prefixes[place];
            (prefix.value, prefix.used, prefix.block)
        });
        let gone = self.prefixes.remove(least.expect("one that no other follows"));
        self.age = self.age.max(gone.value);
        self.forgotten.push((gone.namespace, gone.tokens.clone()));
        self.evicted.push((gone.block, gone.namespace, gone.tokens));
    }

    /// A table gives `block` back: steps that named the table may still use it.
    fn let_go(&mut self, block: BlockIndex, last_use: Option<StepIndex>) {
        if let Some(step) = last_use.filter(|step| step.0 >= self.settled as u64) {
            self.steps[step.0 as usize].push(block);
        }
        if self.is_held(block) {
            return;
        }
        let (age, used) = (self.age, self.uses);
        for prefix in self.prefixes.iter_mut().filter(|prefix| prefix.block == block) {
            let start = prefix.tokens.len() as u64 - u64::from(BLOCK_TOKENS);
            (prefix.value, prefix.used) = (age + BLOCK_COST + start, used);
        }
    }

    fn take(&mut self, index: usize, positions: u32) {
        let Some((namespace, text)) = self.tables[index].prefixes_of else { return };
        loop {
            let sealed = self.tables[index].sealed;
            let end = (sealed as u32 + 1) * BLOCK_TOKENS;
            let found = self.find(namespace, &tokens(text, end));
            let (true, Some(block)) = (end <= positions, found) else { return };
            let table = &mut self.tables[index];
            table.sealed += 1;
            if sealed < table.blocks.len() {
                let (own, last_use) = (table.blocks[sealed], table.last_use);
                table.blocks[sealed] = block;
                self.let_go(own, last_use);
            } else {
                table.blocks.push(block);
            }
        }
    }

    fn publish(&mut self, index: usize, positions: u32) {
        self.take(index, positions);
        let table = &mut self.tables[index];
        let Some((namespace, text)) = table.prefixes_of else { return };
        while (table.sealed as u32 + 1) * BLOCK_TOKENS <= positions {
            let block = table.blocks[table.sealed];
            table.sealed += 1;
            let tokens = tokens(text, table.sealed as u32 * BLOCK_TOKENS);
            self.forgotten.retain(|gone| *gone != (namespace, tokens.clone()));
            self.prefixes.push(Prefix { namespace, tokens, block, value: 0, used: 0 });
        }
    }

    /// Why a table found no more than it has of so many positions of its text, evictions apart;
    /// and whether what comes next was evicted.
    fn end_of_cached(&self, index: usize, positions: u32) -> (CachedEnd, bool) {
        let table = &self.tables[index];
        let Some((namespace, text)) = table.prefixes_of else { return (CachedEnd::Off, false) };
        let start = table.sealed as u32 * BLOCK_TOKENS;
        let end = start + BLOCK_TOKENS;
        if end > positions {
            return (if start == 0 { CachedEnd::Short } else { CachedEnd::Whole }, false);
        }
        let wanted = tokens(text, end);
        let beside = |prefix: &&Prefix| {
            prefix.namespace == namespace
                && prefix.tokens.len() as u32 == end
                && prefix.tokens.starts_with(&wanted[..start as usize])
        };
        let common = |prefix: &Prefix| {
            (0..end).find(|&at| prefix.tokens[at as usize] != wanted[at as usize])
        };
        let told = match self.prefixes.iter().filter(beside).filter_map(common).max() {
            Some(at) => CachedEnd::Differs { at },
            None if start == 0 => CachedEnd::New,
            None => CachedEnd::Ends,
        };
        (told, self.forgotten.contains(&(namespace, wanted)))
    }

    fn release(&mut self, index: usize) {
        self.uses += 1;
        let table = std::mem::take(&mut self.tables[index]);
        for &block in &table.blocks {
            self.let_go(block, table.last_use);
        }
    }
}

struct Both {
    pool: BlockPool,
    tables: Vec<BlockTable>,
    naive: Naive,
    namespaces: [Arc<CacheNamespace>; 2],
}

impl Both {
    fn apply(&mut self, act: &Act) {
        let Self { pool, tables, naive, namespaces } = self;
        match *act {
            Act::Enter { table, namespace, text, positions } => {
                pool.release(&mut tables[table], naive.tables[table].last_use);
                naive.release(table);
                let tokens = tokens(text, positions);
                let found = pool.cached_prefix(&namespaces[namespace], &tokens);
                pool.enter(&mut tables[table], &namespaces[namespace]);
                let taken = pool.take_cached(&mut tables[table], &tokens, None);
                assert_eq!(found.blocks as u32 * BLOCK_TOKENS, taken, "as was foretold");
                naive.tables[table].prefixes_of = Some((namespace, text));
                naive.take(table, positions);
                let told = pool.end_of_cached(&tables[table], &tokens);
                // Not every eviction is remembered.
                let (expected, was_evicted) = naive.end_of_cached(table, positions);
                let is_right = told == expected || told == CachedEnd::Evicted && was_evicted;
                assert!(is_right, "{told:?}, {expected:?}, {was_evicted}");
            }
            Act::Grow { table, positions } => {
                let old = naive.tables[table].blocks.len();
                let missing = pool.blocks_for(positions).saturating_sub(old);
                let free =
                    naive.count(|block| naive.is_available(block) && !naive.is_cached(block));
                let fits = missing <= naive.count(|block| naive.is_available(block));
                assert_eq!(pool.grow(&mut tables[table], positions), fits);
                (0..missing.saturating_sub(free)).filter(|_| fits).for_each(|_| naive.evict());
                let news = &tables[table].blocks()[old..];
                let unused = |&block| naive.is_available(block) && !naive.is_cached(block);
                assert!(news.iter().all(unused), "took a block in use");
                naive.tables[table].blocks = tables[table].blocks().to_vec();
            }
            Act::Take { table, positions } => {
                let Some((_, text)) = naive.tables[table].prefixes_of else { return };
                let last_use = naive.tables[table].last_use;
                pool.take_cached(&mut tables[table], &tokens(text, positions), last_use);
                naive.take(table, positions);
            }
            Act::Publish { table, positions } => {
                let Some((_, text)) = naive.tables[table].prefixes_of else { return };
                let covered = naive.tables[table].blocks.len() as u32 * BLOCK_TOKENS;
                let positions = positions.min(covered);
                let last_use = naive.tables[table].last_use;
                pool.publish(&mut tables[table], &tokens(text, positions), last_use);
                naive.publish(table, positions);
            }
            Act::Release { table } => {
                pool.release(&mut tables[table], naive.tables[table].last_use);
                naive.release(table);
            }
            Act::Submit { tables: mask } => {
                let step = StepIndex(naive.steps.len() as u64);
                let mut named = Vec::new();
                for table in (0..TABLES).filter(|table| mask >> table & 1 == 1) {
                    named.extend_from_slice(&naive.tables[table].blocks);
                    naive.tables[table].last_use = Some(step);
                }
                naive.steps.push(named);
            }
            Act::Settle if naive.settled < naive.steps.len() => {
                naive.steps[naive.settled].clear();
                pool.settle(StepIndex(naive.settled as u64));
                naive.settled += 1;
            }
            Act::Settle => {}
        }
    }

    fn compare(&self) {
        let Self { pool, tables, naive, .. } = self;
        for (table, twin) in tables.iter().zip(&naive.tables) {
            assert_eq!((table.blocks(), table.sealed()), (&*twin.blocks, twin.sealed));
        }
        for block in (0..BLOCKS).map(BlockIndex) {
            assert_eq!(pool.is_available(block), naive.is_available(block), "{block:?}");
            assert_eq!(pool.is_cached(block), naive.is_cached(block), "{block:?}");
        }
        let available = naive.count(|block| naive.is_available(block));
        assert_eq!(pool.available_count(), available);
        let cached = naive.count(|block| naive.is_available(block) && naive.is_cached(block));
        assert_eq!(pool.cached_count(), cached);
        pool.audit(tables.iter());
        let evicted: Vec<_> = pool.evictions().collect();
        assert_eq!(evicted.len(), naive.evicted.len());
        for (told, (block, namespace, tokens)) in evicted.iter().zip(&naive.evicted) {
            assert_eq!((told.block, told.tokens), (*block, &**tokens));
            assert_eq!(*told.namespace, self.namespaces[*namespace]);
        }
        let mut cached = Vec::new();
        pool.each_cached(|seen| cached.push((seen.block, seen.tokens.to_vec())));
        assert_eq!(cached.len(), naive.prefixes.len());
        for prefix in &naive.prefixes {
            assert!(cached.contains(&(prefix.block, prefix.tokens.clone())));
        }
        assert!(cached.is_sorted_by(|one, next| one.1.len() >= next.1.len()), "ends first");
    }
}

proptest! {
    #[test]
    fn pool_agrees_with_the_naive_model(acts in proptest::collection::vec(acts(), 1..150)) {
        let named = |tenant: &str| {
            Arc::new(CacheNamespace { tenant: tenant.to_owned(), ..CacheNamespace::default() })
        };
        let mut both = Both {
            pool: BlockPool::new(BLOCKS, BLOCK_TOKENS),
            tables: vec![BlockTable::default(); TABLES],
            naive: Naive {
                tables: vec![NaiveTable::default(); TABLES],
                prefixes: Vec::new(),
                steps: Vec::new(),
                settled: 0,
                age: 0,
                uses: 0,
                evicted: Vec::new(),
                forgotten: Vec::new(),
            },
            namespaces: [named("ann"), named("bob")],
        };
        both.pool.note_evictions();
        for act in &acts {
            both.pool.forget_evictions();
            both.naive.evicted.clear();
            both.apply(act);
            both.compare();
        }
    }
}
