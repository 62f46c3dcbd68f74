"""Predictions or sections → a folder with the lymphoid structures of each: tables, outlines, figures and a page."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from shapely.geometry.base import BaseGeometry

from hescribe import keys, plots
from hescribe.applications.inputs import Given, left_out, read_given
from hescribe.downstream.gene_sets import MIN_PCC
from hescribe.downstream.polygons import region_polygons, write_geojson
from hescribe.downstream.tls.call import TLSSettings, tls
from hescribe.downstream.tls.scores import DEFAULT_SCORE, SCORES, read_coefficients
from hescribe.errors import HescribeWarning, InputError, list_some
from hescribe.io.store import write_anndata, write_atomically
from hescribe.plots.style import EXPRESSION_COLOURS
from hescribe.report.tools import PAGE, Chapter, Plate, write_tool_page
from hescribe.version import __version__

_CLASS, _COLOUR = "TLS", "#d55e00"  #: of the annotations in QuPath
_NULLS = {
    "spots": "The p-values ask whether high scores lie together more than scores dealt out at random over the spots "
    "would. Tissue that is patchy for any other reason passes this test too: look at what is outlined.",
    "field": "The p-values ask whether a place stands out more than places do in tissue that is as patchy as this one. "
    "The test is strict; a section full of structures may show none.",
}
_NOTE = (
    "A structure here is a place where a score of expression is high. Germinal centres, high endothelial venules and "
    "the outline that a pathologist would draw are not part of the score."
)
_WORDS = (
    "z: by how many standard deviations the smoothed score of a place lies above scores dealt out at random.",
    "Mass: z above the threshold, summed over the structure's spots. p: share of the rearranged maps that have a structure "
    "as heavy anywhere.",
)
_HEADINGS = {
    "tls": "number", "n_spots": "spots", "area_mm2": "area (mm²)", "x": "x (px)", "y": "y (px)",
    "mean_score": "mean score", "max_score": "highest score", "peak_z": "peak z", "mass": "mass", "p_value": "p",
}  # fmt: skip


def find_structures(
    path: str | Path,
    output: str | Path,
    *,
    score: str = DEFAULT_SCORE,
    settings: TLSSettings | None = None,
    coefficients: str | Path | None = None,
    sections: str | Path | None = None,
    min_pcc: float | None = MIN_PCC,
    overwrite: bool = False,
) -> Path:
    """Find the lymphoid structures of predictions or of measured sections.

    Parameters
    ----------
    path
        A prediction (``.zarr``), a folder of them, or a manifest of measured sections.
    output
        Folder; for each section or prediction ``<id>.tls.csv`` (structures), ``<id>.tls.geojson`` (outlines, for
        QuPath), ``<id>.tls.zarr`` (scores and structure of each spot), and figures and ``index.html`` for all.
        Written as a whole or not at all.
    score, settings, coefficients, min_pcc
        As of `tl.tls`.
    sections
        Manifest that has the slides of predictions, to be drawn on.
    overwrite
        Replace a folder that is there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        Nothing of that kind at ``path``, an unknown score, or what `tl.tls` refuses; of several sections those that it
        refuses are left out, and it is said.
    OutputError
        The folder is there already.
    """
    how = settings or TLSSettings()
    if score not in SCORES:
        raise InputError(f"no score {score!r}", fix=f"one of {', '.join(SCORES)}")
    model = read_coefficients(coefficients) if coefficients is not None else None
    if score == "model" and model is None:
        raise InputError("the score 'model' needs its coefficients", fix="--coefficients FILE")
    with write_atomically(output, overwrite=overwrite, like=PAGE) as folder:
        folder.mkdir()
        chapters, tables = [], {}
        failed: dict[str, InputError] = {}
        concerned: dict[str, list[str]] = {}  # what is said of many slides is said once
        for subject in read_given(path, sections=sections):
            try:
                found, said = _call(subject, score, how, model, min_pcc)
            except InputError as error:
                failed[subject.name] = error
                continue
            polygons = _write(subject, found, folder, score)
            chapters.append(_chapter(subject, found, polygons, score, how))
            tables[subject.name] = found
            for text in said:
                concerned.setdefault(text, []).append(subject.name)
        told = left_out(failed, of=len(failed) + len(chapters))
        cautions = [
            _NOTE,
            _NULLS[how.null],
            *(f"{list_some(names)}: {text}" for text, names in concerned.items()),
            *told,
        ]
        _write_page(folder, chapters, tables, cautions=cautions, provenance=_provenance(score, how, path))
    return Path(output) / PAGE


def _call(
    subject: Given, score: str, how: TLSSettings, model: pd.Series | None, min_pcc: float | None
) -> tuple[pd.DataFrame, list[str]]:
    """Structures, and what was said about the genes; said again for the command line."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", HescribeWarning)
        found = tls(
            subject.adata, score, settings=how, mpp=subject.mpp, coefficients=_mapping(model), min_pcc=min_pcc
        )  # fmt: skip
    for warning in heard:
        text = (
            f"{subject.name}: {warning.message}" if issubclass(warning.category, HescribeWarning) else warning.message
        )
        warnings.warn(text, warning.category, stacklevel=2)
    said = [str(w.message) for w in heard if issubclass(w.category, HescribeWarning)]
    if subject.predicted and not subject.adata.uns[keys.PROVENANCE].get("patient_seen_in_training", False):
        said.append(
            "predicted for a patient that the bundle has not learned from; confirm what is outlined on the slide."
        )
    return found, said


def _mapping(numbers: pd.Series | None) -> dict[str, float] | None:
    return None if numbers is None else {str(k): float(v) for k, v in numbers.items()}


def _write(subject: Given, found: pd.DataFrame, folder: Path, score: str) -> dict[int, BaseGeometry]:
    adata = subject.adata
    found.to_csv(folder / f"{subject.name}.tls.csv", index=False, float_format="%.6g")
    centres = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)[:, :2]
    labels = [int(number) or None for number in adata.obs[keys.TLS]]
    outlines = region_polygons(centres, labels)
    polygons = {number: outlines[number] for number in sorted(outlines)}
    write_geojson(
        folder / f"{subject.name}.tls.geojson",
        polygons,
        names=dict.fromkeys(polygons, _CLASS),
        colours=dict.fromkeys(polygons, _COLOUR),
        measurements={n: _mapping(row) or {} for n, (_, row) in enumerate(found.iterrows(), start=1)},
    )
    small = ad.AnnData(
        adata.obs[[keys.TLS_SCORE]].to_numpy(dtype=np.float32),
        obs=adata.obs[[keys.TLS_SCORE, keys.TLS_Z, keys.TLS]].copy(),
        var=pd.DataFrame(index=pd.Index([score], name="score")),
        uns={k: adata.uns[k] for k in (keys.TLS, keys.PROVENANCE) if k in adata.uns},
    )
    small.obsm[keys.SPATIAL] = centres
    write_anndata(small, folder / f"{subject.name}.tls.zarr")
    return polygons


def _chapter(
    subject: Given, found: pd.DataFrame, polygons: dict[int, BaseGeometry], score: str, how: TLSSettings
) -> Chapter:
    n = len(found)
    threshold = float(subject.adata.uns[keys.TLS]["threshold_z"])
    if n:
        text = (
            f"{n} structure{'s' * (n != 1)} above z = {threshold:.2f}, {found['n_spots'].sum()} of "
            f"{subject.adata.n_obs:,} spots, {found['area_mm2'].sum():.2f} mm²."
        )
    elif np.isfinite(threshold):
        text = (
            f"No structure at a level of {how.alpha:g}: the highest place has z = "
            f"{subject.adata.obs[keys.TLS_Z].max():.2f}, and {threshold:.2f} was needed."
        )
    else:
        text = "No structure: no place stands out from the others at all."
    figure = plots.tls_map(
        subject.adata, polygons, thumbnail=subject.thumbnail, mpp=subject.mpp, label=SCORES[score], title=subject.name
    )
    plate = Plate(
        figure,
        f"tls_{subject.name}",
        f"Map of the score of {subject.name} with {n} outlined structures.",
        f"Score: {SCORES[score]}, {'predicted' if subject.predicted else 'measured'}, smoothed over {how.smooth_um:g} µm; colours run from its 10th to its "
        "90th percentile.",
        colours=EXPRESSION_COLOURS,
    )
    tables = [("Structures, heaviest first", found.rename(columns=_HEADINGS))] if n else []
    return Chapter(subject.name, [text], [plate], tables)


def _provenance(score: str, how: TLSSettings, path: str | Path) -> dict[str, str]:
    return {
        "input": Path(path).name,
        "score": f"{score}: {SCORES[score]}",
        "smoothing": f"Gaussian, standard deviation {how.smooth_um:g} µm",
        "null": f"{how.null}, {how.permutations} rearrangements, seed {how.seed}",
        "threshold": f"{how.control} at alpha = {how.alpha:g}; structures of at least {how.min_spots} spots",
        "hescribe": __version__,
    }


def _write_page(
    folder: Path,
    chapters: Sequence[Chapter],
    tables: dict[str, pd.DataFrame],
    *,
    cautions: Sequence[str],
    provenance: dict[str, str],
) -> None:
    number = sum(map(len, tables.values()))
    area = sum(float(t["area_mm2"].sum()) for t in tables.values())
    write_tool_page(
        folder,
        [*chapters, Chapter("How to read the numbers", _WORDS)],
        title="Tertiary lymphoid structures",
        lead=f"{number} found in {sum(len(t) > 0 for t in tables.values())} of {len(tables)} "
        f"section{'s' * (len(tables) != 1)}, by the {provenance['score'].split(': ')[1]}.",
        cautions=cautions,
        cards={"Sections": str(len(tables)), "Structures": str(number), "Area": f"{area:.2f} mm²"},
        provenance=provenance,
    )
