//! Which full blocks of which prompts are in the pool?
//!
//! A tree: a node is one full block, so nodes are named by their blocks; its parent is the block of
//! the tokens before it, or the root of its namespace. A child is found by a hash of its parent and
//! tokens and then compared token by token: a hash is never trusted with one user's text. A chain
//! of equal hashes is at most as long as the pool has blocks, whoever chooses the tokens.
//!
//! The tree knows no holders; [`crate::BlockPool`] tells it what nobody holds. All memory but the
//! names of namespaces is allocated at the start.

use std::sync::Arc;

use messages::{BlockIndex, CacheNamespace, TokenId};

use crate::children::Children;
use crate::eviction::EvictionHeap;
use crate::forgotten::{Forgotten, Mark, mix};

pub(crate) const NONE: u32 = u32::MAX;

/// A namespace in use: some node is of it or some table looks things up in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootIndex(pub(crate) u32);

/// What a block follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    Root(RootIndex),
    Block(BlockIndex),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) parent: Parent,
    root: RootIndex,
    /// Blocks before it.
    pub(crate) depth: u32,
    pub(crate) children: u32,
    /// The next block of the same bucket.
    next: u32,
}

#[derive(Clone, Debug)]
struct Root {
    namespace: Arc<CacheNamespace>,
    /// Tables and nodes of it.
    users: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct PrefixTree {
    block_tokens: usize,
    /// By block; `None`: not in the tree.
    nodes: Vec<Option<Node>>,
    /// `[blocks, block_tokens]`
    tokens: Vec<TokenId>,
    /// First block of each chain; a power of two of them.
    buckets: Vec<u32>,
    roots: Vec<Option<Root>>,
    /// Roots in use, by namespace.
    names: Vec<u32>,
    node_count: usize,
    children: Children,
    forgotten: Forgotten,
    pub(crate) heap: EvictionHeap,
}

impl PrefixTree {
    pub(crate) fn new(block_count: usize, block_tokens: u32) -> Self {
        Self {
            block_tokens: block_tokens as usize,
            nodes: vec![None; block_count],
            tokens: vec![0; block_count * block_tokens as usize],
            buckets: vec![NONE; block_count.next_power_of_two()],
            roots: Vec::with_capacity(block_count),
            names: Vec::with_capacity(block_count),
            node_count: 0,
            children: Children::new(block_count),
            forgotten: Forgotten::new(block_count),
            heap: EvictionHeap::new(block_count),
        }
    }

    pub(crate) fn node(&self, block: BlockIndex) -> Option<&Node> {
        self.nodes[block.0 as usize].as_ref()
    }

    pub(crate) fn contains(&self, block: BlockIndex) -> bool {
        self.node(block).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.node_count
    }

    /// The root of a namespace that is in use.
    pub(crate) fn root(&self, namespace: &CacheNamespace) -> Option<RootIndex> {
        let place = self.place_of_name(namespace).ok()?;
        Some(RootIndex(self.names[place]))
    }

    /// The root of a namespace, with one more user.
    pub(crate) fn enter(&mut self, namespace: &Arc<CacheNamespace>) -> RootIndex {
        let root = match self.place_of_name(namespace) {
            Ok(place) => RootIndex(self.names[place]),
            Err(place) => {
                let fresh = Some(Root { namespace: Arc::clone(namespace), users: 0 });
                let index = self.roots.iter().position(Option::is_none).unwrap_or_else(|| {
                    self.roots.push(None);
                    self.roots.len() - 1
                });
                self.roots[index] = fresh;
                self.names.insert(place, index as u32);
                RootIndex(index as u32)
            }
        };
        self.root_mut(root).users += 1;
        root
    }

    /// One user less; a namespace without users is forgotten.
    pub(crate) fn leave(&mut self, root: RootIndex) {
        let entry = self.root_mut(root);
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        let namespace = Arc::clone(&entry.namespace);
        let place = self.place_of_name(&namespace).expect("invariant: a root in use has a name");
        self.names.remove(place);
        self.roots[root.0 as usize] = None;
    }

    pub(crate) fn namespace(&self, root: RootIndex) -> Arc<CacheNamespace> {
        let root = self.roots[root.0 as usize].as_ref();
        Arc::clone(&root.expect("invariant: the root is in use").namespace)
    }

    fn place_of_name(&self, namespace: &CacheNamespace) -> Result<usize, usize> {
        self.names.binary_search_by(|&index| {
            let root = self.roots[index as usize].as_ref();
            let root = root.expect("invariant: a named root is in use");
            root.namespace.as_ref().cmp(namespace)
        })
    }

    fn root_mut(&mut self, root: RootIndex) -> &mut Root {
        self.roots[root.0 as usize].as_mut().expect("invariant: the root is in use")
    }

    /// The block that holds `tokens` after `parent`.
    pub(crate) fn child(&self, parent: Parent, tokens: &[TokenId]) -> Option<BlockIndex> {
        assert_eq!(tokens.len(), self.block_tokens, "only full blocks are in the tree");
        let mut block = self.buckets[self.bucket(parent, tokens)];
        while block != NONE {
            let node = self.node(BlockIndex(block)).expect("invariant: chains hold nodes");
            if node.parent == parent && self.tokens_of(BlockIndex(block)) == tokens {
                return Some(BlockIndex(block));
            }
            block = node.next;
        }
        None
    }

    /// Puts a block of computed positions into the tree.
    pub(crate) fn insert(
        &mut self,
        root: RootIndex,
        parent: Parent,
        tokens: &[TokenId],
        block: BlockIndex,
    ) {
        assert!(!self.contains(block), "{block:?} is in the tree already");
        assert!(self.child(parent, tokens).is_none(), "two blocks of the same tokens");
        let depth = match parent {
            Parent::Root(own) => {
                assert_eq!(own, root, "a block of another namespace");
                0
            }
            Parent::Block(parent) => {
                let node = self.nodes[parent.0 as usize].as_mut();
                let node = node.expect("invariant: a parent is in the tree");
                assert_eq!(node.root, root, "a block of another namespace");
                node.children += 1;
                node.depth + 1
            }
        };
        let bucket = self.bucket(parent, tokens);
        let next = std::mem::replace(&mut self.buckets[bucket], block.0);
        self.nodes[block.0 as usize] = Some(Node { parent, root, depth, children: 0, next });
        let start = block.0 as usize * self.block_tokens;
        self.tokens[start..start + self.block_tokens].copy_from_slice(tokens);
        self.node_count += 1;
        self.root_mut(root).users += 1;
        let mark = self.mark_behind(parent, tokens);
        self.children.add(parent, block);
        self.forgotten.enters(block, mark);
    }

    /// Takes a block that no other follows out of the tree. Returns its parent if that is a block.
    pub(crate) fn remove(&mut self, block: BlockIndex) -> Option<BlockIndex> {
        let node = self.nodes[block.0 as usize].as_ref().expect("invariant: it is in the tree");
        assert_eq!(node.children, 0, "{block:?} leaves blocks behind that follow it");
        let (parent, root, next) = (node.parent, node.root, node.next);
        let bucket = self.bucket(parent, self.tokens_of(block));
        if self.buckets[bucket] == block.0 {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket];
            loop {
                let node = self.nodes[before as usize].as_mut();
                let node = node.expect("invariant: chains hold nodes");
                if node.next == block.0 {
                    node.next = next;
                    break;
                }
                before = node.next;
            }
        }
        self.nodes[block.0 as usize] = None;
        self.node_count -= 1;
        self.children.remove(parent, block);
        self.forgotten.leaves(block);
        self.leave(root);
        match parent {
            Parent::Root(_) => None,
            Parent::Block(parent) => {
                let node = self.nodes[parent.0 as usize].as_mut();
                node.expect("invariant: a parent is in the tree").children -= 1;
                Some(parent)
            }
        }
    }

    /// Blocks that follow `parent`, the youngest first.
    pub(crate) fn children(&self, parent: Parent) -> impl Iterator<Item = BlockIndex> + '_ {
        self.children.of(parent)
    }

    /// Whether a block with `tokens` followed `parent` once and was evicted, as far as is known.
    pub(crate) fn was_evicted(&self, parent: Parent, tokens: &[TokenId]) -> bool {
        self.forgotten.was_evicted(self.mark_behind(parent, tokens))
    }

    fn mark_behind(&self, parent: Parent, tokens: &[TokenId]) -> Mark {
        let before = match parent {
            Parent::Root(root) => Mark::of_namespace(&self.namespace(root)),
            Parent::Block(block) => self.forgotten.mark(block),
        };
        before.then(tokens)
    }

    /// Appends all tokens from position 0 to the end of `block`; returns whose they are.
    pub(crate) fn prefix(
        &self,
        block: BlockIndex,
        tokens: &mut Vec<TokenId>,
    ) -> Arc<CacheNamespace> {
        let node = self.node(block).expect("invariant: it is in the tree");
        let start = tokens.len();
        let (mut place, mut above) = (start + (node.depth as usize + 1) * self.block_tokens, block);
        tokens.resize(place, 0);
        loop {
            place -= self.block_tokens;
            tokens[place..place + self.block_tokens].copy_from_slice(self.tokens_of(above));
            match self.node(above).expect("invariant: a parent is in the tree").parent {
                Parent::Block(parent) => above = parent,
                Parent::Root(_) => break,
            }
        }
        assert_eq!(place, start, "as many blocks as it is deep");
        let root = self.roots[node.root.0 as usize].as_ref();
        Arc::clone(&root.expect("invariant: the root is in use").namespace)
    }

    pub(crate) fn tokens_of(&self, block: BlockIndex) -> &[TokenId] {
        let start = block.0 as usize * self.block_tokens;
        &self.tokens[start..start + self.block_tokens]
    }

    fn bucket(&self, parent: Parent, tokens: &[TokenId]) -> usize {
        let start = match parent {
            Parent::Root(root) => u64::from(root.0) << 32,
            Parent::Block(block) => u64::from(block.0) << 32 | 1,
        };
        let hash = tokens.iter().fold(mix(0, start), |hash, &token| mix(hash, u64::from(token)));
        hash as usize & (self.buckets.len() - 1)
    }

    /// # Panics
    /// When the tree contradicts itself. `is_held` tells of tables, `tables` counts those that are
    /// in each namespace.
    pub(crate) fn audit(&self, is_held: impl Fn(BlockIndex) -> bool, tables: &[RootIndex]) {
        let mut children = vec![0; self.nodes.len()];
        let mut users = vec![0; self.roots.len()];
        tables.iter().for_each(|root| users[root.0 as usize] += 1);
        let blocks = (0..self.nodes.len() as u32).map(BlockIndex);
        for block in blocks.clone().filter(|&block| self.contains(block)) {
            let node = self.node(block).expect("invariant: filtered above");
            users[node.root.0 as usize] += 1;
            let found = self.child(node.parent, self.tokens_of(block));
            assert_eq!(found, Some(block), "{block:?} is not found by its tokens");
            let Parent::Block(parent) = node.parent else {
                assert_eq!((node.parent, node.depth), (Parent::Root(node.root), 0), "{block:?}");
                continue;
            };
            let above = self.node(parent).expect("invariant: a parent is in the tree");
            assert_eq!((above.root, above.depth + 1), (node.root, node.depth), "{block:?}");
            assert!(!is_held(block) || is_held(parent), "{block:?} is held without its parent");
            children[parent.0 as usize] += 1;
        }
        let nodes = blocks.filter_map(|block| self.node(block).map(|node| (block, node)));
        assert_eq!(nodes.clone().count(), self.len(), "the count of nodes");
        for (block, node) in nodes {
            assert_eq!(node.children, children[block.0 as usize], "children of {block:?}");
            let listed = self.children(Parent::Block(block)).count();
            assert_eq!(listed, node.children as usize, "the list behind {block:?}");
            let is_listed = self.children(node.parent).any(|child| child == block);
            assert!(is_listed, "{block:?} is not in the list of its parent");
        }
        for (index, &count) in users.iter().enumerate() {
            let counted = self.roots[index].as_ref().map_or(0, |root| root.users);
            assert_eq!(counted, count, "users of root {index}");
        }
        self.heap.audit();
    }
}
