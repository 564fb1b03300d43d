"""The record of a signer's new key, in and out of the control log's bytes."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from kernel.clock import timestamp_of
from kernel.keychain import Rotation
from kernel.leaf import Leaf
from tollbook.pricing.v1 import control_pb2

_CHANGE: Final = "signer_key_changed"
_TAG: Final = b"\xf2\x01"
"""How the field of such a change begins; a record without these bytes need not be parsed."""


def rotation_of(leaf: Leaf) -> Rotation | None:
    """The rotation that a control record speaks of; None when it is another record."""
    if leaf.aside or _TAG not in leaf.value:
        return None
    try:
        record = control_pb2.ControlRecord.FromString(leaf.value)
    except DecodeError:
        return None
    if record.WhichOneof("change") != _CHANGE:
        return None
    changed = record.signer_key_changed
    return Rotation(
        changed.origin,
        changed.old_key,
        changed.new_key,
        changed.old_signature,
        changed.new_signature,
    )


def record_of(rotation: Rotation, actor: str, now_us: int) -> bytes:
    """The control record's bytes."""
    record = control_pb2.ControlRecord(
        recorded_time=timestamp_of(now_us),
        actor=actor,
        signer_key_changed=control_pb2.SignerKeyChanged(
            origin=rotation.origin,
            old_key=rotation.old,
            new_key=rotation.new,
            old_signature=rotation.old_signature,
            new_signature=rotation.new_signature,
        ),
    )
    return record.SerializeToString(deterministic=True)
