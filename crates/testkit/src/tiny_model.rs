//! A model that loads in a millisecond: random weights, real structure.
//!
//! Written as GGUF with the crate's own builder, so it goes the same way as a real file.

use ops::quant_format::QuantFormat;
use weights::{Array, GgufBuilder, Value};

/// Sizes of a tiny llama.
#[derive(Clone, Copy, Debug)]
pub struct TinyModel {
    pub layers: u32,
    pub width: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub feed_forward: u32,
    /// Of each layer, two of which are chosen for a token; 0: there is one feed-forward for all.
    pub experts: u32,
    pub context: u32,
    /// Of all matrices.
    pub format: QuantFormat,
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            layers: 2,
            width: 64,
            heads: 4,
            heads_kv: 2,
            feed_forward: 96,
            experts: 0,
            context: 256,
            format: QuantFormat::Q4_1,
            seed: 1,
        }
    }
}

/// Control tokens first, then the 256 byte tokens of the byte-level alphabet, then one merge.
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub const VOCABULARY: u32 = 260;
/// A space and a `t`, in that alphabet.
const MERGED: &str = "\u{120}t";
const MERGE: &str = "\u{120} t";

/// The usual chat markup, as the chat templates of small models write it.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + \
    message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

impl TinyModel {
    /// The whole file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut tokens: Vec<String> = CONTROL.iter().map(|&token| token.to_owned()).collect();
        tokens.extend((0..=255u8).map(|byte| byte_character(byte).to_string()));
        tokens.push(MERGED.to_owned());
        let types: Vec<i32> =
            (0..VOCABULARY).map(|id| if id < CONTROL.len() as u32 { 3 } else { 1 }).collect();
        let mut builder = GgufBuilder::new();
        builder
            .key("general.architecture", "llama")
            .key("general.name", "tiny")
            .key("llama.block_count", self.layers)
            .key("llama.context_length", self.context)
            .key("llama.embedding_length", self.width)
            .key("llama.feed_forward_length", self.feed_forward)
            .key("llama.attention.head_count", self.heads)
            .key("llama.attention.head_count_kv", self.heads_kv)
            .key("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
            .key("llama.rope.freq_base", 10_000.0f32)
            .key("tokenizer.ggml.model", "gpt2")
            .key("tokenizer.ggml.pre", "gpt-2")
            .key("tokenizer.ggml.tokens", array(Array::Strings(tokens.iter().collect())))
            .key("tokenizer.ggml.token_type", array(Array::I32(types.into())))
            .key("tokenizer.ggml.merges", array(Array::Strings([MERGE].into_iter().collect())))
            .key("tokenizer.ggml.bos_token_id", 0u32)
            .key("tokenizer.ggml.eos_token_id", 2u32)
            .key("tokenizer.ggml.add_bos_token", false)
            .key("tokenizer.chat_template", CHAT_TEMPLATE);
        if self.experts > 0 {
            builder.key("llama.expert_count", self.experts).key("llama.expert_used_count", 2u32);
        }
        let mut random = Random(self.seed);
        for (name, cols, rows) in self.shapes() {
            if rows == 1 {
                let bytes: Vec<u8> =
                    (0..cols).flat_map(|_| random.near_one().to_le_bytes()).collect();
                builder.tensor(&name, QuantFormat::F32, &[cols as u64], bytes);
            } else {
                let count = if name.contains("_exps") { self.experts as usize } else { 1 };
                let bytes = self.matrix(&mut random, cols, rows * count);
                let dims = [cols as u64, rows as u64, count as u64];
                let dims = if count > 1 { &dims[..] } else { &dims[..2] };
                builder.tensor(&name, self.format, dims, bytes);
            }
        }
        builder.to_bytes().expect("invariant: the tiny model's sizes are possible")
    }

    /// Columns and rows of each tensor; experts' are one below the other.
    fn shapes(&self) -> Vec<(String, usize, usize)> {
        let head_dim = self.width / self.heads;
        let (width, inner) = (self.width as usize, self.feed_forward as usize);
        let kv_width = (self.heads_kv * head_dim) as usize;
        let mut shapes = vec![
            ("token_embd.weight".to_owned(), width, VOCABULARY as usize),
            ("output_norm.weight".to_owned(), width, 1),
        ];
        for layer in 0..self.layers {
            let name = |stem: &str| format!("blk.{layer}.{stem}.weight");
            shapes.extend([
                (name("attn_norm"), width, 1),
                (name("attn_q"), width, width),
                (name("attn_k"), width, kv_width),
                (name("attn_v"), width, kv_width),
                (name("attn_output"), width, width),
                (name("ffn_norm"), width, 1),
            ]);
            if self.experts > 0 {
                shapes.push((name("ffn_gate_inp"), width, self.experts as usize));
            }
            let of = |stem: &str| {
                name(&format!("{stem}{}", if self.experts > 0 { "_exps" } else { "" }))
            };
            shapes.extend([
                (of("ffn_gate"), width, inner),
                (of("ffn_up"), width, inner),
                (of("ffn_down"), inner, width),
            ]);
        }
        shapes
    }

    /// Random blocks with scales that keep activations near 1.
    fn matrix(&self, random: &mut Random, cols: usize, rows: usize) -> Vec<u8> {
        let elements = rows * cols;
        match self.format {
            QuantFormat::F32 => {
                let value = |random: &mut Random| (random.near_one() - 1.0) * 8.0;
                (0..elements).flat_map(|_| value(random).to_le_bytes()).collect()
            }
            QuantFormat::Q4_1 => {
                // Codes 0 to 15 around a minimum of -7.5 scales: weights of mean 0, about 0.1 wide.
                let (scale, minimum) = (0x2480u16, 0xb050u16);
                let block = |random: &mut Random| {
                    let mut bytes = scale.to_le_bytes().to_vec();
                    bytes.extend(minimum.to_le_bytes());
                    bytes.extend((0..16).map(|_| random.next() as u8));
                    bytes
                };
                (0..elements / 32).flat_map(|_| block(random)).collect()
            }
            other => panic!("the tiny model is not made in {other}"),
        }
    }
}

fn array(array: Array) -> Value {
    Value::Array(Box::new(array))
}

/// The printable stand-in of a byte in byte-level vocabularies (GPT-2's alphabet).
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).expect("invariant: below 512, a character")
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Within 0.025 of 1.
    fn near_one(&mut self) -> f32 {
        1.0 + ((self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.05
    }
}
