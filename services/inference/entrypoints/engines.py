"""Which engine a service has: one setting decides."""

from __future__ import annotations

from inference.adapters.models import ModelUnusable
from inference.engine import Engine
from inference.settings import EngineSettings


def make(settings: EngineSettings) -> Engine:
    """The engine inside, or the server at `engine_url`. Errors: models.ModelUnusable.

    The engine inside forks: call it before any thread, any loop, and before gRPC.
    """
    _check_together(settings)
    if settings.engine_url:
        from inference.adapters.upstream.engine import UpstreamEngine, UpstreamOptions

        return UpstreamEngine(
            UpstreamOptions(
                embeds=settings.engine_task == "embed",
                url=settings.engine_url,
                model=settings.engine_model or settings.served_name,
                base_name=settings.served_name,
                tokenizer=settings.model,
                key=settings.engine_key.get_secret_value(),
                max_running=settings.engine_requests,
                silence_ms=settings.engine_silence_ms,
            )
        )
    from inference.adapters.vllm_engine import VllmEngine
    from inference.adapters.vllm_start import VllmOptions

    return VllmEngine(
        VllmOptions(
            model=settings.model,
            threads=settings.engine_threads,
            kv_cache_gib=settings.kv_cache_gib,
            cache_blocks=settings.cache_blocks,
            draft_tokens=settings.draft_tokens,
            max_running=settings.engine_requests,
            stoppable=settings.idle_timeout_ms > 0,
            embeds=settings.engine_task == "embed",
        )
    )


def _check_together(settings: EngineSettings) -> None:
    """Errors: ModelUnusable, for settings that would start and then refuse every call."""
    if settings.tool_parser and settings.engine_url:
        raise ModelUnusable(
            "TOLLBOOK_TOOL_PARSER needs the engine inside: text from the server at"
            " TOLLBOOK_ENGINE_URL comes without the special tokens that a parser looks for. Leave"
            " it out (tool_choice required or a function's name works without)"
        )
    if settings.tool_parser and settings.engine_task == "embed":
        raise ModelUnusable("TOLLBOOK_TOOL_PARSER: a model that embeds calls no tools")
    if settings.adapters and settings.engine_task == "embed":
        raise ModelUnusable("TOLLBOOK_ADAPTERS: a model that embeds is served without adapters")
