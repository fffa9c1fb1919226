"""A small random model on the GPU against transformers on the CPU in float32: greedy answers of `quire serve` are
scored by the model itself, all their tokens at once.

What is compared is each token's log-probability, and whether the token is the best one by transformers too, where
the best two are not so close that rounding decides. Made-up weights would make all tokens about equally likely; the
head is scaled up, so that they differ.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import torch
import transformers

# Largest difference of a log-probability, by what the server computes with. That of float32 is what other orders of
# sums do in a few layers; bfloat16 has 8 bits.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}
PROMPT_LENS = [1, 5, 16, 17, 100, 300]
VOCAB_SIZE = 2048


def make_model(kind, small, folder, tokenizer):
    shape = dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=64 if small else 1024,
        intermediate_size=128 if small else 2816,
        num_hidden_layers=2 if small else 4,
        num_attention_heads=4 if small else 16,
        num_key_value_heads=2 if small else 4,
        head_dim=32 if small else 128,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[kind](**shape)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(8.0)
        for name, weight in model.named_parameters():
            # Norms of ones alone would hide one that is left out.
            if name.endswith("norm.weight"):
                weight.add_(torch.randn_like(weight) * 0.1)
            # Both sides then compute with the same weights, whatever the server's type.
            weight.copy_(weight.to(torch.bfloat16).float())
    model.save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(os.path.join(tokenizer, name), folder)
    return model.eval()


@contextlib.contextmanager
def server(quire, folder, dtype, small):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [quire, "serve", folder, "--device", "cuda", "--dtype", dtype, "--host", "127.0.0.1"]
    words += ["--port", str(port), "--no-grpc", "--kv-cache-memory-bytes", "256MiB", "--max-num-seqs", "16"]
    # Fewer tokens than the prompts have together, so that some are computed in pieces.
    words += ["--max-num-batched-tokens", "32" if small else "256"]
    process = subprocess.Popen(words, stderr=sys.stderr)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {' '.join(words)}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def complete(port, prompts, count):
    """All prompts in one request, so that they share steps; ids and log-probabilities of each answer."""
    body = dict(prompt=prompts, max_tokens=count, temperature=0, logprobs=1, ignore_eos=True)
    body.update(return_token_ids=True)
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request) as reply:
        choices = sorted(json.load(reply)["choices"], key=lambda choice: choice["index"])
    return [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]


def compare(model, prompts, answers, tolerance):
    worst, wrong, compared = 0.0, 0, 0
    for prompt, (ids, logprobs) in zip(prompts, answers):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits.double(), dim=-1)
        for row, token, logprob in zip(expected, ids, logprobs):
            difference = abs(row[token].item() - logprob)
            worst = max(worst, difference)
            wrong += row.max().item() - row[token].item() > 2 * tolerance or not difference <= tolerance
            compared += 1
    return worst, wrong, compared


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quire", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    rng = random.Random(1)
    prompt_lens = [length for length in PROMPT_LENS if length < 100 or not args.small]
    prompts = [[rng.randrange(10, VOCAB_SIZE) for _ in range(length)] for length in prompt_lens]
    count = 8 if args.small else 64
    failed = False
    print("model   type        tokens   wrong   largest difference of a log-probability")
    for kind in ["llama", "qwen3"]:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            model = make_model(kind, args.small, folder, args.tokenizer)
            for dtype, tolerance in TOLERANCES.items():
                with server(args.quire, folder, dtype, args.small) as port:
                    answers = complete(port, prompts, count)
                worst, wrong, compared = compare(model, prompts, answers, tolerance)
                failed |= wrong > 0 or compared != count * len(prompts)
                print(f"{kind:<7} {dtype:<9} {compared:>8} {wrong:>7}   {worst:.2e} (allowed {tolerance})", flush=True)
                line = dict(piece="reference", model=kind, dtype=dtype, tokens=compared, wrong=wrong)
                line.update(largest_difference=worst, tolerance=tolerance)
                with open(args.results, "a") as results:
                    print(json.dumps(line), file=results)
    sys.exit(failed)


main()
