"""How every figure looks: one colour a method everywhere, and files that rebuild byte for byte."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

INK, GREY = "#222222", "#666666"

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the same on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "figure.titlesize": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name with $ is no formula
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 1.8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "savefig.dpi": 220,
    "pdf.fonttype": 42,  # outlines embedded as TrueType: text stays text
    "svg.hashsalt": "lorasweep",
}


@dataclass(frozen=True)
class Look:
    """Name and appearance of a method."""

    name: str
    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]

    @property
    def dark(self) -> str:
        """The colour for thin strokes and small type."""
        red, green, blue = to_rgb(self.colour)
        return to_hex((0.6 * red, 0.6 * green, 0.6 * blue))


@dataclass(frozen=True)
class Layers:
    """Name and appearance of a target."""

    name: str
    line: str
    filled: bool
    hatch: str


# Okabe and Ito's colours, told apart by colour-blind readers too.
_METHODS = {
    "lora": Look("LoRA", "#0072B2", "o", "-"),
    "qlora": Look("QLoRA", "#D55E00", "s", (0, (4.0, 1.2, 1.0, 1.2))),
    "fft": Look("full fine-tuning", "#009E73", "^", ":"),
    "base": Look("base model, untrained", GREY, "", "--"),
}
_SPARE = ("#CC79A7", "#E69F00", "#56B4E9")
_SPARE_MARKERS = ("D", "v", "P", "X", "<", ">", "h")
_TARGETS = {
    "all_linear": Layers("all-linear", "-", True, ""),
    "attention": Layers("attention", ":", False, "/////"),
}


def method(name: str) -> Look:
    """Look of a method: the same in every figure, also for methods not known here."""
    if name in _METHODS:
        return _METHODS[name]
    number = zlib.crc32(name.encode())
    marker = _SPARE_MARKERS[number % len(_SPARE_MARKERS)]
    return Look(name, _SPARE[number % len(_SPARE)], marker, "-")


def target(name: str) -> Layers:
    """Look of a target."""
    return _TARGETS.get(name, Layers(name, "--", False, "....."))


@contextmanager
def context() -> Iterator[None]:
    """Draw in this style whatever the user's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def log2_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Make x a log₂ axis that carries exactly these values as tick labels."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(min(values) / 2**0.5, max(values) * 2**0.5)
    axes.set_xlabel(label)


def score_axis(axes: Axes, low: float, high: float, base: float) -> None:
    """Fit y to the data; squeeze the empty range down to a base model far below, and mark it."""
    floor, top = _around(low, high)
    if np.isnan(base) or floor - base < high - low:
        axes.set_ylim(*_around(float(np.fmin(low, base)), float(np.fmax(high, base))))
        return
    slope = 0.15 * (top - floor) / (floor - base)
    axes.set_yscale(
        "function",
        functions=(
            lambda y: np.where(y < floor, floor + slope * (y - floor), y),
            lambda y: np.where(y < floor, floor + (y - floor) / slope, y),
        ),
    )
    axes.set_ylim(base - 0.4 * (floor - base), top)
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(floor, top)
    axes.set_yticks([base, *(tick for tick in ticks if floor < tick < top)])
    digits = 2 if ticks[1] - ticks[0] > 0.0099 else 3
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.{digits}f}")
    axes.text(
        *(0, (base + floor) / 2, "//"),
        transform=axes.get_yaxis_transform(),
        ha="center",
        va="center",
        size=7,
        rotation=60,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
    )


def _around(low: float, high: float) -> tuple[float, float]:
    """Leave room around the data, and never blow up a difference of less than 0.04."""
    margin = max(0.08 * (high - low), (0.04 - (high - low)) / 2)
    return low - margin, high + margin


def height(axes: Axes, x: float, y: float) -> float:
    """Where a point lies between the foot (0) and the top (1) of the axes; NaN for NaN."""
    return float((axes.transScale + axes.transLimits).transform((x, y))[1])


def save(figure: Figure, stem: Path, suffixes: Sequence[str] = (".pdf", ".png")) -> list[Path]:
    """Write ``stem.pdf`` and ``stem.png`` without dates or versions, and return the paths."""
    metadata: dict[str, dict[str, str | None]] = {
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".png": {"Software": None},
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    with context():
        for path in paths:
            figure.savefig(path, metadata=metadata[path.suffix])
            figure.set_layout_engine("none")  # settled: not once more for the second file
    return paths
