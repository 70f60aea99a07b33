"""Do N chats that never pause all succeed for minutes, and does the server's memory stay?

    python3 tools/load/steady.py --model 70b.gguf --chats 64 --seconds 180 -- --kv-cache-mb 20000

What stands behind `--` goes to the server. Each chat sends its next request when its last answer
has ended; prompts are all different. Prints each 30 seconds: answers, tokens a second, memory of
the process and, where `nvidia-smi` is found, of the card; and at the end what clients saw.
Exits with 1 if a request failed.
"""

import argparse
import asyncio
import shutil
import subprocess
import time

import served

REPORT_SECONDS = 30


def card_megabytes():
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(int(line) for line in subprocess.check_output(asked, text=True).split())


class Chats:
    def __init__(self, server, arguments):
        self.server = server
        self.arguments = arguments
        self.replies = []
        self.begun = time.perf_counter()
        self.until = self.begun + arguments.seconds

    async def chat(self, number):
        turn = 0
        while time.perf_counter() < self.until:
            seed = 100_003 * number + turn
            prompt = f"Request {number}-{turn}: write a long story using these words: "
            prompt += served.words(seed, self.arguments.prompt_words)
            body = served.chat(prompt, self.arguments.tokens, seed=seed)
            self.replies.append(await served.ask(self.server.port, body))
            turn += 1

    async def report(self):
        while True:
            known = len(self.replies)
            await asyncio.sleep(REPORT_SECONDS)
            new = [reply for reply in self.replies[known:] if not reply.error]
            print(
                f"{time.perf_counter() - self.begun:6.0f} s: {len(new)} answers, "
                f"{served.tokens_of(new) / REPORT_SECONDS:.0f} tok/s, {self.memory()}",
                flush=True,
            )

    def memory(self):
        card = card_megabytes()
        own = f"{self.server.resident_bytes() / 1e6:.0f} MB of the process"
        return own if card is None else f"{own}, {card} MiB of the card"

    async def run(self):
        print(f"start: {self.memory()}", flush=True)
        reports = asyncio.create_task(self.report())
        await asyncio.gather(*(self.chat(number) for number in range(self.arguments.chats)))
        reports.cancel()
        print(f"end: {self.memory()}", flush=True)


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-words", type=int, default=40)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of the server, behind --")
    arguments = parser.parse_args()
    flags = [flag for flag in arguments.flags if flag != "--"]
    most = ["--set", f"limits.sequences_max={arguments.chats}"]
    with served.Served(arguments.pelton, arguments.model, "--no-sharing", *most, *flags) as server:
        print(f"ready after {time.monotonic() - server.started:.1f} s", flush=True)
        # The first answer of a process is not like the others.
        served.check([asyncio.run(served.ask(server.port, served.chat("Hello.", 16)))])
        chats = Chats(server, arguments)
        asyncio.run(chats.run())
        seconds = time.perf_counter() - chats.begun
    good = [reply for reply in chats.replies if not reply.error]
    gaps = [1e3 * gap for reply in good for gap in reply.gaps()]
    firsts = [1e3 * reply.first_token for reply in good if reply.stamps]
    print(f"requests: {len(chats.replies)}, of which {len(good)} succeeded")
    print(f"tokens a second: {served.tokens_of(good) / seconds:.1f} over {seconds:.1f} s")
    for name, values in (("first token", firsts), ("between tokens", gaps)):
        shown = ", ".join(f"p{at} {served.percentile(values, at):.1f}" for at in (50, 90, 99, 100))
        print(f"{name}, ms: {shown}")
    served.check(chats.replies)


if __name__ == "__main__":
    main()
