#!/usr/bin/env python3
"""Does LangChain's unmodified ChatOpenAI get what it expects from a running server?

    python check_langchain.py http://127.0.0.1:8080

Needs `langchain-openai`.
"""

from checks import ROOT, check, run
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

FIELDS = {"base_url": f"{ROOT}/v1", "api_key": "none", "model": "default", "temperature": 0}
MODEL = ChatOpenAI(**FIELDS, max_tokens=24)
LONGER = ChatOpenAI(**FIELDS, max_tokens=400)
ASK = "Name three colours of the rainbow."


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


run()
