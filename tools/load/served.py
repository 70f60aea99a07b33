"""A server of one's own, and a client that costs little of the cores they share.

Everything here is bounded and stays on this machine: the server is started on a free loopback port
and stopped at the end, and a request has a time limit. Standard library only.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import threading
import time

WORDS = (
    "river stone garden music winter engine planet yellow market history doctor coffee window "
    "bridge silver forest teacher ocean mirror pocket thunder candle village letter kitchen "
    "mountain shadow story number travel animal science water paper school friend"
).split()
REQUEST_SECONDS_MAX = 300


def words(seed, count):
    drawn = random.Random(seed)
    return " ".join(drawn.choice(WORDS) for _ in range(count))


def percentile(values, percent):
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def parser(description):
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--pelton", default="target/release/pelton", help="the program to measure")
    made.add_argument("--model", default="smollm2")
    return made


class Served:
    """`pelton serve` on a free port, until the end of the `with` block."""

    def __init__(self, pelton, model, *flags):
        named = ["--model", model] if model else []
        command = [pelton, "serve", *named, "--port", "0", *flags]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said = []
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if "http://" in line:
                address = line[line.index("http://") + 7 :].strip().removesuffix("/v1")
                self.port = int(address.rsplit(":", 1)[1])
                break
        else:
            raise SystemExit("the server did not start:\n" + "\n".join(self.said))
        # What it says later must not fill the pipe.
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stderr:
            self.said.append(line.rstrip())

    def request_times(self, status):
        """Milliseconds of the requests that it logged with this status."""
        marked = f" status={status} ms="
        logged = [line.split(marked)[1] for line in list(self.said) if marked in line]
        return [float(rest.split()[0]) for rest in logged]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        reply = connection.getresponse().read()
        connection.close()
        return reply

    def post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        assert reply.status == 200, text
        return text

    def metric(self, name):
        """The sum of a series over its labels."""
        total = 0.0
        for line in self.get("/metrics").decode().splitlines():
            if line.startswith(name) and line[len(name)] in " {":
                total += float(line.rsplit(" ", 1)[1])
        return total

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10
        return 0

    def processor_seconds(self):
        """Of all its threads, by thread name."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = {}
        folder = f"/proc/{self.process.pid}/task"
        for task in os.listdir(folder):
            with open(f"{folder}/{task}/stat", encoding="ascii") as stat:
                name, rest = stat.read().split("(", 1)[1].rsplit(")", 1)
            fields = rest.split()
            used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
        return used


class Reply:
    """What came of one request."""

    def __init__(self):
        self.status = 0
        self.headers = {}
        self.text = ""
        self.stamps = []
        self.usage = {}
        self.error = None
        self.sent = self.ended = 0.0

    @property
    def first_token(self):
        return self.stamps[0] - self.sent

    def gaps(self):
        return [after - before for before, after in zip(self.stamps, self.stamps[1:])]


def chat(prompt, tokens, **more):
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    body = {
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    return body | more


async def ask(port, body, headers=None, path="/v1/chat/completions"):
    """Sends one streamed request on a connection of its own and reads it to the end."""
    reply = Reply()
    try:
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            await _ask(port, body, headers or {}, path, reply)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        reply.error = repr(error)
    reply.ended = time.perf_counter()
    return reply


async def _ask(port, body, headers, path, reply):
    data = json.dumps(body).encode()
    reply.sent = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
            f"content-type: application/json\r\n{lines}content-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        reply.status = int(head[0].split()[1])
        reply.headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        if reply.status != 200:
            reply.error = (await reader.read(1 << 16)).decode(errors="replace")
            return
        # An event is one line; the lines of the chunked coding between them do not matter.
        async for line in reader:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                reply.error = event["error"]["message"]
                return
            reply.usage = event.get("usage") or reply.usage
            for choice in event["choices"]:
                if text := choice.get("delta", choice).get("content"):
                    reply.text += text
                    reply.stamps.append(time.perf_counter())
    finally:
        writer.close()


async def closed_loop(port, bodies, concurrency, headers=None):
    """Sends all, `concurrency` at a time. Gives the replies in order and the seconds."""
    replies = [None] * len(bodies)
    waiting = iter(range(len(bodies)))

    async def work():
        for index in waiting:
            replies[index] = await ask(port, bodies[index], headers)

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return replies, time.perf_counter() - started


def check(replies):
    failed = [reply.error for reply in replies if reply.error]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(replies)} requests failed: {failed[0]}")


def tokens_of(replies):
    return sum(reply.usage["completion_tokens"] for reply in replies)


def median_line(name, values, unit):
    shown = ", ".join(f"{value:.4g}" for value in values)
    return f"{name}: median {statistics.median(values):.4g} {unit} ({shown})"
