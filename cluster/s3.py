"""S3 made patient: what is passing is asked again for a minute, then it is an OSError that names the URL.

s3fs and botocore retry too, but their counts multiply (a server that hangs would be waited for through
several hundred seconds), botocore's `standard` mode stops early once its quota is spent, and s3fs takes
a 500 for final. So botocore is told to try once, and the waiting has one end, by the clock.
"""

import asyncio
import contextlib
import http
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnection
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3_RETRYABLE_ERRORS

PATIENCE = 60.0  # seconds that one request may take with all its repetitions
SLOWEST = 100_000  # bytes a second that an upload makes at the least; its time comes on top
PAUSE = 4.0  # seconds between two tries at the most
PART = 16 << 20  # bytes of one part of a large upload; objects of twice that go up in parts
CREATED_BY = "regrow-created-by"  # metadata of an object: which call of `create` made it
BROKEN: tuple[type[Exception], ...] = (NoConnection, *S3_RETRYABLE_ERRORS)  # no whole answer came
FAILED: tuple[type[Exception], ...] = (OSError, *BROKEN)
# Said with a status below 500, and yet they pass: a body that did not arrive whole, two writers at one instant.
PASSING = ("RequestTimeout", "IncompleteBody", "ConditionalRequestConflict", "OperationAborted", "SlowDown")


class PatientS3(S3FileSystem):
    """s3fs, each request of which is repeated through faults that pass (5xx, 429, time-outs, dropped
    connections) for `PATIENCE` seconds. What lasts longer raises OSError with URL, request and last answer;
    missing credentials and refused access raise PermissionError."""

    retries = 8  # how often a body that breaks off in mid-read is read again; 10 s of pauses in all
    connect_timeout = 5
    read_timeout = 20

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        url = "/".join(["s3:/", *(kwargs[part] for part in ("Bucket", "Key") if kwargs.get(part))])
        limit = PATIENCE + len(kwargs.get("Body") or b"") / SLOWEST
        end, pause, last = time.monotonic() + limit, 0.2, "no answer"
        while True:
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    return await super()._call_s3(method, *akwarglist, **kwargs)
            except PermissionError as error:
                raise PermissionError(f"{url}: {error}") from error
            except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
                raise PermissionError(
                    f"{url}: no credentials ({error}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ) from None
            except FAILED as error:
                if not passing(error):
                    raise
                last, cause = str(error) or last, error
            if time.monotonic() + pause >= end:
                raise OSError(f"{url}: {method} did not succeed within {limit:.0f} s; last: {last}") from cause
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, PAUSE)

    call_s3 = sync_wrapper(_call_s3)  # s3fs binds its own, which open files use


def filesystem() -> PatientS3:
    """The file system of all `s3://` URLs; endpoint and credentials come from botocore's usual chain."""
    return PatientS3(config_kwargs={"retries": {"total_max_attempts": 1}}, use_listings_cache=False)


def passing(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    answer = error.__cause__
    if isinstance(answer, ClientError):
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or status == http.HTTPStatus.TOO_MANY_REQUESTS
        return (busy and status != http.HTTPStatus.NOT_IMPLEMENTED) or answer.response["Error"].get("Code") in PASSING
    return isinstance(error, BROKEN)


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Raises OSError with `url` where the content broke off more often than it is asked for again."""
    try:
        yield
    except BROKEN as error:
        if isinstance(error, OSError):
            raise
        raise OSError(f"{url}: reading broke off {PatientS3.retries} times; last: {error}") from error


def create(path: str, data: bytes) -> bool:
    """Create the object at `path` only if there is none; whether this call did. It marks the object in its
    metadata, so that a write whose answer got lost knows its own when the repetition is refused."""
    fs, mark = filesystem(), uuid.uuid4().hex
    try:
        fs.pipe_file(path, data, chunksize=PART, mode="create", Metadata={CREATED_BY: mark})
        ours = True
    except OSError as error:
        # FileNotFoundError: an upload in parts that is completed already, its answer lost; or there is no bucket.
        if not _stands(error) and not isinstance(error, FileNotFoundError):
            raise
        try:
            ours = fs.metadata(path).get(CREATED_BY) == mark
        except FileNotFoundError:
            if not _stands(error):
                raise error from None
            ours = False  # what stood has been removed since
    if len(data) >= 2 * PART:
        _abort(fs, path)
    return ours


def _abort(fs: PatientS3, path: str) -> None:
    """Abort the uploads in parts that were left under `path`, which stands: none of them can succeed any more."""
    bucket, key, _ = fs.split_path(path)
    with contextlib.suppress(OSError):  # whoever may write need not have the right to list them
        for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", []):
            if upload["Key"] == key:
                fs.abort_mpu(bucket, key, upload["UploadId"])


def _stands(error: OSError) -> bool:
    """Whether a create-only write was refused because something is there (some servers give the status
    alone, which s3fs does not take for FileExistsError)."""
    answer = error.__cause__
    return isinstance(error, FileExistsError) or (
        isinstance(answer, ClientError)
        and answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == http.HTTPStatus.PRECONDITION_FAILED
    )
