"""A Ray session: a private local cluster, or a running one, left clean at the end."""

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster import signals
from cluster.gpus import PROMISED

OBJECT_STORE = 256 << 20  # bytes of Ray's object store in a private cluster
# Serve's actors speak gRPC with one another, and work in one thread each: a part of a stream costs half as much as
# through Ray's objects and from thread to thread (docs.ray.io, Serve, "Performance Tuning"). A message may be 256 MiB
# long (log probabilities of a long prompt), not 4.
SERVE_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 << 20),
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
# What Ray's driver prints of every run and nobody can act on: Serve's controller ends by killing itself (a
# "failed task"), and on a small machine there are more actors than cores.
UNTOLD = re.compile(r"ServeController\.graceful_shutdown|PYTHON worker processes have been started")


@contextmanager
def session(address: str, cpus: int | None, gpus: int | None = None) -> Iterator[None]:
    """Ray for the length of the block. `address` "local" starts a private cluster and stops it; any
    other address joins a running one and only disconnects. Inside a session this is a no-op.

    Raises RuntimeError where Ray does not start, ConnectionError where none runs at `address`.

    `gpus` that a running cluster has, or will add as work asks for them (cluster.gpus.there).

    A private cluster offers at least eight logical CPUs: Ray's actors here mostly wait, and on two
    cores the placement groups of an engine and its data stages would wait for one another for ever."""
    import ray
    from ray._private.ray_logging import stdout_deduplicator

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # Ray listens on all addresses, and whoever speaks to it runs code here: only who has this token. Without one it
        # would write its own to the home directory, which may not be writable.
        if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # Ray's workers run at nice 15 by default. Beside two busy programs on two cores an engine so started gets a
        # thirtieth of the time: it takes minutes to come up where it takes one as an equal.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Serve's proxy, where it dies, is started again after three checks in a row that failed: 10 s apart by default.
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
        for name, value in SERVE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options |= {"num_cpus": cpus or max(8, os.cpu_count() or 1), "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE}
        os.environ.pop(PROMISED, None)  # it speaks of another cluster; this one will have no more than it has
    elif gpus:
        os.environ[PROMISED] = str(gpus)
    # In a Ray job, which has an environment already: where both name a variable, they name the same.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    # The stages tell what a user wants to know. Imported later, Ray Data sets its level anew, by the variable.
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stdout_deduplicator.skip_re = UNTOLD
    with signals.kept(), signals.apart():
        environment = {"env_vars": worker_environment(), "worker_process_setup_hook": _hand_over_keys()}
        _start(address=address, runtime_env=environment, **options)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        signals.leave(stopped)
        raise
    finally:
        with signals.kept():
            ray.shutdown()


def _start(**options: Any) -> None:
    """ray.init, tried six times: it gives a new cluster 30 s and no more, which a busy machine may need."""
    import ray

    for left in reversed(range(6)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises no narrower class here
            if "timed out during startup" not in str(error):
                raise
            if not left:
                raise RuntimeError("Ray did not start within six times 30 s; is the machine overloaded?") from error


def worker_environment() -> dict[str, str]:
    """What workers need of this process's environment, and what keeps them quiet and offline.

    The whole environment is never forwarded: only how to reach S3, the hub and the log level. Ray writes it to its
    logs: keys go another way (`_hand_over_keys`)."""
    named = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HF_HOME", "HF_ENDPOINT", "PYTHONPATH")
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return quiet | {name: os.environ[name] for name in named if name in os.environ}


def _hand_over_keys() -> Callable[[], None]:
    """What every worker calls when it starts: it puts the keys of this process in its own environment. Ray hands it
    over as code, which stands in no log, as a runtime environment's variables do."""
    named = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "OPENAI_API_KEY")
    given = {name: os.environ[name] for name in named if name in os.environ}

    def set_keys() -> None:  # a closure goes by value: the worker need not find this module yet
        import os

        os.environ.update(given)

    return set_keys
