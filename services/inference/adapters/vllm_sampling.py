"""Our sampling parameters in vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference import engine as port
from kernel import errors


def sampling_of(job: port.Job, choice: int, defaults: Mapping[str, Any]) -> Any:
    """vLLM's parameters for one choice; `defaults` are the model's. Errors: InvalidArgument."""
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import (
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    given = job.sampling
    values = {**defaults, **job.numbers(choice)}
    if given.HasField("json_schema"):
        values["structured_outputs"] = StructuredOutputsParams(json=given.json_schema)
    values.update(
        max_tokens=job.max_tokens,
        stop=list(given.stop),
        ignore_eos=given.ignore_eos,
        skip_special_tokens=not given.keep_special_tokens,
        output_kind=RequestOutputKind.DELTA,
    )
    try:
        return SamplingParams(**values)
    except (VLLMClientError, ValueError) as error:
        raise errors.InvalidArgument(
            f"the sampling parameters do not go together: {error}", reason="INVALID_SAMPLING"
        ) from error
