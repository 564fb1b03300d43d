"""`tollbook ledger proof` and `check-proof`: one entry's place, as a file that proves itself."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from audit.proof import run
from kernel.tlogproof import SUFFIX, TlogProof
from tollbook.cli.ledger_calls import TIMEOUT_S, ask
from tollbook.ledger.v1 import ledger_pb2 as pb


@click.command()
@click.argument("log")
@click.argument("position", type=click.IntRange(0))
@click.option("--out", type=click.Path(path_type=Path), help="By default LOG-POSITION.tlog-proof.")
def proof(log: str, position: int, out: Path | None) -> None:
    """Write the proof (C2SP tlog-proof) that an entry stands at POSITION of LOG.

    It is under the newest checkpoint that is signed, and holds the entry itself.
    """
    entry = ask(
        lambda to: to.GetEntry(pb.GetEntryRequest(log=log, position=position), timeout=TIMEOUT_S)
    )
    # Just appended, it may not be signed yet.
    ask(
        lambda to: to.GetCheckpoint(
            pb.GetCheckpointRequest(log=log, min_size=position + 1), timeout=TIMEOUT_S
        )
    )
    found = ask(
        lambda to: to.GetInclusionProof(
            pb.GetInclusionProofRequest(log=log, position=position), timeout=TIMEOUT_S
        )
    )
    made = TlogProof(position, list(found.proof), found.checkpoint, entry.leaf)
    path = out or Path(f"{log}-{position}{SUFFIX}")
    path.write_bytes(made.to_bytes())
    click.echo(f"{path}: position {position} of {log} in a tree of {found.tree_size} entries")


@click.command("check-proof")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Verifier keys.")
@click.option("--policy", type=click.Path(path_type=Path), help="Who must have cosigned.")
def check_proof(file: Path, key: Path, policy: Path | None) -> None:
    """Check a proof, with nothing but the FILE and keys.

    Exit 0 when it proves, 1 when it does not, 2 when the input cannot be used.
    """
    sys.exit(run(file, key, policy))
