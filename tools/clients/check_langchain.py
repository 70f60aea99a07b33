#!/usr/bin/env python3
"""Does LangChain's unmodified ChatOpenAI get what it expects from a running server?

    python check_langchain.py http://127.0.0.1:8080

Every check asserts a property that a wrong server would break. Prints one line a check and a
summary; exits 1 when a check fails. Needs `langchain-openai`.
"""

import os
import sys
import traceback

# A proxy for the outside world must not see requests to this machine.
os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

ROOT = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080").rstrip("/")
FIELDS = {"base_url": f"{ROOT}/v1", "api_key": "none", "model": "default", "temperature": 0}
MODEL = ChatOpenAI(**FIELDS, max_tokens=24)
LONGER = ChatOpenAI(**FIELDS, max_tokens=400)
ASK = "Name three colours of the rainbow."
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@tool
def get_weather(city: str, days: int) -> str:
    """The weather in a city."""
    return f"sunny in {city} for {days} days"


class Trip(BaseModel):
    """A trip."""

    city: str
    days: int


@check
def invoke_and_stream_agree():
    whole = MODEL.invoke(ASK)
    assert whole.content and whole.usage_metadata["output_tokens"] == 24, whole
    assert "".join(chunk.content for chunk in MODEL.stream(ASK)) == whole.content


@check
def batches_agree():
    assert {reply.content for reply in MODEL.batch([ASK] * 4)} == {MODEL.invoke(ASK).content}


@check
def systems_and_turns_are_heard():
    talk = [SystemMessage("Be brief."), HumanMessage(ASK), AIMessage("Red."), HumanMessage("More?")]
    tokens = lambda reply: reply.usage_metadata["input_tokens"]
    assert tokens(MODEL.invoke(talk)) > tokens(MODEL.invoke(ASK))


@check
def tools_are_called():
    bound = LONGER.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    (call,) = bound.invoke(ASK).tool_calls
    assert call["name"] == "get_weather" and isinstance(call["args"]["days"], int), call
    talk = [HumanMessage(ASK), AIMessage("", tool_calls=[call])]
    talk += [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert isinstance(LONGER.bind_tools([get_weather]).invoke(talk), AIMessage)


@check
def streamed_tools_are_called():
    bound = LONGER.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    total = None
    for chunk in bound.stream(ASK):
        total = chunk if total is None else total + chunk
    assert total.tool_calls[0]["args"] == bound.invoke(ASK).tool_calls[0]["args"], total


@check
def structured_output_is_a_model():
    for method in ("json_schema", "function_calling"):
        trip = LONGER.with_structured_output(Trip, method=method).invoke(ASK)
        assert isinstance(trip, Trip), (method, trip)


@check
def responses_api_is_spoken():
    model = ChatOpenAI(**FIELDS, max_tokens=24, use_responses_api=True)
    reply = model.invoke(ASK)
    assert reply.text == MODEL.invoke(ASK).content, reply
    assert "".join(chunk.text for chunk in model.stream(ASK)) == reply.text


def main():
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


main()
