"""GPUs, with the figures of NVIDIA's data sheets: dense bf16 peaks, without structured sparsity.

- A100-40GB, A100-80GB: "NVIDIA A100 Tensor Core GPU" data sheet, SXM4 columns: 312 TFLOP/s; 1,555 and 2,039 GB/s.
- L40S-48GB: "NVIDIA L40S" data sheet: 362 TFLOP/s (733 with sparsity), 864 GB/s.
- H100-80GB: "NVIDIA H100 Tensor Core GPU" data sheet, SXM: 989 TFLOP/s (1,979 with sparsity), 3.35 TB/s.
- H200-141GB: "NVIDIA H200 Tensor Core GPU" data sheet, SXM: the H100's compute, 4.8 TB/s.

A data sheet's GB is taken as 10⁹ bytes. The cards report somewhat more (an H100-80GB about 79 GiB), so what
fits here fits there.
"""

import os
import re
from typing import NamedTuple

PROMISED = "REGROW_GPUS"  # set by a recipe's cluster.gpus, and in the pods of a cluster that starts without GPU nodes


class Gpu(NamedTuple):
    """`memory` in bytes, `flops` dense bf16 FLOP/s, `bandwidth` in bytes/s of the card's own memory."""

    name: str
    memory: float
    flops: float
    bandwidth: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40GB", 40e9, 312e12, 1.555e12),
        Gpu("A100-80GB", 80e9, 312e12, 2.039e12),
        Gpu("L40S-48GB", 48e9, 362e12, 0.864e12),
        Gpu("H100-80GB", 80e9, 989e12, 3.35e12),
        Gpu("H200-141GB", 141e9, 989e12, 4.8e12),
    )
}


def peak(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name that CUDA gives it ("NVIDIA H100 80GB HBM3"); None for one that is not
    in the table. H100s and H200s on PCIe and the NVL pairs have lower peaks than the table's: no figure, not a wrong
    one."""
    if "A100" not in device and re.search("PCIe|NVL", device):
        return None
    found = (gpu.flops for gpu in GPUS.values() if re.search(rf"\b{gpu.name.partition('-')[0]}\b", device))
    return next(found, None)


def flops_per_token(n: float, lora: bool, recomputed: bool) -> float:
    """FLOPs a trained token costs, `n` the parameters it is multiplied with."""
    return (4 if lora else 6) * n + (2 * n if recomputed else 0)


def there() -> int:
    """How many GPUs the cluster of this Ray session has; where it adds nodes as work asks for them, will have: so many
    as the environment variable `PROMISED` says."""
    import ray

    promised = os.environ.get(PROMISED) or "0"
    if not promised.isdigit():
        raise ValueError(f"{PROMISED}={promised!r} is no number of GPUs")
    return max(int(ray.cluster_resources().get("GPU", 0)), int(promised))
