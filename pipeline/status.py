"""The status command: how far an output folder is."""

from rich.console import Console
from rich.table import Column, Table

from pipeline import backlog, ledger, records, registry, tables
from pipeline import manifest as manifests
from pipeline.config import PipelineConfig
from pipeline.decisions import History, utc
from pipeline.errors import UsageError
from pipeline.plan import Plan
from pipeline.schema import Layout
from pipeline.state import RunState

MOST_DECISIONS = 10


def show(layout: Layout, console: Console) -> None:
    """Print the recordings, the shards, the stages, and the models that serve or have served, of an output folder."""
    if not layout.run.exists():
        raise UsageError(f"--out {layout.root}: nothing has been run here yet")
    if layout.manifest.exists():
        manifest = tables.read_manifest(layout)
        hours = manifest["duration_s"].sum() / 3600
        console.print(f"recordings  {len(manifest)}, {hours:.2f} h, {manifest['label'].nunique()} languages")
        growths, masked = int(manifest["growth"].max()), int(manifests.masked(manifest).sum())
        if growths or masked:
            console.print(f"since then  {growths} growths, {masked} recordings masked")
        found = records.attributes(layout)
        if found is not None:
            plan = Plan(manifest, PipelineConfig.model_validate(found["config"]))
            left = len(backlog.unfinished(layout, plan))
            console.print(f"shards      {len(plan) - left} of {len(plan)} finished")
    if layout.ledger.exists():
        counts = ledger.counts(tables.read(layout.ledger))
        console.print("ledger      " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    history = registry.read(layout)
    if history.decisions:
        console.print(f"champion    {history.standing()}", soft_wrap=True)
    table = Table("stage", "finished at", "seconds", box=None, pad_edge=False)
    for name, stage in RunState(layout).stages.items():
        table.add_row(name, stage["finished_at"], f"{stage.get('wall_s', 0):.1f}")
    console.print(table)
    if history.decisions:
        console.print(_decisions(history))


def _decisions(history: History) -> Table:
    """Return the last decisions as a table, the newest first."""
    columns = ("decided (UTC)", "decision", "version", "macro F1", "gain")
    table = Table(*(Column(name, no_wrap=True) for name in columns), box=None, pad_edge=False)
    for decision in history.decisions[: -MOST_DECISIONS - 1 : -1]:
        judged = decision.judgement
        f1 = str(judged.challenger_f1) if judged and judged.challenger_f1 else ""
        gain = f"{judged.gain.value:+.3f}" if judged and judged.gain else ""
        table.add_row(utc(decision.at).removesuffix(" UTC"), decision.kind, decision.subject, f1, gain)
    return table
