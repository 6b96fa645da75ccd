"""Calls of an engine's deployment: ended where nobody waits for them, made again where an engine dies before it said
anything."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError

PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before a request is made again: a dying replica is seen for a moment yet
DEAD = "EngineDeadError"  # vLLM's, of an engine whose replica is about to end; and what it says into a stream:
DYING = "EngineCore encountered an issue"
CUT = {"message": "the engine died while it answered; try again", "type": "server_error", "param": None,
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
        begun = False
        for pause in (*PAUSES, None):
            response = self._method.remote(*args)
            try:
                async for part in response:
                    if dying(part):
                        break
                    begun = True
                    yield part
                else:
                    return
            except Exception as error:
                if not died(error) or (pause is None and not begun):
                    raise
            finally:
                response.cancel()
            if begun or pause is None:
                yield f"data: {json.dumps({'error': CUT})}\n\n"
                return
            await asyncio.sleep(pause)


def dying(part: Any) -> bool:
    """Whether a part of a stream says that its engine has died."""
    texts = part if isinstance(part, list) else [part]
    return any(isinstance(text, str) and text.startswith('data: {"error"') and DYING in text for text in texts)


def died(error: BaseException) -> bool:
    """Whether an engine, or the replica around it, is gone."""
    kind = type(getattr(error, "cause", None) or error).__name__
    return isinstance(error, ActorDiedError | ActorUnavailableError) or kind == DEAD
