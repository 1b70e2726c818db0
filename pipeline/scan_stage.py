"""The scan stage: a corpus → the manifest, or what the corpus gained and lost since."""

import logging
from typing import Final

from upath import UPath

from pipeline.corpus.database import Database, database, rows
from pipeline.corpus.diff import MASKING, CorpusDiff, compare, has_unread
from pipeline.corpus.listing import Listing, list_recordings
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import masked_count
from pipeline.corpus.manifest_table import register
from pipeline.corpus.manifest_writer import rewrite
from pipeline.digests import value_digest
from pipeline.durable_files import scratch_folder
from pipeline.errors import PipelineError, UsageError, counted, few
from pipeline.extraction import lifecycle, repair
from pipeline.run_context import Facts, Run
from pipeline.store.records import StoreAttributes

MAX_SAMPLES_PER_BYTE: Final = 6_000
MAX_SAMPLES_OF_NOTHING: Final = 2**20
"""Bounds on the samples in a file. FLAC holds most: 65,535 samples of silence in a frame of 12 bytes (RFC 9639)."""

IMPOSSIBLE: Final = """
    SELECT count(*), min(append_index), min_by(recording_id, row, 3)
    FROM manifest WHERE duration_s * sample_rate_hz > ? * size_bytes + ?
"""
"""Rows with more samples than a file of their size can hold, as headers were once believed."""

log = logging.getLogger("pipeline.stages")


def scan_stage(run: Run) -> None:
    """Corpus → manifest. Once a store was begun, only what the corpus gained or lost changes the manifest."""
    if run.corpus is None:
        raise UsageError("--corpus is missing: the folder LANGUAGE/[SPEAKER/]file of recordings")
    with scratch_folder(run.output.root) as folder, database(folder) as db:
        _scan(run, list_recordings(run.corpus, db))


def _scan(run: Run, listing: Listing) -> None:
    output, config = run.output, run.config.pipeline
    db, settings = listing.db, run.config.corpus
    key = value_digest([listing.digest, run.corpus, config.config_hash, settings.model_dump(mode="json")])

    def work() -> Facts:
        from pipeline.corpus import scan  # noqa: PLC0415 like all stages: what only work needs is loaded for work

        if known is None or changes is None:
            wanted = None if known is not None else repair.stored_manifest_digest(output)
            scanned = scan.scan(listing, output, config, run.executor(), settings, wanted)
        else:
            scanned = scan.update(listing, changes, known, output, config, run.executor(), settings)
        return {
            "recordings": len(scanned), "ignored_files": listing.ignored_files(), "appends": scanned.last_append,
            "masked": masked_count(scanned),
        }  # fmt: skip

    if not run.prune and run.record.unchanged("scan", key) and not _unread(run, db) and run.skips("scan", key):
        return
    manifest = _readable_manifest(run)
    store = None if manifest is None else stored_attributes(run, manifest)
    known = None if manifest is None or store is None else _sound_rows(run, manifest, store, db)
    changes = None if known is None else _changes(run, db)
    if manifest is not None and known is not None and changes is not None and not changes and known is manifest:
        log.info("scan: nothing new")
        if run.manifest_changed():
            rewrite(manifest)  # the digest in the store proves the rows, not the file
        run.record.confirm("scan", key, [output.manifest])
        return
    run.perform("scan", key, [output.manifest], work, complete=False)


def _unread(run: Run, db: Database) -> bool:
    """Whether the corpus has recordings that could not be read at the last scan and may be readable now."""
    register(db, run.manifest(), "error IS NOT NULL")
    return has_unread(db)


def _readable_manifest(run: Run) -> ManifestFile | None:
    """Return the manifest, or None if there is none, or one that is damaged and is not that of the store."""
    output = run.output
    if not output.manifest.exists():
        return None
    try:
        manifest = ManifestFile.at(output.manifest)
        stored = repair.stored_manifest_digest(output) if run.manifest_changed() else None
        sound = stored is None or manifest.appends_of(stored) is not None
    except UsageError:
        raise
    except PipelineError as error:
        log.warning("scan: %s", error)
        return None
    if not sound:
        log.warning("scan: %s is damaged: it is not that of the store", output.manifest)
        return None
    return manifest


def stored_attributes(run: Run, manifest: ManifestFile) -> StoreAttributes | None:
    """Return the attributes of the store, None if it has to be created.

    If another program has changed them, they are restored, and the store is verified again: it may have changed more.
    """
    recorded = recorded_digest(run, run.output.metadata)
    repair.restore_copy(run.output, manifest, run.config.pipeline, recorded, repair=run.repair)
    if lifecycle.restore_metadata(run.output, layouts=run.repair):
        run.record.forget("verify")
    return lifecycle.stored_attributes(run.output)


def recorded_digest(run: Run, path: UPath) -> str | None:
    """Return the digest of a file after the last extraction, None if it was not recorded."""
    extracted = run.record.stages.get("extract")
    return None if extracted is None else extracted.outputs.get(f"{path.parent.name}/{path.name}")


def _sound_rows(run: Run, manifest: ManifestFile, store: StoreAttributes, db: Database) -> ManifestFile:
    """Return the manifest of a store, without the first append with an impossible length and those that follow it.

    Later appends of `manifest` are not in the store yet: a scan may plan them anew, with headers that are read anew.
    For a store of another manifest it is `manifest`. The result becomes the table `manifest` of the database. What is
    left out of the store is taken out of it. A recording of the first scan keeps its length, because all rows depend
    on it.
    """
    last = manifest.appends_of(store.manifest_digest)
    known = manifest
    if last is not None and last < manifest.last_append:
        known = manifest.before(last + 1)
    register(db, known)
    ((number, first, found),) = rows(db, IMPOSSIBLE, MAX_SAMPLES_PER_BYTE, MAX_SAMPLES_OF_NOTHING)
    if not number:
        return known
    names = few(found, count=number)
    if first == 0:
        log.warning("scan: %s: no file of its size can be so long; choose another --out to scan it anew", names)
        return known
    log.warning("scan: %s: no file of its size can be so long; append %d is taken back and made anew", names, first)
    kept = known.before(first)
    register(db, kept)
    lifecycle.roll_back(run.output, kept, run.config.pipeline)
    return kept


def _changes(run: Run, db: Database) -> CorpusDiff:
    """Return the changes to apply to the table `manifest`, and log recordings that are gone or differ."""
    changes = compare(db)
    action = "masked" if run.prune else "kept in the store, unless --prune masks what is gone or has changed"
    for state in MASKING:
        if number := changes.number(state):
            names = few(changes.names(state, 3), count=number)
            log.warning("scan: %s %s: %s; %s", counted(number, "recording"), state, names, action)
    return changes if run.prune else changes.without_masking()
