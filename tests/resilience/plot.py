"""A plot as SVG: lines over time in a grid of panels. The colours follow the reader's light or dark mode."""

import dataclasses
import html
import math

WIDTH, LEFT, TOP = 760, 112, 66
# A panel, and the space after it.
HEIGHT, GAP = 62, 16

STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.soft { fill: #59636e; font-size: 10px }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round }
.peer { stroke: #8c959f }
.ours { stroke: #2da44e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .soft { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .peer { stroke: #858d97 }
  .ours { stroke: #3fb950 }
}
</style>"""


@dataclasses.dataclass
class Column:
    """What the panels of a column show: the value `key` of each second, on a scale from the first to the last of `ticks`."""

    title: str
    key: str
    ticks: list
    percent: bool = False
    logarithmic: bool = False

    def position(self, value):
        """Returns where a value is between the ends of the scale: from 0 to 1."""
        scale = math.log if self.logarithmic else float
        low, high = scale(self.ticks[0]), scale(self.ticks[-1])
        value = scale(min(max(value, self.ticks[0]), self.ticks[-1]))
        return (value - low) / (high - low)

    def label(self, tick):
        return f"{tick * 100:.0f} %" if self.percent else f"{tick:g}"


def panels(title, note, columns, rows, spans):
    """Draws a row of panels for each of `rows`: a label and its lines, which have a class and a dictionary of values for each second.

    `spans` are the parts of the time: name, begin and end.
    """
    length = spans[-1][2]
    pitch = (WIDTH - LEFT) / len(columns)
    width = pitch - 44
    height = TOP + len(rows) * (HEIGHT + GAP) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{html.escape(title)}">',
        STYLE,
        text(8, 18, title, "title"),
        text(WIDTH - 8, 18, note, "soft", "end"),
    ]
    for row, (label, lines) in enumerate(rows):
        top = TOP + row * (HEIGHT + GAP)
        parts += [text(8, top + 26 + 15 * index, line) for index, line in enumerate(label.split("\n"))]
        for number, column in enumerate(columns):
            left = LEFT + number * pitch + 36
            x = lambda second: left + second / length * width
            y = lambda value: top + HEIGHT - column.position(value) * HEIGHT
            if row == 0:
                parts.append(text(left, TOP - 26, column.title))
            for tick in column.ticks:
                parts.append(f'<path d="M{left:.1f} {y(tick):.1f}h{width:.1f}" class="grid"/>')
                parts.append(text(left - 4, y(tick) + 3.5, column.label(tick), "soft", "end"))
            for name, moment, end in spans:
                parts.append(f'<path d="M{x(moment):.1f} {top}v{HEIGHT}" class="grid"/>')
                if row == 0:
                    parts.append(text(x((moment + end) / 2), TOP - 8, name, "soft", "middle"))
                if row == len(rows) - 1:
                    parts.append(text(x(moment), top + HEIGHT + 12, str(moment), "soft", "middle"))
            for css, values in lines:
                # A second's value is drawn at its middle.
                points = [f"{x(second + 0.5):.1f},{y(value[column.key]):.1f}" for second, value in enumerate(values)
                          if value[column.key] is not None]
                parts.append(f'<polyline points="{" ".join(points)}" class="line {css}"/>')
    return "\n".join(parts) + "\n</svg>\n"


def text(x, y, content, css=None, anchor=None):
    attributes = (f' class="{css}"' if css else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{html.escape(content)}</text>'
