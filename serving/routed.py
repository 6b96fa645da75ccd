"""A routed model: K sub-networks of one trained model, and the mask predictor that chooses one of them for a prompt.

On disk, or on S3, one folder:

    router.json            {"format": 1, "predictor": "predictor", "subnetworks": ["subnetworks/0", …], "units": t}
    centroids.safetensors  "masks" (K, L, d_ffn): the units that each sub-network keeps
    predictor/             the predictor (serving.predictor)
    subnetworks/N/         checkpoints of t FFN units a block, which stock vLLM serves

An endpoint serves the sub-networks of NAME as NAME/0, NAME/1 … beside NAME itself, whose requests go to one of them.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster import copies, storage
from serving import engine
from serving.settings import Endpoint, subnetwork

if TYPE_CHECKING:
    from torch import Tensor

    from serving.predictor import Reader

ABOUT, CENTROIDS = "router.json", "centroids.safetensors"
WHOLE = "copy the routed model again, with all that is in it"


class About(BaseModel):
    """What router.json says: folders below it, and the FFN units that each sub-network keeps in a block."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1]
    predictor: str = Field(min_length=1)
    subnetworks: tuple[str, ...] = Field(min_length=1)
    units: int = Field(ge=1)


class Routed(NamedTuple):
    """A routed model whose parts fit: where its predictor and its sub-networks are, and what these keep, (K, L, d_ffn)
    as numpy's bool."""

    predictor: str
    subnetworks: tuple[str, ...]
    kept: Any
    units: int


def is_routed(where: str) -> bool:
    """Whether the directory or s3:// URL `where` is a routed model."""
    return storage.exists(storage.join(where, ABOUT))


def read(where: str) -> Routed:
    """The routed model in the directory or s3:// URL `where`. Raises ValueError where its parts are not all there, or
    do not fit each other; OSError where S3 does not answer."""
    file = storage.join(where, ABOUT)
    try:
        about = About.model_validate_json(storage.read(file))
    except FileNotFoundError:
        raise ValueError(f"{where} is no routed model: it has no {ABOUT}; give one that `regrow run` made") from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file}: {at + ': ' if at else ''}{first['msg']}; write the routed model anew") from None
    kept = _kept(storage.join(where, CENTROIDS), len(about.subnetworks), about.units)
    _check_predictor(storage.join(where, about.predictor), kept.shape[1:], about.units)
    for name in about.subnetworks:
        _check_subnetwork(storage.join(where, name), kept.shape[1], about.units)
    below = tuple(storage.join(where, name) for name in about.subnetworks)
    return Routed(storage.join(where, about.predictor), below, kept, about.units)


def engines(where: str) -> int:
    """How many engines the model at `where` has when all are up: one, or one for each sub-network."""
    return len(read(where).subnetworks) if is_routed(where) else 1


def spread(models: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """`models` (name → directory or URL) with the sub-networks of routed models in place of these, and the routed ones.

    Raises ValueError where one does not fit together, OSError where S3 does not answer."""
    named, routed = dict[str, str](), dict[str, str]()
    for name, where in models.items():
        if not is_routed(where):
            named[name] = where
            continue
        routed[name] = where
        below = {subnetwork(name, number): one for number, one in enumerate(read(where).subnetworks)}
        if both := below.keys() & models.keys():
            raise ValueError(f"{min(both)!r} is the name of a model and of a sub-network of {name!r}; rename one")
        named |= below
    return named, routed


def expanded(endpoint: Endpoint) -> Endpoint:
    """The endpoint with the sub-networks of each routed model among its `models`; raises as `spread`."""
    models, routed = spread(endpoint.models)
    if not routed:
        return endpoint
    return Endpoint.model_validate(endpoint.model_dump() | {"models": models, "routed": endpoint.routed | routed})


class Router:
    """Which sub-network answers a prompt: the one that keeps the most of the prompt's own top-t units, summed over
    blocks; of equal ones the first."""

    def __init__(self, reader: "Reader", kept: "Tensor", units: int) -> None:
        """`kept`: (K, L, d_ffn), not 0 at the units that a sub-network keeps, t = `units` of them in each block."""
        self.reader, self.kept, self.units = reader, (kept != 0).flatten(1).float(), units

    def choose(self, prompts: Sequence[str]) -> list[int]:
        """The number of a sub-network for each prompt. ValueError for a prompt that the predictor cannot read."""
        own = _top(self.reader.scores(prompts), self.units).flatten(1).float()
        common = own @ self.kept.T  # whole numbers, exact in fp32 below 2²⁴
        numbers: list[int] = common.argmax(-1).tolist()
        return numbers


def router(found: Routed) -> Router:
    """The router of a routed model; what is on S3 is copied to this machine. Raises as `predictor.load`."""
    import torch

    from serving import predictor

    return Router(predictor.load(copies.local(found.predictor)), torch.from_numpy(found.kept), found.units)


def _top(scores: "Tensor", t: int) -> "Tensor":
    """True at the t largest of each row, of equal ones the first, as pipelines.masks has it."""
    import torch

    last = scores.topk(t, sorted=False).values.amin(-1, keepdim=True)
    above, level = scores > last, scores == last
    return above | (level & (level.cumsum(-1, dtype=torch.int32) <= t - above.sum(-1, keepdim=True)))


def _kept(file: str, subnetworks: int, units: int) -> Any:
    """Which units each sub-network keeps, (K, L, d_ffn), numpy's bool. Raises ValueError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        masks = load(storage.read(file))["masks"]
    except FileNotFoundError:
        raise ValueError(f"there is no {file}; {WHOLE}") from None
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file} is torn, or holds no masks ({error}); {WHOLE}") from None
    if masks.ndim != 3 or len(masks) != subnetworks:
        raise ValueError(
            f"{file} holds masks of shape {masks.shape}, but {ABOUT} names {subnetworks} sub-networks: (K, L, d_ffn) "
            f"with K = {subnetworks} is wanted; {WHOLE}"
        )
    counts = (masks != 0).sum(-1)
    if (counts != units).any():
        raise ValueError(
            f"{file}: the masks keep {counts.min()} to {counts.max()} units a block, and {ABOUT} says {units}; {WHOLE}"
        )
    return masks != 0


def _check_predictor(where: str, shape: tuple[int, int], units: int) -> None:
    """Raise ValueError where the predictor is for other models than the masks."""
    from serving.predictor import ABOUT as NAME
    from serving.predictor import About as Told

    file = storage.join(where, NAME)
    try:
        told = Told(**json.loads(storage.read(file)))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{where} is no mask predictor ({NAME}: {error}); {WHOLE}") from None
    if (told.blocks, told.width, told.units) != (*shape, units):
        raise ValueError(
            f"{where} chooses {told.units} of {told.width} units in {told.blocks} blocks, but {CENTROIDS} has masks of "
            f"{units} of {shape[1]} in {shape[0]}; give the predictor that was trained with this model"
        )


def _check_subnetwork(where: str, blocks: int, units: int) -> None:
    """Raise ValueError where a sub-network is not there, or of another shape than its mask makes it."""
    try:
        config = engine.text_config(where)
    except FileNotFoundError:
        raise ValueError(f"sub-network {where} has no config.json; {WHOLE}") from None
    found = config.get("num_hidden_layers"), config.get("intermediate_size")
    if found != (blocks, units):
        raise ValueError(
            f"sub-network {where} has {found[0]} blocks of {found[1]} FFN units, but its mask keeps {units} units in "
            f"each of {blocks} blocks; {WHOLE}"
        )
