"""Does every schema of a public suite lead to valid answers, or to a refusal?

    pip download --no-deps --no-binary :all: jsonschema==4.25.1 && tar xzf jsonschema-4.25.1.tar.gz
    pip install jsonschema==4.25.1
    cargo build --release -p constraint --example schemas
    python tools/schemas/check.py jsonschema-4.25.1/json target/release/examples/schemas MODEL.gguf

The suite is JSON-Schema-Test-Suite, as the source package of `jsonschema` carries it. Each schema of
its draft 2020-12 is compiled for the vocabulary of the model; random walks through the masks are
answers, and each is held against the schema by the validator of `jsonschema`, which shares nothing
with what made the masks. Prints how many schemas were refused and followed, and what masks took;
ends with 1 where an answer is not valid.

    python tools/schemas/check.py jsonschema-4.25.1/json --sample FILE

writes every fourth group of the suite, with its instances, as `crates/constraint/tests/schemas.rs`
reads them.
"""

import json
import pathlib
import statistics
import subprocess
import sys

DRAFT = "draft2020-12"
NAME = "https://json-schema.org/draft/2020-12/schema"


def groups(suite):
    """Every schema with its instances, in the order of the files' names."""
    for path in sorted((suite / "tests" / DRAFT).glob("*.json")):
        for group in json.loads(path.read_text()):
            yield path.stem, group


def registry(suite):
    """What the suite's schemas refer to by address."""
    from jsonschema.validators import SPECIFICATIONS  # The drafts' own schemas.
    from referencing.jsonschema import DRAFT202012, specification_with

    def resource(path):
        contents = json.loads(path.read_text())
        name = contents.get("$schema", NAME) if isinstance(contents, dict) else NAME
        return specification_with(name, default=DRAFT202012).create_resource(contents)

    remotes = suite / "remotes"
    paths = sorted(remotes.rglob("*.json"))
    names = [f"http://localhost:1234/{path.relative_to(remotes).as_posix()}" for path in paths]
    return SPECIFICATIONS.with_resources(
        (name, resource(path)) for name, path in zip(names, paths)
    )


def write_sample(suite, target):
    kept = [
        {
            "file": file,
            "description": group["description"],
            "schema": group["schema"],
            "tests": [{"data": test["data"], "valid": test["valid"]} for test in group["tests"]],
        }
        for index, (file, group) in enumerate(groups(suite))
        if index % 4 == 0
    ]
    lines = [json.dumps(group, ensure_ascii=False, separators=(",", ":")) for group in kept]
    pathlib.Path(target).write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(kept)} groups")


def main():
    suite = pathlib.Path(sys.argv[1])
    if sys.argv[2] == "--sample":
        return write_sample(suite, sys.argv[3])
    from jsonschema import Draft202012Validator

    program, model = sys.argv[2:4]
    all_groups = list(groups(suite))
    lines = "".join(json.dumps(group["schema"]) + "\n" for _, group in all_groups)
    run = subprocess.run([program, model], input=lines, text=True, capture_output=True, check=True)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == len(all_groups)
    known = registry(suite)
    refused, followed, answers, unfinished, wrong, masks, compiles = 0, 0, 0, 0, [], [], []
    for (file, group), result in zip(all_groups, results):
        compiles.append(result["compile_us"])
        if "refused" in result:
            refused += 1
            continue
        followed += 1
        unfinished += result["open"]
        masks += result["mask_ns"]
        validator = Draft202012Validator(group["schema"], registry=known)
        for text in result["answers"]:
            answers += 1
            if not validator.is_valid(json.loads(text)):
                wrong.append((file, group["description"], text))
    masks.sort()
    print(f"{len(results)} schemas: {refused} refused, {followed} followed")
    print(f"{answers} answers, {unfinished} walks without an end, {len(wrong)} answers not valid")
    print(f"masks: {len(masks)}, median {statistics.median(masks) / 1000:.1f} us, "
          f"p99 {masks[int(len(masks) * 0.99)] / 1000:.1f} us")
    print(f"compiling: median {statistics.median(compiles) / 1000:.2f} ms, "
          f"longest {max(compiles) / 1000:.0f} ms")
    for file, description, text in wrong[:40]:
        print(f"NOT VALID {file}: {description}: {text[:200]}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
