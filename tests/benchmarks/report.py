"""Benchmark results as tables: Markdown, terminal output and JSON."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table as RichTable

from tests.benchmarks.measure import Measured

MIB = 2**20
COLUMNS = ("", "median", "lowest – highest", "rounds", "ratio", "bar", "met")
PACKAGES = (
    "array_record", "dask", "distributed", "grain", "joblib", "kaldi-native-fbank", "keras", "lhotse", "librosa",
    "numba", "numpy", "python_speech_features", "soundfile", "soxr", "tensorflow", "torch", "xarray", "xbatcher",
    "zarr",
)  # fmt: skip
INTRODUCTION = """\
# Benchmarks

`make bench` writes this page. It runs this software ("ours") and other software in turns, on the same files and the
same machine. Values are medians over the rounds. The ratio compares ours with the software in that row: above 1, ours
is better, whatever the unit. A bar is the value to reach. Values differ between machines; ratios should differ little.
"""


@dataclass(frozen=True)
class Row:
    """One result. `ratio` is the factor by which ours is better; `met` is None if there is no bar."""

    name: str
    unit: str
    values: tuple[float, ...]
    ratio: float | None = None
    bar: str = ""
    met: bool | None = None

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)


@dataclass(frozen=True)
class Table:
    """Results that were measured together; `caption` describes how."""

    title: str
    caption: str
    rows: tuple[Row, ...]


def comparison(
    unit: str, measured: Mapping[str, Measured], bars: Mapping[str, float], *, smaller_is_better: bool = False
) -> tuple[Row, ...]:
    """Return one row per contender, ours first; `bars` holds the ratio that ours must reach, by name of the peer."""
    (ours, own), *peers = measured.items()
    rows = [Row(ours, unit, own.values)]
    for name, peer in peers:
        times = median(own.values) / median(peer.values)
        ratio = 1 / times if smaller_is_better else times
        bar = bars.get(name)
        if bar is None:
            rows.append(Row(name, unit, peer.values, ratio))
        else:
            rows.append(Row(name, unit, peer.values, ratio, f"≥ {bar:g} ×", ratio >= bar))
    return tuple(rows)


def at_most(name: str, unit: str, values: Sequence[float], bar: float) -> Row:
    """Return a row whose median must not exceed `bar`."""
    return Row(name, unit, tuple(values), None, f"≤ {bar:g} {unit}", median(values) <= bar)


def at_least(name: str, unit: str, values: Sequence[float], bar: float) -> Row:
    """Return a row whose median must not be below `bar`."""
    return Row(name, unit, tuple(values), None, f"≥ {bar:,g} {unit}", median(values) >= bar)


def same_within(name: str, unit: str, value: float, other: float, fraction: float) -> Row:
    """Return a row whose value must not differ from `other` by more than `fraction` of it."""
    ratio = value / other
    return Row(name, unit, (value,), None, f"the same within {fraction:.0%}", abs(ratio - 1) <= fraction)


def memory(measured: Mapping[str, Measured], worker_bar: Mapping[str, float] | None = None) -> tuple[Row, ...]:
    """Return rows of peak memory: each contender's own process, and the largest process that it started."""
    rows = []
    for name, found in measured.items():
        rows.append(Row(f"{name}: driver", "MiB", (found.peak_bytes / MIB,)))
        if found.children_bytes:
            largest = (found.children_bytes[-1] / MIB,)
            bar = (worker_bar or {}).get(name)
            worker = f"{name}: worker"
            rows.append(at_most(worker, "MiB", largest, bar) if bar else Row(worker, "MiB", largest))
    return tuple(rows)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, in the order of COLUMNS."""
    several = len(row.values) > 1
    return (
        row.name,
        f"{number(row.value)} {row.unit}",
        f"{number(min(row.values))} – {number(max(row.values))}" if several else "",
        str(len(row.values)),
        "" if row.ratio is None else f"{row.ratio:.2f} ×",
        row.bar,
        {None: "", True: "yes", False: "**no**"}[row.met],
    )


def number(value: float) -> str:
    """Return the value with three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page with all measured groups."""
    machine = results["machine"]
    parts = [INTRODUCTION, "## Machine\n", "\n".join(f"- {key}: {value}" for key, value in machine.items())]
    for name, group in results["groups"].items():
        parts.append(f"\n## {group['title']}\n\n`python -m tests.benchmarks {name} {group['options']}`")
        for table in map(_table, group["tables"]):
            parts.append(f"\n### {table.title}\n\n{table.caption}\n")
            parts.append(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
            parts.extend(f"| {' | '.join(cells(row))} |" for row in table.rows)
    return "\n".join(parts) + "\n"


def show(tables: Sequence[Table], console: Console) -> None:
    """Print the tables to the terminal."""
    for table in tables:
        page = RichTable(*COLUMNS, title=table.title, caption=table.caption, title_justify="left")
        for row in table.rows:
            page.add_row(*(cell.replace("**", "") for cell in cells(row)), style="red" if row.met is False else "")
        console.print(page)


def merge(folder: Path, group: str, title: str, options: str, tables: Sequence[Table]) -> None:
    """Write the results of a group to benchmarks.json and benchmarks.md in `folder`.

    Results of other groups are kept if they were measured on this machine with these versions.
    """
    file = folder / "benchmarks.json"
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    facts = machine()
    groups = results["groups"] if results.get("machine") == facts else {}
    groups[group] = {"title": title, "options": options, "tables": [asdict(table) for table in tables]}
    # via JSON, so that the page does not depend on which groups were measured now
    results = json.loads(json.dumps({"machine": facts, "groups": dict(sorted(groups.items()))}))
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(markdown(results), encoding="utf-8")


def machine() -> dict[str, str]:
    """Return what the results depend on besides the code."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)
    return f"{fields.get('model name', platform.processor())} (family {fields.get('cpu family', '?')})"


def _table(fields: Mapping[str, Any]) -> Table:
    rows = tuple(Row(**{**row, "values": tuple(row["values"])}) for row in fields["rows"])
    return Table(fields["title"], fields["caption"], rows)
