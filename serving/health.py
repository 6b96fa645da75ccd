"""Whether an endpoint is ready, for load balancers and Kubernetes: each model has a replica that runs."""

import asyncio
import time
from typing import Any

FRESH = 1.0  # seconds for which an answer stands: however often it is asked, the controller is not


class Health:
    """What Serve's controller says of the models, asked at most once a second."""

    def __init__(self) -> None:
        self.until = 0.0
        self.ready = False
        self.asking = asyncio.Lock()

    async def answer(self) -> Any:
        """200 where every model has a running replica, else 503."""
        from fastapi.responses import JSONResponse

        async with self.asking:
            if time.monotonic() > self.until:
                self.ready = await asyncio.to_thread(_ready)
                self.until = time.monotonic() + FRESH
        said = "ready" if self.ready else "not ready"
        return JSONResponse({"status": said}, 200 if self.ready else 503)


def _ready() -> bool:
    from ray import serve

    application = serve.status().applications.get(serve.get_replica_context().app_name)
    there = application.deployments.values() if application else ()
    return bool(there) and all(
        any(state == "RUNNING" and count for state, count in one.replica_states.items()) for one in there
    )
