"""inference-perf, the load client of the Kubernetes projects, against a Quire binary: `inference_perf_client.py
QUIRE_BINARY`."""

import json
import pathlib
import subprocess
import sys
import tempfile

from server import run_checks, serve

TOKENIZER = pathlib.Path(__file__).parents[3] / "assets/pebble/model"


def inference_perf(server, kind, data):
    """Runs it for two seconds; its summary. What is written is JSON, which YAML includes."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config.yml"
        config.write_text(json.dumps({
            "api": {"type": kind, "streaming": True},
            "data": data,
            "load": {"type": "constant", "num_workers": 1, "stages": [{"rate": 10, "duration": 2}]},
            "server": {"type": "vllm", "model_name": "pebble", "base_url": f"http://{server.http}", "ignore_eos": True},
            "tokenizer": {"pretrained_model_name_or_path": str(TOKENIZER)},
            "storage": {"local_storage": {"path": f"{folder}/reports"}},
        }))
        done = subprocess.run(["inference-perf", "--config", str(config)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(pathlib.Path(folder, "reports/summary_lifecycle_metrics.json").read_text())


def check_completions():
    lengths = {"type": "fixed", "std_dev": 0, "total_count": 40}
    data = {"type": "random", "input_distribution": lengths | {"min": 32, "max": 32, "mean": 32},
            "output_distribution": lengths | {"min": 16, "max": 16, "mean": 16}}
    with serve() as server:
        summary = inference_perf(server, "completion", data)
        assert summary["successes"]["count"] == 20 and summary["failures"]["count"] == 0, summary


def check_chat_streams():
    prefix = {"num_groups": 2, "num_prompts_per_group": 10, "system_prompt_len": 30, "question_len": 20, "output_len": 16}
    with serve() as server:
        summary = inference_perf(server, "chat", {"type": "shared_prefix", "shared_prefix": prefix})
        assert summary["successes"]["count"] == 20 and summary["failures"]["count"] == 0, summary


run_checks(sys.modules[__name__])
