"""A vLLM engine of one's own: `AsyncLLM`, its core in a process apart, answers as each request ends.

Requests go in one by one and seats are filled as they get free, so that nobody waits for a batch's longest row.
"""

import itertools
import socket
from pathlib import Path
from typing import Any

from serving import adapters
from serving.writers.request import Died, Refused, Request, Sample, Sampling, Written

# JSON without white space: a schema allows any amount of it, and a weak model fills its max_tokens with it. Of the two
# backends that can leave it out this one knows more of JSON schema.
COMPACT = {"backend": "guidance", "disable_any_whitespace": True}


class Local:
    """A writer over one engine. `kwargs` are vLLM's engine arguments (serving.engine.engine_kwargs), `adapter` the
    directory of a LoRA adapter."""

    def __init__(self, model: str, kwargs: dict[str, Any], sampling: Sampling, adapter: str | None = None) -> None:
        self.model, self.kwargs, self.sampling, self.adapter = model, kwargs, sampling, adapter
        self.numbers = itertools.count()
        self.llm: Any = None

    async def start(self) -> None:
        """Start the engine, again after it died. Raises RuntimeError where it does not come up."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        await self.close()
        if not Path(self.model).is_dir():
            raise RuntimeError(f"{socket.gethostname()} has no directory {self.model}; put it where all nodes see it")
        lora = adapters.engine_kwargs([self.adapter] if self.adapter else [])
        shape: dict[str, Any] = {"structured_outputs_config": COMPACT} if self.sampling.schema else {}
        arguments = AsyncEngineArgs(model=self.model, disable_log_stats=True, **lora, **shape, **self.kwargs)
        try:
            # As vLLM's offline engine: else a step reads 2,048 tokens of prompts at most, there 16,384 on a large GPU.
            self.llm = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        except Exception as error:  # vLLM raises whatever its engine met, mostly a bare Exception
            raise RuntimeError(f"the engine for {self.model} does not start: {error}") from error

    async def write(self, request: Request) -> Written:
        """The answer to `request.tokens`. Raises Refused for a request that vLLM does not take, Died."""
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self.llm is None:
            raise Died("the engine is not up")
        asked = {"prompt_token_ids": request.tokens}
        answers = self.llm.generate(asked, self._params(request), str(next(self.numbers)), lora_request=self._lora())
        try:
            said = [answer async for answer in answers]  # one, the last: FINAL_ONLY
        except EngineDeadError as error:
            raise Died(str(error)) from error
        except (VLLMError, ValueError) as error:
            if self.llm.errored:
                raise Died(str(error)) from error
            raise Refused(str(error)[:500]) from error
        if not said:
            raise Died("the engine gave no answer")
        samples = [Sample(one.text, one.finish_reason or "", len(one.token_ids)) for one in said[-1].outputs]
        return Written(samples, len(request.tokens))

    async def close(self) -> None:
        """Shut the engine's processes down."""
        if self.llm is not None:
            llm, self.llm = self.llm, None
            llm.shutdown()

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        asked = self.sampling
        return SamplingParams(
            n=asked.n,
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=asked.max_tokens,
            stop=list(asked.stop),
            seed=request.seed,
            structured_outputs=StructuredOutputsParams(json=asked.schema) if asked.schema else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _lora(self) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self.adapter) if self.adapter else None
