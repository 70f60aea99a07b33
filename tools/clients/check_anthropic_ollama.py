#!/usr/bin/env python3
"""Do the unmodified `anthropic` and `ollama` packages get what they expect from a running server?

    python check_anthropic_ollama.py http://127.0.0.1:8080

Needs `anthropic` and `ollama`.
"""

import json
import typing
import urllib.request

import anthropic
import ollama
import pydantic
from checks import ASK, MODEL, ROOT, check, refused, run

CLAUDE = anthropic.Anthropic(base_url=ROOT, api_key="none", timeout=120, max_retries=0)
OLLAMA = ollama.Client(host=ROOT, timeout=120)

# Newer packages know no temperature of their own.
GREEDY = {"temperature": 0}


def message(body=GREEDY, **more):
    more = {"model": MODEL, "messages": ASK, "max_tokens": 24, "extra_body": body} | more
    return CLAUDE.messages.create(**more)


def chat(**more):
    options = {"temperature": 0, "num_predict": 24} | more.pop("options", {})
    return OLLAMA.chat(**{"model": MODEL, "messages": ASK, "options": options} | more)


@check
def anthropic_answers_whole():
    reply = message()
    assert reply.type == "message" and reply.role == "assistant", reply
    assert reply.content[0].type == "text" and reply.content[0].text, reply
    assert reply.stop_reason == "max_tokens" and reply.usage.output_tokens == 24, reply


@check
def anthropic_repeats_what_is_repeatable():
    assert message().content[0].text == message().content[0].text


@check
def anthropic_streams_the_same():
    with CLAUDE.messages.stream(
        model=MODEL, messages=ASK, max_tokens=24, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == message().content[0].text, text
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 24, final


@check
def anthropic_events_are_in_order():
    kinds = [event.type for event in message(stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds


@check
def anthropic_hears_the_system():
    whole = message(system="Answer in French.")
    blocks = message(system=[{"type": "text", "text": "Answer in French."}])
    assert whole.content[0].text == blocks.content[0].text != message().content[0].text


@check
def anthropic_stops_at_sequences():
    word = message().content[0].text.split()[3]
    reply = message(stop_sequences=[word])
    assert reply.stop_reason == "stop_sequence" and reply.stop_sequence == word, reply
    assert word not in reply.content[0].text


@check
def anthropic_reads_blocks():
    parts = [{"type": "text", "text": ASK[0]["content"]}]
    reply = message(messages=[{"role": "user", "content": parts}])
    assert reply.content[0].text == message().content[0].text


@check
def anthropic_takes_cache_control_and_metadata():
    short = {"type": "ephemeral"}
    parts = [{"type": "text", "text": ASK[0]["content"], "cache_control": short}]
    reply = message(messages=[{"role": "user", "content": parts}], metadata={"user_id": "u"})
    assert reply.content[0].text == message().content[0].text


WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CALLS = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 80}


def called(content):
    """The one call of a message."""
    calls = [block for block in content if block.type == "tool_use"]
    assert len(calls) == 1 and calls[0].name == "get_weather" and calls[0].id, content
    assert calls[0].input["city"] in ("Bern", "Rome"), calls
    assert isinstance(calls[0].input["days"], int), calls
    return calls[0]


@check
def anthropic_calls_tools():
    one = {"type": "any", "disable_parallel_tool_use": True}
    reply = message(**CALLS | {"tool_choice": one})
    assert reply.stop_reason == "tool_use", reply
    named = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    assert called(reply.content).input == called(message(**CALLS | {"tool_choice": named}).content).input


@check
def anthropic_need_not_call():
    none = message(**CALLS | {"tool_choice": {"type": "none"}, "max_tokens": 24})
    assert none.content[0].text == message().content[0].text, none


@check
def anthropic_streams_calls():
    one = {"type": "any", "disable_parallel_tool_use": True}
    fields = {"model": MODEL, "messages": ASK, "extra_body": GREEDY} | CALLS | {"tool_choice": one}
    with CLAUDE.messages.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds.count("input_json") > 3, "arguments come in pieces"
    assert called(final.content).input == called(message(**CALLS | {"tool_choice": one}).content).input


@check
def anthropic_reads_results():
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern", "days": 1}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "It is sunny."}
    talk = [*ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    reply = message(messages=talk, tools=[WEATHER])
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens > 100, reply.usage


class Trip(pydantic.BaseModel):
    city: typing.Literal["Bern", "Rome"]
    days: int


@check
def anthropic_parses_into_models():
    for messages in (CLAUDE.messages, CLAUDE.beta.messages):
        reply = messages.parse(model=MODEL, messages=ASK, max_tokens=200, output_format=Trip)
        assert isinstance(reply.parsed_output, Trip), reply


@check
def anthropic_runs_tools():
    cities = []

    @anthropic.beta_tool
    def get_weather(city: typing.Literal["Bern", "Rome"]) -> str:
        """The weather in a city."""
        cities.append(city)
        return "It is sunny."

    one = {"type": "any", "disable_parallel_tool_use": True}
    runner = CLAUDE.beta.messages.tool_runner(
        model=MODEL, messages=ASK, max_tokens=80, tools=[get_weather], tool_choice=one,
        max_iterations=2,
    )
    assert len(list(runner)) == 2 and cities, cities


def halves(text):
    """The beginning of an answer, and how it goes on."""
    at = text.index(" ", len(text) // 2)
    return text[:at], text[at:]


@check
def anthropic_goes_on_with_what_was_begun():
    begun, rest = halves(message().content[0].text)
    reply = message(messages=ASK + [{"role": "assistant", "content": begun}])
    assert reply.content[0].text.startswith(rest), (begun, rest, reply)


@check
def anthropic_lists_models():
    page = CLAUDE.models.list()
    model = page.data[0]
    assert model.type == "model" and model.display_name, page
    assert model.created_at.year > 2020 and not page.has_more, page
    assert CLAUDE.models.retrieve(model.id).created_at == model.created_at


@check
def anthropic_counts_tokens():
    plain = CLAUDE.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    usage = message().usage
    assert plain == usage.input_tokens + usage.cache_read_input_tokens, (plain, usage)
    assert CLAUDE.messages.count_tokens(model=MODEL, messages=ASK, tools=[WEATHER]).input_tokens > plain


@check
def anthropic_takes_thinking():
    for thinking in ({"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}):
        assert message(thinking=thinking).content[0].text, thinking
    refused(anthropic.BadRequestError, message, thinking={"type": "enabled"})


@check
def anthropic_is_refused_in_its_own_words():
    error = refused(anthropic.BadRequestError, message, body={"temperature": 5})
    assert error.body["type"] == "error" and "temperature" in error.message, error
    assert error.request_id, "the id of the request"
    refused(anthropic.NotFoundError, message, model="no such model")
    image = {"type": "base64", "media_type": "image/png", "data": "eA=="}
    content = [{"type": "image", "source": image}]
    error = refused(
        anthropic.BadRequestError, message, messages=[{"role": "user", "content": content}]
    )
    assert "image" in error.message, error


@check
def ollama_answers_whole():
    reply = chat()
    assert reply.message.role == "assistant" and reply.message.content, reply
    assert reply.done and reply.done_reason == "length" and reply.eval_count == 24, reply
    assert reply.total_duration >= reply.eval_duration > 0 and reply.prompt_eval_count > 0


@check
def ollama_streams_the_same():
    chunks = list(chat(stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == chat().message.content
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@check
def ollama_goes_on_with_what_was_begun():
    begun, rest = halves(chat().message.content)
    reply = chat(messages=ASK + [{"role": "assistant", "content": begun}])
    assert reply.message.content.startswith(rest), (begun, rest, reply)


@check
def ollama_generates_within_the_template():
    options = {"temperature": 0, "num_predict": 24}
    fields = {"model": MODEL, "prompt": ASK[0]["content"], "options": options}
    reply = OLLAMA.generate(**fields)
    assert reply.response == chat().message.content, reply
    raw = OLLAMA.generate(**fields, raw=True)
    assert raw.response != reply.response and raw.prompt_eval_count < reply.prompt_eval_count
    system = OLLAMA.generate(**fields, system="Answer in French.")
    assert system.response != reply.response
    pieces = OLLAMA.generate(**fields, stream=True)
    assert "".join(piece.response for piece in pieces) == reply.response


@check
def ollama_draws_by_its_own_defaults_and_seed():
    fields = {"options": {"temperature": 0.8, "seed": 7}}
    assert chat(**fields).message.content == chat(**fields).message.content


@check
def ollama_holds_answers_to_a_schema():
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = json.loads(chat(format=schema, options={"num_predict": 60}).message.content)
    assert answer["colour"] in ("red", "green") and isinstance(answer["count"], int), answer


@check
def ollama_takes_tools_and_think():
    function = {"name": "f", "description": "d", "parameters": WEATHER["input_schema"]}
    tools = [{"type": "function", "function": function}]
    longer = chat(tools=tools)
    assert longer.prompt_eval_count > chat().prompt_eval_count + 50, longer
    call = {"function": {"name": "f", "arguments": {"city": "Bern", "days": 1}}}
    talk = [*ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]
    talk += [{"role": "tool", "content": "sunny", "tool_name": "f"}]
    assert chat(messages=talk, tools=tools).prompt_eval_count > longer.prompt_eval_count
    assert chat(think=False).message.content == chat().message.content


@check
def ollama_scores_tokens():
    asked = {"logprobs": True, "top_logprobs": 3}
    whole = chat(**asked)
    assert len(whole.logprobs) == whole.eval_count, whole
    assert "".join(score.token for score in whole.logprobs) == whole.message.content, whole
    for score in whole.logprobs:
        tops = [top.logprob for top in score.top_logprobs]
        assert len(tops) == 3 and tops[0] == max(tops) == score.logprob <= 0, score
    streamed = [score for part in chat(stream=True, **asked) for score in part.logprobs or []]
    assert streamed == whole.logprobs, streamed
    assert chat().logprobs is None


@check
def ollama_lists_models():
    names = [model.model for model in OLLAMA.list().models]
    assert len(names) == 1, names
    running = OLLAMA.ps().models
    assert [model.model for model in running] == names and running[0].size > 1000
    shown = OLLAMA.show(names[0])
    assert "completion" in shown.capabilities, shown
    assert chat(model=f"{names[0]}:latest").message.content


@check
def ollama_keeps_and_pulls_models():
    assert chat(keep_alive="10m", options={"num_ctx": 1024}).message.content
    (name,) = [model.model for model in OLLAMA.list().models]
    assert OLLAMA.pull(name).status == "success"
    assert [step.status for step in OLLAMA.pull(name, stream=True)] == ["success"]
    error = refused(ollama.ResponseError, OLLAMA.pull, model="no such model")
    assert error.status_code in (400, 404), error


@check
def ollama_reads_bodies_that_do_not_say_what_they_are():
    # As LiteLLM sends them, and `curl -d`.
    body = {"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 2}}
    request = urllib.request.Request(f"{ROOT}/api/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["done"]


@check
def ollama_holds_answers_to_json():
    json.loads(chat(format="json", options={"num_predict": 200}).message.content)


@check
def ollama_is_refused_in_its_own_words():
    error = refused(ollama.ResponseError, chat, options={"mirostat": 2})
    assert error.status_code == 400 and "mirostat" in error.error, error
    error = refused(ollama.ResponseError, chat, model="no such model")
    assert error.status_code == 404 and "no such model" in error.error, error


run()
