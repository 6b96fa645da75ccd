"""A process that holds a lease, and for how long it may be silent."""

TTL = 0.8  # seconds
HOLD = """
import sys, time
from cluster import lease
with lease.held(sys.argv[1], ttl=float(sys.argv[2])) as mine:
    print(mine.number, flush=True)
    for word in sys.stdin:
        print(mine.lost(), flush=True)
"""
