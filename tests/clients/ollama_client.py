"""The official ollama package, unmodified, against a Quire binary: `ollama_client.py QUIRE_BINARY`."""

import json
import sys

import ollama

from server import raises, run_checks, serve

QUESTION = [{"role": "user", "content": "Who are you?"}]
GREEDY = {"temperature": 0, "num_predict": 40}


def client(server):
    return ollama.Client(host=f"http://{server.http}")


def check_chat():
    with serve() as server:
        api = client(server)
        whole = api.chat(model="pebble", messages=QUESTION, options=GREEDY)
        assert whole.message.role == "assistant" and "Pebble" in whole.message.content, whole
        assert whole.done and whole.done_reason == "stop" and whole.eval_count > 0
        assert whole.total_duration == whole.prompt_eval_duration + whole.eval_duration
        pieces = list(api.chat(model="pebble:latest", messages=QUESTION, options=GREEDY, stream=True, keep_alive="5m"))
        assert len(pieces) >= 2 and "".join(piece.message.content for piece in pieces) == whole.message.content
        assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].eval_count == whole.eval_count and pieces[-1].prompt_eval_count == whole.prompt_eval_count
        scored = api.chat(model="pebble", messages=QUESTION, options=GREEDY, logprobs=True, top_logprobs=2)
        assert len(scored.logprobs) == scored.eval_count and len(scored.logprobs[0].top_logprobs) == 2


def check_generate():
    with serve() as server:
        api = client(server)
        whole = api.generate(model="pebble", prompt="Who are you?", options=GREEDY)
        assert whole.response == api.chat(model="pebble", messages=QUESTION, options=GREEDY).message.content
        pieces = list(api.generate(model="pebble", prompt="Who are you?", options=GREEDY, stream=True))
        assert "".join(piece.response for piece in pieces) == whole.response
        story = api.generate(model="pebble", prompt="Once upon a time", raw=True, options={"num_predict": 9, "seed": 1})
        assert story.eval_count <= 9 and story.done_reason in ("length", "stop")
        assert api.generate(model="pebble").done_reason == "load"


def check_tools():
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather in a city",
                                                "parameters": city}}
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    with serve() as server:
        api = client(server)
        whole = api.chat(model="pebble", messages=messages, tools=[weather], options=GREEDY)
        [call] = whole.message.tool_calls
        assert call.function.name == "get_weather" and call.function.arguments == {"city": "Paris"}, call
        pieces = list(api.chat(model="pebble", messages=messages, tools=[weather], options=GREEDY, stream=True))
        assert [call for piece in pieces for call in piece.message.tool_calls or []] == [call], pieces
        messages += [whole.message, {"role": "tool", "tool_name": "get_weather", "content": '{"sky": "rain"}'}]
        assert api.chat(model="pebble", messages=messages, tools=[weather], options=GREEDY).message.content


def check_formats():
    schema = {"type": "object", "properties": {"name": {"enum": ["Pebble", "Stone"]}}, "required": ["name"],
              "additionalProperties": False}
    with serve() as server:
        api = client(server)
        answer = api.chat(model="pebble", messages=QUESTION, format=schema, options=GREEDY)
        assert json.loads(answer.message.content)["name"] in ("Pebble", "Stone"), answer
        answer = api.generate(model="pebble", prompt="Who are you?", format="json",
                              options={"temperature": 0, "num_predict": 200})
        assert answer.done_reason == "length" or isinstance(json.loads(answer.response), dict), answer


def check_models():
    with serve() as server:
        api = client(server)
        models = api.list().models
        assert [model.model for model in models] == ["pebble:latest"] and models[0].modified_at.year >= 2024, models
        shown = api.show("pebble")
        assert "completion" in shown.capabilities and shown.details.format == "safetensors", shown
        assert api.ps().models[0].context_length > 0


def check_errors():
    with serve() as server:
        api = client(server)
        error = raises(ollama.ResponseError, lambda: api.chat(model="llama3", messages=QUESTION))
        assert error.status_code == 404 and "not found" in error.error, error
        error = raises(ollama.ResponseError, lambda: api.chat(model="pebble", messages=QUESTION, options={"mirostat": 1}))
        assert error.status_code == 400 and "mirostat" in error.error, error
        error = raises(ollama.ResponseError, lambda: list(api.generate(model="llama3", prompt="x", stream=True)))
        assert error.status_code == 404, error
        for call in (lambda: api.pull("llama3"), lambda: api.delete("pebble"), lambda: api.copy("pebble", "other")):
            assert raises(ollama.ResponseError, call).status_code == 501
        error = raises(ollama.ResponseError, lambda: api.embed(model="pebble", input="text"))
        assert error.status_code in (400, 404, 501), error


run_checks(sys.modules[__name__])
