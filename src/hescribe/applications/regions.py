"""Predictions or sections → a folder with the regions of each: tables, outlines, maps and a page."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from hescribe import keys, plots
from hescribe.applications.inputs import Given, left_out, read_given
from hescribe.downstream.gene_sets import ANY, marker_sets, present_sets, read_gene_sets
from hescribe.downstream.polygons import region_polygons, write_geojson
from hescribe.downstream.regions import RegionSettings, regions
from hescribe.errors import HescribeWarning, InputError
from hescribe.io.pitch import distance_between
from hescribe.io.store import write_anndata, write_atomically
from hescribe.plots.regions import region_colours
from hescribe.plots.style import EXPRESSION_COLOURS
from hescribe.report.tools import PAGE, Chapter, Plate, write_tool_page
from hescribe.version import __version__

_NOTE = (
    "Regions are clusters of spots that express alike and lie together. Each has the name of the marker set that is "
    "highest in it, compared with the rest of the same section: in a section of tumour alone the name still goes to "
    "the part that shows a marker most. The table gives every set's score, so that a narrow lead can be seen."
)
_CLUSTERS = "Clusters, and each marker set's mean score there in standard deviations from the section's mean"


def find_regions(
    path: str | Path,
    output: str | Path,
    *,
    tissue: str = ANY,
    gene_sets: str | Path | None = None,
    settings: RegionSettings | None = None,
    sections: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Find and name the regions of predictions or of measured sections.

    Parameters
    ----------
    path
        A prediction (``.zarr``), a folder of them, or a manifest of measured sections.
    output
        Folder; for each section or prediction ``<id>.regions.csv`` (region and scores of each spot),
        ``<id>.regions.geojson`` (outlines, for QuPath), ``<id>.regions.zarr`` (the same as AnnData), and figures and
        ``index.html`` for all. Written as a whole or not at all.
    tissue
        Whose marker sets.
    gene_sets
        A table of sets instead of ours.
    settings
        See `RegionSettings`.
    sections
        Manifest that gives the slides of predictions.
    overwrite
        Replace what is there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        What was given cannot be used; of several sections those that cannot are left out, and it is said.
    OutputError
        The folder is there already or cannot be written.
    """
    sets = read_gene_sets(gene_sets, tissue=tissue) if gene_sets else marker_sets(tissue)
    how = settings or RegionSettings()
    target = Path(output)
    cautions: list[str] = []
    failed: dict[str, InputError] = {}
    with write_atomically(target, overwrite=overwrite, like=PAGE) as folder:
        folder.mkdir()
        chapters, rows = [], []
        for given in read_given(path, sections=sections):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", HescribeWarning)
                try:
                    found = regions(given.adata, present_sets(given.adata, sets), how)
                except InputError as error:
                    failed[given.name] = error
                    continue
            cautions += _said(given.name, caught)
            rows.append(_shares(given.name, found))
            chapters.append(_section(folder, given, found))
        cautions += left_out(failed, of=len(failed) + len(chapters))
        cards = {"sections": str(len(chapters)), "marker sets": str(len(sets))}
        overview = Chapter("Overview", text=[_NOTE], tables=[("Share of the spots", pd.DataFrame(rows).fillna(0.0))])
        write_tool_page(
            folder, [overview, *chapters], title="Regions", cautions=cautions, cards=cards,
            lead="Where tumour, stroma, immune cells and other tissues lie, read off expression.",
            provenance={"input": path, "tissue": tissue, "gene sets": gene_sets or "hescribe's markers",
                        **asdict(how), "version": __version__},
        )  # fmt: skip
    return target / PAGE


def _said(name: str, caught: list[warnings.WarningMessage]) -> list[str]:
    """Our warnings, for the page; shown to the caller as well."""
    own = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, HescribeWarning))
    for text in own:
        warnings.warn(f"{name}: {text}", HescribeWarning, stacklevel=3)
    return [f"{name}: {'; '.join(own)}"] if own else []


def _shares(name: str, found: ad.AnnData) -> dict[str, object]:
    share = found.obs[keys.REGION].astype(str).value_counts(normalize=True)
    return {"section": name, **{str(region): float(part) for region, part in share.items()}}


def _section(folder: Path, given: Given, found: ad.AnnData) -> Chapter:
    """Files of one section, and its part of the page."""
    scores = [c for c in found.obs if str(c).startswith(keys.SCORE)]
    columns = [keys.REGION, keys.REGION_CLUSTER, *scores]
    found.obs[columns].rename_axis("spot").to_csv(folder / f"{given.name}.regions.csv", float_format="%.5g")
    kept = ad.AnnData(obs=found.obs[columns].copy(), uns={keys.PROVENANCE: dict(given.adata.uns[keys.PROVENANCE])})
    kept.obsm[keys.SPATIAL] = found.obsm[keys.SPATIAL]
    write_anndata(kept, folder / f"{given.name}.regions.zarr")
    labels = found.obs[keys.REGION].astype(str).tolist()
    polygons = region_polygons(found.obsm[keys.SPATIAL][:, :2], labels)
    write_geojson(folder / f"{given.name}.regions.geojson", polygons, colours=region_colours(sorted(set(labels))))
    figure = plots.region_map(found, thumbnail=given.thumbnail, title=given.name)
    plates = [
        Plate(figure, f"{given.name}-regions", alt=f"Map of the regions of {given.name}"),
        *(_score_plate(given, found, str(c)) for c in scores),
    ]
    return Chapter(given.name, text=[_facts(given, found)], plates=plates, tables=[(_CLUSTERS, clusters(found))])


def _facts(given: Given, found: ad.AnnData) -> str:
    kind = "predicted" if given.predicted else "measured"
    apart = distance_between(found.obsm[keys.SPATIAL])
    far = f"{apart * given.mpp:.0f} µm" if np.isfinite(given.mpp) else f"{apart:.0f} pixels"
    return f"{found.n_obs:,} spots, {kind} expression, {far} apart."


def _score_plate(given: Given, found: ad.AnnData, column: str) -> Plate:
    name = column.removeprefix(keys.SCORE)
    figure = plots.obs_map(found, column, thumbnail=given.thumbnail, title=name, label="score")
    alt = f"Map of the score of {name} in {given.name}"
    return Plate(figure, f"{given.name}-{name}", alt=alt, colours=EXPRESSION_COLOURS)


def clusters(found: ad.AnnData) -> pd.DataFrame:
    """A row a cluster: its name, its number of spots, and each set's mean standardised score."""
    told = found.uns[keys.REGIONS]
    table = pd.DataFrame(told["scores"], columns=[str(s) for s in told["sets"]])
    table.insert(0, "spots", told["spots"])
    table.insert(0, "region", told["names"])
    return table
