"""Embeds the same texts with a running Quire and with sentence-transformers, turn about, and prints medians.

    taskset -c 1 quire serve FOLDER &
    OMP_NUM_THREADS=1 taskset -c 1 python compare.py FOLDER http://HOST:PORT PID_OF_QUIRE [ROUNDS]

Processor time is that of Quire's process, or of this one where it computes: unlike the time on the clock, it does not
depend on what else the machine does.
"""

import base64
import http.client
import json
import os
import random
import statistics
import sys
import threading
import time
import urllib.parse

import numpy
import sentence_transformers
import torch

SEED, TEXTS, BATCH, CLIENTS, ALONE = 7, 128, 32, 4, 16
WORDS = (
    "the a of in and to was is for on that by with from at this it as are be or an which not have has were their one "
    "first city river during world company system water people state new music between government university team"
).split()


def texts():
    """Of 4 to 60 words, most of them short."""
    drawn = random.Random(SEED)
    length = lambda: 4 + int(56 * drawn.random() ** 2)
    return [" ".join(drawn.choice(WORDS) for _ in range(length())) for _ in range(TEXTS)]


class Quire:
    def __init__(self, url):
        self.address = urllib.parse.urlparse(url).netloc

    def batches(self, all_texts, size, vectors=None):
        connection = http.client.HTTPConnection(self.address, timeout=600)
        for start in range(0, len(all_texts), size):
            body = {"input": all_texts[start : start + size], "encoding_format": "base64"}
            connection.request("POST", "/v1/embeddings", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, data
            if vectors is not None:
                items = json.loads(data)["data"]
                vectors += [numpy.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in items]

    def clients(self, all_texts, size):
        shares = [all_texts[i::CLIENTS] for i in range(CLIENTS)]
        threads = [threading.Thread(target=self.batches, args=(share, size)) for share in shares]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(work, pid):
    """Seconds on the clock, and of the processor."""
    start, cpu = time.perf_counter(), cpu_seconds(pid)
    work()
    return time.perf_counter() - start, cpu_seconds(pid) - cpu


def main():
    folder, url, pid = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    quire, all_texts = Quire(url), texts()
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    encode = lambda some, size: model.encode(some, batch_size=size, show_progress_bar=False)
    vectors = []
    quire.batches(all_texts, BATCH, vectors)
    tokens = sum(len(model.tokenizer(text)["input_ids"]) for text in all_texts)
    difference = float(numpy.abs(encode(all_texts, BATCH) - numpy.stack(vectors)).max())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; sentence-transformers {sentence_transformers.__version__}")
    print(f"{TEXTS} texts, {tokens} tokens, seed {SEED}; largest difference of a number: {difference:.2e}", flush=True)
    ways = {
        f"quire, 1 client, 1 text a request ({ALONE} texts)": (ALONE, lambda: quire.batches(all_texts[:ALONE], 1)),
        f"sentence-transformers, 1 text a call ({ALONE} texts)": (ALONE, lambda: [encode([one], 1) for one in all_texts[:ALONE]]),
        f"quire, 1 client, {BATCH} texts a request": (TEXTS, lambda: quire.batches(all_texts, BATCH)),
        f"quire, {CLIENTS} clients, {BATCH} texts a request": (TEXTS, lambda: quire.clients(all_texts, BATCH)),
        f"quire, {CLIENTS} clients, 1 text a request": (TEXTS, lambda: quire.clients(all_texts, 1)),
        f"sentence-transformers, one call, batches of {BATCH}": (TEXTS, lambda: encode(all_texts, BATCH)),
    }
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (_, work) in ways.items():
            seconds[name].append(timed(work, pid if name.startswith("quire") else os.getpid()))
            print(f"{name}: {seconds[name][-1]}", flush=True)
    print("load average:", os.getloadavg())
    for name, (count, _) in ways.items():
        clock, cpu = (statistics.median(column) for column in zip(*seconds[name]))
        print(f"{name}: {count / clock:.0f} texts/s, {1000 * cpu / count:.2f} ms of processor time a text (medians)")


main()
