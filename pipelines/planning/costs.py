"""A recipe's memory and hours: which engine, which worker, which tokens go into the formulas of `memory` and `work`."""

from dataclasses import replace

from pipelines import lm_tasks
from pipelines.planning import memory, work
from pipelines.planning.amounts import Amount
from pipelines.planning.architecture import BYTES
from pipelines.planning.gpus import Gpu
from pipelines.planning.known import Known
from pipelines.planning.memory import Memory
from pipelines.planning.work import Engine, Work
from pipelines.recipe import objective_of


def memories(k: Known) -> list[Memory]:
    """What one GPU holds in each stage; students that are alike share a row."""
    gpu = k.gpu.memory if k.gpu else None
    stored = BYTES["bfloat16" if k.gpu else "float32"]
    found = [replace(memory.measuring(k.teacher, stored, k.gpus, k.assumed, gpu), what="prune: measuring")]
    if k.rewrites:
        found.append(_engine(k, "generate: teacher", k.teacher.layers, k.recipe.generate.max_num_seqs))
    alike: dict[tuple[int, bool, int], list[str]] = {}
    for s in k.students:
        tokens = max(s.micro_tokens, s.max_length)  # a longer row is a batch of its own
        alike.setdefault((s.lora_rank, s.activation_checkpointing, tokens), []).append(s.name)
    for how, names in alike.items():
        one = memory.training(k.teacher, k.kept, *how, k.recipe.cluster.workers, k.assumed, gpu)
        found.append(replace(one, what=f"train: {', '.join(names)}"))
    found.append(_engine(k, "evaluate: teacher", k.teacher.layers, k.recipe.serve.max_num_seqs))
    found.append(_engine(k, "evaluate: pruned models", k.kept, k.recipe.serve.max_num_seqs))
    return found


def _engine(k: Known, what: str, layers: int, seats: int) -> Memory:
    asked = k.recipe.teacher
    lengths = (asked.tensor_parallel, asked.max_model_len, seats)
    gpu = k.gpu.memory if k.gpu else None
    return replace(memory.engine(k.teacher, layers, k.width, *lengths, k.assumed, gpu), what=what)


def host(k: Known) -> float:
    """Bytes of main memory of the node that runs every worker, and of the one that prunes."""
    stored, workers = BYTES[k.teacher.dtype], k.recipe.cluster.workers
    trained = [memory.host(k.teacher, k.kept, s.lora_rank, stored, workers) for s in k.students]
    return max([float(k.teacher.parameters() * stored), *trained])


def workloads(k: Known) -> list[Work]:
    """Every piece of work that holds a GPU, in the order of the stages."""
    written = [_generating(k)] if k.rewrites else []
    return [_pruning(k), *written, *_training(k), *_evaluating(k)]


def rewrite(k: Known, a: Amount) -> float:
    """Mean tokens of the teacher's rewrite in that data set."""
    return min(a.reference * k.assumed.rewrite_ratio, k.recipe.generate.max_tokens)


def _pruning(k: Known) -> Work:
    train = sum(a.train for a in k.rows)
    asked = sum(a.train * (a.question + k.assumed.chat_tokens) for a in k.rows)
    read = min(train, k.recipe.prune.calibration_rows) * asked / train if train else 0.0
    gpus = memory.measuring(k.teacher, 2, k.gpus, k.assumed, k.gpu.memory if k.gpu else None).gpus
    seconds = None
    if k.gpu:
        one = replace(_served(k, k.gpu, k.teacher.layers, 1), tensor_parallel=1)
        stored = BYTES[k.teacher.dtype]
        moved = (1 + len(k.cuts)) * k.teacher.parameters() + len(k.cuts) * k.teacher.parameters(k.kept)
        seconds = one.read(read, k.assumed.prefill_mfu) + moved * stored / (k.assumed.disk_gb_per_second * 1e9)
    return Work("prune", f"measure, {len(k.cuts)} cut(s)", {"read": read}, gpus, seconds)


def _generating(k: Known) -> Work:
    settings = k.recipe.generate
    rows = sum(a.train for a in k.rows)
    around = k.assumed.chat_tokens + k.assumed.rewrite_template_tokens
    read = sum(a.train * (a.question + a.reference + around) for a in k.rows)
    written = sum(a.train * rewrite(k, a) for a in k.rows)
    seconds = None
    if k.gpu and rows:
        engine = _served(k, k.gpu, k.teacher.layers, settings.max_num_seqs)
        seconds = engine.answer(rows / settings.engines, read / rows, written / rows) + k.assumed.start_minutes * 60
    gpus = settings.engines * k.recipe.teacher.tensor_parallel
    return Work("generate", f"{rows:,} rows", {"read": read, "written": written}, gpus, seconds)


def _training(k: Known) -> list[Work]:
    made = []
    asked = sum(a.train * (a.question + k.assumed.chat_tokens) for a in k.rows)
    for s in k.students:
        told = sum(a.train * (rewrite(k, a) if objective_of(s.name) == "sdd" else a.reference) for a in k.rows)
        tokens, seconds = s.epochs * (asked + told), None
        if k.gpu:
            how = (s.lora_rank > 0, s.activation_checkpointing, tokens, k.recipe.cluster.workers)
            seconds = work.training_seconds(k.teacher, k.kept, *how, k.gpu, k.assumed) + k.assumed.start_minutes * 60
        steps = -(-tokens // s.batch_tokens)
        made.append(
            Work("train", f"{s.name}, {steps:,.0f} steps", {"trained": tokens}, k.recipe.cluster.workers, seconds)
        )
    return made


def _evaluating(k: Known) -> list[Work]:
    settings = k.recipe.evaluate
    test = sum(a.test for a in k.rows)
    asked = sum(a.test * (a.question + k.assumed.chat_tokens) for a in k.rows)
    said = sum(a.test * min(a.reference * k.assumed.rewrite_ratio, settings.max_tokens) for a in k.rows)
    sizes = work.scored([lm_tasks.named(task) for task in settings.lm_eval], settings.lm_eval_limit, k.assumed)
    tokens = {"read": asked + sum(s.items * s.tokens for s in sizes if s.written)}
    tokens["written"] = said + sum(s.items * s.written for s in sizes)
    tokens["scored"] = sum(s.items * s.requests * s.tokens for s in sizes if not s.written)
    gpus, made = k.at_once * k.recipe.teacher.tensor_parallel, []
    for name, layers in k.scored.items():
        seconds = None
        if k.gpu:
            engine = _served(k, k.gpu, layers, min(settings.concurrency, k.recipe.serve.max_num_seqs))
            own = engine.answer(test, asked / test, said / test) if test else 0.0
            seconds = own + work.scoring_seconds(engine, sizes) + k.assumed.start_minutes * 60 / k.at_once
        made.append(Work("evaluate", name, tokens, gpus, seconds))
    return made


def _served(k: Known, gpu: Gpu, layers: int, seats: int) -> Engine:
    split = k.recipe.teacher.tensor_parallel
    weights = k.teacher.parameters(layers) * k.width / split
    room = gpu.memory * k.assumed.gpu_memory_utilization - weights - k.assumed.engine_overhead_gb * 1e9
    return Engine(k.teacher, layers, k.width, gpu, split, seats, max(0.0, room), k.assumed)
