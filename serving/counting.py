"""Tokens of answers, counted on their way from an engine: in whole answers as stated, in streams as they come."""

import json
from typing import Any

from serving.accounts import Visit
from serving.calls import ERROR

USAGE = '"usage":{'
NO_CHOICES = '"choices":[]'
ROLE = '"role":'  # of the event that only says who speaks: within text its quotes are escaped


class Counted:
    """One answer. vLLM states the usage of a stream in a last event of its own where `include_usage` asks for it; it is
    asked for always, and taken out again for a client that did not. Until then an event counts as a token."""

    def __init__(self, body: Any, visit: Visit) -> None:
        self.visit, self.events, self.hidden = visit, 0, False
        if getattr(body, "stream", False):
            self.hidden = not (body.stream_options and body.stream_options.include_usage)
            if self.hidden:
                from vllm.entrypoints.generate.base.protocol import StreamOptions

                body.stream_options = StreamOptions(include_usage=True)

    def part(self, part: Any) -> Any:
        """One part of the answer, counted, as the client shall have it."""
        if isinstance(part, list):
            return [self._event(event) if isinstance(event, str) else event for event in part]
        if isinstance(part, str):
            return self._event(part)
        if usage := getattr(part, "usage", None):
            self._stated(usage.prompt_tokens, usage.completion_tokens or 0)
        return part

    def _event(self, event: str) -> str:
        if USAGE in event and NO_CHOICES in event:
            usage = json.loads(event.removeprefix("data: "))["usage"]
            self._stated(usage["prompt_tokens"], usage.get("completion_tokens") or 0)
            return "" if self.hidden else event
        if event.startswith("data: {") and ROLE not in event and not event.startswith(ERROR):
            self.events += 1
            self.visit.count("completion", 1)
        return event

    def _stated(self, prompt: int, completion: int) -> None:
        self.visit.count("prompt", prompt)
        self.visit.count("completion", max(0, completion - self.events))
