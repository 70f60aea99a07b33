"""How long from the start of the program to the first streamed token over HTTP?

    python3 tools/load/first_token.py --pelton target/release/pelton --repeats 9

The client asks again every millisecond until the port is open, as somebody who cannot wait would.
The file of the model is in the system's cache after the first start.
"""

import json
import socket
import subprocess
import time

import served

SECONDS_MAX = 60


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def connect(port, deadline):
    while time.perf_counter() < deadline:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX)
        except ConnectionRefusedError:
            time.sleep(0.001)
    raise SystemExit("the server did not start")


def start(arguments, flags, linger=0.0):
    """Seconds until the port is open, and until the first text has come; the server then lives on
    for `linger` seconds."""
    port = free_port()
    command = [arguments.pelton, "serve", "--model", arguments.model, "--port", str(port), *flags]
    # No chat, for which some files have no template.
    body = {"model": "default", "prompt": "Why is the sky", "max_tokens": 4, "stream": True}
    body = json.dumps(body | {"temperature": 0}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with connect(port, started + SECONDS_MAX) as stream:
            opened = time.perf_counter() - started
            stream.sendall(head.encode() + body)
            came = b""
            while not any(
                b'"text":"' in line and b'"text":""' not in line
                for line in came.split(b"\n\n")[:-1]
            ):
                more = stream.recv(1 << 16)
                came += more
                if not more or not b"HTTP/1.1 200".startswith(came[:12]):
                    raise SystemExit(f"no answer: {came.decode()}")
            answered = time.perf_counter() - started
            time.sleep(linger)
            return opened, answered
    finally:
        process.terminate()
        process.wait()


def main():
    parser = served.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--flags", default="", help="further flags of the server")
    arguments = parser.parse_args()
    flags = arguments.flags.split()
    start(arguments, flags)
    found = [start(arguments, flags) for _ in range(arguments.repeats)]
    print(served.median_line("port open", [opened for opened, _ in found], "s"))
    print(served.median_line("first token", [first for _, first in found], "s"))


if __name__ == "__main__":
    main()
