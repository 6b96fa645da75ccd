"""A recipe's memory and hours: which engine, which worker, which tokens go into the formulas of `memory` and `work`."""

from dataclasses import replace
from typing import Any

from cluster.gpus import Gpu
from pipelines import lm_tasks
from pipelines.planning import memory, work
from pipelines.planning.amounts import Amount
from pipelines.planning.architecture import BYTES, Architecture
from pipelines.planning.known import Known
from pipelines.planning.memory import Memory
from pipelines.planning.work import Engine, Work
from pipelines.student import Student

WRITTEN = {"self_distill": "rewrites", "rationale": "rationales"}


def memories(k: Known) -> list[Memory]:
    """What one GPU holds in each stage that has one; students that are alike share a row."""
    gpu = k.gpu.memory if k.gpu else None
    found = []
    if not k.head_prunes:
        stored = BYTES["bfloat16" if k.gpu else "float32"]
        found.append(replace(memory.measuring(k.teacher, stored, k.gpus, k.assumed, gpu), what="prune: measuring"))
    if k.writes:
        found.append(_engine(k, "generate: teacher", k.teacher.layers, seats=k.recipe.generate.max_num_seqs))
    over, alike = (k.recipe.cluster.workers, k.recipe.cluster.replicas), dict[tuple[Any, ...], list[Student]]()
    for s in k.students:
        tokens = max(s.micro_tokens, s.max_length)  # a longer row is a batch of its own
        how = (s.lora_rank, s.lora_targets, s.last_layers, s.activation_checkpointing, s.ifp, tokens)
        alike.setdefault(how, []).append(s)
    for (*_, tokens), students in alike.items():
        one = memory.training(k.teacher, k.blocks(students[0]), students[0], tokens, *over, k.assumed, gpu)
        found.append(replace(one, what=f"train: {', '.join(s.name for s in students)}"))
    found.append(_engine(k, "evaluate: teacher", k.teacher.layers))
    found.append(_engine(k, "evaluate: pruned models", k.kept))
    for s in (s for s in k.students if s.ifp):
        found.append(_engine(k, f"evaluate: a sub-network of {s.name}", *k.scored[s.name][::-1]))
    return found


def _engine(k: Known, what: str, layers: int, model: Architecture | None = None, seats: int = 0) -> Memory:
    asked = k.recipe.teacher
    lengths = (asked.tensor_parallel, asked.max_model_len, seats or k.recipe.serve.max_num_seqs)
    gpu = k.gpu.memory if k.gpu else None
    return replace(memory.engine(model or k.teacher, layers, k.width, *lengths, k.assumed, gpu), what=what)


def host(k: Known) -> float:
    """Bytes of main memory of the node that runs every worker; where the head does not prune, of the same machine while
    it prunes: the teacher as it is stored, or in fp32 where no GPU measures it."""
    stored, workers = BYTES[k.teacher.dtype], k.recipe.cluster.workers
    trained = [memory.host(k.teacher, k.blocks(s), s, stored, workers) for s in k.students]
    pruning = 0.0 if k.head_prunes else float(k.teacher.parameters() * stored) if k.gpu else on_cpus(k)
    return max([pruning, *trained])


def on_cpus(k: Known) -> float:
    """Bytes of main memory that the teacher takes where CPUs prune it: in fp32, as `pipelines.prune` loads it there."""
    return float(k.teacher.parameters() * BYTES["float32"])


def workloads(k: Known) -> list[Work]:
    """Every piece of work that holds a GPU, and pruning wherever it is done, in the order of the stages."""
    written = [_generating(k, mode) for mode in k.writes]
    return [_pruning(k), *written, *_training(k), *_evaluating(k)]


def rewrite(k: Known, a: Amount) -> float:
    """Mean tokens of the teacher's rewrite, or of its rationale, in that data set."""
    return min(a.reference * k.assumed.rewrite_ratio, k.recipe.generate.max_tokens)


def learned(k: Known, s: Student, a: Amount) -> float:
    """Mean tokens that a student reads and learns of one train row of that data set."""
    asked, label = a.question + k.assumed.chat_tokens, k.assumed.label_tokens
    match s.learns:
        case "sft":
            return asked + a.reference
        case "label":
            return asked + label
        case "dsbs":  # the question is there twice
            return 2 * asked + label + rewrite(k, a)
        case "sdd":
            return asked + rewrite(k, a)
        case _:
            return asked + label + rewrite(k, a)


def _pruning(k: Known) -> Work:
    train = sum(a.train for a in k.rows)
    asked = sum(a.train * (a.question + k.assumed.chat_tokens) for a in k.rows)
    read = min(train, k.recipe.prune.calibration_rows) * asked / train if train else 0.0
    cuts = f"measure, {len(k.recipe.prune.methods)} cut(s)"
    if k.head_prunes:  # nothing known here says how fast its CPUs are
        return Work("prune", f"{cuts}, on the head", {"read": read}, 0, None)
    gpus = memory.measuring(k.teacher, 2, k.gpus, k.assumed, k.gpu.memory if k.gpu else None).gpus
    seconds = None
    if k.gpu:
        one = replace(served(k, k.gpu, k.teacher.layers, 1), tensor_parallel=1)
        stored = BYTES[k.teacher.dtype]
        moved = (1 + len(k.recipe.prune.methods)) * k.teacher.parameters() + len(
            k.recipe.prune.methods
        ) * k.teacher.parameters(k.kept)
        seconds = one.read(read, k.assumed.prefill_mfu) + moved * stored / (k.assumed.disk_gb_per_second * 1e9)
    return Work("prune", cuts, {"read": read}, gpus, seconds)


def volume(k: Known, mode: str) -> tuple[int, float, float]:
    """Rows that the teacher answers in that mode, and the tokens that it reads and writes for all of them."""
    around = k.assumed.chat_tokens + k.assumed.rewrite_template_tokens
    shown = mode == "self_distill"  # the reference
    read = sum(a.train * (a.question + shown * a.reference + around) for a in k.rows)
    return sum(a.train for a in k.rows), read, sum(a.train * rewrite(k, a) for a in k.rows)


def _generating(k: Known, mode: str) -> Work:
    settings = k.recipe.generate
    rows, read, written = volume(k, mode)
    seconds = None
    if k.gpu and rows:
        engine = served(k, k.gpu, k.teacher.layers, settings.max_num_seqs)
        seconds = engine.answer(rows / settings.engines, read / rows, written / rows) + k.assumed.start_minutes * 60
    gpus = settings.engines * k.recipe.teacher.tensor_parallel
    return Work("generate", f"{rows:,} {WRITTEN[mode]}", {"read": read, "written": written}, gpus, seconds)


def _training(k: Known) -> list[Work]:
    made = []
    for s in k.students:
        tokens, seconds = s.epochs * sum(a.train * learned(k, s, a) for a in k.rows), None
        tokens += (s.ifp and s.ifp.text_tokens) or 0  # stage 1; a file without a bound is not counted
        if k.gpu:
            seconds = k.assumed.start_minutes * 60
            seconds += work.training_seconds(
                k.teacher, k.blocks(s), s, tokens, k.recipe.cluster.workers, k.gpu, k.assumed
            )
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
    for name, (model, layers) in k.scored.items():
        seconds = None
        if k.gpu:
            seats = min(settings.concurrency, k.recipe.serve.max_num_seqs)
            engine = served(k, k.gpu, layers, seats, model)
            own = engine.answer(test, asked / test, said / test) if test else 0.0
            seconds = own + work.scoring_seconds(engine, sizes) + k.assumed.start_minutes * 60 / k.at_once
        made.append(Work("evaluate", name, tokens, gpus, seconds))
    return made


def served(k: Known, gpu: Gpu, layers: int, seats: int, model: Architecture | None = None) -> Engine:
    """The engine of a model (None: the teacher's architecture) of so many blocks, split as the recipe splits it."""
    return work.engine(model or k.teacher, layers, k.width, gpu, k.recipe.teacher.tensor_parallel, seats, k.assumed)
