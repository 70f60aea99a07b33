"""What do checked guesses gain on a text that copies, and cost on one that cannot be guessed?

    python3 tools/load/speculation.py --pelton target/release/pelton

Two servers, one that guesses where it pays and one that never does, are asked in turn, so that both
see the same machine. The copy asks to repeat a text of the prompt. The hostile task is sampled at
temperature 1 with seeds from prompts of random words: nothing repeats, and what looks as if it did
goes on otherwise. Both must give the same texts.
"""

import asyncio
import statistics

import served

COPIED = (
    "The quick brown fox jumps over the lazy dog near the old stone bridge. In winter the river "
    "freezes and children skate from the mill to the market. A teacher counts them twice, in the "
    "morning and at night. The baker sells warm bread from a small window, and the doctor walks "
    "her yellow dog along the silver forest until the lamps are lit. "
)


def copying(arguments, index):
    prompt = f"Repeat the following text exactly, word for word.\n\n{COPIED * 2}"
    # A text that has been begun goes on as it did, whatever the model makes of the request.
    body = served.chat(prompt + f"\n\nText {index}:\n{COPIED * 2}", arguments.tokens)
    return body


def hostile(arguments, index):
    prompt = f"{index} " + served.words(index, 120)
    return served.chat(prompt, arguments.tokens, temperature=1, seed=index)


def run(server, bodies, batch):
    """Seconds, and the texts."""
    replies, seconds = asyncio.run(served.closed_loop(server.port, bodies, batch))
    served.check(replies)
    return seconds, [reply.text for reply in replies]


def measure(servers, arguments, task, batch):
    ratios, guessed = [], servers["auto"].metric("pelton_speculation_checks_total")
    accepted = servers["auto"].metric("pelton_speculation_accepted_tokens_total")
    for round_index in range(arguments.rounds):
        first = 1000 * round_index
        bodies = [task(arguments, first + index) for index in range(batch)]
        # Who is first takes turns, or whatever follows from that would count for one of them.
        names = ["auto", "off"] if round_index % 2 == 0 else ["off", "auto"]
        found = {name: run(servers[name], bodies, batch) for name in names}
        assert found["auto"][1] == found["off"][1], "guesses changed a text"
        ratios.append(found["off"][0] / found["auto"][0])
    guessed = servers["auto"].metric("pelton_speculation_checks_total") - guessed
    accepted = servers["auto"].metric("pelton_speculation_accepted_tokens_total") - accepted
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(
        f"{task.__name__:8} batch {batch}: {statistics.median(ratios):.3f} times as fast ({shown});"
        f" {guessed:.0f} checks, {accepted:.0f} right guesses",
        flush=True,
    )


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    start = (arguments.pelton, arguments.model, "--no-sharing", "--speculation")
    with served.Served(*start, "auto") as guessing, served.Served(*start, "off") as plain:
        servers = {"auto": guessing, "off": plain}
        for server in servers.values():
            asyncio.run(served.ask(server.port, served.chat("Hello.", 20)))
        for batch in arguments.batch:
            for task in (copying, hostile):
                measure(servers, arguments, task, batch)


if __name__ == "__main__":
    main()
