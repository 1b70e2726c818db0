"""The report's pictures: pure functions from data to pictures.

Hue encodes the language and nothing else. Splits and shares differ in lightness; models have names.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.report.picture import FAINT, INK, QUIET, picture

# Okabe and Ito's palette, which suits all kinds of colour vision; its yellow is darkened to be visible on white
HUES: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#a89a0c", "#7b5aa6")
WIDTH_IN: Final = 7.2
MINUTES_FROM_S: Final = 180
MAX_LABELS_WITH_TEXT: Final = 12
MAX_LABELS_SMALL: Final = 8
MAX_LABELS_ROOMY: Final = 30
MAX_NAMED_LANGUAGES: Final = 7
MAX_TICKS: Final = 110
MAX_MARKED_EPOCHS: Final = 40
BAR_AND_LABEL: Final = 1.45  # the width of a panel; a bar of accuracy 1 leaves room for its label


def language_colors(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour (hexadecimal) per label: eight hues, then darker and lighter shades of them."""
    shades = (0.0, -0.4, 0.4, -0.65)
    colors = {}
    for place, label in enumerate(labels):
        shade = shades[place // len(HUES) % len(shades)]
        colors[label] = _lighter(HUES[place % len(HUES)], shade)
    return colors


@picture
def amounts(table: pd.DataFrame, unit: str, colors: Mapping[str, str]) -> Figure:
    """Draw the amount of audio in `table` (label, split), in `unit`; each further split has a lighter tone.

    `colors` maps labels to colours.
    """
    row_in = 0.28 if len(table) <= MAX_LABELS_ROOMY else 0.12
    figure = Figure(figsize=(WIDTH_IN, min(row_in * len(table) + 1.0, 40)), layout="constrained")
    axes = figure.subplots()
    tones = np.linspace(0, 0.72, len(table.columns))
    left = np.zeros(len(table))
    places = np.arange(len(table))
    for split, tone in zip(table.columns, tones, strict=True):
        shades = [_lighter(colors[str(label)], tone) for label in table.index]
        axes.barh(places, table[split], left=left, color=shades, height=0.7, edgecolor="white", linewidth=0.6)
        left += table[split].to_numpy()
    axes.set_yticks(places, [short(str(label)) for label in table.index])
    axes.set(xlabel=f"audio ({unit})", ylim=(len(table) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0, labelsize=min(9, row_in * 50))
    axes.grid(axis="x")
    keys = [Patch(color=_lighter("#555555", tone)) for tone in tones]
    figure.legend(keys, list(table.columns), loc="outside upper right", ncols=len(keys))
    return figure


@picture
def speed(series: pd.DataFrame) -> Figure:
    """Draw the speed of an extraction over time, and the number of workers below it.

    `series` has the columns `time_s`, `audio_h_per_h` and `workers`, one row per point in time.
    """
    unit, unit_s = ("minutes", 60) if series["time_s"].max() >= MINUTES_FROM_S else ("seconds", 1)
    time = series["time_s"] / unit_s
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(time, series["audio_h_per_h"], color=INK)
    above.set(ylabel="audio hours per hour", ylim=(0, None))
    below.step(time, series["workers"], color=QUIET, where="post")
    below.set(ylabel="workers", xlabel=unit, ylim=(0, None))
    below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    return figure


class LearningCurve(NamedTuple):
    """The epochs of one training.

    `history` has the columns of history.csv; `best_epoch` counts from 1 and is None where no epoch is marked.
    """

    title: str
    history: pd.DataFrame
    best_epoch: int | None


@picture
def learning_curves(curves: Sequence[LearningCurve]) -> Figure:
    """Draw loss and accuracy over epochs in one row per training, with its best epoch marked."""
    figure = Figure(figsize=(WIDTH_IN, 2.05 * len(curves) + 0.3), layout="constrained")
    grid = figure.subplots(len(curves), 2, squeeze=False)
    for row, curve in zip(grid, curves, strict=True):
        for axes, measure in zip(row, ("loss", "accuracy"), strict=True):
            _draw_measure(axes, curve, measure)
        row[0].set_title(curve.title)
        row[0].set_ylabel("cross-entropy (nats)")
        row[1].set_ylabel("accuracy")
        row[1].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    keys = [
        Line2D([], [], color=QUIET, label="training"),
        Line2D([], [], color=INK, label="validation"),
        Line2D([], [], color=INK, linestyle=":", linewidth=1, label="best epoch"),
    ]
    figure.legend(handles=keys, loc="outside upper right", ncols=len(keys))
    return figure


def _draw_measure(axes: Axes, curve: LearningCurve, measure: str) -> None:
    """Draw `measure` in training and, where there is validation, in validation."""
    history = curve.history
    marker = "o" if len(history) <= MAX_MARKED_EPOCHS else ""
    for column, color in ((measure, QUIET), (f"val_{measure}", INK)):
        if column in history:
            axes.plot(history["epoch"], history[column], color=color, marker=marker, markersize=3)
    if curve.best_epoch is not None:
        axes.axvline(curve.best_epoch, color=INK, linestyle=":", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.grid()


@picture
def comparison(accuracy: pd.DataFrame, chance: float) -> Figure:
    """Draw the accuracies (level, model) as one panel of bars per level, with a line at `chance`.

    All values are fractions. NaN means that the model has no such level.
    """
    models = accuracy.columns
    figure = Figure(figsize=(WIDTH_IN, 0.3 * len(models) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(accuracy), sharey=True, squeeze=False)[0]
    for axes, (level, values) in zip(panels, accuracy.iterrows(), strict=True):
        colors = np.where(values == values.max(), INK, QUIET)
        bars = axes.barh(range(len(models)), values.fillna(0), color=colors, height=0.66)
        texts = ["–" if np.isnan(value) else percent(value) for value in values]
        axes.bar_label(bars, texts, padding=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        line = axes.axvline(chance, color=INK, linestyle="--", linewidth=1)
        axes.set(title=f"per {level}", xlim=(0, BAR_AND_LABEL), xticks=(0, 0.5, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(models)), [short(str(model)) for model in models])
    panels[0].set_ylim(len(models) - 0.4, -0.6)
    figure.supxlabel("accuracy on test recordings", fontsize="medium")
    figure.legend([line], [f"chance, {percent(chance)}"], loc="outside upper right")
    return figure


@picture
def confusion(counts: NDArray[np.int64], labels: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix (true, predicted); the colour is the share of the true label's row."""
    n = len(labels)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    size_in = 4.2 if n <= MAX_LABELS_SMALL else WIDTH_IN if n <= MAX_LABELS_ROOMY else 1.35 * WIDTH_IN
    figure = Figure(figsize=(size_in, size_in * (1 if n <= MAX_LABELS_WITH_TEXT else 0.87)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#f1f1f1")  # visible where a label has no test recording
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    step = math.ceil(n / MAX_TICKS)
    font = float(np.clip(420 / n, 4.5, 9))
    names = [short(label, 22 if n <= MAX_LABELS_ROOMY else 14) for label in labels[::step]]
    axes.set_xticks(range(0, n, step), names, fontsize=font, rotation=90 if n > MAX_LABELS_SMALL else 0)
    axes.set_yticks(range(0, n, step), names, fontsize=font)
    if n <= MAX_LABELS_SMALL and max(map(len, names)) * n > 40:  # noqa: PLR2004 letters that fit beneath
        axes.tick_params(axis="x", labelrotation=45)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if n <= MAX_LABELS_WITH_TEXT:
        _write_cells(axes, counts, share)
    else:
        scale = figure.colorbar(image, ax=axes, shrink=0.6, format=PercentFormatter(1.0, symbol=" %"))
        scale.set_label("share of the true label")
    return figure


def _write_cells(axes: Axes, counts: NDArray[np.int64], share: NDArray[np.float64]) -> None:
    """Write percentage and count into each cell; a row without counts stays empty."""
    size = 8 if len(counts) <= MAX_LABELS_SMALL // 2 + 1 else 6.5
    for true, predicted in np.argwhere(np.isfinite(share)):
        value = share[true, predicted]
        color = "white" if value > 0.62 else INK if counts[true, predicted] else QUIET  # noqa: PLR2004 half-way tone
        text = f"{percent(value)}\n{counts[true, predicted]:,}"
        axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=size, linespacing=1.3)


@picture
def example(
    features: NDArray[np.float32], probabilities: NDArray[np.float64], labels: Sequence[str], true: int,
    colors: Mapping[str, str], hop_s: float, title: str,
) -> Figure:  # fmt: skip
    """Draw one recording's features above its probabilities, on the same time axis in seconds.

    `features` is (sequence, timestep, feature), `probabilities` (sequence, label); `true` is the number of the spoken
    language in `labels`; `hop_s` is the time between frames.
    """
    figure = Figure(figsize=(WIDTH_IN, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 0.16), height_ratios=(1.15, 1))
    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    upper.sharex(lower)
    first = min(1, features.shape[2] - 1)  # coefficient 0 is the loudness; its range would hide the others
    frames = features.reshape(-1, features.shape[2])[:, first:]
    spread = frames.std(axis=0)
    deviation = (frames - frames.mean(axis=0)) / np.where(spread > 0, spread, 1)
    end_s = len(frames) * hop_s
    extent = (0.0, end_s, first - 0.5, features.shape[2] - 0.5)
    image = upper.imshow(
        deviation.T,
        extent=extent,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="Greys",
        vmin=-2,
        vmax=3,
    )
    upper.set_title(title)
    upper.set_ylabel("feature number")
    upper.tick_params(labelbottom=False)
    scale = figure.add_subplot(grid[0, 1])
    scale.set_axis_off()
    figure.colorbar(image, ax=scale, location="left", fraction=0.9, aspect=18, label="standard deviations")
    key = figure.add_subplot(grid[1, 1])
    key.set_axis_off()
    _stack(lower, key, probabilities, labels, true, colors, end_s)
    return figure


def _stack(
    axes: Axes, key: Axes, probabilities: NDArray[np.float64], labels: Sequence[str], true: int,
    colors: Mapping[str, str], end_s: float,
) -> None:  # fmt: skip
    """Stack the probabilities; the true language is at the bottom, where its share can be read off the axis."""
    ranked = [int(i) for i in np.argsort(-probabilities.mean(axis=0), kind="stable") if i != true]
    shown = [true, *ranked[: MAX_NAMED_LANGUAGES - 1]]
    layers = [(probabilities[:, i], colors[labels[i]], short(labels[i], 14)) for i in shown]
    rest = ranked[MAX_NAMED_LANGUAGES - 1 :]
    if rest:
        layers.append((probabilities[:, rest].sum(axis=1), FAINT, f"{len(rest)} others"))
    edges = np.linspace(0, end_s, len(probabilities) + 1)
    base = np.zeros(len(probabilities))
    for values, color, _ in layers:
        axes.stairs(base + values, edges, baseline=base, fill=True, color=color, linewidth=0)
        base = base + values
    axes.axhline(0.5, color="white", linewidth=0.8, linestyle=":")
    axes.set(xlabel="time (s)", ylabel="probability", xlim=(0, end_s), ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    patches = [Patch(color=color) for _, color, _ in layers]
    legend = key.legend(patches[::-1], [""] * len(layers), loc="center left", borderaxespad=0, handlelength=1.2)
    # set afterwards: a legend omits names that begin with an underscore
    for text, (_, _, name), place in zip(legend.get_texts(), layers[::-1], range(len(layers))[::-1], strict=True):
        text.set_text(name)
        text.set_fontweight("bold" if place == 0 else "normal")


def percent(fraction: float) -> str:
    """Format a fraction as a percentage with one decimal."""
    return f"{100 * fraction:.1f} %"


def short(name: str, max_characters: int = 22) -> str:
    """Return `name`, its middle replaced by an ellipsis if it is too long: names often differ at their ends."""
    if len(name) <= max_characters:
        return name
    tail = (max_characters - 1) // 2
    return f"{name[: max_characters - 1 - tail]}…{name[-tail:]}"


def _lighter(color: str, amount: float) -> str:
    """Mix `color` with white (`amount` from 0 to 1) or with black (`amount` from 0 to -1)."""
    target = 1.0 if amount > 0 else 0.0
    red, green, blue = (channel + (target - channel) * abs(amount) for channel in to_rgb(color))
    return to_hex((red, green, blue))
