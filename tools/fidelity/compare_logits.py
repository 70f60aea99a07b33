"""How far are a program's logits from the float32 truth?

    python compare_logits.py MODEL.gguf LOGITS.f32 [--positions DIR] [--truth FILE.npy]

LOGITS.f32 holds raw little-endian f32 [rows, vocab], one row for each position that has a
next token, documents in the order of positions.json. The truth is computed with
`make_smollm2_truth.py` and kept in FILE.npy when it is not there yet.

KL divergences are KL(truth || program) in nats, summed in float64 over the whole vocabulary.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
POSITIONS = HERE.parent.parent / "crates" / "testkit" / "golden" / "smollm2"
ROWS_AT_ONCE = 128


def log_probabilities(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def open_truth(path, model, documents, rows, vocabulary):
    if not path.exists():
        print(f"computing the truth into {path}", file=sys.stderr)
        sys.path.insert(0, str(GOLDEN))
        from make_smollm2_truth import truth_logits

        np.save(path, truth_logits(model, documents))
    truth = np.load(path, mmap_mode="r")
    if truth.shape != (rows, vocabulary):
        sys.exit(f"{path} has shape {truth.shape}, positions.json wants {(rows, vocabulary)}: "
                 "delete the file, it belongs to other positions")
    return truth


def open_dump(path, rows, vocabulary):
    size = path.stat().st_size
    if size != rows * vocabulary * 4:
        sys.exit(f"{path} has {size} bytes, {rows} rows of {vocabulary} f32 are "
                 f"{rows * vocabulary * 4}: was it written for the same positions.json?")
    return np.memmap(path, dtype="<f4", mode="r", shape=(rows, vocabulary))


def compare(truth, dump, targets):
    """Per row: divergence, whether the best token agrees, both log-probabilities of the next."""
    kl, agrees, truth_next, dump_next = [], [], [], []
    for start in range(0, len(targets), ROWS_AT_ONCE):
        span = slice(start, start + ROWS_AT_ONCE)
        if not np.isfinite(dump[span]).all():
            sys.exit(f"rows {start} to {start + ROWS_AT_ONCE}: logits that are not finite")
        p, q = log_probabilities(truth[span]), log_probabilities(dump[span])
        kl.append((np.exp(p) * (p - q)).sum(-1))
        agrees.append(truth[span].argmax(-1) == dump[span].argmax(-1))
        rows = np.arange(len(p))
        truth_next.append(p[rows, targets[span]])
        dump_next.append(q[rows, targets[span]])
    return [np.concatenate(part) for part in (kl, agrees, truth_next, dump_next)]


def summarize(kl, agrees, truth_next, dump_next):
    return {
        "rows": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
        "top1_agreement": float(agrees.mean()),
        "perplexity_truth": float(np.exp(-truth_next.mean())),
        "perplexity": float(np.exp(-dump_next.mean())),
        "perplexity_ratio": float(np.exp(truth_next.mean() - dump_next.mean())),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the GGUF file (read only when the truth is absent)")
    parser.add_argument("logits", type=Path)
    parser.add_argument("--positions", type=Path, default=POSITIONS,
                        help="the folder of positions.json")
    parser.add_argument("--truth", type=Path, default=Path("truth_logits.npy"))
    parser.add_argument("--documents", action="store_true", help="one line for each document too")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    options = parser.parse_args()

    positions = json.loads((options.positions / "positions.json").read_text())
    documents, vocabulary = positions["documents"], positions["vocabulary"]
    targets = np.concatenate([np.array(d["ids"][1:]) for d in documents])
    truth = open_truth(options.truth, options.model, documents, len(targets), vocabulary)
    dump = open_dump(options.logits, len(targets), vocabulary)
    columns = compare(truth, dump, targets)

    total = summarize(*columns)
    if options.json:
        print(json.dumps(total))
        return
    if options.documents:
        start = 0
        for document in documents:
            span = slice(start, start + document["rows"])
            one = summarize(*(column[span] for column in columns))
            start = span.stop
            print(f"{document['name']:14} rows {one['rows']:5}  mean KL {one['kl_mean']:.3e}  "
                  f"top-1 {one['top1_agreement']:.4f}  perplexity x{one['perplexity_ratio']:.5f}")
    for name, value in total.items():
        print(f"{name:18} {value:.6g}")


if __name__ == "__main__":
    main()
