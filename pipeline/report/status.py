"""The status command: the progress of an output folder, on the terminal."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from pipeline import run_record
from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import masked_count
from pipeline.errors import UsageError, counted, few
from pipeline.extraction import ledger, lifecycle, retry
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from pipeline.run_record import RunFile, StageRecord, VerifyRecord
from pipeline.store import records

if TYPE_CHECKING:
    from model.registry.history import History

MAX_DECISIONS = 10


def show(output: OutputFolder, history: "History", console: Console) -> None:
    """Print the recordings, shards and stages of an output folder, and the decisions on its models.

    Raises UsageError for a folder in which nothing has run.
    """
    if not output.run.exists():
        raise UsageError(f"--out {output.root}: nothing has been run here yet")
    if output.manifest.exists():
        manifest = ManifestFile.at(output.manifest, whole=True)
        hours = sum(float(rows["duration_s"].sum()) for rows in manifest.tables(["duration_s"])) / 3600
        console.print(f"recordings  {len(manifest)}, {hours:.2f} h, {len(manifest.label_names())} languages")
        appends, masked = manifest.last_append, masked_count(manifest)
        if appends or masked:
            console.print(f"since then  {counted(appends, 'append')}, {counted(masked, 'recording')} masked")
        found = records.read_attributes(output)
        if found is not None:
            _print_shards(output, manifest, Plan.of(manifest, PipelineConfig.model_validate(found.config)), console)
    if output.ledger.exists():
        counts = ledger.counts(output)
        console.print("ledger      " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    run = run_record.read(output)
    verified, extracted = run.stages.get("verify"), run.stages.get("extract")
    if isinstance(verified, VerifyRecord):
        console.print(f"verified    {_verified(verified, extracted)}", soft_wrap=True)
    if history.decisions:
        console.print(f"champion    {history.standing()}", soft_wrap=True)
    console.print(_stages(output, run))
    if history.decisions:
        console.print(_decisions(history))


def _print_shards(output: OutputFolder, manifest: ManifestFile, plan: Plan, console: Console) -> None:
    """Print how many shards are finished, and how many recordings that failed the next run tries again."""
    try:
        lifecycle.check_room(output, manifest, plan)
    except UsageError as error:
        console.print(f"shards      {error}", soft_wrap=True, markup=False)
        return
    pending = find_pending(output, plan)
    console.print(f"shards      {len(plan) - len(pending.shards)} of {len(plan)} finished")
    again = len(pending.again) + retry.unread(manifest)
    if again:
        console.print(f"try again   {counted(again, 'recording')} that failed, readable now or changed since")


def _verified(last: VerifyRecord, extracted: StageRecord | None) -> str:
    """Return when verify ran last, what it read, and what it found."""
    read = f"{counted(last.shards or 0, 'shard')}, {counted(last.files or 0, 'file')}"
    found = f"{counted(last.damaged, 'file')} damaged" if last.damaged else "nothing damaged"
    since = "; extracted again since" if extracted and extracted.finished_at > last.finished_at else ""
    size = f"{(last.size_bytes or 0) / 2**20:,.1f} MiB"
    return f"{last.finished_at:%Y-%m-%d %H:%M:%S}: {read}, {size}; {found}{since}"


def _stages(output: OutputFolder, run: RunFile) -> Table:
    """Return the finished stages as a table, with the files of each that are missing or have changed."""
    table = Table("stage", "finished at", "seconds", Column("", no_wrap=True), box=None, pad_edge=False)
    for name, stage in run.stages.items():
        changed = run_record.changed_outputs(output, run, name)
        gone = [file for file in changed if not (output.root / file).exists()]
        note = (
            f"run it again: {few(gone)} missing" if gone else f"run verify: {few(changed)} changed" if changed else ""
        )
        table.add_row(name, f"{stage.finished_at:%Y-%m-%d %H:%M:%S}", f"{stage.wall_s or 0:.1f}", note)
    return table


def _decisions(history: "History") -> Table:
    """Return the last decisions as a table, the newest first."""
    columns = ("decided (UTC)", "decision", "version", "macro F1", "gain")
    table = Table(*(Column(name, no_wrap=True) for name in columns), box=None, pad_edge=False)
    for decision in history.decisions[: -MAX_DECISIONS - 1 : -1]:
        judged = decision.comparison
        f1 = str(judged.challenger_f1) if judged and judged.challenger_f1 else ""
        gain = f"{judged.gain.value:+.3f}" if judged and judged.gain else ""
        table.add_row(decision.time.removesuffix(" UTC"), decision.kind, decision.subject, f1, gain)
    return table
