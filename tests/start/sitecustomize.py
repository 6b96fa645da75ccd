"""Read by every process that a test starts. Most of what such a process does is to import torch, Ray or vLLM, and of
that Python's cyclic collector takes a quarter: it looks again and again through what will stay."""

import gc

gc.set_threshold(50_000, 50, 100)
