"""Cached tokens that are image tokens too, billed as both: litellm#37407.

Kinds of content and the cache divide the same tokens. Every token is in one
leaf, whatever the overlap; figures that allow no such leaves are put aside.
"""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.unit.pricing.published.rated import amount_pico, catalogue, rate

from pricing.domain.readers import dialects, reading
from pricing.domain.readers.reading import UsageReadError

pytestmark = pytest.mark.museum

# Every kind and use has a price of its own: a token in two leaves would show.
CARD = """
card: standard
currency: USD
effective_from: 2026-01-01T00:00:00Z
lines:
  - {id: in, match: {direction: in, modality: text, cache_use: none}, price: 0.000001}
  - {id: read, match: {direction: in, modality: text, cache_use: read}, price: 0.0000001}
  - {id: image, match: {direction: in, modality: image, cache_use: none}, price: 0.00001}
  - {id: image-read, match: {direction: in, modality: image, cache_use: read}, price: 0.000001}
  - {id: audio, match: {direction: in, modality: audio, cache_use: none}, price: 0.0001}
  - {id: audio-read, match: {direction: in, modality: audio, cache_use: read}, price: 0.00001}
"""
COUNT = st.integers(0, 1000)


@given(text=COUNT, image=COUNT, audio=COUNT, cached=st.integers(0, 4000))
def test_every_token_is_billed_once_whatever_the_overlap(
    text: int, image: int, audio: int, cached: int
) -> None:
    total = text + image + audio
    usage = {
        "prompt_tokens": total,
        "prompt_tokens_details": {
            "image_tokens": image,
            "audio_tokens": audio,
            "cached_tokens": cached,
        },
    }
    if cached > total:
        with pytest.raises(UsageReadError) as refused:
            dialects.named("openai_chat").read(usage)
        assert refused.value.reason == reading.NEGATIVE_LEAF
        assert refused.value.field == "prompt_tokens_details.cached_tokens"
        return
    rated = rate(catalogue(CARD), "openai_chat", usage, "m")
    by_line = {leaf.priced.line.line_id: leaf.charged for leaf in rated if leaf.priced}
    assert sum(by_line.values()) == total
    for kind, count in (("image", image), ("audio", audio)):
        assert by_line.get(kind, 0) + by_line.get(f"{kind}-read", 0) == count
    reads = [count for line, count in by_line.items() if line.endswith("read")]
    assert sum(reads) == cached
    # By hand: what was cached is text first, then image, then audio.
    left, expected_pico = cached, 0
    for count, price in ((text, 10**6), (image, 10**7), (audio, 10**8)):
        read = min(left, count)
        left -= read
        expected_pico += read * price // 10 + (count - read) * price
    assert amount_pico(rated) == expected_pico


@given(image=COUNT, cached_image=COUNT, cached=COUNT, text=COUNT)
def test_an_overlap_that_is_said_is_believed_or_refused(
    image: int, cached_image: int, cached: int, text: int
) -> None:
    assume(cached <= image + text)
    usage = {
        "input_tokens": image + text,
        "output_tokens": 0,
        "input_token_details": {
            "image_tokens": image,
            "cached_tokens": cached,
            "cached_tokens_details": {"image_tokens": cached_image},
        },
    }
    # What of the cache is not said to be images is text, as far as there is text.
    if cached_image > min(image, cached):
        with pytest.raises(UsageReadError) as refused:
            dialects.named("openai_responses").read(usage)
        assert refused.value.reason == reading.NEGATIVE_LEAF
        return
    rated = rate(catalogue(CARD), "openai_responses", usage, "m")
    by_line = {leaf.priced.line.line_id: leaf.charged for leaf in rated if leaf.priced}
    assert sum(by_line.values()) == image + text
    assert by_line.get("image-read", 0) == max(cached_image, cached - text)
