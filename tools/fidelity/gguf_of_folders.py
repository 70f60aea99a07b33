"""Does llama.cpp say, with a GGUF file that `pelton quantize` makes of a folder, what the authors' code
says with the same weights?

    pip install llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
    python gguf_of_folders.py PELTON WORK [FAMILY...]

FAMILY is a folder of crates/testkit/golden/families, whose answers transformers gave in float32; it
gets a small tokenizer first, which a file must have. Each prints a line: how far llama.cpp's logits are
from the truth, relative to the largest, with weights in F32 and keys and values in F32; or that it does
not load the file, and why. Each runs in a process of its own: llama.cpp ends some with an abort.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).resolve().parents[2] / "crates/testkit/golden/families"
TOKENIZER = {
    "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def with_tokenizer(name, folder):
    shutil.copytree(GOLDEN / name, folder)
    settings = json.loads((folder / "config.json").read_text())
    for part in [settings, settings.get("text_config", {})]:
        for key in [key for key in part if key.endswith("_token_id")]:
            del part[key]
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))


def compare(file, name):
    """In the process of its own."""
    from llama_cpp import Llama

    ids = gguf.GGUFReader(GOLDEN / f"{name}.gguf").fields["golden.ids"].contents()
    model = Llama(file, n_ctx=64, n_batch=64, n_ubatch=64, logits_all=True, type_k=0, type_v=0,
                  n_threads=2, flash_attn=False, swa_full=True, verbose=True)
    model.eval(ids)
    rows = model.n_vocab()
    got = np.array(model.scores[:len(ids)], dtype=np.float32)
    truth = np.frombuffer((GOLDEN / f"{name}.truth").read_bytes(), "<f4")
    truth = truth[:len(ids) * rows].reshape(len(ids), rows)
    print(f"apart {np.abs(got - truth).max() / np.abs(truth).max():.1e}")


def check(pelton, work, name):
    folder, file = work / name, work / f"{name}.gguf"
    with_tokenizer(name, folder)
    done = subprocess.run([pelton, "quantize", folder, file, "--gguf", "F32"],
                          capture_output=True, text=True)
    if done.returncode:
        return f"Pelton refuses: {done.stderr.strip()}"
    done = subprocess.run([sys.executable, __file__, "--compare", file, name],
                          capture_output=True, text=True)
    apart = [line for line in done.stdout.splitlines() if line.startswith("apart ")]
    if apart:
        return apart[0].removeprefix("apart ")
    said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    return f"llama.cpp refuses: {(said or done.stderr.splitlines() or ['no word'])[0].strip()}"


def main(pelton, work, asked):
    work = Path(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    print("| model | llama.cpp apart |\n|---|---|")
    for name in asked or sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()):
        print(f"| {name} | {check(pelton, work, name)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        compare(*sys.argv[2:])
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
