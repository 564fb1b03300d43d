"""The audit of an export: signatures, trees, cuts, admission, balances, conservation, in order.

Needs an export's directory and verifier keys; trusts nothing but the keys. The
order is that of cause and effect, so that the first finding is the cause and
what follows from it comes after.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from audit import balances, conservation, cuts, expiries, layout, once, rerates, rotations, served
from audit.cuts import CutAt, LogSeen
from audit.findings import Finding, UnusableError
from audit.keys import Keys, Opened, check_cosigned, open_log, read_keys
from audit.layout import Export
from audit.log_check import LogResult, check_log
from audit.report import AccountLine, CutLine, Report
from kernel import tlogpolicy
from kernel.note import Checkpoint
from kernel.placement import CONTROL_LOG, CUT_LOG, partition_of_log
from kernel.tlogpolicy import Policy, PolicyError
from pricing.domain import books
from pricing.domain.replay import Replay
from pricing.domain.state import Totals

_NEEDED: Final = (CONTROL_LOG, CUT_LOG)
_WORTH_PROCESSES_ENTRIES: Final = 100_000
_MAX_PROCESSES: Final = 16


def audit(export_root: Path, key_file: Path, policy_file: Path | None = None) -> Report:
    """Audit an export; with a policy, every checkpoint must be cosigned as it says.

    Errors: UnusableError when there is nothing that could be audited.
    """
    started = time.monotonic()
    keys = read_keys(key_file)
    try:
        policy = None if policy_file is None else tlogpolicy.read(policy_file)
    except PolicyError as error:
        raise UnusableError(f"the policy cannot be used: {error}") from None
    run = _Audit(Export(export_root), keys, policy)
    run.all()
    run.report.seconds = time.monotonic() - started
    return run.report


class _Audit:
    """One audit under way."""

    def __init__(self, export: Export, keys: Keys, policy: Policy | None) -> None:
        self.report = Report()
        self._export = export
        self._keys = keys
        self._policy = policy
        self._checkpoints: dict[str, Checkpoint] = {}
        self._results: dict[str, LogResult] = {}
        self._cuts: list[CutAt] = []
        self._last: CutAt | None = None
        """The last cut that speaks of balances."""
        self._pins: dict[str, list[cuts.Pin]] = {}

    def all(self) -> None:
        """Every step, in order."""
        self._open_logs()
        self._check_cut_log()
        self._check_other_logs()
        self._check_cuts()
        self._check_once()
        if self._last is not None:
            self._check_balances(self._last)

    def _open_logs(self) -> None:
        names = self._export.logs()
        if not names:
            raise UnusableError(f"{self._export.root} holds no log")
        for name in _NEEDED:
            if name not in names:
                self.report.findings.add(Finding(name, "the log is not in the export"))
        followed = rotations.follow_keys(self._export, self._keys)
        opened = {name: open_log(self._export.log(name), followed.keys) for name in names}
        self._refuse_wrong_keys(opened)
        for name, log in opened.items():
            if log.problem is not None:
                self.report.findings.add(log.problem)
            elif self._policy is not None:
                alone = check_cosigned(self._export.log(name), self._policy)
                self.report.findings.extend([] if alone is None else [alone])
            wrong, note = rotations.check(name, log, followed.chains)
            self.report.findings.extend([] if wrong is None else [wrong])
            self.report.notes += [note] if note else []
            if log.checkpoint is not None:
                self._checkpoints[name] = log.checkpoint
            elif log.unverified is not None:
                # What it claims is held against the entries all the same: it may show more.
                self._checkpoints[name] = log.unverified
        origins = {found.origin.rpartition("/")[0] for found in self._checkpoints.values()}
        if len(origins) > 1:
            self.report.findings.add(
                Finding("checkpoints", f"they are of several systems: {', '.join(sorted(origins))}")
            )
        self.report.notes += rotations.notes(followed.chains)
        self.report.notes += [
            f"{layout.LOGS_DIR}/{name} is no log and was not looked at"
            for name in self._export.strangers()
        ]

    def _refuse_wrong_keys(self, opened: Mapping[str, Opened]) -> None:
        """When no checkpoint at all is by the keys given, they are the wrong keys."""
        if any(log.checkpoint is not None for log in opened.values()):
            return
        claimed = {log.unverified.origin for log in opened.values() if log.unverified is not None}
        if not claimed:
            return
        raise UnusableError(
            f"none of the {len(opened)} checkpoints is signed by the keys given (they are for"
            f" {', '.join(sorted(self._keys)[:4])}; the logs are {', '.join(sorted(claimed)[:4])}):"
            " is this the right key file?"
        )

    def _check_cut_log(self) -> None:
        self._check([CUT_LOG], {})
        result = self._results.get(CUT_LOG)
        if result is None:
            return
        files = self._export.log(CUT_LOG)
        for position, raw in balances.entries_of(files, result.size, 0, result.readable):
            found = cuts.read_cut(position, raw, self._export.aside)
            if isinstance(found, CutAt):
                self._cuts.append(found)
            else:
                self.report.findings.add(found)
        self.report.cuts = len(self._cuts)
        self._last = next((cut for cut in reversed(self._cuts) if not cut.cut.pins_only), None)
        if self._last is None:
            self.report.findings.add(
                Finding(CUT_LOG, "there is no cut: nothing vouches for pins and balances")
            )
        else:
            cuts.check_version(self._last)

    def _check_other_logs(self) -> None:
        wanted: dict[str, set[int]] = {}
        for found in self._cuts:
            for part in found.cut.logs:
                wanted.setdefault(part.log, set()).add(part.size)
        self._check([name for name in self._checkpoints if name != CUT_LOG], wanted)

    def _check(self, names: list[str], wanted: Mapping[str, set[int]]) -> None:
        """Check logs, in processes of their own where that is worth it."""
        tasks = [
            (self._export.root, name, self._checkpoints[name], frozenset(wanted.get(name, ())))
            for name in names
            if name in self._checkpoints
        ]
        entries = sum(task[2].size for task in tasks)
        processes = min(len(tasks), os.cpu_count() or 1, _MAX_PROCESSES)
        if entries < _WORTH_PROCESSES_ENTRIES or processes < 2:
            results = [check_log(*task) for task in tasks]
        else:
            # The largest first, so that the last to end is a small one.
            tasks.sort(key=lambda task: -task[2].size)
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                results = list(pool.map(check_log, *zip(*tasks, strict=True)))
        by_name = {result.log: result for result in results}
        for name in names:
            if name in by_name:
                self._results[name] = by_name[name]
                self.report.logs.append(by_name[name])
                self.report.findings.merge(by_name[name].findings)
                self.report.notes += by_name[name].notes

    def _check_cuts(self) -> None:
        statements = cuts.check_statements(self._cuts)
        self._pins = statements.pins
        self.report.findings.extend(statements.findings)
        logs = {name: LogSeen(result.size, result.roots) for name, result in self._results.items()}
        self.report.findings.extend(cuts.check_roots(self._cuts, logs))
        if self._last is not None:
            spoken_of = self._last.logs
            for name, result in self._results.items():
                if name != CUT_LOG and name not in spoken_of and result.size:
                    self.report.notes.append(f"{name} is in no cut: its charges were not audited")

    def _check_once(self) -> None:
        accepted = {
            name: result.accepted
            for name, result in self._results.items()
            if partition_of_log(name) is not None
        }

        def entry(log: str, position: int) -> bytes:
            files, size = self._export.log(log), self._results[log].size
            for _, raw in balances.entries_of(files, size, position, position + 1):
                return raw
            return b""

        self.report.findings.extend(once.accepted_twice(accepted, entry))

    def _check_balances(self, last: CutAt) -> None:
        pins = self._pins
        sources = {
            name: balances.Source(self._export.log(name), result.size, result.readable)
            for name, result in self._results.items()
        }
        walk = balances.Books(sources, pins, self._export.aside)
        sizes = {name: part.size for name, part in last.logs.items()}
        if not self._compare_served(walk, sizes, pins):
            return
        stopped = walk.advance(sizes)
        digest = None if len(stopped) else walk.replay.digest()
        self.report.cut = CutLine(last.position, sizes, last.cut.balances_digest, digest)
        self.report.findings.merge(stopped)
        if digest is None:
            return
        if digest != last.cut.balances_digest:
            self.report.findings.add(
                Finding(
                    CUT_LOG,
                    f"the digest of all balances is {last.cut.balances_digest.hex()} in it; the"
                    f" logs give {digest.hex()}",
                    last.position,
                )
            )
        state = walk.replay.projection.control
        self.report.findings.extend(rerates.check(state, sources, pins))
        wrong, notes = expiries.check(state.credit, sources, pins, self._export.aside, self._cuts)
        self.report.findings.extend(wrong)
        self.report.notes += notes
        self.report.engines = conservation.lines_of(walk.replay.engines)
        self.report.findings.extend(conservation.check(last, self.report.engines))
        self.report.accounts = _accounts(walk.replay)
        self.report.notes += [f"{found}; it counts for nothing" for found in walk.ignored()]

    def _compare_served(
        self,
        walk: balances.Books,
        sizes: Mapping[str, int],
        pins: Mapping[str, Sequence[cuts.Pin]],
    ) -> bool:
        """Compare what was served; tell whether the books can go on to the cut."""
        answer = served.read_served(self._export.served())
        if isinstance(answer, Finding):
            self.report.findings.add(answer)
            return True
        positions = self.report.served_positions = served.positions_of(answer)
        beyond = [name for name, size in positions.items() if size > sizes.get(name, 0)]
        if beyond:
            self.report.findings.add(
                Finding(
                    layout.SERVED_FILE,
                    f"balances at {beyond[0]} size {positions[beyond[0]]} were served; the last cut"
                    f" vouches for {sizes.get(beyond[0], 0)}",
                )
            )
            return True
        control_size = positions.get(CONTROL_LOG, 0)
        for name, size in positions.items():
            known = max((known for start, known in pins.get(name, ()) if start < size), default=0)
            if known > control_size:
                self.report.findings.add(
                    Finding(
                        layout.SERVED_FILE,
                        f"balances at {name} size {size} and control size {control_size} were"
                        f" served; {name} is pinned to control size {known} there",
                    )
                )
                return True
        stopped = walk.advance(positions)
        self.report.findings.merge(stopped)
        if len(stopped):
            return False
        self.report.findings.extend(served.compare(answer, walk.replay))
        return True


def _accounts(replay: Replay) -> list[AccountLine]:
    suspense = replay.suspense()
    lines: list[AccountLine] = []
    for account_id, account in sorted(replay.projection.control.accounts.items()):
        totals = replay.totals.get(account_id, Totals())
        lines.append(
            AccountLine(
                account_id,
                account.currency,
                totals.requests,
                totals.input_tokens,
                totals.cached_tokens,
                totals.output_tokens,
                -replay.balance(books.granted(account_id), account.currency),
                replay.balance(books.revenue(account_id), account.currency),
                replay.balance(books.customer(account_id), account.currency),
                suspense.get(account_id, 0),
            )
        )
    return lines
