"""From the options of a command to its run: settings, output folder, record, and where tasks run."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import run_lock, run_record, stages
from pipeline.config import load
from pipeline.digests import value_digest
from pipeline.errors import UsageError
from pipeline.extraction import lifecycle
from pipeline.object_stores import failure, file_errors
from pipeline.options import Options
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_context import LazyExecutor, Run
from pipeline.run_record import RunRecord
from pipeline.runtime.executor import Executor, SerialExecutor
from pipeline.runtime.profiles import ClusterProfile, load_profile
from pipeline.storage import folder_at, is_local, nearest_existing, reaching

log = logging.getLogger(__name__)


def output_of(options: Options) -> OutputFolder:
    """Return the output folder.

    Raises UsageError for an empty name, a file, a folder that cannot be entered or reached, and a URL with an empty
    name or with characters that fsspec takes for a pattern.
    """
    if not options.out.strip():
        raise UsageError("--out is empty: name the output folder")
    output = OutputFolder.at(options.out)
    if is_local(output.root):
        root = Path(str(output.root))
        existing = nearest_existing(root)
        if not existing.is_dir():
            raise UsageError(f"--out {root}: {existing} is not a folder; name another place")
        if not os.access(existing, os.X_OK, effective_ids=True):
            raise UsageError(f"--out {root}: this user may not enter {existing}; name another place")
    else:
        if found := re.search(r"//|[*?[]", str(output.root).partition("://")[2]):
            raise UsageError(f"--out {output.root}: {found[0]} is not supported in URLs; name another place")
        with reaching(output.root, "--out"):
            output.root.exists()
    return output


def settled(output: OutputFolder) -> OutputFolder:
    """Finish a compaction that was killed in its last moments, unless another run does; return the output folder."""
    if output.compacted.complete.exists():
        with suppress(run_lock.BusyError), run_lock.held(output):
            _finish_compaction(output)
    return output


def _finish_compaction(output: OutputFolder) -> None:
    if output.compacted.complete.exists():
        stages.finish_compaction(output, RunRecord(output))


@contextmanager
def prepared(
    options: Options,
    *,
    makes_folder: bool = False,
    demo: bool = False,
    recheck: bool = False,
    prune: bool = False,
    only_reads: bool = False,
    repair: bool = False,
) -> Iterator[Run]:
    """Read the settings, check and lock the output folder; yield the run, and stop its executor in the end.

    A stage that `only_reads` also runs in a folder that cannot be written; its result is then not saved.
    """
    output = output_of(options)
    config = load(RunConfig, options.config_file, options.overrides)
    profile = None if options.executor == "serial" else load_profile(options.cluster, options.cluster_file)
    corpus = str(output.demo_corpus) if demo else _corpus(options.corpus)
    if not makes_folder and not output.root.exists():
        raise UsageError(f"--out {output.root}: there is no such folder; run scan first, which creates it")
    with run_lock.held(output), _started(profile, options.workers) as executor:
        _finish_compaction(output)
        record = _record(output, config, corpus, only_reads=only_reads)
        yield Run(
            output, config, record, executor, corpus, recheck=recheck, prune=prune, repair=repair,
            price_per_core_hour=profile.price_per_core_hour if profile else None,
        )  # fmt: skip


def _corpus(given: str | None) -> str | None:
    """Return the absolute path or URL of the corpus; raises UsageError for an empty one."""
    if given is not None and not given.strip():
        raise UsageError("--corpus is empty: name the folder LANGUAGE/[SPEAKER/]file of recordings")
    return given and str(folder_at(given))


def _record(output: OutputFolder, config: RunConfig, corpus: str | None, *, only_reads: bool) -> RunRecord:
    """Record the settings; raises UsageError for a store of other settings, or a folder that cannot be written."""
    lifecycle.check_settings(output, config.pipeline)
    record = RunRecord(output)
    if record.altered:
        log.warning(
            "%s has changed since the last command; if nobody has edited it, %s", output.run, run_record.DELETE
        )
    settings: Mapping[str, Any] = config.model_dump(mode="json")
    try:
        record.describe(corpus=corpus, config=settings, config_hash=value_digest(settings))
    except file_errors() as error:
        reason = failure(f"--out {output.root} cannot be written", str(output.root), error)
        if not only_reads:
            raise reason from None
        log.warning("%s; the result is shown here and not saved", reason)
        record.saved = False
    else:
        output.clear_partial_files()
    return record


@contextmanager
def _started(profile: ClusterProfile | None, workers: int | None) -> Iterator[LazyExecutor]:
    """Yield the executor, which starts with the first task, and stop it in the end."""
    with ExitStack() as stack:
        yield LazyExecutor(lambda: stack.enter_context(closing(_executor(profile, workers))))


def _executor(profile: ClusterProfile | None, workers: int | None) -> Executor:
    """Return the cluster of a profile; without a profile, tasks run in this process."""
    if profile is None:
        return SerialExecutor()
    from pipeline.runtime.dask_executor import DaskExecutor  # noqa: PLC0415 Dask takes a second to load

    return DaskExecutor(profile, workers)
