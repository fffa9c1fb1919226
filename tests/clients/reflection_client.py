"""A gRPC client that has no generated code and learns everything from server reflection:
`reflection_client.py QUIRE_BINARY`."""

import hashlib
import io
import json
import pathlib
import sys
import zipfile

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from server import run_checks, serve

GOLDEN = pathlib.Path(__file__).parents[2] / "assets" / "pebble" / "golden.json"
#: Two best this near: either may win, since implementations add in different order.
NEAR = 0.02


class Reflected:
    """Methods of a server by their full names, with requests given as keyword arguments."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def services(self):
        return set(self.database.get_services())

    def call(self, service, method, /, metadata=None, **fields):
        descriptor = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = message_factory.GetMessageClass(descriptor.input_type)(**fields)
        answer = message_factory.GetMessageClass(descriptor.output_type)
        connect = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        path = f"/{service}/{method}"
        send = connect(path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)
        return send(request, timeout=60, metadata=metadata)


def refused(call):
    """The status code of a call that must fail."""
    try:
        answer = call()
        for _ in answer if hasattr(answer, "__next__") else []:
            pass
    except grpc.RpcError as error:
        return error.code()
    raise AssertionError("the call succeeded")


def check_services():
    with serve() as server:
        services = Reflected(server.grpc).services()
        assert {"vllm.Inference", "vllm.Control", "grpc.health.v1.Health"} <= services, services
        assert {"vllm.grpc.engine.VllmEngine", "openengine.v1.Inference", "openengine.v1.Control"} <= services, services


def check_generate():
    with serve() as server:
        api = Reflected(server.grpc)
        fields = {
            "text": "Once upon a time",
            "stopping": {"max_new_tokens": 12, "ignore_eos": True},
            "response": {"output_token_ids": True, "prompt_token_ids": True},
        }
        whole = api.call("vllm.Inference", "Generate", **fields)
        assert whole.outputs.text and len(whole.outputs.token_ids) == 12
        assert whole.outputs.finish_info.num_output_tokens == 12
        messages = list(api.call("vllm.Inference", "GenerateStream", **fields))
        assert messages[0].HasField("prompt_info") and not messages[0].HasField("outputs")
        assert "".join(m.outputs.text for m in messages) == whole.outputs.text
        assert [m.outputs.HasField("finish_info") for m in messages[1:]] == [False] * (len(messages) - 2) + [True]
        by_ids = api.call("vllm.Inference", "Generate", token_ids={"ids": whole.prompt_info.token_ids},
                          stopping=fields["stopping"], response=fields["response"])
        assert by_ids.outputs == whole.outputs


def check_dialects_agree():
    """The same prompt, greedy, in the three dialects."""
    with serve() as server:
        api = Reflected(server.grpc)
        whole = api.call("vllm.Inference", "Generate", text="Once upon a time", stopping={"max_new_tokens": 12},
                         response={"output_token_ids": True, "prompt_token_ids": True})
        prompt, wanted = list(whole.prompt_info.token_ids), list(whole.outputs.token_ids)

        for stream in [False, True]:
            messages = list(api.call("vllm.grpc.engine.VllmEngine", "Generate", stream=stream,
                                     tokenized={"input_ids": prompt}, sampling_params={"temperature": 0, "max_tokens": 12}))
            assert list(messages[-1].complete.output_ids) == wanted, messages[-1]
            chunks = [token for m in messages if m.HasField("chunk") for token in m.chunk.token_ids]
            assert chunks == (wanted if stream else []), chunks
        chunks = list(api.call("vllm.grpc.engine.VllmEngine", "GetTokenizer"))
        archive = b"".join(chunk.data for chunk in chunks)
        assert hashlib.sha256(archive).hexdigest() == chunks[-1].sha256
        assert zipfile.ZipFile(io.BytesIO(archive)).testzip() is None
        assert "tokenizer.json" in zipfile.ZipFile(io.BytesIO(archive)).namelist()

        events = list(api.call("openengine.v1.Inference", "Generate", prompt="Once upon a time",
                               sampling={"temperature": 0}, stopping={"max_tokens": 12}))
        tokens = [token for event in events if event.HasField("token") for token in event.token.tokens]
        assert [token.token_id for token in tokens] == wanted
        assert "".join(event.token.text for event in events) == whole.outputs.text
        assert events[-1].HasField("finished") and events[-1].usage.completion_tokens == len(wanted)


def check_golden():
    """Greedy continuations, token for token; see the README of the demo model."""
    cases = json.loads(GOLDEN.read_text())["cases"]
    with serve() as server:
        api = Reflected(server.grpc)
        compared = 0
        for case in cases:
            answer = api.call("vllm.Inference", "Generate", token_ids={"ids": case["prompt_ids"]},
                              stopping={"max_new_tokens": len(case["output_ids"])}, response={"output_token_ids": True})
            for got, wanted, top in zip(answer.outputs.token_ids, case["output_ids"], case["top5"], strict=False):
                if got != wanted:
                    assert top[0][1] - top[1][1] <= NEAR, f"{case['prompt']!r}: {got} instead of {wanted}"
                    break
                compared += 1
        print(f"compared {compared} tokens of {len(cases)} cases")
        assert compared > 1400


def check_refusals():
    with serve() as server:
        api = Reflected(server.grpc)
        for code, fields in [
            (grpc.StatusCode.INVALID_ARGUMENT, {}),
            (grpc.StatusCode.INVALID_ARGUMENT, {"text": "a", "temperature": 3}),
            (grpc.StatusCode.INVALID_ARGUMENT, {"token_ids": {"ids": [100000]}}),
            (grpc.StatusCode.NOT_FOUND, {"text": "a", "model": "gpt-4"}),
        ]:
            for method in ["Generate", "GenerateStream"]:
                got = refused(lambda: api.call("vllm.Inference", method, **fields))
                assert got == code, f"{method} {fields}: {got}"
    with serve("--api-key", "the-key") as server:
        with_key = [("authorization", "Bearer the-key")]
        channel = grpc.insecure_channel(server.grpc)
        raw = channel.unary_unary("/vllm.Inference/Generate")
        assert refused(lambda: raw(b"\x1a\x01a", timeout=10)) == grpc.StatusCode.UNAUTHENTICATED
        # A prompt, and a limit of four tokens.
        assert raw(b"\x1a\x01a\x42\x02\x08\x04", timeout=10, metadata=with_key)


def check_control_and_health():
    with serve() as server:
        api = Reflected(server.grpc)
        info = api.call("vllm.Control", "GetServerInfo")
        assert info.api_version == "vllm" and info.max_model_len == 2048
        assert api.call("vllm.Control", "GetModelInfo").served_model_name == "pebble"
        for service in ["", "vllm.Inference", "vllm.Control", "vllm.grpc.engine.VllmEngine", "openengine.v1.Inference"]:
            assert api.call("grpc.health.v1.Health", "Check", service=service).status == 1
        watch = api.call("grpc.health.v1.Health", "Watch", service="")
        assert next(watch).status == 1
        stream = api.call("vllm.Inference", "GenerateStream", text="Once", request_id="mine",
                          stopping={"max_new_tokens": 2000, "ignore_eos": True})
        next(stream), next(stream)
        api.call("vllm.Control", "Abort", request_ids=["mine"])
        assert list(stream)[-1].outputs.finish_info.finish_reason == 3
        # On the way down, health says so to whoever watches.
        held = api.call("vllm.Inference", "GenerateStream", text="Once",
                        stopping={"max_new_tokens": 1000, "ignore_eos": True})
        next(held)
        server.process.terminate()
        assert next(watch).status == 2
        assert list(held)[-1].outputs.HasField("finish_info")
        assert server.process.wait(timeout=10) == 0


run_checks(sys.modules[__name__])
