"""The status page of an endpoint: a page without figures, open to all, and the figures it asks for, with a key."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.accounts import Accounts
from serving.deployments import State
from serving.refusals import Send, respond

PAGE = Path(__file__).with_name("status.html")


async def answer(
    send: Send, accounts: Accounts, states: Mapping[str, State], taken: Mapping[str, int], seats: int
) -> None:
    """The figures as an ASGI response: of each model its engines, the places that are `taken` (all above `seats` wait)
    and what was counted since the start."""
    told = accounts.told()
    models = [
        {"name": model, **state._asdict(), "taken": taken[model], "seats": seats, **told[model]}
        for model, state in states.items()
    ]
    body = json.dumps({"now": time.time(), "since": accounts.began, "models": models}).encode()
    await respond(send, 200, body, (b"cache-control", b"no-store"))


async def page() -> Any:
    """The page. It may run its own script and ask its own server, nothing else (Content-Security-Policy)."""
    from fastapi.responses import HTMLResponse

    text = PAGE.read_text(encoding="utf8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    own = base64.b64encode(hashlib.sha256((script[1] if script else "").encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{own}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})
