"""Check a rate card over gRPC and print where its problems are: CARD.yaml as the argument.

Needs TOLLBOOK_PRICING_ADDRESS, as `tollbook env` prints it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tollbook.pricing.v1 import pricing_pb2, pricing_pb2_grpc

with grpc.insecure_channel(os.environ["TOLLBOOK_PRICING_ADDRESS"]) as channel:
    control = pricing_pb2_grpc.ControlServiceStub(channel)
    card = Path(sys.argv[1]).read_text()
    request = pricing_pb2.PublishRateCardRequest(yaml=card, validate_only=True)
    try:
        answer = control.PublishRateCard(request, timeout=10)
        print(f"good: it would be version {answer.card.version} of {answer.card.card_id}")
    except grpc.RpcError as error:
        status = rpc_status.from_call(cast(grpc.Call, error))
        for detail in status.details if status else ():
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(bad):
                for problem in bad.field_violations:
                    print(f"{problem.field}: {problem.description}")
