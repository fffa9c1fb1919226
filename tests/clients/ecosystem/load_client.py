"""aiperf, NVIDIA's load client, against a Quire binary: `load_client.py QUIRE_BINARY`."""

import json
import pathlib
import subprocess
import sys
import tempfile

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


run_checks(sys.modules[__name__])
