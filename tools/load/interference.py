"""Do running streams keep their pace while a long prompt is read?

Starts some streams at a server with an OpenAI API, sends a long prompt, and measures the time
between the streams' tokens until that prompt has its first token. Then the same streams run once
more without it: what is undisturbed is the time between the same tokens of the same streams, for
streams get longer meanwhile, and a token of a longer one takes longer whatever else is done. What
came just before the prompt is printed, too. Distributions are pooled over all streams, for each
round and for all of them.

    python3 tools/load/interference.py --port 8080

Standard library only. Talks to 127.0.0.1 only; ends by itself: every request has a bound in tokens
and a time limit. Works on Pelton and on llama-server (start that with a slot for the long prompt:
`-np 9`, and `-c` for all slots together). Prompts are drawn anew in each round, so that no cache
has them.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import threading
import time

WORDS = """time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea kid body information back parent face others level
office door health person art war history party result change morning reason research girl guy
moment air teacher force education""".split()

# No stream or prompt may take longer, whatever the server does.
LIMIT_SECONDS = 150


def text_of(words, rng):
    return " ".join(rng.choice(WORDS) for _ in range(words))


class Stream(threading.Thread):
    """One streamed completion; `times` has the moment at which each event with text came."""

    def __init__(self, port, model, prompt, max_tokens, seed):
        super().__init__(daemon=True)
        self.port, self.times, self.error, self.usage = port, [], None, None
        self.stop = False
        self.body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            # At temperature 0 small models repeat themselves, and guesses at the next tokens would
            # make what is measured anything but even.
            "temperature": 1,
            "seed": seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def run(self):
        try:
            self.talk()
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self.stop:
                self.error = repr(error)

    def talk(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_SECONDS)
        self.sent = time.monotonic()
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(self.body), headers)
        reply = connection.getresponse()
        if reply.status != 200:
            self.error = f"{reply.status}: {reply.read(300)!r}"
            return
        while not self.stop:
            line = reply.readline()
            if not line or line.startswith(b"data: [DONE]"):
                break
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            event = json.loads(line[6:])
            if "error" in event:
                self.error = str(event["error"])
                break
            self.usage = event.get("usage") or self.usage
            choices = event.get("choices")
            if choices and choices[0].get("text"):
                self.times.append(now)
        connection.close()

    def tokens_between(self, begin, end):
        """The numbers of the tokens that came within a window, and have one before them."""
        numbers = [number for number, at in enumerate(self.times) if begin <= at <= end]
        return range(max(1, numbers[0]), numbers[-1] + 1) if numbers else range(0)

    def gaps(self, tokens):
        """Times from the token before each of some tokens to it."""
        return [self.times[number] - self.times[number - 1] for number in tokens]


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def until(holds, what):
    patience = time.monotonic() + LIMIT_SECONDS
    while not holds():
        if time.monotonic() > patience:
            sys.exit(f"gave up waiting for {what}")
        time.sleep(0.005)


def started(options, prompts):
    """Streams of these prompts that have all begun, and a function that says what broke."""
    streams = [
        Stream(options.port, options.model, prompt, options.stream_tokens, index)
        for index, prompt in enumerate(prompts)
    ]
    for stream in streams:
        stream.start()

    def broken():
        return next((stream.error for stream in streams if stream.error), None)

    until(lambda: broken() or all(len(s.times) > 20 for s in streams), "the streams")
    return streams, broken


def end(streams, error):
    if not error and not all(stream.is_alive() for stream in streams):
        sys.exit("the streams ended before the prompt was read: raise --stream-tokens")
    for stream in streams:
        stream.stop = True
    for stream in streams:
        stream.join(10)
    if error:
        sys.exit(f"a request failed: {error}")


def run_round(options, rng):
    prompts = [text_of(20, rng) for _ in range(options.streams)]
    streams, broken = started(options, prompts)
    begin = time.monotonic()
    until(lambda: broken() or time.monotonic() > begin + options.quiet_seconds, "the quiet time")
    sent = time.monotonic()
    prompt = Stream(options.port, options.model, text_of(options.prompt_words, rng), 1, 0)
    prompt.start()
    until(lambda: broken() or prompt.error or prompt.times or not prompt.is_alive(), "the prompt")
    done = time.monotonic()
    end(streams, broken() or prompt.error)
    prompt.join(10)
    before = [gap for s in streams for gap in s.gaps(s.tokens_between(begin, sent))]
    read_along = [stream.tokens_between(sent, done) for stream in streams]
    disturbed = [gap for s, tokens in zip(streams, read_along) for gap in s.gaps(tokens)]

    alone, broken = started(options, prompts)
    pairs = list(zip(alone, read_along))
    until(lambda: broken() or all(len(s.times) >= r.stop for s, r in pairs), "the streams alone")
    end(alone, broken())
    undisturbed = [gap for stream, tokens in pairs for gap in stream.gaps(tokens)]
    tokens = (prompt.usage or {}).get("prompt_tokens")
    return before, undisturbed, disturbed, done - sent, tokens


def describe(name, before, undisturbed, disturbed):
    def ms(values, share):
        return 1000 * percentile(values, share)

    ratio = ms(disturbed, 0.99) / ms(undisturbed, 0.99)
    print(
        f"{name}: undisturbed p50 {ms(undisturbed, 0.5):.1f} ms p99 {ms(undisturbed, 0.99):.1f} ms, "
        f"disturbed p50 {ms(disturbed, 0.5):.1f} ms p99 {ms(disturbed, 0.99):.1f} ms "
        f"max {ms(disturbed, 1):.1f} ms, p99 ratio {ratio:.2f} ({len(disturbed)} gaps each; "
        f"just before p99 {ms(before, 0.99):.1f} ms)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--stream-tokens", type=int, default=5000, help="of each stream, at most")
    parser.add_argument("--prompt-words", type=int, default=4000, help="about a token each")
    parser.add_argument("--quiet-seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="0: a new one each time")
    options = parser.parse_args()
    rng = random.Random(options.seed or time.time_ns())
    before, undisturbed, disturbed, reading = [], [], [], []
    for number in range(1, options.rounds + 1):
        *parts, seconds, tokens = run_round(options, rng)
        print(f"round {number}: {tokens} prompt tokens, first token after {seconds:.2f} s")
        describe(f"round {number}", *parts)
        for pool, part in zip((before, undisturbed, disturbed), parts):
            pool += part
        reading.append(seconds)
    describe("all", before, undisturbed, disturbed)
    print(f"time to the prompt's first token: median {statistics.median(reading):.2f} s")


if __name__ == "__main__":
    main()
