"""Which prompts do chat templates give in Python? Writes crates/chat/tests/golden/prompts.json.

Renders with Jinja2, set up as `apply_chat_template` of transformers does. The templates are
written for this file in the styles that models use, to exercise what their templates exercise;
only the one of SmolLM2 (Apache-2.0) is read from a model file.

    pip install jinja2==3.1.6 gguf
    python make_chat_templates.py MODEL.gguf
"""

import json
import pathlib
import sys
from datetime import datetime, timezone

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW_UNIX_S = 1735689599


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Refused(jinja2.exceptions.TemplateError):
    pass


def raise_exception(message):
    raise Refused(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.fromtimestamp(
        NOW_UNIX_S, timezone.utc
    ).strftime(form)
    return made


TEMPLATES = {
    "nothing to loop over": "{{ tools is none }} {{ tools is defined }} {{ 'a' if tools else 'b' }} {{ tools | tojson }} {{ tools }}{% for tool in tools %} {{ tool.function.name }}{% endfor %}",
    "asked before": "{% if tools is not none and tools is iterable %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% else %}none{% endif %}",
    "generators": """{% set roles = messages | map(attribute='role') %}
{%- if messages | selectattr('role', 'equalto', 'nobody') %}always {% endif %}
{{- roles | join(',') }};{{ roles | join(',') }};
{{- messages | rejectattr('role', 'equalto', 'user') | list | length }};
{{- messages | map(attribute='role') | unique | list | tojson }};
{{- (messages | selectattr('role', 'equalto', 'user') | first).content }};
{%- for role in messages | map(attribute='role') | select('equalto', 'user') %}{{ loop.index }}{{ '.' if loop.last }}{% endfor %}""",
    "a generator has no length": "{{ messages | map(attribute='role') | length }}",
    "a generator is no JSON": "{{ messages | reject('none') | tojson }}",
    "llama-style": """{{- bos_token }}
{%- set first = messages[0] %}
{%- if first['role'] == 'system' %}
    {%- set system = first['content'] | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}
{%- if tools is not none %}
    {{- 'Tools:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- system + '<|eot_id|>' }}
{%- for message in turns %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('only one call at a time') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|call|>' + '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- elif message.role in ['tool', 'ipython'] %}
        {{- '<|result|>' + (message.content if message.content is string else message.content | tojson) }}
    {%- else %}
        {{- '<|' + message['role'] + '|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n\\n' }}
{%- endif %}
""",
    "qwen-style": """{%- set ns = namespace(last=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages | length - 1 - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' ~ (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<a>\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<a>\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<call>' + call.name + ' ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '</call>' }}
        {%- endfor %}
        {{- '<end>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<user>' }}{%- endif %}
        {{- '\\n<r>\\n' + content + '\\n</r>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<end>\\n' }}{%- endif %}
    {%- else %}
        {{- '<' + message.role + '>' + '\\n' + content + '<end>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<a>\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "gemma-style": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("turns must go user/assistant/user/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '</turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<turn>model\\n' }}
{%- endif -%}
""",
    "mistral-style": """{%- set others = messages | rejectattr('role', 'equalto', 'system') | list %}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') %}
{%- set users = others | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in others %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == users[-1] %}
            {{- '[TOOLS] [' }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.items() if key != 'return' %}
                    {%- if value is string %}
                        {{- '"' + key + '": "' + value + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + value | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ', ' }}{%- endif %}
                {%- endfor %}
                {{- '}}' }}
                {%- if not loop.last %}{{- ', ' }}{%- else %}{{- ']' }}{%- endif %}
            {%- endfor %}
            {{- '[/TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.last and system else '') + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + (message.content or '') | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "phi-style": """{% macro turn(role, text='') %}<|{{ role }}|>
{{ text }}<|end|>
{% endmacro %}
{% for message in messages %}
  {% if message['role'] == 'tool' %}{% continue %}{% endif %}
  {# a comment that vanishes #}
  {% if message['role'] == 'assistant' %}
    {% generation %}
    {{ turn('assistant', message['content']) }}
    {% endgeneration %}
  {% else %}
    {{ turn(message['role'], text=message['content']) }}
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% else %}
{{ eos_token }}
{% endif %}
""",
    "python-methods": """{% for message in messages %}
{% set c = message.content or '' %}
[{{ c.strip() }}|{{ c.lstrip('aH ') }}|{{ c.rstrip('!.\\n') }}|{{ c.upper() }}|{{ c.lower() }}]
[{{ c.title() }}|{{ c.capitalize() }}|{{ c.split() }}|{{ c.split(' ', 1) }}|{{ c.rsplit(' ', 1) }}]
[{{ c.split(maxsplit=1) }}|{{ c.rsplit(None, 1) }}|{{ c.splitlines() }}|{{ c.splitlines(true) }}]
[{{ c.replace('l', 'LL') }}|{{ c.replace('', '-', 2) }}|{{ '-'.join(c.split()) }}|{{ ','.join('abc') }}]
[{{ c.find('o') }}|{{ c.rfind('o') }}|{{ c.count('l') }}|{{ c.startswith(('H', 'W')) }}|{{ c.isdigit() }}]
[{{ c.partition(' ')[2] }}|{{ c.rpartition(' ')[0] }}|{{ c.removeprefix('He') }}|{{ c.isupper() }}|{{ c.isalpha() }}]
[{{ c[:3] }}|{{ c[-3:] }}|{{ c[::-1] }}|{{ c | length }}|{{ c.zfill(4) }}|{{ c.swapcase() }}]
[{{ message.keys() | list }}|{{ message.get('nothing', 7) }}|{{ message.get('role') }}|{{ message.get('x') }}]
{% for key, value in message.items() %}{{ key }}={{ value }};{% endfor %}

{% endfor %}
""",
    "values": """{% set extra = extra if extra is defined else [messages[0].role] %}
{{ none }} {{ true }} {{ false }} {{ 1 }} {{ 1.0 }} {{ 1e16 }} {{ 1.5e-7 }} {{ -3 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 3 / 2 }}
{{ [1, 'a', none, true, 2.5] }} {{ {'a': 1, 'b': [x, "it's"]} }} {{ (1, 'b') }}
{{ ['q"q', "s's", 'both\\'"', 'tab\\t', 'é', '\\\\'] }}
{{ extra | tojson }} {{ extra | tojson(indent=2) }} {{ extra | tojson(separators=(',', ':')) }}
{{ extra | tojson(ensure_ascii=true) }} {{ extra | tojson(sort_keys=true) }} {{ [] | tojson(indent=2) }}
{{ '<b>&"' | tojson }} {{ '<b>&"' }} {{ undefined_name }} {{ undefined_name is defined }}
{{ messages | map(attribute='role') | list }} {{ messages[0]['nothing'] }} {{ 'a' in 'abc' }} {{ 'z' not in {'a': 1} }}
{{ range(3) | list }} {{ [3, 1, 2] | sort }} {{ ['b', 'a'] | join(', ') }} {{ 'x' ~ 1 ~ true ~ none }} {{ 3 | string + '!' }}
{{ 'ab' * 3 }} {{ ' pad ' | trim }} {{ 'a b' | title }} {{ [1, 2] + [3] }} {{ [1, 2, 3] | first }} {{ 'abc' | last }} {{ '' | default('d', true) }}
{% for k, v in {'items': {'type': 'x'}, 'keys': 2}.items() %}{{ k }}{{ v }}{% endfor %}
{{ 'a' is string }} {{ {} is mapping }} {{ [] is iterable }} {{ [] is sequence }} {{ 1 is number }} {{ true is boolean }} {{ none is none }}
{%- for item in [1, 2, 3, 4] %}
{%- if item == 2 %}{% continue %}{% endif %}
{%- if item == 4 %}{% break %}{% endif %}
 {{ loop.index }}/{{ loop.length }} {{ loop.previtem is defined }}
{%- else %} none
{%- endfor %}
""",
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Tells the "weather" <now> & then',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 1.0}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": {"messages": [turn("user", "Hello World, hello!\n")]},
    "system": {"messages": [turn("system", " Be  brief. "), turn("user", "it's \"1\" <é>\t&\r\n东京 🎉"), turn("assistant", "<think>\nhm\n</think>\n\n Fine. "), turn("user", "12")]},
    "tools": {
        "messages": [
            turn("user", "Weather?"),
            {"role": "assistant", "tool_calls": [CALL]},
            turn("tool", "<r>sunny</r>", tool_call_id="c1"),
            turn("assistant", "Sunny.", reasoning_content="The tool says so."),
            turn("user", "Thanks\nA LOT"),
        ],
        "tools": [TOOL, TOOL],
    },
    "odd turns": {"messages": [turn("user", "a"), turn("user", "<r>b</r>"), turn("assistant", "")]},
    "extra": {"messages": [turn("user", "")], "extra": {"enable_thinking": False, "extra": {"b": [1, 2.5, None, True], "a": {"é<>": "\u0001\u007f\u2028\"", "e": {}, "l": []}}, "x": 1e22}},
}


def cases(templates, tokens):
    for template, source in templates.items():
        for conversation, given in CONVERSATIONS.items():
            for add in (True, False):
                case = {"template": template, "conversation": conversation, "add_generation_prompt": add}
                try:
                    case["prompt"] = environment().from_string(source).render(
                        messages=given["messages"], tools=given.get("tools"), documents=None,
                        add_generation_prompt=add, **tokens, **given.get("extra", {}),
                    )
                except Refused as error:
                    case["refused"] = str(error)
                except (jinja2.exceptions.TemplateError, TypeError) as error:
                    case["failed"] = str(error)
                yield case


def main():
    import gguf

    field = gguf.GGUFReader(sys.argv[1]).fields["tokenizer.chat_template"]
    templates = {"smollm2": bytes(field.parts[field.data[0]]).decode(), **TEMPLATES}
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    golden = {
        "made_by": f"jinja2 {jinja2.__version__}, tools/golden/make_chat_templates.py",
        "now_unix_s": NOW_UNIX_S, **tokens,
        "templates": templates, "conversations": CONVERSATIONS, "cases": list(cases(templates, tokens)),
    }
    path = pathlib.Path(__file__).parents[2] / "crates/chat/tests/golden/prompts.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    print(path.stat().st_size, "bytes", len(golden["cases"]), "cases")


main()
