"""The emergency department: stays, triage, vital signs, home drugs, dispensed drugs, diagnoses."""

import numpy as np
import polars as pl

from ehrr1.synthetic.codes import DIAGNOSIS_TITLES
from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.emit import (
    Chunk,
    cells,
    condition_drugs,
    jitter,
    pick,
    problem_items,
    slot_items,
)
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.signs import COMPLAINT_WORDS, LATENT_VITALS, slots_of
from ehrr1.synthetic.vocabulary import DRUGS

DRUG_NAMES = [drug.name for drug in DRUGS]
HOME_NAMES = [drug.home_name for drug in DRUGS]
RACES = ["WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC OR LATINO", "ASIAN", "OTHER", "UNKNOWN"]
# Mean and standard deviation of each vital sign.
VITALS = {
    "temperature": (98.3, 0.7),
    "heart_rate": (86.0, 14.0),
    "resp_rate": (18.0, 2.6),
    "o2": (97.0, 1.8),
    "sbp": (132.0, 19.0),
    "dbp": (74.0, 12.0),
    "pain": (4.0, 2.4),
}
_DISPENSED = sorted(
    {name for problem in PROBLEMS for name in problem.dispensed}
    | {word for slot in slots_of("dispensed") for word in (slot.high, slot.low)}
)
_SHIFT = {"pneumonia": ("resp_rate", 0.8), "urosepsis": ("temperature", 1.4)}


def vital_values(chunk: Chunk, visit: np.ndarray, sign: str, severity: float = 1.0) -> np.ndarray:
    """Return measurements of one vital sign, which follow the latents and the patient's baseline.

    `visit` holds the index of the visit of each measurement; the result has the same shape.
    """
    mean, spread = VITALS[sign]
    number = list(VITALS).index(sign)
    own = chunk.patient("mood")[visit, number]
    value = 0.75 * chunk.rng.standard_normal(len(visit)) + 0.6 * own
    for latent, shifts in LATENT_VITALS.items():
        if sign in shifts:
            value += severity * shifts[sign] * np.clip(chunk.visits[f"z_{latent}"][visit], 0, 1.2)
    for row, problem in enumerate(PROBLEMS):
        name, shift = _SHIFT.get(problem.name, ("", 0.0))
        if name == sign:
            value += shift * (chunk.visits["problem"][visit] == row)
    top = {"o2": 100.0, "pain": 10.0}.get(sign, 400.0)
    return np.clip(mean + spread * value, 0, top).round(1 if sign == "temperature" else 0)


def _gaps(chunk: Chunk, values: np.ndarray, share: float) -> np.ndarray:
    """Replace a random share of the measurements with NaN."""
    return np.where(chunk.rng.random(len(values)) < share, np.nan, values)


def _numbers(values: np.ndarray) -> pl.Series:
    return pl.Series(values).fill_nan(None)


def write_emergency(chunk: Chunk) -> None:
    """Write all tables of the `ed` module."""
    v = chunk.visits
    stays = np.flatnonzero(v["emergency"])
    _stays(chunk, stays)
    _triage(chunk, stays)
    _vital_signs(chunk, stays)
    _home_drugs(chunk, stays)
    _dispensed(chunk, stays)
    _diagnoses(chunk, stays)


def _stays(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    home = rng.choice(3, len(stays), p=[0.93, 0.04, 0.03])
    names = ["HOME", "LEFT AGAINST MEDICAL ADVICE", "TRANSFER", "ADMITTED"]
    chunk.add(
        "ed/edstays",
        subject_id=v["subject_id"][stays],
        hadm_id=v["hadm_id"][stays],
        stay_id=v["ed_id"][stays],
        intime=v["ed_in"][stays],
        outtime=v["ed_out"][stays],
        gender=pick("MF", chunk.patient("female")[stays].astype(int)),
        race=pick(RACES, chunk.patient("race")[stays]),
        arrival_transport=pick(
            ["WALK IN", "AMBULANCE"], (rng.random(len(stays)) < 0.45).astype(int)
        ),
        disposition=pick(names, np.where(v["admitted"][stays], 3, home)),
    )


def _triage(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    own = np.array([len(problem.complaints) for problem in PROBLEMS])[v["problem"][stays]]
    choice = (rng.random(len(stays)) * own).astype(int)
    complaints = [
        PROBLEMS[p].complaints[c] for p, c in zip(v["problem"][stays], choice, strict=True)
    ]
    extra = [""] * len(stays)
    for latent, word in COMPLAINT_WORDS.items():
        chance = 0.06 + 0.34 * np.clip(v[f"z_{latent}"][stays], 0, 1)
        for row in np.flatnonzero(rng.random(len(stays)) < chance):
            extra[row] += f", {word}"
    level = 3.2 - 0.7 * v["z_H"][stays] - 0.6 * v["z_U"][stays] + 0.55 * rng.normal(size=len(stays))
    values = {
        name: _numbers(_gaps(chunk, vital_values(chunk, stays, sign), 0.05))
        for name, sign in _TRIAGE_NAMES.items()
    }
    chunk.add(
        "ed/triage",
        subject_id=v["subject_id"][stays],
        stay_id=v["ed_id"][stays],
        acuity=np.clip(np.rint(level), 1, 5),
        chiefcomplaint=pl.Series([c + e for c, e in zip(complaints, extra, strict=True)]),
        **values,
    )


_TRIAGE_NAMES = {
    "temperature": "temperature",
    "heartrate": "heart_rate",
    "resprate": "resp_rate",
    "o2sat": "o2",
    "sbp": "sbp",
    "dbp": "dbp",
    "pain": "pain",
}


def _vital_signs(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    early = [(stays, v["ed_in"][stays] + minutes * 60) for minutes in (8, 46)]
    hours = (v["ed_out"][stays] - v["ed_in"][stays]) // 7200
    visit = np.repeat(stays, hours)
    number = np.arange(len(visit)) - np.repeat(np.cumsum(hours) - hours, hours)
    early.append((visit, v["ed_in"][visit] + (number + 1) * 7200 - 600))
    visit = np.concatenate([part[0] for part in early])
    time = jitter(np.concatenate([part[1] for part in early]), 6, rng)
    rhythm = np.where(rng.random(len(visit)) < 0.25 + 0.4 * np.clip(v["z_U"][visit], 0, 1), 1, 0)
    rhythm = np.where(
        chunk.patient("conditions")[visit, 5] & (rng.random(len(visit)) < 0.6), 2, rhythm
    )
    rhythm = np.where(rng.random(len(visit)) < 0.4, -1, rhythm)
    values = {
        name: _numbers(_gaps(chunk, vital_values(chunk, visit, sign), 0.08))
        for name, sign in _TRIAGE_NAMES.items()
    }
    chunk.add(
        "ed/vitalsign",
        subject_id=v["subject_id"][visit],
        stay_id=v["ed_id"][visit],
        charttime=time,
        rhythm=pick(["Sinus Rhythm", "Sinus Tachycardia", "Atrial Fibrillation"], rhythm),
        **values,
    )


def _home_drugs(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    home = condition_drugs(chunk, DRUG_NAMES)
    chunk.draws["home"] = home
    signs = slot_items(chunk, "medrecon", DRUG_NAMES)
    time = v["ed_in"] + rng.integers(15, 34, chunk.n) * 60
    row, drug = cells((home | signs)[stays], 0.93, rng)
    visit = stays[row]
    chunk.add(
        "ed/medrecon",
        subject_id=v["subject_id"][visit],
        stay_id=v["ed_id"][visit],
        charttime=time[visit],
        name=pick(HOME_NAMES, drug),
        gsn=pick([f"{4000 + 37 * code:06d}" for code in range(len(DRUGS))], drug),
        ndc=pick([drug.ndc for drug in DRUGS], drug),
        etc_rn=1,
        etccode=pick([f"{5000 + code:08d}" for code in range(len(DRUGS))], drug),
        etcdescription=pick([drug.atc for drug in DRUGS], drug),
    )


def _dispensed(chunk: Chunk, stays: np.ndarray) -> None:
    """Write the problem's drugs, two rounds of signs, and rounds of both until departure."""
    v, rng = chunk.visits, chunk.rng
    disease = problem_items(chunk, "dispensed", _DISPENSED)
    signs = slot_items(chunk, "dispensed", _DISPENSED)
    half = np.arange(len(_DISPENSED)) % 2 == 0
    start, end = v["ed_in"], v["ed_out"]
    plan = [
        (start + 1500, disease, 0.9),
        (start + 2400, signs & half, 0.9),
        (start + 3060, signs & ~half, 0.9),
        (start + 3 * 3600, disease | signs, 0.35),
        (end - 2400, signs, 0.6),
    ]
    for time, active, keep in plan:
        time = jitter(time, 6, rng)
        row, drug = cells(active[stays], keep, rng)
        visit = stays[row]
        inside = time[visit] < v["ed_out"][visit]
        visit, drug = visit[inside], drug[inside]
        chunk.add(
            "ed/pyxis",
            subject_id=v["subject_id"][visit],
            stay_id=v["ed_id"][visit],
            charttime=time[visit],
            med_rn=drug.astype(np.int64) % 9 + 1,
            name=pick(_DISPENSED, drug),
            gsn_rn=1,
            gsn=pick([f"{3000 + 41 * code:06d}" for code in range(len(_DISPENSED))], drug),
        )


def coded(chunk: Chunk, visits: np.ndarray, full: bool) -> tuple[np.ndarray, list, np.ndarray]:
    """Return the diagnoses of `visits` as (visit, (code, version), sequence number).

    The codes are ICD-9 or ICD-10, depending on the patient and the number of the visit. `full`
    includes most of the chronic conditions instead of some.
    """
    v, rng = chunk.visits, chunk.rng
    era = chunk.patient("era") & (v["number"] < 3)
    found: list[tuple[int, int, str, int]] = []
    chance = 0.85 if full else 0.3
    for visit in visits:
        problem = PROBLEMS[v["problem"][visit]]
        version = 9 if era[visit] else 10
        pairs = list(problem.codes) + [p for p in problem.secondary if rng.random() < 0.55]
        has = chunk.course.patients["conditions"][v["patient"][visit]]
        pairs += [
            c.codes for c, yes in zip(CONDITIONS, has, strict=True) if yes and rng.random() < chance
        ]
        codes = list(dict.fromkeys(pair[0] if version == 9 else pair[1] for pair in pairs))
        found += [(visit, number + 1, code, version) for number, code in enumerate(codes)]
    visit = np.array([row[0] for row in found], dtype=np.int64)
    sequence = np.array([row[1] for row in found], dtype=np.int64)
    return visit, [(row[2], row[3]) for row in found], sequence


def _diagnoses(chunk: Chunk, stays: np.ndarray) -> None:
    v = chunk.visits
    visit, codes, sequence = coded(chunk, stays, full=False)
    titles = [DIAGNOSIS_TITLES[code] for code in codes]
    chunk.add(
        "ed/diagnosis",
        subject_id=v["subject_id"][visit],
        stay_id=v["ed_id"][visit],
        seq_num=sequence,
        icd_code=pl.Series([code for code, _ in codes]),
        icd_version=np.array([version for _, version in codes]),
        icd_title=pl.Series(
            [t.upper() if c[1] == 9 else t for t, c in zip(titles, codes, strict=True)]
        ),
    )
