"""Does the server keep its word under several times the load it can bear?

Finds what the server completes a second, then sends that many times `--factor` for `--minutes`,
each request on a connection of its own, whether or not others have been answered. Every admitted
request must succeed, every other get 429 with `Retry-After` at once, the queue's time hold for the
first token, and memory stay where it is:

    python3 tools/load/overload.py --pelton target/release/pelton --minutes 5
"""

import asyncio
import collections
import os
import random
import tempfile

import served

# Those that nobody has answered yet are not counted, so they are few.
OPEN_MAX = 2000


def body(arguments, index):
    draw = random.Random(index)
    prompt = f"Request {index}: {served.words(index, draw.randint(5, 60))}"
    return served.chat(prompt, draw.randint(arguments.tokens // 2, 3 * arguments.tokens // 2))


async def capacity(server, arguments):
    """Requests a second when as many run as may."""
    bodies = [body(arguments, -1 - index) for index in range(arguments.warm_up)]
    replies, seconds = await served.closed_loop(server.port, bodies, 32)
    served.check(replies)
    return len(replies) / seconds


async def overload(server, arguments, rate):
    replies, memory = [], []
    loop = asyncio.get_running_loop()
    started = loop.time()
    ends = started + 60 * arguments.minutes
    draw = random.Random(1)
    next_look, next_time, index, pending = started, started, 0, set()

    def note(task):
        pending.discard(task)
        replies.append(task.result())

    while loop.time() < ends:
        if loop.time() >= next_look:
            memory.append(server.resident_bytes())
            next_look += 5
        await asyncio.sleep(max(0, next_time - loop.time()))
        next_time += draw.expovariate(rate)
        if len(pending) < OPEN_MAX:
            task = asyncio.create_task(served.ask(server.port, body(arguments, index)))
            pending.add(task)
            task.add_done_callback(note)
            index += 1
    await asyncio.gather(*pending)
    await asyncio.sleep(0)
    memory.append(server.resident_bytes())
    return replies, memory, server.request_times(429)


def report(replies, memory, logged, queue_seconds):
    admitted = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    others = collections.Counter(
        reply.error for reply in replies if reply.status not in (200, 429)
    )
    failed = [reply for reply in admitted if reply.error or not reply.usage]
    print(f"{len(replies)} requests: {len(admitted)} admitted, {len(refused)} refused, {others}")
    print(f"of the admitted {len(failed)} failed {[reply.error for reply in failed[:3]]}")
    firsts = [reply.first_token for reply in admitted if reply.stamps]
    line = ", ".join(f"p{p} {served.percentile(firsts, p):.2f}" for p in (50, 90, 99, 100))
    print(f"first token of the admitted, s: {line} (queue: {queue_seconds} s at most)")
    # One that has waited as long as it may is refused then; all others at once.
    late = [reply for reply in refused if reply.ended - reply.sent > 0.9 * queue_seconds]
    times = [1e3 * (reply.ended - reply.sent) for reply in refused if reply not in late]
    line = ", ".join(f"p{p} {served.percentile(times, p):.1f}" for p in (50, 90, 99, 100))
    print(f"refusals at once, ms: {line}; after the longest wait: {len(late)}")
    logged = [ms for ms in logged if ms < 900 * queue_seconds]
    line = ", ".join(f"p{p} {served.percentile(logged, p):.0f}" for p in (50, 90, 99, 100))
    print(f"the same as the server logged {len(logged)} of them, ms: {line}")
    waits = [int(reply.headers.get("retry-after", -1)) for reply in refused]
    print(f"retry-after, s: {min(waits, default=0)} to {max(waits, default=0)}")
    gaps = [1e3 * gap for reply in admitted for gap in reply.gaps()]
    line = ", ".join(f"p{p} {served.percentile(gaps, p):.1f}" for p in (50, 99))
    print(f"between tokens of the admitted, ms: {line}")
    print("memory, MiB: " + " ".join(str(size >> 20) for size in memory))
    assert not failed and not others, "an admitted request failed"
    assert all(wait >= 1 for wait in waits), "a refusal without Retry-After"


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--factor", type=float, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--queue-seconds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=96)
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        print(f"limits: {{queue_seconds_max: {arguments.queue_seconds}}}", file=config, flush=True)
        # A cache that is full soon, so that what grows after it is a leak.
        flags = ["--config", config.name, "--kv-cache-mb", "128"]
        with served.Served(arguments.pelton, arguments.model, *flags) as server:
            rate = asyncio.run(capacity(server, arguments))
            print(f"it completes {rate:.2f} requests a second; {arguments.factor} times that come")
            print(f"{os.cpu_count()} cores, the load shares them")
            load = overload(server, arguments, arguments.factor * rate)
            replies, memory, logged = asyncio.run(load)
    report(replies, memory, logged, arguments.queue_seconds)


if __name__ == "__main__":
    main()
