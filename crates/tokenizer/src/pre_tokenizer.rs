//! Where may tokens not cross? Splits text into the pieces that byte-level BPE merges within.
//!
//! Each name that a model file may ask for is one line of [`TABLE`]. The patterns are those of the
//! models' own tokenizers, but none looks ahead: `\s+(?!\S)|\s+` is written `\s+`, and a run of
//! spaces that stops before a visible character gives its last space back (see [`give_back`]).
//! So every search is linear in the text, whatever the text.
//!
//! The patterns are the truth. What is plain ASCII takes a shorter way to the same pieces where the
//! pattern has one ([`AsciiWords`]), and the pattern reads the rest up to the next safe cut.

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};

use crate::ascii_words::AsciiWords;
use crate::cuts::CutRule;

/// One step of splitting; each piece of a step is split again by the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Matches are pieces, and so is what lies between them.
    Isolate(&'static str),
    /// Ends in `\s+`, with the last space given back; no other branch ends in a space.
    Words(&'static str),
    /// The same, where another branch takes runs that end in line breaks.
    WordsAndLines(&'static str),
}

use Stage::{Isolate, Words, WordsAndLines};

const GPT2_WORDS: Stage =
    Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+");
const GPT2: &[Stage] = &[GPT2_WORDS];
const DIGITS: &[Stage] = &[Isolate(r"\p{N}"), GPT2_WORDS];
const PUNCTUATION: &[Stage] = &[
    Isolate(r"[\p{P}\$\+<=>\^~\|]+"),
    GPT2_WORDS,
    Isolate(r"\p{N}+"),
    Isolate(r"[0-9][0-9][0-9]"),
];
const FALCON: &[Stage] =
    &[Isolate(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2_WORDS, Isolate(r"[0-9][0-9][0-9]")];

/// The pattern that most models since 2023 share, with their own runs of digits.
macro_rules! modern {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        )
    };
}
const LLAMA3: &[Stage] = &[WordsAndLines(modern!(r"\p{N}{1,3}"))];
const QWEN2: &[Stage] = &[WordsAndLines(modern!(r"\p{N}"))];
const LAGUNA: &[Stage] = &[Isolate(r"[^\n]+|[\n]+"), WordsAndLines(modern!(r"\p{N}"))];
const QWEN35: &[Stage] = &[WordsAndLines(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
))];
const UFAKZEKA: &[Stage] =
    &[WordsAndLines(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")];
const SEED_CODER: &[Stage] = &[WordsAndLines(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+"
))];
const BAILING: &[Stage] = &[WordsAndLines(concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
))];
const EXAONE_MOE: &[Stage] = &[WordsAndLines(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+"
))];

/// Words told apart by case: capitals then small letters, with their own suffix and digits.
macro_rules! cased {
    ($suffix:literal, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
        )
    };
}
const TEKKEN: &[Stage] = &[WordsAndLines(cased!("", r"\p{N}"))];
const GPT4O: &[Stage] = &[WordsAndLines(cased!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"))];
const KIMI: &[Stage] = &[WordsAndLines(concat!(
    r"\p{Han}+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
))];

/// Letters with case as the first DeepSeek models list them (an old edition of Unicode, kept).
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}",
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}",
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}",
    r"\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}",
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}",
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}",
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}",
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}",
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}",
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}",
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}",
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}",
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}",
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}",
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}",
    r"\x{1E900}-\x{1E943}]+"
);
const DEEPSEEK_EAST_ASIA: Stage = Isolate(r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+");
const DEEPSEEK_LLM: &[Stage] = &[
    Isolate(r"[\r\n]"),
    Isolate(DEEPSEEK_LETTERS),
    Isolate(concat!(
        r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}",
        r"\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
    )),
    Isolate(r"\s+$"),
    DEEPSEEK_EAST_ASIA,
    Isolate(r"\p{N}+"),
];
const DEEPSEEK_CODER: &[Stage] = &[
    Isolate(r"[\r\n]"),
    Isolate(r"\s?\p{L}+"),
    Isolate(r"\s?\p{P}+"),
    DEEPSEEK_EAST_ASIA,
    Isolate(r"\p{N}"),
];
const DEEPSEEK_V3: &[Stage] = &[
    Isolate(r"\p{N}{1,3}"),
    Isolate(r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"),
    WordsAndLines(concat!(
        r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"
    )),
];
const BLOOM: &[Stage] =
    &[Isolate(r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+")];
const VIKING: &[Stage] = &[BLOOM[0], Isolate(r"\p{N}")];

/// The way past the patterns for ASCII, where there is one.
fn ascii_words(stages: &[Stage]) -> Option<AsciiWords> {
    let same = |known: &[Stage]| stages == known;
    if same(GPT2) {
        Some(AsciiWords::Gpt2)
    } else if same(DIGITS) {
        Some(AsciiWords::Digits)
    } else if same(LLAMA3) {
        Some(AsciiWords::Modern { digits_max: 3 })
    } else if same(QWEN2) || same(QWEN35) {
        // They differ in marks only, and ASCII has none.
        Some(AsciiWords::Modern { digits_max: 1 })
    } else {
        None
    }
}

/// Where texts may be cut before they are split.
fn cut_rule(stages: &[Stage]) -> CutRule {
    // Words and the spaces between them are one piece there.
    if stages == EXAONE_MOE { CutRule::Lines } else { CutRule::WordsAndLines }
}

/// What a name stands for.
struct Row {
    name: &'static str,
    stages: &'static [Stage],
    /// A piece that is a token is that token, whether or not merges lead there.
    whole_pieces: bool,
    /// Such files mean a begin token where they do not say.
    adds_bos: bool,
}

const fn plain(name: &'static str, stages: &'static [Stage]) -> Row {
    Row { name, stages, whole_pieces: false, adds_bos: false }
}

const fn whole(name: &'static str, stages: &'static [Stage]) -> Row {
    Row { name, stages, whole_pieces: true, adds_bos: true }
}

/// Every supported value of `tokenizer.ggml.pre`. A new model is one line here.
const TABLE: &[Row] = &[
    plain("default", PUNCTUATION),
    plain("falcon", FALCON),
    plain("gpt-2", GPT2),
    plain("phi-2", GPT2),
    plain("mpt", GPT2),
    plain("olmo", GPT2),
    plain("jais", GPT2),
    plain("trillion", GPT2),
    plain("granite-docling", GPT2),
    plain("exaone4", GPT2),
    plain("gigachat", GPT2),
    plain("a.x-4.0", GPT2),
    plain("mellum", GPT2),
    plain("smollm", DIGITS),
    plain("starcoder", DIGITS),
    plain("refact", DIGITS),
    plain("command-r", DIGITS),
    plain("codeshell", DIGITS),
    plain("exaone", DIGITS),
    plain("minerva-7b", DIGITS),
    plain("mellum2", DIGITS),
    whole("llama-bpe", LLAMA3),
    whole("llama3", LLAMA3),
    whole("llama-v3", LLAMA3),
    whole("falcon3", LLAMA3),
    whole("falcon-h1", LLAMA3),
    whole("pixtral", LLAMA3),
    whole("midm-2.0", LLAMA3),
    whole("lfm2", LLAMA3),
    plain("dbrx", LLAMA3),
    plain("smaug-bpe", LLAMA3),
    plain("chatglm-bpe", LLAMA3),
    plain("glm4", LLAMA3),
    plain("qwen2", QWEN2),
    plain("deepseek-r1-qwen", QWEN2),
    plain("stablelm2", QWEN2),
    plain("hunyuan", QWEN2),
    plain("solar-open", QWEN2),
    plain("megrez", QWEN2),
    plain("grok-2", QWEN2),
    plain("kormo", QWEN2),
    plain("qwen35", QWEN35),
    plain("laguna", LAGUNA),
    plain("ufakzeka", UFAKZEKA),
    plain("seed-coder", SEED_CODER),
    plain("bailingmoe", BAILING),
    plain("bailingmoe2", BAILING),
    plain("llada-moe", BAILING),
    plain("exaone-moe", EXAONE_MOE),
    whole("tekken", TEKKEN),
    plain("gpt-4o", GPT4O),
    plain("llama4", GPT4O),
    plain("kanana2", GPT4O),
    plain("minimax-m2", GPT4O),
    plain("kimi-k2", KIMI),
    plain("deepseek-llm", DEEPSEEK_LLM),
    plain("deepseek-coder", DEEPSEEK_CODER),
    plain("deepseek-v3", DEEPSEEK_V3),
    plain("hunyuan-dense", DEEPSEEK_V3),
    plain("joyai-llm", DEEPSEEK_V3),
    plain("poro-chat", BLOOM),
    plain("bloom", BLOOM),
    plain("gpt3-finnish", BLOOM),
    plain("viking", VIKING),
];

/// The supported names, in the order of the table.
pub fn pre_tokenizer_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name)
}

/// Which white space at the end of a match is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveBack {
    Nothing,
    /// The last space of a run, as after [`Words`].
    Space,
    /// The same unless it is a line break, as after [`WordsAndLines`].
    SpaceButLines,
}

/// One step of splitting as a `tokenizer.json` asks for it, without looking ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) pattern: String,
    pub(crate) gives_back: GiveBack,
}

impl Stage {
    fn step(&self) -> (&'static str, GiveBack) {
        match *self {
            Isolate(pattern) => (pattern, GiveBack::Nothing),
            Words(pattern) => (pattern, GiveBack::Space),
            WordsAndLines(pattern) => (pattern, GiveBack::SpaceButLines),
        }
    }
}

/// The steps of all rows.
pub(crate) fn known_steps() -> impl Iterator<Item = (&'static str, GiveBack)> {
    TABLE.iter().flat_map(|row| row.stages).map(Stage::step)
}

/// A row of the table, for those who write it down elsewhere.
pub(crate) struct Described {
    pub(crate) steps: Vec<(&'static str, GiveBack)>,
    pub(crate) whole_pieces: bool,
    pub(crate) adds_bos: bool,
}

/// What a name stands for; empty means `default`.
pub(crate) fn described(name: &str) -> Option<Described> {
    let name = if name.is_empty() { "default" } else { name };
    let row = TABLE.iter().find(|row| row.name == name)?;
    let steps = row.stages.iter().map(Stage::step).collect();
    Some(Described { steps, whole_pieces: row.whole_pieces, adds_bos: row.adds_bos })
}

/// The first name that stands for these steps, and for whole pieces or not.
pub(crate) fn name_of(steps: &[Step], whole_pieces: bool) -> Option<&'static str> {
    let same = |row: &&Row| {
        let mut pairs = row.stages.iter().zip(steps);
        row.whole_pieces == whole_pieces
            && row.stages.len() == steps.len()
            && pairs.all(|(stage, step)| stage.step() == (step.pattern.as_str(), step.gives_back))
    };
    TABLE.iter().find(same).map(|row| row.name)
}

#[derive(Debug, Clone)]
struct Splitter {
    regex: Regex,
    gives_back: GiveBack,
}

/// A compiled row of the table.
#[derive(Debug, Clone)]
pub(crate) struct PreTokenizer {
    splitters: Vec<Splitter>,
    ascii: Option<AsciiWords>,
    pub(crate) cuts: CutRule,
    pub(crate) whole_pieces: bool,
    pub(crate) adds_bos: bool,
}

impl PreTokenizer {
    /// Compiles the row of a name; `None` when there is no such row. Empty means `default`.
    pub(crate) fn named(name: &str) -> Option<Result<PreTokenizer, String>> {
        let name = if name.is_empty() { "default" } else { name };
        let row = TABLE.iter().find(|row| row.name == name)?;
        Some(PreTokenizer::of_row(row))
    }

    fn of_row(row: &Row) -> Result<PreTokenizer, String> {
        let splitters: Result<_, String> =
            row.stages.iter().map(Stage::step).map(compile).collect();
        Ok(PreTokenizer {
            splitters: splitters?,
            ascii: ascii_words(row.stages),
            cuts: cut_rule(row.stages),
            whole_pieces: row.whole_pieces,
            adds_bos: row.adds_bos,
        })
    }

    /// Compiles the steps of a `tokenizer.json`. Those of a row of the table are that row; about
    /// others nothing is known, so that texts are not cut before they split them.
    pub(crate) fn of_steps(steps: &[Step], whole_pieces: bool) -> Result<PreTokenizer, String> {
        let equal = |(stage, step): (&Stage, &Step)| {
            stage.step() == (step.pattern.as_str(), step.gives_back)
        };
        let same =
            |row: &&Row| row.stages.len() == steps.len() && row.stages.iter().zip(steps).all(equal);
        if let Some(row) = TABLE.iter().find(same) {
            return Ok(PreTokenizer { whole_pieces, ..PreTokenizer::of_row(row)? });
        }
        let parts = steps.iter().map(|step| (step.pattern.as_str(), step.gives_back));
        Ok(PreTokenizer {
            splitters: parts.map(compile).collect::<Result<_, String>>()?,
            ascii: None,
            cuts: CutRule::Never,
            whole_pieces,
            adds_bos: false,
        })
    }

    /// Calls `emit` with each piece in order; together they are the text.
    pub(crate) fn split<'t>(&self, text: &'t str, mut emit: impl FnMut(&'t str)) {
        let Some(ascii) = self.ascii else { return self.split_by_patterns(text, &mut emit) };
        let bytes = text.as_bytes();
        let mut from = 0;
        while from < text.len() {
            let end = match ascii.piece_end(bytes, from) {
                Some(end) => {
                    emit(&text[from..end]);
                    end
                }
                None => {
                    // A piece began at `from`, so the patterns may begin there, too.
                    let end = self.cuts.next(text, from + 1).unwrap_or(text.len());
                    self.split_by_patterns(&text[from..end], &mut emit);
                    end
                }
            };
            from = end;
        }
    }

    /// The same by the patterns alone: the slow twin.
    fn split_by_patterns<'t>(&self, text: &'t str, emit: &mut dyn FnMut(&'t str)) {
        run(&self.splitters, text, emit);
    }
}

fn compile((pattern, gives_back): (&str, GiveBack)) -> Result<Splitter, String> {
    let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok(Splitter { regex, gives_back })
}

fn run<'t>(splitters: &[Splitter], text: &'t str, emit: &mut dyn FnMut(&'t str)) {
    let Some((first, rest)) = splitters.split_first() else {
        if !text.is_empty() {
            emit(text);
        }
        return;
    };
    let mut from = 0;
    while from < text.len() {
        let Some((start, end)) = first.next_match(text, from) else { break };
        if start > from {
            run(rest, &text[from..start], emit);
        }
        run(rest, &text[start..end], emit);
        from = end;
    }
    if from < text.len() {
        run(rest, &text[from..], emit);
    }
}

impl Splitter {
    /// The first match at or after `from`, never empty.
    fn next_match(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let input = Input::new(text).range(from..);
        // Word patterns match almost everywhere: trying here first spares finding the start again.
        let here = match self.gives_back {
            GiveBack::Nothing => None,
            GiveBack::Space | GiveBack::SpaceButLines => {
                self.regex.search_half(&input.clone().anchored(Anchored::Yes))
            }
        };
        let (start, end) = match here {
            Some(half) => (from, half.offset()),
            None => {
                let found = self.regex.search(&input)?;
                (found.start(), found.end())
            }
        };
        let end = match self.gives_back {
            GiveBack::Nothing => end,
            GiveBack::Space => give_back(text, start, end, false),
            GiveBack::SpaceButLines => give_back(text, start, end, true),
        };
        (end > start).then_some((start, end))
    }
}

/// Does what `\s+(?!\S)|\s+` does after a match of `\s+`: a run of two spaces or more that stops
/// before a visible character loses its last one. A match whose last character is a space came
/// from that branch, unless another branch takes line breaks and the character is one.
fn give_back(text: &str, start: usize, end: usize, lines_elsewhere: bool) -> usize {
    if end == text.len() {
        return end;
    }
    let Some(last) = text[start..end].chars().next_back() else { return end };
    if !last.is_whitespace() || (lines_elsewhere && matches!(last, '\r' | '\n')) {
        return end;
    }
    let shorter = end - last.len_utf8();
    if shorter > start { shorter } else { end }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let splitter = PreTokenizer::named(name).unwrap().unwrap();
        let mut pieces = Vec::new();
        splitter.split(text, |piece: &str| pieces.push(piece.to_owned()));
        assert_eq!(pieces.concat(), text);
        pieces
    }

    #[test]
    fn names_are_unique_and_all_compile() {
        let names: Vec<_> = pre_tokenizer_names().collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name} is listed twice");
        }
        for name in names {
            assert!(!pieces(name, "Hello, world! 123\r\n\u{0}  x'll \u{301}").is_empty());
        }
        assert!(PreTokenizer::named("no-such").is_none());
    }

    #[test]
    fn a_run_of_spaces_gives_its_last_one_to_the_word() {
        assert_eq!(pieces("gpt-2", "a   b \n\nc  "), ["a", "  ", " b", " \n", "\n", "c", "  "]);
        assert_eq!(pieces("llama3", "a   b \n\nc  "), ["a", "  ", " b", " \n\n", "c", "  "]);
        assert_eq!(pieces("smollm", "x  12"), ["x", "  ", "1", "2"]);
    }

    #[test]
    fn digits_and_contractions() {
        assert_eq!(pieces("llama3", "I'LL 12345"), ["I", "'LL", " ", "123", "45"]);
        assert_eq!(pieces("gpt-4o", "McDonald'S 1"), ["Mc", "Donald'S", " ", "1"]);
        assert_eq!(pieces("deepseek-v3", "a中文b\u{0}\u{1}9"), ["a", "中文", "b", "\0\u{1}", "9"]);
    }

    /// Text in which rules meet: runs of spaces and line breaks, contractions, digits, marks that
    /// combine, scripts with and without words, and characters that only Unicode counts as spaces.
    fn awkward() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => "[a-zA-Z]{1,5}",
            4 => "[ ]{1,3}",
            2 => "[ \t\r\n]{1,4}",
            2 => "\n",
            2 => "[0-9]{1,5}",
            2 => "'(s|S|t|re|RE|ve|ll|Ll|d|m|x|\u{17F})?",
            2 => "[!-/:-@\\[-`{-~]{1,3}",
            1 => "[\u{0}-\u{1F}\u{7F}]{1,2}",
            2 => "[\u{410}-\u{44F}]{1,4}",
            2 => "[\u{4E00}-\u{4E20}\u{3042}\u{AC00}\u{E01}]{1,3}",
            1 => "[\u{301}\u{30A}\u{BE7}\u{1F3FB}\u{1F600}\u{A0}\u{3000}\u{2028}\u{85}]{1,2}",
            1 => "[\u{E9}\u{DF}\u{1C5}\u{212A}\u{663}\u{B2}\u{2160}]{1,2}",
        ];
        prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
    }

    fn cases() -> ProptestConfig {
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) }
    }

    fn by_patterns<'t>(splitter: &PreTokenizer, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        splitter.split_by_patterns(text, &mut |piece| pieces.push(piece));
        pieces
    }

    fn splitters() -> &'static [(&'static str, PreTokenizer)] {
        static SPLITTERS: std::sync::OnceLock<Vec<(&str, PreTokenizer)>> =
            std::sync::OnceLock::new();
        SPLITTERS.get_or_init(|| {
            let mut seen: Vec<&[Stage]> = Vec::new();
            let mut rows: Vec<&Row> = TABLE.iter().collect();
            rows.retain(|row| {
                !seen.contains(&row.stages) && {
                    seen.push(row.stages);
                    true
                }
            });
            rows.iter()
                .map(|row| (row.name, PreTokenizer::named(row.name).unwrap().unwrap()))
                .collect()
        })
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn the_short_way_gives_the_pieces_of_the_patterns(text in awkward()) {
            for (name, splitter) in splitters() {
                let mut pieces = Vec::new();
                splitter.split(&text, |piece| pieces.push(piece));
                prop_assert_eq!(pieces, by_patterns(splitter, &text), "{}", name);
            }
        }

        #[test]
        fn a_text_cut_anywhere_gives_the_pieces_of_the_whole(text in awkward()) {
            for (name, splitter) in splitters() {
                let whole = by_patterns(splitter, &text);
                let (mut start, mut from) = (0, 0);
                let mut in_parts = Vec::new();
                while let Some(cut) = splitter.cuts.next(&text, from) {
                    // Each cut alone, and all of them together.
                    let (left, right) = text.split_at(cut);
                    let mut apart = by_patterns(splitter, left);
                    apart.extend(by_patterns(splitter, right));
                    prop_assert_eq!(&apart, &whole, "{} at {}", name, cut);
                    in_parts.extend(by_patterns(splitter, &text[start..cut]));
                    (start, from) = (cut, cut + 1);
                }
                in_parts.extend(by_patterns(splitter, &text[start..]));
                prop_assert_eq!(&in_parts, &whole, "{}", name);
            }
        }
    }
}
