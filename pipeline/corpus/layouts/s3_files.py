"""The files below a folder of S3."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from upath import UPath

from pipeline.corpus.layouts.files import Entry, File, Folder, is_hidden
from pipeline.corpus.layouts.protocol import Hidden
from pipeline.corpus.layouts.traversal import Found, traverse
from pipeline.storage import modified_ns

PAGE: Final = 1000
"""Keys in one answer of S3, which gives no more."""


def s3_files(root: UPath) -> Generator[Entry, None, None]:
    """Yield all that lies below a folder.

    The languages are listed first, and then, at the same time, all keys below each of them.
    """
    return traverse([_Keys.of(root).languages])


def is_folder(root: UPath) -> bool:
    """Whether there are keys below `root`, or it is a bucket; s3fs would list all that lies right below it."""
    keys = _Keys.of(root)
    try:
        page = keys.page("", "/")
    except FileNotFoundError:
        return False
    return not keys.top or bool(page.get("Contents") or page.get("CommonPrefixes"))


@dataclass(frozen=True)
class _Keys:
    """The keys of a bucket that begin with `top`, page by page."""

    fs: Any
    bucket: str
    top: str

    @classmethod
    def of(cls, root: UPath) -> Self:
        bucket, key, _ = root.fs.split_path(root.path)
        return cls(root.fs, bucket, f"{key.rstrip('/')}/" if key else "")

    def languages(self, token: str | None = None) -> Found[Entry]:
        """Return what lies right below the top, and lead to the folders there."""
        page = self.page("", "/", token)
        names = [prefix["Prefix"].removeprefix(self.top)[:-1] for prefix in page.get("CommonPrefixes", ())]
        folders = [name for name in names if not is_hidden(name)]
        found = [*map(Folder, folders), *(Hidden(name) for name in names if is_hidden(name)), *self._entries(page)]
        token = page.get("NextContinuationToken")
        rest = partial(self.languages, token) if token else None
        return Found(found, [partial(self.folder, name) for name in folders], rest)

    def folder(self, name: str, token: str | None = None, last: str = "") -> Found[Entry]:
        """Return what lies at any depth below a folder; `last` is the last hidden path of the pages before."""
        page = self.page(f"{name}/", "", token)
        found = list(self._entries(page, last))
        token = page.get("NextContinuationToken")
        hidden = [entry.path for entry in found if isinstance(entry, Hidden)]
        return Found(found, (), partial(self.folder, name, token, hidden[-1] if hidden else last) if token else None)

    def page(self, prefix: str, delimiter: str, token: str | None = None) -> Any:
        """Return S3's answer: keys that go on with `prefix`, or what several have in common up to a delimiter."""
        following = {"ContinuationToken": token} if token else {}
        return self.fs.call_s3(
            "list_objects_v2", Bucket=self.bucket, Prefix=self.top + prefix, Delimiter=delimiter, MaxKeys=PAGE,
            **following, **self.fs.req_kw,
        )  # fmt: skip

    def _entries(self, page: Any, last: str = "") -> Iterator[Entry]:
        """Yield the files of a page, and once each hidden folder, whose keys follow each other."""
        for info in page.get("Contents", ()):
            path = info["Key"].removeprefix(self.top)
            if (hidden := _hidden(path)) is not None:
                if hidden != last:
                    yield Hidden(hidden)
                last = hidden
            elif path and not path.endswith("/"):  # otherwise the object stands for a folder
                yield File(path, int(info["Size"]), modified_ns(info))


def _hidden(path: str) -> str | None:
    """Return the path of the file or folder that hides `path`, None if nothing does."""
    names = path.split("/")
    depth = next((depth for depth, name in enumerate(names, start=1) if is_hidden(name)), 0)
    return "/".join(names[:depth]) if depth else None
