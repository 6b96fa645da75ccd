"""The Ray Serve LLM application: any Hugging Face model directories behind one OpenAI-compatible endpoint."""

from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase

from serving import engine, scaling
from serving.gate import Gate, Limits
from serving.health import Health
from serving.scaling import Scaling

LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class LocalModel(CallbackBase):
    """Models are local directories: no process is started (it would import vLLM, a quarter of an engine's
    start on CPU) only to find that nothing is to be downloaded."""

    async def on_before_node_init(self) -> None:
        """Called by Ray's engine before it would download the model."""
        self.ctx.run_init_node = False


def build(
    models: dict[str, Path],
    max_model_len: int,
    max_num_seqs: int,
    dtype: str,
    tensor_parallel: int = 1,
    *,
    limits: Limits,
    keys: Path | None = None,
    scaled: Scaling = Scaling(),
    log: Path | None = None,
) -> Any:
    """A Serve application with an engine a model, or as many as `scaled` says; the keys of `models` are the names
    clients ask for.

    Like `build_openai_app`, but browsers of other origins are not let in (it allows every origin, with
    credentials), requests pass a gate (serving.gate) with `limits` and the API keys in the file `keys`, of
    which there is one, and leave a line each in the file `log`."""
    from ray import serve
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.serve.llm import build_llm_deployment
    from ray.serve.llm.ingress import make_fastapi_ingress

    from serving.ingress import Ingress

    lengths = (max_model_len, max_num_seqs, dtype, tensor_parallel)
    options = scaling.options(scaled, max_num_seqs, limits.seconds)
    configs = [config(name, path, *lengths, options=options) for name, path in models.items()]
    for one in configs if limits.output_tokens < max_model_len else ():  # vLLM's bound for requests that state none
        one.engine_kwargs["override_generation_config"] = {"max_new_tokens": limits.output_tokens}
    ingress = make_fastapi_ingress(Ingress, app=_gated_fastapi(tuple(models), limits, keys, scaled.least == 0, log))
    deployment: Any = serve.deployment(
        ingress,
        num_replicas=1,
        max_ongoing_requests=2 * (limits.seats + limits.waiting) * len(models) + 64,  # room to refuse at once
        graceful_shutdown_timeout_s=2,
        max_queued_requests=256,  # of those that come faster than they are refused; then 503
        ray_actor_options={"num_cpus": 0.1},
        logging_config=LOGGING,
    )
    return deployment.bind(
        llm_deployments={c.model_id: build_llm_deployment(c, override_serve_options=_once()) for c in configs},
        model_cards={c.model_id: to_model_metadata(c.model_id, c) for c in configs},
    )


def config(
    name: str,
    path: Path,
    max_model_len: int,
    max_num_seqs: int,
    dtype: str,
    tensor_parallel: int = 1,
    gpu: bool | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """The settings of one model's engine and deployment; for `gpu` see serving.engine, `options`: scaling.options."""
    from ray.serve.llm import LLMConfig

    asked = engine.engine_kwargs(max_model_len, max_num_seqs, dtype, path, tensor_parallel, gpu)

    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": str(path.resolve())},
        engine_kwargs=asked | {"disable_log_stats": True},
        placement_group_config=engine.placement_group_config(gpu),
        # All cores to each engine: evaluation asks one model at a time.
        runtime_env={"env_vars": engine.env_vars(gpu=gpu)},
        # Tokens are sent on after this long; the default of 50 ms spoils the time to the first token.
        experimental_configs={"stream_batching_interval_ms": 5},
        log_engine_metrics=False,
        callback_config={"callback_class": LocalModel},
        deployment_config={
            **(options or scaling.options(Scaling(), max_num_seqs, 0.0)),
            "graceful_shutdown_wait_loop_s": 0.1,
            "ray_actor_options": {"num_cpus": 0.1},
            "logging_config": LOGGING,
        },
    )


def _once() -> dict[str, Any]:
    """A model that cannot start fails at once: three tries (the default) of half a minute each tell no more."""
    return {"max_constructor_retry_count": 1}


def _gated_fastapi(models: tuple[str, ...], limits: Limits, keys: Path | None, resting: bool, log: Path | None) -> Any:
    """Ray's FastAPI app (request ids, OpenAI-shaped errors) behind the gate, without its open CORS rule. `resting`:
    models may be without an engine."""
    from fastapi.middleware.cors import CORSMiddleware
    from ray.llm._internal.serve.core.ingress.ingress import init
    from starlette.middleware import Middleware

    from serving.ingress import Faults

    app = init()
    app.user_middleware = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    app.user_middleware.append(Middleware(Faults))  # met last
    app.add_api_route("/health", Health(resting).answer, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_middleware(Gate, models=models, limits=limits, keys_file=keys, log=log)  # added last, met first
    return app
