"""The scan stage: a corpus → the manifest, or what the corpus gained and lost since."""

import logging

import pandas as pd
from upath import UPath

from pipeline.corpus.diff import CorpusDiff, compare
from pipeline.corpus.listing import Listing, list_recordings
from pipeline.corpus.manifest import (
    extends,
    impossible_rows,
    manifest_digest,
    masked_rows,
    read_manifest,
    rows_before,
    stored_rows,
    unread_rows,
    write_manifest,
)
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.digests import value_digest
from pipeline.errors import PipelineError, UsageError, counted, few
from pipeline.extraction import lifecycle, repair
from pipeline.run_context import Facts, Run
from pipeline.store.records import StoreAttributes

log = logging.getLogger("pipeline.stages")


def scan_stage(run: Run) -> None:
    """Corpus → manifest. Once a store was begun, only what the corpus gained or lost changes the manifest."""
    if run.corpus is None:
        raise UsageError("--corpus is missing: the folder LANGUAGE/[SPEAKER/]file of recordings")
    output, config = run.output, run.config.pipeline
    listing = list_recordings(run.corpus)
    key = value_digest([listing.digest, run.corpus, config.config_hash, run.config.corpus.model_dump(mode="json")])

    def work() -> Facts:
        from pipeline.corpus import scan  # noqa: PLC0415 like all stages: what only work needs is loaded for work

        if known is None or changes is None:
            wanted = None if known is not None else repair.stored_manifest_digest(output)
            scanned = scan.scan(listing, output, config, run.executor(), run.config.corpus, wanted)
        else:
            scanned = scan.update(listing, changes, known, output, config, run.executor(), run.config.corpus)
        return {
            "recordings": len(scanned), "ignored_files": len(listing.ignored),
            "appends": int(scanned["append_index"].max()), "masked": int(masked_rows(scanned).sum()),
        }  # fmt: skip

    if not run.prune and run.record.unchanged("scan", key):
        run.manifest()  # raises an error for one that cannot be used
        if not len(unread_rows(read_manifest(output), listing.recordings)) and run.skips("scan", key):
            return
    manifest = _readable_manifest(run)
    store = None if manifest is None else stored_attributes(run, ManifestFile.at(output.manifest))
    known = (
        None if manifest is None or store is None else _sound_rows(run, stored_rows(manifest, store.manifest_digest))
    )
    changes = None if known is None else _changes(run, known, listing)
    if manifest is not None and changes is not None and not changes and len(changes.uri) == len(manifest):
        log.info("scan: nothing new")
        if run.manifest_changed():
            write_manifest(output, manifest)  # the digest in the store proves the rows, not the file
        run.record.confirm("scan", key, [output.manifest])
        return
    run.perform("scan", key, [output.manifest], work, complete=False)


def _readable_manifest(run: Run) -> pd.DataFrame | None:
    """Return the manifest, or None if there is none, or one that is damaged and is not that of the store."""
    output = run.output
    if not output.manifest.exists():
        return None
    try:
        manifest = read_manifest(output)
    except UsageError:
        raise
    except PipelineError as error:
        log.warning("scan: %s", error)
        return None
    stored = repair.stored_manifest_digest(output) if run.manifest_changed() else None
    if (
        stored is not None
        and manifest_digest(stored_rows(manifest, stored)) != stored
        and not extends(manifest, stored)
    ):
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


def _sound_rows(run: Run, manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a store before the first append with an impossible length; take the others out of the store.

    A recording of the first scan keeps its length, because all rows depend on it.
    """
    rows = impossible_rows(manifest)
    if not len(rows):
        return manifest
    names, first = few(manifest["recording_id"].iloc[rows].tolist()), int(manifest["append_index"].iloc[rows].min())
    if first == 0:
        log.warning("scan: %s: no file of its size can be so long; choose another --out to scan it anew", names)
        return manifest
    log.warning("scan: %s: no file of its size can be so long; append %d is taken back and made anew", names, first)
    kept = rows_before(manifest, first)
    lifecycle.roll_back(run.output, ManifestFile.of(kept), run.config.pipeline)
    return kept


def _changes(run: Run, manifest: pd.DataFrame, listing: Listing) -> CorpusDiff:
    """Return the changes to apply to the manifest, and log recordings that are gone or differ."""
    changes = compare(manifest, listing)
    action = "masked" if run.prune else "kept in the store, unless --prune masks what is gone or has changed"
    for rows, what in ((changes.gone, "gone"), (changes.changed, "changed")):
        if len(rows):
            names = few(list(manifest["recording_id"].iloc[rows]))
            log.warning("scan: %s %s: %s; %s", counted(len(rows), "recording"), what, names, action)
    return changes if run.prune else changes.without_masking()
