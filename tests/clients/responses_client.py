"""The official openai package's Responses API against a Quire binary: `responses_client.py QUIRE_BINARY`."""

import json
import sys
import time

import openai

from server import raises, run_checks, serve

QUESTION = "Who are you?"
CLOCK = {
    "type": "function", "name": "current_time", "description": "Get the current time in a city", "strict": False,
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}


def client(server, **options):
    options.setdefault("api_key", "none")
    return openai.OpenAI(base_url=f"http://{server.http}/v1", **options)


def strictly(response):
    """Checks a response against its types, which the client itself does not do."""
    return type(response).model_validate(response.to_dict(), strict=True)


def check_whole_and_streamed():
    with serve() as server:
        api = client(server).responses
        whole = strictly(api.create(model="pebble", input=QUESTION, temperature=0, max_output_tokens=40))
        assert whole.status == "completed" and "Pebble" in whole.output_text, whole
        assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
        events = list(api.create(model="pebble", input=QUESTION, temperature=0, max_output_tokens=40, stream=True))
        for event in events:
            strictly(event)
        types = [event.type for event in events]
        frame = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
        end = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
        assert types[:4] == frame and types[-4:] == end and set(types[4:-4]) == {"response.output_text.delta"}, types
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(event.delta for event in events[4:-4]) == whole.output_text
        assert events[-1].response.output_text == whole.output_text
        with api.stream(model="pebble", input=QUESTION, temperature=0, max_output_tokens=40) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(deltas) == final.output_text == whole.output_text


def check_ends():
    with serve() as server:
        api = client(server).responses
        short = strictly(api.create(model="pebble", input=QUESTION, temperature=0, max_output_tokens=3))
        assert short.status == "incomplete" and short.incomplete_details.reason == "max_output_tokens"
        events = list(api.create(model="pebble", input=QUESTION, temperature=0, max_output_tokens=3, stream=True))
        assert events[-1].type == "response.incomplete" and events[-1].response.output_text == short.output_text
        scored = strictly(api.create(model="pebble", input=QUESTION, temperature=0, max_output_tokens=5, top_logprobs=2,
                                     include=["message.output_text.logprobs"]))
        content = scored.output[0].content[0]
        assert "".join(token.token for token in content.logprobs) == content.text
        assert all(len(token.top_logprobs) == 2 for token in content.logprobs)


def check_conversations():
    with serve() as server:
        api = client(server).responses
        options = {"model": "pebble", "temperature": 0, "max_output_tokens": 30}
        first = api.create(input=QUESTION, instructions="Be kind and brief.", metadata={"a": "b"}, **options)
        assert first.metadata == {"a": "b"} and first.instructions == "Be kind and brief."
        assert api.retrieve(first.id) == first
        second = api.create(input="70 + 89 = ?", previous_response_id=first.id, **options)
        items = list(api.input_items.list(second.id, order="asc"))
        assert [item.type for item in items] == ["message"] * 3 and items[1].id == first.output[0].id
        # The same by hand, as clients do that have nothing stored.
        history = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "70 + 89 = ?"}]
        again = api.create(input=history, store=False, **options)
        assert again.output_text == second.output_text
        assert again.usage.input_tokens == second.usage.input_tokens
        raises(openai.NotFoundError, lambda: api.retrieve(again.id))
        api.delete(first.id)
        raises(openai.NotFoundError, lambda: api.retrieve(first.id))
        raises(openai.NotFoundError, lambda: api.create(input="a", previous_response_id=first.id, **options))


def check_background():
    with serve() as server:
        api = client(server).responses
        response = strictly(api.create(model="pebble", input=QUESTION, temperature=0, background=True))
        while response.status in ("queued", "in_progress"):
            time.sleep(0.05)
            response = api.retrieve(response.id)
        assert response.status == "completed" and "Pebble" in response.output_text
        endless = api.create(model="pebble", input=QUESTION, background=True, max_output_tokens=1900,
                             extra_body={"ignore_eos": True})
        assert api.cancel(endless.id).status == "cancelled" and api.retrieve(endless.id).status == "cancelled"
        raises(openai.BadRequestError, lambda: api.cancel(response.id))


def check_tools():
    with serve() as server:
        api = client(server).responses
        ask = {"model": "pebble", "input": "Tell me the time in Delhi.", "temperature": 0, "tools": [CLOCK],
               "max_output_tokens": 60}
        whole = strictly(api.create(**ask))
        call = whole.output[0]
        assert call.type == "function_call" and call.name == "current_time", whole.output
        assert json.loads(call.arguments) == {"location": "Delhi"} and call.call_id and call.id
        events = list(api.create(stream=True, **ask))
        for event in events:
            strictly(event)
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert "".join(deltas) == done[0].arguments == call.arguments
        with api.stream(**ask) as stream:
            final = stream.get_final_response()
        assert final.output[0].arguments == call.arguments and final.output[0].parsed_arguments is None
        result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"time": "23:33"}'}
        answer = api.create(**{**ask, "input": [result], "previous_response_id": whole.id})
        assert answer.output_text.startswith("It is"), answer.output
        silent = api.create(tool_choice="none", **ask)
        assert all(item.type == "message" for item in silent.output)


def check_errors_have_their_classes():
    with serve("--api-key", "the-key") as server:
        api = client(server, max_retries=0, api_key="the-key").responses
        error = raises(openai.BadRequestError, lambda: api.create(model="pebble", input="a", temperature=3))
        assert error.param == "temperature"
        raises(openai.NotFoundError, lambda: api.create(model="gpt-5", input="a"))
        error = raises(openai.BadRequestError, lambda: api.create(model="pebble", input="a", tools=[{"type": "web_search"}]))
        assert "web_search" in error.message and error.param == "tools[0].type"
        raises(openai.NotFoundError, lambda: api.retrieve("resp_nothing"))
        other = client(server, api_key="another").responses
        raises(openai.AuthenticationError, lambda: other.create(model="pebble", input="a"))


run_checks(sys.modules[__name__])
