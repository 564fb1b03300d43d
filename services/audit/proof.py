"""`python -m audit.proof PROOF --key FILE [--policy FILE]`: check one entry's proof, offline.

A proof (C2SP tlog-proof) holds the entry's place, its inclusion proof and the
signed checkpoint; ours hold the leaf bytes too, as extra data, which the proof
itself vouches for. Exit 0 when it proves, 1 when it does not, 2 when the input
cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from audit.findings import UnusableError
from audit.keys import read_keys
from kernel import leaf as leaves
from kernel import tlogpolicy
from kernel.leaf import Leaf, LeafError
from kernel.note import Checkpoint
from kernel.tlogpolicy import PolicyError
from kernel.tlogproof import TlogProof, TlogProofError

EXIT_PROVES: Final = 0
EXIT_DOES_NOT: Final = 1
EXIT_UNUSABLE: Final = 2
_MAX_PROOF_BYTES: Final = 2 * 1024 * 1024


class Proved(NamedTuple):
    """An entry that is proved to stand in a log."""

    position: int
    leaf: Leaf
    checkpoint: Checkpoint
    cosigners: list[str]

    def as_text(self) -> str:
        """For people."""
        cosigned = f", cosigned by {', '.join(self.cosigners)}" if self.cosigners else ""
        return (
            f"position {self.position} of {self.checkpoint.origin}, under the signed root of"
            f" {self.checkpoint.size} entries{cosigned}\n"
            f"disposition {self.leaf.disposition}, offset {self.leaf.offset},"
            f" {len(self.leaf.value)} bytes"
        )


def check_proof(proof_file: Path, key_file: Path, policy_file: Path | None = None) -> Proved:
    """Check a proof. Errors: TlogProofError when it does not prove, UnusableError."""
    keys = [key for named in read_keys(key_file).values() for key in named]
    try:
        policy = tlogpolicy.Policy() if policy_file is None else tlogpolicy.read(policy_file)
        with proof_file.open("rb") as file:
            proof = TlogProof.parse(file.read(_MAX_PROOF_BYTES))
    except PolicyError as error:
        raise UnusableError(f"the policy cannot be used: {error}") from None
    except OSError as error:
        raise UnusableError(f"cannot read {proof_file}: {error.strerror}") from None
    if not proof.extra:
        raise UnusableError(f"{proof_file} does not hold the entry that it is about (no `extra`)")
    checkpoint, cosigners = proof.verify(proof.extra, keys, policy.keys)
    if not policy.is_met(cosigners.keys()):
        raise TlogProofError("not enough witnesses cosigned its checkpoint for the policy")
    try:
        leaf = leaves.decode(proof.extra)
    except LeafError as error:
        raise TlogProofError(f"the entry that it proves is no leaf: {error}") from None
    return Proved(proof.index, leaf, checkpoint, sorted(key.name for key in cosigners))


def run(proof_file: Path, key_file: Path, policy_file: Path | None) -> int:
    """Check and tell; gives the exit status."""
    try:
        proved = check_proof(proof_file, key_file, policy_file)
    except UnusableError as error:
        sys.stderr.write(f"proof: {error}\n")
        return EXIT_UNUSABLE
    except TlogProofError as error:
        sys.stderr.write(f"proof: DOES NOT PROVE: {error}\n")
        return EXIT_DOES_NOT
    sys.stdout.write(f"{proved.as_text()}\n")
    return EXIT_PROVES


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and check."""
    parser = argparse.ArgumentParser(prog="audit.proof", description="Check one entry's proof.")
    parser.add_argument("proof", type=Path, metavar="PROOF")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE")
    parser.add_argument("--policy", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    return run(given.proof, given.key, given.policy)


if __name__ == "__main__":
    sys.exit(main())
