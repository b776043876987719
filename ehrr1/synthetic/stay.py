"""Hospital stays: patients, admissions, transfers, services, ICU stays, codes, clinic values."""

import numpy as np
import polars as pl

from ehrr1.synthetic.course import DAY, NEVER
from ehrr1.synthetic.ed import RACES, coded, vital_values
from ehrr1.synthetic.emit import Chunk, pick, providers
from ehrr1.synthetic.problems import PROBLEMS

_INSURANCE = ["Medicare", "Other", "Medicaid"]
_MARITAL = ["MARRIED", "SINGLE", "WIDOWED", "DIVORCED"]
_TYPES = [
    "EW EMER.",
    "OBSERVATION ADMIT",
    "EU OBSERVATION",
    "URGENT",
    "DIRECT EMER.",
    "ELECTIVE",
    "SURGICAL SAME DAY ADMISSION",
]
CONVERTED, OBSERVED = _TYPES.index("OBSERVATION ADMIT"), _TYPES.index("EU OBSERVATION")
_PLACES = ["EMERGENCY ROOM", "TRANSFER FROM HOSPITAL", "PHYSICIAN REFERRAL", "CLINIC REFERRAL"]
_HOMES = [
    "HOME",
    "HOME HEALTH CARE",
    "SKILLED NURSING FACILITY",
    "REHAB",
    "HOSPICE",
    "DIED",
]
_ERAS = ["2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"]


def write_stays(chunk: Chunk) -> None:
    """Write patients and the administrative tables of every admission."""
    _patients(chunk)
    stays = np.flatnonzero(chunk.visits["admitted"])
    _admissions(chunk, stays)
    _transfers(chunk)
    _services(chunk, stays)
    _icu_stays(chunk)
    _diagnoses(chunk, stays)
    _procedures(chunk, stays)
    _billing(chunk, stays)
    _outpatient(chunk)


def _patients(chunk: Chunk) -> None:
    p = chunk.course.patients
    days = (p["start"] // DAY).astype("datetime64[D]")
    chunk.add(
        "hosp/patients",
        subject_id=p["subject_id"],
        gender=pick("MF", p["female"].astype(int)),
        anchor_age=p["age"],
        anchor_year=days.astype("datetime64[Y]").astype(np.int64) + 1970,
        anchor_year_group=pick(_ERAS, np.where(p["era"], 1, 3) - (p["subject_id"] % 2)),
        dod=p["dod"],
    )


def _types(chunk: Chunk, stays: np.ndarray) -> np.ndarray:
    """Return the type of each admission, shape (len(stays),).

    Admissions from the emergency department depend on the severity, others on the problem.
    """
    v, rng = chunk.visits, chunk.rng
    u = rng.random(len(stays))
    mild = np.isin(
        v["problem"][stays], [p for p, x in enumerate(PROBLEMS) if x.risks.get("H", 0) < 0]
    )
    by_ed = np.where(u < np.where(mild, 0.3, 0.75), 0, np.where(u < 0.75 + 0.12, 1, 2))
    surgical = np.array([p.service in ("ORTHO", "SURG") for p in PROBLEMS])[v["problem"][stays]]
    other = np.where(
        surgical, np.where(u < 0.6, 6, 5), np.where(u < 0.55, 3, np.where(u < 0.8, 4, 5))
    )
    return np.where(v["emergency"][stays], by_ed, other)


def _admissions(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    emergency, died = v["emergency"][stays], v["died"][stays]
    place = np.where(emergency, 0, rng.integers(1, 4, len(stays)))
    frail = v["z_S"][stays] + 0.4 * rng.normal(size=len(stays))
    to = np.where(frail > 0.9, rng.choice([2, 3], len(stays)), np.where(frail > 0.3, 1, 0))
    to = np.where(v["death"][stays] != NEVER, 4, to)
    # For deaths the register often has only the date.
    midnight = v["disch"][stays] // DAY * DAY
    by_date = died & (v["hadm_id"][stays] % 3 == 0) & (midnight > v["admit"][stays])
    chunk.draws["type"] = np.zeros(chunk.n, int)
    chunk.draws["type"][stays] = _types(chunk, stays)
    chunk.add(
        "hosp/admissions",
        subject_id=v["subject_id"][stays],
        hadm_id=v["hadm_id"][stays],
        admittime=v["admit"][stays],
        dischtime=np.where(by_date, midnight, v["disch"][stays]),
        deathtime=np.where(died, v["death"][stays], NEVER),
        admission_type=pick(_TYPES, chunk.draws["type"][stays]),
        admit_provider_id=providers(chunk, len(stays)),
        admission_location=pick(_PLACES, place),
        discharge_location=pick(_HOMES, np.where(died, 5, to)),
        insurance=pick(_INSURANCE, chunk.patient("insurance")[stays]),
        language="ENGLISH",
        marital_status=pick(_MARITAL, chunk.patient("marital")[stays]),
        race=pick(RACES, chunk.patient("race")[stays]),
        edregtime=v["ed_in"][stays],
        edouttime=v["ed_out"][stays],
        hospital_expire_flag=died.astype(np.int64),
    )


def _unit_names(kind: str) -> list[str]:
    return sorted({name for problem in PROBLEMS for name in getattr(problem, kind)})


def unit_codes(chunk: Chunk, kind: str) -> tuple[np.ndarray, list[str]]:
    """Return the ward or ICU of each visit, and the names of the codes.

    The unit is one of the two of the problem; the first is likelier if recovery is slow. Codes have
    the shape (visits,).
    """
    names = _unit_names(kind)
    table = np.array([[names.index(name) for name in getattr(p, kind)] for p in PROBLEMS])
    second = chunk.rng.random(chunk.n) > 0.3 + 0.4 * np.clip(chunk.visits["z_S"], 0, 1)
    return table[chunk.visits["problem"], second.astype(int)], names


def _transfers(chunk: Chunk) -> None:
    """Write the moves of every visit: ED, ward or ICU, back to the ward, and the discharge."""
    v = chunk.visits
    # The bed is vacated and released minutes after the discharge is recorded.
    gone = v["disch"] + 60 + 97 * (v["hadm_id"] % 7)
    ward, wards = unit_codes(chunk, "wards")
    unit, units = unit_codes(chunk, "units")
    chunk.draws["unit"] = unit
    names = ["Emergency Department", *wards, *units]
    ward, unit = ward + 1, unit + 1 + len(wards)
    icu, icu2 = v["icu_in"] != NEVER, v["icu2_in"] != NEVER
    direct = icu & (v["icu_in"] <= v["bed"] + 60)
    parts = [
        ("ED", v["emergency"], np.zeros(chunk.n, int), v["ed_in"], v["ed_out"]),
        ("admit", v["admitted"] & ~direct, ward, v["bed"], np.where(icu, v["icu_in"], gone)),
        ("icu", icu, unit, v["icu_in"], v["icu_out"]),
        ("transfer", icu, ward, v["icu_out"], np.where(icu2, v["icu2_in"], gone)),
        ("transfer", icu2, unit, v["icu2_in"], v["icu2_out"]),
        ("transfer", icu2, ward, v["icu2_out"], gone),
        ("discharge", v["admitted"], np.full(chunk.n, -1), gone, np.full(chunk.n, NEVER)),
    ]
    rows: dict[str, list] = {"visit": [], "kind": [], "unit": [], "in": [], "out": []}
    for kind, present, place, begin, end in parts:
        present = present & ((end > begin + 1800) | (end == NEVER))
        visit = np.flatnonzero(present)
        kinds = (
            np.where(direct[visit], "admit", "transfer") if kind == "icu" else [kind] * len(visit)
        )
        rows["visit"].append(visit)
        rows["kind"].append(np.array(kinds, dtype=object))
        rows["unit"].append(place[visit])
        rows["in"].append(begin[visit])
        rows["out"].append(end[visit])
    joined = {key: np.concatenate(values) for key, values in rows.items()}
    visit = joined["visit"]
    chunk.add(
        "hosp/transfers",
        subject_id=v["subject_id"][visit],
        hadm_id=v["hadm_id"][visit],
        transfer_id=39_000_000 + chunk.serials(len(visit), 32),
        eventtype=pl.Series(list(joined["kind"]), dtype=pl.String),
        careunit=pick(names, joined["unit"]),
        intime=joined["in"],
        outtime=joined["out"],
    )


def _services(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    first = pl.Series([PROBLEMS[p].service for p in v["problem"][stays]])
    chunk.add(
        "hosp/services",
        subject_id=v["subject_id"][stays],
        hadm_id=v["hadm_id"][stays],
        transfertime=v["admit"][stays] + 60,
        curr_service=first,
    )
    change = {"CMED": "CSURG", "NMED": "NSURG", "MED": "SURG", "SURG": "VSURG", "ORTHO": "TRAUM"}
    moved = (v["icu_out"][stays] != NEVER) & (rng.random(len(stays)) < 0.35)
    moved &= v["icu_out"][stays] < v["disch"][stays]
    some = stays[moved]
    before = [PROBLEMS[p].service for p in v["problem"][some]]
    chunk.add(
        "hosp/services",
        subject_id=v["subject_id"][some],
        hadm_id=v["hadm_id"][some],
        transfertime=v["icu_out"][some] + 300,
        prev_service=pl.Series(before, dtype=pl.String),
        curr_service=pl.Series([change[name] for name in before], dtype=pl.String),
    )


def _icu_stays(chunk: Chunk) -> None:
    v = chunk.visits
    names = _unit_names("units")
    for suffix in ("icu", "icu2"):
        stay = np.flatnonzero(v[f"{suffix}_in"] != NEVER)
        begin, end = v[f"{suffix}_in"][stay], v[f"{suffix}_out"][stay]
        unit = pick(names, chunk.draws["unit"][stay])
        chunk.add(
            "icu/icustays",
            subject_id=v["subject_id"][stay],
            hadm_id=v["hadm_id"][stay],
            stay_id=v[f"{suffix}_id"][stay],
            first_careunit=unit,
            last_careunit=unit,
            intime=begin,
            outtime=end,
            los=(end - begin) / DAY,
        )


def _diagnoses(chunk: Chunk, stays: np.ndarray) -> None:
    v = chunk.visits
    visit, codes, sequence = coded(chunk, stays, full=True)
    chunk.draws["coded_visit"] = visit
    chunk.draws["coded"] = np.array([f"{version}|{code}" for code, version in codes])
    chunk.add(
        "hosp/diagnoses_icd",
        subject_id=v["subject_id"][visit],
        hadm_id=v["hadm_id"][visit],
        seq_num=sequence,
        icd_code=pl.Series([code for code, _ in codes]),
        icd_version=np.array([version for _, version in codes]),
    )


def _procedures(chunk: Chunk, stays: np.ndarray) -> None:
    """Write procedures, dated on the day after admission."""
    v, rng = chunk.visits, chunk.rng
    era = chunk.patient("era") & (v["number"] < 3)
    found = []
    for visit in stays:
        day = (v["admit"][visit] // DAY + 1) * DAY
        if rng.random() > 0.65 or day > v["disch"][visit]:
            continue
        pairs = [p for p in PROBLEMS[v["problem"][visit]].procedures if rng.random() < 0.75]
        codes = dict.fromkeys(p[0] if era[visit] else p[1] for p in pairs)
        found += [(visit, number + 1, code, day) for number, code in enumerate(codes)]
    visit = np.array([row[0] for row in found], dtype=np.int64)
    chunk.add(
        "hosp/procedures_icd",
        subject_id=v["subject_id"][visit],
        hadm_id=v["hadm_id"][visit],
        seq_num=np.array([row[1] for row in found], dtype=np.int64),
        chartdate=np.array([row[3] for row in found], dtype=np.int64),
        icd_code=pl.Series([row[2] for row in found], dtype=pl.String),
        icd_version=np.where(era[visit], 9, 10),
    )


def _billing(chunk: Chunk, stays: np.ndarray) -> None:
    v, rng = chunk.visits, chunk.rng
    kinds = [problem.name.replace("_", " ").upper() for problem in PROBLEMS]
    for system in ("APR", "HCFA"):
        apr = system == "APR"
        severity = 1 + (v["z_S"][stays] > 0.5) + (v["z_D"][stays] > 0.5)
        empty = pl.Series([None] * len(stays), dtype=pl.Int64)
        chunk.add(
            "hosp/drgcodes",
            subject_id=v["subject_id"][stays],
            hadm_id=v["hadm_id"][stays],
            drg_type=system,
            drg_code=pick(
                [f"{130 + 11 * code}" for code in range(len(kinds))], v["problem"][stays]
            ),
            description=pick([f"{kind} W CC" for kind in kinds], v["problem"][stays]),
            drg_severity=severity if apr else empty,
            drg_mortality=severity if apr else empty,
        )
    some = stays[rng.random(len(stays)) < 0.12]
    chunk.add(
        "hosp/hcpcsevents",
        subject_id=v["subject_id"][some],
        hadm_id=v["hadm_id"][some],
        chartdate=v["admit"][some] // DAY * DAY,
        hcpcs_cd="G0378",
        seq_num=1,
        short_description="Hospital observation per hr",
    )


def _outpatient(chunk: Chunk) -> None:
    """Write clinic values with a date only, before some visits and on the day after admission."""
    v, rng = chunk.visits, chunk.rng
    conditions = chunk.patient("conditions")
    before = np.flatnonzero(rng.random(chunk.n) < 0.45)
    inside = np.flatnonzero(v["admitted"] & (rng.random(chunk.n) < 0.6))
    inside = inside[v["disch"][inside] > v["admit"][inside] + DAY]
    visit = np.concatenate([before, inside])
    days = np.concatenate(
        [
            v["arrive"][before] - rng.integers(2, 30, len(before)) * DAY,
            v["admit"][inside] + DAY,
        ]
    )
    chance = {
        "Blood Pressure": np.where(conditions[:, 0], 0.95, 0.45),
        "Weight (Lbs)": np.where(conditions[:, 2] | conditions[:, 1], 0.95, 0.5),
        "BMI (kg/m2)": np.where(conditions[:, 1], 0.9, 0.2),
        "Height (Inches)": np.where(conditions[:, 1], 0.6, 0.1),
        "eGFR": np.where(conditions[:, 4], 0.85, 0.08),
    }
    height, weight = chunk.patient("height"), chunk.patient("weight") * 2.2046
    sbp, dbp = vital_values(chunk, visit, "sbp"), vital_values(chunk, visit, "dbp")
    text = {
        "Blood Pressure": [f"{s:.0f}/{d:.0f}" for s, d in zip(sbp, dbp, strict=True)],
        "Weight (Lbs)": [f"{x:.1f}" for x in weight[visit]],
        "BMI (kg/m2)": [f"{x:.1f}" for x in 703 * weight[visit] / height[visit] ** 2],
        "Height (Inches)": [f"{x:.0f}" for x in height[visit]],
        "eGFR": [f"{x:.0f}" for x in np.where(conditions[visit, 4], 42, 78)],
    }
    for name, share in chance.items():
        rows = np.flatnonzero(rng.random(len(visit)) < share[visit])
        chunk.add(
            "hosp/omr",
            subject_id=v["subject_id"][visit[rows]],
            chartdate=days[rows] // DAY * DAY,
            seq_num=1,
            result_name=name,
            result_value=pl.Series([text[name][row] for row in rows], dtype=pl.String),
        )
