"""Does a model take the memory that was estimated before it was loaded?

    python3 tools/load/memory.py --pelton target/release/pelton --model smollm2 big.gguf

Loads each model into a server that has none, uses every place and block, and compares what the
process grew by with the estimate in `GET /v1/models`. A server loads its first model at the start,
so that is a tiny one (`--first`), whose own estimate is taken off. Linux.
"""

import argparse
import asyncio
import json
import random

import served


def model_of(server, name):
    models = json.loads(server.get("/v1/models"))["data"]
    return next(model for model in models if model["id"] == name)


def load(server, name):
    """Loads a model; gives its KV blocks."""
    before = server.metric("pelton_kv_blocks_total")
    server.post("/models/load", {"model": name})
    return server.metric("pelton_kv_blocks_total") - before


async def use_everything(server, model, blocks, vocabulary):
    """Fills the KV cache with prompts that share nothing, then runs as many answers as may."""
    draw = random.Random(1)
    context = model["max_model_len"]

    def request(tokens, answer):
        prompt = [draw.randrange(vocabulary) for _ in range(tokens)]
        body = {"model": model["id"], "prompt": prompt, "max_tokens": answer, "temperature": 0}
        return body | {
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }

    length = min(context - 1, 2000)
    rounds = int(blocks * 32 // length) + 1
    for _ in range(rounds):
        served.check([await served.ask(server.port, request(length, 1), path="/v1/completions")])
    bodies = [request(8, 16) for _ in range(32)]
    replies = await asyncio.gather(
        *(served.ask(server.port, body, path="/v1/completions") for body in bodies)
    )
    served.check(replies)


def measure(arguments, path):
    # Short answers wait behind long prompts here, and none is to be refused for that.
    flags = ["--set", "limits.queue_seconds_max=3600"]
    flags += ["--kv-cache-mb", str(arguments.kv_cache_mb), f"measured={path}"]
    with served.Served(arguments.pelton, None, f"first={arguments.first}", *flags) as server:
        asyncio.run(
            served.ask(
                server.port,
                {"model": "first", "prompt": [1, 2, 3], "max_tokens": 8, "stream": True},
                path="/v1/completions",
            )
        )
        before = server.resident_bytes()
        model = model_of(server, "measured")
        estimate = model["memory"]["estimate"]
        blocks = load(server, "measured")
        asyncio.run(use_everything(server, model, blocks, arguments.vocabulary))
        grown = server.resident_bytes() - before
    off = 100 * (grown / estimate["total"] - 1)
    parts = ", ".join(f"{name} {value / 2**20:.1f}" for name, value in estimate.items())
    print(f"{path}: grew by {grown / 2**20:.1f} MiB; estimated, MiB: {parts}; off by {off:+.1f} %")
    return off


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pelton", default="target/release/pelton")
    parser.add_argument("--model", nargs="+", default=["smollm2"])
    parser.add_argument("--first", required=True, help="the file of a tiny model")
    parser.add_argument("--kv-cache-mb", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=250, help="ids of prompts are below")
    arguments = parser.parse_args()
    worst = max(abs(measure(arguments, path)) for path in arguments.model)
    print(f"at most {worst:.1f} % off")


if __name__ == "__main__":
    main()
