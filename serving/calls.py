"""Calls of an engine's deployment: ended where nobody waits for them, made again where an engine dies before it said
anything."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError

PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before a request is made again: a dying replica is seen for a moment yet
AT_WORK = 1.0  # seconds after which an engine that dies may have died of the request; of two such it is not made again
DEAD = "EngineDeadError"  # vLLM's, of an engine whose replica is about to end; and what it says into a stream:
DYING = "EngineCore encountered an issue"
ERROR = 'data: {"error"'  # how an event of a stream begins that is one
CUT_OFF = "the engine died while it answered; try again"
CUT = {"message": CUT_OFF, "type": "server_error", "param": None,
       "code": "engine_died"}  # fmt: skip


class Ending:
    """A deployment's handle whose calls are cancelled where they are not read to their end. An engine works on
    otherwise for a stream that its reader has left, or whose deadline has passed, until the answer is done."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def options(self, **given: Any) -> "Ending":
        """As the handle's own."""
        return Ending(self._handle.options(**given))

    def __getattr__(self, name: str) -> Any:
        return Call(getattr(self._handle, name))


class Call:
    """One method of the handle."""

    def __init__(self, method: Any) -> None:
        self._method = method

    async def remote(self, *args: Any) -> AsyncGenerator[Any, None]:
        """The parts of the answer. Where the engine dies before the first, another engine is asked, or the same once it
        is back; later, a stream ends with an error, as vLLM's own does."""
        begun, deaths = False, 0
        for pause in (*PAUSES, None):
            response, asked = self._method.remote(*args), time.monotonic()
            last: Exception | None = None
            try:
                async for part in response:
                    good, ended = living(part)
                    if good:
                        begun = True
                        yield good
                    if ended:
                        break
                else:
                    return
            except Exception as error:
                if not died(error):
                    raise
                last = error
            finally:
                response.cancel()
            deaths += time.monotonic() - asked >= AT_WORK
            if begun or pause is None or deaths > 1:
                if last and not begun:
                    raise last
                yield f"data: {json.dumps({'error': CUT})}\n\n"
                return
            await asyncio.sleep(pause)


def living(part: Any) -> tuple[Any, bool]:
    """What a part of a stream holds before it says that its engine has died, and whether it says so."""
    texts = part if isinstance(part, list) else [part]
    for at, text in enumerate(texts):
        if isinstance(text, str) and text.startswith(ERROR) and DYING in text:
            return texts[:at], True
    return part, False


def cause(error: BaseException) -> BaseException:
    """What went wrong in the process that was called, of an error that Ray wraps; else the error itself."""
    return getattr(error, "cause", None) or error


def died(error: BaseException) -> bool:
    """Whether an engine, or the replica around it, is gone."""
    return isinstance(error, ActorDiedError | ActorUnavailableError) or type(cause(error)).__name__ == DEAD
