//! Which blocks follow a block, or begin a namespace? Lists through the blocks themselves, the
//! youngest first: nothing is allocated, and a block enters and leaves at once.

use messages::BlockIndex;

use crate::prefix_tree::{NONE, Parent};

#[derive(Clone, Debug)]
pub(crate) struct Children {
    /// By block: the youngest that follows it.
    of_block: Vec<u32>,
    /// By root: the youngest at the start of a text.
    of_root: Vec<u32>,
    /// By block: the next older and the next younger with the same parent.
    older: Vec<u32>,
    younger: Vec<u32>,
}

impl Children {
    pub(crate) fn new(block_count: usize) -> Self {
        let none = || vec![NONE; block_count];
        Self { of_block: none(), of_root: none(), older: none(), younger: none() }
    }

    pub(crate) fn add(&mut self, parent: Parent, block: BlockIndex) {
        let before = std::mem::replace(self.first(parent), block.0);
        self.older[block.0 as usize] = before;
        self.younger[block.0 as usize] = NONE;
        if before != NONE {
            self.younger[before as usize] = block.0;
        }
    }

    pub(crate) fn remove(&mut self, parent: Parent, block: BlockIndex) {
        let (older, younger) = (self.older[block.0 as usize], self.younger[block.0 as usize]);
        match younger {
            NONE => *self.first(parent) = older,
            younger => self.older[younger as usize] = older,
        }
        if older != NONE {
            self.younger[older as usize] = younger;
        }
    }

    pub(crate) fn of(&self, parent: Parent) -> impl Iterator<Item = BlockIndex> + '_ {
        let first = match parent {
            Parent::Block(block) => self.of_block[block.0 as usize],
            Parent::Root(root) => self.of_root.get(root.0 as usize).copied().unwrap_or(NONE),
        };
        let some = |block: u32| (block != NONE).then_some(block);
        std::iter::successors(some(first), move |&block| some(self.older[block as usize]))
            .map(BlockIndex)
    }

    fn first(&mut self, parent: Parent) -> &mut u32 {
        match parent {
            Parent::Block(block) => &mut self.of_block[block.0 as usize],
            Parent::Root(root) => {
                let root = root.0 as usize;
                if root >= self.of_root.len() {
                    // More namespaces than blocks: sequences wait in some that hold nothing.
                    self.of_root.resize(root + 1, NONE);
                }
                &mut self.of_root[root]
            }
        }
    }
}
