"""aiperf, NVIDIA's load client, and what `vllm bench serve` sends, against a Quire binary: `load_client.py
QUIRE_BINARY`."""

import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from server import run_checks, serve


def aiperf(server, endpoint, *flags):
    """Runs it; its figures."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = pathlib.Path(__file__).parents[3] / "assets/pebble/model"
        command = ["aiperf", "profile", "--model", "pebble", "--url", server.http, "--endpoint-type", endpoint,
                   "--tokenizer", str(tokenizer), "--request-count", "20", "--concurrency", "4", "--random-seed", "1",
                   "--isl", "32", "--osl", "16", "--output-artifact-dir", folder, "--ui", "none", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(next(pathlib.Path(folder).rglob("profile_export_aiperf.json")).read_text())


def check_chat_streams():
    with serve() as server:
        figures = aiperf(server, "chat", "--streaming")
        assert figures["request_count"]["avg"] == 20, figures


def check_completions():
    with serve() as server:
        figures = aiperf(server, "completions", "--streaming")
        assert figures["request_count"]["avg"] == 20, figures


def bench(server, path, body):
    """Posts as `vllm bench serve` does; the chunks of the stream that it looks at, or the whole answer."""
    headers = {"content-type": "application/json", "x-request-id": "bench-0"}
    request = urllib.request.Request(f"http://{server.http}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
        text = answer.read().decode()
    if not body.get("stream"):
        return json.loads(text)
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    assert frames.pop() == "data: [DONE]", frames
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def check_what_vllm_bench_serve_sends():
    usage = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    with serve() as server:
        body = {"model": "pebble", "prompt": "One two three", "repetition_penalty": 1.0, "max_tokens": 8,
                "logprobs": None, **usage}
        *tokens, last = bench(server, "/v1/completions", body)
        assert all(chunk["choices"] for chunk in tokens) and tokens[0]["choices"][0].get("text") is not None, tokens
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == 8, last
        content = [{"type": "text", "text": "One two three"}]
        body = {"model": "pebble", "messages": [{"role": "user", "content": content}], "max_completion_tokens": 8, **usage}
        *tokens, last = bench(server, "/v1/chat/completions", body)
        assert any(chunk["choices"][0]["delta"].get("content") for chunk in tokens), tokens
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == 8, last
        assert last["usage"]["prompt_tokens"] > 0, last
    with serve("--runner", "pooling") as server:
        body = {"model": "pebble", "input": ["One two three", "four"], "truncate_prompt_tokens": -1}
        answer = bench(server, "/v1/embeddings", body)
        assert len(answer["data"]) == 2 and answer["usage"]["prompt_tokens"] > 2, answer["usage"]


run_checks(sys.modules[__name__])
