"""Markdown tables, and statistics for them."""

import statistics


def table(header, rows):
    """Returns a table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def spread(values, digits=2, unit=""):
    """Returns the median with the minimum and the maximum."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}{unit}"
    return f"{statistics.median(values):.{digits}f}{unit} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def milliseconds(seconds, digits=1):
    return "–" if seconds is None else f"{seconds * 1000:.{digits}f} ms"


def percent(share, digits=1):
    return f"{share * 100:.{digits}f} %"


def goals(rows):
    """Returns a table of goals: what is to be reached, what was measured, and whether that is enough."""
    return table(["goal", "measured", ""], [[goal, measured, "met" if met else "**missed**"] for goal, measured, met in rows])
