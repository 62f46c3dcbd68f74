"""``hescribe survival``: predictions and a clinical table → risks, scores, figures and a page."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm.auto import tqdm

from hescribe import keys
from hescribe.applications.survival_page import write_page
from hescribe.downstream.gene_sets import (
    MIN_PCC,
    marker_sets,
    match_genes,
    present_sets,
    score_gene_sets,
    untrusted_genes,
)
from hescribe.downstream.regions import UNCLEAR, regions
from hescribe.downstream.tls.call import TLSSettings, tls
from hescribe.downstream.tls.scores import tls_gene_sets
from hescribe.errors import HescribeWarning, InputError
from hescribe.inference.predict import read_prediction
from hescribe.inference.present import find_predictions
from hescribe.io.expression import common_sum
from hescribe.io.store import check_free, write_atomically
from hescribe.report.tools import PAGE
from hescribe.survival.clinical import (
    PATIENT,
    join_slides,
    read_clinical,
    read_slide_patients,
    read_tcga,
    tcga_patient,
)
from hescribe.survival.clinical import check_clinical as checked
from hescribe.survival.crossval import FittedAttention, FittedCox
from hescribe.survival.features import TILES, gene_effects, patient_features, slide_features, tile_contributions
from hescribe.survival.models.attention import Bags
from hescribe.survival.outcome import BOTH, IMAGE, MODELS, SurvivalResult, survival

LYMPHOID = "lymphoid structures"  #: name of the score by the 22 genes that speak for them
_PERMUTATIONS = 99  #: of the calls of structures: enough for their level of 5 %, and slides are many


@dataclass(frozen=True)
class SurvivalSettings:
    """What `run_survival` can be told.

    Attributes
    ----------
    horizon
        Time of the headline AUC; by default the median time of the events.
    model
        ``cox`` or ``attention``.
    covariates
        Columns of the clinical table.
    tissue
        Whose marker sets are scored.
    endpoint
        Read the table as TCGA's, with this endpoint; empty: a plain clinical table.
    cancers
        Of TCGA; empty: all.
    unit
        Of time, for the figures.
    find_structures
        Find regions and lymphoid structures on predictions that do not have them.
    drop_missing
        Leave out patients without slides.
    folds
        Of the outer cross-validation.
    resamples
        Of patients, for intervals.
    seed
        The same seed gives the same result.
    """

    horizon: float | None = None
    model: str = "cox"
    covariates: tuple[str, ...] = ()
    tissue: str = "lung"
    endpoint: str = ""
    cancers: tuple[str, ...] = ()
    unit: str = "months"
    find_structures: bool = False
    drop_missing: bool = False
    folds: int = 5
    resamples: int = 500
    seed: int = 0


@dataclass
class Slides:
    """What was read off the slides.

    Attributes
    ----------
    features
        Slides × features, and ``tiles``.
    owner
        The patient of each.
    paths
        Where each prediction lies.
    tiles
        (n, s) gene-set scores of each slide's tiles.
    sets
        Genes of each set.
    genes
        Of the first slide.
    doubtful
        Genes in scores whose predictions are mostly noise.
    """

    features: pd.DataFrame
    owner: dict[str, str]
    paths: dict[str, Path]
    tiles: dict[str, npt.NDArray[np.float32]]
    sets: Mapping[str, list[str]]
    genes: list[str]
    doubtful: list[str] = field(default_factory=list)


def run_survival(
    predictions: str | Path,
    clinical: str | Path,
    output: str | Path,
    *,
    slides: str | Path | None = None,
    settings: SurvivalSettings | None = None,
    overwrite: bool = False,
) -> Path:
    """Predict outcome from predicted expression; write tables, figures and a page.

    Parameters
    ----------
    predictions
        Folder of predictions (``.zarr``), one a slide.
    clinical
        Table of patients.
    output
        Folder of the result; written whole or not at all.
    slides
        Table ``slide_id, patient_id``; by default what the predictions say.
    settings
        Everything else.
    overwrite
        Replace what is there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        Tables or predictions do not fit each other, or nothing can be learned from so little.
    OutputError
        The folder is there already or cannot be written.
    """
    check_free(output, overwrite=overwrite, like=PAGE)
    chosen = settings or SurvivalSettings()
    if chosen.model not in MODELS:
        raise InputError(f"unknown model {chosen.model!r}", fix=f"known: {', '.join(MODELS)}")
    table = read_follow_up(clinical, chosen)
    owners = read_slide_patients(slides) if slides is not None else None
    paths = find_predictions(predictions)
    owner = {p: patient_of(p, owners, tcga=bool(chosen.endpoint)) for p in paths}
    table, strangers = join_slides(table, owner.values(), drop_missing=chosen.drop_missing)
    found = read_slides({p: o for p, o in owner.items() if o not in strangers}, chosen)
    features = patient_features(found.features, found.owner)
    result = survival(
        features,
        table,
        covariates=chosen.covariates,
        horizon=chosen.horizon,
        model=chosen.model,  # type: ignore[arg-type] # checked above
        tiles=_bags(found),
        n_folds=chosen.folds,
        n_resamples=chosen.resamples,
        seed=chosen.seed,
    )
    with write_atomically(output, overwrite=overwrite, like=PAGE) as folder:
        folder.mkdir(parents=True)
        genes = _genes(result, found)
        _write_tables(folder, features, result, genes)
        write_page(
            folder, result, unit=chosen.unit, genes=genes, doubtful=found.doubtful, maps=_maps(result, found, chosen)
        )
    return Path(output) / PAGE


def read_follow_up(clinical: str | Path, settings: SurvivalSettings) -> pd.DataFrame:
    """The clinical table, plain or TCGA's, checked.

    Raises
    ------
    InputError
        As `read_clinical` and `read_tcga`.
    """
    if settings.endpoint:
        table = read_tcga(clinical, endpoint=settings.endpoint, cancers=settings.cancers)
        return checked(table, covariates=settings.covariates, path=clinical)
    return read_clinical(clinical, covariates=settings.covariates)


def patient_of(path: Path, owners: Mapping[str, str] | None, *, tcga: bool) -> str:
    """The patient of a prediction: by the table of slides, by TCGA's barcode, or as the prediction says.

    Raises
    ------
    InputError
        The table lacks the slide, or nothing says whose it is.
    """
    slide = path.name.removesuffix(".zarr")
    if owners is not None:
        if slide not in owners:
            raise InputError(f"slide {slide!r} is not in the table of slides", fix="add it to --slides")
        return owners[slide]
    if tcga and slide.startswith("TCGA-"):
        return tcga_patient(slide)
    patient = str(read_prediction(path).uns[keys.PROVENANCE].get("patient", ""))
    if not patient:
        raise InputError("the prediction does not say whose slide it is", path=path, fix="pass --slides")
    return patient


def read_slides(owner: Mapping[Path, str], settings: SurvivalSettings) -> Slides:
    """Features of each prediction, one in memory at a time.

    Parameters
    ----------
    owner
        Prediction → patient.
    settings
        Whose marker sets are scored, and whether structures are called.

    Raises
    ------
    InputError
        No gene of any set, or predictions on different scales.
    """
    rows: dict[str, pd.Series] = {}
    sets: dict[str, list[str]] = {}
    found = Slides(pd.DataFrame(), {}, {}, {}, sets, [])
    doubtful: set[str] = set()
    names = _all_regions(list(owner))
    first: Mapping[str, object] = {}
    for path, patient in tqdm(owner.items(), desc="features", unit="slide", disable=None):
        adata, slide = read_prediction(path), path.name.removesuffix(".zarr")
        first = first or adata.uns[keys.PROVENANCE]
        common_sum((first, adata.uns[keys.PROVENANCE]))
        if not sets:
            sets.update(usable_sets(adata, settings.tissue))
            found.genes = list(map(str, adata.var_names))
            names = names or ([*_of_regions(sets), UNCLEAR] if settings.find_structures else None)
        try:
            scores, row = describe(adata, sets, region_names=names, find_structures=settings.find_structures)
        except InputError as error:
            raise InputError(str(error), path=path) from error
        row[TILES] = float(adata.n_obs)
        rows[slide], found.owner[slide], found.paths[slide] = row, patient, path
        found.tiles[slide] = scores.to_numpy(dtype=np.float32)
        for genes in sets.values():
            doubtful |= set(untrusted_genes(adata, match_genes(adata, genes), MIN_PCC))
    found.features = pd.DataFrame(rows).T
    found.doubtful = sorted(doubtful)
    if doubtful:
        warnings.warn(
            f"scores use genes whose expected correlation is below {MIN_PCC:g}: {', '.join(found.doubtful)}",
            HescribeWarning,
            stacklevel=2,
        )
    return found


def usable_sets(adata: ad.AnnData, tissue: str) -> dict[str, list[str]]:
    """Marker sets of the tissue and the genes of lymphoid structures, those that the predictions have, by their names.

    Raises
    ------
    InputError
        They have none of any, or the tissue is unknown.
    """
    there = present_sets(adata, {**marker_sets(tissue), LYMPHOID: tls_gene_sets()["signature"]})
    return {name: [str(g) for g in adata.var_names[match_genes(adata, genes)]] for name, genes in there.items()}


def describe(
    adata: ad.AnnData,
    sets: Mapping[str, list[str]],
    *,
    region_names: Sequence[str] | None = None,
    find_structures: bool = False,
) -> tuple[pd.DataFrame, pd.Series]:
    """Gene-set scores of a slide's tiles, and the slide's features from them and from ``obs``, which is completed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HescribeWarning)  # doubtful genes are named once, for all slides
        scores = score_gene_sets(adata, sets, method="mean")
        if find_structures and keys.REGION not in adata.obs:
            adata.obs[keys.REGION] = regions(adata, _of_regions(sets)).obs[keys.REGION]
        if find_structures and keys.TLS not in adata.obs:
            tls(adata, settings=TLSSettings(permutations=_PERMUTATIONS))
    found = slide_features(
        adata,
        scores,
        adata.obs.get(keys.REGION),
        adata.obs.get(keys.TLS),
        cell_types=adata.obsm.get(keys.CELL_TYPES),
        region_names=region_names,
    )
    return scores, found


def _of_regions(sets: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Sets that name a region; lymphoid structures are called by themselves."""
    return {name: genes for name, genes in sets.items() if name != LYMPHOID}


def _all_regions(paths: Sequence[Path]) -> list[str] | None:
    names: set[str] = set()
    for path in paths:
        obs = read_prediction(path).obs
        if keys.REGION in obs:
            names |= set(map(str, obs[keys.REGION].dropna().unique()))
    return sorted(names) or None


def _bags(found: Slides) -> dict[str, npt.NDArray[np.float32]]:
    out: dict[str, list[npt.NDArray[np.float32]]] = {}
    for slide, patient in found.owner.items():
        out.setdefault(patient, []).append(found.tiles[slide])
    return {p: np.concatenate(parts) for p, parts in out.items()}


def _per_unit(result: SurvivalResult) -> tuple[pd.Series, dict[str, float]] | None:
    """Effects for one unit, and the mean patient, of the richest model on features."""
    for name in (BOTH, IMAGE):
        fitted = result.final.get(name)
        if isinstance(fitted, FittedCox):
            model = fitted.model
            return model.per_unit, dict(zip(model.names, model.scaling.mean, strict=True))
    return None


def _genes(result: SurvivalResult, found: Slides) -> pd.DataFrame:
    effects = _per_unit(result)
    if effects is None:
        return pd.DataFrame(columns=["gene", "sets", "effect"])
    return gene_effects(effects[0], found.sets, found.genes)


def _maps(result: SurvivalResult, found: Slides, settings: SurvivalSettings) -> list[tuple[str, ad.AnnData]]:
    """One slide of the patient of the highest risk and of the lowest, with ``obs["contribution"]``."""
    name = BOTH if BOTH in result.held_out else IMAGE
    order = result.risks[f"risk {name}"].sort_values().index
    slide_of = {p: s for s, p in found.owner.items()}
    out = []
    for title, patient in (("Highest risk", order[-1]), ("Lowest risk", order[0])):
        adata = read_prediction(found.paths[slide_of[patient]])
        adata.obs["contribution"] = _tile_values(
            result, name, adata, found.sets, find_structures=settings.find_structures
        )
        out.append((f"{title}: {slide_of[patient]}", adata))
    return out


def _tile_values(
    result: SurvivalResult, name: str, adata: ad.AnnData, sets: Mapping[str, list[str]], *, find_structures: bool
) -> npt.NDArray[np.float64]:
    scores, _ = describe(adata, sets, find_structures=find_structures)
    effects = _per_unit(result)
    if effects is not None:
        return tile_contributions(effects[0], scores, adata.obs.get(keys.REGION), reference=effects[1])
    fitted = result.final[name]
    assert isinstance(fitted, FittedAttention)  # noqa: S101 - what is no Cox model
    slide = Bags([scores.to_numpy(dtype=np.float32)], np.zeros((1, len(fitted.model.covariates.mean))))
    return fitted.model.attention(slide)[0].astype(np.float64) * adata.n_obs


def _write_tables(folder: Path, features: pd.DataFrame, result: SurvivalResult, genes: pd.DataFrame) -> None:
    features.rename_axis(PATIENT).to_csv(folder / "features.csv")
    result.risks.to_csv(folder / "risks.csv")
    result.scores.to_csv(folder / "scores.csv", index=False)
    result.differences.to_csv(folder / "differences.csv", index=False)
    result.coefficients.to_csv(folder / "coefficients.csv", index=False)
    result.contributions.rename_axis(PATIENT).to_csv(folder / "contributions.csv")
    result.auc.to_csv(folder / "auc.csv", index=False)
    result.calibration.to_csv(folder / "calibration.csv", index=False)
    genes.to_csv(folder / "genes.csv", index=False)
