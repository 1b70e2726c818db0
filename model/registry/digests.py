"""registry/digests.json: what the other files of the registry must be.

It is written before and after registry.json. In between it has two digests of that file: those before and after the
decision.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import xxhash
from pydantic import BaseModel, ConfigDict
from upath import UPath

from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.storage import read_json

DELETE: Final = "delete it; the next decision writes it anew"
"""The remedy for a damaged file."""


class Digests(BaseModel):
    """The content of digests.json.

    `decisions` has the digests that registry.json may have; null stands for a file that does not exist. `files` maps
    the files of promoted models, as VERSION/FILE, to digests. `digest` is that of both as compact JSON: without it,
    damage to this file would look like damage to another one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: tuple[str | None, ...]
    files: Mapping[str, str]
    digest: str = ""

    @property
    def own_digest(self) -> str:
        """What `digest` must be."""
        return of(self.model_dump_json(exclude={"digest"}).encode())


def read(output: OutputFolder) -> Digests | None:
    """Return the digests of the registry, or None if it has none; raises PipelineError for a damaged file.

    Registries of earlier versions have none before their next decision.
    """
    path = output.registry_digests
    try:
        found = read_json(path, Digests, DELETE)
    except FileNotFoundError:
        return None
    if found.digest != found.own_digest:
        raise PipelineError(f"{path} is damaged (its digest is another); {DELETE}")
    return found


def write(output: OutputFolder, decisions: Iterable[str | None], version: str | None, *, copied: bool) -> None:
    """Record the digests of registry.json, and those of `version`, the model in service.

    The digests of a version are kept once they are recorded, unless it was `copied` just now.
    """
    files = dict(found.files) if (found := read(output)) else {}
    if version is not None and (copied or not any(name.startswith(f"{version}/") for name in files)):
        files |= {f"{version}/{path.name}": of(path.read_bytes()) for path in _files_of(output.version(version))}
    written = Digests(decisions=tuple(decisions), files=dict(sorted(files.items())))
    written = written.model_copy(update={"digest": written.own_digest})
    write_atomically(output.registry_digests, written.model_dump_json(indent=1).encode())


def changed_files(output: OutputFolder, versions: Iterable[str]) -> list[str]:
    """Return the recorded files of `versions`, as VERSION/FILE, that are missing or have changed."""
    found, kept = read(output), set(versions)
    return [
        name for name, digest in (found.files.items() if found else ())
        if name.partition("/")[0] in kept and of_file(output.registry / name) != digest
    ]  # fmt: skip


def of(content: bytes) -> str:
    """Return the digest of the content of a file."""
    return xxhash.xxh3_128_hexdigest(content)


def of_file(path: UPath) -> str | None:
    """Return the digest of a file, or None if there is none."""
    try:
        return of(path.read_bytes())
    except FileNotFoundError:
        return None


def _files_of(folder: UPath) -> list[UPath]:
    return [path for path in folder.iterdir() if path.name != folder.name]  # object stores may list the folder itself
