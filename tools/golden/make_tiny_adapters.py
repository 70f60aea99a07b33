"""Writes crates/engine/golden/adapters/: a tiny model, adapters of it, and what peft makes of them.

    pip install peft==0.21.2 transformers==5.24.0 torch==2.15.0 numpy==2.4.6 gguf==0.19.0 \
        safetensors==0.8.0 tokenizers sentence-transformers==6.2.0
    python tools/golden/make_tiny_adapters.py

base/ is the model as transformers saves it, with matrices in f16; base.gguf the same weights as
llama.cpp's converter stores them, with rows of queries and keys permuted. Each adapter's folder is
as peft saves it, but `turned`: that is `wide` as MLX keeps adapters, transposed and with its scale.
truth.json holds, for each adapter and without any, what follows a prompt greedily in float32, and
the log-probabilities of the five likeliest tokens at each place.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import transformers
from make_tiny_embeddings import save_model, tokenizer_of
from safetensors.torch import load_file, save_file

OUT = Path(__file__).resolve().parents[2] / "crates/engine/golden/adapters"
PROMPT = [17, 250, 33, 91, 4, 128, 77, 60, 201, 5, 19, 111, 42, 8, 260, 150, 31, 99, 14, 73, 222, 36,
          180, 67, 2, 145, 88, 54, 29, 240, 12, 161, 47, 109, 83, 7]
TOKENS = 12


def to_gguf(folder, path):
    cfg = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    arch = gguf.MODEL_ARCH.LLAMA
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(cfg["max_position_embeddings"])
    writer.add_embedding_length(cfg["hidden_size"])
    writer.add_block_count(cfg["num_hidden_layers"])
    writer.add_feed_forward_length(cfg["intermediate_size"])
    heads, heads_kv = cfg["num_attention_heads"], cfg["num_key_value_heads"]
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_key_length(cfg["head_dim"])
    writer.add_value_length(cfg["head_dim"])
    writer.add_layer_norm_rms_eps(cfg["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    vocab = tokens["model"]["vocab"]
    texts = sorted(vocab, key=vocab.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types([1] * len(texts))
    writer.add_token_merges([" ".join(merge) for merge in tokens["model"]["merges"]])
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(arch, cfg["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        values = values.numpy()
        count = {"attn_q": heads, "attn_k": heads_kv}.get(stored.split(".")[-2])
        if count:
            shape = values.shape
            values = values.reshape(count, 2, shape[0] // count // 2, shape[1]).swapaxes(1, 2)
            values = np.ascontiguousarray(values.reshape(shape))
        writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def told(model):
    ids, tops = list(PROMPT), []
    for _ in range(TOKENS):
        row = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        top = row.topk(5)
        tops.append([[int(token), round(float(value), 6)]
                     for token, value in zip(top.indices, top.values)])
        ids.append(tops[-1][0][0])
    return tops


def adapter(name, seed, **settings):
    base = transformers.AutoModelForCausalLM.from_pretrained(OUT / "base", dtype=torch.float32)
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(std=0.5 / parameter.shape[1] ** 0.5)
    answers = told(model.eval())
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(OUT / name)
    for path in (OUT / name).iterdir():
        if path.suffix not in (".json", ".safetensors"):
            path.unlink()
    return answers


def turned(name, source, scale):
    """The layout of mlx_lm's `LoRALinear`: `y + scale * (x @ lora_a) @ lora_b`."""
    folder = OUT / name
    folder.mkdir()
    tensors = {}
    for key, values in load_file(OUT / source / "adapter_model.safetensors").items():
        key = key.removeprefix("base_model.model.").removesuffix(".weight")
        tensors[key.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = values.T.contiguous()
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(
        dict(fine_tune_type="lora", num_layers=3,
             lora_parameters=dict(rank=4, scale=scale, dropout=0.0)), indent=1) + "\n")


def main():
    print(f"peft {peft.__version__}, transformers {transformers.__version__}")
    shutil.rmtree(OUT, ignore_errors=True)
    tokenizer_of(OUT / "base", False)
    cfg = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=300, max_position_embeddings=128,
        tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        bos_token_id=None, eos_token_id=None)
    save_model(OUT / "base", transformers.LlamaForCausalLM(cfg).float(), np.random.default_rng(3))
    (OUT / "base/generation_config.json").unlink(missing_ok=True)
    to_gguf(OUT / "base", OUT / "base.gguf")
    base = transformers.AutoModelForCausalLM.from_pretrained(OUT / "base", dtype=torch.float32)
    truth = {"": told(base.eval())}
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    truth["wide"] = adapter("wide", 5, r=4, lora_alpha=8, target_modules=every)
    truth["narrow"] = adapter("narrow", 6, r=5, lora_alpha=7, use_rslora=True,
                              target_modules=["q_proj", "v_proj"],
                              alpha_pattern={"v_proj": 3}, rank_pattern={"q_proj": 2})
    turned("turned", "wide", 2.0)
    truth["turned"] = truth["wide"]
    (OUT / "truth.json").write_text(
        json.dumps(dict(prompt=PROMPT, answers=truth)).replace("]]], ", "]]],\n") + "\n")
    for name, answers in truth.items():
        print(name or "base", [top[0][0] for top in answers])


if __name__ == "__main__":
    main()
