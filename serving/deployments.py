"""What Serve's controller says of an endpoint's engines, asked at most once a second, however often it is wanted."""

import asyncio
import contextlib
import time
from typing import Any, NamedTuple

PREFIX = "LLMServer:"  # of an engine's deployment
FAILED = ("UNHEALTHY", "DEPLOY_FAILED")
FRESH = 1.0  # seconds for which an answer stands
PATIENCE = 3.0  # seconds; a controller that is away, or comes back, answers later: what was known stands until then


def deployment_name(model: str) -> str:
    """What Ray calls the deployment of a model's engines."""
    return f"{PREFIX}{model.replace('/', '--').replace('.', '_')}"


class State(NamedTuple):
    """The engines of one model: how many take requests, how many come up, how many finish their last requests."""

    running: int = 0
    starting: int = 0
    stopping: int = 0
    failed: bool = False


class Deployments:
    """`names`: model → its deployment in this application. `resting`: models that are ready without an engine, unless
    one failed: the next request starts it."""

    def __init__(self, names: dict[str, str], resting: frozenset[str] = frozenset()) -> None:
        self.names, self.resting = names, resting
        self._until, self._states = 0.0, dict[str, State]()
        self._asking: asyncio.Task[None] | None = None

    async def states(self) -> dict[str, State]:
        """By model; none until the controller has answered once."""
        if self._asking is None and time.monotonic() > self._until:
            self._asking = asyncio.create_task(self._ask())
        if self._asking:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._asking), PATIENCE)
        return self._states

    async def _ask(self) -> None:
        """One question at a time: it has no end while the controller is away."""
        try:
            self._states = await asyncio.to_thread(self._asked)
        finally:
            self._until, self._asking = time.monotonic() + FRESH, None

    async def health(self) -> Any:
        """For load balancers and Kubernetes: 200 where every model has an engine, or needs none; else 503."""
        from fastapi.responses import JSONResponse

        states = await self.states()
        ready = bool(states) and all(
            one.running or (model in self.resting and not one.failed) for model, one in states.items()
        )
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    def _asked(self) -> dict[str, State]:
        from ray import serve

        application = serve.status().applications.get(serve.get_replica_context().app_name)
        there = application.deployments if application else {}
        return {model: _state(there.get(name)) for model, name in self.names.items()}


def _state(deployment: Any) -> State:
    if deployment is None:
        return State(failed=True)
    counts = {getattr(state, "value", state): count for state, count in deployment.replica_states.items()}
    coming = sum(counts.get(state, 0) for state in ("STARTING", "UPDATING", "RECOVERING"))
    failed = getattr(deployment.status, "value", deployment.status) in FAILED
    return State(counts.get("RUNNING", 0), coming, counts.get("STOPPING", 0), failed)
