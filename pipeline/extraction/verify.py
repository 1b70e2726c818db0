"""The verify stage: what is stored is what was written."""

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
from pipeline.store import feature_store, records


@dataclass(frozen=True)
class Damage:
    """The stored arrays of a shard that differ from their checksums."""

    index: int
    arrays: tuple[str, ...]


def verify(output: OutputFolder, table: pd.DataFrame, config: PipelineConfig, executor: Executor) -> int:
    """Recompute the checksum of every stored object and check that the ledger closes; return how many shards.

    Raises PipelineError that names what differs.
    """
    plan = Plan(table, config)
    unfinished = len(lifecycle.pending_shards(output, plan))
    if unfinished or not output.ledger.exists():
        raise PipelineError(
            f"{output.root}: {unfinished} of {len(plan)} shards are not extracted yet; run extract first"
        )
    preflight.check(executor, output)
    damaged: list[Damage] = []
    with track("verify", len(plan), "shards", executor.monitor.dashboard) as progress:
        for done in completed(executor.run(partial(check_shard, out=str(output.root)), range(len(plan)))):
            damage = done.result
            damaged += [damage] if damage.arrays else []
            progress.advance(failed=bool(damage.arrays))
    if damaged:
        raise PipelineError(_describe(output, sorted(damaged, key=lambda damage: damage.index)))
    written = (records.read_record(output, index) for index in range(len(plan)))
    if not ledger.build(table, written, config).equals(storage.read_parquet(output.ledger)):
        raise PipelineError(f"{output.ledger} does not agree with the shards; delete it and run extract again")
    return len(plan)


def check_shard(index: int, *, out: str) -> Damage:
    """Compare the checksums of a shard's stored objects with those recorded when it was written."""
    output = OutputFolder.at(out)
    recorded, found = records.read_record(output, index).checksums, feature_store.checksums(output, index)
    return Damage(index, tuple(name for name in found if recorded.get(name) != found[name]))


def _describe(output: OutputFolder, damaged: list[Damage]) -> str:
    first = damaged[0]
    more = f", and {len(damaged) - 1} more shards" if len(damaged) > 1 else ""
    names = few([output.shard_record(damage.index).name for damage in damaged])
    return (
        f"shard {first.index} of {output.store} differs from its checksums in {', '.join(first.arrays)}{more}; delete "
        f"the records of what differs ({names}) in {output.shards} and run "
        "extract again to write them anew"
    )
