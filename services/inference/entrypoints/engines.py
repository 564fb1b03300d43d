"""Which engine a service has: one setting decides."""

from __future__ import annotations

from inference.engine import Engine
from inference.settings import EngineSettings


def make(settings: EngineSettings) -> Engine:
    """The engine inside, or the server at `engine_url`. Errors: models.ModelUnusable.

    The engine inside forks: call it before any thread, any loop, and before gRPC.
    """
    if settings.engine_url:
        from inference.adapters.upstream.engine import UpstreamEngine, UpstreamOptions

        return UpstreamEngine(
            UpstreamOptions(
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
            max_running=settings.engine_requests,
            stoppable=settings.idle_timeout_ms > 0,
        )
    )
