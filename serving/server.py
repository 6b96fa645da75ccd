"""Ray's server of one engine: it ends with its engine, and sends tokens on as they come."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.llm._internal.serve.engines.vllm.vllm_models import VLLMEngineConfig

from serving.adapters import Loader

WATCHED_SECONDS = 0.2
DIED = 70  # exit status: EX_SOFTWARE (sysexits.h)
# Between two messages of a stream, each of which costs an engine's cores: what is written meanwhile goes in one. Many
# streams at once wait longer, so that a replica sends about 125 messages a second, but none gets fewer than five.
PAUSE_SECONDS, PAUSE_PER_STREAM, LONGEST_PAUSE = 0.02, 0.008, 0.2
T = TypeVar("T")


class Asked(VLLMEngineConfig):
    """As Ray's, which on CPU sets another executor than was asked for."""

    def get_initialization_kwargs(self) -> dict[str, Any]:
        """Arguments of vLLM's engine."""
        given: dict[str, Any] = super().get_initialization_kwargs()
        executor = self.engine_kwargs.get("distributed_executor_backend")
        return given | ({"distributed_executor_backend": executor} if executor else {})


class Server(LLMServer):
    """As Ray's, but it loads adapters with `serving.adapters`, and a replica whose engine has died ends at once: Ray
    would let it fail at every request until the third health check in a row, half a minute. And `/tokenize` and
    `/detokenize` find vLLM's tokenizer: since 0.32 its state has no name with openai_ before it."""

    _streams = 0  # under way

    def _init_multiplex_loader(self, model_downloader_cls: Any = None) -> None:
        super()._init_multiplex_loader(Loader)  # type: ignore[arg-type]  # of which Ray calls the one method

    async def start(self) -> None:
        """Start the engine."""
        found: Any = self._llm_config.get_engine_config()
        self._llm_config._engine_config = Asked(**dict(found))
        await super().start()
        engine: Any = self.engine
        engine._oai_serving_tokenization = engine._app_state.serving_tokenization
        self._watch = asyncio.create_task(self._end_with(engine._engine_client))

    async def _batch_output_stream(self, generator: AsyncGenerator[T, None]) -> AsyncGenerator[list[T], None]:
        self._streams += 1
        try:
            async with contextlib.aclosing(together(generator, lambda: pause(self._streams))) as lists:
                async for parts in lists:
                    yield parts
        finally:
            self._streams -= 1

    async def _end_with(self, client: Any) -> None:
        while not client.errored:
            await asyncio.sleep(WATCHED_SECONDS)
        logging.getLogger("ray.serve").error("the engine of %s died; this replica ends", self._llm_config.model_id)
        logging.shutdown()
        os._exit(DIED)


def pause(streams: int) -> float:
    """Seconds between two messages of a stream, where a replica has so many."""
    return min(max(PAUSE_SECONDS, PAUSE_PER_STREAM * streams), LONGEST_PAUSE)


async def together(parts: AsyncIterator[T], wait: Callable[[], float]) -> AsyncGenerator[list[T], None]:
    """`parts` as they come, the first and the last at once, those that come within `wait()` seconds of a list together
    in the next.

    Ray's own looks after each wait whether there are any, for a stream of 20 tokens a second nearly always for
    nothing."""
    queue: asyncio.Queue[T | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for part in parts:
                queue.put_nowait(part)
        finally:
            queue.put_nowait(None)

    reading = asyncio.create_task(read())
    try:
        while True:
            found = [await queue.get()]
            while not queue.empty():
                found.append(queue.get_nowait())
            if some := [part for part in found if part is not None]:
                yield some
            if found[-1] is None:
                await reading
                return
            await asyncio.wait([reading], timeout=wait())
    finally:
        reading.cancel()
