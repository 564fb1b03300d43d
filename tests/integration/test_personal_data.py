"""No text of a request and none of an answer stands in any entry of any log: on the whole system.

Real requests with words that nothing else says, as conversations and as token
ids, answered whole and left midway. Afterwards the bytes of every entry of
every log, and of every record kept aside, are searched for those words, for the
answers, and for the token ids, in the encodings in which they could be carried.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

import pytest
from tests.integration.whole_world import Asked, WholeWorld, request

from kernel import leaf as leaf_format
from tollbook.inference.v1 import inference_pb2
from tollbook.ledger.v1 import ledger_pb2
from tollbook.stack import Stack

pytestmark = pytest.mark.integration

PAYER = "discreet"
SECRETS = ("Quittungsblockflöte 7401", "the patient's name is Zebulon Quackenbush")
RUN = 6
"""So many tokens in a row are a quotation."""


def chat(request_id: str, text: str, **kinds: object) -> Asked:
    spec = inference_pb2.GenerationSpec(
        request_id=request_id,
        model="tiny",
        chat=inference_pb2.ChatPrompt(
            messages=[
                inference_pb2.ChatMessage(role="system", content=SECRETS[0]),
                inference_pb2.ChatMessage(role="user", content=text),
            ]
        ),
        sampling=inference_pb2.SamplingParams(
            max_tokens=24, temperature=0.8, seed=5, ignore_eos=True
        ),
    )
    return Asked(PAYER, spec, **kinds)  # type: ignore[arg-type]


def varints(numbers: list[int]) -> bytes:
    """As protobuf packs them."""
    found = bytearray()
    for number in numbers:
        rest = number
        while rest > 127:
            found.append(rest & 127 | 128)
            rest >>= 7
        found.append(rest)
    return bytes(found)


def carried(text: str) -> Iterator[bytes]:
    """A text as it could stand in bytes."""
    for data in (text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be")):
        yield data
        yield data.hex().encode()
        # Base64 of it wherever it begins within what was encoded.
        for lead in range(3):
            yield base64.b64encode(bytes(lead) + data)[4:-4]


def carried_ids(ids: list[int]) -> Iterator[bytes]:
    """Every run of token ids as it could stand in bytes."""
    for at in range(len(ids) - RUN + 1):
        run = ids[at : at + RUN]
        yield varints(run)
        yield struct.pack(f"<{RUN}I", *run)
        yield struct.pack(f">{RUN}I", *run)
        yield struct.pack(f"<{RUN}q", *run)
        yield ", ".join(map(str, run)).encode()
        yield ",".join(map(str, run)).encode()


async def everything(world: WholeWorld) -> list[bytes]:
    """Every entry of every log, and what is kept aside."""
    found: list[bytes] = []
    for log in (await world.ledger.ListLogs(ledger_pb2.ListLogsRequest())).logs:
        async for answer in world.ledger.ReadEvents(ledger_pb2.ReadEventsRequest(log=log.log)):
            for position, data in enumerate(answer.leaves, answer.first_position):
                found.append(data)
                if leaf_format.decode(data).aside:
                    entry = ledger_pb2.GetEntryRequest(log=log.log, position=position)
                    found.append((await world.ledger.GetEntry(entry)).aside)
    return found


async def test_no_log_holds_what_was_asked_or_answered(whole_stack: Stack) -> None:
    whole_stack.up()
    async with WholeWorld(whole_stack) as world:
        await world.publish_prices()
        await world.customers(PAYER)
        asked = [
            await world.ask(chat("chat-once", SECRETS[1], once=True)),
            await world.ask(chat("chat-stream", SECRETS[1])),
            await world.ask(chat("chat-left", SECRETS[1], leave_after=4)),
            await world.ask(request(PAYER, "ids", 1, output=24)),
        ]
        answer = await world.inference.GenerateOnce(
            inference_pb2.GenerateOnceRequest(spec=asked[0].spec), metadata=world.bearer(PAYER)
        )
        await world.check_everything(asked)
        entries = b"\0".join(await everything(world))
        # What must be there is found this way, so what must not be would be too.
        assert b"chat-stream" in entries
        assert PAYER.encode() in entries
        words = [*SECRETS, answer.choices[0].text]
        for text in words:
            for data in carried(text):
                assert len(data) > 8, text
                assert data not in entries, text
        ids = [*(one.ids for one in asked), list(asked[3].spec.tokens.token_ids)]
        assert sum(len(one) for one in ids) > 3 * 24
        for run in ids:
            for data in carried_ids(run):
                assert data not in entries, run
