"""Are files of `pelton quantize` as good as those of llama.cpp's and MLX's own quantizers, and do
their engines read them?

    python quantizers.py gguf SOURCE.gguf WORK PELTON LLAMA_QUANTIZE LLAMA_PERPLEXITY
    python quantizers.py mlx FOLDER MODEL.gguf WORK PELTON

SOURCE is a model in F16 (`pelton quantize MODEL F16.gguf --gguf F16`), FOLDER one of Hugging Face,
MODEL.gguf a file of any type. `gguf` needs gguf==0.19.0, `mlx` mlx-lm. Each prints a line a file:
tensors of the same type, the relative error of ours and of theirs over all tensors, the worst ratio
of a tensor, and what the engine makes of our file. The error of a tensor is the root of the mean
square of what was lost, against SOURCE. For MLX it is how many of the likeliest tokens behind a
prompt, one after the other, are those of `pelton run` on the same folder, on both devices, with all
in f32 there.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K"]
MLX = [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 64), (6, 64), (8, 64)]
# Bits, and those for what suffers most.
MIXED = [(3, 6, 64)]
PROMPT = "What is the capital of France, and what is it known for?"
TOKENS = 24
# What it means, and what computes fast: with activations in 8 bits.
DEVICES = ["reference", "cpu"]


def quantize(pelton, *arguments):
    return json.loads(subprocess.run([pelton, "quantize", *arguments, "--json"], check=True,
                                     capture_output=True, text=True).stdout)


def values(path):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path).tensors:
        yield tensor.name, tensor.tensor_type, dequantize(tensor.data, tensor.tensor_type)


def gguf(source, work, pelton, llama_quantize, llama_perplexity):
    truth = {name: whole for name, _, whole in values(source)}
    text = work / "some.txt"
    text.write_text(Path("/usr/share/common-licenses/GPL-3").read_text()[:20000])
    print("| type | tensors of the same type | our error | theirs | worst tensor | llama.cpp |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        ours, theirs = work / f"ours-{kind}.gguf", work / f"theirs-{kind}.gguf"
        quantize(pelton, source, ours, "--gguf", kind, "--force")
        subprocess.run([llama_quantize, source, theirs, kind, "2"], check=True,
                       capture_output=True)
        same, total, squares, worst = 0, np.zeros(2), 0.0, 0.0
        others = {name: (kind, whole) for name, kind, whole in values(theirs)}
        for name, own_type, own in values(ours):
            their_type, their = others[name]
            errors = np.array([np.square(own - truth[name], dtype=np.float64).sum(),
                               np.square(their - truth[name], dtype=np.float64).sum()])
            same += own_type == their_type
            total += errors
            squares += np.square(truth[name], dtype=np.float64).sum()
            if own_type == their_type and errors[1] > 0:
                worst = max(worst, (errors[0] / errors[1]) ** 0.5)
        own, their = np.sqrt(total / squares)
        run = subprocess.run([llama_perplexity, "-m", ours, "-f", text, "-c", "256", "--chunks",
                              "4", "-t", "2"], capture_output=True, text=True)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", run.stdout + run.stderr)
        print(f"| {kind} | {same} of {len(truth)} | {100 * own:.4f} % | {100 * their:.4f} % | "
              f"{worst:.4f} | {'perplexity ' + found[1] if found else 'no'} |", flush=True)


def same_tokens(out, pelton):
    """Of how many tokens MLX-LM says, and what; how many each device says before it parts."""
    from mlx_lm import load, stream_generate
    from perplexity import in_f32

    model, tokenizer = load(str(out))
    model = in_f32(model)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}],
                                           add_generation_prompt=True)
    theirs = "".join(part.text for part in stream_generate(model, tokenizer, prompt,
                                                           max_tokens=TOKENS))
    their = tokenizer.encode(theirs.strip())
    same = []
    for device in DEVICES:
        run = subprocess.run([pelton, "run", "-m", out, "--device", device, "--temperature", "0",
                              "--max-tokens", str(TOKENS), PROMPT], check=True,
                             capture_output=True, text=True)
        own = tokenizer.encode(run.stdout.strip())
        length = min(len(own), len(their))
        same.append(next((at for at in range(length) if own[at] != their[at]), length))
    return same, len(their), theirs


def same_bytes(out, source, group, report):
    """Matrices whose codes, scales and biases are those of MLX's own quantizer."""
    import mlx.core as mx

    made = mx.load(str(out / "model.safetensors"))
    bits_of = {tensor["name"]: int(tensor["to"].split()[1][0]) for tensor in report["tensors"]
               if tensor["to"].startswith("MLX")}
    same = 0
    for name, bits in bits_of.items():
        path = name.removesuffix(".weight")
        parts = mx.quantize(source[name], group_size=group, bits=bits)
        own = [made[name], made[f"{path}.scales"], made[f"{path}.biases"]]
        same += all(mx.array_equal(a, b).item() for a, b in zip(parts, own))
    return f"{same} of {len(bits_of)}"


def mlx(folder, model, work, pelton):
    import mlx.core as mx

    print("| source | bits, group | tensors of the same bytes | our error | "
          + " | ".join(f"same tokens, {device}" for device in DEVICES) + " | MLX-LM says |")
    print("|---" * (5 + len(DEVICES)) + "|")
    source = {}
    for path in folder.glob("*.safetensors"):
        source |= mx.load(str(path))
    cases = [(folder, bits, bits, group) for bits, group in MLX]
    cases += [(folder, *mixed) for mixed in MIXED] + [(model, 4, 4, 64), (model, 8, 8, 64)]
    for given, bits, better, group in cases:
        out = work / f"mlx-{given.suffix}-{bits}-{better}-{group}"
        shutil.rmtree(out, ignore_errors=True)
        report = quantize(pelton, given, out, "--mlx-bits", str(bits), "--group", str(group),
                          "--better-bits", str(better))
        compared = same_bytes(out, source, group, report) if given == folder else ""
        same, count, said = same_tokens(out, pelton)
        shown = f"{bits}, {group}" if bits == better else f"{bits} and {better}, {group}"
        print(f"| {'GGUF' if given == model else 'folder'} | {shown} | {compared} | "
              f"{100 * report['relative_error']:.3f} % | "
              + " | ".join(f"{each} of {count}" for each in same) + f" | {said!r} |", flush=True)


if __name__ == "__main__":
    command, paths = sys.argv[1], [Path(path) for path in sys.argv[2:]]
    {"gguf": gguf, "mlx": mlx}[command](*paths)
