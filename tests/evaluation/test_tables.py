from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hescribe.errors import InputError
from hescribe.evaluation.crossval import predict_at_spots
from hescribe.evaluation.scores import score_section
from hescribe.evaluation.tables import (
    bootstrap_mean,
    compare_methods,
    gene_table,
    markdown,
    method_table,
    section_table,
    write_table,
)


@pytest.fixture(scope="module")
def scored(sections, oracle, noisy):
    return {
        name: [
            score_section(predict_at_spots(p, s), s.adata, method=name, n_resamples=40, n_splits=1)
            for s in sections[:4]
        ]
        for name, p in (("oracle", oracle), ("noisy", noisy))
    }


def test_means_are_over_sections_not_spots(scored):
    table = method_table(scored["oracle"] + scored["noisy"], n_resamples=200).set_index(["method", "set"])
    expected = np.mean([s.per_gene["pcc"].mean() for s in scored["noisy"]])
    row = table.loc[("noisy", "all")]
    assert row["pcc"] == pytest.approx(expected)
    assert row["pcc_low"] <= row["pcc"] <= row["pcc_high"]
    assert (row["n_sections"], row["n_patients"], row["resampled"]) == (4, 2, "sections, blocks")
    assert ("noisy", "marker") not in table.index
    assert len(section_table(scored["noisy"])) == 4 * 8


def test_patients_are_drawn_whole_and_one_section_by_blocks(scored):
    three = [replace(s, patient_id=p) for s, p in zip(scored["oracle"], "AABC", strict=True)]
    assert set(method_table(three, n_resamples=20)["resampled"]) == {"patients, blocks"}
    typed = [replace(s, patient_id=p) for s, p in zip(scored["oracle"], ["A", "a ", "B", "b"], strict=True)]
    assert set(method_table(typed, n_resamples=20)["n_patients"]) == {2}, "one patient, typed by two"
    alone = method_table(three[:1], n_resamples=300)
    assert set(alone["resampled"]) == {"blocks"}
    assert (alone["pcc_high"] > alone["pcc_low"]).all()
    draws = np.array([[0.0], [0.0], [1.0], [1.0]])
    values = bootstrap_mean(draws, ["A", "A", "B", "C"], n_resamples=2000, seed=0)
    # 27 draws of 3 from {0 0, 1, 1}: all A in one of them
    assert np.mean(values == 0) == pytest.approx(1 / 27, abs=0.02)


def test_paired_difference(scored):
    table = compare_methods(scored["oracle"], scored["noisy"], n_resamples=200).set_index("set")
    row = table.loc["all"]
    assert row["difference"] > 0.1
    assert 0 < row["low"] < row["high"]
    assert row["n_better"] == row["n_sections"] == 4
    assert row["same_genes"]
    same = compare_methods(scored["oracle"], scored["oracle"], n_resamples=50)
    assert (same[["difference", "low", "high"]] == 0).all().all()


def test_pairing_needs_the_same_sections_spots_and_resamples(scored):
    a, b = scored["oracle"], scored["noisy"]
    assert (compare_methods(a, b[:2], n_resamples=20)["n_sections"] == 2).all()
    for second in (
        [replace(s, section_id=s.section_id + "x") for s in b],
        [*b, b[0]],
        [replace(s, n_spots=3) for s in b],
        [replace(s, resamples={k: v[:5] for k, v in s.resamples.items()}) for s in b],
    ):
        with pytest.raises(InputError):
            compare_methods(a, second)


def test_different_genes_are_told(sections, oracle, scored):
    fewer = replace(oracle, genes=oracle.genes[:60])
    second = [score_section(predict_at_spots(fewer, s), s.adata, method="few", n_resamples=40) for s in sections[:4]]
    assert not compare_methods(scored["oracle"], second, n_resamples=20).set_index("set").loc["all", "same_genes"]


def test_gene_table(scored):
    table = gene_table(scored["oracle"])
    assert len(table) == 120
    expected = np.mean([s.per_gene.loc["G007", "pcc"] for s in scored["oracle"]])
    assert table.set_index("gene").loc["G007", "pcc"] == pytest.approx(expected)
    assert gene_table([]).empty
    assert section_table([]).empty


def test_writing(scored, tmp_path):
    table = method_table(scored["oracle"], n_resamples=20)
    again = pd.read_csv(write_table(table, tmp_path / "new" / "scores.csv"))
    np.testing.assert_allclose(again["pcc"], table["pcc"], atol=1e-4)
    text = write_table(table, tmp_path / "scores.md").read_text()
    assert text.count("\n") == len(table) + 2
    with pytest.raises(InputError):
        write_table(table, tmp_path / "scores.xlsx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "scores.md"]


def test_markdown():
    table = pd.DataFrame({"a": ["x|y"], "b": [0.12345], "c": [np.nan], "d": [3], "e": [True], "f": [1200.0]})
    assert markdown(table).splitlines() == [
        "| a | b | c | d | e | f |",
        "| --- | ---: | ---: | ---: | --- | ---: |",
        "| x\\|y | 0.123 |  | 3 | True | 1200 |",
    ]
