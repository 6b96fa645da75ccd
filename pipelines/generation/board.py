"""The board of a job: one small actor that engines tell how far they are, and that counts tries.

It outlives engines and their nodes, so that a row which takes its actor with it is known by the number of times its
shard was begun."""

from collections import Counter
from typing import Any


class Board:
    """Run as a Ray actor beside the driver; all calls take microseconds."""

    def __init__(self) -> None:
        self.engines: dict[str, dict[str, Any]] = {}
        self.tries: Counter[str] = Counter()

    def tell(self, who: str, counts: dict[str, Any]) -> None:
        """Put up what engine `who` says of itself: {state, actor, rows, prompt_tokens, completion_tokens, restarts,
        searching}. One that was in the same actor before is gone; what it counted stays."""
        for other, said in self.engines.items():
            if other != who and said["actor"] == counts["actor"]:
                said |= {"state": "gone", "searching": 0}
        self.engines[who] = counts

    def begin(self, what: str) -> int:
        """Count one more try of a shard or row; returns how many that are."""
        self.tries[what] += 1
        return self.tries[what]

    def end(self, what: str) -> None:
        """Forget a shard that is answered."""
        self.tries.pop(what, None)

    def read(self) -> dict[str, dict[str, Any]]:
        """What all engines said last."""
        return self.engines


def put_up() -> Any:
    """A board on this node, for the length of the Ray session."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote()
