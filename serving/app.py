"""The Ray Serve LLM application: any Hugging Face model directories behind one OpenAI-compatible endpoint."""

import asyncio
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase

from cluster import copies, storage
from cluster.session import SERVE_ENVIRONMENT
from serving import adapters, choosing, engine, routed, scaling, status
from serving.deployments import PREFIX, Deployments, deployment_name
from serving.gate import Gate, Limits
from serving.settings import Endpoint

LOGGING = {"log_level": "WARNING", "enable_access_log": False}
# vLLM configures logging when it is imported, which closes Serve's own handlers: a replica whose log file has none
# cannot tell its name to a controller that comes back, and is given up.
ENVIRONMENT = SERVE_ENVIRONMENT | {"VLLM_CONFIGURE_LOGGING": "0"}  # of replicas


class LocalModel(CallbackBase):
    """Models are directories of the node, or on S3 and copied there: no process is started (it would import vLLM, a
    quarter of an engine's start on CPU) only to find that nothing is to be downloaded."""

    async def on_before_node_init(self) -> None:
        """Called by Ray's engine before it would download the model."""
        self.ctx.run_init_node = False
        for url, place in self.kwargs["copies"].items():
            await asyncio.to_thread(copies.copy, url, Path(place))


def build(endpoint: Endpoint) -> Any:
    """The Serve application of `endpoint`, as Serve calls it with the `args` of a config file whose `import_path` is
    `serving.app:build`."""
    return application(routed.expanded(endpoint))


def application(endpoint: Endpoint, tries: int = 3) -> Any:
    """The Serve application of `endpoint`, with an engine a model, or as many as it says; one that does not come up in
    so many `tries` is given up.

    Like `build_openai_app`, but browsers of other origins are not let in (it allows every origin, with credentials),
    and requests pass a gate (serving.gate) with bounds and API keys, of which there is one, and leave a line each in
    the access log."""
    from ray import serve
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.serve.llm import build_llm_deployment
    from ray.serve.llm.ingress import make_fastapi_ingress

    from serving.ingress import Ingress
    from serving.server import Server

    bounds = limits(endpoint)
    configs = {name: config(endpoint, name) for name in endpoint.models}
    how: dict[str, Any] = {"deployment_cls": Server, "name_prefix": PREFIX}
    how["override_serve_options"] = {"max_constructor_retry_count": tries}
    deployed = {name: build_llm_deployment(one, **how) for name, one in configs.items()}
    ingress = make_fastapi_ingress(Ingress, app=_gated_fastapi(endpoint, bounds))
    deployment: Any = serve.deployment(
        ingress,
        num_replicas=1,
        max_ongoing_requests=2 * (bounds.seats + bounds.waiting) * len(endpoint.engines) + 64,  # room to refuse at once
        # Its successor takes the new requests meanwhile.
        graceful_shutdown_timeout_s=endpoint.timeout_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        max_queued_requests=256,  # of those that come faster than they are refused; then 503
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": ENVIRONMENT}},
        logging_config=LOGGING,
    )
    first = {name: endpoint.subnetworks(name)[0] for name in endpoint.routed}
    engines = {name: first.get(model, model) for name, model in endpoint.engines.items()}
    return deployment.bind(
        llm_deployments={name: deployed[model] for name, model in engines.items()},
        model_cards={name: to_model_metadata(name, configs[model]) for name, model in engines.items()},
        lora_paths=endpoint.adapters_at,
        choosers={name: _chooser(endpoint, name, tries) for name in endpoint.routed},
        first=first,
    )


def _chooser(endpoint: Endpoint, name: str, tries: int) -> Any:
    """The deployment that chooses for a routed model; one replica of it is always there."""
    from ray import serve

    bounds = endpoint.model_copy(update={"max_num_seqs": choosing.AT_ONCE})
    # Threads that wait for the next prompt must not turn in circles on an engine's cores.
    environment = ENVIRONMENT | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    gpus, where = endpoint.predictor_gpus, endpoint.routed[name]
    deployment: Any = serve.deployment(
        choosing.Chooser,
        name=choosing.deployment_name(name),
        **scaling.options(bounds, 1),
        max_constructor_retry_count=tries,
        ray_actor_options={"num_cpus": 0.1, "num_gpus": gpus, "runtime_env": {"env_vars": environment}},
        logging_config=LOGGING,
    )
    dtype = endpoint.dtype if endpoint.dtype != "auto" else "bfloat16" if gpus else "float32"  # as engines have it
    return deployment.bind(where, name, endpoint.cpu_threads, gpus > 0, dtype)


def config(endpoint: Endpoint, name: str, gpu: bool | None = None) -> Any:
    """The settings of the engine and deployment of the model `name`; for `gpu` see serving.engine."""
    from ray.serve.llm import LLMConfig

    path = endpoint.models[name]
    sizes = (endpoint.max_model_len, endpoint.max_num_seqs, endpoint.dtype)
    asked = engine.engine_kwargs(*sizes, path, endpoint.tensor_parallel, gpu) | {"disable_log_stats": True}
    if endpoint.output_tokens < endpoint.max_model_len:  # vLLM's bound for requests that state none
        asked["override_generation_config"] = {"max_new_tokens": endpoint.output_tokens}
    static = {n: one.path for n, one in endpoint.adapters.items() if one.model == name}
    folder = endpoint.adapters_at.get(name)
    asked |= adapters.engine_kwargs(static.values(), endpoint.max_lora_rank if folder else 0)
    if static:
        asked["lora_modules"] = adapters.modules(static)
    copied = {url: str(copies.place(url)) for url in (path, *static.values()) if not storage.is_local(url)}
    loaded = {"dynamic_lora_loading_path": folder, "max_num_adapters_per_replica": adapters.LOADED}
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": str(copies.place(path).resolve())},
        engine_kwargs=asked,
        lora_config=loaded if folder else None,
        placement_group_config=engine.placement_group_config(gpu),
        # All cores to each engine: evaluation asks one model at a time.
        runtime_env={"env_vars": engine.env_vars(gpu=gpu, threads=endpoint.cpu_threads) | ENVIRONMENT},
        log_engine_metrics=False,
        callback_config={"callback_class": LocalModel, "callback_kwargs": {"copies": copied}},
        deployment_config={
            **scaling.options(endpoint, endpoint.least(name)),
            "ray_actor_options": {"num_cpus": 0.1},
            "logging_config": LOGGING,
        },
    )


def limits(endpoint: Endpoint) -> Limits:
    """What the endpoint's gate lets in."""
    return Limits(
        seats=endpoint.max_num_seqs * endpoint.max_replicas,
        waiting=endpoint.queue,
        body_bytes=endpoint.max_body_bytes,
        output_tokens=endpoint.output_tokens,
        seconds=endpoint.timeout_seconds,
    )


def _gated_fastapi(endpoint: Endpoint, bounds: Limits) -> Any:
    """Ray's FastAPI app (request ids, OpenAI-shaped errors) behind the gate, without its open CORS rule."""
    from fastapi.middleware.cors import CORSMiddleware
    from ray.llm._internal.serve.core.ingress.ingress import init
    from starlette.middleware import Middleware

    from serving.ingress import Faults

    app = init()
    app.user_middleware = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    app.user_middleware.append(Middleware(Faults))  # met last
    names = {name: deployment_name(name) for name in endpoint.models}
    names |= {name: choosing.deployment_name(name) for name in endpoint.routed}
    engines = Deployments(names, frozenset(name for name in endpoint.models if not endpoint.least(name)))
    app.add_api_route("/health", engines.health, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/", status.page, methods=["GET", "HEAD"], include_in_schema=False)
    files = {"keys_file": endpoint.keys, "log": endpoint.access_log}
    given: dict[str, Any] = {name: Path(file) for name, file in files.items() if file}
    given |= {"growing": frozenset(endpoint.adapters_at), "engines": engines}
    app.add_middleware(Gate, models=endpoint.engines, limits=bounds, **given)  # added last, met first
    return app
