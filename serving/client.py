"""Many requests to an OpenAI-compatible endpoint, a bounded number in flight, answers in the order of the prompts."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt. `finish_reason` is "stop", "length", or "refused" for a request the
    endpoint will never take (a prompt too long, say): then `text` is empty and `error` says why."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    error: str = ""


def ask(
    base_url: str,
    model: str,
    prompts: Sequence[Prompt],
    max_tokens: int,
    concurrency: int,
    done: Callable[[Answer], None] | None = None,
    temperature: float = 0.0,
    retries: int = 8,
    template: dict[str, Any] | None = None,
) -> list[Answer]:
    """One answer a prompt, in order. A prompt that is a list of messages goes to chat, a text to completions;
    `template` is handed to the server's chat template.

    429, 5xx and lost connections are tried again `retries` times, with growing pauses (about half a minute in
    all); `done` is called as each answer comes. Raises RuntimeError where the endpoint stays away."""
    settings: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    return asyncio.run(_ask(base_url, prompts, settings, template, concurrency, done, retries))


async def _ask(
    base_url: str,
    prompts: Sequence[Prompt],
    settings: dict[str, Any],
    template: dict[str, Any] | None,
    concurrency: int,
    done: Callable[[Answer], None] | None,
    retries: int,
) -> list[Answer]:
    import openai

    answers: list[Answer | None] = [None] * len(prompts)
    waiting = iter(enumerate(prompts))

    async def worker(client: Any) -> None:
        for place, prompt in waiting:
            answers[place] = answer = await _one(client, prompt, settings, template)
            if done:
                done(answer)

    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=retries, timeout=600.0) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(prompts))):
                    group.create_task(worker(client))
        except* (openai.APIConnectionError, openai.APIStatusError) as failed:
            first = failed.exceptions[0]
            raise RuntimeError(f"{base_url} no longer answers for model {settings['model']}: {first}") from first
    return [answer for answer in answers if answer is not None]


async def _one(client: Any, prompt: Prompt, settings: dict[str, Any], template: dict[str, Any] | None) -> Answer:
    import openai

    try:
        if isinstance(prompt, str):
            reply = await client.completions.create(prompt=prompt, **settings)
        else:
            extra = {"chat_template_kwargs": template} if template else None
            reply = await client.chat.completions.create(messages=prompt, extra_body=extra, **settings)
    except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
        return Answer("", 0, 0, "refused", str(error))
    choice = reply.choices[0]
    text = choice.text if isinstance(prompt, str) else choice.message.content
    usage = reply.usage
    return Answer(text or "", usage.prompt_tokens, usage.completion_tokens, choice.finish_reason)
