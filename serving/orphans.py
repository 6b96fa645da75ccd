"""A plug-in that vLLM loads in each of its processes: it has the kernel end them when their parent ends.

vLLM's engine core is a process of its own. When the actor that started it is killed (kill -9, out of memory), vLLM
leaves the core behind with the model in memory, where nobody will find it. On Linux a process may ask for a signal at
its parent's end (prctl(2), PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
ASKED = (
    "REGROW_END_WITH_PARENT"  # set for engines that regrow starts; other users of this environment's vLLM: no effect
)


def end_with_parent() -> None:
    """Entry point of vLLM's group `vllm.general_plugins`; does nothing but in the processes below an engine's actor."""
    import multiprocessing

    if sys.platform != "linux" or not os.environ.get(ASKED) or multiprocessing.parent_process() is None:
        return
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent.pid:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)
