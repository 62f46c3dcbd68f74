"""What a benchmark's page says of who is ahead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hescribe.errors import InputError
from hescribe.evaluation.published import beside_published
from hescribe.report.benchmark import details, page, results, words
from hescribe.report.benchmark.cautions import cautions
from hescribe.report.tools import _cells, _text

LOPO = "leave-one-patient-out"


def comparisons() -> pd.DataFrame:
    rows = [("ours", "ridge", 0.1, 0.05, 0.15), ("knn", "ours", 0.01, -0.02, 0.04), ("ridge", "knn", -0.1, -0.2, -0.05)]
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high"])
    return table.assign(encoder="stain", protocol=LOPO, set="heg50")


def methods() -> pd.DataFrame:
    table = pd.DataFrame({"method": ["ours", "ridge", "knn"], "pcc": [0.4, 0.3, 0.41]})
    return table.assign(encoder="stain", protocol=LOPO, set="heg50", pcc_low=0.1, pcc_high=0.5)


def test_a_difference_turns_with_its_sides() -> None:
    table = comparisons()
    assert results.difference(table, "ours", "ridge") == (0.1, 0.05, 0.15)
    assert results.difference(table, "ridge", "ours") == (-0.1, -0.15, -0.05)
    assert np.isnan(results.difference(table, "ours", "bleep")).all()


@pytest.mark.parametrize(
    ("ridge", "knn", "said"),
    [
        ((0.1, 0.05, 0.15), (0.2, 0.1, 0.3), "better than both"),
        ((0.1, 0.05, 0.15), (0.1, -0.1, 0.3), "not shown to be better than knn"),
        ((0.0, -0.1, 0.1), (0.0, -0.1, 0.1), "not shown to be better than ridge, knn"),
        ((0.1, 0.05, 0.15), (-0.2, -0.3, -0.1), "behind knn"),
        ((0.1, 0.05, 0.15), (np.nan, np.nan, np.nan), "open: knn was not run"),
        ((np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan), "open: ridge and knn were not run"),
    ],
)
def test_better_is_what_beats_both_controls(
    ridge: tuple[float, float, float], knn: tuple[float, float, float], said: str
) -> None:
    assert results.verdict({"ridge": ridge, "knn": knn}) == said


def test_who_is_ahead_is_said_with_its_interval() -> None:
    chapter = results.paired(methods(), comparisons())
    assert chapter is not None
    assert chapter.text[1] == (
        "HEG-50, leave-one-patient-out, stain: knn has the highest figure, but cannot be told from ours, the next: "
        "0.010 [−0.020, 0.040]."
    )
    (_, table) = chapter.tables[0]
    assert list(table["Method"]) == ["ours"]
    assert list(table["minus ridge"]) == ["0.100 [0.050, 0.150]"]
    assert list(table["minus knn"]) == ["−0.010 [−0.040, 0.020]"]
    assert list(table["Verdict"]) == ["not shown to be better than knn"]


def test_bounds_of_differences_show_their_side_of_zero() -> None:
    """“behind” used to stand beside ``[−0.15, 0.00]``."""
    table = comparisons().assign(difference=-0.07, low=-0.15, high=-0.004)
    chapter = results.paired(methods(), table[table["first"] == "ours"])
    assert chapter is not None
    assert list(chapter.tables[0][1]["minus ridge"]) == ["−0.070 [−0.150, −0.004]"]
    assert words.interval(-0.07, -0.15, -0.004) == "−0.070 [−0.15, 0.00]"
    assert words.interval(0.4, np.nan, np.nan) == "0.400"


def test_the_ceiling_is_the_last_row_of_its_encoder() -> None:
    """It used to stand in every cell, and the table was wider than the page."""
    first = methods().assign(ceiling=[0.70401, 0.70404, 0.704], n_sections=6)
    table = pd.concat([first, first.assign(encoder="uni", ceiling=[0.64, 0.67, 0.66], n_sections=[5, 6, 6])])
    table = pd.concat([table, table.iloc[:2].assign(set="marker", ceiling=np.nan)])
    shown = words.headed(results._wide(table))
    assert list(shown) == ["Method", "Encoder", "Sections", "HEG-50", "Markers"]
    assert list(shown["Method"]) == ["ours", "ridge", "knn", "ceiling"] * 2
    assert list(shown["Encoder"]) == ["stain"] * 4 + ["uni"] * 4
    assert list(shown["HEG-50"][[0, 3, 7]]) == ["0.400 [0.10, 0.50]", "0.704", "0.640 to 0.670"]
    assert list(shown["Markers"]) == ["0.400 [0.10, 0.50]", "0.300 [0.10, 0.50]", *["–"] * 6]
    assert [row[2] for row in _cells(shown)["rows"]] == ["6", "6", "6", "–", "5", "6", "6", "–"]
    assert _cells(shown)["numeric"] == [False, False, True, False, False]


def test_the_better_control_is_the_one_compared_with() -> None:
    assert details.best_control(methods()) == "knn"
    assert details.best_control(methods().iloc[:2]) == "ridge"
    assert details.best_control(methods().iloc[:1]) is None


def test_labels_say_what_differs() -> None:
    table = methods().assign(encoder=["timm:a@w", "timm:a@w", "stain"], seed=0)
    assert list(words.labelled(table)["method"]) == ["ours · a", "ridge · a", "knn · stain"]
    assert list(words.labelled(methods())["method"]) == ["ours", "ridge", "knn"]
    assert words.short_encoders(["timm:a@v", "timm:a@w", "stain"]) == {
        "timm:a@v": "a@v",
        "timm:a@w": "a@w",
        "stain": "stain",
    }
    assert "Protocol" not in words.headed(table)
    assert list(words.headed(table)["Encoder"]) == ["a", "a", "stain"]


def published(**changes: object) -> pd.DataFrame:
    row = {"method": "ours", "figure": "T1", "set": "heg50", "pcc": 0.3, "protocol": "fourfold, by patient",
           "source": "Doe", "comparable": True, "differs": ""}  # fmt: skip
    return pd.DataFrame([row | changes])


def test_a_figure_of_a_named_protocol_stands_beside_that_protocol() -> None:
    ours = pd.concat([methods(), methods().assign(protocol="leave-one-section-out", pcc=0.9)])
    same, other = beside_published(ours, published(protocol=LOPO))
    assert list(same["pcc"]) == [0.4]
    assert other.empty
    # With two protocols of ours nobody knows which one is meant
    same, other = beside_published(ours, published())
    assert same.empty
    assert "which was not run here" in other["differs"].iloc[0]
    same, other = beside_published(methods(), published())
    assert list(same["published_pcc"]) == [0.3]
    same, other = beside_published(methods(), published(protocol="leave-one-section-out"))
    assert same.empty


def test_a_figure_of_an_encoder_stands_beside_runs_on_that_encoder() -> None:
    ours = pd.concat([methods(), methods().assign(encoder="uni", pcc=0.6)])
    told = pd.concat([published(encoder="uni"), published(encoder="virchow2")], ignore_index=True)
    same, other = beside_published(ours, told)
    assert same[["encoder", "pcc"]].to_numpy().tolist() == [["uni", 0.6]]
    assert list(other["differs"]) == ["encoder virchow2, which was not run here"]
    assert len(beside_published(ours, published())[0]) == 2  # of no encoder in particular


def test_published_figures_must_say_how_they_differ() -> None:
    with pytest.raises(InputError, match="does not say how"):
        beside_published(methods(), published(comparable=False))
    with pytest.raises(InputError, match="lack the column source"):
        beside_published(methods(), published().drop(columns="source"))
    assert beside_published(methods(), None)[0].empty


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.26, "0.260"), (0.4567, "0.457"), (0.0, "0"), (12.0, "12"), (99.96, "100"), (999.7, "1,000"),
     (1.5e-7, "1.50e-07"), (-0.0417, "−0.0417"), (-0.3e-7, "−3.00e-08"), (-120.4, "−120"), ("-x", "-x"), (np.inf, "inf"), (np.nan, "–"), ("ridge", "ridge")],
)  # fmt: skip
def test_numbers_of_a_column_stand_in_line(value: object, text: str) -> None:
    assert _text(value) == text


def correlations() -> pd.DataFrame:
    """Of two cell types, one of them told by chance."""
    table = pd.DataFrame({"method": "knn", "cell_type": ["T cell", "tumour"], "pcc": [-0.000375, 0.41]})
    return table.assign(encoder="stain", protocol=LOPO)


def test_correlations_in_tables_have_three_decimals() -> None:
    """Where the others had 0.375, one had ``0.000375`` and one ``-0.0417``."""
    chapter = details.cell_types(correlations())
    assert chapter is not None
    cells = _cells(chapter.tables[0][1], chapter.decimals)
    assert cells["rows"] == [["knn", "0.205", "0.000", "0.410"]]
    assert cells["numeric"] == [False, True, True, True]
    figures = ["gene_gene_pcc", "gene_gene_rmse", "rvd", "morans_pcc", "morans_mae"]
    chapter = details.structure(methods().assign(**dict.fromkeys(figures, -0.0417) | {"rvd": np.nan}, set="all"))
    assert _cells(chapter.tables[0][1], chapter.decimals)["rows"][0] == [
        "ours", "−0.042", "−0.042", "–", "−0.042", "−0.042"
    ]  # fmt: skip


def all_tables(methods: pd.DataFrame, **others: pd.DataFrame) -> dict[str, pd.DataFrame]:
    none = dict.fromkeys(("comparisons", "failed", "sections", "cost"), pd.DataFrame())
    return {**none, "methods": methods.assign(same_patient=False, n_patients=8), **others}


def test_controls_are_needed_on_every_encoder() -> None:
    """They were looked for on all encoders together: what ridge had on one was taken for a control of the other."""
    first = methods()
    assert cautions(all_tables(first), {}) == cautions(all_tables(first), {})[:1]
    assert cautions(all_tables(first.iloc[:1]), {})[1:] == [
        "ridge and knn were not run: no method can be called better here."
    ]
    two = pd.concat([first, first.iloc[:2].assign(encoder="timm:uni@w")])
    assert cautions(all_tables(two), {})[1:] == ["knn was not run on uni: no method can be called better there."]
    other = pd.concat([two.assign(protocol="leave-one-section-out"), two.iloc[3:], first.iloc[:1]])
    assert cautions(all_tables(other), {})[1:] == [
        "knn was not run on uni under leave-one-section-out and on uni under leave-one-patient-out: "
        "no method can be called better there.",
        "ridge and knn were not run on stain under leave-one-patient-out: no method can be called better there.",
    ]
    alike = pd.concat([first.iloc[:2], two.iloc[3:]])
    assert cautions(all_tables(alike), {})[1:] == ["knn was not run: no method can be called better here."]


@pytest.mark.parametrize(
    ("unfinished", "said"),
    [
        (
            {"triplex": 2, "fusion": 1},
            "triplex and fusion were asked for and are not finished: they stand in no table.",
        ),
        ({"triplex": 2}, "triplex was asked for and is not finished: it stands in no table."),
        ({"ours": 1}, "1 run of ours was asked for and is not finished: it stands in no table."),
        ({"ours": 2, "knn": 1}, "3 runs of ours and knn were asked for and are not finished: they stand in no table."),
    ],
)
def test_what_is_not_finished_is_said(unfinished: dict[str, int], said: str) -> None:
    """Such runs used to be missing without a word."""
    assert cautions(all_tables(methods(), cost=methods()), unfinished)[1:] == [said]


@pytest.mark.parametrize(
    ("spots", "said"),
    [
        ([30, 400], []),
        ([3, 400], ["a has 3 spots: its correlations are mostly noise, and it counts as much as any other section."]),
        (
            [29, 400, 1],
            [
                "c (1 spot) and a (29 spots) have fewer than 30 spots: their correlations are mostly noise, "
                "and each counts as much as any other section."
            ],
        ),
        (
            [8, 7, 6, 5, 400],
            [
                "4 of 5 test sections have fewer than 30 spots, the fewest d (5 spots), c (6 spots) and b (7 spots): "
                "their correlations are mostly noise, and each counts as much as any other section."
            ],
        ),
    ],
)
def test_sections_of_few_spots_are_named(spots: list[int], said: list[str]) -> None:
    """One of three spots used to count as much as any other without a word."""
    table = pd.DataFrame({"section_id": list("abcde")[: len(spots)], "n_spots": spots})
    sections = pd.concat([table.assign(set="all"), table.assign(set="heg50")])
    assert cautions(all_tables(methods(), sections=sections), {})[1:] == said


def test_a_gene_panel_that_is_left_out_is_named() -> None:
    genes = pd.concat([methods().assign(gene=g, ceiling=0.7) for g in "AB"])
    without = genes[genes["method"] == "ours"].assign(encoder="timm:uni@w")
    chapter = details.genes(pd.concat([genes, without]), methods().assign(set="all"))
    assert chapter is not None
    assert len(chapter.plates) == 1
    assert chapter.text[1:] == ["Without a figure, since no control was run there: leave-one-patient-out, uni."]
    chapter = details.genes(genes, methods().assign(set="all"))
    assert chapter is not None
    assert len(chapter.text) == 1
    # A control alone has nothing to be set against
    assert details.genes(genes[genes["method"] == "knn"], methods().assign(set="all")) is None


@pytest.mark.parametrize(("seeds", "said"), [([2, 2, 2], "over 2 seeds."), ([3, 1, 2], "over 1 to 3 seeds.")])
def test_how_many_seeds_the_means_are_over(seeds: list[int], said: str) -> None:
    assert page._lead(methods().assign(n_seeds=seeds, n_sections=6)).endswith(said)
