"""Object stores: the packages that open them, where their settings come from, and the errors that they raise."""

import errno
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from fsspec.config import conf

from pipeline.errors import PipelineError, UsageError, in_one_line


class ObjectStore(NamedTuple):
    """A kind of object store: the extra that installs its package, and the variables that the package reads."""

    extra: str
    variables: str


S3: Final = ObjectStore(
    "s3",
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL for a server outside of Amazon",
)
GOOGLE: Final = ObjectStore("gcs", "GOOGLE_APPLICATION_CREDENTIALS")
AZURE: Final = ObjectStore(
    "azure",
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
)
OBJECT_STORES: Final[Mapping[str, ObjectStore]] = {
    "s3": S3, "s3a": S3, "gs": GOOGLE, "gcs": GOOGLE, "az": AZURE, "abfs": AZURE, "abfss": AZURE,
}  # fmt: skip
"""The object stores by the scheme of their URLs."""

OF_SETTINGS: Final = re.compile(
    "credential|auth|forbidden|denied|anonymous|profile|region|config|invalid", re.IGNORECASE
)
"""In the type or text of an error that is due to the settings."""

PACKAGE_ERRORS: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("aiohttp", "ClientError"),
    ("tarfile", "TarError"),
    ("zipfile", "BadZipFile"),
)
"""Errors, by module and name, that fsspec's file systems let through although they are no OSError."""

for scheme in (*OBJECT_STORES, "http", "https"):  # a listing that is kept lacks what workers write in the meantime
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
for name in ("azure", "gcsfs"):  # they also log each error that they raise, with its traceback
    logging.getLogger(name).addHandler(logging.NullHandler())


def find_store(uri: str) -> ObjectStore | None:
    """Return the kind of object store that a URL leads to, or None for a path or another URL."""
    return OBJECT_STORES.get(uri.partition("://")[0])


def check_bucket(uri: str) -> None:
    """Raise UsageError for a URL of an object store without a bucket, such as s3:/bucket/folder."""
    scheme, _, rest = uri.partition(":")
    if scheme in OBJECT_STORES and re.match("//[^/]", rest) is None:
        raise UsageError(f"{uri} names no bucket; write {scheme}://BUCKET/FOLDER")


def file_errors(*further: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the types of the errors that reading or writing a file raises, and `further` ones, to catch them.

    These are OSError and the errors of packages that are loaded.
    """
    loaded = ((sys.modules.get(module), name) for module, name in PACKAGE_ERRORS)
    return (OSError, *further, *(getattr(module, name) for module, name in loaded if hasattr(module, name)))


def cause_of(error: BaseException) -> str:
    """Return what an error of `file_errors` states, without the file's name and a full stop."""
    text = (getattr(error, "strerror", None) or in_one_line(error)).rstrip(".")
    is_name = isinstance(error, FileNotFoundError) and "/" in text  # the text of fsspec's file systems
    return os.strerror(errno.ENOENT) if is_name else text


def failure(subject: str, uri: str, error: Exception) -> PipelineError:
    """Return the error of one line with which a command ends: `subject`, what `error` states, and the remedy.

    It is a UsageError, but for an object store that does not answer or is busy.
    """
    text, store = cause_of(error), find_store(uri)
    if store is None:
        return UsageError(f"{subject}: {text}")
    if isinstance(error, ImportError):
        return UsageError(f"{subject}: {text}; pip install 'spoken-language-pipeline[{store.extra}]'")
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{subject}: {text}; create the bucket first")
    if isinstance(error, PermissionError | ValueError) or OF_SETTINGS.search(f"{type(error).__name__} {text}"):
        return UsageError(f"{subject}: {text}; check {store.variables}")
    return PipelineError(f"{subject}: {text}; run the same command again later, or check {store.variables}")
