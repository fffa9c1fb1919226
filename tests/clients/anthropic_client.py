"""The official anthropic package, unmodified, against a Quire binary: `anthropic_client.py QUIRE_BINARY`."""

import sys

import anthropic

from server import raises, run_checks, serve

QUESTION = [{"role": "user", "content": "Who are you?"}]
DELHI = [{"role": "user", "content": "Tell me the time in Delhi."}]
CLOCK = {
    "name": "current_time", "description": "Get the current time in a city",
    "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}


def client(server, **options):
    options.setdefault("api_key", "none")
    return anthropic.Anthropic(base_url=f"http://{server.http}", **options)


def greedy(**options):
    return {"model": "pebble", "max_tokens": 40, "extra_body": {"temperature": 0}, **options}


def strictly(message):
    """Checks a message against its types, which the client itself does not do."""
    return type(message).model_validate(message.to_dict(), strict=True)


def check_whole_and_streamed():
    with serve() as server:
        api = client(server).messages
        whole = strictly(api.create(messages=QUESTION, **greedy()))
        assert whole.role == "assistant" and whole.stop_reason == "end_turn", whole
        assert [block.type for block in whole.content] == ["text"] and "Pebble" in whole.content[0].text
        types = [strictly(event).type for event in api.create(messages=QUESTION, stream=True, **greedy())]
        assert types[:2] == ["message_start", "content_block_start"], types
        assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"], types
        assert set(types[2:-3]) == {"content_block_delta"}, types
        with api.stream(messages=QUESTION, **greedy()) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[0].text == whole.content[0].text
        assert final.stop_reason == "end_turn" and final.usage.output_tokens == whole.usage.output_tokens


def check_ends():
    with serve() as server:
        api = client(server).messages
        assert api.create(messages=QUESTION, **greedy(max_tokens=3)).stop_reason == "max_tokens"
        stopped = api.create(messages=QUESTION, stop_sequences=["Pebble"], **greedy())
        assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "Pebble"
        assert "Pebble" not in stopped.content[0].text
        begun = api.create(messages=[*QUESTION, {"role": "assistant", "content": "I am"}], **greedy())
        assert begun.content[0].text.startswith(" Pebble"), begun


def check_prompts_and_their_cost():
    with serve() as server:
        api = client(server).messages
        system = [{"type": "text", "text": "Once upon a time there was a pebble on a beach. " * 8,
                   "cache_control": {"type": "ephemeral"}}]
        counted = api.count_tokens(model="pebble", system=system, messages=QUESTION).input_tokens
        first = api.create(messages=QUESTION, system=system, **greedy()).usage
        second = api.create(messages=QUESTION, system=system, **greedy()).usage
        assert first.input_tokens == counted and first.cache_read_input_tokens == 0
        assert second.cache_read_input_tokens > 0
        assert second.input_tokens + second.cache_read_input_tokens == counted


def check_tools():
    with serve() as server:
        api = client(server).messages
        whole = strictly(api.create(messages=DELHI, tools=[CLOCK], **greedy()))
        call = whole.content[-1]
        assert whole.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "current_time", whole
        assert call.input == {"location": "Delhi"} and call.id
        for event in api.create(messages=DELHI, tools=[CLOCK], stream=True, **greedy()):
            strictly(event)
        with api.stream(messages=DELHI, tools=[CLOCK], **greedy()) as stream:
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            final = stream.get_final_message()
        assert final.content[-1].input == call.input and final.stop_reason == "tool_use" and pieces
        result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"time": "23:33"}'}
        messages = [*DELHI, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
        answer = api.create(messages=messages, tools=[CLOCK], **greedy())
        assert answer.stop_reason == "end_turn" and answer.content[0].text.startswith("It is"), answer
        silent = api.create(messages=DELHI, tools=[CLOCK], tool_choice={"type": "none"}, **greedy())
        assert all(block.type == "text" for block in silent.content)
        assert api.count_tokens(model="pebble", messages=DELHI, tools=[CLOCK]).input_tokens > 40


def check_the_tool_loop_runs_by_itself():
    with serve() as server:
        @anthropic.beta_tool
        def current_time(location: str) -> str:
            """Get the current time in a city"""
            return '{"time": "23:33"}'

        runner = client(server).beta.messages.tool_runner(messages=DELHI, tools=[current_time], max_tokens=40,
                                                          model="pebble", extra_body={"temperature": 0})
        last = runner.until_done()
        assert last.stop_reason == "end_turn" and last.content[0].text.startswith("It is"), last


def check_errors_have_their_classes():
    with serve("--api-key", "the-key") as server:
        api = client(server, max_retries=0, api_key="the-key").messages
        error = raises(anthropic.BadRequestError, lambda: api.create(messages=[], **greedy()))
        assert error.body["error"]["type"] == "invalid_request_error", error.body
        error = raises(anthropic.NotFoundError, lambda: api.create(messages=QUESTION, **greedy(model="claude")))
        assert error.body["error"]["type"] == "not_found_error", error.body
        server_tool = {"type": "web_search_20250305", "name": "web_search"}
        error = raises(anthropic.BadRequestError, lambda: api.create(messages=QUESTION, tools=[server_tool], **greedy()))
        assert "web_search_20250305" in error.body["error"]["message"]
        other = client(server, max_retries=0, api_key="another").messages
        error = raises(anthropic.AuthenticationError, lambda: other.create(messages=QUESTION, **greedy()))
        assert error.body["error"]["type"] == "authentication_error", error.body
        bearer = client(server, max_retries=0, api_key=None, auth_token="the-key").messages
        assert bearer.create(messages=QUESTION, **greedy()).content


run_checks(sys.modules[__name__])
