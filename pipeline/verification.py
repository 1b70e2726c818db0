"""The verify stage: what is stored is what was written."""

from dataclasses import dataclass
from functools import partial

import pandas as pd

from pipeline import backlog, ledger, records, store, tables, workers
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError, few
from pipeline.executors import Executor
from pipeline.plan import Plan
from pipeline.progress import track
from pipeline.schema import Layout


@dataclass(frozen=True)
class Damage:
    """The stored arrays of a shard that differ from their checksums."""

    index: int
    arrays: tuple[str, ...]


def verify(layout: Layout, table: pd.DataFrame, config: PipelineConfig, executor: Executor) -> int:
    """Recompute the checksum of every stored object and check that the ledger closes; return how many shards.

    Raises PipelineError that names what differs.
    """
    plan = Plan(table, config)
    unfinished = len(backlog.unfinished(layout, plan))
    if unfinished or not layout.ledger.exists():
        raise PipelineError(
            f"{layout.root}: {unfinished} of {len(plan)} shards are not extracted yet; run extract first"
        )
    workers.check(executor, layout)
    damaged: list[Damage] = []
    with track("verify", len(plan), "shards", executor.dashboard) as progress:
        for damage in executor.run(partial(check_shard, out=str(layout.root)), range(len(plan))):
            damaged += [damage] if damage.arrays else []
            progress.advance(failed=bool(damage.arrays))
    if damaged:
        raise PipelineError(_describe(layout, sorted(damaged, key=lambda damage: damage.index)))
    written = (records.read_record(layout, index) for index in range(len(plan)))
    if not ledger.build(table, written, config).equals(tables.read(layout.ledger)):
        raise PipelineError(f"{layout.ledger} does not agree with the shards; delete it and run extract again")
    return len(plan)


def check_shard(index: int, *, out: str) -> Damage:
    """Compare the checksums of a shard's stored objects with those recorded when it was written."""
    layout = Layout.at(out)
    recorded, found = records.read_record(layout, index).checksums, store.checksums(layout, index)
    return Damage(index, tuple(name for name in found if recorded.get(name) != found[name]))


def _describe(layout: Layout, damaged: list[Damage]) -> str:
    first = damaged[0]
    more = f", and {len(damaged) - 1} more shards" if len(damaged) > 1 else ""
    names = few([layout.shard_record(damage.index).name for damage in damaged])
    return (
        f"shard {first.index} of {layout.store} differs from its checksums in {', '.join(first.arrays)}{more}; delete "
        f"the records of what differs ({names}) in {layout.shards} and run "
        "extract again to write them anew"
    )
