"""A process that holds a lease, and for how long it may be silent."""

TTL = 1.6  # seconds; with less a holder that gets no CPU for a while on a busy machine is taken for dead
HOLD = """
import sys, time
from cluster import lease
with lease.held(sys.argv[1], ttl=float(sys.argv[2])) as mine:
    print(mine.number, flush=True)
    for word in sys.stdin:
        print(mine.lost(), flush=True)
"""
