"""The Shepherd Model Gateway in front of a Quire binary's gRPC port: `smg_client.py QUIRE_BINARY`.

It asks what is served, fetches the tokenizer, tokenises and detokenises itself, follows the KV events, and translates
between OpenAI's API and `vllm.grpc.engine.VllmEngine`: its answers must be those of our own HTTP port."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from server import run_checks, serve

SMG = pathlib.Path(sys.executable).parent / "smg"
QUESTION = {"model": "pebble", "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 40}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(address, path, body):
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def chat(address, **fields):
    with post(address, "/v1/chat/completions", {**QUESTION, **fields}) as answer:
        return json.load(answer)


def streamed(address, **fields):
    """Text, finish reason and usage of a streamed answer."""
    text, reason, usage = "", None, None
    body = {**QUESTION, **fields, "stream": True, "stream_options": {"include_usage": True}}
    with post(address, "/v1/chat/completions", body) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
            usage = chunk.get("usage") or usage
    return text, reason, usage


@contextlib.contextmanager
def gateway(*flags):
    """A server with these flags, and the address of a gateway in front of it, ready."""
    with serve(*flags) as server, tempfile.TemporaryFile() as log:
        address = f"127.0.0.1:{free_port()}"
        command = [SMG, "launch", "--worker-urls", f"grpc://{server.grpc}", "--backend", "vllm", "--host", "127.0.0.1",
                   "--port", address.split(":")[1], "--prometheus-port", str(free_port()), "--log-level", "info"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(120):
                with contextlib.suppress(OSError):
                    models = json.load(urllib.request.urlopen(f"http://{address}/v1/models", timeout=5))
                    if models["data"]:
                        break
                time.sleep(0.5)
            else:
                log.seek(0)
                raise AssertionError(f"the gateway lists no model: {log.read().decode(errors='replace')[-4000:]}")
            assert [model["id"] for model in models["data"]] == ["pebble"], models
            yield server, address, lambda: (log.seek(0), log.read().decode(errors="replace"))[1]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def check_answers_through_the_gateway_are_ours():
    with gateway("--kv-events-config", '{"enable_kv_cache_events": true}') as (server, address, log):
        ours, theirs = chat(server.http), chat(address)
        for path in (("choices", 0, "message", "content"), ("choices", 0, "finish_reason")):
            values = []
            for answer in (ours, theirs):
                for step in path:
                    answer = answer[step]
                values.append(answer)
            assert values[0] == values[1], (path, values)
        text, reason, usage = streamed(address)
        assert (text, reason) == (ours["choices"][0]["message"]["content"], "stop")
        for counts in (theirs["usage"], usage):
            for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert counts[name] == ours["usage"][name], (name, counts)
        assert chat(address, max_tokens=3)["choices"][0]["finish_reason"] == "length"
        two = chat(address, n=2, temperature=1, seed=1, logprobs=True, top_logprobs=2, max_tokens=4)
        assert [choice["index"] for choice in two["choices"]] == [0, 1]
        assert all(len(choice["logprobs"]["content"]) == 4 for choice in two["choices"])
        assert "KV event stream connected" in log()


def check_a_schema_holds_through_the_gateway():
    schema = {"type": "object", "properties": {"name": {"enum": ["Pebble", "Rock"]}}, "required": ["name"],
              "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "who", "schema": schema, "strict": True}}
    with gateway() as (_, address, _):
        answer = chat(address, response_format=form)["choices"][0]["message"]["content"]
        assert json.loads(answer)["name"] in ("Pebble", "Rock"), answer


def check_refusals_come_through():
    with gateway() as (_, address, _):
        try:
            chat(address, max_tokens=100_000)
        except urllib.error.HTTPError as error:
            assert error.code == 400, error.code
        else:
            raise AssertionError("more tokens than the context has were granted")


run_checks(sys.modules[__name__])
