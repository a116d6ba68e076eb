"""Small pieces of HTML for the report: a page that carries its style and pictures with it and loads nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

ABSENT = "–"
"""What stands where no number is known."""

LARGEST_SVG = 1_500_000
"""Bytes above which a figure is embedded as PNG: thousands of markers make a slow vector picture."""


POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a page may use: itself. The browser then refuses to load anything, whatever a script in it asks for."""


@dataclass(frozen=True)
class Cell:
    """A table cell: escaped text, or HTML made by this module."""

    html: str
    numeric: bool = False


def text(value: object) -> Cell:
    """A cell of words."""
    return Cell(escape(str(value)))


def number(value: object) -> Cell:
    """A cell of figures, set flush right."""
    return Cell(escape(str(value)), numeric=True)


def with_interval(value: str, low: str, high: str) -> Cell:
    """A number and its interval."""
    return Cell(f"{escape(value)} <small>[{escape(low)}, {escape(high)}]</small>", numeric=True)


def interval(value: float, low: float, high: float, style: str) -> Cell:
    """A number and its interval in a format such as `+.3f`; without the interval where it is not known."""
    if not math.isfinite(low):
        return number(decimal(value, style))
    return with_interval(decimal(value, style), decimal(low, style), decimal(high, style))


def decimal(value: float, style: str) -> str:
    """A number in a format such as `+.3f`, with a true minus; a dash where it is not known."""
    return f"{value:{style}}".replace("-", "−") if math.isfinite(value) else ABSENT


def nothing() -> Cell:
    """A number that is not known."""
    return number(ABSENT)


def verdict(word: str) -> Cell:
    """A verdict in its colour."""
    return Cell(f'<span class="verdict {escape(word.replace(" ", "-"))}">{escape(word)}</span>')


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, style: str = "") -> str:
    """A table that scrolls by itself on a narrow screen; columns are numeric where their cells are."""
    rows = list(rows)
    numeric = [any(row[position].numeric for row in rows) for position in range(len(header))]
    head = "".join(
        f'<th scope="col"{_number_class(is_number)}>{escape(name)}</th>'
        for name, is_number in zip(header, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{_number_class(is_number)}>{cell.html}</td>" for cell, is_number in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    kind = f' class="{style}"' if style else ""
    return f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figure(png: Path, svg: Path, alternative: str, caption: str) -> str:
    """A picture inside the page: the SVG, or the PNG where the SVG is large."""
    path, kind = (svg, "svg+xml") if svg.stat().st_size <= LARGEST_SVG else (png, "png")
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><div class="wide"><img alt="{escape(alternative, quote=True)}" '
        f'src="data:image/{kind};base64,{data}"></div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def bullets(sentences: Iterable[str], *, style: str = "") -> str:
    """A list of sentences."""
    kind = f' class="{style}"' if style else ""
    return f"<ul{kind}>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def box(sentences: Iterable[str], style: str, heading: str) -> str:
    """A coloured box: `loud` for what invalidates numbers, `note` for what is unfinished."""
    body = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="{style}" role="note"><p><strong>{escape(heading)}</strong></p>{body}</div>'


def section(title: str, *parts: str) -> str:
    """A heading and what belongs under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def details(words: str, html: str) -> str:
    """Something to be opened: `words` are always seen."""
    return f"<details><summary>{escape(words)}</summary>\n{html}\n</details>"


def caption(words: str) -> str:
    """A remark in small grey letters."""
    return f'<p class="caption">{escape(words)}</p>'


def document(title: str, lead: str, body: Sequence[str], footer: str) -> str:
    """The whole page."""
    css = (resources.files("analysis") / "page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
{chr(10).join(body)}
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def _number_class(is_number: bool) -> str:
    return ' class="n"' if is_number else ""
