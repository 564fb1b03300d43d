"""What the compiled loops tell of leaves: the columns of their tables."""

from __future__ import annotations

from typing import Final

# What became of a leaf.
SKIPPED: Final = 0
PLAIN: Final = 1
ODD: Final = 2

# Columns of `texts`: place and length of each. Those before SHAPE_TEXTS may select a price, those
# before OWNER_TEXTS tell whose an event is as well, those before USE_TEXTS what it is summed by.
SERVED_MODEL: Final = 0
BASE_MODEL: Final = 2
ADAPTER: Final = 4
SERVICE_TIER: Final = 6
REGION: Final = 8
SHAPE_TEXTS: Final = 10
ACCOUNT_ID: Final = 10
ENGINE_ID: Final = 12
OWNER_TEXTS: Final = 14
PROJECT_ID: Final = 14
KEY_ID: Final = 16
USE_TEXTS: Final = 18
EVENT_ID: Final = 18
TRACE_ID: Final = 20
SPAN_ID: Final = 22
TEXT_COLUMNS: Final = 24

# Columns of `numbers`, and those before SHAPE_NUMBERS and KEY_NUMBERS of `groups` too.
OUTCOME: Final = 0
SEGMENT: Final = 1
"""Of time, and BAND of context lengths: within both no price changes. Set by the caller."""
BAND: Final = 2
SHAPE_NUMBERS: Final = 3
MINUTE: Final = 3
"""Of the event's time; 0 where nothing is summed by it. Set by the caller."""
KEY_NUMBERS: Final = 4
SECONDS: Final = 4
NANOS: Final = 5
CONTEXT: Final = 6
"""Length of the context: all tokens that went in."""
SPARE: Final = 7
"""And the next: for instants that are read and not kept."""
NUMBER_COLUMNS: Final = 9

# Columns of `quantities`: the six dimensions in one number, place and length of the attribute,
# the counts, and the event they are of, as an index in its stretch.
KINDS: Final = 0
ATTRIBUTE: Final = 1
AMOUNT: Final = 3
UNDELIVERED: Final = 4
OWNER: Final = 5
QUANTITY_COLUMNS: Final = 6
DIMENSIONS: Final = 6
DIMENSION_BITS: Final = 4
MAX_WORD: Final = 2**DIMENSION_BITS - 1

# Columns of `groups`: what is of all its events, and how many they are. Its texts stand in
# `group_texts`, in the columns before USE_TEXTS.
SAMPLE: Final = 4
"""Index of the first of its events."""
REQUESTS: Final = 5
GROUP_COLUMNS: Final = 6

# Columns of `cells`: what a group used of one kind of leaf. Those before CELL_AMOUNT are a
# quantity's too, but for the group.
CELL_KINDS: Final = 0
CELL_ATTRIBUTE: Final = 1
CELL_AMOUNT: Final = 3
CELL_UNDELIVERED: Final = 4
CELL_GROUP: Final = 5
CELL_FIRST: Final = 6
"""Index of the first event with one, and CELL_END: the index after the last."""
CELL_END: Final = 7
CELL_COLUMNS: Final = 8

# Of `counts`: how many groups and cells there are, and how many bytes their texts take.
GROUPS: Final = 0
CELLS: Final = 1
TEXT_BYTES: Final = 2
COUNTS: Final = 3

PADDING: Final = 8
"""Bytes that stand behind every array of bytes the loops read, which read by eight."""

MAX_QUANTITIES: Final = 64
"""Of a plain event."""
