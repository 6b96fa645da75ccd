"""The command in this process, for what needs no process of its own: importing takes most of the time of one that says
what is wrong with its input and ends."""

import contextlib
import io
import logging
import sys
from unittest import mock

from pipelines import cli


def command(*words: str) -> tuple[int, str]:
    """Exit status, and all that is said, of `regrow` with these words. An error that the command does not turn into a
    message is raised."""
    said, status = io.StringIO(), 0
    try:
        with (
            mock.patch.object(sys, "argv", ["regrow", *words]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            cli.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        logging.disable(logging.NOTSET)
    return status, said.getvalue()
