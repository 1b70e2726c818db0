"""The verify stage: the stored bytes are those that were written, and the ledger matches the shards."""

from dataclasses import dataclass
from functools import partial

import pandas as pd

from pipeline import storage
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError, few
from pipeline.extraction import ledger, lifecycle
from pipeline.extraction.plan import Plan
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.store import feature_store, metadata, records


@dataclass(frozen=True)
class Damage:
    """The variables of a shard whose stored objects differ from their checksums."""

    index: int
    variables: tuple[str, ...]


def verify(output: OutputFolder, manifest: pd.DataFrame, config: PipelineConfig, executor: Executor) -> int:
    """Compare the stored objects, the metadata of the store and the ledger; return the number of shards.

    Raises PipelineError for a store that is not extracted completely, and with the names of what differs.
    """
    plan = Plan(manifest, config)
    unfinished = len(lifecycle.pending_shards(output, plan))
    if unfinished or not output.ledger.exists():
        raise PipelineError(
            f"{output.root}: {unfinished} of {len(plan)} shards are not extracted yet; run extract first"
        )
    preflight.check(executor, output, writes=False)
    damaged: list[Damage] = []
    with track("verify", len(plan), "shards", executor.monitor.dashboard) as progress:
        for done in completed(executor.run(partial(check_shard, out=str(output.root)), range(len(plan)))):
            damage = done.result
            damaged += [damage] if damage.variables else []
            progress.advance(failed=bool(damage.variables))
    if damaged:
        raise PipelineError(_describe(output, sorted(damaged, key=lambda damage: damage.index)))
    changed = [*metadata.changed_attributes(output), *metadata.changed_layouts(output)]
    if changed:
        raise PipelineError(
            f"{output.store}: another program has changed {few(changed)}; run extract, or restore it from a backup"
        )
    written = (records.read_record(output, index) for index in range(len(plan)))
    if not ledger.build(manifest, written, config).equals(storage.read_parquet(output.ledger)):
        raise PipelineError(f"{output.ledger} does not match the shards; delete it and run extract again")
    return len(plan)


def check_shard(index: int, *, out: str) -> Damage:
    """Compare the checksums of a shard's stored objects with those recorded when it was written."""
    output = OutputFolder.at(out)
    recorded, found = records.read_record(output, index).checksums, feature_store.checksums(output, index)
    return Damage(index, tuple(name for name in found if recorded.get(name) != found[name]))


def _describe(output: OutputFolder, damaged: list[Damage]) -> str:
    """Return the message for shards that differ, in rising order."""
    first, others = damaged[0], len(damaged) - 1
    more = {0: "", 1: ", and 1 more shard differs"}.get(others, f", and {others} more shards differ")
    names = few([output.shard_record(damage.index).name for damage in damaged])
    return (
        f"shard {first.index} of {output.store} differs from its checksums in {', '.join(first.variables)}{more}; "
        f"delete the records of these shards ({names}) in {output.shards} and run extract again: it writes them anew"
    )
