"""The texts that identify events, side by side in one buffer, as they are hashed."""

from __future__ import annotations

from typing import Any

from pricing.domain.compiled.columns import EVENT_ID
from pricing.domain.compiled.jit import compiled


@compiled
def write_identities(
    data: Any,
    texts: Any,
    which: Any,
    group_of: Any,
    prefixes: Any,
    prefix_starts: Any,
    starts: Any,
    out: Any,
) -> None:
    """Write what stands before an event's id, by its group, and the id, for each of `which`.

    `data`, `texts` and `group_of` are of a stretch; `prefix_starts` and `starts` have one place
    more, which is the end of the last.
    """
    for number in range(len(which)):
        index = which[number]
        at = starts[number]
        group = group_of[index]
        for place in range(prefix_starts[group], prefix_starts[group + 1]):
            out[at] = prefixes[place]
            at += 1
        event_at = texts[index, EVENT_ID]
        for place in range(event_at, event_at + texts[index, EVENT_ID + 1]):
            out[at] = data[place]
            at += 1
