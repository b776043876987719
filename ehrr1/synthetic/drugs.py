"""Hospital drugs: prescriptions, pharmacy orders, and administrations (emar)."""

import numpy as np
import polars as pl

from ehrr1.synthetic.course import DAY, HOUR, NEVER
from ehrr1.synthetic.ed import DRUG_NAMES
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
from ehrr1.synthetic.signs import slots_of
from ehrr1.synthetic.vocabulary import DRUGS

_INDEX = {name: code for code, name in enumerate(DRUG_NAMES)}
_SIGNS = [(slot.high, slot.low) for slot in slots_of("drugs")]
_EVENTS = ["Administered", "Not Given", "Delayed Administered", "Hold Dose"]
_SHARES = [0.9, 0.05, 0.03, 0.02]


def _phase() -> np.ndarray:
    """Return the round (0 or 1) of each drug in a cycle.

    The pairs of signs alternate between the two rounds.
    """
    phase = np.zeros(len(DRUG_NAMES), int)
    for number, (high, low) in enumerate(_SIGNS):
        phase[[_INDEX[high], _INDEX[low]]] = number % 2
    return phase


def write_drugs(chunk: Chunk) -> None:
    """Write prescriptions, pharmacy, emar and emar_detail of every admission."""
    disease = problem_items(chunk, "drugs", DRUG_NAMES)
    signs = slot_items(chunk, "drugs", DRUG_NAMES)
    home = chunk.draws["home"] & (chunk.rng.random((chunk.n, len(DRUG_NAMES))) < 0.75)
    number = _prescriptions(chunk, disease, signs, home)
    _administrations(chunk, disease, signs, home, number)


def _prescriptions(
    chunk: Chunk, disease: np.ndarray, signs: np.ndarray, home: np.ndarray
) -> np.ndarray:
    """Write orders at admission in four batches, partly renewed each day.

    Returns the last pharmacy id of each visit and drug, shape (visits, drugs), 0 if there is none.
    """
    v, rng = chunk.visits, chunk.rng
    first = _phase() == 0
    stays = np.flatnonzero(v["admitted"])
    parts = []
    for minutes, active in ((55, disease), (75, home), (95, signs & first), (110, signs & ~first)):
        row, drug = cells(active[stays], 1.0, rng)
        parts.append((stays[row], (v["admit"] + minutes * 60)[stays[row]], drug))
    renewals = (
        (24, 9.5, disease | home, 0.3),
        (24, 13.5, signs & first, 0.5),
        (24, 17.5, signs & ~first, 0.5),
    )
    for every, offset, active, keep in renewals:
        visit, time, _ = rounds(v["admit"], v["disch"], every, offset, sparse=True)
        row, drug = cells(active[visit], keep, rng)
        parts.append((visit[row], time[row], drug))
    visit, time, drug = (np.concatenate([part[k] for part in parts]) for k in range(3))
    inside = time < v["disch"][visit] - HOUR
    visit, time, drug = visit[inside], time[inside], drug[inside]
    order = np.lexsort((drug, time, visit))
    visit, time, drug = visit[order], time[order] // 60 * 60, drug[order]
    ids = 10_000_000 + chunk.serials(len(visit), 3000)
    new = np.r_[True, (visit[1:] != visit[:-1]) | (time[1:] != time[:-1])]
    chunk.draws["batch_visit"], chunk.draws["batch_time"] = visit[new], time[new]
    _write_prescriptions(chunk, visit, time, drug, ids)
    last = np.zeros((chunk.n, len(DRUG_NAMES)), np.int64)
    last[visit, drug] = ids
    return last


def _write_prescriptions(
    chunk: Chunk, visit: np.ndarray, time: np.ndarray, drug: np.ndarray, ids: np.ndarray
) -> None:
    v, rng = chunk.visits, chunk.rng
    stop = np.minimum(time + 2 * DAY, v["disch"][visit])
    # Some orders are backdated to a full hour or to midnight.
    back_dated = np.minimum(time + (1 + ids % 5) * HOUR, v["disch"][visit] - 60)
    entry = np.where(ids % 19 == 0, back_dated, time - 600)
    subject, hadm = v["subject_id"][visit], v["hadm_id"][visit]
    doctor = providers(chunk, len(visit))
    fields = {
        name: pick([getattr(d, name) for d in DRUGS], drug)
        for name in ("ndc", "strength", "dose", "unit", "route")
    }
    missing = pl.Series(rng.random(len(visit)) < 0.03)
    chunk.add(
        "hosp/prescriptions",
        subject_id=subject,
        hadm_id=hadm,
        pharmacy_id=ids,
        order_provider_id=doctor,
        starttime=time,
        stoptime=stop,
        drug_type="MAIN",
        drug=pick(DRUG_NAMES, drug),
        formulary_drug_cd=pick(
            [name[:4].upper() + str(k) for k, name in enumerate(DRUG_NAMES)], drug
        ),
        gsn=pick([f"{4000 + 37 * code:06d}" for code in range(len(DRUGS))], drug),
        ndc=fields["ndc"].set(missing, "0"),
        prod_strength=fields["strength"],
        dose_val_rx=fields["dose"],
        dose_unit_rx=fields["unit"],
        form_val_disp="1",
        form_unit_disp="TAB",
        doses_per_24_hrs=4,
        route=fields["route"],
    )
    chunk.add(
        "hosp/pharmacy",
        subject_id=subject,
        hadm_id=hadm,
        pharmacy_id=ids,
        starttime=time,
        stoptime=stop,
        medication=pick(DRUG_NAMES, drug),
        proc_type="Unit Dose",
        status="Discontinued",
        entertime=entry,
        verifiedtime=time - 300,
        route=fields["route"],
        frequency="Q6H",
        dispensation="Omnicell",
        doses_per_24_hrs=4,
    )


def _administrations(
    chunk: Chunk,
    disease: np.ndarray,
    signs: np.ndarray,
    home: np.ndarray,
    pharmacy: np.ndarray,
) -> None:
    v, rng = chunk.visits, chunk.rng
    first = _phase() == 0
    parts = []
    for offset, active in ((2.6, disease | (signs & first)), (5.6, home | (signs & ~first))):
        visit, time, _ = rounds(v["admit"], v["disch"], 6, offset, sparse=True)
        time = jitter(time, 12, rng)
        row, drug = cells(active[visit], 0.78, rng)
        parts.append((visit[row], time[row], drug))
    visit, time, drug = (np.concatenate([part[k] for part in parts]) for k in range(3))
    order = np.lexsort((drug, time, visit))
    visit, time, drug = visit[order], time[order], drug[order]
    inside = time < v["disch"][visit]
    visit, time, drug = visit[inside], time[inside], drug[inside]
    subject = v["subject_id"][visit]
    sequence = np.arange(len(visit)) - np.searchsorted(subject, subject, side="left") + 1
    ids = pl.Series(subject).cast(pl.String) + "-" + pl.Series(sequence).cast(pl.String)
    link = pharmacy[visit, drug]
    link = np.where(link == 0, NEVER, link)
    loose = rng.random(len(visit)) < 0.02
    event = rng.choice(len(_EVENTS), len(visit), p=_SHARES)
    chunk.add(
        "hosp/emar",
        subject_id=subject,
        hadm_id=np.where(loose, NEVER, v["hadm_id"][visit]),
        emar_id=ids,
        emar_seq=sequence,
        pharmacy_id=link,
        charttime=time,
        medication=pick(DRUG_NAMES, drug),
        event_txt=pick(_EVENTS, event),
        scheduletime=time // 1800 * 1800,
        storetime=time + time // 60 % 4 * 60,
    )
    some = np.flatnonzero(rng.random(len(visit)) < 0.1)
    chunk.add(
        "hosp/emar_detail",
        subject_id=subject[some],
        emar_id=ids.gather(some),
        emar_seq=sequence[some],
        parent_field_ordinal="1.1",
        pharmacy_id=link[some],
        barcode_type="if",
        dose_given=pick([d.dose for d in DRUGS], drug[some]),
        dose_given_unit=pick([d.unit for d in DRUGS], drug[some]),
        product_description=pick(DRUG_NAMES, drug[some]),
    )
