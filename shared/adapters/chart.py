"""Line charts as PNG files, drawn by matplotlib without a display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.core.errors import SettingsInvalid

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d6a9f", "#edae49", "#00798c", "#555555")
_WIDTH_IN, _PANEL_IN, _DPI = 11.0, 3.4, 110
_LABEL_SHARE = 0.018
"""Of the panel's width: a line of small text and its margin."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined in order; a y that is nan leaves a gap. The same label has the same colour in every panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    marks: Sequence[float] = ()
    """x of moments to mark on this line's strip, such as its trainings"""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram; panels share the x axis. percent: y is a share, shown as per cent."""

    title: str
    lines: Sequence[Line]
    percent: bool = False
    moments: Sequence[tuple[float, str]] = field(default=())
    """Vertical lines with a word each"""


def draw(path: Path, title: str, panels: Sequence[Panel], x_label: str) -> Path:
    """Write a PNG, its folder too. Raises SettingsInvalid where matplotlib is not installed, OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsInvalid("charts need matplotlib: pip install 'driftwood[local]'") from error
    figure = Figure(figsize=(_WIDTH_IN, 0.6 + _PANEL_IN * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    colours = {label: COLOURS[n % len(COLOURS)] for n, label in enumerate(labels)}
    for axes, panel in zip(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True):
        _draw_panel(axes, panel, colours)
    axes.set_xlabel(x_label)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": None})
    return path


def labels_of(moments: Sequence[tuple[float, str]], room: float) -> list[tuple[float, str]]:
    """(x, text) with at least ``room`` between any two: moments that are closer share a label, each word once in it."""
    groups: list[tuple[float, Counter[str]]] = []
    for x, word in sorted(moments):
        if not groups or x - groups[-1][0] >= room:
            groups.append((x, Counter()))
        groups[-1][1][word] += 1
    return [
        (x, ", ".join(word if count == 1 else f"{word} ×{count}" for word, count in words.items()))
        for x, words in groups
    ]


def _draw_panel(axes: object, panel: Panel, colours: dict[str, str]) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import PercentFormatter

    assert isinstance(axes, Axes)
    for line in panel.lines:
        style = "--" if line.dashed else "-"
        axes.plot(line.x, line.y, style, label=line.label, color=colours[line.label], linewidth=1.6)
    strips = [line for line in panel.lines if line.marks]
    for number, line in enumerate(strips):  # a strip of ticks for each line that has marks, along the bottom
        low = 0.02 + 0.035 * number
        for mark in line.marks:
            axes.axvline(mark, low, low + 0.028, color=colours[line.label], linewidth=1.0)
    for x, _ in panel.moments:
        axes.axvline(x, color="#999999", linewidth=0.8, linestyle=":")
    low_x, high_x = axes.get_xlim()
    for x, text in labels_of(panel.moments, (high_x - low_x) * _LABEL_SHARE):
        axes.annotate(text, (x, 1.0), xycoords=("data", "axes fraction"), fontsize=8, rotation=90, va="top", ha="right")
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(panel.lines) > 1:
        axes.legend(fontsize=9, frameon=False, loc="best", ncols=min(4, len(panel.lines)))
