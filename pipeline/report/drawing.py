"""Inline SVG figures that take their colours from the page, so that they follow its light or dark scheme."""

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup, escape

# matplotlib cannot be imported where this names an unknown backend; figures need none, and others import it from here
os.environ.pop("MPLBACKEND", None)

from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["Axes", "Figure", "PercentFormatter", "colormaps", "style"]

# matplotlib knows no CSS: it draws in these stand-ins, which `plot` replaces with the page's colours
INK, THOUGHT, PLAIN, QUIET = "#010203", "#010204", "#010205", "#010206"
CSS_COLOURS = {INK: "currentColor", THOUGHT: "var(--thought)", PLAIN: "var(--plain)", QUIET: "var(--quiet)"}
TICKS = {"color": INK, "labelsize": 9, "major.width": 0.6}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 9,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.5,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in TICKS.items()},
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDTH = 3.9  # inches; the page scales it
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Plot:
    """A finished figure: ``svg`` goes into the page as it is, ``data`` is a ``data:`` link to its numbers as CSV."""

    name: str
    title: str
    unit: str
    svg: Markup
    data: str


def plot(name: str, title: str, unit: str, data: pd.DataFrame, draw: Callable[[Figure], None], height: float) -> Plot:
    """The figure that ``draw`` draws, ``height`` inches high; ``data`` are its numbers."""
    target = io.StringIO()
    # "default" first: a matplotlibrc of the machine must not change the bytes; the salt makes ids unique in the page
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(target, format="svg", transparent=True, metadata=NO_METADATA)
    # for use inside a page: without prolog and size, and without the ids of groups, which repeat
    svg = target.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    svg = f'<svg {box} role="img" aria-label="{escape(title)}">{svg[svg.index(">") + 1 :]}'
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return Plot(name, title, unit, Markup(svg.replace("xlink:href", "href")), csv_link(data))


def legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0)


def csv_link(table: pd.DataFrame) -> str:
    """A `data:` link to the table as CSV."""
    return "data:text/csv;charset=utf-8," + quote(table.to_csv(index=False, lineterminator="\n"), safe=",.-")
