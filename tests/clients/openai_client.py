"""The official openai package, unmodified, against a Quire binary: `openai_client.py QUIRE_BINARY`."""

import concurrent.futures
import sys
import time

import openai

from server import raises, run_checks, serve

QUESTION = [{"role": "user", "content": "Who are you?"}]


def client(server, **options):
    options.setdefault("api_key", "none")
    return openai.OpenAI(base_url=f"http://{server.http}/v1", **options)


def check_models():
    with serve() as server:
        models = client(server).models.list().data
        assert [model.id for model in models] == ["pebble"], models
        assert client(server).models.retrieve("pebble").id == "pebble"
        error = raises(openai.NotFoundError, lambda: client(server).models.retrieve("gpt-4"))
        assert error.body["code"] == 404, error.body


def check_completions():
    with serve() as server:
        api = client(server).completions
        whole = api.create(model="pebble", prompt="Once upon a time", max_tokens=20, temperature=0, logprobs=2)
        choice = whole.choices[0]
        assert choice.finish_reason == "length" and len(choice.logprobs.tokens) == 20
        assert "".join(choice.logprobs.tokens) == choice.text
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
        assert whole.usage.completion_tokens == 20
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20
        chunks = list(api.create(model="pebble", prompt="Once upon a time", max_tokens=20, temperature=0, stream=True,
                                 stream_options={"include_usage": True}))
        assert "".join(c.choices[0].text for c in chunks[:-1]) == choice.text
        assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
        several = api.create(model="pebble", prompt=["One", "Two"], n=3, seed=1, max_tokens=5)
        assert [c.index for c in several.choices] == list(range(6))
        echoed = api.create(model="pebble", prompt="Once", echo=True, max_tokens=2)
        assert echoed.choices[0].text.startswith("Once")


def check_chat():
    with serve() as server:
        api = client(server).chat.completions
        whole = api.create(model="pebble", messages=QUESTION, temperature=0, max_completion_tokens=40)
        message = whole.choices[0].message
        assert message.role == "assistant" and "Pebble" in message.content, message
        assert message.tool_calls is None or message.tool_calls == []
        assert whole.choices[0].finish_reason == "stop"
        chunks = list(api.create(model="pebble", messages=QUESTION, temperature=0, max_tokens=40, stream=True,
                                 stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == message.content
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert all(c.usage is None for c in chunks[:-1])
        assert len({c.id for c in chunks}) == 1
        # The helper that puts a stream together again.
        with client(server).chat.completions.stream(model="pebble", messages=QUESTION, temperature=0,
                                                    max_tokens=40) as stream:
            assert stream.get_final_completion().choices[0].message.content == message.content


def check_chat_options():
    with serve() as server:
        api = client(server).chat.completions
        several = api.create(model="pebble", messages=QUESTION, n=4, seed=3, temperature=1.5, max_tokens=20)
        again = api.create(model="pebble", messages=QUESTION, n=4, seed=3, temperature=1.5, max_tokens=20)
        texts = [choice.message.content for choice in several.choices]
        assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) > 2
        scored = api.create(model="pebble", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)
        content = scored.choices[0].logprobs.content
        assert len(content) == 5 and all(len(token.top_logprobs) == 3 for token in content)
        assert bytes(b for token in content for b in token.bytes).decode() == scored.choices[0].message.content
        stopped = api.create(model="pebble", messages=QUESTION, temperature=0, max_tokens=40, stop=["Pebble"])
        assert "Pebble" not in stopped.choices[0].message.content
        assert stopped.choices[0].finish_reason == "stop"
        extra = api.create(model="pebble", messages=QUESTION, max_tokens=5, extra_body={"top_k": 1, "min_tokens": 5})
        assert extra.usage.completion_tokens == 5


def check_errors_have_their_classes():
    with serve() as server:
        api = client(server, max_retries=0)
        create = api.chat.completions.create
        error = raises(openai.BadRequestError, lambda: create(model="pebble", messages=QUESTION, temperature=3))
        assert error.param == "temperature" and error.status_code == 400 and "temperature" in error.message, error
        error = raises(openai.NotFoundError, lambda: create(model="gpt-4", messages=QUESTION))
        assert error.param == "model"
        raises(openai.BadRequestError, lambda: create(model="pebble", messages=[]))
        raises(openai.BadRequestError,
               lambda: create(model="pebble", messages=QUESTION, response_format={"type": "json_schema"}))
        raises(openai.BadRequestError, lambda: list(create(model="pebble", messages=QUESTION, n=0, stream=True)))
        raises(openai.NotFoundError, lambda: api.embeddings.create(model="pebble", input="text"))


def check_keys():
    with serve("--api-key", "the-key") as server:
        assert client(server, api_key="the-key").models.list().data
        raises(openai.AuthenticationError, lambda: client(server, api_key="another").models.list())


def check_retries_on_503():
    """The client waits as long as Retry-After says and then gets its answer."""
    with serve("--max-num-queued-reqs", "1") as server:
        patient, impatient = client(server, max_retries=20), client(server, max_retries=0)
        stream = patient.completions.create(model="pebble", prompt="Once", max_tokens=2000, stream=True,
                                            extra_body={"ignore_eos": True})
        next(iter(stream))
        error = raises(openai.InternalServerError,
                       lambda: impatient.completions.create(model="pebble", prompt="Two", max_tokens=2))
        assert error.status_code == 503 and int(error.response.headers["retry-after"]) >= 1
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = pool.submit(patient.completions.create, model="pebble", prompt="Two", max_tokens=2)
            time.sleep(0.3)
            stream.close()
            assert waiting.result(timeout=60).usage.completion_tokens <= 2


def check_many_at_once():
    with serve() as server:
        api = client(server, timeout=60)

        def story(seed):
            chunks = api.chat.completions.create(model="pebble", messages=QUESTION, seed=seed, max_tokens=30, stream=True)
            return [c.choices[0].finish_reason for c in chunks][-1]

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            ends = list(pool.map(story, range(96)))
        assert set(ends) <= {"stop", "length"} and len(ends) == 96


run_checks(sys.modules[__name__])
