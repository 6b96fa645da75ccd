"""Requests for a routed model in the ingress: what its predictor reads of them, and several prompts that go to several
sub-networks as one request."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from serving.accounts import Visit
from serving.choosing import Asked

WRITING = ("chat", "completions")  # calls whose answer a sub-network writes; all others are alike for each


def asked(body: Any) -> list[Asked]:
    """What a sub-network is chosen for: a conversation, or each prompt of a request. ValueError where there is none, or
    several for a stream."""
    if hasattr(body, "messages"):
        return [list(body.messages)]
    prompt = body.prompt
    if not prompt:
        raise ValueError("the prompt is empty; the units of a model are chosen by its prompt")
    prompts = list(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    if body.stream and len(prompts) > 1:
        raise ValueError("each prompt chooses a sub-network of its own; ask for a stream with one prompt")
    return prompts


def moved(visit: Visit, models: Sequence[str]) -> bool:
    """Whether there is room for a request in the queues of the `models` that its prompts have chosen; it stands there
    then. Several models count as the routed one in figures and log."""
    each = visit.places // len(models)
    if not visit.move(Counter({model: each * prompts for model, prompts in Counter(models).items()})):
        return False
    if len(set(models)) == 1:
        visit.model = models[0]
    return True


def split(body: Any, models: Sequence[str]) -> list[tuple[list[int], Any]]:
    """A request of several prompts by the `models` that these have chosen: the numbers of a model's prompts, and a
    request with these alone."""
    parts = []
    for model in dict.fromkeys(models):
        at = [number for number, one in enumerate(models) if one == model]
        parts.append((at, body.model_copy(update={"model": model, "prompt": [body.prompt[number] for number in at]})))
    return parts


def merged(name: str, parts: Sequence[tuple[list[int], Any]]) -> Any:
    """The answer to a request that was split, as one of the model `name`, made of the answers to its parts. Choice k of
    prompt i has the number i × n + k, in vLLM's answers too."""
    whole = parts[0][1].model_copy(update={"model": name, "choices": []})
    for at, reply in parts:
        n = len(reply.choices) // len(at)
        for choice in reply.choices:
            place = at[choice.index // n] * n + choice.index % n
            whole.choices.append(choice.model_copy(update={"index": place}))
    whole.choices.sort(key=lambda choice: choice.index)
    used = [reply.usage for _, reply in parts]
    fields = ("prompt_tokens", "completion_tokens", "total_tokens")
    total = {field: sum(getattr(one, field) or 0 for one in used) for field in fields}
    return whole.model_copy(update={"usage": used[0].model_copy(update=total)})
