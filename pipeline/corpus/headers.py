"""The headers of the files of a corpus: read by the workers, and kept until the manifest is written."""

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple

import pyarrow as pa
from pyarrow import parquet
from upath import UPath

from pipeline.config import CorpusConfig
from pipeline.corpus.database import Database, count, create, fill, stream
from pipeline.corpus.header_task import HEADERS, Files, read_headers, without_header
from pipeline.corpus.sources import AudioSources
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, Lost, surviving, tried_alone
from pipeline.storage import is_local, reading_table

HEADERS_PER_TASK: Final = 512
TASKS_AT_ONCE: Final = 32
"""Tasks whose headers go into the table, and into a file, together."""

WANTED: Final = """
    INSERT INTO headers BY NAME
    SELECT row, 0 AS samples, 0 AS sample_rate_hz, 0 AS channels, unusable AS error, false AS transient
    FROM wanted WHERE unusable IS NOT NULL
"""
FILES: Final = """
    CREATE TABLE files AS
    SELECT row, uri, member, NULL::DOUBLE AS start_s, NULL::DOUBLE AS stop_s, size_bytes
    FROM wanted ANTI JOIN headers USING (row) WHERE row = file_row ORDER BY row
"""

log = logging.getLogger(__name__)


class KeptHeaders(NamedTuple):
    """Files with the headers that a scan has read, for the scan that follows if this one is interrupted.

    `key` is a digest of all that the headers depend on.
    """

    folder: UPath
    key: str

    def read(self) -> Iterator[pa.Table]:
        """Yield the headers that an interrupted scan left; files of other scans and damaged ones are deleted."""
        for path in sorted(self.folder.glob("*.parquet")) if self.folder.exists() else ():
            try:
                if not path.name.startswith(self.key):
                    raise PipelineError("those of other recordings")
                with reading_table(path, "run scan again"):
                    yield parquet.read_table(
                        io.BytesIO(path.read_bytes()), page_checksum_verification=True, use_threads=False
                    )
            except PipelineError as error:
                log.info("scan: %s: headers are read again: %s", path, error)
                path.unlink()

    def write(self, headers: pa.Table) -> None:
        """Keep headers; files without one are tried again."""
        sound = headers.filter(headers["error"].is_null())
        first = sound["row"][0].as_py() if len(sound) else 0
        content = io.BytesIO()
        parquet.write_table(sound, content, write_page_checksum=True)
        write_atomically(self.folder / f"{self.key}-{first:012d}.parquet", content.getvalue())

    def clear(self) -> None:
        """Delete the files; the manifest has the headers."""
        if not self.folder.exists():
            return
        for path in self.folder.glob("*.parquet"):
            path.unlink()
        if is_local(self.folder):
            self.folder.rmdir()


def collect_headers(
    db: Database, output: OutputFolder, executor: Executor, corpus: CorpusConfig, kept: KeptHeaders
) -> None:
    """Create the table `headers` of the files in the table `wanted`, with the columns HEADERS.

    `wanted` has columns of a listing, and in `file_row` the row of the first recording in the same file, whose header
    is that of the others, too.
    """
    create(db, "headers", HEADERS)
    db.execute(WANTED)
    fill(db, "headers", kept.read())
    db.execute(FILES)
    preflight.check(executor, output, (source for batch in _batches(db) for source in batch.sources))
    held: list[pa.Table] = []
    with track("scan", count(db, "files"), "headers", executor.monitor.dashboard) as progress:
        for headers in _headers(executor, partial(read_headers, corpus=corpus), _batches(db)):
            progress.advance(len(headers), failed=len(headers) - headers["error"].null_count)
            held.append(headers)
            if len(held) == TASKS_AT_ONCE:
                fill(db, "headers", held)
                kept.write(pa.concat_tables(held))
                held.clear()
    fill(db, "headers", held)


def _batches(db: Database) -> Iterator[Files]:
    """Yield the files whose headers a task reads."""
    for part in stream(db, "SELECT * FROM files"):
        files = Files(part["row"].to_numpy(), AudioSources(part.to_pandas()), part["size_bytes"].to_numpy())
        yield from (files.part(start, start + HEADERS_PER_TASK) for start in range(0, len(part), HEADERS_PER_TASK))


def _headers(executor: Executor, read: Callable[[Files], pa.Table], batches: Iterable[Files]) -> Iterator[pa.Table]:
    """Yield the headers of each batch. A file that ends the process that reads it has the reason as its error."""
    limit_s = attrgetter("limit_s")
    lost: list[Files] = []
    for outcome in surviving(executor, read, batches, limit_s):
        if isinstance(outcome, Lost):
            lost.append(outcome.item)
        else:
            yield outcome.result
    files = [batch.part(i, i + 1) for batch in lost for i in range(len(batch.rows))]
    for outcome in tried_alone(executor, read, files, limit_s):
        if isinstance(outcome, Lost):
            yield without_header(outcome.item, outcome.failure(outcome.item.limit_s))
        else:
            yield outcome.result
