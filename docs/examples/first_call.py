"""A first call: one whole answer, then a streamed one.

eval "$(.venv/bin/tollbook env)" && export TOLLBOOK_SECRET=tb-...
.venv/bin/python docs/examples/first_call.py
"""

from __future__ import annotations

import os

import grpc

from tollbook.inference.v1 import inference_pb2, inference_pb2_grpc

SECRET = (("authorization", f"Bearer {os.environ['TOLLBOOK_SECRET']}"),)


def spec(text: str, max_tokens: int) -> inference_pb2.GenerationSpec:
    return inference_pb2.GenerationSpec(
        model="tiny",
        chat=inference_pb2.ChatPrompt(
            messages=[inference_pb2.ChatMessage(role="user", content=text)]
        ),
        sampling=inference_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.8),
    )


def once(stub: inference_pb2_grpc.InferenceServiceStub) -> None:
    answer = stub.GenerateOnce(
        inference_pb2.GenerateOnceRequest(spec=spec("What is a ledger?", 24)),
        metadata=SECRET,
        timeout=60,
    )
    used = answer.usage
    print(f"{answer.request_id}: {answer.choices[0].text!r}")
    print(f"  {used.prompt_tokens} prompt tokens, {used.cached_tokens} of them cached")
    print(f"  {used.output_tokens} output tokens, charged to {used.account_id} in {used.log}")


def streamed(stub: inference_pb2_grpc.InferenceServiceStub) -> None:
    request = inference_pb2.GenerateRequest(spec=spec("What is a checkpoint?", 24))
    for message in stub.Generate(request, metadata=SECRET, timeout=60):
        match message.WhichOneof("event"):
            case "started":
                print(f"{message.started.request_id}: ", end="")
            case "delta":
                print(message.delta.text, end="", flush=True)
            case "usage":
                # The last message, and the bill: what does not end with it is not whole.
                print(f"\n  {message.usage.output_tokens} output tokens")


def main() -> None:
    with grpc.insecure_channel(os.environ["TOLLBOOK_INFERENCE_ADDRESS"]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        listed = stub.ListModels(inference_pb2.ListModelsRequest(), metadata=SECRET, timeout=10)
        print("served:", ", ".join(model.name for model in listed.models))
        once(stub)
        streamed(stub)


if __name__ == "__main__":
    main()
