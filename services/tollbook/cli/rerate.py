"""`tollbook rerate`: charges of a wrong price set right, by entries of their own."""

from __future__ import annotations

import click
from google.protobuf.timestamp_pb2 import Timestamp

from kernel import ids
from kernel.clock import rfc3339, us_of
from tollbook.cli.card_preview import changes_table
from tollbook.cli.instants import INSTANT
from tollbook.cli.pricing_calls import REHEARSAL_S, as_json, ask, operator_key
from tollbook.pricing.v1 import cards_pb2

_TOP = 20


@click.command()
@click.option("--card", default="", help="The card whose prices were wrong and are right now.")
@click.option("--from", "starts", type=INSTANT, help="First instant of the events.")
@click.option("--to", "ends", type=INSTANT, help="First instant after them.")
@click.option("--id", "rerate_id", default="", help="Its id; by default a new one.")
@click.option("--reason", default="", help="Why.")
@click.option("--post", is_flag=True, help="Post the plan with this --id; go on if broken off.")
@click.option("--json", "for_programs", is_flag=True, help="For programs.")
def rerate(
    card: str,
    starts: Timestamp | None,
    ends: Timestamp | None,
    rerate_id: str,
    reason: str,
    post: bool,
    for_programs: bool,
) -> None:
    """Rate the events of an interval again by a card as it is known now.

    First it is planned and shown: tollbook rerate --card C --from T --to T.
    Then another operator posts it: tollbook rerate --post --id ID. The charges
    that were wrong stay; corrections are entries of their own, linked to them.
    """
    if post:
        _post(rerate_id, for_programs)
        return
    if not card or starts is None or ends is None:
        raise click.UsageError("a plan needs --card, --from and --to; posting needs --post, --id")
    request = cards_pb2.PlanRerateRequest(
        rerate_id=rerate_id or ids.new_id("rerate"),
        card_id=card,
        event_from=starts,
        event_to=ends,
        reason=reason,
    )
    answer = ask(
        lambda to, timeout_s: to.cards.PlanRerate(
            request, timeout=timeout_s, metadata=operator_key()
        ),
        REHEARSAL_S,
    )
    if for_programs:
        click.echo(as_json(answer))
        return
    plan = answer.plan
    click.echo(
        f"re-rating {plan.rerate_id} of card {plan.card_id}, events from"
        f" {rfc3339(us_of(plan.event_from))} to {rfc3339(us_of(plan.event_to))}\n"
    )
    if not plan.corrections:
        click.echo("nothing changes: there is nothing to post")
        return
    click.echo(changes_table("TOTAL", answer.totals))
    click.echo(f"\naccounts that change: {answer.accounts_changed}\n")
    click.echo(changes_table("ACCOUNT", answer.accounts[:_TOP]))
    click.echo(
        f"\n{plan.corrections} corrections in {len(plan.batch_digests)} batches; nothing is posted"
        f" yet\npost it: tollbook rerate --post --id {plan.rerate_id}"
    )


def _post(rerate_id: str, for_programs: bool) -> None:
    if not rerate_id:
        raise click.UsageError("--post needs the --id of a plan")
    request = cards_pb2.PostRerateRequest(rerate_id=rerate_id)
    answer = ask(
        lambda to, timeout_s: to.cards.PostRerate(
            request, timeout=timeout_s, metadata=operator_key()
        ),
        REHEARSAL_S,
    )
    if for_programs:
        click.echo(as_json(answer))
        return
    if answer.batches_posted:
        click.echo(
            f"re-rating {rerate_id} is posted: {answer.corrections} corrections,"
            f" {answer.batches_posted} of {answer.batches} batches by this call, control size"
            f" {answer.control_size}"
        )
    else:
        click.echo(f"re-rating {rerate_id} was posted before: {answer.corrections} corrections")
