"""The records themselves: complete, in our own words for methods and sets, and honest about what may be compared."""

from __future__ import annotations

import math
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest

from hescribe.datasets.recipes import Recipe, find_recipe, list_recipes, published_figures
from hescribe.datasets.recipes.layouts import LAYOUTS
from hescribe.datasets.registry import DATASETS
from hescribe.encoders import ENCODERS
from hescribe.errors import InputError
from hescribe.evaluation.scores import SETS
from hescribe.evaluation.splits import PROTOCOLS
from hescribe.io.readers import READERS
from hescribe.methods import METHODS
from tests.test_sections import SHARED, real

every = pytest.mark.parametrize("recipe", list_recipes(), ids=lambda r: r.name)


@every
def test_every_recipe_says_all_it_should(recipe: Recipe) -> None:
    for text in (recipe.summary, recipe.licence, recipe.citation, recipe.source, recipe.patients, recipe.folds):
        assert text
    assert recipe.download
    assert LAYOUTS[recipe.layout].technology in READERS
    assert set(recipe.protocols) <= set(PROTOCOLS)
    assert set(recipe.methods) <= set(METHODS)
    assert {"mean", "ridge"} <= set(recipe.methods), "the controls stand in every table"
    assert 0 < recipe.tile_um <= 224
    assert recipe.genes.startswith("hvg:")
    assert len(recipe.markers) == len(set(recipe.markers)) > 0
    assert recipe.figures
    ids = [s.section_id for s in recipe.sections]
    assert len(set(ids)) == len(ids) >= 2
    # a new patient is the headline wherever there are several
    assert (recipe.protocols[0] == "leave-one-patient-out") == (recipe.n_patients > 1)
    for variant in LAYOUTS[recipe.layout].variants:
        patterns = [p for patterns in variant.parts.values() for p in patterns]
        assert all(section.fill(p) for p in patterns for section in recipe.sections)


@every
def test_what_is_fetched_by_name_is_registered(recipe: Recipe) -> None:
    words = recipe.download[0].split()
    if words[:3] == ["hescribe", "datasets", "fetch"]:
        assert words[3] in DATASETS
    else:
        assert words[:2] == ["hf", "download"]
        assert "FOLDER" in words


@every
def test_figures_say_whether_they_may_be_compared(recipe: Recipe) -> None:
    table = published_figures(recipe.name)
    assert list(table) == ["method", "figure", "set", "pcc", "protocol", "source", "comparable", "differs", "encoder"]
    assert len(table) == len(recipe.figures)
    assert (table.comparable == (table.differs == "")).all()
    assert (table[["method", "figure", "set", "protocol", "source"]] != "").all(axis=None)
    assert table.pcc.dropna().between(-1, 1).all()
    papers = {m.lower() for m in table.method} - set(METHODS)
    # a method of ours stands under our name, not under the paper's
    assert not {"bleep", "cmrcnet", "carhe", "st-net", "stnet", "triplex"} & papers
    ours = table.set.isin(SETS)
    assert (ours | table.set.str.contains(r"\d+ |of the paper|its own|panel", regex=True)).all()


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(InputError, match=r"no recipe 'x'.*human-liver"):
        published_figures("x")


def by_encoder(recipe: str) -> pd.DataFrame:
    table = published_figures(recipe)
    return table.set_index(table.figure.str.split().str[0])


def test_figures_from_their_sources() -> None:
    """Typed in from the sources by hand once more."""
    idc = by_encoder("hest-idc")
    assert idc.loc["ResNet50", "pcc"] == 0.4741
    assert idc.loc["H-optimus-0", ["method", "set"]].tolist() == ["ridge-hest", "panel"]
    assert idc["comparable"].all()
    assert find_recipe("hest-idc").target_sum == "counts"
    assert idc.loc["UNI2-h", "encoder"] in ENCODERS
    assert idc.loc["ResNet50", "encoder"] not in ENCODERS  # ours has one block more
    assert "over all spots of a patient's two sections together" in by_encoder("hest-read").loc["UNI", "differs"]
    nine = ["idc", "prad", "paad", "skcm", "coad", "read", "ccrcc", "lung", "lymph-idc"]
    for encoder, mean in {"ResNet50": 0.326, "UNI": 0.3862, "Virchow2": 0.3984, "H-optimus-0": 0.4146,
                          "UNI2-h": 0.4141, "H-optimus-1": 0.4229}.items():  # fmt: skip
        figures = [by_encoder(f"hest-{task}").loc[encoder, "pcc"] for task in nine]
        assert sum(figures) / 9 == pytest.approx(mean, abs=2e-4), encoder
    liver = published_figures("human-liver").query("method == 'bleep'").set_index("set")
    assert liver.loc[["marker", "heg50", "hvg50"], "pcc"].tolist() == [0.217, 0.175, 0.173]
    assert published_figures("cmrcnet-read").pcc.map(math.isnan).all(), "absolute figures were never seen"


def test_sections_of_hest_benchmark() -> None:
    """Numbers of sections and patients as in the inventory of the data set."""
    inventory = {"idc": (4, 4), "prad": (23, 2), "paad": (3, 3), "skcm": (2, 2), "coad": (4, 4), "read": (4, 2),
                 "ccrcc": (24, 24), "hcc": (2, 2), "lung": (2, 2), "lymph-idc": (4, 4)}  # fmt: skip
    recipes = {r.name: r for r in list_recipes()}
    assert {n for n in recipes if n.startswith("hest-")} == {f"hest-{t}" for t in inventory}
    for task, (sections, patients) in inventory.items():
        recipe = recipes[f"hest-{task}"]
        assert (len(recipe.sections), recipe.n_patients) == (sections, patients)
    assert "MEND155" not in [s.section_id for s in recipes["hest-prad"].sections]
    for task in ("coad", "idc", "lymph-idc", "read", "skcm"):
        assert recipes[f"cmrcnet-{task}"].sections == recipes[f"hest-{task}"].sections
    assert find_recipe("cmrcnet-read").shares_patients("leave-one-section-out")
    assert not find_recipe("cmrcnet-read").shares_patients("leave-one-patient-out")
    assert not find_recipe("cmrcnet-psc").shares_patients("leave-one-section-out"), "one patient: there is no other way"


def test_images_of_the_liver_come_from_their_own_samples() -> None:
    """In the series' archive the fourth image is cut short."""
    images = [f for f in DATASETS["human-liver"].files if f.name.endswith(".tiff.gz")]
    told = {s.section_id: s.names["sample"] for s in find_recipe("human-liver").sections}
    assert len(images) == len(told) == 4
    for image in images:
        query = {k: v[0] for k, v in parse_qs(urlsplit(image.url).query).items()}
        section = next(s for s in told if s in image.name)
        assert query == {"acc": told[section], "format": "file", "file": image.name}
        assert image.name.startswith(told[section])


@real
@pytest.mark.shared
def test_sections_of_her2st_are_those_of_its_folder() -> None:
    there = {f.name.split(".")[0] for f in (SHARED / "her2st" / "ST-cnts").glob("*.tsv.gz")}
    assert there <= {s.section_id for s in find_recipe("her2st").sections}
