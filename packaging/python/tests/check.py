#!/usr/bin/env python3
"""Does `pelton.Engine` answer, stream, refuse, choose an allocator, and stand several threads?

usage: check.py MODEL [ALLOCATOR]

Needs the package on the path of Python (installed, or PYTHONPATH=packaging/python/python), and where
it is not installed PELTON_EMBED_LIBRARY and PELTON_PROGRAM. Prints `N passed`; a failure is an exception.
"""

import ctypes
import sys
import threading

from pelton import Engine, PeltonError
from pelton._engine import _lib, _take

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = {"max_tokens": 12, "temperature": 0}
passed = 0


def check(name, holds):
    global passed
    if not holds:
        raise SystemExit(f"failed: {name}")
    passed += 1


def refused(call):
    try:
        call()
    except PeltonError as error:
        return error
    raise SystemExit("failed: nothing was refused")


def main():
    model = sys.argv[1]
    allocator = sys.argv[2] if len(sys.argv) > 2 else None
    settings = {"limits.kv_cache_mb": 64}
    with Engine(model, threads=2, settings=settings, allocator=allocator) as engine:
        whole = engine.chat(HELLO, **PLAIN)
        pieces = list(engine.chat(HELLO, stream=True, **PLAIN))
        check("an answer has text", isinstance(whole, str) and whole)
        check("pieces are the answer", "".join(pieces) == whole and len(pieces) > 1)
        usage = engine.chat_completion(HELLO, **PLAIN)["usage"]
        check("tokens are counted", 0 < usage["completion_tokens"] <= 12 and usage["prompt_tokens"] > 0)
        check("a prompt goes on", isinstance(engine.complete("One, two,", **PLAIN), str))
        check("texts are tokens", len(engine.tokenize("one two")) > 0)
        check("models are listed", len(engine.models()) >= 1)
        check("Anthropic's route is there", "content" in engine.ask(
            "POST", "/v1/messages", {"model": engine.models()[0]["id"], "max_tokens": 4, "messages": HELLO}).json())
        bad = refused(lambda: engine.chat(HELLO, temperature=9))
        check("a bad field is refused by name", bad.status == 400 and "temperature" in str(bad))
        check("a route that is none is 404", refused(lambda: engine.ask("GET", "/nowhere").json()).status == 404)
        early = engine.chat_events(HELLO, max_tokens=100, temperature=0)
        next(early)
        early.close()
        answers = []
        ask = lambda: answers.append(engine.chat(HELLO, **PLAIN))
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check("threads get the same answer", answers == [whole] * 4)
    closed = refused(lambda: engine.chat(HELLO))
    check("a closed engine says so", "closed" in str(closed))
    error = ctypes.c_void_p()
    nothing = _lib().pelton_engine_ask(None, None, None, None, 0, ctypes.byref(error))
    check("null is a mistake with a text", not nothing and "null" in _take(error))
    check("null has no status", _lib().pelton_reply_status(None) == 0)
    none = refused(lambda: Engine("/nowhere/model.gguf"))
    check("a model that is not there is named", "/nowhere/model.gguf" in str(none))
    wrong = refused(lambda: Engine(model, settings={"no.such.key": 1}))
    check("a key that is none is named", "no.such.key" in str(wrong))
    broken = refused(lambda: Engine(model, settings=settings, allocator="/nowhere/heaps.so"))
    check("an allocator that is not there is named", "/nowhere/heaps.so" in str(broken))
    print(f"{passed} passed")


if __name__ == "__main__":
    main()
