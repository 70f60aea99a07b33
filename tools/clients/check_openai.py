#!/usr/bin/env python3
"""Does the unmodified `openai` package get what it expects from a running server?

    python check_openai.py http://127.0.0.1:8080

Needs `openai` (2.x or later), nothing else.
"""

import json
import math
import typing

import openai
import pydantic
from checks import ASK, MODEL, ROOT, check, refused, run

BASE_URL = f"{ROOT}/v1"
CLIENT = openai.OpenAI(base_url=BASE_URL, api_key="none", timeout=120, max_retries=0)
PROMPT = "The capital of France is"


def chat(**more):
    more = {"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 24} | more
    return CLIENT.chat.completions.create(**more)


def complete(**more):
    more = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12} | more
    return CLIENT.completions.create(**more)


def text_of(reply):
    return reply.choices[0].message.content


def joined(chunks, index=0):
    """Text, finish reasons and usages of one choice of a stream."""
    text, reasons, usages = "", [], []
    for chunk in chunks:
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            if choice.index == index:
                text += (getattr(choice, "text", None) or "") if hasattr(choice, "text") else (
                    choice.delta.content or ""
                )
                reasons += [choice.finish_reason] if choice.finish_reason else []
    return text, reasons, usages


@check
def models_are_listed():
    models = CLIENT.models.list().data
    assert models and all(model.object == "model" and model.created > 0 for model in models)
    assert CLIENT.models.retrieve(models[0].id).id == models[0].id
    named = chat(model=models[0].id)
    assert named.model == models[0].id
    assert text_of(named) == text_of(chat())


@check
def plain_chat():
    reply = chat()
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    assert reply.choices[0].message.role == "assistant" and text_of(reply).strip()
    assert reply.choices[0].finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@check
def a_chat_goes_on_with_what_was_begun():
    text = text_of(chat())
    at = text.index(" ", len(text) // 2)
    begun = ASK + [{"role": "assistant", "content": text[:at]}]
    reply = chat(messages=begun, extra_body={"continue_final_message": True})
    assert text_of(reply).startswith(text[at:]), (text, reply)


@check
def streamed_chat_equals_plain():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text, reasons, usages = joined(chunks)
    assert text == text_of(whole)
    assert reasons == [whole.choices[0].finish_reason]
    assert len(usages) == 1 and usages[0] == whole.usage and chunks[-1].choices == []
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 3, "the answer comes in pieces"


@check
def greedy_repeats():
    assert text_of(chat()) == text_of(chat())


@check
def text_parts_and_roles():
    parts = [{"type": "text", "text": ASK[0]["content"]}]
    assert text_of(chat(messages=[{"role": "user", "content": parts}])) == text_of(chat())
    talk = [{"role": "system", "content": "Be brief."}, *ASK]
    talk += [{"role": "assistant", "content": "Red."}, {"role": "user", "content": "Go on."}]
    longer = chat(messages=talk)
    assert longer.usage.prompt_tokens > chat().usage.prompt_tokens


@check
def max_tokens_bounds_the_answer():
    for name in ("max_tokens", "max_completion_tokens"):
        fields = {"max_tokens": openai.NOT_GIVEN, name: 5}
        reply = chat(extra_body={"ignore_eos": True}, **fields)
        assert reply.usage.completion_tokens == 5, name
        assert reply.choices[0].finish_reason == "length", name


@check
def stop_strings_end_the_answer():
    full = text_of(chat())
    stop = full.strip().split()[2]
    before = full[: full.index(stop)]
    for value in (stop, ["\u2603never", stop]):
        reply = chat(stop=value)
        assert text_of(reply) == before, (text_of(reply), before)
        assert reply.choices[0].finish_reason == "stop"
    text, reasons, _ = joined(chat(stop=stop, stream=True))
    assert (text, reasons) == (before, ["stop"])
    kept = chat(stop=stop, extra_body={"include_stop_str_in_output": True})
    assert text_of(kept) == before + stop


@check
def seeds_repeat_and_temperature_varies():
    draw = lambda seed: text_of(chat(temperature=1.5, seed=seed))
    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(6)}) > 1
    free = {text_of(chat(temperature=1.5)) for _ in range(6)}
    assert len(free) > 1, "no seed means a fresh one"


@check
def narrow_sampling_is_greedy():
    greedy = text_of(chat())
    # The scripted stand-in draws without probabilities; a model must agree with itself.
    if CLIENT.models.list().data[0].id.startswith("scripted/"):
        return
    assert text_of(chat(temperature=1, top_p=1e-6, seed=3)) == greedy
    assert text_of(chat(temperature=1, seed=3, extra_body={"top_k": 1})) == greedy
    assert text_of(chat(temperature=1, seed=3, extra_body={"min_p": 1.0})) == greedy


@check
def logprobs_describe_the_answer():
    reply = chat(logprobs=True, top_logprobs=3)
    entries = reply.choices[0].logprobs.content
    assert len(entries) in (reply.usage.completion_tokens, reply.usage.completion_tokens - 1)
    shown = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
    assert shown.startswith(text_of(reply)) or text_of(reply).startswith(shown)
    for entry in entries:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert entry.logprob <= 0 and sum(map(math.exp, tops)) <= 1.001
        # Greedy takes the likeliest.
        assert abs(entry.logprob - tops[0]) < 1e-4
    streamed = [
        entry.token
        for chunk in chat(logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert streamed == [entry.token for entry in entries]
    assert chat().choices[0].logprobs is None


@check
def several_choices():
    reply = chat(n=3, temperature=1.5, seed=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) > 1
    chunks = list(chat(n=3, temperature=1.5, seed=5, stream=True))
    assert [joined(chunks, index)[0] for index in range(3)] == texts
    assert all(len(joined(chunks, index)[1]) == 1 for index in range(3))


@check
def logit_bias_bans_and_forces():
    plain = complete(max_tokens=1).choices[0].text
    first = str(first_id())
    assert complete(logit_bias={first: -100}, max_tokens=1).choices[0].text != plain
    forced = complete(logit_bias={first: 100}, max_tokens=4, extra_body={"ignore_eos": True})
    assert forced.choices[0].text == plain * 4, (forced.choices[0].text, plain)


def is_id(token):
    try:
        complete(logit_bias={str(token): 0}, max_tokens=1)
        return True
    except openai.BadRequestError:
        return False


def first_that(low, high, holds):
    """The smallest number of `[low, high)` that holds; all after it hold too."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def first_id():
    """The id of the first token of the greedy answer: the API shows texts only, so parts of the
    vocabulary are banned until the answer changes."""
    vocabulary = first_that(1, 1 << 20, lambda token: not is_id(token))
    text = complete(max_tokens=1).choices[0].text

    def bans(low, high):
        ids = range(low, min(high, vocabulary))
        bias = {str(token): -100 for token in ids}
        return complete(logit_bias=bias, max_tokens=1).choices[0].text != text

    # A request may carry 1,000 biases.
    block = next(low for low in range(0, vocabulary, 500) if bans(low, low + 500))
    return first_that(block, block + 499, lambda last: bans(block, last + 1))


@check
def penalties_change_repetition():
    if CLIENT.models.list().data[0].id.startswith("scripted/"):
        return

    def distinct(**fields):
        extra = {"ignore_eos": True} | fields.pop("extra", {})
        fields |= {"prompt": "tea tea tea tea tea tea", "max_tokens": 48, "logprobs": 0}
        return len(set(complete(extra_body=extra, **fields).choices[0].logprobs.tokens))

    plain = distinct()
    # These grow with each repetition, so that no loop survives them.
    assert distinct(frequency_penalty=2.0) > plain
    assert distinct(extra={"repetition_penalty": 2.0}) > plain
    # This is paid once a token: it may be too little, but never adds repetition here.
    assert distinct(presence_penalty=2.0) >= plain
    assert distinct(frequency_penalty=-2.0) <= plain


@check
def vllm_extras_are_taken():
    extras = {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "min_tokens": 4}
    reply = chat(temperature=1, seed=1, extra_body=extras)
    assert reply.usage.completion_tokens >= 4
    reply = chat(max_tokens=40, extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 40 and reply.choices[0].finish_reason == "length"
    off = chat(extra_body={"top_k": -1, "min_p": 0, "stop_token_ids": []})
    assert text_of(off) == text_of(chat())


@check
def priority_and_timeout_are_taken():
    for priority in ("high", "normal", "low"):
        reply = chat(extra_body={"priority": priority, "timeout_ms": 600_000})
        assert text_of(reply) == text_of(chat()), priority
    if CLIENT.models.list().data[0].id.startswith("scripted/"):
        return
    fields = {"max_tokens": 4000, "extra_body": {"ignore_eos": True, "timeout_ms": 30}}
    late = refused(openai.InternalServerError, chat, **fields)
    assert (late.status_code, late.code) == (504, "deadline_exceeded"), late
    try:
        for _ in chat(stream=True, **fields):
            pass
    except openai.APIError as error:
        assert error.code == "deadline_exceeded", error
    else:
        raise AssertionError("a stream of 4000 tokens came within 30 ms")


@check
def habits_of_clients_are_taken_or_named():
    habits = {"metadata": {"a": "b"}, "user": "u", "store": False, "verbosity": "low"}
    habits |= {"prompt_cache_key": "k", "safety_identifier": "s", "prompt_cache_retention": "in_memory"}
    newer = chat(max_tokens=openai.omit, max_completion_tokens=24, **habits)
    assert text_of(newer) == text_of(chat())
    refusals = {"store": True, "prediction": {"type": "content", "content": "x"}}
    for name, value in refusals.items():
        assert refused(openai.BadRequestError, chat, **{name: value}).param == name
    assert refused(openai.BadRequestError, chat, extra_body={"no_such": 1}).param == "no_such"


@check
def stop_token_ids_end_the_answer():
    # Forced to one token, the answer must end at once where that token stops it.
    fields = {"logit_bias": {"200": 100}, "max_tokens": 8}
    reply = complete(extra_body={"stop_token_ids": [200]}, **fields)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens <= 1
    assert complete(extra_body={"ignore_eos": True}, **fields).usage.completion_tokens == 8


@check
def completions_plain_and_streamed():
    reply = complete()
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-")
    assert reply.choices[0].text and reply.usage.completion_tokens <= 12
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    text, reasons, usages = joined(chunks)
    assert (text, reasons) == (reply.choices[0].text, [reply.choices[0].finish_reason])
    # Details tell how the answer was made: with guesses, from a cache, by another request.
    counts = [(usage.prompt_tokens, usage.completion_tokens) for usage in usages]
    assert counts == [(reply.usage.prompt_tokens, reply.usage.completion_tokens)]
    assert complete(echo=True).choices[0].text == PROMPT + reply.choices[0].text


@check
def completions_of_ids_and_lists():
    one = complete(prompt=[300, 301, 302])
    assert one.usage.prompt_tokens == 3
    many = complete(prompt=[[300, 301, 302], [303]])
    assert [choice.index for choice in many.choices] == [0, 1]
    assert many.choices[0].text == one.choices[0].text and many.usage.prompt_tokens == 4
    texts = complete(prompt=[PROMPT, "Once upon a time"], n=2)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert texts.choices[0].text == texts.choices[1].text == complete().choices[0].text


@check
def completions_logprobs():
    reply = complete(logprobs=2, max_tokens=4, extra_body={"ignore_eos": True})
    shown = reply.choices[0].logprobs
    sizes = {len(shown.tokens), len(shown.token_logprobs), len(shown.top_logprobs)}
    assert sizes == {4} and len(shown.text_offset) == 4
    assert shown.text_offset[0] == 0 and shown.text_offset == sorted(shown.text_offset)
    for token, logprob, top in zip(shown.tokens, shown.token_logprobs, shown.top_logprobs):
        assert top[token] == logprob and 2 <= len(top) <= 3


@check
def an_answer_follows_its_schema():
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer"}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = json.loads(text_of(chat(response_format=form, max_tokens=60)))
    assert answer["colour"] in ("red", "green") and isinstance(answer["count"], int), answer


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name):
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}


TOOLS = [tool("get_weather"), tool("get_forecast")]


def calls_of(reply, count=None):
    """Name and arguments of each call, which must be right."""
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    calls = choice.message.tool_calls
    assert calls and len({call.id for call in calls}) == len(calls), calls
    assert count is None or len(calls) == count, calls
    for call in calls:
        given = json.loads(call.function.arguments)
        assert given["city"] in ("Bern", "Rome") and isinstance(given["days"], int), given
    return [(call.function.name, call.function.arguments) for call in calls]


def call(**more):
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    return chat(**fields | {"max_tokens": 400} | more)


@check
def tools_must_be_called():
    ((name, _),) = calls_of(call(), 1)
    assert name in ("get_weather", "get_forecast")
    assert call().choices[0].message.content is None


@check
def a_named_tool_is_called():
    for name in ("get_weather", "get_forecast"):
        named = {"type": "function", "function": {"name": name}}
        assert calls_of(call(tool_choice=named), 1)[0][0] == name
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_forecast"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert calls_of(call(tool_choice=choice), 1)[0][0] == "get_forecast"


@check
def calls_may_be_several():
    reply = call(parallel_tool_calls=True, max_tokens=900)
    assert 1 <= len(calls_of(reply)) <= 16


@check
def streamed_calls_are_the_same():
    streamed = {}
    pieces = 0
    for chunk in call(stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            pieces += 1
            known = streamed.setdefault(delta.index, ["", "", ""])
            known[0] += delta.id or ""
            known[1] += delta.function.name or ""
            known[2] += delta.function.arguments or ""
    assert [(name, arguments) for _, name, arguments in streamed.values()] == calls_of(call(), 1)
    assert pieces > 4, "arguments come in pieces"


@check
def the_package_gathers_streamed_calls():
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    fields |= {"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 400}
    with CLIENT.chat.completions.stream(**fields) as stream:
        final = [event for event in stream][-1] and stream.get_final_completion()
    assert calls_of(final, 1) == calls_of(call(), 1)


class Trip(pydantic.BaseModel):
    city: typing.Literal["Bern", "Rome"]
    days: int


@check
def the_package_parses_into_models():
    fields = {"model": MODEL, "temperature": 0}
    chats = fields | {"messages": ASK, "max_tokens": 400}
    reply = CLIENT.chat.completions.parse(**chats, response_format=Trip)
    assert isinstance(reply.choices[0].message.parsed, Trip), reply
    with CLIENT.chat.completions.stream(**chats, response_format=Trip) as stream:
        stream.until_done()
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == reply.choices[0].message.parsed, streamed
    tool = openai.pydantic_function_tool(Trip)
    named = {"type": "function", "function": {"name": "Trip"}}
    reply = CLIENT.chat.completions.parse(**chats, tools=[tool], tool_choice=named)
    (made,) = reply.choices[0].message.tool_calls
    assert isinstance(made.function.parsed_arguments, Trip), made
    asked = fields | {"input": ASK, "max_output_tokens": 400}
    reply = CLIENT.responses.parse(**asked, text_format=Trip)
    assert isinstance(reply.output_parsed, Trip), reply


@check
def results_are_read():
    made = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    talk = [*ASK, {"role": "assistant", "content": None, "tool_calls": [made]}]
    talk += [{"role": "tool", "tool_call_id": "call_1", "content": "It is sunny."}]
    assert chat(messages=talk, tools=TOOLS).usage.prompt_tokens > chat(tools=TOOLS).usage.prompt_tokens


@check
def tools_that_may_not_be_called_are_not_told_of():
    none = chat(tools=TOOLS, tool_choice="none")
    assert none.usage.prompt_tokens == chat().usage.prompt_tokens
    assert chat(tools=TOOLS).usage.prompt_tokens > none.usage.prompt_tokens + 50


@check
def strict_tools_leave_the_text_free():
    strict = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]
    loose = [{"type": "function", "function": TOOLS[0]["function"]}]
    reply, free = chat(tools=strict), chat(tools=loose)
    assert text_of(reply) == text_of(free) or reply.choices[0].message.tool_calls


@check
def json_or_calls():
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    message = chat(tools=TOOLS, response_format=form, max_tokens=200).choices[0].message
    assert message.tool_calls or json.loads(message.content)["city"] in ("Bern", "Rome"), message


@check
def thinking_settings_are_taken():
    for extra in ({"chat_template_kwargs": {"enable_thinking": False}}, {"thinking_budget": 100}):
        assert text_of(chat(extra_body=extra)) == text_of(chat())
    assert text_of(chat(reasoning_effort="low")) == text_of(chat())
    error = refused(openai.BadRequestError, chat, reasoning_effort="huge")
    assert error.param == "reasoning_effort"


def post(path, **fields):
    return CLIENT.with_options(max_retries=0).post(f"{ROOT}{path}", body=fields, cast_to=dict)


@check
def texts_become_tokens_and_back():
    told = post("/tokenize", model=MODEL, prompt=PROMPT, return_token_strs=True)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) > 1, told
    assert post("/detokenize", model=MODEL, tokens=told["tokens"])["prompt"].endswith(PROMPT)
    counted = post("/tokenize", model=MODEL, messages=ASK)["count"]
    assert counted == chat().usage.prompt_tokens


def respond(**more):
    fields = {"model": MODEL, "input": ASK[0]["content"], "temperature": 0, "max_output_tokens": 24}
    return CLIENT.responses.create(**fields | more)


@check
def responses_answer_as_chats_do():
    reply = respond()
    assert reply.output_text == text_of(chat()) and reply.id.startswith("resp_")
    assert reply.status == "incomplete" and reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage.output_tokens == 24 and reply.usage.input_tokens == chat().usage.prompt_tokens


@check
def responses_stream_the_same():
    events = list(respond(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == respond().output_text and len(deltas) > 3
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    with CLIENT.responses.stream(
        model=MODEL, input=ASK[0]["content"], temperature=0, max_output_tokens=24
    ) as stream:
        for _ in stream:
            pass


@check
def responses_score_tokens():
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = respond(**asked).output[0].content[0]
    assert "".join(score.token for score in part.logprobs) == part.text, part
    for score in part.logprobs:
        tops = [top.logprob for top in score.top_logprobs]
        assert len(tops) == 2 and tops[0] == max(tops) == score.logprob <= 0, score
    told = [score.token for event in respond(stream=True, **asked)
            if event.type == "response.output_text.delta" for score in event.logprobs]
    assert told == [score.token for score in part.logprobs], told
    assert respond().output[0].content[0].logprobs == []


@check
def responses_go_on_and_are_kept():
    first = respond(instructions="Be brief.")
    second = respond(input="And three more?", previous_response_id=first.id)
    assert second.usage.input_tokens > respond(input="And three more?").usage.input_tokens + 24
    assert CLIENT.responses.retrieve(first.id).output_text == first.output_text
    items = CLIENT.responses.input_items.list(first.id).data
    assert items[0].content[0].text == ASK[0]["content"], items
    CLIENT.responses.delete(first.id)
    refused(openai.NotFoundError, CLIENT.responses.retrieve, response_id=first.id)
    refused(openai.NotFoundError, CLIENT.responses.retrieve, response_id=respond(store=False).id)
    other = openai.OpenAI(base_url=CLIENT.base_url, api_key="another", max_retries=0)
    refused(openai.NotFoundError, other.responses.retrieve, response_id=second.id)


@check
def responses_call_and_follow_schemas():
    flat = [{"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}]
    reply = respond(tools=flat, tool_choice="required", parallel_tool_calls=False, max_output_tokens=400)
    (made,) = [item for item in reply.output if item.type == "function_call"]
    assert json.loads(made.arguments)["city"] in ("Bern", "Rome"), made
    result = {"type": "function_call_output", "call_id": made.call_id, "output": "sunny"}
    after = respond(input=[result], previous_response_id=reply.id, tools=flat)
    assert after.usage.input_tokens > reply.usage.input_tokens
    form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    assert json.loads(respond(text=form, max_output_tokens=200).output_text)["days"] is not None


@check
def responses_are_refused_by_name():
    for field, value in (("input", []), ("background", True), ("tools", [{"type": "no_such"}])):
        error = refused(openai.BadRequestError, respond, **{field: value})
        assert field in str(error.param), (field, error.param)
    # What others' servers run is left out, unless it must be called.
    hosted = {"tools": [{"type": "web_search"}], "max_output_tokens": 2}
    assert respond(**hosted).output
    error = refused(openai.BadRequestError, respond, **hosted, tool_choice={"type": "web_search"})
    assert "tool_choice" in str(error.param), error.param
    refused(openai.NotFoundError, respond, previous_response_id="resp_none")


@check
def errors_are_typed_and_named():
    missing = refused(openai.NotFoundError, chat, model="no-such-model")
    assert missing.code == "model_not_found"
    assert CLIENT.models.list().data[0].id in str(missing)
    refused(openai.NotFoundError, CLIENT.models.retrieve, model="no-such-model")
    for field, value in (
        ("temperature", 3),
        ("temperature", "hot"),
        ("top_p", 0),
        ("n", 0),
        ("max_tokens", -1),
        ("presence_penalty", 5),
        ("stop", ["a"] * 17),
        ("logit_bias", {"1": 1000}),
        ("top_logprobs", 50),
        ("tools", [{"type": "function", "function": {"name": "no name"}}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "xml"}),
    ):
        more = {"logprobs": True} if field == "top_logprobs" else {}
        error = refused(openai.BadRequestError, chat, **{field: value}, **more)
        assert error.param == field, (field, error.param)
        assert field in str(error)
    error = refused(openai.BadRequestError, chat, extra_body={"temprature": 1})
    assert error.param == "temprature" and "`temperature`" in str(error)
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    error = refused(openai.BadRequestError, chat, messages=[{"role": "user", "content": image}])
    assert "image_url" in str(error)
    refused(openai.BadRequestError, chat, messages=[])


@check
def a_long_prompt_is_refused_with_numbers():
    context = CLIENT.models.list().data[0].max_model_len
    error = refused(openai.BadRequestError, chat, max_tokens=context + 1)
    assert error.param == "max_tokens" and str(context) in str(error)


@check
def a_closed_stream_leaves_the_server_working():
    stream = chat(max_tokens=200, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert text_of(chat())


run()
