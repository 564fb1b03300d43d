"""A call that its caller cancels, and what is billed for it.

The same request again, under the same id, is not generated again: it tells how
the first one ended.
"""

from __future__ import annotations

import os
import time
import uuid

import grpc

from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc
from tollbook.usage.v1 import usage_pb2

SECRET = (("authorization", f"Bearer {os.environ['TOLLBOOK_SECRET']}"),)


def cancelled(
    stub: inference_pb2_grpc.InferenceServiceStub, spec: inference_pb2.GenerationSpec
) -> int:
    """Read three pieces and leave; gives the tokens read."""
    call = stub.Generate(inference_pb2.GenerateRequest(spec=spec), metadata=SECRET, timeout=60)
    seen = pieces = 0
    for message in call:
        if message.WhichOneof("event") == "delta":
            seen += len(message.delta.token_ids)
            pieces += 1
            if pieces == 3:
                call.cancel()
                break
    return seen


def ended(
    stub: inference_pb2_grpc.InferenceServiceStub, spec: inference_pb2.GenerationSpec
) -> inference_pb2.GenerateOnceResponse:
    """How the request ended. In the moment of its ending the service says: ask again."""
    for _ in range(50):
        try:
            return stub.GenerateOnce(
                inference_pb2.GenerateOnceRequest(spec=spec), metadata=SECRET, timeout=60
            )
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(0.2)
    raise SystemExit("the service is not there")


def main() -> None:
    spec = inference_pb2.GenerationSpec(
        request_id=f"cancel-{uuid.uuid4().hex}",
        model="tiny",
        tokens=inference_pb2.TokenPrompt(token_ids=range(20, 60)),
        sampling=inference_pb2.SamplingParams(max_tokens=3_000, ignore_eos=True, seed=7),
    )
    with grpc.insecure_channel(os.environ["TOLLBOOK_INFERENCE_ADDRESS"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        seen = cancelled(stub, spec)
        end = ended(stub, spec)
    (out,) = (leaf for leaf in end.usage.quantities if leaf.direction == usage_pb2.DIRECTION_OUT)
    print(f"{end.request_id}: {usage_pb2.Outcome.Name(end.usage.outcome)}")
    print(f"  asked for {spec.sampling.max_tokens} tokens, read {seen} and left")
    print(f"  generated {out.amount}, of these never delivered {out.undelivered_amount}")


if __name__ == "__main__":
    main()
