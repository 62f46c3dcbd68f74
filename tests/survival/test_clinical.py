"""Tables that make no sense are refused in one line; TCGA's are read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hescribe.errors import HescribeWarning, InputError
from hescribe.survival.clinical import (
    encode_covariates,
    join_slides,
    read_clinical,
    read_slide_patients,
    read_tcga,
    stage_number,
    tcga_patient,
)


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "patient_id": [f"P{i}" for i in range(40)],
            "time": rng.exponential(30, 40).round(1) + 0.1,
            "event": [1, 0] * 20,
            "age": rng.integers(40, 80, 40),
            "stage": rng.choice(["I", "II", "III"], 40),
        }
    )


def write(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "clinical.csv"
    table.to_csv(path, index=False)
    return path


def put(table: pd.DataFrame, row: int, column: str, value: object) -> pd.DataFrame:
    out = table.astype(object)
    out.loc[row, column] = value
    return out


WRONG = {
    "negative time": (lambda t: put(t, 3, "time", -2), "negative time -2 of patient 'P3'"),
    "time in words": (lambda t: put(t, 3, "time", "long"), "time 'long' of patient 'P3' is no number"),
    "infinite time": (lambda t: put(t, 3, "time", "inf"), "the time of patient 'P3' is infinite"),
    "odd event": (lambda t: put(t, 3, "event", 2), "of patient 'P3' (1: happened, 0: censored)"),
    "twice": (lambda t: put(t, 3, "patient_id", "P4"), "patient 'P4' stands there twice"),
    "nameless": (lambda t: put(t, 3, "patient_id", None), "a row has no patient_id"),
    "no events": (lambda t: t.assign(event=0), "all 40 patients are censored"),
    "few events": (lambda t: t.assign(event=[1] * 9 + [0] * 31), "only 9 of 40 patients had the event; at least 10"),
    "no column": (lambda t: t.drop(columns="event"), "column 'event' is missing (found patient_id, time, age, stage)"),
    "no covariate": (lambda t: t.drop(columns="age"), "column 'age' is missing"),
}


@pytest.mark.parametrize(("break_it", "message"), WRONG.values(), ids=WRONG.keys())
def test_nonsense_is_refused(table: pd.DataFrame, tmp_path: Path, break_it, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as error:
        read_clinical(write(break_it(table), tmp_path), covariates=["age"])
    assert message in str(error.value)
    assert "clinical.csv" in str(error.value)


def test_a_sound_table_is_read(table: pd.DataFrame, tmp_path: Path) -> None:
    clinical = read_clinical(write(table, tmp_path), covariates=["age", "stage"])
    assert clinical.index.name == "patient_id"
    assert clinical["event"].dtype == bool
    assert clinical["event"].sum() == 20
    with pytest.warns(HescribeWarning, match="1 patient without time or event is left out"):
        assert len(read_clinical(write(put(table, 3, "time", None), tmp_path))) == 39
    with pytest.raises(InputError, match="no such table"):
        read_clinical(tmp_path / "nothing.csv")
    words = table.assign(event=np.where(table["event"] == 1, "TRUE", "no"))
    assert read_clinical(write(words, tmp_path))["event"].sum() == 20


def test_covariates_become_numbers(table: pd.DataFrame, tmp_path: Path) -> None:
    path = write(put(put(table, 0, "age", None), 1, "stage", None), tmp_path)
    encoded = encode_covariates(read_clinical(path, covariates=["age", "stage"]), ["age", "stage"])
    assert list(encoded) == ["age", "stage II", "stage III"]
    assert encoded.iloc[0].isna().tolist()[0]
    assert encoded.iloc[1].isna().tolist() == [False, True, True]
    text = read_clinical(write(table.assign(note=[f"n{i}" for i in range(40)]), tmp_path), covariates=["note"])
    with pytest.raises(InputError, match="'note' has 40 different words"):
        encode_covariates(text, ["note"])


def test_patients_without_slides(table: pd.DataFrame, tmp_path: Path) -> None:
    clinical = read_clinical(write(table, tmp_path))
    everyone = list(clinical.index)
    with pytest.raises(InputError, match=r"2 patients have no slide, such as 'P0' \(pass --drop-missing"):
        join_slides(clinical, everyone[2:])
    with pytest.warns(HescribeWarning, match="2 patients without slides are left out"):
        assert len(join_slides(clinical, everyone[2:], drop_missing=True)[0]) == 38
    with pytest.warns(HescribeWarning, match="1 patient with slides but no follow-up is left out"):
        assert join_slides(clinical, [*everyone, "stranger"])[1] == {"stranger"}
    with pytest.raises(InputError, match="no patient of the clinical table has a slide"):
        join_slides(clinical, ["x"], drop_missing=True)
    with pytest.warns(HescribeWarning), pytest.raises(InputError, match="only 6 of 12 patients had the event"):
        join_slides(clinical, everyone[:12], drop_missing=True)


def test_who_is_left_out_is_told_once(table: pd.DataFrame, tmp_path: Path) -> None:
    """A patient without time was told of again as one with slides but no follow-up."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clinical = read_clinical(write(put(table, 3, "time", None), tmp_path))
        assert join_slides(clinical, [f"P{i}" for i in range(40)])[1] == {"P3"}
        assert join_slides(clinical, [*(f"P{i}" for i in range(40)), "stranger"])[1] == {"P3", "stranger"}
    assert [str(w.message) for w in told] == [
        "1 patient without time or event is left out",
        "1 patient with slides but no follow-up is left out",
    ]


def test_slides_of_patients(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text("slide_id,patient_id\n01,7\n02,7\n")
    assert read_slide_patients(path) == {"01": "7", "02": "7"}
    path.write_text("slide_id,patient_id\na,7\na,8\n")
    with pytest.raises(InputError, match="slide 'a' stands there twice"):
        read_slide_patients(path)
    path.write_text("slide,patient_id\na,7\n")
    with pytest.raises(InputError, match="column 'slide_id' is missing"):
        read_slide_patients(path)


CDR = """,bcr_patient_barcode,type,age_at_initial_pathologic_diagnosis,gender,ajcc_pathologic_tumor_stage,OS,OS.time,DFI,DFI.time
1,TCGA-05-4244,LUAD,70,MALE,Stage IV,0,0,#N/A,#N/A
2,TCGA-05-4249,LUAD,67,MALE,Stage IB,0,1523,0,1523
3,TCGA-18-3406,LUSC,67,MALE,Stage IA,1,371,1,365.25
4,TCGA-3C-AAAU,BRCA,55,FEMALE,Stage X,0,4047,1,1808
5,TCGA-22-0944,LUSC,[Not Available],FEMALE,[Discrepancy],0,100,0,100
"""
CBIOPORTAL = """#Patient Identifier\tAge\tSex\tStage\tDisease Free Status\tDisease Free (Months)
#Identifier\t...\t...\t...\t...\t...
#STRING\tNUMBER\tSTRING\tSTRING\tSTRING\tNUMBER
#1\t1\t1\t1\t1\t1
PATIENT_ID\tAGE\tSEX\tAJCC_PATHOLOGIC_TUMOR_STAGE\tDFS_STATUS\tDFS_MONTHS
TCGA-05-4249\t67\tMale\tSTAGE IB\t0:DiseaseFree\t50.03
TCGA-18-3406\t67\tMale\tSTAGE IIIA\t1:Recurred/Progressed\t12
TCGA-18-3407\t72\tMale\tSTAGE IA\t\t
"""


def test_tcga_clinical_data_resource(tmp_path: Path) -> None:
    path = tmp_path / "TCGA-CDR.csv"
    path.write_text(CDR)
    table = read_tcga(path, endpoint="DFI", cancers=["LUAD", "LUSC"])
    assert table["patient_id"].tolist() == ["TCGA-05-4249", "TCGA-18-3406", "TCGA-22-0944"]
    assert table["time"].tolist()[1] == pytest.approx(12.0)
    assert table["event"].tolist() == [0, 1, 0]
    assert table["stage"].tolist()[:2] == [1.0, 1.0]
    assert np.isnan(table["stage"][2])
    assert np.isnan(table["age"][2])
    assert len(read_tcga(path, endpoint="OS")) == 5
    with pytest.raises(InputError, match="no patient with GBM"):
        read_tcga(path, cancers=["GBM"])
    with pytest.raises(InputError, match=r"'PFI' and 'PFI.time' are missing"):
        read_tcga(path, endpoint="PFI")
    with pytest.raises(InputError, match="unknown endpoint 'XYZ'"):
        read_tcga(path, endpoint="XYZ")


def test_cbioportals_table(tmp_path: Path) -> None:
    path = tmp_path / "data_clinical_patient.txt"
    path.write_text(CBIOPORTAL)
    table = read_tcga(path, endpoint="DFI")
    assert table["time"].tolist() == [50.03, 12.0]
    assert table["event"].tolist() == [0, 1]
    assert table["stage"].tolist() == [1.0, 3.0]
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="neither TCGA's"):
        read_tcga(other)


def test_barcodes_and_stages() -> None:
    assert tcga_patient("TCGA-05-4249-01Z-00-DX1.9fce0297") == "TCGA-05-4249"
    assert tcga_patient("slide-1") == "slide-1"
    assert [stage_number(s) for s in ("Stage I", "Stage IIB", "STAGE IIIA", "Stage IV")] == [1, 2, 3, 4]
    assert np.isnan(stage_number(None))
