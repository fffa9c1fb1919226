"""LangChain, LlamaIndex and Outlines against a Quire binary: `frameworks_client.py QUIRE_BINARY`."""

import json
import sys
from typing import Literal

import openai
import outlines
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict, Field

from server import run_checks, serve


class City(BaseModel):
    """A city of the world. Bounded, because the demo model does not know when to end a string or an object."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=10_000_000)


@tool
def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return f"It is sunny in {city}."


def langchain(server, **options):
    return ChatOpenAI(base_url=f"http://{server.http}/v1", api_key="none", model="pebble", temperature=0, **options)


def check_langchain_answers_and_streams():
    with serve() as server:
        model = langchain(server, stream_usage=True)
        whole = model.invoke("Who are you?")
        assert "Pebble" in whole.content and whole.usage_metadata["output_tokens"] > 0, whole
        chunks = list(model.stream("Who are you?"))
        assert "".join(chunk.content for chunk in chunks) == whole.content
        assert any(chunk.usage_metadata for chunk in chunks)
        batch = model.batch(["Who are you?", "What is the capital of France?"])
        assert batch[0].content == whole.content and batch[1].content


def check_langchain_calls_tools():
    with serve() as server:
        model = langchain(server)
        question = HumanMessage("What is the weather in Paris?")
        forced = model.bind_tools([get_weather], tool_choice="get_weather").invoke([question])
        assert [call["name"] for call in forced.tool_calls] == ["get_weather"], forced
        assert set(forced.tool_calls[0]["args"]) == {"city"}, forced
        streamed = None
        for chunk in model.bind_tools([get_weather], tool_choice="get_weather").stream([question]):
            streamed = chunk if streamed is None else streamed + chunk
        assert [call["args"] for call in streamed.tool_calls] == [call["args"] for call in forced.tool_calls]
        result = ToolMessage(get_weather.invoke(forced.tool_calls[0]["args"]), tool_call_id=forced.tool_calls[0]["id"])
        assert model.bind_tools([get_weather]).invoke([question, forced, result]).content is not None


def check_langchain_has_structured_output():
    with serve() as server:
        for method in ("json_schema", "function_calling"):
            city = langchain(server, max_tokens=200).with_structured_output(City, method=method)
            answer = city.invoke("Name a city.")
            assert isinstance(answer, City), (method, answer)


def check_llama_index():
    with serve() as server:
        options = {"model": "pebble", "api_base": f"http://{server.http}/v1", "api_key": "none", "temperature": 0}
        chat = OpenAILike(is_chat_model=True, **options)
        question = [ChatMessage(role="user", content="Who are you?")]
        whole = chat.chat(question).message.content
        assert "Pebble" in whole
        assert "".join(part.delta for part in chat.stream_chat(question)) == whole
        plain = OpenAILike(is_chat_model=False, max_tokens=20, **options)
        text = plain.complete("Once upon a time").text
        assert text and "".join(part.delta for part in plain.stream_complete("Once upon a time")) == text


def check_outlines():
    with serve() as server:
        client = openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none")
        model = outlines.from_vllm(client, "pebble")
        assert model("Is a fox an animal?", Literal["yes", "no"], max_tokens=8) in ("yes", "no")
        number = model("A number:", outlines.types.Regex(r"[0-9]{3}-[0-9]{2}"), max_tokens=16)
        assert len(number) == 6 and number[3] == "-", number
        city = City.model_validate_json(model("Name a city.", City, max_tokens=200, temperature=0))
        assert city.name is not None
        assert json.loads(model("Name a city.", City, max_tokens=600, seed=5))


run_checks(sys.modules[__name__])
