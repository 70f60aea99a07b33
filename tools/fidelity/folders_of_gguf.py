"""Does MLX-LM say, with a folder that `pelton quantize` makes of a GGUF file, what the authors' code
says with the same weights?

    pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2 gguf==0.19.0 numpy==2.4.6
    python folders_of_gguf.py PELTON WORK [FAMILY...]

FAMILY is a golden file of crates/testkit/golden/families, whose answers transformers gave in float32
(tools/golden/make_tiny_families.py); it gets a small tokenizer first, which a folder must have. Each
prints a line: how far MLX's logits are from the truth, relative to the largest, with all weights left
as they are and with 8 bits in groups of 32; and whether MLX-LM's tokenizer gives the ids that it
should. MLX computes in float32.

Where MLX-LM itself is known to compute something else, the line says so: it leaves out the windows of
Gemma 2, Mistral and Phi-3, has another gate in Gemma 1, and reads tokenizers of Qwen 2 and 3.5 as
byte-level BPE, whatever a folder says, which this small one is not. It does not round the scale of
Gemma 4's embeddings to bfloat16, as transformers does; here it is rounded for it (else its logits are
2e-4 apart).
"""

import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import load_model
from transformers import AutoTokenizer

GOLDEN = Path(__file__).resolve().parents[2] / "crates/testkit/golden/families"
FAMILIES = ["deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "exaone4_large", "gemma", "gemma2",
            "gemma3", "gemma4", "gemma4_experts", "gemma4_large", "glm4", "glm4_moe_lite",
            "glm4moe", "gpt_oss", "minimax_m2", "mistral", "mistral3", "mixtral", "olmo2", "olmo3",
            "phi3", "phi4_mini", "qwen2", "qwen2_yarn", "qwen3", "qwen35", "qwen35moe", "qwen3moe",
            "qwen3next", "qwen3vl", "qwen3vlmoe", "seed_oss", "smollm3"]
KNOWN = {"gemma": "another gate", "gemma2": "no windows", "mistral": "no windows",
         "phi3": "no windows", "qwen2": "Qwen's tokenizer", "qwen2_yarn": "Qwen's tokenizer",
         "qwen35": "Qwen's tokenizer", "qwen35moe": "Qwen's tokenizer"}
PIECES = ["<unk>", "<s>", "</s>", "\u2581", "ab", "\u2581ab", "\u2581abc"]
# Of a text, by the scores below.
TEXT, IDS = "abcab abb", [1, 6, 4, 5]


def with_tokenizer(name, place):
    """The golden file's ids, and how many words it has."""
    reader = gguf.GGUFReader(GOLDEN / f"{name}.gguf")
    field = reader.fields["general.architecture"]
    writer = gguf.GGUFWriter(place, bytes(field.parts[-1]).decode())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "golden.ids"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    rows = next(t.shape[1] for t in reader.tensors if t.name == "token_embd.weight")
    single = [chr(ord("0") + place) for place in range(int(rows) - len(PIECES))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES + single)
    writer.add_token_scores([-100.0] * 4 + [-1.0, -2.0, -3.0] + [-100.0] * len(single))
    writer.add_token_types([2, 3, 3] + [1] * (len(PIECES) - 3 + len(single)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return reader.fields["golden.ids"].contents(), int(rows)


def logits(folder, ids, name):
    model, _ = load_model(folder)
    if name.startswith("gemma4"):
        scale = mx.array(model.model.embed_scale).astype(mx.bfloat16)
        model.model.embed_scale = scale.astype(mx.float32)
    whole = lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a
    model.update(tree_map(whole, model.parameters()))
    return np.array(model(mx.array([ids]))[0])


def check(pelton, work, name):
    source = work / f"{name}.gguf"
    ids, rows = with_tokenizer(name, source)
    values = np.frombuffer((GOLDEN / f"{name}.truth").read_bytes(), "<f4")
    truth = values[:len(ids) * rows].reshape(len(ids), rows)
    said = []
    for kind, more in [("plain", ["--tensor", "*=plain"]), ("8-bit", [])]:
        folder = work / f"{name}-{kind}"
        done = subprocess.run([pelton, "quantize", source, folder, "--mlx-bits", "8", "--group",
                               "32", *more], capture_output=True, text=True)
        if done.returncode:
            return f"refused: {done.stderr.strip()}"
        apart = np.abs(logits(folder, ids, name) - truth).max() / np.abs(truth).max()
        said.append(f"{apart:.1e}")
    tokens = AutoTokenizer.from_pretrained(str(folder)).encode(TEXT)
    same = "yes" if tokens == ids_of(rows) else "no"
    return f"{' | '.join(said)} | {same} | {KNOWN.get(name, '')}"


def ids_of(rows):
    letter = len(PIECES) + ord("b") - ord("0")
    return IDS + [letter if letter < rows else 0]


def main(pelton, work, asked):
    work = Path(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    print("| model | apart, as it is | apart, in 8 bits | same ids | what MLX-LM has otherwise |")
    print("|---|---|---|---|---|")
    for name in asked or FAMILIES:
        print(f"| {name} | {check(pelton, work, name)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
