"""What shapes each artifact: the recipe fields, external files and inputs that its id is the hash of.

Left out on purpose: where things run and how many workers or engines do it. Those change no result.
"""

import re
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.artifacts import Artifact, digest_of
from pipelines import few_shot, lm_tasks, models, prepare
from pipelines.recipe import NAMED_SETS, Recipe
from pipelines.student import BUILT_IN, Student

FORMATS = {"prepare": 4, "prune": 1, "generate": 3, "train": 4, "evaluate": 1}
WEIGHTS = (".safetensors", ".bin", ".json", ".model", ".jinja")


class Shaped:
    """The records of one recipe's artifacts; the teacher's files are read once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.teacher = digest_of(models.resolve(recipe.teacher.model), WEIGHTS)

    def prepare(self) -> dict[str, Any]:
        """Data sets, their files' content, whether students need references, and the seed where rows are generated."""
        part = [d.model_dump(exclude={"source", "test_source"}) for d in self.recipe.dataset]
        named = [d.source for d in self.recipe.dataset if d.source in NAMED_SETS]
        found = {name: _digest("data file", url) for name, url in prepare.sources(self.recipe).items()}
        shaping = {
            "dataset": part,
            "named": named,
            "seed": self.recipe.seed if "tiny-tasks" in named else None,
            "overlap_words": self.recipe.evaluate.overlap_words,
            "trained": prepare.learned_from(self.recipe),
            "labelled": prepare.labelled(self.recipe),
        }
        return _record("prepare", FORMATS["prepare"], shaping, [], found)

    def prune(self, method: str, data: Artifact) -> dict[str, Any]:
        """Method, number of layers and calibration rows; the teacher's weights."""
        part = self.recipe.prune.model_dump(exclude={"baselines", "method"}) | {"method": method}
        return _record("prune", FORMATS["prune"], part, [data], {"teacher": self.teacher})

    def generate(self, mode: str, data: Artifact) -> dict[str, Any]:
        """Mode, prompt, sampling settings and seed; the teacher's weights."""
        settings = self.recipe.generate
        part = settings.model_dump(exclude={"engines", "max_num_seqs", "rationale_prompt"}) | self._engine()
        part |= {"seed": self.recipe.seed, "mode": mode}
        if mode == "rationale" and settings.rationale_prompt:
            part["prompt"] = few_shot.named(settings.rationale_prompt)
        return _record("generate", FORMATS["generate"], part, [data], {"teacher": self.teacher})

    def train(self, student: Student, cut: Artifact, rows: list[Artifact]) -> dict[str, Any]:
        """The student's settings; what it starts from, the pruned checkpoint or, to choose FFN units of, the teacher;
        the artifacts that the rows it learns from are made of (the data; or what the teacher wrote, whose id names
        them); text and predictor that it is given."""
        left_out = {"checkpoint_steps", "micro_tokens", "activation_checkpointing", "compile"}
        part = student.model_dump(exclude=left_out | ({"ifp"} if student.ifp is None else set()))
        part["seed"] = self.recipe.seed if student.seed is None else student.seed
        if not student.ifp:
            return _record("train", FORMATS["train"], part, [cut, *rows], {})
        read = {"teacher": self.teacher}  # it starts from the whole teacher
        if student.ifp.text:
            read["text"], part["ifp"]["text"] = _digest("ifp.text", student.ifp.text), ""
        if not re.fullmatch(BUILT_IN, student.ifp.predictor):
            read["predictor"] = digest_of(models.resolve(student.ifp.predictor), WEIGHTS)
            part["ifp"]["predictor"] = ""  # wherever it lies
        return _record("train", FORMATS["train"], part, rows, read)

    def evaluate(self, made: Artifact | None, data: Artifact) -> dict[str, Any]:
        """Suites and answer length; the model and the test rows."""
        part = self.recipe.evaluate.model_dump(exclude={"concurrency", "bootstrap", "lm_eval", "overlap_words"})
        part |= self._engine()
        names = [lm_tasks.named(task)[0] for task in self.recipe.evaluate.lm_eval]
        files = {name: digest_of(Path(name).parent) for name in names if "/" in name}
        part["lm_eval"] = [task.rsplit("/", 1)[-1] for task in self.recipe.evaluate.lm_eval]
        digests = {name.rsplit("/", 1)[-1]: digest for name, digest in files.items()}
        inputs = [data] if made is None else [made, data]
        return _record(
            "evaluate",
            FORMATS["evaluate"],
            part,
            inputs,
            digests | {"teacher": self.teacher} if made is None else digests,
        )

    def _engine(self) -> dict[str, Any]:
        return self.recipe.teacher.model_dump(include={"max_model_len", "dtype"})


def _digest(what: str, url: str) -> str:
    try:
        return storage.digest(url)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{what} {url!r} cannot be read: {error}") from error


def _record(
    stage: str, version: int, part: dict[str, Any], inputs: list[Artifact], digests: dict[str, str]
) -> dict[str, Any]:
    return {"stage": stage, "format": version, "recipe": part, "inputs": [a.id for a in inputs], "digests": digests}
