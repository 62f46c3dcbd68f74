"""One HTML file that opens anywhere, with its figures as files beside it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hescribe.io.store import check_free, write_atomically
from hescribe.plots.style import signed
from hescribe.report import pictures, words
from hescribe.report.contents import Content, Given, ScoreTables, check_genes, read_contents
from hescribe.report.rows import gene_rows, provenance_rows
from hescribe.report.tools import FIGURES, PAGE, render_page
from hescribe.version import __version__


def build_report(
    predictions: Sequence[Given],
    scores: Sequence[ScoreTables | None] | None,
    history: pd.DataFrame | None,
    provenance: Mapping[str, Any],
    output_dir: str | Path,
    *,
    genes: Sequence[str] = (),
    title: str = "Predicted expression",
    summary: pd.DataFrame | None = None,
) -> Path:
    """Write ``output_dir/index.html``, one file that needs no network, and ``output_dir/figures``.

    Parameters
    ----------
    predictions
        A triple each: the prediction; the measured section (raw counts, or log1p already), or None; the slide as
        ``Section.thumbnail()`` gives it, a small image and its downsampling, or None.
    scores
        One each, or None: ``per_gene`` and ``summary`` as of ``evaluation.SectionScores``; `PlainScores` holds plain
        tables. Where there are none but a measurement, correlations are shown without intervals and ceilings.
    history
        Training curves: ``epoch``, ``split``, ``metric``, ``value`` and optionally ``fold``.
    provenance
        What made the predictions: version, bundle, encoder, method, seeds, sections, date. What is left out is
        taken from the predictions. Shown in plain names, less what says nothing.
    output_dir
        An older report there is replaced as a whole when this one is complete.
    genes
        To be shown beside the best, median and worst.
    title
        Of the page.
    summary
        Figures of all sections together, a row a gene set, as ``evaluation.method_table`` makes for one method; only
        with it have several sections a common interval.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        No prediction, a gene that none has, or tables that do not belong to the predictions.
    OutputError
        The folder could not be written, or holds something other than a report.
    """
    output = Path(output_dir)
    check_free(output, overwrite=True, like=PAGE)
    contents = read_contents(predictions, scores)
    check_genes(genes, [c.predicted for c in contents])
    with write_atomically(output) as folder:
        (folder / FIGURES).mkdir(parents=True)
        album = pictures.Album(folder / FIGURES)
        values = {
            "title": title,
            "sections": [
                _section(album, c, genes) for c in tqdm(contents, desc="report", unit="section", disable=None)
            ],
            "training": pictures.training_picture(album, history),
            "provenance": provenance_rows(_dated(provenance), contents),
            **_headline(contents, summary),
        }
        script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
        page = render_page("template.html", script, **values, table=gene_rows(contents), signed=signed)
        (folder / PAGE).write_text(page, encoding="utf-8")
    return output / PAGE


def _dated(provenance: Mapping[str, Any]) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**provenance, "report written": f"{now} by hescribe {__version__}"}


def _headline(contents: Sequence[Content], summary: pd.DataFrame | None) -> dict[str, Any]:
    table = words.overall(contents, summary)
    return {
        "what": words.what(contents),
        "trust": words.trust(contents, table),
        "cards": words.figures(table, words.CARDS),
        "sets": words.figures(table),
        "byline": _byline(contents),
    }


def _byline(contents: Sequence[Content]) -> list[str]:
    """Method and encoder, where all predictions agree on them."""
    out = []
    for key in ("method", "encoder"):
        said = {str(c.told[key]) for c in contents if key in c.told}
        if len(said) == 1:
            out.append(f"{key} {said.pop()}")
    return out


def _section(album: pictures.Album, content: Content, genes: Sequence[str]) -> dict[str, Any]:
    return {
        "name": content.name,
        "measured": content.measured is not None,
        "n_spots": content.predicted.n_obs,
        "slide": pictures.slide_picture(album, content),
        "maps": pictures.gene_pictures(album, content, genes),
        "figures": pictures.gene_figures(album, content),
        "novelty": pictures.novelty_picture(album, content),
        "cards": words.figures(content.summary, words.CARDS),
    }
