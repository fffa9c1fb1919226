"""LiteLLM by its providers for vLLM, OpenAI and Anthropic, against a Quire binary: `litellm_client.py QUIRE_BINARY`."""

import sys

import litellm

from server import raises, run_checks, serve

QUESTION = [{"role": "user", "content": "Who are you?"}]
WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def ask(server, provider, **options):
    base = f"http://{server.http}" + ("" if provider == "anthropic" else "/v1")
    options.setdefault("messages", QUESTION)
    return litellm.completion(
        model=f"{provider}/pebble", api_base=base, api_key="none", temperature=0, max_tokens=60, num_retries=0, **options
    )


def check_providers_agree():
    with serve() as server:
        answers = {}
        for provider in ("hosted_vllm", "openai", "anthropic"):
            whole = ask(server, provider)
            answers[provider] = whole.choices[0].message.content
            assert whole.usage.completion_tokens > 0, whole
            chunks = list(ask(server, provider, stream=True, stream_options={"include_usage": True}))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == answers[provider], (provider, text)
        assert len(set(answers.values())) == 1 and "Pebble" in answers["openai"], answers


def check_tools():
    with serve() as server:
        for provider in ("hosted_vllm", "anthropic"):
            question = [{"role": "user", "content": "What is the weather in Paris?"}]
            choice = {"type": "function", "function": {"name": "get_weather"}}
            answer = ask(server, provider, messages=question, tools=WEATHER, tool_choice=choice)
            calls = answer.choices[0].message.tool_calls
            assert [call.function.name for call in calls] == ["get_weather"], (provider, answer)


def check_errors():
    with serve() as server:
        raises(litellm.BadRequestError, lambda: ask(server, "hosted_vllm", top_p=7))


run_checks(sys.modules[__name__])
