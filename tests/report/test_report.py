"""The report says what it was given, escapes it, and needs nothing but itself."""

from __future__ import annotations

import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hescribe import keys
from hescribe.errors import InputError, OutputError
from hescribe.report import PlainScores, build_report
from hescribe.report.contents import choose_genes, read_contents
from hescribe.report.pictures import _smaller
from hescribe.report.rows import gene_rows, provenance_rows
from hescribe.report.words import figures, overall, trust
from tests.report.conftest import EVIL, TITLE, make, score


class Page(HTMLParser):
    """Tags with attributes, and what stands in the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_has_everything(written: Path) -> None:
    page = Page(written.read_text())
    headings = re.findall(r"<h[1-3][^>]*>(.*?)</h[1-3]>", written.read_text(), flags=re.S)
    for expected in (
        "How far to trust this", "The slide", "How familiar the tissue looks", "Chosen genes", "Best predicted",
        "Typical (median)", "Worst predicted", "Correlations of all genes beside their ceilings",
        "Which genes go together", "Genes", "Training", "Provenance",
    ):  # fmt: skip
        assert expected in headings
    images = page.all("img")
    assert len(images) > 10
    assert (page.all("img")[0]["src"] or "").startswith("data:image/png;base64,")
    assert page.all("html")[0]["lang"] == "en"
    assert all("alt" in i for i in images)
    assert all(i["alt"] and i["width"] and i["height"] for i in images if "src" in i)
    text = html.unescape(written.read_text())
    for fact in ("abc123", "resnet50", "fusion", "9.9", "B1: B", "2024-01-01"):
        assert fact in text


def test_nothing_from_the_data_becomes_markup(written: Path) -> None:
    text = written.read_text()
    page = Page(text)
    assert EVIL not in text
    assert TITLE not in text
    assert html.escape(EVIL) in text
    assert len(page.scripts) == 2, "the data and the page's own script"
    assert "alert" not in page.scripts[1]
    assert json.loads(page.scripts[0])["genes"].count(EVIL) == 1
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert not [i for i in page.all("img") if "onerror" in i]


def test_the_page_needs_no_network(written: Path) -> None:
    page = Page(written.read_text())
    assert not page.all("link")[1:]
    assert not [s for s in page.all("script") if "src" in s]
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
    style = re.search(r"<style>(.*?)</style>", written.read_text(), flags=re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = page.all("meta")[3]["content"] or ""
    assert "default-src 'none'" in policy
    assert "'sha256-" in policy


def test_figures_stand_beside_the_page(written: Path) -> None:
    """Names that differ in case, or only in what files cannot be called, used to overwrite each other."""
    folder = written.parent / "figures"
    png, svg = ({p.stem for p in folder.glob(f"*.{kind}")} for kind in ("png", "svg"))
    assert png == svg
    assert len({n.casefold() for n in png}) == len(png)
    assert {"A1_slide", "A1_pcc", "A1_gene_gene", "A1_novelty", "training_curves", "A1_map_A_B", "A1_map_a_b-2"} <= png
    assert all(re.fullmatch(r"[\w.-]+", n) for n in png)
    assert [p.name for p in written.parent.parent.iterdir()] == ["out"], "no half-written folder remains"


def test_a_slide_without_measurement_gets_a_report(tmp_path: Path) -> None:
    predicted, _ = make()
    page = build_report([(predicted, None, None)], None, None, {}, tmp_path / "out")
    text = page.read_text()
    assert "Not checked on this tissue" in text
    assert "Highest expected correlation" in text
    assert "Training</h2>" not in text
    assert "None" not in text
    data = json.loads(Page(text).scripts[0])
    assert [c["key"] for c in data["columns"]] == ["expected_pcc", "interval"]


def test_one_gene_is_not_genes(tmp_path: Path) -> None:
    predicted, _ = make()
    text = build_report([(predicted[:, :1].copy(), None, None)], None, None, {}, tmp_path / "out").read_text()
    assert "Expression of 1 gene, predicted" in text
    assert "1 gene. A click" in " ".join(text.split())


def test_columns_of_the_table_are_explained_on_the_page(written: Path) -> None:
    """Headings alone had it, under the pointer."""
    text = written.read_text()
    assert "<dt>± 90%</dt><dd>Half-width of the 90% interval, log1p of counts per 10,000</dd>" in text


def test_a_bare_prediction_gets_a_report(tmp_path: Path) -> None:
    """No provenance, no trust, no novelty: an AnnData from somewhere else."""
    predicted, _ = make()
    predicted.uns.clear()
    predicted.obs, predicted.var = predicted.obs[[]], predicted.var[[]]
    text = build_report([(predicted, None, None)], [None], None, {}, tmp_path / "out").read_text()
    assert "Highest predicted expression" in text
    assert ">Slide 1</h2>" in text


def test_without_scores_correlations_are_still_shown() -> None:
    predicted, measured = make()
    (content,) = read_contents([(predicted, measured, None)], None)
    assert content.per_gene["pcc"].median() > 0.5
    (figure,) = figures(content.summary, ("hvg50",))
    assert (figure.low, figure.ceiling, figure.n_genes) == (None, None, 50)
    # What is normalised already is not normalised again
    normal = measured.copy()
    normal.X = np.log1p(measured.X / measured.X.sum(axis=1, keepdims=True) * 1e4)
    (again,) = read_contents([(predicted, normal, None)], None)
    np.testing.assert_allclose(again.per_gene["pcc"], content.per_gene["pcc"], atol=1e-5)


def test_best_median_and_worst_are_of_commonly_detected_genes() -> None:
    predicted, measured = make()
    table = score(predicted).per_gene
    table.loc[predicted.var_names[:2], "detected10"] = False
    (content,) = read_contents([(predicted, measured, None)], [PlainScores(table, {})])
    chosen = choose_genes(content, ["G5", "G5", "G59"])
    names = list(predicted.var_names)
    assert chosen["Chosen genes"] == ["G5", "G59"]
    assert chosen["Best predicted"] == names[2:4]
    assert chosen["Worst predicted"] == ["G58", "G59"], "also where it was asked for"
    middle = [names.index(g) for g in chosen["Typical (median)"]]
    assert all(28 <= i <= 33 for i in middle)


@pytest.mark.parametrize(
    ("pcc", "verdict"),
    [
        (0.6, "can be read as they are"),
        (0.4, "broad patterns"),
        (0.15, "Rely only on genes"),
        (0.05, "told from chance"),
    ],
)
def test_the_verdict_follows_the_share_of_the_ceiling(pcc: float, verdict: str) -> None:
    predicted, measured = make()
    contents = read_contents([(predicted, measured, None)], [score(predicted, pcc=pcc)])
    said = trust(contents, overall(contents, None))
    assert verdict in said.verdict
    assert f"{pcc:.2f}" in said.reasons[0]
    assert not said.cautions


def test_strange_tiles_warn_where_nothing_was_measured_on_them() -> None:
    predicted, measured = make()
    predicted.obs[keys.NOVELTY] = 99.0
    for given, scores, text in (
        ((predicted, measured, None), [score(predicted, pcc=0.6)], "was reached in spite of it"),
        ((predicted, None, None), [None], "be careful where the novelty map is dark"),
    ):
        contents = read_contents([given], scores)
        (told,) = [r for r in trust(contents, overall(contents, None)).reasons if "look unlike" in r]
        assert told.startswith("100% of the tiles")
        assert text in told


@pytest.mark.parametrize(
    ("key", "text"), [("seen_in_training", "nothing about new tissue"), ("patient_seen_in_training", "same patient")]
)
def test_a_leak_is_said_first(key: str, text: str) -> None:
    predicted, measured = make()
    predicted.uns[keys.PROVENANCE][key] = True
    contents = read_contents([(predicted, measured, None)], [score(predicted)])
    assert text in trust(contents, overall(contents, None)).cautions[0]


def test_several_sections_are_averaged_and_get_no_invented_interval(tmp_path: Path) -> None:
    pairs = [make(name=n) for n in ("A1", "B1")]
    scores = [score(p, pcc=v) for (p, _), v in zip(pairs, (0.2, 0.6), strict=True)]
    given = [(p, m, None) for p, m in pairs]
    contents = read_contents(given, scores)
    (figure,) = figures(overall(contents, None), ("hvg50",))
    assert figure.pcc == pytest.approx(0.4)
    assert figure.low is None
    mixed = read_contents(given, [scores[0], None])
    assert figures(overall(mixed, None), ("hvg50",))[0].ceiling is None, "known of one section only"
    told = pd.DataFrame([{"set": "hvg50", "pcc": 0.4, "pcc_low": 0.1, "pcc_high": 0.7}])
    assert figures(overall(contents, told), ("hvg50",))[0].high == 0.7
    data = gene_rows(contents)
    assert len(data["genes"]) == 60
    small = [(pairs[0][0][:, :4], pairs[0][1][:, :4], None), (pairs[1][0][:, :4], None, None)]
    text = build_report(small, None, None, {}, tmp_path / "out").read_text()
    assert "Section by section" in text
    assert len(re.findall(r'<details class="section" open', text)) == 1


def test_with_few_genes_each_is_shown_once() -> None:
    predicted, measured = make()
    (content,) = read_contents([(predicted[:, :3], measured, None)], None)
    shown = [g for genes in choose_genes(content, []).values() for g in genes]
    assert sorted(shown) == sorted(predicted.var_names[:3])


def test_rows_are_compact_and_complete() -> None:
    predicted, measured = make()
    plain = score(predicted)
    plain.per_gene.loc["G9", "pcc"] = np.nan
    data = gene_rows(read_contents([(predicted, measured, None)], [plain]))
    assert data["genes"][-1] == "G9"
    pcc = data["columns"][0]
    assert (pcc["key"], pcc["values"][0], pcc["values"][-1]) == ("pcc", 0.9, None)
    sets = {s["title"]: s["rows"] for s in data["sets"]}
    assert len(sets["HEG-50"]) == 50
    big = pd.concat([plain.per_gene] * 200, ignore_index=True).rename("G{}".format)
    (content,) = read_contents([(predicted, measured, None)], [PlainScores(big, {})])
    text = json.dumps(gene_rows([content]), separators=(",", ":"))
    assert len(json.loads(text)["genes"]) == 12_000
    assert len(text) < 1_000_000


def test_provenance_of_the_caller_wins() -> None:
    predicted, measured = make()
    contents = read_contents([(predicted, measured, None)], None)
    rows = dict(provenance_rows({"method": "bleep", "seeds": [1, 2], "mpp": 0.123456789}, contents))
    assert rows["method"] == "bleep"
    assert rows["encoder"] == "resnet50"
    assert rows["seeds"] == "1, 2"
    assert rows["µm per pixel"] == "0.123457"


def test_provenance_leaves_out_what_says_nothing() -> None:
    predicted, measured = make()
    contents = read_contents([(predicted, measured, None)], None)
    settings = {"views": 1, "epochs": None, "options": {}}
    rows = dict(provenance_rows({"unpaired": [], "sections": {"B1": "B"}, "settings": settings}, contents))
    assert "" not in rows.values()
    assert rows["trained on (section: patient)"] == "B1: B"
    assert rows["settings"] == "views: 1"


def test_wrong_input_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    predicted, measured = make()
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no prediction"):
        build_report([], None, None, {}, out)
    with pytest.raises(InputError, match="not predicted: XYZ"):
        build_report([(predicted, None, None)], None, None, {}, out, genes=["XYZ"])
    with pytest.raises(InputError, match="1 predictions but 2 tables"):
        build_report([(predicted, None, None)], [None, None], None, {}, out)
    with pytest.raises(InputError, match="outside the thumbnail"):
        build_report([(predicted, measured, np.zeros((20, 20, 3), np.uint8))], None, None, {}, out)
    assert not list(tmp_path.iterdir())


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    """The folder goes with all that is in it, and people type the folder of their predictions."""
    predicted, _ = make()
    given = [(predicted, None, None)]
    (tmp_path / "pred.zarr").mkdir()
    with pytest.raises(OutputError, match="holds something else, which would be lost"):
        build_report(given, None, None, {}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pred.zarr"]
    first = build_report(given, None, None, {}, tmp_path / "out", title="First")
    assert build_report(given, None, None, {}, tmp_path / "out", title="Second") == first
    assert "Second" in first.read_text()


def test_values_of_a_map_stay_apart_beside_a_slide(tmp_path: Path) -> None:
    """A colour bar above a slide of all colours: its levels were as few as its share of the picture."""
    bar = mpl.colormaps["viridis"](np.linspace(0, 1, 600), bytes=True)[None, :, :3].repeat(20, axis=0)
    slide = np.random.default_rng(0).integers(120, 255, (580, 600, 3), dtype=np.uint8)
    Image.fromarray(np.concatenate([bar, slide])).save(tmp_path / "map.png")
    shown = np.asarray(Image.open(io.BytesIO(_smaller(tmp_path / "map.png", "viridis"))).convert("RGB"))
    assert len(np.unique(shown[10], axis=0)) > 140
    assert np.abs(shown[10].astype(float) - bar[0]).max() <= 4
    assert np.abs(shown[20:].astype(float) - slide).mean() < 25
    few = np.asarray(Image.open(io.BytesIO(_smaller(tmp_path / "map.png", None))).convert("RGB"))
    assert len(np.unique(few[10], axis=0)) < 60
