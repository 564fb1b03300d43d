"""Brings the vLLM engine up, as quickly as can be had cheaply.

Owns the environment vLLM is loaded in and how its engine core becomes a
process. Must run before this process has an event loop, gRPC or any thread:
the core is forked from it, and a fork of a process with threads may hang.

What was found: left alone on a CPU, three processes import torch, one after the
other. Forking the core and running the worker inside it makes that one import.
vLLM's look at the model's class costs a fourth, in a process of its own, on the
first run of a user; without a GPU there is nothing to keep it away from, so it
is done here. Figures: docs/decisions.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inference.adapters import vllm_nursery
from inference.adapters.models import ModelUnusable
from inference.app.adapters import MAX_ADAPTERS

_PR_SET_PDEATHSIG: Final = 1
MAX_ADAPTER_RANK: Final = 64
# Process id of who forks a core right now; 0 when nobody does.
_forking = 0


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What may differ from one machine to the next.

    `threads`: the core's compute threads on a CPU. One processor is best left to
    this process: a thread too many halves the throughput, for they spin against
    each other. `kv_cache_gib`: the prefix cache on a CPU; `cache_blocks`: in blocks instead, 0
    for what that memory holds. `max_running`: sequences computed at once. `draft_tokens`: of
    speculative decoding by looking up what followed the same words before; 0 for none.
    `adapters_at_once`: adapters that may take part in one step.
    `stoppable`: the core can be ended and brought up again (CPU). `embeds`: it gives vectors.
    """

    model: Path
    threads: int
    kv_cache_gib: int
    max_running: int
    adapters_at_once: int = 8
    max_adapter_rank: int = MAX_ADAPTER_RANK
    stoppable: bool = False
    embeds: bool = False
    cache_blocks: int = 0
    draft_tokens: int = 0


def _bind_core_to_parent(parent: int) -> None:
    """In the forked core: die with the parent, and not by signals meant for it.

    vLLM has no such tie, so a kill -9 of the service would leave a core behind
    that holds the memory. Its own process group keeps a terminal's or a
    supervisor's SIGTERM from ending it while requests are drained.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setpgid(0, 0)


def _after_fork() -> None:
    if _forking:
        _bind_core_to_parent(_forking)


os.register_at_fork(after_in_child=_after_fork)


def _prepare_environment(options: VllmOptions) -> None:
    os.environ.update(
        # Nothing is asked of a network, and nothing is told to one.
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_DO_NOT_TRACK="1",
        # Its records go through our JSON handler.
        VLLM_CONFIGURE_LOGGING="0",
        # Entry points of whatever else is installed do not run in here.
        VLLM_PLUGINS="",
        VLLM_CPU_KVCACHE_SPACE=str(options.kv_cache_gib),
        TOKENIZERS_PARALLELISM="false",
    )
    # OpenMP reads it when torch is loaded.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)


def _stated_dtype(model: Path) -> str:
    """`float32` where the model says so, else `auto`, which would make it bfloat16.

    A model in float32 also never meets the instruction that a short bfloat16
    prompt can crash on.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    stated = config.get("dtype", config.get("torch_dtype"))
    return "float32" if stated == "float32" else "auto"


def _run_here(look: Callable[[], Any]) -> Any:
    """Take the place of vLLM's subprocess for looking at a model's class."""
    return look()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A running vllm AsyncLLM, and what brings another up after it was ended."""

    llm: Any
    again: Callable[[], Any] | None


def load(options: VllmOptions, stat_loggers: Sequence[Any]) -> Loaded:
    """Bring vLLM up. Takes seconds, blocks. Errors: ModelUnusable."""
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise AssertionError(f"the engine core is forked before any thread is made: {names}")
    _prepare_environment(options)
    # The imports make hundreds of thousands of objects that all stay.
    gc.disable()
    try:
        return _load(options, stat_loggers)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelUnusable(f"the engine cannot serve {options.model}: {reason}") from error
    finally:
        gc.freeze()
        gc.enable()


def _load(options: VllmOptions, stat_loggers: Sequence[Any]) -> Loaded:
    global _forking
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": str(options.model),
        "dtype": _stated_dtype(options.model),
        "max_num_seqs": options.max_running,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "enable_lora": True,
        "max_loras": options.adapters_at_once,
        # Room for all that may be served: one that was evicted is read from its
        # files again in the middle of serving, and the core dies if they are gone.
        "max_cpu_loras": MAX_ADAPTERS,
        "max_lora_rank": options.max_adapter_rank,
    }
    if options.cache_blocks:
        arguments["num_gpu_blocks_override"] = options.cache_blocks
    if options.draft_tokens and not options.embeds:
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": options.draft_tokens,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 4,
        }
    if options.embeds:
        # Whole inputs, each computed: what is counted is what was done.
        arguments |= {
            "runner": "pooling",
            "enable_lora": False,
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
        }
    if on_cpu:
        models: Any = importlib.import_module("vllm.model_executor.models.registry")
        models._run_in_subprocess = _run_here
        # Lets the worker live in the core's process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        arguments |= {
            "enforce_eager": True,
            "block_size": 32,
            # A prompt prefilled in parts draws a sample that is thrown away, and vLLM 0.32 then
            # sets a seeded request's generator back: CPU generators have no offset, the core
            # dies, and with it every caller's request. Whole prompts draw nothing to discard.
            "enable_chunked_prefill": False,
        }
    config = AsyncEngineArgs(**arguments).create_engine_config()
    if on_cpu:
        # vLLM has set spawn by now; this process is still free of threads.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    def bring_up() -> Any:
        # vLLM writes into what it is given.
        return AsyncLLM.from_vllm_config(
            copy.deepcopy(config),
            stat_loggers=list(stat_loggers),
            disable_log_stats=True,
            enable_log_requests=False,
        )

    if on_cpu and options.stoppable:
        _cores_from_nursery()
        return Loaded(bring_up(), bring_up)
    _forking = os.getpid()
    try:
        return Loaded(bring_up(), None)
    finally:
        _forking = 0


def _cores_from_nursery() -> None:
    """Have cores forked by a process that stays free of threads."""
    import vllm.v1.engine.utils
    import vllm.v1.worker.cpu_worker

    def bind(parent: int) -> None:
        global _forking
        _bind_core_to_parent(parent)
        _forking = os.getpid()

    gc.freeze()
    context = vllm_nursery.start(bind)
    engine_utils: Any = vllm.v1.engine.utils
    engine_utils.get_mp_context = lambda: context
