"""Blocks of ports: claimed by one, kept while free."""

from __future__ import annotations

import secrets
import socket
import threading

import pytest
from tests.integration import free_port

from tollbook.stack import ports
from tollbook.stack.errors import Unusable


def test_offsets_are_distinct_and_fit_the_block() -> None:
    assert len(set(ports.OFFSETS.values())) == len(ports.OFFSETS)
    assert all(0 <= offset < ports.BLOCK_SIZE for offset in ports.OFFSETS.values())
    last = ports.FIRST_PORT + ports.BLOCKS * ports.BLOCK_SIZE - 1
    # Linux hands out ports from 32768 on to outgoing connections.
    assert last < 32_768


def test_one_block_has_one_owner_at_a_time() -> None:
    first, claim_of_first = ports.claim("one")
    with claim_of_first:
        second, claim_of_second = ports.claim("one")
        with claim_of_second:
            assert first != second
    again, claim = ports.claim("one")
    claim.close()
    assert again == first


def test_the_block_of_the_last_run_is_taken_again() -> None:
    base, claim = ports.claim("one")
    claim.close()
    kept, claim = ports.claim("another", kept=base)
    claim.close()
    assert kept == base


def test_a_block_with_one_port_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "DYING_S", 0.2)
    base, claim = ports.claim("one")
    claim.close()
    with socket.socket() as taken:
        taken.bind((ports.HOST, ports.port_of(base, "postgres")))
        taken.listen()
        other, claim = ports.claim("one", kept=base)
        claim.close()
    assert other != base


def test_the_block_of_the_last_run_is_waited_for_while_its_parts_die() -> None:
    base, claim = ports.claim("one")
    claim.close()
    dying = socket.create_server((ports.HOST, ports.port_of(base, "kafka")))
    gone = threading.Timer(0.5, dying.close)
    gone.start()
    kept, claim = ports.claim("one", kept=base)
    claim.close()
    gone.join()
    assert kept == base


def test_no_free_block_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    base, claim = ports.claim("one")
    monkeypatch.setattr(ports, "FIRST_PORT", base)
    monkeypatch.setattr(ports, "BLOCKS", 1)
    wanted = f"no block of 32 free ports between {base} and {base + 32}"
    with claim, pytest.raises(Unusable, match=wanted):
        ports.claim("two")


def test_a_tests_port_is_given_once_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_port.free_port(), free_port.free_port()
    drawn = iter(port - free_port._FIRST for port in (first, second))
    monkeypatch.setattr(secrets, "randbelow", lambda _: next(drawn))
    # Whoever draws a port that is given, be it in another process, goes on to the next.
    free_port._claims.pop().close()
    assert free_port.free_port() == second
