"""Do published chat templates give in Pelton the prompts that transformers gives?

The templates are their publishers' and are not kept here. They come out of a source package:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
    pip install transformers==5.24.0 jinja2==3.1.6
    python make_published_templates.py FOLDER_OF_JINJA_FILES

Writes crates/chat/tests/golden/published.json: for each template its SHA-256, and for each
conversation what the environment of `apply_chat_template` makes of it: the SHA-256 of the prompt
(the first 16 digits), the text that the template raised, or that it failed. The test reads the
templates where PELTON_TEST_TEMPLATES names their folder.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW_UNIX_S = 1735689599
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
OUT = pathlib.Path(__file__).parents[2] / "crates/chat/tests/golden/published.json"


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW_UNIX_S, datetime.timezone.utc)


chat_template_utils.datetime = Clock


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def tool(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("get_weather", 'Tells the "weather" <now> & then', {
        "city": {"type": "string", "description": "Where, e.g. Zürich", "enum": ["Zürich", "東京"]},
        "days": {"type": "integer", "default": 1},
        "units": {"type": "array", "items": {"type": "string"}},
    }, ["city"]),
    tool("stop", "Stops it all.", {}, []),
]


def call(number, name, arguments):
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


SUNNY = call(1, "get_weather", {"city": "Zürich", "days": 2, "deep": {"a": [1, 2.5, None, True]}})
CONVERSATIONS = {
    "one": {"messages": [turn("user", "Hello World, hello!\n")]},
    "system": {"messages": [turn("system", " Be  brief. "), turn("user", 'it\'s "1" <é>\t&\r\n东京 🎉')]},
    "turns": {"messages": [turn("user", "Hi"), turn("assistant", "<think>\nhm\n</think>\n\n Fine. "), turn("user", "12"), turn("assistant", "so")]},
    "reasoning": {"messages": [turn("user", "Hi"), turn("assistant", "Yes.", reasoning_content="Because."), turn("user", "Go on")]},
    "tools offered": {"messages": [turn("system", "Be brief."), turn("user", "Weather?")], "tools": TOOLS},
    "tools without system": {"messages": [turn("user", "Weather?")], "tools": TOOLS},
    "tool called": {"messages": [
        turn("user", "Weather?"), turn("assistant", None, tool_calls=[SUNNY]), turn("tool", '{"sky": "sunny"}', tool_call_id="call00001", name="get_weather"),
        turn("assistant", "Sunny."), turn("user", "Thanks\nA LOT"),
    ], "tools": TOOLS},
    "two calls": {"messages": [
        turn("user", "Weather?"), turn("assistant", "Let me see.", tool_calls=[SUNNY, call(2, "stop", {})]),
        turn("tool", "sunny", tool_call_id="call00001", name="get_weather"), turn("tool", "stopped", tool_call_id="call00002", name="stop"),
    ], "tools": TOOLS},
    "arguments as text": {"messages": [
        turn("user", "Weather?"), turn("assistant", "", tool_calls=[call(1, "get_weather", '{"city": "東京"}')]), turn("tool", "rain", tool_call_id="call00001"),
    ], "tools": TOOLS},
    "without thinking": {"messages": [turn("user", "Hi")], "extra": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}},
    "with thinking": {"messages": [turn("user", "Hi")], "extra": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}},
    "odd turns": {"messages": [turn("user", "a"), turn("user", "b"), turn("assistant", "")]},
    "unknown role": {"messages": [turn("narrator", "Once upon a time")]},
    "none": {"messages": []},
}


def outcome(source, given, add):
    # A message has no key for what it has not, as in the server.
    messages = [{k: v for k, v in m.items() if v is not None} for m in given["messages"]]
    try:
        prompt = chat_template_utils._compile_jinja_template(source).render(
            messages=messages, tools=given.get("tools"), documents=None, add_generation_prompt=add, **TOKENS, **given.get("extra", {}),
        )
        return hashlib.sha256(prompt.encode()).hexdigest()[:16], prompt
    except jinja2.exceptions.TemplateError as error:
        raised = type(error) is jinja2.exceptions.TemplateError
        return ({"raised": str(error)} if raised else {"failed": str(error)}), None
    except Exception as error:  # What a template can make Python say.
        return {"failed": f"{type(error).__name__}: {error}"}, None


def main():
    folder = pathlib.Path(sys.argv[1])
    templates, shown = {}, {}
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text()
        cases = {}
        for name, given in CONVERSATIONS.items():
            outcomes = [outcome(source, given, add) for add in (False, True)]
            cases[name] = [short for short, _ in outcomes]
            shown[f"{path.stem}/{name}"] = [prompt for _, prompt in outcomes]
        templates[path.stem] = {"sha256": hashlib.sha256(source.encode()).hexdigest(), "cases": cases}
    lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(t, ensure_ascii=False)}" for n, t in templates.items())
    made_by = f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}, tools/golden/make_published_templates.py"
    OUT.write_text(
        "{\n" + f' "made_by": {json.dumps(made_by)},\n "now_unix_s": {NOW_UNIX_S},\n'
        f' "conversations": {json.dumps(CONVERSATIONS, ensure_ascii=False)},\n "templates": {{\n{lines}\n }}\n}}\n'
    )
    if len(sys.argv) > 2:  # The prompts themselves, to find a difference.
        pathlib.Path(sys.argv[2]).write_text(json.dumps(shown, ensure_ascii=False))
    print(len(templates), "templates,", OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
