"""`python -m bench [NAME ...]`: measure, print, and write JSON with the machine it was on.

Each bench runs in a process of its own, so that none inherits another's heap,
threads or forked engine. The figures of a bench and of its baseline are of one
run of one process tree, minutes apart at the most.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psutil

BENCHES: Final = {
    "ledger": "Kafka to durable log, events/s and latency, beside plain COPY",
    "reading": "the log to its readers, gRPC and Arrow, beside COPY TO STDOUT",
    "inference": "metering in process, tokens/s and latency, beside bare AsyncLLM",
    "flood": "one account's request times while another floods, with turns and without",
    "outage": "requests while the broker is away, TOLLBOOK_OUTAGE_S of it, and catching up",
    "spool": "usage records to the disk, beside plain appends with fdatasync",
    "rating": "log leaves to charges on one core, beside a plain loop of decimals",
    "sums": "receipts against postings to the last unit, TOLLBOOK_SUMS_EVENTS of them",
    "changes": "preview of the log's own usage, and an approval until it prices",
    "balances": "Reserve and GetBalance through gRPC; topic to balance, and a rebuild, beside SQL",
    "serving": "tokens/s and first token by gRPC and HTTP, batch lines/s, beside the engine alone",
    "path": "last token to balance, and tokens/s through gRPC beside the engine alone",
}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def one(name: str) -> None:
    """Run one bench in this process and print its figures as the last line."""
    figures = importlib.import_module(f"bench.{name}").run()
    sys.stdout.write("\n" + json.dumps(figures) + "\n")


def in_a_process(name: str) -> dict[str, Any]:
    """Run one bench in a process of its own. Errors: SystemExit says which failed."""
    done = subprocess.run(
        (sys.executable, "-m", "bench", "--only-here", name), stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench {name} failed with status {done.returncode}; see above")
    figures: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return figures


def main() -> None:
    """Run the benches that are named, or all."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--json", type=Path, default=Path(".benchmarks/latest.json"))
    parser.add_argument("--only-here", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_here:
        one(given.only_here)
        return
    for name in given.names:
        if name not in BENCHES:
            parser.error(f"there is no bench {name!r}; there are {', '.join(BENCHES)}")
    results: dict[str, Any] = {"machine": machine()}
    print(json.dumps(results["machine"], indent=1))
    for name in given.names or BENCHES:
        print(f"\n{name}: {BENCHES[name]}", flush=True)
        results[name] = in_a_process(name)
        print(json.dumps(results[name], indent=1), flush=True)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {given.json}")


if __name__ == "__main__":
    main()
