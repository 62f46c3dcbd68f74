"""One look for all figures: colours that colour-blind readers can tell apart, few lines, dark text on white."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import FuncFormatter, NullFormatter

INK = "#1f2933"  #: text
MUTED = "#5b6675"  #: axes and remarks
RULE = "#d5dbe2"  #: grid lines
NOTHING = "#e4e7eb"  #: spots without a value

# Okabe and Ito's palette (jfly.uni-koeln.de/color), black and yellow left out: yellow is too pale for lines on white
PREDICTED = "#0072b2"
CEILING = "#d55e00"
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6b5b95", "#5b6675")

EXPRESSION_COLOURS = "viridis"
NOVELTY_COLOURS = "YlOrBr"  #: pale is familiar, dark is new

_FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans")
DPI = 200  #: of figures written as PNG

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _fonts() -> list[str]:
    """Those installed; matplotlib brings DejaVu Sans itself, which has every glyph that the others lack."""
    installed = set(fontManager.get_font_names())
    return [*(name for name in _FONTS if name in installed), "DejaVu Sans"]


def _settings() -> dict[str, Any]:
    return {
        "font.family": _fonts(),
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a gene named A$B$ is a name, not a formula
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "white",
        "axes.prop_cycle": cycler(color=CYCLE),
        "figure.facecolor": "white",
        "figure.titlesize": 11,
        "figure.titleweight": "bold",
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "svg.fonttype": "none",  # text stays text: to be searched, and edited for a paper
        "svg.hashsalt": "hescribe",  # the same figure gives the same file
    }


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in the house's look and leave the user's matplotlib settings as they were."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(_settings()):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return wrapper


def signed(value: float) -> str:
    """Two decimals, with a minus sign as long as a plus."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as 0.01, 0.1, 1: powers would need the formulas that are switched off."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def add_grid(axes: Axes, which: str) -> None:
    """Faint lines across one axis (``"x"`` or ``"y"``), behind the data."""
    axes.grid(axis=which, zorder=0)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


@styled
def save_figure(figure: Figure, path: str | Path, *, dpi: int = DPI) -> Path:
    """Write a figure as PNG, SVG or PDF, by the ending of ``path``; equal figures give equal files."""
    target = Path(path)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    figure.savefig(
        target, dpi=dpi, metadata=metadata.get(target.suffix), facecolor="white", bbox_inches="tight", pad_inches=0.06
    )
    return target
