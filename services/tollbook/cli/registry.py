"""Every command and where it lives. To add one: a line here, and a file beside this.

A file is imported only when its command is called, so one that is slow to load, or broken, costs
the others nothing. The help texts stand here for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A command or group of commands: `MODULE:ATTRIBUTE` is a click command."""

    target: str
    help: str


# In the order in which `tollbook --help` shows them.
COMMANDS: dict[str, Entry] = {
    "up": Entry("tollbook.cli.stack_commands:up", "Start the local stack."),
    "down": Entry("tollbook.cli.stack_commands:down", "Stop all of it."),
    "status": Entry("tollbook.cli.stack_commands:status", "Show what runs, and where."),
    "logs": Entry("tollbook.cli.stack_commands:logs", "Show what the parts wrote."),
    "env": Entry("tollbook.cli.stack_commands:env", "Print the running stack's settings."),
    "doctor": Entry("tollbook.cli.doctor_command:doctor", "Name what is missing, and what to do."),
    "demo": Entry("tollbook.cli.demo:demo", "Run the whole path, from requests to the audit."),
    "accounts": Entry("tollbook.cli.accounts:accounts", "Make and list accounts."),
    "keys": Entry("tollbook.cli.accounts:keys", "Make and revoke the keys that callers show."),
    "grant": Entry("tollbook.cli.accounts:grant", "Give an account credit."),
    "top-up": Entry("tollbook.cli.credit:top_up", "Enter what was paid for an account."),
    "top-up-rule": Entry("tollbook.cli.credit:top_up_rule", "Top an account up by itself."),
    "refund": Entry("tollbook.cli.credit:refund", "Give back what an event cost, once."),
    "transfer": Entry("tollbook.cli.credit:transfer", "Move credit to another account."),
    "terms": Entry("tollbook.cli.credit:terms", "Say how far an account may go below 0."),
    "projects": Entry("tollbook.cli.credit:projects", "Make the projects of an account."),
    "limits": Entry("tollbook.cli.credit:limits", "Limit what is spent in a window of time."),
    "cards": Entry("tollbook.cli.cards:cards", "Check rate cards and put them in force."),
    "operators": Entry("tollbook.cli.operators:operators", "Make those who change prices."),
    "rerate": Entry("tollbook.cli.rerate:rerate", "Set right what a wrong price charged."),
    "rate": Entry("tollbook.cli.rate:rate", "Rate a file of usage by a folder of cards, offline."),
    "adapters": Entry("tollbook.cli.adapters:adapters", "Load and unload adapters."),
    "balance": Entry("tollbook.cli.balance:balance", "Show balances, and where they are true."),
    "receipt": Entry("tollbook.cli.balance:receipt", "Show what one request was charged."),
    "postings": Entry("tollbook.cli.balance:postings", "Show an account's postings."),
    "usage": Entry("tollbook.cli.usage:usage", "Sum what an account used, by anything."),
    "holds": Entry("tollbook.cli.usage:holds", "Show an account's open holds."),
    "period": Entry("tollbook.cli.period:period", "Close months."),
    "statements": Entry("tollbook.cli.period:statements", "Statements of closed months."),
    "ledger": Entry("tollbook.cli.ledger:ledger", "Look into the log: checkpoints, entries."),
    "export": Entry("tollbook.cli.export:export", "Write the logs as tiles with checkpoints."),
    "audit": Entry("tollbook.cli.audit:audit", "Recompute everything from an export and a key."),
}

# `tollbook ledger ...`
LEDGER_COMMANDS: dict[str, Entry] = {
    "verify": Entry(
        "tollbook.cli.ledger_verify:verify", "Check every row against what was signed."
    ),
    "rebuild": Entry("tollbook.cli.ledger_rebuild:rebuild", "Bring a lost database to its root."),
    "proof": Entry("tollbook.cli.ledger_proof:proof", "Write an entry with its proof."),
    "check-proof": Entry("tollbook.cli.ledger_proof:check_proof", "Check a proof, offline."),
    "partitions": Entry("tollbook.cli.ledger_state:partitions", "Who works on which log."),
    "streams": Entry("tollbook.cli.ledger_state:streams", "What producers sent, and what lacks."),
    "events": Entry("tollbook.cli.ledger_events:events", "Read entries, all or those that match."),
    "segments": Entry("tollbook.cli.ledger_segments:segments", "Where the leaves are kept."),
    "seal": Entry("tollbook.cli.ledger_segments:seal", "Move whole segments into files."),
}
