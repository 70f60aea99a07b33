"""Is a model as surprised by a text here as in the engine that its format comes from?

    python perplexity.py prepare MODEL.gguf WORK PELTON
    python perplexity.py measure MODEL.gguf WORK PERPLEXITY
    python perplexity.py rivals MODEL.gguf WORK LLAMA_PERPLEXITY
    python perplexity.py widened MODEL.gguf WORK LLAMA_PERPLEXITY
    python perplexity.py mlx WORK
    python perplexity.py truth MODEL.gguf WORK
    python perplexity.py table WORK

MODEL is SmolLM2-135M-Instruct in Q4_1; WORK a folder for what is made (1.7 GB). PELTON and
PERPLEXITY are `target/release/pelton` and `target/release/examples/perplexity` (`cargo build
--release -p pelton`, `cargo build --release -p testkit --example perplexity`), LLAMA_PERPLEXITY
llama.cpp's program. `prepare` and `truth` need torch, transformers, accelerate and gguf, `mlx`
mlx-lm; each step may run in an environment of its own, and leaves out what WORK/results.json has
already.

All files are made by `pelton quantize` of the Q4_1 file (WORK/f16, what transformers saves of it,
is for `quantizers.py`). The text is the licenses that every Debian system has, which is fixed:
its SHA-256 is printed. Its first 39 pieces of 512 tokens are read; what follows each token of a
piece's second half counts, as in llama.cpp's tool.

llama.cpp runs with its defaults (activations in 8 bits, or in f16 beside f16 weights); `widened`
gives it the same weights in F32, decoded by the gguf package, so that nothing in it is rounded to
less: keys and values are in f32, too; MLX computes in f32 from the very codes and scales; `truth`
is transformers in f32 on what the gguf package decodes.
The BLAS in MLX's package for processors is slow; with OpenBLAS before it (LD_PRELOAD) a
product takes a tenth.
"""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

LICENSES = Path("/usr/share/common-licenses")
TEXTS = ["GPL-3", "GFDL-1.3", "Apache-2.0", "MPL-2.0", "Artistic"]
PIECE = 512
# Of its 20,045 tokens 19,968 are in whole pieces.
PIECES = 39
GGUF = ["F16", "Q8_0", "Q6_K", "Q4_K_M"]
MLX_BITS = [8, 6, 4]


def prepare(model, work, pelton):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    work.mkdir(parents=True, exist_ok=True)
    text = "\n".join((LICENSES / name).read_text() for name in TEXTS)
    (work / "text.txt").write_text(text)
    print("sha256", hashlib.sha256(text.encode()).hexdigest())
    for kind in GGUF:
        if not (work / f"{kind}.gguf").exists():
            subprocess.run([pelton, "quantize", model, work / f"{kind}.gguf", "--gguf", kind],
                           check=True)
    for bits in MLX_BITS:
        if not (work / f"mlx{bits}").exists():
            subprocess.run([pelton, "quantize", model, work / f"mlx{bits}", "--mlx-bits",
                            str(bits), "--group", "64"], check=True)
    # Not what transformers makes of a GGUF file's tokenizer: it splits off no digits, and so cuts
    # white space in front of them otherwise than SmolLM2 and llama.cpp do.
    tokenizer = Tokenizer.from_file(str(work / f"mlx{MLX_BITS[0]}" / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    (work / "ids.json").write_text(json.dumps(ids))
    print(len(ids), "tokens")
    assert len(ids) >= PIECES * PIECE
    whole = AutoModelForCausalLM.from_pretrained(str(model.parent), gguf_file=model.name,
                                                 dtype=torch.float16)
    # What was read of a GGUF file is not saved as it is.
    del whole.config.quantization_config
    plain = AutoModelForCausalLM.from_config(whole.config, dtype=torch.float16)
    plain.load_state_dict(whole.state_dict())
    plain.save_pretrained(work / "f16")
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(work / f"mlx{MLX_BITS[0]}" / name, work / "f16" / name)


def known(work):
    path = work / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def missing(work, files, engine):
    results = known(work)
    return [(name, path) for name, path in files.items() if engine not in results.get(name, {})]


def gguf_files(model, work):
    return {kind: work / f"{kind}.gguf" for kind in GGUF} | {"Q4_1": model}


def mlx_folders(work):
    return {f"MLX {bits} bits": work / f"mlx{bits}" for bits in MLX_BITS}


def each_piece(work, name, engine, loss):
    """Perplexity by `loss(piece)` of each; who is stopped goes on from the last."""
    ids = json.loads((work / "ids.json").read_text())
    so_far = work / f"{engine}-{name}.json"
    total, count, first = json.loads(so_far.read_text()) if so_far.exists() else (0.0, 0, 0)
    for start in range(first, PIECES * PIECE, PIECE):
        total += loss(ids[start : start + PIECE])
        count += PIECE - PIECE // 2 - 1
        so_far.write_text(json.dumps([total, count, start + PIECE]))
    keep(work, name, engine, math.exp(total / count))


def keep(work, name, engine, value):
    path = work / "results.json"
    results = known(work)
    results.setdefault(name, {})[engine] = value
    path.write_text(json.dumps(results, indent=1))
    print(name, engine, value, flush=True)


def measure(model, work, program):
    ids = work / "ids.json"
    for name, path in missing(work, gguf_files(model, work) | mlx_folders(work), "pelton"):
        out = subprocess.run([program, path, ids, "cpu", str(PIECE), str(PIECES)], check=True,
                             capture_output=True, text=True).stdout
        count, value = out.split()
        keep(work, name, "pelton", float(value))
        keep(work, name, "tokens", int(count))


def rivals(model, work, rival):
    for name, path in missing(work, gguf_files(model, work), "own engine"):
        run = subprocess.run([rival, "-m", path, "-f", work / "text.txt", "-c", str(PIECE),
                              "--chunks", str(PIECES), "-t", "2", "--no-warmup"],
                             check=True, capture_output=True, text=True)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", run.stdout + run.stderr)
        keep(work, name, "own engine", float(found[1]))


def widened(model, work, rival):
    for name, path in missing(work, gguf_files(model, work), "own engine in f32"):
        place = work / f"{name}-f32.gguf"
        in_f32_file(path, place)
        run = subprocess.run([rival, "-m", place, "-f", work / "text.txt", "-c", str(PIECE),
                              "--chunks", str(PIECES), "-t", "2", "--no-warmup", "-fa", "off",
                              "-ctk", "f32", "-ctv", "f32"],
                             check=True, capture_output=True, text=True)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", run.stdout + run.stderr)
        keep(work, name, "own engine in f32", float(found[1]))
        place.unlink()


def in_f32_file(path, place):
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(place, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, whole)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_f32(model):
    """MLX's model with all that it holds in f32, quantized matrices decoded."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_map, tree_unflatten

    dense = []
    for path, module in model.named_modules():
        if not hasattr(module, "scales"):
            continue
        scales, biases = (part.astype(mx.float32) for part in (module.scales, module.biases))
        weight = mx.dequantize(module.weight, scales, biases, module.group_size, module.bits)
        rows, cols = weight.shape
        is_embedding = isinstance(module, nn.QuantizedEmbedding)
        plain = nn.Embedding(rows, cols) if is_embedding else nn.Linear(cols, rows, bias=False)
        plain.weight = weight
        dense.append((path, plain))
    model.update_modules(tree_unflatten(dense))
    model.update(tree_map(lambda a: a.astype(mx.float32), model.parameters()))
    return model


def mlx(work):
    import mlx.core as mx
    from mlx_lm.utils import load_model

    for name, path in missing(work, mlx_folders(work), "own engine"):
        model = in_f32(load_model(path)[0])

        def loss(piece, model=model):
            logits = model(mx.array([piece[:-1]]))[0][PIECE // 2 :]
            said = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            target = mx.array(piece[PIECE // 2 + 1 :])[:, None]
            return -mx.take_along_axis(said, target, axis=-1).sum().item()

        each_piece(work, name, "own engine", loss)


def truth(model, work):
    import torch
    from transformers import AutoModelForCausalLM

    for name, path in missing(work, gguf_files(model, work), "truth"):
        whole = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name,
                                                     dtype=torch.float32).eval()

        def loss(piece, whole=whole):
            piece = torch.tensor(piece)
            with torch.no_grad():
                logits = whole(piece[None, :-1]).logits[0, PIECE // 2 :]
            return torch.nn.functional.cross_entropy(logits, piece[PIECE // 2 + 1 :],
                                                     reduction="sum").item()

        each_piece(work, name, "truth", loss)


def table(work):
    def apart(value, other):
        return f"{100 * (value / other - 1):+.3f} %" if other else ""

    print("| format | Pelton | its own engine | apart | transformers in f32 | Pelton | engine | "
          "engine in f32 | apart from transformers |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in known(work).items():
        if "own engine" not in row:
            continue
        own, theirs, true = row["pelton"], row["own engine"], row.get("truth")
        shown = f"{true:.4f}" if true else ""
        wide = row.get("own engine in f32")
        print(f"| {name} | {own:.4f} | {theirs:.4f} | {apart(own, theirs)} | {shown} | "
              f"{apart(own, true)} | {apart(theirs, true)} | {wide or ''} | "
              f"{apart(wide or 0, true) if wide else ''} |")


def main():
    command, paths = sys.argv[1], [Path(path) for path in sys.argv[2:]]
    steps = {"prepare": prepare, "measure": measure, "rivals": rivals, "widened": widened,
             "mlx": mlx, "truth": truth, "table": table}
    steps[command](*paths)


if __name__ == "__main__":
    main()
