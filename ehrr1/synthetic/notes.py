"""Free text: discharge summaries and radiology reports."""

import numpy as np
import polars as pl

from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.course import DAY, HOUR
from ehrr1.synthetic.emit import Chunk, cells, pick, problem_items, rounds
from ehrr1.synthetic.problems import PROBLEMS

_EXAMINATIONS = sorted({name for problem in PROBLEMS for name in problem.examinations})
_FINDINGS = [
    "No acute abnormality.",
    "Mild interval improvement.",
    "New opacity, which may represent infection.",
    "Findings consistent with the clinical suspicion of {problem}.",
]
_FAMILY = ["hypertension", "diabetes", "stroke", "colon cancer", "heart disease"]
_DENIED = ["fever", "chest pain", "nausea", "headache", "abdominal pain", "dyspnea"]


def write_notes(chunk: Chunk) -> None:
    """Write note/radiology, note/radiology_detail and note/discharge."""
    _radiology(chunk)
    _discharge(chunk)


def _radiology(chunk: Chunk) -> None:
    v, rng = chunk.visits, chunk.rng
    disease = problem_items(chunk, "examinations", _EXAMINATIONS)
    stays = np.flatnonzero(v["emergency"] & (rng.random(chunk.n) < 0.7))
    row, code = cells(disease[stays], 0.6, rng)
    parts = [(stays[row], (v["ed_in"] + 4800)[stays[row]], code, np.zeros(len(row), bool))]
    visit, time, _ = rounds(v["admit"], v["disch"], 26, 7.5, sparse=True)
    row, code = cells(disease[visit], 0.55, rng)
    parts.append((visit[row], time[row], code, np.ones(len(row), bool)))
    visit, time, code, inside = (np.concatenate([part[k] for part in parts]) for k in range(4))
    order = np.lexsort((code, time, visit))
    visit, time, code, inside = visit[order], time[order], code[order], inside[order]
    subject = v["subject_id"][visit]
    sequence = np.arange(len(visit)) - np.searchsorted(subject, subject, side="left") + 1
    ids = pl.Series(subject).cast(pl.String) + "-RR-" + pl.Series(sequence).cast(pl.String)
    ill = np.clip(v["z_D"][visit], 0, 1)
    finding = np.where(rng.random(len(visit)) < 0.35 + 0.2 * ill, 3, rng.integers(0, 3, len(visit)))
    text = [_report(*row) for row in zip(v["problem"][visit], code, finding, strict=True)]
    chunk.add(
        "note/radiology",
        note_id=ids,
        subject_id=subject,
        hadm_id=np.where(inside, v["hadm_id"][visit], np.iinfo(np.int64).min),
        note_type="RR",
        note_seq=sequence,
        charttime=time,
        storetime=time + rng.integers(20, 200, len(visit)) * 60,
        text=pl.Series(text, dtype=pl.String),
    )
    chunk.add(
        "note/radiology_detail",
        note_id=ids,
        subject_id=subject,
        field_name="exam_name",
        field_value=pick(_EXAMINATIONS, code),
        field_ordinal=1,
    )


def _report(problem: int, code: int, finding: int) -> str:
    name = PROBLEMS[problem].name.replace("_", " ")
    return (
        f"EXAMINATION: {_EXAMINATIONS[code]}\n\nINDICATION: {PROBLEMS[problem].story}.\n\n"
        f"FINDINGS: {_FINDINGS[finding].format(problem=name)} No pneumothorax.\n\n"
        f"IMPRESSION: {_FINDINGS[finding].format(problem=name)}"
    )


def _discharge(chunk: Chunk) -> None:
    v, rng = chunk.visits, chunk.rng
    stays = np.flatnonzero(v["admitted"] & (rng.random(chunk.n) < 0.94))
    subject = v["subject_id"][stays]
    sequence = v["number"][stays] + 1
    ids = pl.Series(subject).cast(pl.String) + "-DS-" + pl.Series(sequence).cast(pl.String)
    time = (v["disch"][stays] // DAY) * DAY + 23 * HOUR
    time = np.maximum(time, v["disch"][stays])
    chunk.add(
        "note/discharge",
        note_id=ids,
        subject_id=subject,
        hadm_id=v["hadm_id"][stays],
        note_type="DS",
        note_seq=sequence,
        charttime=time,
        storetime=time + rng.integers(4, 40, len(stays)) * HOUR,
        text=pl.Series([_summary(chunk, visit) for visit in stays], dtype=pl.String),
    )


def _summary(chunk: Chunk, visit: int) -> str:
    v, rng = chunk.visits, chunk.rng
    problem = PROBLEMS[v["problem"][visit]]
    patient = v["patient"][visit]
    people = chunk.course.patients
    has = people["conditions"][patient]
    history = [c.history for c, yes in zip(CONDITIONS, has, strict=True) if yes]
    absent = [c.history for c, yes in zip(CONDITIONS, has, strict=True) if not yes]
    sex = "woman" if people["female"][patient] else "man"
    past = ", ".join(history) if history else "none"
    denied = _DENIED[int(rng.integers(len(_DENIED)))]
    course = "was treated on the ward"
    if v["icu_id"][visit] > 0:
        course = "was treated in the intensive care unit"
    end = "died in hospital" if v["died"][visit] else "improved and was discharged"
    name = problem.name.replace("_", " ")
    drugs = ", ".join(problem.drugs)
    other = absent[int(rng.integers(len(absent)))]
    return (
        f"Chief Complaint:\n{problem.complaints[int(rng.integers(len(problem.complaints)))]}\n\n"
        f"History of Present Illness:\nThis {people['age'][patient]} year old {sex} with a history "
        f"of {past} presented with {problem.story}. The patient denied {denied}.\n\n"
        f"Past Medical History:\n{past}. No history of {other}.\n\n"
        f"Family History:\nFather with {_FAMILY[int(rng.integers(len(_FAMILY)))]}.\n\n"
        f"Brief Hospital Course:\nThe patient {course} for {name} and received {drugs}. "
        f"The patient {end}.\n\n"
        f"Discharge Diagnosis:\n{name}\n{past}\n"
    )
