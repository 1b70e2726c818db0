"""The status command: how far an output folder is."""

from rich.console import Console
from rich.table import Table

from pipeline import ledger, store, tables
from pipeline.config import PipelineConfig
from pipeline.errors import UsageError
from pipeline.plan import Plan
from pipeline.schema import Layout
from pipeline.state import RunState


def show(layout: Layout, console: Console) -> None:
    """Print the recordings, the shards and the stages of an output folder."""
    if not layout.run.exists():
        raise UsageError(f"--out {layout.root}: nothing has been run here yet")
    if layout.manifest.exists():
        manifest = tables.read(layout.manifest)
        hours = manifest["duration_s"].sum() / 3600
        console.print(f"recordings  {len(manifest)}, {hours:.2f} h, {manifest['label'].nunique()} languages")
        found = store.attributes(layout)
        if found is not None:
            plan = Plan(manifest, PipelineConfig.model_validate(found["config"]))
            console.print(f"shards      {len(store.finished(layout))} of {len(plan)} finished")
    if layout.ledger.exists():
        counts = ledger.counts(tables.read(layout.ledger))
        console.print("ledger      " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    table = Table("stage", "finished at", "seconds", box=None, pad_edge=False)
    for name, stage in RunState(layout).stages.items():
        table.add_row(name, stage["finished_at"], f"{stage.get('wall_s', 0):.1f}")
    console.print(table)
