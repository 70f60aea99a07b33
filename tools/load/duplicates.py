"""How much faster are requests of which half are duplicates, with sharing than without?

Starts `pelton serve` with and without `--no-sharing` in turn, sends both the same shuffled mix of
greedy chats at the same concurrency, checks that both give the same texts, and prints the tokens
that callers got a second. Standard library only:

    python3 tools/sharing/measure_duplicates.py --pelton target/release/pelton --model smollm2
"""

import argparse
import http.client
import json
import queue
import random
import statistics
import subprocess
import threading
import time

SUBJECTS = ["the sea", "a clock", "bread", "the number seven", "rain", "a fox", "iron", "a garden"]


def mix(unique, copies, seed):
    prompts = [
        f"Tell me about {SUBJECTS[i % len(SUBJECTS)]}, please. This is question {i}."
        for i in range(unique)
    ]
    requests = [prompt for prompt in prompts for _ in range(copies)]
    random.Random(seed).shuffle(requests)
    return requests


def start(arguments, more):
    command = [arguments.pelton, "serve", "--model", arguments.model, "--port", "0", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "http://" in line:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            address = line[line.index("http://") + 7 :].strip().removesuffix("/v1")
            return process, address
    raise SystemExit("the server did not start")


def ask(connection, prompt, tokens):
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    reply = json.loads(connection.getresponse().read())
    return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]


def run(arguments, more):
    """Texts by prompt, tokens a second, and the server's own counts."""
    requests = mix(arguments.unique, arguments.copies, arguments.seed)
    process, address = start(arguments, more)
    try:
        warm = http.client.HTTPConnection(address)
        ask(warm, "Hello.", 4)
        waiting = queue.SimpleQueue()
        for prompt in requests:
            waiting.put(prompt)
        texts, counts, lock = {}, [], threading.Lock()

        def work():
            connection = http.client.HTTPConnection(address)
            while True:
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                text, tokens = ask(connection, prompt, arguments.tokens)
                with lock:
                    assert texts.setdefault(prompt, text) == text, "duplicates differ"
                    counts.append(tokens)

        started = time.monotonic()
        workers = [threading.Thread(target=work) for _ in range(arguments.concurrency)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.monotonic() - started
        assert len(counts) == len(requests), "every request is answered"
        warm.request("GET", "/metrics")
        page = warm.getresponse().read().decode().splitlines()
        own = [line for line in page if line.startswith("pelton_sharing_") and "_total" in line]
        return texts, sum(counts) / seconds, own
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pelton", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--unique", type=int, default=48)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rates = {"off": [], "on": []}
    for _ in range(arguments.rounds):
        texts_off, rate, _ = run(arguments, ["--no-sharing"])
        rates["off"].append(rate)
        texts_on, rate, own = run(arguments, [])
        rates["on"].append(rate)
        assert texts_on == texts_off, "sharing changed a text"
    print("\n".join(own))
    for name, each in rates.items():
        shown = ", ".join(f"{rate:.1f}" for rate in each)
        print(f"sharing {name:3}: median {statistics.median(each):.1f} tok/s ({shown})")
    ratio = statistics.median(rates["on"]) / statistics.median(rates["off"])
    print(f"ratio {ratio:.2f}; the same texts")


if __name__ == "__main__":
    main()
