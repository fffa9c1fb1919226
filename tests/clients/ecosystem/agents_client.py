"""Agents that live in a terminal, Codex and Claude Code, each through a whole turn: `agents_client.py QUIRE_BINARY
NPM_BIN`.

Their prompts do not fit the demo model's context, so the model is made here: its tokenizer and template, random
weights and a long context. What it would say is noise that never ends; a proxy in between therefore makes the first
answer a call of a harmless tool, and ends the others early. Nothing else of a request or an answer is touched."""

import array
import http.client
import http.server
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading

from server import run_checks, serve

DEMO = pathlib.Path(__file__).parents[3] / "assets/pebble/model"


def make_model(folder):
    """Two layers of noise that read 131072 tokens."""
    for file in DEMO.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((DEMO / "config.json").read_text())
    hidden, inner, layers = 64, 128, 2
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 32,
               "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 131072,
               "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    for layer in range(layers):
        block = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
                 "self_attn.q_proj": (64, hidden), "self_attn.k_proj": (32, hidden),
                 "self_attn.v_proj": (32, hidden), "self_attn.o_proj": (hidden, 64),
                 "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    noise, header, data = random.Random(1), {}, bytearray()
    for name, shape in shapes.items():
        size = shape[0] * (shape[1] if len(shape) == 2 else 1)
        values = [1.0] * size if len(shape) == 1 else [noise.gauss(0, 0.08) for _ in range(size)]
        begin = len(data)
        data += array.array("f", values).tobytes()
        header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes everything on to `upstream`, with `steer` let at the bodies, and keeps what came of it in `seen`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.pass_on(json.dumps(self.server.steer(self.path, json.loads(body))).encode())

    def do_GET(self):
        self.pass_on(None)

    do_HEAD = do_GET

    def pass_on(self, body):
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=300)
        dropped = {"host", "content-length", "connection", "accept-encoding"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        self.server.seen.append((self.command, self.path, answer.status))
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers.get("content-type", "text/plain"))
        self.send_header("connection", "close")
        self.end_headers()
        while piece := answer.read1(1 << 16):
            self.wfile.write(piece)
        self.close_connection = True

    def log_message(self, *_):
        pass


def turn(steer, command, environment):
    """Runs an agent once, in an empty folder; the JSON lines that it wrote, and what passed the proxy."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in ["model", "home", "work"]:
            (folder / name).mkdir()
        make_model(folder / "model")
        with serve("--model", str(folder / "model"), "--served-model-name", "noise",
                   "--kv-cache-memory-bytes", "200000000") as server:
            proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
            proxy.upstream, proxy.steer, proxy.seen = server.http, steer, []
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{proxy.server_address[1]}"
            home = str(folder / "home")
            settings = {"HOME": home, "CODEX_HOME": home, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
            settings |= {name: value.format(url=url) for name, value in environment.items()}
            done = subprocess.run([part.format(url=url) for part in command], cwd=folder / "work",
                                  env={**os.environ, **settings}, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, timeout=300)
            proxy.shutdown()
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:], proxy.seen)
    assert all(status == 200 for method, _, status in proxy.seen if method == "POST"), proxy.seen
    return lines, proxy.seen


def check_codex():
    turns = []

    def steer(path, body):
        if path.endswith("/responses"):
            turns.append(body["input"])
            if len(turns) == 1:
                body["tool_choice"] = {"type": "function", "name": "get_goal"}
            else:
                schema = {"type": "json_schema", "name": "end", "schema": {"enum": ["Done."]}}
                body |= {"tool_choice": "none", "text": {"format": schema}}
        return body

    command = [f"{sys.argv[2]}/codex", "exec", "--skip-git-repo-check", "--json", "-m", "noise",
               "-c", "model_provider=\"quire\"",
               "-c", "model_providers.quire={{name=\"quire\",base_url=\"{url}/v1\",wire_api=\"responses\"}}", "Say hi."]
    lines, _ = turn(steer, command, {})
    kinds = [line["type"] for line in lines]
    assert "turn.completed" in kinds and "turn.failed" not in kinds, lines
    items = [line["item"] for line in lines if line["type"] == "item.completed"]
    assert items[-1]["type"] == "agent_message" and "Done." in items[-1]["text"], items
    # The call and what came of it were sent back.
    sent_back = [item["type"] for item in turns[-1]]
    assert len(turns) == 2 and {"function_call", "function_call_output"} <= set(sent_back), sent_back


def check_claude_code():
    turns = []

    def steer(path, body):
        if path.startswith("/v1/messages") and "count_tokens" not in path:
            if any(tool["name"] == "TaskList" for tool in body.get("tools", [])):
                turns.append(body["messages"])
                if len(turns) == 1:
                    body["tool_choice"] = {"type": "tool", "name": "TaskList"}
                    return body
            body["stop_sequences"] = ["a", "e", "i", " "]
        return body

    command = [f"{sys.argv[2]}/claude", "-p", "Say hi.", "--model", "noise", "--output-format", "stream-json",
               "--verbose"]
    environment = {"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_AUTH_TOKEN": "none", "ANTHROPIC_SMALL_FAST_MODEL": "noise",
                   "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    lines, _ = turn(steer, command, environment)
    result = lines[-1]
    assert result["type"] == "result" and not result["is_error"] and result["num_turns"] == 2, result
    blocks = [block["type"] for line in lines if line["type"] in ("assistant", "user")
              for block in line["message"]["content"] if isinstance(block, dict)]
    assert "tool_use" in blocks and "tool_result" in blocks, lines
    assert any(block["type"] == "tool_result" for message in turns[-1]
               for block in message["content"] if isinstance(block, dict)), turns[-1]


run_checks(sys.modules[__name__])
