"""What an engine behind a wire says that it used, held against what it handed out.

Pure. The bill is made of what was handed out, never of what is said; where the two
differ, the tokens by which they do are disputed, and what is disputed is not billed
until somebody has looked (usage.UNIT_DISPUTED_TOKEN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# What stands for bytes that are no character. How many of them a server writes for a broken
# sequence depends on where it cuts its stream.
_REPLACEMENT: Final = "\ufffd"
# A claim beyond it is nonsense; the dispute stays a number that fits everywhere.
MAX_CLAIM: Final = 10**9


@dataclass(frozen=True, slots=True)
class Claim:
    """A usage object: the engine's own figures of one choice, all 0 to MAX_CLAIM.

    `cached_tokens` is None where it does not say.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Doubt:
    """Tokens that are not billed until somebody has looked; disjoint from those that are.

    `prompt_tokens` and `output_tokens` are part of what was counted, `beyond_tokens` is
    claimed on top of it.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    beyond_tokens: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.prompt_tokens + self.output_tokens + self.beyond_tokens


NO_DOUBT: Final = Doubt()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim.

    `surplus_tokens`: output claimed beyond what was handed out. `cached_tokens`: the
    cache's figure, 0 where none was given or it cannot be. `reasons`: what is wrong, in
    words; empty when all agrees.
    """

    doubt: Doubt
    surplus_tokens: int
    cached_tokens: int
    reasons: tuple[str, ...]


def judge(
    claim: Claim | None,
    prompt_tokens: int,
    output_tokens: int,
    *,
    told_ids: bool,
    spoken_agrees: bool,
) -> Verdict:
    """Hold a claim against what was counted here: the lesser of both is out of doubt.

    `told_ids`: the engine handed out ids, and not text alone; then the count here stands
    by itself and a claim may be missing. `spoken_agrees`: the text is what the ids say.
    """
    reasons: list[str] = []
    sure_prompt, sure_output = prompt_tokens, output_tokens
    surplus = beyond_prompt = cached = 0
    if claim is None:
        if not told_ids and output_tokens:
            sure_output = 0
            reasons.append(f"no usage was given for {output_tokens} tokens counted from text alone")
    else:
        if claim.prompt_tokens != prompt_tokens:
            sure_prompt = min(prompt_tokens, claim.prompt_tokens)
            beyond_prompt = max(0, claim.prompt_tokens - prompt_tokens)
            reasons.append(f"{claim.prompt_tokens} prompt tokens claimed, {prompt_tokens} sent")
        if claim.output_tokens != output_tokens:
            sure_output = min(output_tokens, claim.output_tokens)
            surplus = max(0, claim.output_tokens - output_tokens)
            reasons.append(
                f"{claim.output_tokens} output tokens claimed, {output_tokens} handed out"
            )
        cached = claim.cached_tokens or 0
        if cached > sure_prompt:
            reasons.append(f"{cached} cached tokens claimed of a prompt of {sure_prompt}")
            sure_prompt = cached = 0
    if not spoken_agrees:
        sure_output = 0
        reasons.append("the text is not what the token ids say")
    doubt = Doubt(prompt_tokens - sure_prompt, output_tokens - sure_output, beyond_prompt + surplus)
    return Verdict(doubt, surplus, cached, tuple(reasons))


def says_the_same(decoded: str, text: str, stops: Sequence[str]) -> bool:
    """True when a text is what its ids decode to, as far as servers cut and hold it back.

    A stop string and what follows it may be cut off; broken characters may be written in
    several ways, and at the end be held back together with what stands before them.
    """
    plain = decoded.replace(_REPLACEMENT, "")
    given = text.replace(_REPLACEMENT, "")
    if not plain.startswith(given):
        return False
    rest = plain[len(given) :]
    return not rest or decoded.endswith(_REPLACEMENT) or any(stop in plain for stop in stops)
