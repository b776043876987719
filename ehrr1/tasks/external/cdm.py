"""MIMIC-IV-Ext-CDM (Hager et al., Nature Medicine 2024) as samples: main disease and ICD titles.

A context contains everything that the benchmark provides for an admission, without times: history
and physical examination (which are never cut), laboratory tests, cultures, radiology reports. The
discharge diagnosis and the procedures are left out. The names of the admission's own disease are
masked as in the benchmark.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.markdown import table_cell, value_lines
from ehrr1.tasks.external.benchmark import INDEX_SCHEMA, UNKNOWN_TIME, Benchmark
from ehrr1.tasks.external.benchmark_tasks import CDM_DISEASE, CDM_ICD, DISEASES
from ehrr1.tasks.external.cdm_files import Admission, read_files
from ehrr1.tasks.external.texts import text_file
from ehrr1.tasks.splits import split_patients

MASK = "____"
"""Mask as in the published reports."""

TREATMENTS = {
    "appendicitis": "appendectomy",
    "cholecystitis": "cholecystostomy",
    "pancreatitis": "pancreatectomy",
}
"""Disease -> treatment, which reveals the disease and which the benchmark masks as well."""

QUESTIONS = 2
"""Number of questions per admission."""


def read_cdm(root: Path, texts: Path, validation: float, test: float, seed: int) -> Benchmark:
    """Return two samples of each admission of `root`; write their contexts to the file `texts`.

    The benchmark has no splits: patients are divided by the shares `validation` and `test`. Raises
    UserError if nothing can be read or nothing is usable.
    """
    folder = read_files(root)
    reported = Counter({why: QUESTIONS * n for why, n in folder.reported.items()})
    read = QUESTIONS * len(folder.admissions) + reported.total()
    rows: list[dict[str, Any]] = []
    masked = 0
    with text_file(texts) as contexts:
        for admission in folder.admissions.values():
            if not admission.history and not admission.examination:
                reported["no_history"] += QUESTIONS
                continue
            events, hidden = record(admission, folder.names)
            masked += hidden
            place = contexts.add("\n\n".join(events))
            rows += samples(admission, place, len(events), reported)
        if not rows:
            found = ", ".join(f"{why} {n}" for why, n in reported.items()) or "it is empty"
            raise UserError(
                f"data.root={root}: it has no usable admission ({found}): history or examination, "
                "and a disease or ICD titles are needed"
            )
    index = pl.DataFrame(rows, schema=INDEX_SCHEMA).drop("split")
    splits = split_patients(index["subject_id"], validation=validation, test=test, seed=seed)
    index = index.join(splits, on="subject_id", maintain_order="left").select(*INDEX_SCHEMA)
    return Benchmark(index, read, reported, None, {**folder.counts, "masked_contexts": masked})


def samples(
    admission: Admission, place: int, n_events: int, reported: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the questions that have an answer, and count the others in `reported`."""
    titles = list(dict.fromkeys(admission.titles))
    disease = [admission.disease] if admission.disease else []
    for task, target, candidates, reason in (
        (CDM_DISEASE, disease, list(DISEASES), "no_disease"),
        (CDM_ICD, titles, [], "no_icd_titles"),
    ):
        if not target:
            reported[reason] += 1
            continue
        yield {
            "sample_id": f"{task}/{admission.hadm_id}",
            "task": task,
            "subject_id": admission.subject_id or admission.hadm_id,
            "hadm_id": admission.hadm_id,
            "prediction_time": UNKNOWN_TIME,
            "n_context_rows": n_events,
            "context_id": f"text/{place}",
            "target": target,
            "candidates": candidates,
            "text_row": place,
        }


def record(admission: Admission, names: dict[str, str]) -> tuple[list[str], bool]:
    """Return the events of the context, and whether names were masked in addition to the file's."""
    history, examination = (
        hide(text, admission.disease) for text in (admission.history, admission.examination)
    )
    sections = {"Patient_History": history, "Physical_Examination": examination}
    parts = [_lines("Patient Demographics", sections)]
    if admission.labs:
        keys = ("Item_Name", "Valuenum", "Valueuom", "Ref_Range_Lower", "Ref_Range_Upper")
        labs = [
            (names.get(item, item), *_with_unit(value), _whole(low), _whole(high))
            for item, value, low, high in admission.labs
        ]
        parts.append(_table("Labotary Test Events", keys, labs))
    if admission.cultures:
        tests = [(names.get(item, item), value) for item, value in admission.cultures]
        parts.append(_table("Microbiology Test Events", ("Test_Name", "Comments"), tests))
    reports = [(exam, hide(text, admission.disease)) for exam, text in admission.reports]
    for exam, text in reports:
        shown = {"Exam_Name": " ".join(exam.split()), "Text": text}
        parts.append(_lines("Radiology Examinations", shown))
    as_given = [admission.history, admission.examination, *(text for _, text in admission.reports)]
    hidden = as_given != [history, examination, *(text for _, text in reports)]
    return parts, hidden


def hide(text: str, disease: str | None) -> str:
    """Return the text with the names of `disease` masked (None: of all four), in any case."""
    diseases = DISEASES if disease is None else (disease,)
    words = [f"(?:acute )?{one}" for one in diseases]
    words += [TREATMENTS[one] for one in diseases if one in TREATMENTS]
    return re.sub("|".join(words), MASK, text, flags=re.IGNORECASE)


def _with_unit(value: str) -> tuple[str, str]:
    """Split `7.2 K/uL` into number and unit; other results have no unit."""
    number, _, unit = value.partition(" ")
    is_number = re.fullmatch(r"[<>]?-?\d+(\.\d+)?", number) is not None
    return (_whole(number), unit) if is_number else (value, "")


def _whole(number: str) -> str:
    return number.removesuffix(".0")


def _table(heading: str, keys: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"## {heading} [None]", f"| {' | '.join(keys)} |", f"|{' ------ |' * len(keys)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(table_cell, row))} |" for row in rows)])


def _lines(heading: str, values: dict[str, str]) -> str:
    """Return the Markdown of an event of one row."""
    keys = tuple(values)
    lines = [f"- {key}: {value_lines(value.strip(), keys)}" for key, value in values.items()]
    return "\n".join([f"## {heading} [None]", *lines]).rstrip()
