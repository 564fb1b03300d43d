"""RateCardService, put together of its three parts; owns the process that they rehearse in."""

from __future__ import annotations

from pricing.adapters.card_changes import CardChanges
from pricing.adapters.drafts import Drafts
from pricing.adapters.ledger_client import Ledger
from pricing.adapters.recorder import Recorder
from pricing.adapters.rehearser import Rehearser
from pricing.adapters.rerate_changes import RerateChanges
from tollbook.pricing.v1 import cards_pb2_grpc


class RateCards(CardChanges, Drafts, RerateChanges, cards_pb2_grpc.RateCardServiceServicer):
    """Answers RateCardService."""

    def __init__(
        self, recorder: Recorder, ledger: Ledger, rehearser: Rehearser, ledger_address: str
    ) -> None:
        CardChanges.__init__(self, recorder)
        Drafts.__init__(self, recorder, rehearser, ledger_address)
        RerateChanges.__init__(self, recorder, ledger, rehearser, ledger_address)
