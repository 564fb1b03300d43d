"""Published prices against usage objects: what each request must cost, worked out by hand.

A case's `working` is the arithmetic on paper, in US dollars per million units
(`14*3 + 65*15` is 14 input tokens at $3 and 65 output tokens at $15); `expected`
is its result as an exact decimal. Neither knows anything of the code under test.

Prices come from the pages named in cards/*.yaml. Usage objects come from:

RECORDED  answers of the providers' own services, recorded by an open-source
          client's tests: github.com/pydantic/genai-prices,
          tests/dataset/usages.json at commit 016961828b5ecb1e38932a5675fe9afa2668a135
XAI_DOCS  docs.x.ai/developers/advanced-api-usage/prompt-caching/usage-and-pricing
FORUM     discuss.ai.google.dev/t/question-about-gemini-api-caching-pricing/107349
OPENAPI   field by field by OpenAI's published API description; counts made here
MADE      counts made here, at an edge of a price that is published

Pages and repositories were read in stored copies on 2026-11-24.
"""

from __future__ import annotations

from typing import Any, NamedTuple

RECORDED = "github.com/pydantic/genai-prices@0169618 tests/dataset/usages.json"
XAI_DOCS = "docs.x.ai/developers/advanced-api-usage/prompt-caching/usage-and-pricing"
FORUM = "discuss.ai.google.dev/t/question-about-gemini-api-caching-pricing/107349"
OPENAPI = "OpenAI's API description; counts made here"
MADE = "counts made here"


class Case(NamedTuple):
    """One request and its price."""

    name: str
    card: str
    """The file in cards/ whose header names the price page."""
    model: str
    dialect: str
    usage: dict[str, Any]
    usage_source: str
    working: str
    expected: str
    """US dollars."""
    tier: str = ""
    at: str = "2026-06-01T12:00:00Z"


def _messages(input_tokens: int, output_tokens: int, **more: Any) -> dict[str, Any]:
    """A recorded answer of Anthropic's, which states all its zeros."""
    return {
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    } | more


def _chat(prompt: int, completion: int, **details: int) -> dict[str, Any]:
    """A recorded answer of OpenAI's Chat Completions."""
    return {
        "completion_tokens": completion,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0} | details,
        "total_tokens": prompt + completion,
    }


def _responses(input_: int, cached: int, output: int, reasoning: int) -> dict[str, Any]:
    """A recorded answer of OpenAI's Responses."""
    return {
        "input_tokens": input_,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_ + output,
    }


def _gemini(
    prompt: dict[str, int], candidates: int, thoughts: int = 0, **more: Any
) -> dict[str, Any]:
    """A recorded answer of Gemini's; what is 0 is left out, as it does."""
    usage: dict[str, Any] = {
        "promptTokenCount": sum(prompt.values()),
        "promptTokensDetails": [
            {"modality": modality, "tokenCount": count} if count else {"modality": modality}
            for modality, count in prompt.items()
        ],
        "totalTokenCount": sum(prompt.values()) + candidates + thoughts,
    }
    if candidates:
        usage["candidatesTokenCount"] = candidates
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage | more


_GROK = {
    "prompt_tokens": 125,
    "completion_tokens": 48,
    "total_tokens": 173,
    "prompt_tokens_details": {
        "text_tokens": 125,
        "audio_tokens": 0,
        "image_tokens": 0,
        "cached_tokens": 98,
    },
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}

_REALTIME = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 119,
        "audio_tokens": 13,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}

_CACHED_CHAT = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 640},
}

_SONNET_45 = ("anthropic-2026.yaml", "claude-sonnet-4-5", "anthropic")
_SONNET_4 = ("anthropic-2025.yaml", "claude-sonnet-4", "anthropic")
_GPT_4O = ("openai.yaml", "gpt-4o", "openai_chat")
_GPT_5 = ("openai.yaml", "gpt-5", "openai_responses")
_FLASH_20 = ("google.yaml", "gemini-2.0-flash", "gemini")
_FLASH_25 = ("google.yaml", "gemini-2.5-flash", "gemini")
_PRO_25 = ("google.yaml", "gemini-2.5-pro", "gemini")
_V4_PRO = ("deepseek-2026.yaml", "deepseek-v4-pro", "openai_chat")

ANTHROPIC = [
    Case("no tools", *_SONNET_45, _messages(14, 65), RECORDED, "14*3 + 65*15", "0.001017"),
    Case("strict tool", *_SONNET_45, _messages(744, 53), RECORDED, "744*3 + 53*15", "0.003027"),
    Case("tool output", *_SONNET_45, _messages(824, 23), RECORDED, "824*3 + 23*15", "0.002817"),
    Case("mixed tools", *_SONNET_45, _messages(797, 91), RECORDED, "797*3 + 91*15", "0.003756"),
    Case("long answer", *_SONNET_45, _messages(713, 166), RECORDED, "713*3 + 166*15", "0.004629"),
    Case("document", *_SONNET_45, _messages(2682, 101), RECORDED, "2682*3 + 101*15", "0.009561"),
    Case("history", *_SONNET_45, _messages(2218, 13), RECORDED, "2218*3 + 13*15", "0.006849"),
    Case(
        "haiku",
        "anthropic-2026.yaml",
        "claude-haiku-4-5",
        "anthropic",
        _messages(8, 21),
        RECORDED,
        "8*1 + 21*5",
        "0.000113",
    ),
    Case("sonnet 4", *_SONNET_4, _messages(458, 38), RECORDED, "458*3 + 38*15", "0.001944"),
    Case("sonnet 4 again", *_SONNET_4, _messages(525, 73), RECORDED, "525*3 + 73*15", "0.00267"),
    Case("fetched page", *_SONNET_4, _messages(6346, 354), RECORDED, "6346*3 + 354*15", "0.024348"),
    Case(
        "batch is half",
        *_SONNET_4,
        _messages(458, 38, service_tier="batch"),
        MADE,
        "458*1.5 + 38*7.5",
        "0.000972",
    ),
    Case(
        "both kinds of cache writes and reads",
        *_SONNET_4,
        _messages(
            2048,
            503,
            cache_read_input_tokens=1800,
            cache_creation_input_tokens=248,
            cache_creation={"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
        ),
        MADE,
        "2048*3 + 1800*0.30 + 148*3.75 + 100*6 + 503*15",
        "0.015384",
    ),
    Case(
        "cache writes without a split have the default time",
        "anthropic-2025.yaml",
        "claude-opus-4-1",
        "anthropic",
        {"input_tokens": 10, "output_tokens": 20, "cache_creation_input_tokens": 1000},
        MADE,
        "10*15 + 1000*18.75 + 20*75",
        "0.0204",
    ),
    Case(
        "long context: the last token at the base price",
        *_SONNET_4,
        _messages(150000, 1000, cache_read_input_tokens=50000),
        MADE,
        "150000*3 + 50000*0.30 + 1000*15",
        "0.48",
    ),
    Case(
        "long context: cache reads count towards it",
        *_SONNET_4,
        _messages(150000, 1000, cache_read_input_tokens=50001),
        MADE,
        "150000*6 + 50001*0.60 + 1000*22.5",
        "0.9525006",
    ),
    Case(
        "opus 4.6",
        "anthropic-2026.yaml",
        "claude-opus-4-6",
        "anthropic",
        _messages(1200, 340, cache_read_input_tokens=40000),
        MADE,
        "1200*5 + 40000*0.50 + 340*25",
        "0.0345",
    ),
]

OPENAI = [
    Case(
        "image by url",
        "openai.yaml",
        "gpt-4.1-nano",
        "openai_chat",
        _chat(515, 6),
        RECORDED,
        "515*0.10 + 6*0.40",
        "0.0000539",
    ),
    Case("tool call", *_GPT_4O, _chat(46, 11), RECORDED, "46*2.5 + 11*10", "0.000225"),
    Case("tool result", *_GPT_4O, _chat(1185, 9), RECORDED, "1185*2.5 + 9*10", "0.0030525"),
    Case("greeting", *_GPT_4O, _chat(14, 7), RECORDED, "14*2.5 + 7*10", "0.000105"),
    Case("first turn", *_GPT_4O, _chat(42, 13), RECORDED, "42*2.5 + 13*10", "0.000235"),
    Case("second turn", *_GPT_4O, _chat(67, 9), RECORDED, "67*2.5 + 9*10", "0.0002575"),
    Case("third turn", *_GPT_4O, _chat(87, 17), RECORDED, "87*2.5 + 17*10", "0.0003875"),
    Case(
        "instructions",
        "openai.yaml",
        "gpt-4o",
        "openai_responses",
        _responses(24, 0, 8, 0),
        RECORDED,
        "24*2.5 + 8*10",
        "0.00014",
    ),
    Case(
        "output type",
        "openai.yaml",
        "gpt-4o",
        "openai_responses",
        _responses(286, 0, 11, 0),
        RECORDED,
        "286*2.5 + 11*10",
        "0.000825",
    ),
    Case(
        "native output",
        "openai.yaml",
        "gpt-4o",
        "openai_responses",
        _responses(89, 0, 16, 0),
        RECORDED,
        "89*2.5 + 16*10",
        "0.0003825",
    ),
    Case(
        "gpt-4.1",
        "openai.yaml",
        "gpt-4.1",
        "openai_responses",
        _responses(36, 0, 15, 0),
        RECORDED,
        "36*2 + 15*8",
        "0.000192",
    ),
    Case(
        "gpt-4.1 again",
        "openai.yaml",
        "gpt-4.1",
        "openai_responses",
        _responses(61, 0, 56, 0),
        RECORDED,
        "61*2 + 56*8",
        "0.00057",
    ),
    Case(
        "gpt-4.1 history",
        "openai.yaml",
        "gpt-4.1",
        "openai_responses",
        _responses(329, 0, 12, 0),
        RECORDED,
        "329*2 + 12*8",
        "0.000754",
    ),
    Case(
        "thinking is output",
        *_GPT_5,
        _responses(124, 0, 1926, 1792),
        RECORDED,
        "124*1.25 + 1926*10",
        "0.019415",
    ),
    Case(
        "almost all cached",
        *_GPT_5,
        _responses(2087, 2048, 124, 0),
        RECORDED,
        "39*1.25 + 2048*0.125 + 124*10",
        "0.00154475",
    ),
    Case(
        "web search, cached",
        *_GPT_5,
        _responses(115886, 92160, 1720, 1472),
        RECORDED,
        "23726*1.25 + 92160*0.125 + 1720*10",
        "0.0583775",
    ),
    Case(
        "web search in a workflow",
        *_GPT_5,
        _responses(12594, 3200, 1150, 1088),
        RECORDED,
        "9394*1.25 + 3200*0.125 + 1150*10",
        "0.0236425",
    ),
    Case(
        "gpt-4.1 at priority",
        "openai.yaml",
        "gpt-4.1",
        "openai_responses",
        _responses(36, 0, 15, 0),
        RECORDED,
        "36*3.5 + 15*14",
        "0.000336",
        tier="priority",
    ),
    Case(
        "gpt-5 at priority, cached",
        *_GPT_5,
        _responses(2087, 2048, 124, 0),
        RECORDED,
        "39*2.5 + 2048*0.25 + 124*20",
        "0.0030895",
        tier="priority",
    ),
    Case(
        "gpt-5-mini at priority",
        "openai.yaml",
        "gpt-5-mini",
        "openai_responses",
        _responses(1000, 200, 500, 320),
        OPENAPI,
        "800*0.45 + 200*0.045 + 500*3.6",
        "0.002169",
        tier="priority",
    ),
    Case(
        "o3-mini reasoning",
        "openai.yaml",
        "o3-mini",
        "openai_chat",
        {
            "prompt_tokens": 75,
            "completion_tokens": 482,
            "total_tokens": 557,
            "completion_tokens_details": {"reasoning_tokens": 448},
        },
        OPENAPI,
        "75*1.1 + 482*4.4",
        "0.0022033",
    ),
    Case(
        "o1, half of it cached",
        "openai.yaml",
        "o1",
        "openai_chat",
        _chat(2048, 300, cached_tokens=1024),
        OPENAPI,
        "1024*15 + 1024*7.5 + 300*60",
        "0.04104",
    ),
    Case(
        "rejected predictions are paid for",
        *_GPT_4O,
        {
            "prompt_tokens": 500,
            "completion_tokens": 120,
            "total_tokens": 620,
            "completion_tokens_details": {
                "accepted_prediction_tokens": 60,
                "rejected_prediction_tokens": 25,
            },
        },
        OPENAPI,
        "500*2.5 + 120*10",
        "0.00245",
    ),
    Case(
        "272,000 tokens of context",
        "openai.yaml",
        "gpt-5.4",
        "openai_responses",
        _responses(272000, 0, 1000, 0),
        MADE,
        "272000*2.5 + 1000*15",
        "0.695",
    ),
    Case(
        "one token more: all at the long price",
        "openai.yaml",
        "gpt-5.4",
        "openai_responses",
        _responses(272001, 0, 1000, 0),
        MADE,
        "272001*5 + 1000*22.5",
        "1.382505",
    ),
    Case(
        "realtime, text and audio",
        "openai-realtime.yaml",
        "gpt-4o-realtime-preview",
        "openai_responses",
        _REALTIME,
        OPENAPI,
        "55*5 + 64*2.5 + 13*40 + 30*20 + 91*80",
        "0.008835",
    ),
    Case(
        "realtime 1.5",
        "openai-realtime.yaml",
        "gpt-realtime-1.5",
        "openai_responses",
        _REALTIME,
        OPENAPI,
        "55*4 + 64*0.4 + 13*32 + 30*16 + 91*64",
        "0.0069656",
    ),
    Case(
        "realtime 2.1 mini",
        "openai-realtime.yaml",
        "gpt-realtime-2.1-mini",
        "openai_responses",
        _REALTIME,
        OPENAPI,
        "55*0.6 + 64*0.06 + 13*10 + 30*2.4 + 91*20",
        "0.00205884",
    ),
    Case(
        "image generation",
        "openai.yaml",
        "gpt-image-2",
        "openai_responses",
        {
            "total_tokens": 100,
            "input_tokens": 50,
            "output_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 50},
        },
        OPENAPI,
        "10*5 + 40*8 + 50*30",
        "0.00187",
    ),
]

GOOGLE = [
    Case(
        "video",
        *_FLASH_20,
        _gemini({"TEXT": 9, "VIDEO": 1560}, 60, trafficType="ON_DEMAND"),
        RECORDED,
        "1569*0.10 + 60*0.40",
        "0.0001809",
    ),
    Case(
        "video with an empty sound track",
        *_FLASH_20,
        _gemini({"VIDEO": 258, "TEXT": 10, "AUDIO": 0}, 139),
        RECORDED,
        "268*0.10 + 139*0.40",
        "0.0000824",
    ),
    Case(
        "documents",
        *_FLASH_20,
        _gemini({"DOCUMENT": 516, "TEXT": 26}, 17),
        RECORDED,
        "542*0.10 + 17*0.40",
        "0.000061",
    ),
    Case(
        "over the cloud's own door",
        *_FLASH_20,
        _gemini({"TEXT": 13}, 8, trafficType="ON_DEMAND"),
        RECORDED,
        "13*0.10 + 8*0.40",
        "0.0000045",
    ),
    Case(
        "native output",
        *_FLASH_20,
        _gemini({"TEXT": 8}, 20),
        RECORDED,
        "8*0.10 + 20*0.40",
        "0.0000088",
    ),
    Case(
        "stopped by safety, no answer",
        "google.yaml",
        "gemini-1.5-flash",
        "gemini",
        _gemini({"TEXT": 14}, 0),
        RECORDED,
        "14*0.075",
        "0.00000105",
    ),
    Case(
        "thoughts beside the answer",
        *_FLASH_25,
        _gemini({"TEXT": 85}, 13, 32),
        RECORDED,
        "85*0.30 + (13 + 32)*2.5",
        "0.000138",
    ),
    Case(
        "more thoughts than answer",
        *_FLASH_25,
        _gemini({"TEXT": 23}, 25, 158),
        RECORDED,
        "23*0.30 + (25 + 158)*2.5",
        "0.0004644",
    ),
    Case(
        "long thoughts",
        *_FLASH_25,
        _gemini({"TEXT": 12}, 109, 806),
        RECORDED,
        "12*0.30 + (109 + 806)*2.5",
        "0.0022911",
    ),
    Case(
        "enum output",
        *_FLASH_25,
        _gemini({"TEXT": 12}, 13, 448),
        RECORDED,
        "12*0.30 + (13 + 448)*2.5",
        "0.0011561",
    ),
    Case(
        "pro",
        *_PRO_25,
        _gemini({"TEXT": 57}, 15, 124),
        RECORDED,
        "57*1.25 + (15 + 124)*10",
        "0.00146125",
    ),
    Case(
        "pro, second try",
        *_PRO_25,
        _gemini({"TEXT": 109}, 16, 199),
        RECORDED,
        "109*1.25 + (16 + 199)*10",
        "0.00228625",
    ),
    Case(
        "pro, third try",
        *_PRO_25,
        _gemini({"TEXT": 142}, 1, 97),
        RECORDED,
        "142*1.25 + (1 + 97)*10",
        "0.0011575",
    ),
    Case(
        "lite",
        "google.yaml",
        "gemini-2.5-flash-lite",
        "gemini",
        _gemini({"TEXT": 8}, 8),
        RECORDED,
        "8*0.10 + 8*0.40",
        "0.000004",
    ),
    Case(
        "cached content",
        *_PRO_25,
        {
            "promptTokenCount": 11500,
            "candidatesTokenCount": 1000,
            "totalTokenCount": 22500,
            "cachedContentTokenCount": 10000,
            "thoughtsTokenCount": 10000,
        },
        FORUM,
        "1500*1.25 + 10000*0.125 + 11000*10",
        "0.113125",
    ),
    Case(
        "200,000 tokens of context",
        *_PRO_25,
        _gemini({"TEXT": 200000}, 1000),
        MADE,
        "200000*1.25 + 1000*10",
        "0.26",
    ),
    Case(
        "one token more: all at the long price",
        *_PRO_25,
        _gemini({"TEXT": 200001}, 1000),
        MADE,
        "200001*2.5 + 1000*15",
        "0.5150025",
    ),
    Case(
        "long, from a cache",
        *_PRO_25,
        _gemini({"TEXT": 250000}, 1000, cachedContentTokenCount=240000),
        MADE,
        "10000*2.5 + 240000*0.25 + 1000*15",
        "0.1",
    ),
]

OTHERS = [
    Case(
        "grok 4 by chat",
        "xai.yaml",
        "grok-4",
        "openai_chat",
        _GROK,
        XAI_DOCS,
        "27*3 + 98*0.75 + 48*15",
        "0.0008745",
    ),
    Case(
        "grok 4 by responses",
        "xai.yaml",
        "grok-4",
        "openai_responses",
        _responses(125, 98, 48, 0),
        XAI_DOCS,
        "27*3 + 98*0.75 + 48*15",
        "0.0008745",
    ),
    Case(
        "grok 4.3",
        "xai.yaml",
        "grok-4.3",
        "openai_chat",
        _GROK,
        XAI_DOCS,
        "27*1.25 + 98*0.2 + 48*2.5",
        "0.00017335",
    ),
    Case(
        "grok 4, 128,000 tokens",
        "xai.yaml",
        "grok-4",
        "openai_chat",
        _chat(128000, 100),
        MADE,
        "128000*3 + 100*15",
        "0.3855",
    ),
    Case(
        "grok 4, one more: all at the long price",
        "xai.yaml",
        "grok-4",
        "openai_chat",
        _chat(128001, 100),
        MADE,
        "128001*6 + 100*30",
        "0.771006",
    ),
    Case(
        "deepseek chat of 2025",
        "deepseek-2025.yaml",
        "deepseek-chat",
        "openai_chat",
        _CACHED_CHAT,
        MADE,
        "360*0.27 + 640*0.07 + 200*1.10",
        "0.000362",
    ),
    Case(
        "deepseek reasoner of 2025",
        "deepseek-2025.yaml",
        "deepseek-reasoner",
        "openai_chat",
        _CACHED_CHAT,
        MADE,
        "360*0.55 + 640*0.14 + 200*2.19",
        "0.0007256",
    ),
    Case(
        "peak hours",
        *_V4_PRO,
        _CACHED_CHAT,
        MADE,
        "360*1.32 + 640*0.044 + 200*3.96",
        "0.00129536",
        at="2026-11-24T02:00:00Z",
    ),
    Case(
        "the last instant before them",
        *_V4_PRO,
        _CACHED_CHAT,
        MADE,
        "360*0.66 + 640*0.022 + 200*1.98",
        "0.00064768",
        at="2026-11-24T00:59:59.999999Z",
    ),
    Case(
        "their first instant",
        *_V4_PRO,
        _CACHED_CHAT,
        MADE,
        "360*1.32 + 640*0.044 + 200*3.96",
        "0.00129536",
        at="2026-11-24T01:00:00Z",
    ),
    Case(
        "between two of them",
        *_V4_PRO,
        _CACHED_CHAT,
        MADE,
        "360*0.66 + 640*0.022 + 200*1.98",
        "0.00064768",
        at="2026-11-24T04:00:00Z",
    ),
    Case(
        "the second of the day",
        *_V4_PRO,
        _CACHED_CHAT,
        MADE,
        "360*1.32 + 640*0.044 + 200*3.96",
        "0.00129536",
        at="2026-11-24T09:59:59Z",
    ),
    Case(
        "a Sunday has none",
        *_V4_PRO,
        _CACHED_CHAT,
        MADE,
        "360*0.66 + 640*0.022 + 200*1.98",
        "0.00064768",
        at="2026-11-22T02:00:00Z",
    ),
    Case(
        "deep research: citations, reasoning and searches by their own prices",
        "perplexity.yaml",
        "sonar-deep-research",
        "tollbook",
        {
            "quantities": [
                {"unit": "token", "direction": "in", "amount": 40},
                {"unit": "token", "direction": "out", "amount": 7000},
                {"unit": "token", "direction": "in", "token_kind": "citation", "amount": 20000},
                {"unit": "token", "direction": "out", "token_kind": "reasoning", "amount": 70000},
                {"unit": "search", "amount": 30},
            ]
        },
        MADE,
        "40*2 + 7000*8 + 20000*2 + 70000*3 + 30*5000",
        "0.45608",
    ),
    Case(
        "sonar pro",
        "perplexity.yaml",
        "sonar-pro",
        "openai_chat",
        {"prompt_tokens": 26, "completion_tokens": 832, "total_tokens": 858},
        MADE,
        "26*3 + 832*15",
        "0.012558",
    ),
    Case(
        "mistral large",
        "mistral.yaml",
        "mistral-large-latest",
        "openai_chat",
        {"prompt_tokens": 4800, "completion_tokens": 350, "total_tokens": 5150},
        MADE,
        "4800*2 + 350*6",
        "0.0117",
    ),
    Case(
        "ministral",
        "mistral.yaml",
        "ministral-3b-latest",
        "openai_chat",
        {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        MADE,
        "7*0.04 + 3*0.04",
        "0.0000004",
    ),
    Case(
        "nova micro",
        "amazon.yaml",
        "amazon-nova-micro",
        "openai_chat",
        {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        MADE,
        "1*0.035 + 1*0.14",
        "0.000000175",
    ),
]

CASES = [*ANTHROPIC, *OPENAI, *GOOGLE, *OTHERS]
