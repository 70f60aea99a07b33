//! Has the sequence said this before? Then it may go on as it did then.
//!
//! Prompt lookup (<https://github.com/apoorvumang/prompt-lookup-decoding>): answers that quote,
//! edit or summarize repeat long stretches of their own text. A table remembers where each pair and
//! each four of tokens last ended; the sequence's last tokens are looked up there, and from then on
//! the place is followed for as long as it is right. Each token costs a few table accesses.
//!
//! When the followed place is wrong once, the place after it is tried: one word was exchanged.

use messages::TokenId;

/// Runs of tokens that are remembered; a longer run says more about what follows.
const RUNS: [usize; 2] = [4, 2];
/// A match this long is as good as any longer one.
const MATCHED_MAX: u32 = 64;
/// An empty place of the table; no sequence is so long.
const EMPTY: u32 = u32::MAX;

/// The text of one sequence, and where it may be repeating itself.
#[derive(Clone, Debug)]
pub struct PromptLookup {
    tokens: Vec<TokenId>,
    /// Where runs end, by the hash of their tokens; later ones replace earlier ones. At least
    /// twice as many places as runs, so 32 bytes a token at most.
    ends: Vec<u32>,
    follow: Option<Follow>,
}

/// A place in the text that the sequence seems to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Follow {
    /// The guess is `tokens[next]`.
    next: u32,
    /// Tokens before it that were the same as the last ones.
    matched: u32,
}

impl PromptLookup {
    /// Reads the prompt.
    pub fn new(prompt: &[TokenId]) -> Self {
        let mut lookup = Self { tokens: Vec::new(), ends: Vec::new(), follow: None };
        prompt.iter().for_each(|&token| lookup.push(token));
        lookup
    }

    /// How many tokens before the place followed are the same as the sequence's last ones: 0 when
    /// the last guess was wrong, `None` when no place is followed.
    pub fn matched(&self) -> Option<u32> {
        self.follow.map(|follow| follow.matched)
    }

    /// The guesses at what comes next, at most as many as the text goes on for.
    pub fn guesses(&self, most: usize) -> &[TokenId] {
        let Some(follow) = self.follow else { return &[] };
        let next = follow.next as usize;
        &self.tokens[next..self.tokens.len().min(next + most)]
    }

    /// Takes in the sequence's next token.
    pub fn push(&mut self, token: TokenId) {
        let was_right = self.guesses(1) == [token];
        self.tokens.push(token);
        self.follow = self.follow.and_then(|follow| {
            let next = follow.next + 1;
            match (was_right, follow.matched) {
                (true, matched) => Some(Follow { next, matched: (matched + 1).min(MATCHED_MAX) }),
                // Two wrong ones in a row: this is another text.
                (false, 0) => None,
                (false, _) => Some(Follow { next, matched: 0 }),
            }
        });
        self.make_room();
        for run in RUNS {
            self.look_up(run);
        }
        for run in RUNS {
            self.remember(run);
        }
    }

    /// Follows the last place with the same `run` last tokens, if more of it is the same than of
    /// the place followed.
    fn look_up(&mut self, run: usize) {
        let matched = self.follow.map_or(0, |follow| follow.matched);
        if matched as usize >= run {
            return;
        }
        let Some(place) = self.place(run) else { return };
        let next = self.ends[place];
        if next == EMPTY {
            return;
        }
        let before = self.tokens[..next as usize].iter().rev();
        let same = before.zip(self.tokens.iter().rev()).take(MATCHED_MAX as usize);
        let found = same.take_while(|(earlier, last)| earlier == last).count() as u32;
        // Fewer than the run: another run with the same hash.
        if found as usize >= run && found > matched {
            self.follow = Some(Follow { next, matched: found });
        }
    }

    /// Notes where the last `run` tokens end.
    fn remember(&mut self, run: usize) {
        if let Some(place) = self.place(run) {
            self.ends[place] = self.tokens.len() as u32;
        }
    }

    /// The table's place of the last `run` tokens, if there are as many.
    fn place(&self, run: usize) -> Option<usize> {
        let start = self.tokens.len().checked_sub(run)?;
        // Multiplicative hashing (Knuth, The Art of Computer Programming 3, 6.4): the high bits.
        let hash = self.tokens[start..].iter().fold(run as u64, |hash, &token| {
            (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        Some((hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - self.ends.len().ilog2())) as usize)
    }

    /// Doubles the table before it is more than half full.
    fn make_room(&mut self) {
        let needed = 2 * RUNS.len() * self.tokens.len();
        if needed <= self.ends.len() {
            return;
        }
        self.ends = vec![EMPTY; needed.next_power_of_two().max(64)];
        let tokens = std::mem::take(&mut self.tokens);
        for &token in &tokens[..tokens.len() - 1] {
            self.tokens.push(token);
            RUNS.iter().for_each(|&run| self.remember(run));
        }
        self.tokens = tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::PromptLookup;

    #[test]
    fn a_repeated_text_is_guessed() {
        let mut lookup = PromptLookup::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(lookup.guesses(4), [0; 0]);
        lookup.push(3);
        assert_eq!(lookup.guesses(4), [0; 0], "one token is no run");
        lookup.push(4);
        assert_eq!((lookup.guesses(3), lookup.matched()), (&[5, 6, 7][..], Some(2)));
        lookup.push(5);
        lookup.push(6);
        assert_eq!((lookup.guesses(2), lookup.matched()), (&[7, 8][..], Some(4)));
    }

    #[test]
    fn an_exchanged_token_is_stepped_over() {
        let mut lookup = PromptLookup::new(&[1, 2, 3, 4, 5, 6, 1, 2, 3]);
        lookup.push(9);
        assert_eq!((lookup.guesses(2), lookup.matched()), (&[5, 6][..], Some(0)));
        lookup.push(5);
        assert_eq!(lookup.matched(), Some(1));
        lookup.push(8);
        lookup.push(8);
        assert_eq!(lookup.guesses(2), [0; 0], "two wrong ones end it");
    }

    #[test]
    fn a_longer_match_replaces_a_shorter_one() {
        // The pair 3 4 last went on with 9, after 1 2 it went on with 5.
        let mut lookup = PromptLookup::new(&[1, 2, 3, 4, 5, 6, 7, 3, 4, 9]);
        for token in [1, 2, 3, 4] {
            lookup.push(token);
        }
        assert_eq!(lookup.guesses(1), [5]);
    }

    #[test]
    fn a_text_guesses_up_to_its_own_end() {
        let mut lookup = PromptLookup::new(&[1, 2, 1, 2]);
        assert_eq!(lookup.guesses(8), [1, 2]);
        lookup.push(1);
        assert_eq!(lookup.guesses(8), [2, 1]);
    }

    /// The slow twin: the longest earlier match, searched for at every place.
    fn longest_match(tokens: &[u32]) -> usize {
        let matched = |end: usize| {
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            pairs.take_while(|(a, b)| a == b).count()
        };
        (1..tokens.len()).map(matched).max().unwrap_or(0)
    }

    #[test]
    fn the_table_finds_what_a_search_finds() {
        // Pairs of a small alphabet repeat all the time. The table must never follow a place whose
        // tokens differ, and miss few: only where two runs have one place.
        let (mut state, mut tokens, mut found, mut missed) = (7u64, Vec::new(), 0, 0);
        let mut lookup = PromptLookup::new(&[]);
        for _ in 0..3000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let token = (state >> 33) as u32 % 40;
            tokens.push(token);
            lookup.push(token);
            let longest = longest_match(&tokens);
            let Some(follow) = lookup.follow.filter(|follow| follow.matched > 0) else {
                missed += u32::from(longest >= 2);
                continue;
            };
            found += 1;
            let (next, matched) = (follow.next as usize, follow.matched as usize);
            assert!(tokens[..next].ends_with(&tokens[tokens.len() - matched..]), "not the same");
        }
        assert!(found > 1000 && missed < found / 3, "{found} found, {missed} missed");
    }
}
