"""Files as other tools write them: missing values, rows that do not fit, codes as numbers."""

import csv
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.records.reading import MISSING
from tests.test_records import prepared, store_rows, write_tables
from tests.test_tasks import DAY, HOUR, START, hand_made, lab, stay

Rows = Sequence[dict[str, Any]]


def quoted(path: Path) -> None:
    """The file again with every cell in quotation marks, empty ones too."""
    frame = pl.read_csv(path, infer_schema_length=0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(frame.columns)
        writer.writerows([cell or "" for cell in row] for row in frame.iter_rows())


def as_parquet(path: Path, **kinds: Any) -> None:
    frame = pl.read_csv(path, infer_schema_length=0, empty_string_is_null=False)
    frame = frame.with_columns(pl.col(name).cast(kind) for name, kind in kinds.items())
    frame.write_parquet(path.with_suffix(".parquet"))
    path.unlink()


def results(folder: Path) -> list[list[str]]:
    rows = store_rows(folder / "run").filter(pl.col("item") == "Lactate")
    return [text.split("\x1f") for text in rows["values"]]


def test_quoted_empty_cells_hide_nothing(tmp_path: Path) -> None:
    word = lab(1, str(START)) | {"valuenum": None, "value": "NEG", "storetime": None}
    root = write_tables(tmp_path / "hospital", hand_made([word]))
    for path in root.glob("*/*.csv"):
        quoted(path)
    _, metrics = prepared(root, tmp_path / "run")
    assert results(tmp_path)[0][1] == "NEG"
    assert metrics["availability_assumed/labevents"] == 1
    assert metrics["rows_kept/admissions"] == 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("missing", MISSING)
def test_what_tools_write_for_a_missing_value_is_missing(
    missing: str, kind: str, tmp_path: Path
) -> None:
    row = lab(1, str(START)) | {"valuenum": missing, "value": "NEG", "storetime": missing}
    row |= {"flag": missing, "hadm_id": missing}
    root = write_tables(tmp_path / "hospital", hand_made([row]))
    if kind == "parquet":
        as_parquet(root / "hosp" / "labevents.csv")
    _, metrics = prepared(root, tmp_path / "run")
    assert results(tmp_path) == [["Lactate", "NEG", "", "", "", "", ""]]
    assert metrics["availability_assumed/labevents"] == metrics["rows_kept/labevents"] == 1


def test_words_that_look_like_nothing_are_kept(tmp_path: Path) -> None:
    """ "None" is what nurses chart, and "N/A" an answer."""
    rows = [
        lab(n, str(START)) | {"valuenum": None, "value": v} for n, v in enumerate(("None", "N/A"))
    ]
    prepared(write_tables(tmp_path / "hospital", hand_made(rows)), tmp_path / "run")
    assert [cells[1] for cells in results(tmp_path)] == ["None", "N/A"]


def test_rows_that_are_cut_short_are_reported(tmp_path: Path) -> None:
    labs = [lab(n, str(START + n * HOUR)) for n in range(4)]
    root = write_tables(tmp_path / "hospital", hand_made(labs))
    path = root / "hosp" / "labevents.csv"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0]
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # cut in the middle of the last row
    _, metrics = prepared(root, tmp_path / "run")
    assert metrics["rows/labevents"] == 4 and metrics["rows_kept/labevents"] == 2
    assert metrics["rows_reported/labevents"] == 2


def test_rows_with_more_cells_than_headings_are_refused(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "hospital", hand_made())
    with (root / "hosp" / "labevents.csv").open("a") as file:
        file.write("," * 40)
    with pytest.raises(UserError, match=r"labevents.*1 rows have more cells than the header"):
        prepared(root, tmp_path / "run")


def test_a_cut_dictionary_is_refused(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "hospital", hand_made())
    with (root / "hosp" / "d_labitems.csv").open("a") as file:
        file.write("51")
    with pytest.raises(UserError, match=r"d_labitems.*1 rows are cut short"):
        prepared(root, tmp_path / "run")


def test_most_admissions_without_a_time_are_refused(tmp_path: Path) -> None:
    stays = [stay(11 + n, START + n * DAY, START + n * DAY + HOUR) for n in range(30)]
    for own in stays[4:]:
        own["dischtime"] = "soon"
    root = write_tables(tmp_path / "hospital", hand_made(hosp__admissions=stays))
    with pytest.raises(UserError, match=r"admissions.csv: 26 of 30 rows .* \(bad_time 26\)"):
        prepared(root, tmp_path / "run")


def test_patients_who_are_not_in_the_file_are_no_loss(tmp_path: Path) -> None:
    """Users cut patients.csv and keep the other files whole."""
    stays = [stay(11, START, START + DAY)]
    stays += [stay(20 + n, START, START + DAY, subject_id=5) for n in range(9)]
    root = write_tables(tmp_path / "hospital", hand_made(hosp__admissions=stays))
    _, metrics = prepared(root, tmp_path / "run")
    assert metrics["rows_kept/admissions"] == 1 and metrics["rows_reported/admissions"] == 9


@pytest.mark.parametrize("written", ["50.0", " 50 ", "50"])
def test_item_numbers_are_compared_as_numbers(written: str, tmp_path: Path) -> None:
    rows = [lab(1, str(START)) | {"itemid": written}]
    prepared(write_tables(tmp_path / "hospital", hand_made(rows)), tmp_path / "run")
    assert results(tmp_path)


def diagnoses(codes: Sequence[str]) -> dict[str, Rows]:
    own = {"subject_id": 1, "hadm_id": 11, "icd_version": "9"}
    titles = {"0389": "Septicemia", "4019": "Hypertension", "25000": "Diabetes", "V1582": "Tobacco"}
    return {
        "hosp__diagnoses_icd": [{**own, "icd_code": c, "seq_num": n} for n, c in enumerate(codes)],
        "hosp__d_icd_diagnoses": [
            {"icd_code": code, "icd_version": "9", "long_title": title}
            for code, title in titles.items()
        ],
    }


@pytest.mark.parametrize(
    "codes",
    [
        ("389", "4019", "25000"),  # as numbers
        ("389.0", "4019.0", "25000.0"),  # as numbers with a fraction
        ("038.9", "401.9", "250.00"),  # with points
    ],
)
def test_icd_codes_are_compared_as_codes(codes: Sequence[str], tmp_path: Path) -> None:
    tables = hand_made(**diagnoses(codes))
    _, metrics = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    rows = store_rows(tmp_path / "run").filter(pl.col("class").is_not_null())
    assert rows["item"].to_list() == ["Septicemia", "Hypertension", "Diabetes"]
    assert rows["class"][0] == "Septicemia (except in labor)"
    assert "rows_unnamed/diagnoses_icd" not in metrics


def test_codes_in_a_parquet_file_may_be_numbers(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "hospital", hand_made(**diagnoses(["389", "4019"])))
    as_parquet(root / "hosp" / "diagnoses_icd.csv", icd_code=pl.Float64, icd_version=pl.Int32)
    as_parquet(root / "hosp" / "labevents.csv", itemid=pl.Float64, subject_id=pl.Float64)
    prepared(root, tmp_path / "run")
    items = store_rows(tmp_path / "run")["item"].to_list()
    assert {"Septicemia", "Hypertension", "Lactate"} <= set(items)


def test_codes_that_no_dictionary_names_are_counted(tmp_path: Path) -> None:
    tables = hand_made(**diagnoses(["0389", "4019", "XYZ"]))
    _, metrics = prepared(write_tables(tmp_path / "hospital", tables), tmp_path / "run")
    assert metrics["rows_unnamed/diagnoses_icd"] == 1 and metrics["rows_kept/diagnoses_icd"] == 3


def test_the_dictionary_of_another_version_is_refused(tmp_path: Path) -> None:
    tables = hand_made(**diagnoses(["0389", "A1", "B2", "C3"]))
    root = write_tables(tmp_path / "hospital", tables)
    with pytest.raises(UserError, match="d_icd_diagnoses names 1 of the first 4 rows of diagnoses"):
        prepared(root, tmp_path / "run")


def test_times_are_read_to_the_second(tmp_path: Path) -> None:
    """Two results of one second are one event; what is stored within a second is known after it."""
    one = START + HOUR
    rows = [lab(n, f"{one}.{n}00") for n in (1, 7)]
    world, _ = prepared(write_tables(tmp_path / "hospital", hand_made(rows)), tmp_path / "run")
    (sample,) = world.samples(tasks=["labevents"])
    assert sample.prediction_time == one and sample.n_context_rows == 1  # the admission
    results = store_rows(tmp_path / "run").filter(pl.col("item") == "Lactate")
    assert results["event_time"].to_list() == [one] * 2
    assert results["available_time"].to_list() == [one + timedelta(seconds=1)] * 2
