"""Does the server hold to its OpenAPI document, whatever it is asked?

    pip install schemathesis==4.32.5
    python tools/openapi/check.py target/debug/pelton MODEL.gguf [--requests 4]

Starts `pelton serve` on a free port of this machine and has schemathesis read /openapi.json and ask
every operation: with the document's examples, at the bounds of every field, and with what it makes
up, right and wrong. A failure is a status from 500 on, a status or a content type that the document
does not know, an error of another shape, or a wrong method that is let through. Ends with
schemathesis' own status.

The context is short, for what is asked at random may be long. `timeout_ms` is left out of what is
asked: who wants an answer within a millisecond is told 504, rightly.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
]


def start(program, model, home):
    command = [program, "serve", "--model", model, "--port", "0", "--device", "cpu"]
    for setting in ["limits.sequences_max=8", "model.context_tokens=96"]:
        command += ["--set", setting]
    environment = {**os.environ, "PELTON_HOME": home, "XDG_CONFIG_HOME": home, "PELTON_OFFLINE": "1"}
    log = open(pathlib.Path(home) / "log", "w+")
    server = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    while server.poll() is None:
        found = re.search(r"serving .*(http://\S+)/v1", pathlib.Path(log.name).read_text())
        if found:
            return server, found.group(1), log.name
    sys.exit(f"the server ended: {pathlib.Path(log.name).read_text()}")


def document(url):
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as reply:
        read = json.load(reply)
    for operations in read["paths"].values():
        body = operations.get("post", {}).get("requestBody")
        if body:
            body["content"]["application/json"]["schema"]["properties"].pop("timeout_ms", None)
    return read


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--requests", default="4", help="made up for each operation")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        server, url, log = start(asked.program, asked.model, home)
        try:
            schema = pathlib.Path(home) / "openapi.json"
            schema.write_text(json.dumps(document(url)))
            ran = subprocess.run([
                sys.executable, "-m", "schemathesis.cli", "run", schema, "--url", url,
                "--checks", ",".join(CHECKS),
                "--phases", "examples,coverage,fuzzing", "--max-examples", asked.requests,
                "--request-timeout", "60", "--continue-on-failure", "--generation-deterministic",
                "--suppress-health-check", "all",
            ], cwd=home)
            alive = server.poll() is None
            print("the server still answers" if alive else "THE SERVER ENDED")
            errors = [line for line in open(log) if "ERROR" in line or "panicked" in line]
            print(f"{len(errors)} errors in its log", *errors[:10])
            return ran.returncode if alive and not errors else 1
        finally:
            server.kill()
            server.wait()


sys.exit(main())
