"""Does every schema of a public suite, asked of a running server, give a valid answer or a 400?

    pip download --no-deps --no-binary :all: jsonschema==4.25.1 && tar xzf jsonschema-4.25.1.tar.gz
    pip install jsonschema==4.25.1
    python tools/schemas/check_served.py jsonschema-4.25.1/json http://127.0.0.1:8080 [SCHEMAS]

Each schema is the `response_format` of a chat completion, several at once. An answer that ends by
itself must be valid by the validator of `jsonschema`; one that is cut off by its tokens is asked for
again with another seed and a text of the suite to say, and counted where it never ends; a schema that
cannot be held must be a 400 that names the field. Ends with 1 at anything else.
"""

import concurrent.futures
import json
import pathlib
import sys
import time
import urllib.error
import urllib.request

import check

ATTEMPTS = 6
TOKENS = 200
AT_ONCE = 8
ASK = "Answer with a short JSON value, and no more. "


def ask(url, group, seed):
    schema = group["schema"]
    right = sorted((json.dumps(test["data"]) for test in group["tests"] if test["valid"]), key=len)
    asked = ASK + json.dumps(schema)[:400]
    if seed > 0 and right:
        # A small model ends sooner where it has seen how.
        asked = f"Say exactly this and no more: {right[(seed - 1) % len(right)][:200]}"
    body = {
        "messages": [{"role": "user", "content": asked}],
        "max_tokens": TOKENS,
        "seed": seed,
        "temperature": 0.0 if seed < 2 else 0.8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            choice = json.load(reply)["choices"][0]
            return 200, choice["finish_reason"], choice["message"]["content"]
    except urllib.error.HTTPError as error:
        if error.code == 429:  # As a client should.
            time.sleep(int(error.headers["retry-after"]))
            return ask(url, group, seed)
        told = json.load(error)["error"]
        return error.code, told["param"], told["message"]


def judge(url, group, validator):
    """`valid`, `refused`, `open`, or what is wrong."""
    for seed in range(ATTEMPTS):
        status, reason, text = ask(url, group, seed)
        if status == 400:
            return "refused" if reason == "response_format" and text else f"400 of {reason}: {text}"
        if status != 200:
            return f"{status}: {text}"
        if reason == "stop":
            try:
                return "valid" if validator.is_valid(json.loads(text)) else f"not valid: {text}"
            except json.JSONDecodeError:
                return f"no JSON: {text}"
    return "open"


def main():
    from jsonschema import Draft202012Validator

    suite, url = pathlib.Path(sys.argv[1]), sys.argv[2].rstrip("/").removesuffix("/v1")
    groups = list(check.groups(suite))[: int(sys.argv[3]) if len(sys.argv) > 3 else None]
    known = check.registry(suite)
    started = time.monotonic()

    def one(group):
        validator = Draft202012Validator(group["schema"], registry=known)
        return judge(url, group, validator)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = list(pool.map(one, (group for _, group in groups)))
    counted = {name: verdicts.count(name) for name in ("valid", "refused", "open")}
    wrong = [
        f"{file}: {group['description']}: {verdict[:200]}"
        for (file, group), verdict in zip(groups, verdicts)
        if verdict not in counted
    ]
    print(f"{len(groups)} schemas in {time.monotonic() - started:.0f} s: {counted['valid']} valid, "
          f"{counted['refused']} refused, {counted['open']} cut off at {TOKENS} tokens in all "
          f"{ATTEMPTS} attempts, {len(wrong)} wrong")
    print(*wrong, sep="\n")
    sys.exit(1 if wrong else 0)


main()
