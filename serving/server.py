"""Ray's server of one engine, which ends with its engine, and finds what this vLLM calls by another name."""

import asyncio
import logging
import os
from typing import Any

from ray.llm._internal.serve.core.server.llm_server import LLMServer

from serving.adapters import Loader

WATCHED_SECONDS = 0.2
DIED = 70  # exit status: EX_SOFTWARE (sysexits.h)


class Server(LLMServer):
    """As Ray's, but it loads adapters with `serving.adapters`, and a replica whose engine has died ends at once: Ray
    would let it fail at every request until the third health check in a row, half a minute. And `/tokenize` and
    `/detokenize` find vLLM's tokenizer: since 0.32 its state has no name with openai_ before it."""

    def _init_multiplex_loader(self, model_downloader_cls: Any = None) -> None:
        super()._init_multiplex_loader(Loader)  # type: ignore[arg-type]  # of which Ray calls the one method

    async def start(self) -> None:
        """Start the engine."""
        await super().start()
        engine: Any = self.engine
        engine._oai_serving_tokenization = engine._app_state.serving_tokenization
        self._watch = asyncio.create_task(self._end_with(engine._engine_client))

    async def _end_with(self, client: Any) -> None:
        while not client.errored:
            await asyncio.sleep(WATCHED_SECONDS)
        logging.getLogger("ray.serve").error("the engine of %s died; this replica ends", self._llm_config.model_id)
        logging.shutdown()
        os._exit(DIED)
