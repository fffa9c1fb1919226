"""GuideLLM, the load client that vLLM recommends, against a Quire binary: `guidellm_client.py QUIRE_BINARY`."""

import json
import pathlib
import subprocess
import sys
import tempfile

from server import run_checks, serve

TOKENIZER = pathlib.Path(__file__).parents[3] / "assets/pebble/model"


def guidellm(server, request_format):
    """Runs it; the requests that it counts as completed, failed and incomplete."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        backend = f"kind=openai_http,target=http://{server.http},model=pebble,request_format={request_format}"
        command = ["guidellm", "run", "--backend", backend, "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}",
                   "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
                   "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=20",
                   "--output", f"kind=json,path={report}", "--disable-console"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
        return benchmark


def check_chat_streams():
    with serve() as server:
        totals = guidellm(server, "/v1/chat/completions")["metrics"]["request_totals"]
        assert (totals["successful"], totals["errored"]) == (20, 0), totals


def check_completions():
    with serve() as server:
        totals = guidellm(server, "/v1/completions")["metrics"]["request_totals"]
        assert (totals["successful"], totals["errored"]) == (20, 0), totals


run_checks(sys.modules[__name__])
