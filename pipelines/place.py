"""The run's directory: where it is, this process's alone while it works there; and what to say where it cannot."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster import lease, lock, storage
from pipelines.recipe import Recipe
from pipelines.recipe_file import BadInput
from pipelines.screen import say

FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 64 << 10  # bytes
SAID = ("No space left on device", "Disk quota exceeded")


def home(recipe: Recipe) -> str:
    """Where the run's artifacts and report go."""
    where = recipe.run_dir or f"runs/{recipe.name}"
    return str(Path(where).resolve()) if storage.is_local(where) else where  # workers have a folder of their own


def remember(recipe: Recipe) -> None:
    """Write the resolved recipe to the run's directory, for `status` and `report`."""
    fs, path = storage.filesystem(storage.join(home(recipe), "recipe.json"))
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, recipe.model_dump_json(indent=2).encode())


@contextlib.contextmanager
def claimed(home: str) -> Iterator[None]:
    """Hold the lock, on S3 the lease, of the run directory `home` for the length of the block.

    Raises BadInput where another process works there or it cannot be written, and OSError
    where the block fails for want of space, whatever the library that met it raised."""
    with contextlib.ExitStack() as stack:
        _enter(stack, home)
        try:
            yield
        except PermissionError as error:
            raise BadInput(f"permission denied: {error.filename or error}; the run directory is {home}") from error
        except Exception as error:  # tokenizers raise a bare Exception, safetensors one of their own
            # torch.save says nothing of the disk: "unexpected pos 576 vs 534"
            if not full(error) and not (isinstance(error, RuntimeError) and _room(home) < LITTLE):
                raise
            raise OSError(_full(home)) from error


def full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that a disk is full."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or any(said in str(error) for said in SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def _enter(stack: contextlib.ExitStack, home: str) -> None:
    try:
        if not storage.is_local(home):
            stack.enter_context(lease.held(home))
        elif not stack.enter_context(lock.held(Path(home))):
            say(f"the file system of {home} has no locks: start no second run there while this one works")
    except lock.Busy as error:
        raise BadInput(f"{error}; wait for it, stop it, or give another directory (run_dir=DIR)") from None
    except OSError as error:
        if not storage.is_local(home):
            raise (BadInput(str(error)) if isinstance(error, PermissionError) else error) from None
        if full(error):
            raise OSError(_full(home)) from error
        raise BadInput(
            f"run_dir: cannot write to {home} ({error.strerror}); give a directory that can be written (run_dir=DIR)"
        ) from error


def _room(home: str) -> float:
    return shutil.disk_usage(home).free if storage.is_local(home) else float("inf")


def _full(home: str) -> str:
    """What to say of a full disk: where there is how much room."""
    places = [home] if storage.is_local(home) else []
    with contextlib.suppress(FileNotFoundError):  # where no directory for temporary files has room
        places.append(tempfile.gettempdir())
    room = ", ".join(f"{shutil.disk_usage(place).free / 1e6:,.0f} MB free at {place}" for place in places)
    return (
        f"no space left on device ({room}); free some and give the same command again: it goes on from here. "
        "`regrow clean` lists what older settings left in a run's directory"
    )
