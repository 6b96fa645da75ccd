"""What ends a training early, told apart: what trying again can mend, and what it cannot; in words for the user."""

import json
from collections.abc import Sequence

from pipelines.student import Student

ANEW = ("max_length", "lora_rank", "last_layers")  # settings with which no checkpoint is gone on from
FEW = 5  # rows that a message names
# How an allocator that has nothing left says so where it raises no class of its own (CPU, cuBLAS, NCCL).
MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED")
# What the others get to see where one is gone (gloo, NCCL), sometimes before Ray knows of it.
PEERS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "ncclRemoteError")
DEATHS = ("RayActorError", "ActorDiedError", "ActorUnavailableError", "NodeDiedError")


class NotFinite(ArithmeticError):
    """The loss or the gradient norm of a step is NaN or infinite, or the validation loss after it. args: step, loss,
    norm (None: of validation)."""


class Stopped(RuntimeError):
    """The training cannot go on, and trying again would not help; the message says why."""


def cause(error: BaseException) -> BaseException:
    """The failure of one worker behind what Ray Train raised: first one that says why, then one that was lost."""
    failures = [getattr(e, "health_check_failure", e) for e in getattr(error, "worker_failures", {}).values()]
    return min(failures, key=lambda e: (not final(e), not of_memory(e), not was_lost(e)), default=error)


def final(error: BaseException) -> bool:
    """Whether the same would happen again."""
    # Ray's own monitor ends whatever worker is the largest when a node is full, perhaps for another's sake.
    spared = type(error).__module__.startswith("ray.")
    return isinstance(error, NotFinite | Stopped | ValueError) or (of_memory(error) and not spared)


def of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a GPU, of a process, or of a node whose largest worker Ray ended for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's and Ray's
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY)


def was_lost(error: BaseException) -> bool:
    """Whether a worker's process or node is gone and left no word why."""
    return type(error).__name__ in DEATHS or any(words in str(error) for words in PEERS)


def said(error: BaseException) -> str:
    """One line on `error`."""
    if of_memory(error):
        return "a worker ran out of memory"
    if was_lost(error):
        return "a worker was lost"
    lines = str(error).strip().splitlines()
    return f"a worker failed ({lines[-1] if lines else type(error).__name__})"


def not_finite(error: NotFinite, total: int, ids: Sequence[str], last: str) -> str:
    """What to tell of a step, one of `total`: `ids`: of its rows; `last`: where the last good checkpoint is. Steps are
    counted from one, as on the screen."""
    step, loss, norm = error.args
    if norm is None:
        return (
            f"the validation loss is {loss} after step {step + 1} of {total}, though the training loss was finite; "
            f"stopped. Last good checkpoint: {last}. Look at the validation rows; if they are sound, lower "
            "student.learning_rate"
        )
    named = list(dict.fromkeys(ids))
    few = ", ".join(named[:FEW]) + (", …" if len(named) > FEW else "")
    return (
        f"step {step + 1} of {total} has the loss {loss} and the gradient norm {norm}; stopped before the weights "
        f"were spoiled. {len(named)} rows of it: {few}. Last good checkpoint: {last}. Look at these rows; if they are "
        "sound, lower student.learning_rate"
    )


def knobs(student: Student, workers: int, gpus: int) -> str:
    """What to change where memory runs out, what costs least first; nothing that stands so already, and no more workers
    than there are `gpus`, if any."""
    lora = max(1, student.lora_rank // 2) if student.lora_rank else 16
    wanted = {
        "micro_tokens": max(64, student.micro_tokens // 2),
        "activation_checkpointing": True,
        "max_length": max(16, student.max_length // 2),
        **({} if 0 < gpus < 2 * workers else {"workers": 2 * workers}),
        **({"last_layers": max(1, student.last_layers // 2)} if student.last_layers else {"lora_rank": lora}),
    }
    given = {name: value for name, value in wanted.items() if value != getattr(student, name, None)}
    told = [
        f"{'cluster.' if name == 'workers' else f'student.{student.name}.'}{name}={json.dumps(value)}"
        for name, value in given.items()
    ]
    anew = " or ".join(name for name in given if name in ANEW)
    with_it = f"With another {anew} the training begins anew, with the others it" if anew else "With these the training"
    return f"These help, in this order: {', '.join(told)}. {with_it} goes on from its last checkpoint"
