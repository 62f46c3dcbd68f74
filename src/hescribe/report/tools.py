"""The page of a tool: cards of figures, chapters of text, pictures and tables; one HTML file with the look of a report."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from hescribe.report.pictures import Album

PAGE = "index.html"
FIGURES = "figures"


@dataclass(frozen=True)
class Plate:
    """A figure of a page.

    Attributes
    ----------
    figure
        From `plots`.
    name
        Of its files, without extension.
    alt
        What it shows, for those who do not see it.
    caption
        Text below.
    vector
        Put the SVG into the page rather than the PNG.
    colours
        Of a map, its colour map: so that different values do not look the same.
    """

    figure: Figure
    name: str
    alt: str
    caption: str = ""
    vector: bool = False
    colours: str | None = None


@dataclass(frozen=True)
class Chapter:
    """A heading with what stands below it: text, then plates, then tables, then a view that the page's script fills.

    Attributes
    ----------
    title
        Heading.
    text
        Paragraphs of plain text; escaped.
    plates
        Figures.
    tables
        Caption and table each. Escaped.
    view
        ``id`` of an empty element for the script given to `write_tool_page`, or "".
    decimals
        Of the numbers in its tables; by default they have three digits, of which a column of correlations would get
        now three decimals, now six.
    """

    title: str
    text: Sequence[str] = ()
    plates: Sequence[Plate] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    view: str = ""
    decimals: int | None = None


def write_tool_page(
    folder: str | Path,
    chapters: Sequence[Chapter],
    *,
    title: str,
    lead: str,
    cautions: Sequence[str] = (),
    cards: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    script: str = "",
    data: Any = None,
) -> Path:
    """Write ``folder/index.html``, which needs no network, and the figures as PNG and SVG into ``folder/figures``.

    Parameters
    ----------
    folder
        An existing folder; the caller writes it atomically as a whole.
    chapters
        In order.
    title, lead
        Heading of the page and its first sentence.
    cautions
        What the reader must know before believing the figures, such as genes that cannot be trusted.
    cards
        Name → value of the figures shown large, already formatted.
    provenance
        What made the result; shown as a table.
    script, data
        Our own JavaScript and what it reads, as JSON from ``#page-data``; the page runs no other script.

    Returns
    -------
    Path
        The page.
    """
    target = Path(folder)
    (target / FIGURES).mkdir(parents=True, exist_ok=True)
    album = Album(target / FIGURES)
    values = {
        "title": title,
        "lead": lead,
        "cautions": list(cautions),
        "cards": dict(cards or {}),
        "chapters": [_chapter(album, c) for c in chapters],
        "provenance": {str(k): str(v) for k, v in (provenance or {}).items()},
    }
    page = render_page("tool.html", script, **values, data=data)
    (target / PAGE).write_text(page, encoding="utf-8")
    return target / PAGE


def _chapter(album: Album, chapter: Chapter) -> dict[str, Any]:
    return {
        "title": chapter.title,
        "text": list(chapter.text),
        "view": chapter.view,
        "pictures": [
            album.add(p.figure, p.name, alt=p.alt, caption=p.caption, vector=p.vector, colours=p.colours)
            for p in chapter.plates
        ],
        "tables": [(caption, _cells(table, chapter.decimals)) for caption, table in chapter.tables],
    }


def _cells(table: pd.DataFrame, decimals: int | None = None) -> dict[str, Any]:
    """Headings, which columns are numbers, and the cells as text."""
    numeric = [bool(pd.api.types.is_numeric_dtype(table[c])) for c in table]
    rows = [[_text(v, decimals) for v in row] for row in table.itertuples(index=False)]
    return {"head": list(zip(map(str, table.columns), numeric, strict=True)), "rows": rows, "numeric": numeric}


def _text(value: Any, decimals: int | None = None) -> str:
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    text = _digits(value) if decimals is None else f"{value:z,.{decimals}f}"
    return text.replace("-", "−", 1) if value < 0 else text  # a minus as long as a plus, but 1.5e-07


def _digits(value: float) -> str:
    if abs(value) < 1e9 and (abs(value) >= 100 or value == round(value)):
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")  # 0.260 below 0.537: digits of a column stand in line


def render_page(template: str, script: str, **values: Any) -> str:
    """Fill a template of this room; everything from data is escaped, and the page forbids any script but its own."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hescribe.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # The filter tojson writes <, > and & as escapes, so that no gene's name can end the script element
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    digest = base64.b64encode(hashlib.sha256(script.strip().encode()).digest()).decode("ascii")
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8").strip()
    return environment.get_template(template).render(
        **values,
        script=Markup(script.strip()),  # noqa: S704 - our own file
        style=Markup(style),  # noqa: S704 - our own file
        script_hash=digest,
    )
