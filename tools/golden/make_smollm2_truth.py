"""What does SmolLM2 say when nothing is rounded?

Independent truth for the default model: `transformers` in float32 on the CPU, with the
weights that the `gguf` package dequantizes and a tokenizer that `tokenizers` builds from
the vocabulary in the file. None of our code takes part.

    python make_smollm2_truth.py MODEL.gguf OUTDIR [--logits FILE.npy]

Needs: pip install torch transformers tokenizers gguf numpy

Reads OUTDIR/documents/*.txt and writes
  OUTDIR/greedy.json               20 prompts, 64 greedy tokens each, top-2 gaps
  OUTDIR/positions.json            the documents as token ids, and a summary
  OUTDIR/positions_logprobs.f32    [rows, 9] little-endian: next token, then the top 8
  OUTDIR/positions_top8.u32        [rows, 8] little-endian: ids of the top 8
  FILE.npy                         f32 [rows, vocab]: all logits, for exact divergences
A row is a position with a next token: a document of n ids gives n - 1 rows, in order.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

GENERATED_TOKENS = 64
# Two f32 implementations that sum in another order differ by about 1e-4 in a logit.
NEAR_TIE = 1e-3
TOP = 8
CONTROL_TOKEN = 3
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
)


def chat(*turns):
    """The chat format of the model's own template, with a generation prompt."""
    roles = ("user", "assistant")
    body = "".join(
        f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n" for i, turn in enumerate(turns)
    )
    return SYSTEM + body + "<|im_start|>assistant\n"


PROMPTS = {
    "fact": "The capital of France is",
    "story": "Once upon a time, in a village below a glacier, there lived a clockmaker who",
    "science": "Photosynthesis is the process by which plants",
    "list": "The planets of the solar system, in order:\n1. Mercury\n2. Venus\n3.",
    "arithmetic": "12 + 30 = 42\n7 + 15 = 22\n81 + 9 =",
    "algebra": "Solve for x: 3x + 7 = 22.\nSubtract 7 from both sides:",
    "latex": "The quadratic formula is $x = \\frac{-b \\pm \\sqrt{",
    "python": "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "rust": "fn main() {\n    let numbers = vec![1, 2, 3];\n    for",
    "sql": "SELECT name, COUNT(*) FROM orders",
    "json": "{\"name\": \"Ada\", \"born\": 1815, \"languages\": [",
    "html": "<!DOCTYPE html>\n<html>\n<head>\n  <title>",
    "french": "Il était une fois une petite fille qui",
    "german": "Die Alpen sind ein Gebirge in",
    "chinese": "北京是中国的",
    "russian": "Москва является столицей",
    "emoji": "I love pizza 🍕 and",
    "chat sky": chat("Why is the sky blue?"),
    "chat turns": chat("Name a fruit.", "Apple", "Name another one, and say why you like it."),
    "chat code": chat("Write a haiku about rivers, then a line of Python that prints it."),
}


def read_model(path, dtype=torch.float32):
    """The GGUF file as a transformers model; Q and K rows go back to half-split order."""
    reader = GGUFReader(path)
    meta = {field.name: field.contents() for field in reader.fields.values()}
    assert meta["general.architecture"] == "llama"
    heads = meta["llama.attention.head_count"]
    kv_heads = meta["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=meta["llama.rope.dimension_count"],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    state = {}
    for tensor in reader.tensors:
        value = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        value = half_split(tensor.name, value, heads, kv_heads)
        state[tensor_name(tensor.name)] = torch.from_numpy(value)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return model.to(dtype).eval(), meta


def tensor_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def half_split(name, value, heads, kv_heads):
    """Undo the row order that adjacent-pair RoPE wants: (pair, half) back to (half, pair)."""
    count = {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[-2])
    if count is None:
        return value
    rows, columns = value.shape
    pairs = value.reshape(count, rows // count // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def read_tokenizer(meta):
    assert meta["tokenizer.ggml.pre"] == "smollm"
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"])
               if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


@torch.inference_mode()
def logits_of(model, ids):
    """Logits of every position, [len(ids), vocab], in the model's own precision."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@torch.inference_mode()
def greedy(model, ids):
    """Greedy tokens that never stop, and the gap between the best two logits at each."""
    output = model(torch.tensor([ids]), use_cache=True)
    tokens, gaps = [], []
    while True:
        best = torch.topk(output.logits[0, -1], 2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        if len(tokens) == GENERATED_TOKENS:
            return tokens, gaps
        output = model(torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values)


def write_greedy(model, exact, tokenizer, out):
    cases = []
    for name, text in PROMPTS.items():
        ids = tokenizer.encode(text).ids
        tokens, gaps = greedy(model, ids)
        # The same ids again in float64 and without a cache: every choice must stand.
        again = logits_of(exact, ids + tokens)[len(ids) - 1 : -1].argmax(-1).tolist()
        moved = [i for i, (a, b) in enumerate(zip(tokens, again)) if a != b]
        assert all(gaps[i] < NEAR_TIE for i in moved), (name, moved)
        cases.append({
            "name": name,
            "text": text,
            "ids": ids,
            "tokens": tokens,
            "gaps": [float(f"{gap:.4g}") for gap in gaps],
            "near_ties": [i for i, gap in enumerate(gaps) if gap < NEAR_TIE],
            "float64_differs": moved,
            "continuation": tokenizer.decode(tokens, skip_special_tokens=False),
        })
        print(f"{name}: smallest gap {min(gaps):.2g}: {cases[-1]['continuation']!r}")
    body = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    (out / "greedy.json").write_text(f'{{"near_tie": {NEAR_TIE}, "cases": [\n{body}\n]}}\n')


def log_probabilities(logits):
    wide = logits.double()
    return wide - torch.logsumexp(wide, -1, keepdim=True)


def write_positions(model, exact, tokenizer, out, logits_path):
    documents, probabilities, top_ids, all_logits = [], [], [], []
    drift = []
    for path in sorted((out / "documents").glob("*.txt")):
        ids = tokenizer.encode(path.read_text()).ids
        logits = logits_of(model, ids)[:-1]
        log_p = log_probabilities(logits)
        finer = log_probabilities(logits_of(exact, ids)[:-1])
        drift.append((finer.exp() * (finer - log_p)).sum(-1))
        top = torch.topk(log_p, TOP)
        chosen = log_p.gather(1, torch.tensor(ids[1:]).unsqueeze(1))
        probabilities.append(torch.cat([chosen, top.values], 1).float().numpy())
        top_ids.append(top.indices.numpy().astype("<u4"))
        all_logits.append(logits.float().numpy())
        documents.append({"name": path.stem, "rows": len(ids) - 1,
                          "perplexity": float(torch.exp(-chosen.mean())), "ids": ids})
        print(f"{path.stem}: {len(ids)} ids, perplexity {documents[-1]['perplexity']:.3f}")
    table = np.concatenate(probabilities).astype("<f4")
    table.tofile(out / "positions_logprobs.f32")
    np.concatenate(top_ids).tofile(out / "positions_top8.u32")
    drift = torch.cat(drift)
    summary = {
        "rows": len(table),
        "vocabulary": int(all_logits[0].shape[1]),
        "top": TOP,
        "perplexity": float(np.exp(-table[:, 0].astype(np.float64).mean())),
        "mean_kl_float64_to_float32": float(drift.mean()),
    }
    print(json.dumps(summary))
    body = ",\n".join("  " + json.dumps(document) for document in documents)
    head = json.dumps(summary)[:-1]
    (out / "positions.json").write_text(f'{head}, "documents": [\n{body}\n]}}\n')
    if logits_path:
        np.save(logits_path, np.concatenate(all_logits))


def truth_logits(gguf_path, documents):
    """All logits for the ids in positions.json, in row order (for compare_logits.py)."""
    model, _ = read_model(gguf_path)
    return np.concatenate([logits_of(model, d["ids"])[:-1].numpy() for d in documents])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--logits", help="also keep all logits in this .npy file")
    options = parser.parse_args()
    model, meta = read_model(options.model)
    exact, _ = read_model(options.model, torch.float64)
    tokenizer = read_tokenizer(meta)
    write_greedy(model, exact, tokenizer, options.out)
    write_positions(model, exact, tokenizer, options.out, options.logits)


if __name__ == "__main__":
    main()
