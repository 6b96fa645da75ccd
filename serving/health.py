"""Whether an endpoint is ready, for load balancers and Kubernetes: each model has a replica, or needs none."""

import asyncio
import time
from typing import Any

FAILED = ("UNHEALTHY", "DEPLOY_FAILED")
FRESH = 1.0  # seconds for which an answer stands: however often it is asked, the controller is not


class Health:
    """What Serve's controller says of the models, asked at most once a second. `resting`: a model is ready without a
    replica, unless one failed: the next request starts it."""

    def __init__(self, resting: bool = False) -> None:
        self.resting = resting
        self.until = 0.0
        self.ready = False
        self.asking = asyncio.Lock()

    async def answer(self) -> Any:
        """200 where every model is ready, else 503."""
        from fastapi.responses import JSONResponse

        async with self.asking:
            if time.monotonic() > self.until:
                self.ready = await asyncio.to_thread(_ready, self.resting)
                self.until = time.monotonic() + FRESH
        said = "ready" if self.ready else "not ready"
        return JSONResponse({"status": said}, 200 if self.ready else 503)


def _ready(resting: bool) -> bool:
    from ray import serve

    application = serve.status().applications.get(serve.get_replica_context().app_name)
    there = application.deployments.values() if application else ()
    return bool(there) and all(
        any(state == "RUNNING" and count for state, count in one.replica_states.items())
        or (resting and one.status not in FAILED)
        for one in there
    )
