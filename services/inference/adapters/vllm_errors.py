"""What went wrong in vLLM, in the port's own words."""

from __future__ import annotations

from typing import Any

from inference import engine as port
from kernel import errors


def failure_of(llm: Any, error: Exception) -> port.EngineLost | port.EngineFailed:
    """What an exception of a request that was taken in means: the engine's end, or this one's."""
    from vllm.v1.engine.exceptions import EngineDeadError

    # When the task that reads the core dies, all requests get its exception, whatever that is.
    if isinstance(error, EngineDeadError) or llm.errored:
        return port.EngineLost(str(error))
    return port.EngineFailed(str(error))


def refusal_of(
    llm: Any, error: Exception
) -> errors.InvalidArgument | port.EngineLost | port.EngineFailed:
    """The same of a request on its way in, which may also be the caller's own mistake."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, VLLMClientError | ValueError) and not isinstance(error, EngineDeadError):
        return errors.InvalidArgument(
            f"the engine refuses the request: {error}", reason="REFUSED_BY_ENGINE"
        )
    return failure_of(llm, error)
