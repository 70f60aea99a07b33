"""How much faster are requests of which half are duplicates, with sharing than without?

Starts `pelton serve` with and without `--no-sharing` in turn, sends both the same shuffled mix of
greedy chats at the same concurrency, checks that both give the same texts, and prints the tokens
that callers got a second:

    python3 tools/load/duplicates.py --pelton target/release/pelton --model smollm2
"""

import asyncio
import random
import statistics

import served

SUBJECTS = ["the sea", "a clock", "bread", "the number seven", "rain", "a fox", "iron", "a garden"]


def mix(arguments):
    prompts = [
        f"Tell me about {SUBJECTS[i % len(SUBJECTS)]}, please. This is question {i}."
        for i in range(arguments.unique)
    ]
    requests = [prompt for prompt in prompts for _ in range(arguments.copies)]
    random.Random(arguments.seed).shuffle(requests)
    return requests


def run(arguments, flags):
    """Texts by prompt, tokens a second, and how many requests shared."""
    prompts = mix(arguments)
    bodies = [served.chat(prompt, arguments.tokens) for prompt in prompts]
    with served.Served(arguments.pelton, arguments.model, *flags) as server:
        asyncio.run(served.ask(server.port, served.chat("Hello.", 4)))
        load = served.closed_loop(server.port, bodies, arguments.concurrency)
        replies, seconds = asyncio.run(load)
        served.check(replies)
        texts = {}
        for prompt, reply in zip(prompts, replies):
            assert texts.setdefault(prompt, reply.text) == reply.text, "duplicates differ"
        shared = [server.metric(f"pelton_sharing_{name}_total") for name in ("hits", "joins")]
    return texts, served.tokens_of(replies) / seconds, shared


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--unique", type=int, default=48)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rates = {"off": [], "on": []}
    for _ in range(arguments.rounds):
        texts_off, rate, _ = run(arguments, ["--no-sharing"])
        rates["off"].append(rate)
        texts_on, rate, shared = run(arguments, [])
        rates["on"].append(rate)
        assert texts_on == texts_off, "sharing changed a text"
    print(f"{shared[0]:.0f} remembered, {shared[1]:.0f} read along, of {len(mix(arguments))}")
    for name, each in rates.items():
        print(served.median_line(f"sharing {name}", each, "tok/s"))
    ratio = statistics.median(rates["on"]) / statistics.median(rates["off"])
    print(f"ratio {ratio:.2f}; the same texts")


if __name__ == "__main__":
    main()
