"""An S3 server on loopback that can be made to refuse requests."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from threading import Thread
from typing import Any

import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from zarr.core.sync import _get_loop  # zarr 3.1

BUCKET = "bucket"
NO_SETTINGS = {
    **dict.fromkeys(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), "/nonexistent"),
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""Variables with which a user's own settings, and the address where a cloud's machines find theirs, are not read."""

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class _Silent(WSGIRequestHandler):
    def log_request(self, *arguments: Any) -> None:
        """Log no request."""


class S3Server:
    """A server with one empty bucket.

    `busy` is the number of requests that it refuses next; with `protected`, it refuses to write to places whose path
    contains that text.
    """

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self.busy = 0
        self.protected = ""
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self._thread = Thread(target=self._server.serve_forever)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which a process uses this server."""
        return {
            **NO_SETTINGS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        }  # fmt: skip

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.busy:
            self.busy -= 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [BUSY]
        if self.protected and environ["REQUEST_METHOD"] == "PUT" and self.protected in environ["PATH_INFO"]:
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [DENIED]
        return self._application(environ, start_response)

    @cached_property
    def files(self) -> s3fs.S3FileSystem:
        """A file system that sees what others have just written."""
        return s3fs.S3FileSystem(
            key="key", secret="secret", endpoint_url=self.environment["AWS_ENDPOINT_URL"], use_listings_cache=False,
            skip_instance_cache=True,
        )  # fmt: skip

    def start(self) -> None:
        self._thread.start()
        self.files.mkdir(BUCKET)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def forget_file_systems() -> None:
    """Make this process open its file systems anew, with the settings that hold then.

    zarr's are asynchronous and would leave their connections open.
    """
    for files in list(s3fs.S3FileSystem._cache.values()):
        if files.asynchronous and files._s3 is not None:
            asyncio.run_coroutine_threadsafe(files._s3.close(), _get_loop()).result()
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def serving() -> Iterator[S3Server]:
    """Yield a running server."""
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()
