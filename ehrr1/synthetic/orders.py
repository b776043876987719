"""Orders and results: provider orders, laboratory panels, microbiology."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.course import DAY, HOUR, NEVER
from ehrr1.synthetic.emit import (
    Chunk,
    cells,
    jitter,
    pick,
    problem_items,
    providers,
    rounds,
    slot_items,
)
from ehrr1.synthetic.labs import (
    PANEL_NAMES,
    TESTS,
    panel_members,
    shift_vector,
)
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.signs import LATENT_LABS, slots_of
from ehrr1.synthetic.stay import CONVERTED, OBSERVED

_COMMON = (
    "Lab: ADT%orders:Admit ADT%orders:Discharge ADT%orders:Transfer Medications: "
    "Nutrition:Diet%Order General%Care:Vitals/Monitoring IV%therapy:IV%fluids "
    "Radiology:General%Xray Cardiology:ECG"
)
ORDERS = sorted(
    {name.replace("%", " ") for name in _COMMON.split()}
    | {name for problem in PROBLEMS for name in problem.orders}
    | {w for p in ("orders", "orders_ed") for slot in slots_of(p) for w in (slot.high, slot.low)}
)
CONVERSION = 8 * HOUR
"""Seconds from the beginning of an observation stay to its conversion into an inpatient stay."""
_ORDER = {name: code for code, name in enumerate(ORDERS)}
_MICRO = {
    "RESPIRATORY CULTURE": (90055, "SPUTUM", 70062),
    "GRAM STAIN": (90270, "SPUTUM", 70062),
    "Legionella Urinary Antigen": (90128, "URINE", 70081),
    "URINE CULTURE": (90039, "URINE", 70079),
    "Blood Culture, Routine": (90201, "BLOOD CULTURE", 70012),
    "MRSA SCREEN": (90189, "MRSA SCREEN", 70091),
    "Staph aureus Screen": (90198, "Staph aureus swab", 70059),
    "Respiratory Viral Culture": (90214, "Rapid Respiratory Viral Screen & Culture", 70057),
    "Respiratory Viral Antigen Screen": (90105, "Rapid Respiratory Viral Screen & Culture", 70057),
    "HELICOBACTER PYLORI ANTIBODY TEST": (90119, "SEROLOGY/BLOOD", 70017),
    "RAPID PLASMA REAGIN TEST": (90248, "SEROLOGY/BLOOD", 70017),
    "FLUID CULTURE": (90268, "PERITONEAL FLUID", 70053),
    "ANAEROBIC CULTURE": (90245, "PERITONEAL FLUID", 70053),
    "WOUND CULTURE": (90046, "SWAB", 70070),
}
_ORGANISMS = [
    ("ESCHERICHIA COLI", 80002),
    ("STAPH AUREUS COAG +", 80023),
    ("KLEBSIELLA PNEUMONIAE", 80004),
    ("PSEUDOMONAS AERUGINOSA", 80026),
]
_ANTIBIOTICS = [
    ("GENTAMICIN", 90012),
    ("TRIMETHOPRIM/SULFA", 90008),
    ("MEROPENEM", 90029),
    ("CEFTRIAXONE", 90018),
    ("VANCOMYCIN", 90015),
]


@dataclass
class Draws:
    """Events to be written: visit, time and code; `inside` marks those with a hadm_id."""

    visit: list[np.ndarray]
    time: list[np.ndarray]
    code: list[np.ndarray]
    inside: list[np.ndarray]

    @classmethod
    def empty(cls) -> "Draws":
        """Return draws without events."""
        return cls([], [], [], [])

    def put(
        self, visit: np.ndarray, time: np.ndarray, code: np.ndarray | int, inside: bool
    ) -> None:
        """Append events of one visit, time and code each."""
        self.visit.append(visit)
        self.time.append(time)
        self.code.append(np.broadcast_to(code, visit.shape))
        self.inside.append(np.full(len(visit), inside))

    def sorted(self) -> tuple[np.ndarray, ...]:
        """Return visit, time, code and inside of all events, sorted by visit, time and code."""
        parts = (self.visit, self.time, self.code, self.inside)
        visit, time, code, inside = (np.concatenate(part) for part in parts)
        order = np.lexsort((code, time, visit))
        return visit[order], time[order], code[order], inside[order]


def write_orders(chunk: Chunk) -> None:
    """Write poe, poe_detail, labevents and microbiologyevents."""
    orders = Draws.empty()
    _order_rounds(chunk, orders)
    _laboratory(chunk, orders)
    _microbiology(chunk)
    _write_orders(chunk, orders)


def _order_rounds(chunk: Chunk, orders: Draws) -> None:
    v, rng = chunk.visits, chunk.rng
    disease = problem_items(chunk, "orders", ORDERS)
    early = slot_items(chunk, "orders_ed", ORDERS)
    daily = slot_items(chunk, "orders", ORDERS)
    odd = np.arange(len(ORDERS)) % 2 == 1
    stays = np.flatnonzero(v["emergency"])
    for minutes, active, keep in (
        (16, disease, 0.9),
        (27, early & odd, 0.93),
        (50, early & ~odd, 0.93),
    ):
        row, code = cells(active[stays], keep, rng)
        orders.put(stays[row], (v["ed_in"] + minutes * 60)[stays[row]], code, False)
    row, code = cells(early[stays], 0.7, rng)
    orders.put(stays[row], (v["ed_out"] - 2100)[stays[row]], code, False)
    inside = np.flatnonzero(v["admitted"])
    for name in ("ADT orders:Admit", "Nutrition:Diet Order"):
        orders.put(inside, v["admit"][inside] + 1200, _ORDER[name], True)
    converted = inside[chunk.draws["type"][inside] == CONVERTED]
    orders.put(converted, v["admit"][converted] + CONVERSION, _ORDER["ADT orders:Admit"], True)
    orders.put(
        chunk.draws["batch_visit"], chunk.draws["batch_time"] - 600, _ORDER["Medications:"], True
    )
    half = np.arange(len(ORDERS)) % 2 == 0
    for offset, active in ((1.2, disease | (daily & half)), (4.2, daily & ~half)):
        visit, time, _ = rounds(v["admit"], v["disch"], 6, offset, sparse=True)
        keep = 0.8 if offset > 2 else 0.7
        row, code = cells(active[visit], keep, rng)
        orders.put(visit[row], time[row] // 60 * 60, code, True)
    leaving = inside[~v["died"][inside]]
    leaving = leaving[v["disch"][leaving] - v["admit"][leaving] > 4 * HOUR]
    orders.put(leaving, v["disch"][leaving] - 5400, _ORDER["ADT orders:Discharge"], True)


def _laboratory(chunk: Chunk, orders: Draws) -> None:
    v, rng = chunk.visits, chunk.rng
    labs = Draws.empty()
    code = {name: number for number, name in enumerate(PANEL_NAMES)}
    special = np.array([[code[name] for name in problem.panels] for problem in PROBLEMS])
    stays = np.flatnonzero(v["emergency"])
    begin = v["ed_in"]
    for minutes, panel, share in (
        (8, np.full(chunk.n, code["chemistry"]), 0.92),
        (10, np.full(chunk.n, code["blood_count"]), 0.9),
        (12, special[v["problem"], 0], 0.85),
        (14, np.full(chunk.n, code["severity"]), 0.6),
        (170, special[v["problem"], 1], 0.7),
    ):
        some = stays[rng.random(len(stays)) < share]
        labs.put(some, begin[some] + minutes * 60, panel[some], False)
    orders.put(stays, begin[stays] + 300, _ORDER["Lab:"], False)
    away = np.flatnonzero(rng.random(chunk.n) < np.where(v["emergency"], 0.2, 0.85))
    ahead = np.where(v["emergency"][away], rng.integers(3, 40, len(away)) * DAY, 5 * HOUR)
    labs.put(away, v["arrive"][away] - ahead, code["chemistry"], False)
    labs.put(away, v["arrive"][away] - ahead + 180, special[v["problem"][away], 0], False)
    cycle: tuple[str | int, ...] = (
        "chemistry",
        "blood_count",
        0,
        "severity",
        "chemistry",
        "minerals",
        1,
        "blood_count",
    )
    visit, time, number = rounds(v["admit"], v["disch"], 8, 3.0, sparse=True)
    for position, name in enumerate(cycle):
        at = number % len(cycle) == position
        panel = special[v["problem"][visit[at]], name] if isinstance(name, int) else code[name]
        labs.put(visit[at], jitter(time[at], 9, rng), panel, True)
    visit, time = visit[number % 2 == 0], time[number % 2 == 0]
    orders.put(visit, time - 900, _ORDER["Lab:"], True)
    for suffix in ("icu", "icu2"):
        visit, time, number = rounds(v[f"{suffix}_in"], v[f"{suffix}_out"], 8, 5.4, sparse=True)
        panel = np.where(number % 2 == 0, code["gas"], code["severity"])
        labs.put(visit, jitter(time, 9, rng), panel, True)
    _write_labs(chunk, labs)


def _write_labs(chunk: Chunk, labs: Draws) -> None:
    v, rng = chunk.visits, chunk.rng
    visit, time, panel, inside = labs.sorted()
    draw, test = np.nonzero(panel_members()[panel])
    keep = rng.random(len(draw)) < 0.96
    draw, test = draw[keep], test[keep]
    row = visit[draw]
    value = _values(chunk, row, test)
    low, high = (np.array([getattr(t, name) for t in TESTS]) for name in ("low", "high"))
    abnormal = (value < low[test]) | (value > high[test])
    text = pl.Series(value).round(3).cast(pl.String).str.strip_suffix(".0")
    hidden = rng.random(len(test)) < 0.015
    stored = time + rng.integers(24, 46, len(time)) * 60
    stored = np.where(rng.random(len(time)) < 0.01, NEVER, stored)
    count = len(test)
    chunk.add(
        "hosp/labevents",
        labevent_id=chunk.serials(count, 20_000),
        subject_id=v["subject_id"][row],
        hadm_id=np.where(inside[draw], v["hadm_id"][row], NEVER),
        specimen_id=chunk.serials(len(visit), 4000)[draw],
        itemid=np.array([t.itemid for t in TESTS])[test],
        order_provider_id=providers(chunk, len(visit)).gather(draw),
        charttime=time[draw],
        storetime=stored[draw],
        value=text.set(pl.Series(hidden), "___"),
        valuenum=pl.Series(value).set(pl.Series(hidden), None),
        valueuom=pick([t.unit for t in TESTS], test),
        ref_range_lower=low[test],
        ref_range_upper=high[test],
        flag=pick(["abnormal"], np.where(abnormal & ~hidden, 0, -1)),
        priority=pick(["ROUTINE", "STAT"], (rng.random(len(visit)) < 0.5).astype(int)[draw]),
        comments=pick(["___"], np.where(hidden, 0, -1)),
    )


def _values(chunk: Chunk, visit: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return test values: mean plus shifts by patient, problem, conditions, latents, and noise."""
    v, rng = chunk.visits, chunk.rng
    by_problem = np.stack([shift_vector(problem.labs) for problem in PROBLEMS])
    by_condition = np.stack([shift_vector(condition.labs) for condition in CONDITIONS])
    shift = by_problem[v["problem"]] + chunk.patient("conditions") @ by_condition
    for latent, labs in LATENT_LABS.items():
        shift += np.clip(v[f"z_{latent}"], 0, 1.2)[:, None] * shift_vector(labs)
    people = len(chunk.course.patients["subject_id"])
    shift += 0.45 * rng.standard_normal((people, len(TESTS)))[v["patient"]]
    mean, spread, decimals = (
        np.array([getattr(t, name) for t in TESTS]) for name in ("mean", "spread", "decimals")
    )
    noise = 0.75 * rng.standard_normal(len(test))
    value = mean[test] + spread[test] * (shift[visit, test] + noise)
    floor = np.where(np.array([t.key == "base_excess" for t in TESTS]), -25.0, 0.0)
    scale = 10.0 ** decimals[test]
    return np.maximum(np.rint(value * scale) / scale, floor[test])


def _microbiology(chunk: Chunk) -> None:
    v, rng = chunk.visits, chunk.rng
    names = list(_MICRO)
    disease = problem_items(chunk, "cultures", names)
    micro = Draws.empty()
    stays = np.flatnonzero(v["emergency"] & (rng.random(chunk.n) < 0.6))
    row, code = cells(disease[stays], 0.9, rng)
    micro.put(stays[row], (v["ed_in"] + 5400)[stays[row]], code, False)
    visit, time, _ = rounds(v["admit"], v["disch"], 30, 6.5, sparse=True)
    row, code = cells(disease[visit], 0.7, rng)
    micro.put(visit[row], jitter(time[row], 0, rng), code, True)
    icu = np.flatnonzero(v["icu_in"] != NEVER)
    micro.put(icu, v["icu_in"][icu] + 2700, names.index("MRSA SCREEN"), True)
    visit, time, code, inside = micro.sorted()
    _write_cultures(chunk, visit, time, code, inside)


def _write_cultures(
    chunk: Chunk, visit: np.ndarray, time: np.ndarray, code: np.ndarray, inside: np.ndarray
) -> None:
    """Write one row per culture without growth, and one row per tested antibiotic with growth."""
    v, rng = chunk.visits, chunk.rng
    names = list(_MICRO)
    n = len(visit)
    septic = np.array([p.name in ("urosepsis", "pneumonia", "cellulitis") for p in PROBLEMS])
    growth = (rng.random(n) < np.where(septic[v["problem"][visit]], 0.3, 0.04)) & (code < 5)
    repeat = np.where(growth, 3, 1)
    row = np.repeat(np.arange(n), repeat)
    order = np.arange(len(row)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    organism = np.where(growth, v["problem"][visit] % len(_ORGANISMS), -1)[row]
    drug = np.where(growth[row], (order + v["problem"][visit][row]) % len(_ANTIBIOTICS), -1)
    resistant = rng.random(len(row)) < 0.25
    date_only = (rng.random(n) < 0.05)[row]
    stored = (time + rng.integers(20, 70, n) * HOUR)[row]
    result = np.where(growth[row], -1, 0)
    spec = np.array([_MICRO[name][2] for name in names])
    test = np.array([_MICRO[name][0] for name in names])
    none = np.full(len(row), NEVER)
    chunk.add(
        "hosp/microbiologyevents",
        microevent_id=chunk.serials(len(row), 400),
        subject_id=v["subject_id"][visit[row]],
        hadm_id=np.where(inside[row], v["hadm_id"][visit[row]], NEVER),
        micro_specimen_id=chunk.serials(n, 400)[row],
        order_provider_id=providers(chunk, len(row)),
        chartdate=time[row] // DAY * DAY,
        charttime=np.where(date_only, NEVER, time[row]),
        spec_itemid=spec[code[row]],
        spec_type_desc=pick([_MICRO[name][1] for name in names], code[row]),
        test_seq=1,
        storedate=stored // DAY * DAY,
        storetime=np.where(date_only, NEVER, stored),
        test_itemid=test[code[row]],
        test_name=pick(names, code[row]),
        org_itemid=np.where(organism >= 0, np.array([o[1] for o in _ORGANISMS])[organism], none),
        org_name=pick([o[0] for o in _ORGANISMS], organism),
        isolate_num=np.where(organism >= 0, 1, none),
        ab_itemid=np.where(drug >= 0, np.array([a[1] for a in _ANTIBIOTICS])[drug], none),
        ab_name=pick([a[0] for a in _ANTIBIOTICS], drug),
        dilution_text=pick(["<=1", ">=8"], np.where(drug >= 0, resistant, -1)),
        dilution_comparison=pick(["<=", "=>"], np.where(drug >= 0, resistant, -1)),
        dilution_value=pl.Series(np.where(resistant, 8.0, 1.0)).set(pl.Series(drug < 0), None),
        interpretation=pick(["S", "R"], np.where(drug >= 0, resistant, -1)),
        comments=pick(["NO GROWTH.  "], result),
    )


def _write_orders(chunk: Chunk, orders: Draws) -> None:
    v, rng = chunk.visits, chunk.rng
    visit, time, code, inside = orders.sorted()
    keep = (time >= v["arrive"][visit]) & (~inside | (time < v["disch"][visit]))
    visit, time, code, inside = visit[keep], time[keep], code[keep], inside[keep]
    subject = v["subject_id"][visit]
    first = np.searchsorted(subject, subject, side="left")
    sequence = np.arange(len(visit)) - first + 1
    kinds = [name.split(":", 1)[0] for name in ORDERS]
    subtypes = [name.split(":", 1)[1] or None for name in ORDERS]
    ids = pl.Series(subject).cast(pl.String) + "-" + pl.Series(sequence).cast(pl.String)
    chunk.add(
        "hosp/poe",
        poe_id=ids,
        poe_seq=sequence,
        subject_id=subject,
        hadm_id=np.where(inside, v["hadm_id"][visit], NEVER),
        ordertime=time,
        order_type=pick(kinds, code),
        order_subtype=pl.Series(subtypes, dtype=pl.String).gather(code),
        transaction_type=pick(["New", "Change"], (rng.random(len(visit)) < 0.12).astype(int)),
        order_provider_id=providers(chunk, len(visit)),
        order_status="Inactive",
    )
    detail = np.flatnonzero(code == _ORDER["ADT orders:Admit"])
    at_first = time[detail] < v["admit"][visit[detail]] + CONVERSION
    observed = np.isin(chunk.draws["type"][visit[detail]], (CONVERTED, OBSERVED)) & at_first
    chunk.add(
        "hosp/poe_detail",
        poe_id=ids.gather(detail),
        poe_seq=sequence[detail],
        subject_id=subject[detail],
        field_name="Admit category",
        field_value=pick(["Admit to inpatient", "Place in observation"], observed.astype(int)),
    )
