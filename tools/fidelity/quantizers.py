"""Are files of `pelton quantize` as good as those of llama.cpp's and MLX's own quantizers, and do
their engines read them?

    python quantizers.py gguf SOURCE.gguf WORK PELTON LLAMA_QUANTIZE LLAMA_PERPLEXITY
    python quantizers.py mlx FOLDER WORK PELTON

SOURCE is a model in F16 (`pelton quantize MODEL F16.gguf --gguf F16`), FOLDER one of Hugging Face.
`gguf` needs gguf==0.19.0, `mlx` mlx-lm. Each prints a line a file: tensors of the same type, the
relative error of ours and of theirs over all tensors, the worst ratio of a tensor, and what the
engine makes of our file. The error of a tensor is the root of the mean square of what was lost,
against SOURCE.
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


def mlx(folder, work, pelton):
    import mlx.core as mx
    from mlx_lm import load, stream_generate

    print("| bits, group | tensors of the same bytes | our error | MLX-LM says |")
    print("|---|---|---|---|")
    source = {}
    for path in folder.glob("*.safetensors"):
        source |= mx.load(str(path))
    for bits, group in MLX:
        out = work / f"mlx-{bits}-{group}"
        shutil.rmtree(out, ignore_errors=True)
        report = quantize(pelton, folder, out, "--mlx-bits", str(bits), "--group", str(group))
        made = mx.load(str(out / "model.safetensors"))
        same = count = 0
        for name in made:
            path = name.removesuffix(".weight")
            if f"{path}.scales" not in made or not name.endswith(".weight"):
                continue
            parts = mx.quantize(source[name], group_size=group, bits=bits)
            own = [made[name], made[f"{path}.scales"], made[f"{path}.biases"]]
            count += 1
            same += all(mx.array_equal(a, b).item() for a, b in zip(parts, own))
        model, tokenizer = load(str(out))
        said = "".join(part.text for part in stream_generate(
            model, tokenizer, "The capital of France is", max_tokens=8))
        print(f"| {bits}, {group} | {same} of {count} | {100 * report['relative_error']:.3f} % | "
              f"{said!r} |", flush=True)


if __name__ == "__main__":
    command, paths = sys.argv[1], [Path(path) for path in sys.argv[2:]]
    {"gguf": gguf, "mlx": mlx}[command](*paths)
