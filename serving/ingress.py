"""Ray's OpenAI ingress, which counts tokens, ends calls that nobody waits for, and tells a request's faults from its
own."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response
from jinja2 import TemplateError
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ErrorResponse,
    ModelCard,
    ModelList,
    OpenAIHTTPException,
    TokenizeRequest,
)
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.llm._internal.serve.utils import server_utils
from ray.serve.llm.ingress import OpenAiIngress

from serving import adapters, routing
from serving.accounts import VISIT, Visit
from serving.calls import CUT_OFF, Ending, cause, died
from serving.counting import Counted

# What parsing, templates, tokenizers and grammars raise over what they are given. An engine's end is none of these.
FAULTS = (ValueError, TypeError, LookupError, OverflowError, AttributeError, RecursionError, TemplateError)
UNFOLLOWED = "GenerationError"  # vLLM's, where one request's grammar fails while the engine lives
DOWN = "DeploymentUnavailableError"  # Serve's, of a model whose engine could not be started
LONGEST = 300  # characters of a fault that its sender is told


class Ingress(OpenAiIngress):
    """As Ray's, with other calls (serving.calls), tokens counted, messages tokenized. Adapters from S3 (`model:name`)
    are known to be there before a handle is made for them, which stays. `choosers`: routed models → the deployments
    that choose a sub-network (serving.choosing); `first`: routed models → the sub-network that tokenizes for them."""

    def __init__(self, *args: Any, choosers: dict[str, Any], first: dict[str, str], **kwargs: Any) -> None:
        server_utils.logger.addFilter(untold)
        super().__init__(*args, **kwargs)
        self._choosers = {name: Ending(handle.options(stream=True)) for name, handle in choosers.items()}
        self._first = first

    def _get_configured_serve_handle(self, model_id: str) -> Any:
        return Ending(super()._get_configured_serve_handle(model_id))

    async def _get_model_id(self, model: str | None) -> str:
        found: str = await super()._get_model_id(model)
        if await self.model(found) is None:
            said = f"no model {found[:LONGEST]!r}; GET /v1/models lists all models"
            raise OpenAIHTTPException(404, said, "invalid_request_error")
        return found

    async def model(self, model_id: str) -> ModelCard | None:
        """What `GET /v1/models/MODEL` says; None of what is not there."""
        base, colon, name = model_id.partition(":")
        url = self._lora_paths.get(base)
        if not (colon and url):
            return self._model_cards.get(model_id)
        known = model_id in self._configured_serve_handles
        return self._card(base, name) if known or await asyncio.to_thread(adapters.is_there, url, name) else None

    async def models(self) -> ModelList:
        """What `GET /v1/models` says."""
        cards = list(self._model_cards.values())
        for base, url in self._lora_paths.items():
            cards += [self._card(base, name) for name in await asyncio.to_thread(adapters.there, url)]
        return ModelList(data=cards)

    def _card(self, base: str, name: str) -> ModelCard:
        return self._model_cards[base].model_copy(update={"id": f"{base}:{name}"})

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """As Ray's, but for messages too, not for a prompt only."""
        if hasattr(body, "messages"):
            body = _sanitize_chat_completion_request(body)  # type: ignore  # it looks at the messages only
        return await super().tokenize(body, request)  # type: ignore[arg-type]  # the engine takes both

    async def _get_response(self, *, body: Any, call_method: str, raw_request: Any = None) -> AsyncGenerator[Any, None]:
        name = body.model
        if name in self._choosers:
            body.model = self._first[name]
        if name not in self._choosers or call_method not in routing.WRITING:
            async for part in self._answer(body, call_method, raw_request):
                yield part
            return
        if call_method == "chat":
            body = _sanitize_chat_completion_request(body)
        models = await self._chosen(name, body, raw_request.scope[VISIT])
        if len(set(models)) == 1:
            body.model = models[0]
            async for part in self._answer(body, call_method, raw_request):
                yield part
            return
        parts = routing.split(body, models)
        replies = await asyncio.gather(*(self._whole(one, call_method, raw_request) for _, one in parts))
        failed = next((reply for reply in replies if isinstance(reply, ErrorResponse)), None)
        yield failed or routing.merged(name, [(at, one) for (at, _), one in zip(parts, replies, strict=True)])

    async def _answer(self, body: Any, call_method: str, raw_request: Any) -> AsyncGenerator[Any, None]:
        """The parts of the answer of the model `body` names, counted."""
        counted = Counted(body, raw_request.scope[VISIT])  # the gate's, which every request has passed
        async for part in super()._get_response(body=body, call_method=call_method, raw_request=raw_request):
            yield counted.part(part)

    async def _whole(self, body: Any, call_method: str, raw_request: Any) -> Any:
        return [part async for part in self._answer(body, call_method, raw_request)][-1]

    async def _chosen(self, name: str, body: Any, visit: Visit) -> list[str]:
        """The sub-network for each prompt of a request, whose places are in their queues then."""
        models: list[str] = []
        async for part in self._choosers[name].choose.remote(routing.asked(body)):
            models = part
        if not routing.moved(visit, models):
            full = f"the queue of {' or '.join(sorted(set(models)))} is full; try again"
            raise OpenAIHTTPException(429, full, "rate_limit_error")
        return models


class Faults:
    """An ASGI middleware, the innermost: what cannot be worked on is a 400, not a 500 with a stack trace."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        try:
            await self.app(scope, receive, send)
        except FAULTS as error:
            raise OpenAIHTTPException(400, said(error), "invalid_request_error") from None
        except Exception as error:
            kind = type(cause(error)).__name__
            if died(error):
                raise OpenAIHTTPException(503, CUT_OFF, "server_error") from None
            if kind == DOWN:
                raise OpenAIHTTPException(503, "this model's engine does not start", "overloaded") from None
            if isinstance(cause(error), OSError):
                raise OpenAIHTTPException(503, "the storage of adapters does not answer", "server_error") from None
            if kind != UNFOLLOWED:
                raise
            message = (
                "the model cannot work on this request: the structure that its answer is to have cannot be followed"
            )
            raise OpenAIHTTPException(400, message, "invalid_request_error") from None


def said(error: BaseException) -> str:
    """What a request's sender is told of a fault: of a ValueError its first line, of others no more than that."""
    fault = cause(error)
    if not isinstance(fault, ValueError) or isinstance(fault, UnicodeError):
        return "the model cannot work on this request: a field holds what it cannot read"
    first = (str(fault).strip().splitlines() or [""])[0]
    return f"the model cannot work on this request: {first[:LONGEST]}"


def untold(record: logging.LogRecord) -> bool:
    """A logging filter: stack traces of requests that failed hold what was asked, and stay out of the log."""
    if "while handling request" in record.msg and record.exc_info:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else record.exc_info
        record.exc_info = record.exc_text = None
        record.msg = f"{record.msg} ({type(error).__name__})"
    return True
