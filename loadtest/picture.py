"""A picture of what was measured: a panel of bars for each figure, as SVG.

1. It is read without colour: every bar has its name and its number beside it, and the one that is
   marked is also first and in bold.
2. It brings its own paper, light or dark as the reader's system is, so that no page can hide it.
3. Bars begin at nought, and what is left out is said: a server that was not measured has no bar.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 880
MARGIN = 24
GUTTER = 40
COLUMNS = 2
HEAD = 84
"""Title and what is below it."""

PANEL_HEAD = 44
ROW = 24
BAR = 14
PANEL_GAP = 26
LINE = 17

NAME = 104
"""Left of the bars."""

NUMBER = 76
"""Right of the longest bar."""

PANEL = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GUTTER) // COLUMNS

STYLE = """
  .paper { fill: #ffffff; stroke: #d0d7de }
  text { font: 13px system-ui, "Segoe UI", "Noto Sans", Helvetica, sans-serif; fill: #24292f }
  .title { font-size: 18px; font-weight: 600 }
  .panel { font-size: 14px; font-weight: 600 }
  .note { font-size: 12px; fill: #57606a }
  .marked { font-weight: 600 }
  .axis { stroke: #8c959f }
  .bar { fill: #a0a9b4 }
  .bar.marked { fill: #0072b2 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; stroke: #30363d }
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .axis { stroke: #656c76 }
    .bar { fill: #6e7681 }
    .bar.marked { fill: #56b4e9 }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One figure of all, the first of which is marked. ``note``: the unit, and what is better."""

    title: str
    note: str
    values: Mapping[str, float]


def draw(title: str, below: str, panels: Sequence[Panel], caption: Sequence[str]) -> str:
    """The picture as an SVG document. ``caption`` are the lines at its foot."""
    height = PANEL_HEAD + max((len(panel.values) for panel in panels), default=0) * ROW
    rows = -(-len(panels) // COLUMNS)
    foot = HEAD + rows * (height + PANEL_GAP)
    whole = foot + len(caption) * LINE + MARGIN - 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{whole}"'
        f' viewBox="0 0 {WIDTH} {whole}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_in_words(panels))}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{whole - 1}" rx="8"/>',
        _text(MARGIN, 38, title, "title"),
        _text(MARGIN, 60, below, "note"),
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        x = MARGIN + column * (PANEL + GUTTER)
        parts += _panel(panel, x, HEAD + row * (height + PANEL_GAP))
    for number, line in enumerate(caption):
        parts.append(_text(MARGIN, foot + 4 + number * LINE, line, "note"))
    return "\n".join([*parts, "</svg>", ""])


def shown(value: float) -> str:
    """Three digits, as figures of noisy machines deserve."""
    if value <= 0:
        return "0"
    if value >= 1000:
        digits = 10 ** (len(str(int(value))) - 3)
        return f"{round(value / digits) * digits:,}"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def _panel(panel: Panel, x: int, y: int) -> list[str]:
    most = max(panel.values.values(), default=0) or 1
    left = x + NAME
    parts = [_text(x, y + 14, panel.title, "panel"), _text(x, y + 31, panel.note, "note")]
    for number, (name, value) in enumerate(panel.values.items()):
        top = y + PANEL_HEAD + number * ROW
        marked = "" if number else " marked"
        length = max(0.0, value) / most * (PANEL - NAME - NUMBER)
        middle = top + ROW / 2 + 4.5
        parts += [
            _text(left - 10, middle, name, f"name{marked}", end=True),
            f'<rect class="bar{marked}" x="{left}" y="{top + (ROW - BAR) / 2}"'
            f' width="{length:.1f}" height="{BAR}"/>',
            _text(left + length + 7, middle, shown(value), f"number{marked}"),
        ]
    foot = y + PANEL_HEAD + len(panel.values) * ROW
    axis = f'<line class="axis" x1="{left}" x2="{left}" y1="{y + PANEL_HEAD}" y2="{foot}"/>'
    return [*parts, axis]


def _text(x: float, y: float, text: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{anchor}>{escape(text)}</text>'


def _in_words(panels: Sequence[Panel]) -> str:
    """For whoever cannot see it."""
    return " ".join(
        f"{panel.title}, {panel.note}: "
        + ", ".join(f"{name} {shown(value)}" for name, value in panel.values.items())
        + "."
        for panel in panels
    )
