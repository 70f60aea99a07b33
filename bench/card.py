"""What does a GPU reach with weights of real shapes, through the engine and served?

    python3 bench/card.py --pelton target/release/pelton --shapes 8b 30b-a3b 70b

Each shape's file is made, measured (`pelton bench`), served to chats that never pause
(`tools/load/steady.py`), and removed. With `--against PROGRAM` (llama.cpp's `llama-bench`) each
test is the rival's in turn too. With `--sanitize TESTS` (the built `conformance` tests of
`backend-cuda`) they run under Compute Sanitizer's memcheck at the end.
"""

import argparse
import datetime
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Keys and values of 64 chats, and room for as many again, in MiB.
KV_MB = {"1b": 4000, "8b": 8000, "30b-a3b": 12_000, "70b": 20_000}
SECONDS_MAX = 600


def run(command, **more):
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    try:
        code = subprocess.run(command, timeout=SECONDS_MAX, check=False, **more).returncode
    except subprocess.TimeoutExpired:
        code = f"none within {SECONDS_MAX} s"
    print(f"code {code} after {time.monotonic() - started:.0f} s", flush=True)
    return code == 0


def measure(arguments, shape):
    file = pathlib.Path(arguments.folder) / f"{shape}.gguf"
    good = run([sys.executable, str(ROOT / "bench/random_llama.py"), shape, str(file)])
    device = ["--device", arguments.device, "--kv-cache-mb", str(KV_MB[shape])]
    bench = [arguments.pelton, "bench", "-m", str(file), "--no-ceilings", *device]
    rivals = [flag for program in arguments.against for flag in ("--against", program)]
    alone = ["--prompt-tokens", "2048,8192", "--generate-tokens", "128"]
    together = ["--prompt-tokens", "0", "--generate-tokens", "64", "--batch", "32"]
    context = ["--context-tokens", "16384"]
    good = run([*bench, "--repeat", "3", *context, *alone, *rivals]) and good
    good = run([*bench, "--repeat", "3", *together]) and good
    if arguments.seconds > 0:
        chats = [sys.executable, str(ROOT / "tools/load/steady.py"), "--pelton", arguments.pelton]
        chats += ["--model", str(file), "--chats", "64", "--seconds", str(arguments.seconds)]
        good = run([*chats, "--", *device, "--chat-template", "chatml"]) and good
    file.unlink()
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pelton", default=str(ROOT / "target/release/pelton"))
    parser.add_argument("--shapes", nargs="*", default=["8b", "30b-a3b", "70b"], choices=KV_MB)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", default="/tmp", help="with room for the largest file, 40 GB")
    parser.add_argument("--seconds", type=int, default=180, help="of chats; 0: none")
    parser.add_argument("--against", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--sanitize", metavar="TESTS")
    arguments = parser.parse_args()
    print(datetime.datetime.now().isoformat(timespec="seconds"))
    card = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    good = run(card)
    for shape in arguments.shapes:
        good = measure(arguments, shape) and good
    if arguments.sanitize:
        checked = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
        environment = {**os.environ, "RUST_TEST_THREADS": "16"}
        good = run([*checked, arguments.sanitize], env=environment) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
