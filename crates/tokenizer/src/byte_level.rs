//! How do the merges of a byte-level vocabulary turn a piece of text into tokens?
//!
//! Such files spell each byte as one printable character (GPT-2's alphabet). Merges become a table
//! from a pair of ids to its rank once, at load; then the text is merged as ids: the pair with the
//! lowest rank first, the leftmost among equals. Short pieces are scanned, long ones use a heap,
//! so that a piece of n bytes costs O(n log n) at worst.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::cuts::CutRule;
use crate::piece_cache::PieceCache;
use crate::pre_tokenizer::{PreTokenizer, pre_tokenizer_names};
use crate::token_table::{ByteArena, PairTable, TokenTable};
use crate::vocabulary::{TokenType, Vocabulary, VocabularyError, shorten};

/// GPT-2's alphabet: bytes that print stand for themselves, the others follow U+0100 in order.
#[derive(Debug, Clone)]
pub(crate) struct Alphabet {
    characters: [char; 256],
}

impl Alphabet {
    pub(crate) fn new() -> Alphabet {
        let mut characters = ['\0'; 256];
        let mut next = 0x100;
        for (byte, character) in (0u8..=255).zip(&mut characters) {
            *character = match byte {
                0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
                _ => {
                    let shifted = char::from_u32(next);
                    next += 1;
                    shifted.expect("invariant: at most 68 characters after U+0100")
                }
            };
        }
        Alphabet { characters }
    }

    /// The byte that a character spells.
    fn byte(&self, character: char) -> Option<u8> {
        match u32::from(character) {
            code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
            // 33 below 0x21, 0x7F to 0xA0, 0xAD: in this order from U+0100 on.
            code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
            code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
            0x143 => Some(0xAD),
            _ => None,
        }
    }

    /// Writes the bytes that a token spells; the text itself where it is not of the alphabet.
    pub(crate) fn write_bytes(&self, text: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for character in text.chars() {
            match self.byte(character) {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    }

    fn write_text(&self, bytes: &[u8], out: &mut String) {
        out.extend(bytes.iter().map(|&byte| self.characters[usize::from(byte)]));
    }
}

/// No rank, no neighbour, no token.
const NONE: u32 = u32::MAX;
/// Pieces up to this many bytes are scanned for their best pair; measured best from 16 to 64.
const SCAN_LENGTH_MAX: usize = 32;

#[derive(Debug, Clone)]
pub(crate) struct ByteLevelBpe {
    pre_tokenizer: PreTokenizer,
    alphabet: Alphabet,
    /// The token of each byte; `NONE` where the vocabulary has none.
    byte_tokens: Vec<u32>,
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
pub(crate) struct ByteLevelScratch {
    nodes: Vec<Node>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    /// Id and rank with the next symbol.
    symbols: Vec<(u32, u32)>,
    spelled: String,
}

impl ByteLevelScratch {
    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Node>() * self.nodes.capacity()
            + size_of::<(u32, u32)>() * (self.heap.capacity() + self.symbols.capacity())
            + self.spelled.capacity()
    }
}

impl ByteLevelBpe {
    /// Checks the merges against the tokens. `table` finds the texts of `texts`.
    pub(crate) fn new(
        vocabulary: &Vocabulary<'_>,
        texts: &ByteArena,
        table: &TokenTable,
    ) -> Result<ByteLevelBpe, VocabularyError> {
        let name = vocabulary.pre_tokenizer;
        let pre_tokenizer = PreTokenizer::named(name)
            .ok_or_else(|| VocabularyError::UnknownPreTokenizer {
                name: shorten(name),
                known: pre_tokenizer_names().collect::<Vec<_>>().join(", "),
            })?
            .map_err(|reason| VocabularyError::Unprepared { reason })?;
        let alphabet = Alphabet::new();
        let mut buffer = [0u8; 4];
        let byte_tokens: Vec<u32> = alphabet
            .characters
            .iter()
            .map(|character| {
                let spelled = character.encode_utf8(&mut buffer);
                let id = table.find(texts, spelled.as_bytes());
                id.filter(|id| is_text(vocabulary, *id)).unwrap_or(NONE)
            })
            .collect();
        if byte_tokens.iter().all(|id| *id == NONE) {
            return Err(VocabularyError::NoByteTokens);
        }
        if vocabulary.merges.is_empty() {
            return Err(VocabularyError::NoMerges);
        }
        let (ranks, merged) = read_merges(vocabulary, texts, table)?;
        Ok(ByteLevelBpe { pre_tokenizer, alphabet, byte_tokens, ranks, merged })
    }

    /// Whether files with this pre-tokenizer mean a begin token where they do not say.
    pub(crate) fn adds_bos(&self) -> bool {
        self.pre_tokenizer.adds_bos
    }

    /// Appends the tokens of a text without special tokens. A byte that the vocabulary cannot
    /// spell is left out, as in the implementations that these vocabularies come from.
    pub(crate) fn encode(
        &self,
        text: &str,
        whole: impl Fn(&[u8]) -> Option<u32>,
        scratch: &mut ByteLevelScratch,
        cache: &mut PieceCache,
        out: &mut Vec<u32>,
    ) {
        self.pre_tokenizer.split(text, |piece| {
            let place = cache.place(piece.as_bytes());
            if let Some(tokens) = place.and_then(|place| cache.find(place)) {
                out.extend_from_slice(tokens);
                return;
            }
            let start = out.len();
            self.merge(piece, &whole, scratch, out);
            if let Some(place) = place {
                cache.keep(place, &out[start..]);
            }
        });
    }

    fn merge(
        &self,
        piece: &str,
        whole: &impl Fn(&[u8]) -> Option<u32>,
        scratch: &mut ByteLevelScratch,
        out: &mut Vec<u32>,
    ) {
        if self.pre_tokenizer.whole_pieces {
            scratch.spelled.clear();
            self.alphabet.write_text(piece.as_bytes(), &mut scratch.spelled);
            if let Some(id) = whole(scratch.spelled.as_bytes()) {
                out.push(id);
                return;
            }
        }
        if piece.len() <= SCAN_LENGTH_MAX {
            self.merge_short(piece.as_bytes(), scratch, out);
        } else {
            self.merge_long(piece.as_bytes(), scratch, out);
        }
    }

    /// Where texts may be cut.
    pub(crate) fn cut_rule(&self) -> CutRule {
        self.pre_tokenizer.cuts
    }

    fn ids<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
        bytes.iter().map(|&byte| self.byte_tokens[usize::from(byte)]).filter(|id| *id != NONE)
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.find(left, right).unwrap_or(NONE)
    }

    fn merge_short(&self, bytes: &[u8], scratch: &mut ByteLevelScratch, out: &mut Vec<u32>) {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        symbols.extend(self.ids(bytes).map(|id| (id, NONE)));
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

    fn merge_long(&self, bytes: &[u8], scratch: &mut ByteLevelScratch, out: &mut Vec<u32>) {
        let ByteLevelScratch { nodes, heap, .. } = scratch;
        self.start_nodes(bytes, nodes);
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

    fn start_nodes(&self, bytes: &[u8], nodes: &mut Vec<Node>) {
        nodes.clear();
        let linked = (0u32..).zip(self.ids(bytes));
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

/// Whether merging text may give this token: control tokens never come from text.
fn is_text(vocabulary: &Vocabulary<'_>, id: u32) -> bool {
    let token_type = vocabulary.token_type(id as usize);
    !matches!(token_type, TokenType::Control | TokenType::Unknown)
}

/// The table of merges. One that would give a control token is left out: where control tokens are
/// wanted they are found before merging, and elsewhere they must not appear.
fn read_merges(
    vocabulary: &Vocabulary<'_>,
    texts: &ByteArena,
    table: &TokenTable,
) -> Result<(PairTable, Vec<u32>), VocabularyError> {
    let mut ranks = PairTable::with_capacity(vocabulary.merges.len());
    let mut merged = Vec::with_capacity(vocabulary.merges.len());
    let mut joined = Vec::new();
    for (rank, text) in vocabulary.merges.iter().enumerate() {
        let bad = || VocabularyError::BadMerge { rank, text: shorten(text) };
        // A first character may itself be a space in files with an alphabet of their own.
        let space = text.bytes().skip(1).position(|byte| byte == b' ').ok_or_else(bad)? + 1;
        let (left, right) = (&text.as_bytes()[..space], &text.as_bytes()[space + 1..]);
        if right.is_empty() {
            return Err(bad());
        }
        joined.clear();
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        let find = |bytes: &[u8]| {
            table.find(texts, bytes).ok_or_else(|| VocabularyError::MergeOfUnknownToken {
                rank,
                text: shorten(&String::from_utf8_lossy(bytes)),
            })
        };
        let (left, right, id) = (find(left)?, find(right)?, find(&joined)?);
        merged.push(id);
        if is_text(vocabulary, id) {
            let rank = u32::try_from(rank).expect("invariant: merges were counted before");
            ranks.insert(left, right, rank);
        }
    }
    Ok((ranks, merged))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::vocabulary::VocabularyKind;

    /// Three letters, and a token for each merge of two tokens before it that `choices` names.
    fn grown(choices: &[(Index, Index)]) -> ByteLevelBpe {
        let mut tokens: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut merges = Vec::new();
        for (left, right) in choices {
            let (left, right) = (left.get(&tokens).clone(), right.get(&tokens).clone());
            let joined = format!("{left}{right}");
            if !tokens.contains(&joined) {
                tokens.push(joined);
            }
            merges.push(format!("{left} {right}"));
        }
        let mut texts = ByteArena::default();
        let mut table = TokenTable::with_capacity(tokens.len());
        for (id, text) in (0u32..).zip(&tokens) {
            texts.push(|data| data.extend_from_slice(text.as_bytes()));
            table.insert(&texts, id).unwrap();
        }
        let vocabulary = Vocabulary {
            kind: VocabularyKind::ByteLevelBpe,
            pre_tokenizer: "gpt-2",
            tokens: tokens.iter().map(String::as_str).collect(),
            token_types: vec![],
            scores: vec![],
            merges: merges.iter().map(String::as_str).collect(),
            bos: None,
            eos: None,
            eot: None,
            unknown: None,
            pad: None,
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
        };
        ByteLevelBpe::new(&vocabulary, &texts, &table).unwrap()
    }

    /// The rule itself, slow and obvious: merge the lowest rank, leftmost first, until none is.
    fn merge_by_the_rule(bpe: &ByteLevelBpe, bytes: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = bpe.ids(bytes).collect();
        loop {
            let ranked = ids.windows(2).enumerate();
            let best = ranked.map(|(at, pair)| (bpe.rank(pair[0], pair[1]), at)).min();
            let Some((rank, at)) = best.filter(|(rank, _)| *rank != NONE) else { return ids };
            ids.splice(at..at + 2, [bpe.merged[rank as usize]]);
        }
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_follow_the_rule(
            choices in prop::collection::vec(any::<(Index, Index)>(), 1..14),
            text in "[abc]{0,60}",
        ) {
            let bpe = grown(&choices);
            let expected = merge_by_the_rule(&bpe, text.as_bytes());
            let (mut scratch, mut short, mut long) = (ByteLevelScratch::default(), vec![], vec![]);
            bpe.merge_short(text.as_bytes(), &mut scratch, &mut short);
            bpe.merge_long(text.as_bytes(), &mut scratch, &mut long);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }

    #[test]
    fn the_alphabet_goes_both_ways() {
        let alphabet = Alphabet::new();
        for byte in 0..=255u8 {
            let mut text = String::new();
            alphabet.write_text(&[byte], &mut text);
            let mut bytes = Vec::new();
            alphabet.write_bytes(&text, &mut bytes);
            assert_eq!(bytes, [byte]);
        }
        assert_eq!(alphabet.characters[usize::from(b' ')], 'Ġ');
        assert_eq!(alphabet.characters[usize::from(b'\n')], 'Ċ');
        let mut bytes = Vec::new();
        alphabet.write_bytes("a b", &mut bytes);
        assert_eq!(bytes, b"a b", "not of the alphabet: kept as it is");
    }
}
