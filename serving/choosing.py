"""The replica that chooses sub-networks for the prompts of a routed model: a deployment of its own, so that a predictor
of hundreds of millions of weights holds up neither the ingress nor an engine, and may have a GPU."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from cluster import copies
from serving import routed
from serving.settings import subnetwork

PREFIX = "Chooser:"  # of its deployment
AT_ONCE = 32  # requests that one replica is given before another is started, where there may be another
ROOM = (
    16_384  # characters of prompts that are read at once, each counted as long as the longest: padding costs the same
)
# As pipelines.prompts has it: a predictor is trained on prompts of the plain answer.
TEMPLATE = {"enable_thinking": False}
Asked = str | list[int] | list[dict[str, Any]]  # a prompt, its tokens, or the messages of a conversation


def deployment_name(name: str) -> str:
    """What Ray calls the deployment that chooses for the routed model `name`."""
    return f"{PREFIX}{name.replace('/', '--').replace('.', '_')}"


class Chooser:
    """Chooses for the routed model at `where`, called `name`, with `threads` (0: one a core), or on its GPU. `dtype` is
    that of the predictor's language model; its head stays in fp32, scores in bf16 would tie."""

    def __init__(self, where: str, name: str, threads: int = 0, gpu: bool = False, dtype: str = "float32") -> None:
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        found = routed.read(where)
        router = routed.router(found)
        router.reader.predictor.to("cuda" if gpu else "cpu").lm.to(getattr(torch, dtype))
        router.choose(["1"])  # the first call of a process takes longer
        self.name, self._together = name, Together(router.choose)
        self._words = AutoTokenizer.from_pretrained(copies.local(found.subnetworks[0]), local_files_only=True)

    async def choose(self, asked: list[Asked]) -> AsyncGenerator[list[str], None]:
        """The sub-network for each of `asked`, in one part. ValueError for what no sub-network can be chosen for."""
        texts = [text(self._words, one) for one in asked]
        numbers = await asyncio.gather(*map(self._together.one, texts))
        yield [subnetwork(self.name, number) for number in numbers]


class Together:
    """Has `work` answer what waits together, a call after the other; what comes meanwhile is the next call's.

    Serve's own `@serve.batch` closes a batch before it is its turn, so that those that wait are alone in theirs unless
    each batch waits some time for more, and one prompt's fault is that of all."""

    def __init__(self, work: Callable[[Sequence[str]], Sequence[int]]) -> None:
        self._work = work
        self._running: asyncio.Task[None] | None = None
        self._waiting = deque[tuple[str, asyncio.Future[int]]]()

    async def one(self, text: str) -> int:
        """The answer to one text, or its fault, raised."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while batch := self._next():
            answers = await asyncio.to_thread(self._answers, [text for text, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # nobody waits for it
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next(self) -> list[tuple[str, "asyncio.Future[int]"]]:
        """The first of those that wait, and as many behind it as there is room for."""
        batch, longest = list[tuple[str, asyncio.Future[int]]](), 0
        while self._waiting:
            longest = max(longest, len(self._waiting[0][0]))
            if batch and longest * (len(batch) + 1) > ROOM:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _answers(self, texts: list[str]) -> Sequence[int | Exception]:
        try:
            return self._work(texts)
        except Exception as error:  # noqa: BLE001 whatever it is, those that wait are told
            if len(texts) == 1:
                return [error]
            return [self._answers([text])[0] for text in texts]


def text(tokenizer: Any, asked: Asked) -> str:
    """What the predictor reads: a prompt as it is, or the text of a conversation's `opening` before the assistant's
    turn, as `tokenizer`, the sub-networks', makes it; without a chat template as pipelines.prompts does.

    ValueError where the template does not take it."""
    if isinstance(asked, str):
        return asked
    if asked and isinstance(asked[0], int):
        return str(tokenizer.decode(asked))
    messages = opening(asked)  # type: ignore[arg-type]  # no tokens
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages) + "\n\n"
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **TEMPLATE))
    except TemplateError as error:
        raise ValueError(f"the model's chat template does not take this conversation: {error}") from error


def opening(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The messages that choose a conversation's sub-network, so that it stays the same from turn to turn: the first of
    the user and those of the system before it, as in training (arXiv 2501.02086, section 3.2). Parts of text are joined
    by a line break, as vLLM does. ValueError where there is none, or one holds more than text."""
    roles = [message.get("role") for message in messages]
    before = messages[: roles.index("user") + 1] if "user" in roles else messages
    chosen = [message for message in before if message.get("role") in ("system", "developer", "user")]
    if not chosen:
        raise ValueError("the conversation has no message of the user; the units of a model are chosen by the first")
    return [{"role": message["role"], "content": _plain(message.get("content"))} for message in chosen]


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content or ():
        said = part.get("text") if isinstance(part, dict) else part
        if not isinstance(said, str):
            raise ValueError("a message holds more than text; this model reads text only")
        texts.append(said)
    return "\n".join(texts)
