"""A call inside a trace of the caller's own: W3C `traceparent` in the metadata.

Prints the trace id, under which every span of this request is found, up to the
posting of its charge.
"""

from __future__ import annotations

import os
import secrets

import grpc

from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc


def main() -> None:
    # An OpenTelemetry client makes this header itself: opentelemetry.propagate.inject.
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    metadata = (
        ("authorization", f"Bearer {os.environ['TOLLBOOK_SECRET']}"),
        ("traceparent", f"00-{trace_id}-{span_id}-01"),
    )
    spec = inference_pb2.GenerationSpec(
        model="tiny",
        tokens=inference_pb2.TokenPrompt(token_ids=range(20, 40)),
        sampling=inference_pb2.SamplingParams(max_tokens=8, ignore_eos=True),
    )
    with grpc.insecure_channel(os.environ["TOLLBOOK_INFERENCE_ADDRESS"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateOnceRequest(spec=spec)
        answer = stub.GenerateOnce(request, metadata=metadata, timeout=60)
    print(f"request {answer.request_id}")
    print(f"trace {trace_id} span {span_id}")


if __name__ == "__main__":
    main()
