"""Sorting events into groups and their quantities into cells, and adding both up.

Groups and cells are found by hash tables of their numbers, twice as long as
there are entries; -1 is an empty place. The texts that tell groups apart are
copied to one place, so that a stretch's own bytes are not needed afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernel.jit import inlined, is_kept
from kernel.sha256 import hash_slices
from pricing.domain.compiled.columns import (
    AMOUNT,
    CELL_AMOUNT,
    CELL_ATTRIBUTE,
    CELL_END,
    CELL_FIRST,
    CELL_GROUP,
    CELL_KINDS,
    CELL_UNDELIVERED,
    CELLS,
    GROUPS,
    KEY_NUMBERS,
    OWNER,
    PLAIN,
    REQUESTS,
    SAMPLE,
    TEXT_BYTES,
    UNDELIVERED,
)
from pricing.domain.compiled.identities import write_identities
from pricing.domain.compiled.jit import compiled, mix, mix_text, same_bytes
from pricing.domain.compiled.reading import scan

# The one module that tally.py loads.
__all__ = [
    "add_up",
    "are_kept",
    "enter_cells",
    "enter_groups",
    "hash_slices",
    "number_groups",
    "number_kinds",
    "scan",
    "write_identities",
]


@inlined
def _place(
    data: Any,
    texts: Any,
    numbers: Any,
    index: int,
    texts_from: int,
    texts_end: int,
    numbers_end: int,
    table: Any,
) -> Any:
    """Where to look for a row first, by texts in some columns, and numbers before one."""
    state = np.uint64(1)
    for column in range(numbers_end):
        state = mix(state, numbers[index, column])
    for column in range(texts_from, texts_end, 2):
        state = mix_text(data, state, texts[index, column], texts[index, column + 1])
    return (state ^ (state >> np.uint64(32))) & np.uint64(len(table) - 1)


@inlined
def _is_alike(
    data: Any,
    texts: Any,
    numbers: Any,
    index: int,
    held: Any,
    held_texts: Any,
    groups: Any,
    group: int,
    texts_from: int,
    texts_end: int,
    numbers_end: int,
) -> bool:
    """Whether a row and a group have the same texts in some columns, and numbers before one."""
    for column in range(numbers_end):
        if numbers[index, column] != groups[group, column]:
            return False
    for column in range(texts_from, texts_end, 2):
        length = texts[index, column + 1]
        if length != held_texts[group, column + 1] or not same_bytes(
            data, texts[index, column], held, held_texts[group, column], length
        ):
            return False
    return True


@compiled
def _keep(held: Any, counts: Any, data: Any, at: int, length: int) -> int:
    """Copy a text to the others that are kept; gives its place among them."""
    to = counts[TEXT_BYTES]
    for byte in range(length):
        held[to + byte] = data[at + byte]
    counts[TEXT_BYTES] = to + length
    return int(to)


@inlined
def _group_of(
    data: Any,
    texts: Any,
    numbers: Any,
    index: int,
    texts_end: int,
    table: Any,
    held: Any,
    group_texts: Any,
    groups: Any,
    counts: Any,
) -> int:
    """The group that an event of a stretch belongs to, entered when it is a new one."""
    place = _place(data, texts, numbers, index, 0, texts_end, KEY_NUMBERS, table)
    mask = np.uint64(len(table) - 1)
    while table[place] >= 0:
        group = table[place]
        if _is_alike(
            data,
            texts,
            numbers,
            index,
            held,
            group_texts,
            groups,
            group,
            0,
            texts_end,
            KEY_NUMBERS,
        ):
            return int(group)
        place = (place + np.uint64(1)) & mask
    group = counts[GROUPS]
    counts[GROUPS] += 1
    table[place] = group
    for column in range(KEY_NUMBERS):
        groups[group, column] = numbers[index, column]
    for column in range(group_texts.shape[1]):
        group_texts[group, column] = 0
    for column in range(0, texts_end, 2):
        length = texts[index, column + 1]
        group_texts[group, column] = _keep(held, counts, data, texts[index, column], length)
        group_texts[group, column + 1] = length
    groups[group, SAMPLE] = -1
    groups[group, REQUESTS] = 0
    return int(group)


@inlined
def _cell_place(data: Any, group: Any, kinds: Any, attribute: Any, length: Any, table: Any) -> Any:
    """Where to look for a cell first."""
    state = mix(mix(np.uint64(1), group), kinds)
    if length:
        state = mix_text(data, state, attribute, length)
    return (state ^ (state >> np.uint64(32))) & np.uint64(len(table) - 1)


@inlined
def _cell_of(
    data: Any,
    quantities: Any,
    index: int,
    group: int,
    table: Any,
    held: Any,
    cells: Any,
    counts: Any,
) -> int:
    """The cell (a group's kind of leaf) that a quantity is of, entered when it is a new one."""
    kinds = quantities[index, CELL_KINDS]
    attribute, length = quantities[index, CELL_ATTRIBUTE], quantities[index, CELL_ATTRIBUTE + 1]
    place = _cell_place(data, group, kinds, attribute, length, table)
    mask = np.uint64(len(table) - 1)
    while table[place] >= 0:
        cell = table[place]
        if (
            cells[cell, CELL_GROUP] == group
            and cells[cell, CELL_KINDS] == kinds
            and cells[cell, CELL_ATTRIBUTE + 1] == length
            and same_bytes(data, attribute, held, cells[cell, CELL_ATTRIBUTE], length)
        ):
            return int(cell)
        place = (place + np.uint64(1)) & mask
    cell = counts[CELLS]
    counts[CELLS] += 1
    table[place] = cell
    cells[cell, CELL_KINDS] = kinds
    cells[cell, CELL_ATTRIBUTE] = _keep(held, counts, data, attribute, length)
    cells[cell, CELL_ATTRIBUTE + 1] = length
    cells[cell, CELL_AMOUNT] = 0
    cells[cell, CELL_UNDELIVERED] = 0
    cells[cell, CELL_GROUP] = group
    cells[cell, CELL_FIRST] = -1
    return int(cell)


@compiled
def enter_groups(
    held: Any, texts_end: int, table: Any, group_texts: Any, groups: Any, count: int
) -> None:
    """Enter groups into another, empty, table."""
    for group in range(count):
        place = _place(held, group_texts, groups, group, 0, texts_end, KEY_NUMBERS, table)
        while table[place] >= 0:
            place = (place + np.uint64(1)) & np.uint64(len(table) - 1)
        table[place] = group


@compiled
def enter_cells(held: Any, table: Any, cells: Any, count: int) -> None:
    """Enter cells into another, empty, table."""
    for cell in range(count):
        place = _cell_place(
            held,
            cells[cell, CELL_GROUP],
            cells[cell, CELL_KINDS],
            cells[cell, CELL_ATTRIBUTE],
            cells[cell, CELL_ATTRIBUTE + 1],
            table,
        )
        while table[place] >= 0:
            place = (place + np.uint64(1)) & np.uint64(len(table) - 1)
        table[place] = cell


@compiled
def number_groups(
    held: Any,
    table: Any,
    group_texts: Any,
    groups: Any,
    texts_from: int,
    texts_end: int,
    numbers_end: int,
    number_of: Any,
    samples: Any,
) -> int:
    """Number what groups have in some of their columns, as it comes; `table` is empty.

    Gives each group's number and, of each number, the first group; how many there are.
    """
    mask = np.uint64(len(table) - 1)
    used = 0
    for group in range(len(number_of)):
        place = _place(held, group_texts, groups, group, texts_from, texts_end, numbers_end, table)
        number = -1
        while table[place] >= 0:
            other = table[place]
            if _is_alike(
                held,
                group_texts,
                groups,
                group,
                held,
                group_texts,
                groups,
                samples[other],
                texts_from,
                texts_end,
                numbers_end,
            ):
                number = other
                break
            place = (place + np.uint64(1)) & mask
        if number < 0:
            number = used
            table[place] = number
            samples[number] = group
            used += 1
        number_of[group] = number
    return used


@compiled
def number_kinds(held: Any, table: Any, cells: Any, number_of: Any, samples: Any) -> int:
    """Number the kinds of leaf that cells are of, as `number_groups`."""
    mask = np.uint64(len(table) - 1)
    used = 0
    for cell in range(len(number_of)):
        kinds = cells[cell, CELL_KINDS]
        attribute, length = cells[cell, CELL_ATTRIBUTE], cells[cell, CELL_ATTRIBUTE + 1]
        place = _cell_place(held, 0, kinds, attribute, length, table)
        number = -1
        while table[place] >= 0:
            other = samples[table[place]]
            if (
                cells[other, CELL_KINDS] == kinds
                and cells[other, CELL_ATTRIBUTE + 1] == length
                and same_bytes(held, attribute, held, cells[other, CELL_ATTRIBUTE], length)
            ):
                number = table[place]
                break
            place = (place + np.uint64(1)) & mask
        if number < 0:
            number = used
            table[place] = number
            samples[number] = cell
            used += 1
        number_of[cell] = number
    return used


@compiled
def add_up(
    data: Any,
    first: int,
    status: Any,
    texts: Any,
    numbers: Any,
    quantities: Any,
    texts_end: int,
    held: Any,
    group_table: Any,
    group_texts: Any,
    groups: Any,
    cell_table: Any,
    cells: Any,
    counts: Any,
    group_of: Any,
    cell_of: Any,
) -> None:
    """Sort a stretch that `scan` read into groups and cells, and add its counts up.

    `first` is the stretch's first index, `texts_end` the column before which
    texts tell groups apart, `held` where their texts are kept. Gives each event's
    group, and each quantity's cell: -1 where its count is 0.
    """
    for index in range(len(status)):
        if status[index] != PLAIN:
            continue
        group = _group_of(
            data, texts, numbers, index, texts_end, group_table, held, group_texts, groups, counts
        )
        if groups[group, SAMPLE] < 0:
            groups[group, SAMPLE] = first + index
        groups[group, REQUESTS] += 1
        group_of[index] = group
    for index in range(len(quantities)):
        cell_of[index] = -1
        if quantities[index, AMOUNT] == 0:
            continue
        owner = quantities[index, OWNER]
        cell = _cell_of(data, quantities, index, group_of[owner], cell_table, held, cells, counts)
        if cells[cell, CELL_FIRST] < 0:
            cells[cell, CELL_FIRST] = first + owner
        cells[cell, CELL_AMOUNT] += quantities[index, AMOUNT]
        cells[cell, CELL_UNDELIVERED] += quantities[index, UNDELIVERED]
        cells[cell, CELL_END] = first + owner + 1
        cell_of[index] = cell


def are_kept() -> bool:
    """Whether an earlier process has compiled all this."""
    loops = (scan, add_up, number_groups, number_kinds, enter_cells, write_identities)
    return all(map(is_kept, loops))
