"""Kafka's Fetch and Metadata in the versions that speak of topics by their own id.

aiokafka's consumer does neither: it cannot tell a topic from another one made
later under the same name, and wraps every record in Python. So the two
requests are declared here and sent over aiokafka's connections, and its
compiled decoder reads the record batches.

Source: the message formats of Apache Kafka, FetchRequest 13, FetchResponse 13,
MetadataRequest 12, MetadataResponse 12.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Final

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

ZERO_ID: Final = bytes(16)


class Uuid:
    """Sixteen raw bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """Write it."""
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        """Read it."""
        return data.read(16)

    @classmethod
    def repr(cls, value: bytes) -> str:
        """Show it."""
        return value.hex()


_TAGS: Final = ("tags", TaggedFields)


class FetchResponseV13(Response):  # type: ignore[misc]
    """Record batches of partitions, named by topic id."""

    API_KEY = 1
    API_VERSION = 13
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("high_watermark", Int64),
                        ("last_stable_offset", Int64),
                        ("log_start_offset", Int64),
                        (
                            "aborted_transactions",
                            CompactArray(("producer_id", Int64), ("first_offset", Int64), _TAGS),
                        ),
                        ("preferred_read_replica", Int32),
                        ("records", CompactBytes),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class FetchRequestV13(RequestStruct):  # type: ignore[misc]
    """Asks for record batches from an offset on."""

    API_KEY = 1
    API_VERSION = 13
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = FetchResponseV13
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_ms", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("fetch_offset", Int64),
                        ("last_fetched_epoch", Int32),
                        ("log_start_offset", Int64),
                        ("partition_max_bytes", Int32),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        (
            "forgotten_topics",
            CompactArray(("topic_id", Uuid), ("partitions", CompactArray(Int32)), _TAGS),
        ),
        ("rack_id", CompactString("utf-8")),
        _TAGS,
    )


class Fetch(Request[FetchRequestV13]):  # type: ignore[misc]
    """Fetch one partition of one topic, as a consumer without a session."""

    API_KEY = 1

    def __init__(
        self, topic_id: bytes, partition: int, offset: int, max_wait_ms: int, max_bytes: int
    ) -> None:
        self._topic_id = topic_id
        self._partition = partition
        self._offset = offset
        self._max_wait_ms = max_wait_ms
        self._max_bytes = max_bytes

    def build(self, request_struct_class: Any) -> Any:
        """Give the struct to send."""
        partition: tuple[Any, ...] = (
            self._partition,
            -1,
            self._offset,
            -1,
            -1,
            self._max_bytes,
            {},
        )
        return request_struct_class(
            -1,
            self._max_wait_ms,
            1,
            self._max_bytes,
            0,  # read uncommitted: what a producer sent counts, whatever becomes of its transaction
            0,
            -1,
            [(self._topic_id, [partition], {})],
            [],
            "",
            {},
        )


class MetadataResponseV12(Response):  # type: ignore[misc]
    """Brokers, and topics with their ids and leaders."""

    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                _TAGS,
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", Int32),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class MetadataRequestV12(RequestStruct):  # type: ignore[misc]
    """Asks for topics."""

    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponseV12
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("name", CompactString("utf-8")), _TAGS),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        _TAGS,
    )


class Metadata(Request[MetadataRequestV12]):  # type: ignore[misc]
    """Ask for one topic by name."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: Any) -> Any:
        """Give the struct to send."""
        return request_struct_class([(ZERO_ID, self._topic, {})], False, False, {})
