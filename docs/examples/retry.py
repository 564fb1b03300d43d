"""Errors, and a retry that is never charged twice.

One id for one request, however often it is sent; what an error carries says
whether sending it again can help.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc

SECRET = (("authorization", f"Bearer {os.environ['TOLLBOOK_SECRET']}"),)
TRIES = 5


def prompt(
    request_id: str, token_ids: list[int], model: str = "tiny"
) -> inference_pb2.GenerationSpec:
    return inference_pb2.GenerationSpec(
        request_id=request_id,
        model=model,
        tokens=inference_pb2.TokenPrompt(token_ids=token_ids),
        sampling=inference_pb2.SamplingParams(max_tokens=16, ignore_eos=True),
    )


def usage_of(error: Any) -> inference_pb2.UsageSummary | None:
    """What a failed request used; None when nothing ran."""
    for name, value in error.trailing_metadata() or ():
        if name == "tollbook-usage-bin":
            return inference_pb2.UsageSummary.FromString(value)
    return None


def explain(error: Any) -> tuple[str, float]:
    """(stable reason, seconds to wait before trying again) of an error; "" when it has none."""
    reason, pause_s = "", 0.5
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            pause_s = retry.retry_delay.ToMilliseconds() / 1000
    return reason, pause_s


def generate(
    stub: inference_pb2_grpc.InferenceServiceStub, spec: inference_pb2.GenerationSpec
) -> inference_pb2.GenerateOnceResponse:
    """Ask until there is an answer. The id stays the same, so the charge is one."""
    for attempt in range(1, TRIES + 1):
        try:
            return stub.GenerateOnce(
                inference_pb2.GenerateOnceRequest(spec=spec), metadata=SECRET, timeout=60
            )
        except grpc.RpcError as error:
            # With its usage the request is settled: the same id would give the same end again.
            settled = usage_of(error) is not None
            away = error.code() is grpc.StatusCode.UNAVAILABLE
            if settled or not away or attempt == TRIES:
                raise
            time.sleep(explain(error)[1])
    raise AssertionError("the last try returns or raises")


def main() -> None:
    with grpc.insecure_channel(os.environ["TOLLBOOK_INFERENCE_ADDRESS"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request_id = f"retry-{uuid.uuid4().hex}"
        first = generate(stub, prompt(request_id, [20, 21, 22]))
        again = generate(stub, prompt(request_id, [20, 21, 22]))
        same = list(first.choices[0].token_ids) == list(again.choices[0].token_ids)
        print(f"sent twice: the same answer: {same}, replayed: {again.replayed}")
        for spec in (
            prompt(request_id, [23]),
            prompt("", [20], model="no-such-model"),
            prompt("", [20] * 5_000),
            prompt("", []),
        ):
            try:
                generate(stub, spec)
            except grpc.RpcError as error:
                print(f"{error.code().name} {explain(error)[0]}: {error.details()}")


if __name__ == "__main__":
    main()
