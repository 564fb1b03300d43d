"""The Python client for callers of inference: `AsyncClient` on an event loop, `Client` without one.

Both send one logical request as often as it takes under one id, so that it is charged once; both
give the shapes of shapes.py and fail with the errors of failures.py. Knows the contract and the
kernel, and no service.
"""

from __future__ import annotations

from tollbook.client.asynchronous import AsyncClient, AsyncGeneration
from tollbook.client.blocking import Client, Generation
from tollbook.client.failures import (
    AnswerChanged,
    CallError,
    Cancelled,
    DeadlinePassed,
    Failure,
    InvalidRequest,
    OverLimit,
    RequestIdReused,
    ServiceFailed,
    Unauthenticated,
    Unavailable,
    UnknownModel,
    Violation,
)
from tollbook.client.retries import Retries
from tollbook.client.shapes import (
    Answer,
    Choice,
    Delta,
    Embeddings,
    Finished,
    Message,
    Model,
    Piece,
    Prompt,
    Quantity,
    Sampling,
    Started,
    TokenIds,
    Usage,
)

__all__ = [
    "Answer",
    "AnswerChanged",
    "AsyncClient",
    "AsyncGeneration",
    "CallError",
    "Cancelled",
    "Choice",
    "Client",
    "DeadlinePassed",
    "Delta",
    "Embeddings",
    "Failure",
    "Finished",
    "Generation",
    "InvalidRequest",
    "Message",
    "Model",
    "OverLimit",
    "Piece",
    "Prompt",
    "Quantity",
    "RequestIdReused",
    "Retries",
    "Sampling",
    "ServiceFailed",
    "Started",
    "TokenIds",
    "Unauthenticated",
    "Unavailable",
    "UnknownModel",
    "Usage",
    "Violation",
]
