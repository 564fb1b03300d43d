"""Looking for cycles of dead objects less often, in processes that make many objects which live on.

CPython looks whenever there are 700 objects more than before, and each time at
some that it looked at already. A process that folds a log makes tens of
thousands in a step, nearly all of them kept until the step is written and then
freed by their counts: it spent two fifths of its time looking, and found
nothing. What makes cycles here is rare (an exception and its frames), so
looking seldom keeps no memory to speak of.

Source: the gc module's documentation (generations, thresholds, freeze).
"""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 50_000
"""So many container objects more than were freed: some megabytes."""
_MIDDLE: Final = 20
_OLD: Final = 10


def settle() -> None:
    """Take what is alive now (modules, compiled code) out of every later look, and look less often.

    For a process to call once it has loaded what it keeps, and again when it keeps something
    else: what was taken out before is looked at once more.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
