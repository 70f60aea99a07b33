//! How do ranked merges turn symbols into tokens?
//!
//! Merges become a table from a pair of ids to its rank once, at load; then symbols are merged as
//! ids: the pair with the lowest rank first, the leftmost among equals. Short pieces are scanned,
//! long ones use a heap, so that n symbols cost O(n log n) at worst.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::token_table::{ByteArena, PairTable, TokenTable};
use crate::vocabulary::{VocabularyError, shorten};

/// No rank, no neighbour, no token.
pub(crate) const NONE: u32 = u32::MAX;
/// Pieces up to this many symbols are scanned for their best pair; measured best from 16 to 64.
pub(crate) const SCAN_LENGTH_MAX: usize = 32;

/// The two sides of a merge, as texts of the file.
pub(crate) type Sides<'a> = (&'a str, &'a str);

#[derive(Debug, Clone)]
pub(crate) struct RankedMerges {
    /// Rank of a pair.
    ranks: PairTable,
    /// What the pair of a rank becomes.
    merged: Vec<u32>,
}

/// A symbol of a long piece: a node of a list, with the rank of merging it with its right one.
#[derive(Debug, Clone, Copy)]
struct Node {
    id: u32,
    rank: u32,
    left: u32,
    right: u32,
}

/// Memory that pieces of one text share.
#[derive(Debug, Default)]
pub(crate) struct MergeScratch {
    nodes: Vec<Node>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    /// Id and rank with the next symbol.
    symbols: Vec<(u32, u32)>,
}

impl MergeScratch {
    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Node>() * self.nodes.capacity()
            + size_of::<(u32, u32)>() * (self.heap.capacity() + self.symbols.capacity())
    }
}

impl RankedMerges {
    /// Checks the merges, in order of rank, against the tokens; `table` finds the texts of
    /// `texts`. A merge that would give a token that is not text (a control token) is left out:
    /// where those are wanted they are found before merging, and elsewhere they must not appear.
    pub(crate) fn new<'a>(
        merges: impl ExactSizeIterator<Item = Result<Sides<'a>, VocabularyError>>,
        is_text: impl Fn(u32) -> bool,
        texts: &ByteArena,
        table: &TokenTable,
    ) -> Result<RankedMerges, VocabularyError> {
        let mut ranks = PairTable::with_capacity(merges.len());
        let mut merged = Vec::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, sides) in merges.enumerate() {
            let (left, right) = sides?;
            joined.clear();
            joined.extend_from_slice(left.as_bytes());
            joined.extend_from_slice(right.as_bytes());
            let find = |bytes: &[u8]| {
                table.find(texts, bytes).ok_or_else(|| VocabularyError::MergeOfUnknownToken {
                    rank,
                    text: shorten(&String::from_utf8_lossy(bytes)),
                })
            };
            let id = find(&joined)?;
            let (left, right) = (find(left.as_bytes())?, find(right.as_bytes())?);
            merged.push(id);
            if is_text(id) {
                let rank = u32::try_from(rank).expect("invariant: merges were counted before");
                ranks.insert(left, right, rank);
            }
        }
        Ok(RankedMerges { ranks, merged })
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.find(left, right).unwrap_or(NONE)
    }

    /// Appends what these symbols become. `short`: there are few of them, scan.
    pub(crate) fn merge(
        &self,
        ids: impl Iterator<Item = u32>,
        short: bool,
        scratch: &mut MergeScratch,
        out: &mut Vec<u32>,
    ) {
        if short {
            self.merge_short(ids, scratch, out);
        } else {
            self.merge_long(ids, scratch, out);
        }
    }

    fn merge_short(
        &self,
        ids: impl Iterator<Item = u32>,
        scratch: &mut MergeScratch,
        out: &mut Vec<u32>,
    ) {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        symbols.extend(ids.map(|id| (id, NONE)));
        for index in 1..symbols.len() {
            symbols[index - 1].1 = self.rank(symbols[index - 1].0, symbols[index].0);
        }
        loop {
            let best = symbols.iter().enumerate().min_by_key(|(_, symbol)| symbol.1);
            let Some((index, &(_, rank))) = best.filter(|(_, symbol)| symbol.1 != NONE) else {
                break;
            };
            let id = self.merged[rank as usize];
            symbols.remove(index + 1);
            symbols[index].0 = id;
            symbols[index].1 = symbols.get(index + 1).map_or(NONE, |next| self.rank(id, next.0));
            if index > 0 {
                symbols[index - 1].1 = self.rank(symbols[index - 1].0, id);
            }
        }
        out.extend(symbols.iter().map(|symbol| symbol.0));
    }

    fn merge_long(
        &self,
        ids: impl Iterator<Item = u32>,
        scratch: &mut MergeScratch,
        out: &mut Vec<u32>,
    ) {
        let MergeScratch { nodes, heap, .. } = scratch;
        self.start_nodes(ids, nodes);
        let mut first: Vec<Reverse<(u32, u32)>> = std::mem::take(heap).into_vec();
        first.clear();
        let ranked = (0u32..).zip(nodes.iter()).filter(|(_, node)| node.rank != NONE);
        first.extend(ranked.map(|(at, node)| Reverse((node.rank, at))));
        *heap = BinaryHeap::from(first);
        while let Some(Reverse((rank, at))) = heap.pop() {
            let node = nodes[at as usize];
            // A rank belongs to one pair, so an equal rank means that the pair is still there.
            // Merged-away nodes have no rank.
            if node.rank != rank {
                continue;
            }
            let id = self.merged[rank as usize];
            let gone = nodes[node.right as usize];
            nodes[node.right as usize].rank = NONE;
            let mut grown = Node { id, rank: NONE, left: node.left, right: gone.right };
            if let Some(next) = nodes.get_mut(gone.right as usize) {
                next.left = at;
                grown.rank = self.ranks.find(id, next.id).unwrap_or(NONE);
            }
            nodes[at as usize] = grown;
            if grown.rank != NONE {
                heap.push(Reverse((grown.rank, at)));
            }
            if let Some(before) = nodes.get_mut(node.left as usize) {
                before.rank = self.ranks.find(before.id, id).unwrap_or(NONE);
                if before.rank != NONE {
                    heap.push(Reverse((before.rank, node.left)));
                }
            }
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            out.push(node.id);
            at = node.right;
        }
    }

    fn start_nodes(&self, ids: impl Iterator<Item = u32>, nodes: &mut Vec<Node>) {
        nodes.clear();
        let linked = (0u32..).zip(ids);
        nodes.extend(linked.map(|(at, id)| Node {
            id,
            rank: NONE,
            left: at.wrapping_sub(1),
            right: at + 1,
        }));
        for index in 1..nodes.len() {
            nodes[index - 1].rank = self.rank(nodes[index - 1].id, nodes[index].id);
        }
        if let Some(last) = nodes.last_mut() {
            last.right = NONE;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// Three letters, and a token for each merge of two tokens before it that `choices` names.
    fn grown(choices: &[(Index, Index)]) -> RankedMerges {
        let mut tokens: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut merges = Vec::new();
        for (left, right) in choices {
            let (left, right) = (left.get(&tokens).clone(), right.get(&tokens).clone());
            let joined = format!("{left}{right}");
            if !tokens.contains(&joined) {
                tokens.push(joined);
            }
            merges.push((left, right));
        }
        let mut texts = ByteArena::default();
        let mut table = TokenTable::with_capacity(tokens.len());
        for (id, text) in (0u32..).zip(&tokens) {
            texts.push(|data| data.extend_from_slice(text.as_bytes()));
            table.insert(&texts, id).unwrap();
        }
        let sides = merges.iter().map(|(left, right)| Ok((left.as_str(), right.as_str())));
        RankedMerges::new(sides, |_| true, &texts, &table).unwrap()
    }

    fn letters(text: &str) -> impl Iterator<Item = u32> {
        text.bytes().map(|letter| u32::from(letter - b'a'))
    }

    /// The rule itself, slow and obvious: merge the lowest rank, leftmost first, until none is.
    fn merge_by_the_rule(merges: &RankedMerges, text: &str) -> Vec<u32> {
        let mut ids: Vec<u32> = letters(text).collect();
        loop {
            let ranked = ids.windows(2).enumerate();
            let best = ranked.map(|(at, pair)| (merges.rank(pair[0], pair[1]), at)).min();
            let Some((rank, at)) = best.filter(|(rank, _)| *rank != NONE) else { return ids };
            ids.splice(at..at + 2, [merges.merged[rank as usize]]);
        }
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_follow_the_rule(
            choices in prop::collection::vec(any::<(Index, Index)>(), 1..14),
            text in "[abc]{0,60}",
        ) {
            let merges = grown(&choices);
            let expected = merge_by_the_rule(&merges, &text);
            let (mut scratch, mut short, mut long) = (MergeScratch::default(), vec![], vec![]);
            merges.merge(letters(&text), true, &mut scratch, &mut short);
            merges.merge(letters(&text), false, &mut scratch, &mut long);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }
}
