"""Bytes of the spool's records, and frames that tell a whole record from a torn one.

A segment is MAGIC, then frames: u32 length of the payload, u32 CRC-32 of the
length and the payload, payload. A payload is one byte of kind and the fields in
order: u32, u64, i64 little-endian; byte strings, texts (UTF-8) and lists with
their u32 count before them. A length of zero ends the segment: the rest was
allocated and never written.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from inference.domain import records
from inference.domain.records import Record

MAGIC: Final = b"TBSPOOL1"
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
FRAME_BYTES: Final = 8

_U32: Final = struct.Struct("<I")
_U32_MAX: Final = 0xFFFF_FFFF
_U64: Final = struct.Struct("<Q")
_I64: Final = struct.Struct("<q")
_FRAME: Final = struct.Struct("<II")
_PROGRESS: Final = struct.Struct("<BQIIIIQI")
_ID_CODE: Final = next(code for code in "ILH" if array(code).itemsize == 4)


class Malformed(Exception):
    """A frame whose checksum holds and whose payload says nothing known: another version's."""


class _Writer:
    def __init__(self, kind: int) -> None:
        self.buffer = bytearray((kind,))

    def u32(self, value: int) -> None:
        self.buffer += _U32.pack(value)

    def u64(self, value: int) -> None:
        self.buffer += _U64.pack(value)

    def i64(self, value: int) -> None:
        self.buffer += _I64.pack(value)

    def blob(self, value: bytes) -> None:
        self.buffer += _U32.pack(len(value))
        self.buffer += value

    def text(self, value: str) -> None:
        # A tokenizer may hand out lone surrogates; they must come back as they were.
        self.blob(value.encode("utf-8", "surrogatepass"))

    def ids(self, value: Sequence[int]) -> None:
        self.buffer += _U32.pack(len(value))
        self.buffer += struct.pack(f"<{len(value)}I", *value)

    def flag(self, value: bool) -> None:
        self.byte(1 if value else 0)

    def byte(self, value: int) -> None:
        self.buffer.append(value)


class _Reader:
    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._at = 1

    def _take(self, length: int) -> memoryview:
        end = self._at + length
        if end > len(self._payload):
            raise Malformed("a record ends before its fields do")
        piece = self._payload[self._at : end]
        self._at = end
        return piece

    def u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def i64(self) -> int:
        return int(_I64.unpack(self._take(8))[0])

    def blob(self) -> bytes:
        return bytes(self._take(self.u32()))

    def text(self) -> str:
        return self.blob().decode("utf-8", "surrogatepass")

    def ids(self) -> array[int]:
        count = self.u32()
        return array(_ID_CODE, struct.unpack(f"<{count}I", self._take(4 * count)))

    def flag(self) -> bool:
        return bool(self.byte())

    def byte(self) -> int:
        return self._take(1)[0]

    def end(self) -> None:
        if self._at != len(self._payload):
            raise Malformed("a record goes on after its fields")


def encode(record: Record) -> bytes:
    """The record's frame."""
    if isinstance(record, records.Progress):
        payload = _progress(record)
    else:
        payload = bytes(_payload_of(record).buffer)
    length = _U32.pack(len(payload))
    return _FRAME.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


class Frame(NamedTuple):
    """A whole record and where its frame stands."""

    record: Record
    offset: int
    length: int


def scan(segment: memoryview) -> Iterator[Frame]:
    """Records of a segment's bytes (MAGIC included), up to the first that is not whole.

    The last frame's end is where the whole bytes end. Errors: Malformed.
    """
    at = len(MAGIC)
    if bytes(segment[:at]) != MAGIC:
        return
    while at + FRAME_BYTES <= len(segment):
        length, crc = _FRAME.unpack(segment[at : at + FRAME_BYTES])
        end = at + FRAME_BYTES + length
        if length == 0 or length > MAX_PAYLOAD_BYTES or end > len(segment):
            return
        payload = segment[at + FRAME_BYTES : end]
        if zlib.crc32(payload, zlib.crc32(_U32.pack(length))) != crc:
            return
        yield Frame(decode_payload(payload), at, end - at)
        at = end


def decode(frame: bytes) -> Record:
    """The record of one frame. Errors: Malformed (torn, or of another version)."""
    if len(frame) < FRAME_BYTES:
        raise Malformed("no frame")
    length, crc = _FRAME.unpack(frame[:FRAME_BYTES])
    payload = memoryview(frame)[FRAME_BYTES:]
    if length != len(payload) or zlib.crc32(payload, zlib.crc32(_U32.pack(length))) != crc:
        raise Malformed("a frame whose checksum does not hold")
    return decode_payload(payload)


def _outbound(writer: _Writer, value: records.Outbound) -> None:
    writer.u32(value.partition)
    writer.text(value.key)
    writer.text(value.stream_id)
    writer.u64(value.stream_seq)
    writer.blob(value.trace_id)
    writer.blob(value.span_id)
    writer.blob(value.value)
    writer.flag(value.closes)


def _read_outbound(reader: _Reader) -> records.Outbound:
    return records.Outbound(
        partition=reader.u32(),
        key=reader.text(),
        stream_id=reader.text(),
        stream_seq=reader.u64(),
        trace_id=reader.blob(),
        span_id=reader.blob(),
        value=reader.blob(),
        closes=reader.flag(),
    )


_FINAL: Final = 1
_INFERRED: Final = 2


def _count(writer: _Writer, value: records.EngineCount) -> None:
    writer.text(value.engine_id)
    writer.u64(value.generation_tokens)
    writer.u64(value.prompt_tokens)
    writer.u32(len(value.waste))
    for kind, tokens in sorted(value.waste.items()):
        writer.u32(kind)
        writer.u64(tokens)
    # One byte, as of spools that knew no inferred tokens: what follows it is told by a bit.
    writer.byte(_FINAL * value.final | _INFERRED * bool(value.inferred_tokens))
    if value.inferred_tokens:
        writer.u64(value.inferred_tokens)


def _read_count(reader: _Reader) -> records.EngineCount:
    engine_id, generation, prompt = reader.text(), reader.u64(), reader.u64()
    waste = {}
    for _ in range(reader.u32()):
        kind = reader.u32()
        waste[kind] = reader.u64()
    told = reader.byte()
    inferred = reader.u64() if told & _INFERRED else 0
    return records.EngineCount(engine_id, generation, prompt, waste, bool(told & _FINAL), inferred)


def _known(cached_tokens: int) -> int:
    """A figure that the engine had not given stands there as the largest number."""
    return -1 if cached_tokens == _U32_MAX else cached_tokens


def _progress(record: records.Progress) -> bytes:
    """A Progress payload in one go: there is one for each step of each request."""
    text = record.text.encode("utf-8", "surrogatepass")
    count = len(record.token_ids)
    return _PROGRESS.pack(
        3,
        record.serial,
        record.choice,
        record.total_tokens,
        record.delivered_tokens,
        record.cached_tokens & _U32_MAX,
        record.at_us,
        count,
    ) + struct.pack(f"<{count}II{len(text)}s", *record.token_ids, len(text), text)


def _payload_of(record: Record) -> _Writer:
    writer: _Writer
    match record:
        case records.Started():
            writer = _Writer(2)
            writer.u64(record.serial)
            writer.text(record.account_id)
            writer.text(record.request_id)
            writer.blob(record.body_digest)
            writer.blob(record.template)
            writer.blob(record.trace_id)
            writer.blob(record.span_id)
            writer.u32(record.prompt_tokens)
            writer.u32(record.choices)
        case records.Settled():
            writer = _Writer(5)
            writer.u64(record.serial)
            writer.text(record.account_id)
            writer.text(record.request_id)
            writer.blob(record.body_digest)
            writer.text(record.engine_id)
            writer.u64(record.output_tokens)
            writer.blob(record.event)
            writer.text(record.log)
            writer.u32(len(record.results))
            for result in record.results:
                writer.ids(result.token_ids)
                writer.text(result.text)
                writer.u32(result.finish_reason)
            _outbound(writer, record.outbound)
        case records.Acked():
            writer = _Writer(8)
            writer.text(record.stream_id)
            writer.u64(record.stream_seq)
        case records.Noted():
            writer = _Writer(6)
            _count(writer, record.count)
            writer.flag(record.outbound is not None)
            if record.outbound is not None:
                _outbound(writer, record.outbound)
        case records.Embedded():
            writer = _Writer(10)
            writer.u64(record.serial)
            writer.u64(record.tokens)
            writer.u64(record.at_us)
        case records.Withdrawn():
            writer = _Writer(4)
            writer.u64(record.serial)
        case records.Closed():
            writer = _Writer(7)
            _outbound(writer, record.outbound)
        case records.Booted():
            writer = _Writer(1)
            writer.text(record.engine_id)
        case records.Snapshot():
            writer = _Writer(9)
            writer.u64(record.next_serial)
            writer.u32(len(record.streams))
            for stream in record.streams:
                writer.text(stream.stream_id)
                writer.u32(stream.partition)
                writer.u64(stream.next_seq)
                writer.i64(stream.acked_seq)
                writer.flag(stream.closed)
            writer.u32(len(record.engines))
            for engine in record.engines:
                _count(writer, engine.count)
                writer.u64(engine.settled_tokens)
    return writer


def decode_payload(payload: memoryview) -> Record:
    """The record of a payload. Errors: Malformed."""
    if not len(payload):
        raise Malformed("an empty record")
    reader = _Reader(payload)
    record: Record
    match payload[0]:
        case 1:
            record = records.Booted(reader.text())
        case 2:
            record = records.Started(
                serial=reader.u64(),
                account_id=reader.text(),
                request_id=reader.text(),
                body_digest=reader.blob(),
                template=reader.blob(),
                trace_id=reader.blob(),
                span_id=reader.blob(),
                prompt_tokens=reader.u32(),
                choices=reader.u32(),
            )
        case 3:
            record = records.Progress(
                serial=reader.u64(),
                choice=reader.u32(),
                total_tokens=reader.u32(),
                delivered_tokens=reader.u32(),
                cached_tokens=_known(reader.u32()),
                at_us=reader.u64(),
                token_ids=reader.ids(),
                text=reader.text(),
            )
        case 4:
            record = records.Withdrawn(reader.u64())
        case 5:
            record = records.Settled(
                serial=reader.u64(),
                account_id=reader.text(),
                request_id=reader.text(),
                body_digest=reader.blob(),
                engine_id=reader.text(),
                output_tokens=reader.u64(),
                event=reader.blob(),
                log=reader.text(),
                results=tuple(
                    records.ChoiceResult(reader.ids(), reader.text(), reader.u32())
                    for _ in range(reader.u32())
                ),
                outbound=_read_outbound(reader),
            )
        case 6:
            count = _read_count(reader)
            record = records.Noted(count, _read_outbound(reader) if reader.flag() else None)
        case 7:
            record = records.Closed(_read_outbound(reader))
        case 8:
            record = records.Acked(reader.text(), reader.u64())
        case 9:
            record = records.Snapshot(
                next_serial=reader.u64(),
                streams=tuple(
                    records.StreamPlace(
                        stream_id=reader.text(),
                        partition=reader.u32(),
                        next_seq=reader.u64(),
                        acked_seq=reader.i64(),
                        closed=reader.flag(),
                    )
                    for _ in range(reader.u32())
                ),
                engines=tuple(
                    records.EnginePlace(_read_count(reader), reader.u64())
                    for _ in range(reader.u32())
                ),
            )
        case 10:
            record = records.Embedded(reader.u64(), reader.u64(), reader.u64())
        case kind:
            raise Malformed(f"a record of unknown kind {kind}: written by a newer version?")
    reader.end()
    return record
