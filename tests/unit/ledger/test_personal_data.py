"""The contract of usage records has no place for a prompt or an output: ids, digests and counts.

Every text and every bytes field is named here with what it holds. One that is
new fails this test until somebody has argued for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tollbook.usage.v1 import usage_pb2

# Field -> what it is. Ids are chosen by us or by the operator, names are of models, adapters,
# tiers, regions and tools; a digest does not give back what it was made of.
HELD = {
    "UsageRecord.stream_id": "id",
    "UsageRecord.trace_id": "id",
    "UsageRecord.span_id": "id",
    "UsageRecord.usage_event": "a UsageEvent",
    "UsageEvent.event_id": "id",
    "UsageEvent.account_id": "id",
    "UsageEvent.project_id": "id",
    "UsageEvent.key_id": "id",
    "UsageEvent.hold_id": "id",
    "UsageEvent.served_model": "name",
    "UsageEvent.base_model": "name",
    "UsageEvent.adapter": "name",
    "UsageEvent.service_tier": "name",
    "UsageEvent.region": "name",
    "UsageEvent.output_digest": "digest",
    "UsageEvent.engine_id": "id",
    "Quantity.attribute": "name",
    "Provenance.model_digest": "digest",
    "Provenance.adapter_digest": "digest",
    "Provenance.tokenizer_digest": "digest",
    "Provenance.template_digest": "digest",
    "EngineReading.engine_id": "id",
}


def messages(of: Descriptor) -> Iterator[Descriptor]:
    """A message and all that it is made of."""
    yield of
    for field in of.fields:
        if field.message_type is not None and field.message_type.file == of.file:
            yield from messages(field.message_type)


def test_no_field_can_hold_a_text_that_nobody_argued_for() -> None:
    roots = (usage_pb2.UsageRecord.DESCRIPTOR, usage_pb2.UsageEvent.DESCRIPTOR)
    found = {
        f"{message.name}.{field.name}"
        for root in roots
        for message in messages(root)
        for field in message.fields
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    }
    assert found == HELD.keys()
