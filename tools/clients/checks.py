"""What checks of a client's package share: each asserts a property that a wrong server would break.

A script marks its functions with `check` and ends with `run()`: one line a check and a summary; the
status is 1 when a check fails. The server's address is its only argument; `/v1` at its end is for
those who think of it as OpenAI's base URL.
"""

import os
import sys
import traceback

# A proxy for the outside world must not see requests to this machine.
os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")

ROOT = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080").rstrip("/").removesuffix("/v1")
MODEL = "default"
ASK = [{"role": "user", "content": "Name three colours of the rainbow."}]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def refused(kind, call, **fields):
    """The error of a call that must fail as `kind`."""
    try:
        call(**fields)
    except kind as error:
        return error
    raise AssertionError(f"{fields} was not refused with {kind.__name__}")


def run():
    failed = 0
    for function in CHECKS:
        try:
            function()
            print(f"ok      {function.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {function.__name__}", flush=True)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
