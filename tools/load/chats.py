"""How do N concurrent chats fare: tokens a second, time to first token, time between tokens?

    python3 tools/load/chats.py --pelton target/release/pelton --concurrency 8 32

With `--rival PATH` (llama.cpp's `llama-server`) and `--rival-model FILE` both are measured in turn.
`--threads` also shows what the server's threads took of the processor.
"""

import asyncio
import http.client
import socket
import statistics
import subprocess
import time

import served


class Rival:
    """llama-server with as many slots as chats."""

    def __init__(self, program, model, slots):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [program, "-m", model, "-t", "2", "-np", str(slots), "-c", str(2048 * slots)]
        command += ["-fa", "off", "--no-webui", "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        self.process.kill()
        raise SystemExit("the rival did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def bodies(arguments, concurrency, seed):
    made = []
    for index in range(arguments.rounds * concurrency):
        prompt = f"Request {seed}-{index}: write a long story using these words: "
        prompt += served.words(seed * 100_003 + index, arguments.prompt_words)
        made.append(served.chat(prompt, arguments.tokens, seed=index))
    return made


def measure(server, arguments, concurrency, seed):
    asyncio.run(served.ask(server.port, served.chat("Hello.", 4)))
    load = bodies(arguments, concurrency, seed)
    before = server.processor_seconds() if hasattr(server, "processor_seconds") else {}
    replies, seconds = asyncio.run(served.closed_loop(server.port, load, concurrency))
    served.check(replies)
    gaps = [gap * 1e3 for reply in replies for gap in reply.gaps()]
    firsts = [reply.first_token * 1e3 for reply in replies]
    found = {
        "tokens_s": served.tokens_of(replies) / seconds,
        "first_ms_p50": served.percentile(firsts, 50),
        "first_ms_p99": served.percentile(firsts, 99),
        "next_ms_p50": served.percentile(gaps, 50),
        "next_ms_p99": served.percentile(gaps, 99),
    }
    if before and arguments.threads:
        after = server.processor_seconds()
        used = {name: after[name] - before.get(name, 0) for name in after}
        for name, time_used in sorted(used.items(), key=lambda item: -item[1]):
            if time_used > 0:
                print(f"    {name:16} {100 * time_used / seconds:5.1f} % of a core")
    return found


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-words", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2, help="requests of each chat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rival")
    parser.add_argument("--rival-model")
    parser.add_argument("--threads", action="store_true")
    arguments = parser.parse_args()
    for concurrency in arguments.concurrency:
        found = {"pelton": [], "rival": []}
        for repeat in range(arguments.repeats):
            with served.Served(arguments.pelton, arguments.model, "--no-sharing") as server:
                found["pelton"].append(measure(server, arguments, concurrency, repeat))
            if arguments.rival:
                model = arguments.rival_model
                with Rival(arguments.rival, model, concurrency) as server:
                    found["rival"].append(measure(server, arguments, concurrency, repeat))
        for name, each in found.items():
            for key in each[0] if each else []:
                values = [one[key] for one in each]
                shown = ", ".join(f"{value:.1f}" for value in values)
                median = statistics.median(values)
                print(f"{concurrency:3} chats, {name:6} {key:13} median {median:8.1f} ({shown})")


if __name__ == "__main__":
    main()
