"""What does holding answers to a schema cost a batch?

    python3 tools/load/constrained.py --pelton target/release/pelton

One server is asked in turn for a batch of free answers and for one of answers that a schema holds,
so that both see the same machine: as many tokens of each, from prompts of one length, without
sharing and without guesses. The schema is an array of objects that has no end within the tokens, so
every token of it is masked. A third kind asks for half of each, to show that the free ones beside
the held are not slowed.
"""

import asyncio
import json
import statistics

import served

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"enum": ["river", "mountain", "city"]},
            "size": {"type": "integer"},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "kind", "size", "notes"],
        "additionalProperties": False,
    },
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "places", "schema": SCHEMA}}


def body(arguments, index, is_held):
    prompt = f"List places, as JSON. {index} " + served.words(index, 60)
    # A held answer ends where its schema does, which is not within these tokens.
    more = {"response_format": FORMAT, "ignore_eos": False} if is_held else {}
    more |= {"temperature": 1, "seed": index, "speculation": False}
    return served.chat(prompt, arguments.tokens, **more)


def run(server, arguments, kind, first):
    held = {"free": lambda _: False, "held": lambda _: True, "mixed": lambda index: index % 2 == 0}
    bodies = [body(arguments, first + index, held[kind](index)) for index in range(arguments.batch)]
    replies, seconds = asyncio.run(served.closed_loop(server.port, bodies, arguments.batch))
    served.check(replies)
    tokens = served.tokens_of(replies)
    assert tokens == arguments.batch * arguments.tokens, f"{kind}: {tokens} tokens"
    if kind == "held":
        assert all(reply.text.startswith("[") for reply in replies), "an answer that is not held"
    return tokens / seconds


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    kinds = ["free", "held", "mixed"]
    with served.Served(arguments.pelton, arguments.model, "--no-sharing") as server:
        for kind in kinds:
            run(server, arguments, kind, 10_000)
        rates = {kind: [] for kind in kinds}
        for index in range(arguments.rounds):
            # Who is first takes turns.
            turned = kinds[index % 3 :] + kinds[: index % 3]
            for kind in turned:
                rates[kind].append(run(server, arguments, kind, 100 * index))
    for kind in kinds:
        print(served.median_line(f"{kind:5}", rates[kind], "tokens/s"))
    for kind in kinds[1:]:
        ratios = [one / other for one, other in zip(rates[kind], rates["free"])]
        print(served.median_line(f"{kind:5} to free", ratios, "times"))
    print(json.dumps({kind: statistics.median(rates[kind]) for kind in kinds}))


if __name__ == "__main__":
    main()
