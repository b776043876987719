"""Intensive care: charting, infusions and their ingredients, procedures, dates, outputs."""

import numpy as np
import polars as pl

from ehrr1.synthetic.course import DAY, HOUR
from ehrr1.synthetic.ed import vital_values
from ehrr1.synthetic.emit import (
    Chunk,
    Rounds,
    cells,
    jitter,
    pick,
    problem_items,
    rounds,
    slot_items,
    staff,
)
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.vocabulary import (
    CHARTED,
    DATED,
    INGREDIENTS,
    INPUTS,
    OUTPUTS,
    PROCEDURES,
    Item,
)

_CHART = {item.label: code for code, item in enumerate(CHARTED)}
_VITALS = {
    "Heart Rate": "heart_rate",
    "Respiratory Rate": "resp_rate",
    "O2 saturation pulseoxymetry": "o2",
    "Non Invasive Blood Pressure systolic": "sbp",
    "Non Invasive Blood Pressure diastolic": "dbp",
    "Temperature Fahrenheit": "temperature",
}
_ASSESSMENTS = {
    "NMED": "Pupil Response Right;Pupil Response Left;Strength L Arm;Strength R Arm;Facial Droop",
    "CMED": "Heart Rhythm;RUL Lung Sounds;LUL Lung Sounds;Urine Color",
    "MED": "O2 Delivery Device(s);O2 Flow;RUL Lung Sounds;LUL Lung Sounds;Bowel Sounds",
    "SURG": "Abdominal Assessment;Bowel Sounds;Diet Type;Pain Level;Skin Integrity",
    "ORTHO": "Pain Level;Skin Integrity;Strength L Arm;Strength R Arm",
}
_TEXTS = ["Intact", "Normal", "Clear", "Weak", "Diminished", "Regular", "Present", "Absent"]
_INGREDIENT_OF = {
    "Fluids/Intake": ("Water", "IVF ingredient"),
    "Medications": ("Water", "IVF ingredient"),
    "Antibiotics": ("Water", "IVF ingredient"),
    "Nutrition - Enteral": ("Calories", "Protein", "Enteral Nutrition Ingredient"),
    "Blood Products/Colloids": ("Blood Ingredient", "Protein"),
}


def _labels(items: tuple[Item, ...]) -> list[str]:
    return [item.label for item in items]


def write_intensive(chunk: Chunk) -> None:
    """Write all event tables of the `icu` module."""
    infusions = problem_items(chunk, "infusions", _labels(INPUTS))
    infusions |= slot_items(chunk, "infusions", _labels(INPUTS))
    infusions[:, 0] |= chunk.rng.random(chunk.n) < 0.5
    procedures = problem_items(chunk, "icu_procedures", _labels(PROCEDURES))
    signs = slot_items(chunk, "icu_procedures", _labels(PROCEDURES))
    dated = slot_items(chunk, "dated", _labels(DATED)) | _line_dates(signs)
    outputs = slot_items(chunk, "outputs", _labels(OUTPUTS)) | _drains(chunk)
    charted = slot_items(chunk, "charted", _labels(CHARTED))
    for suffix in ("icu", "icu2"):
        stay = _Stay(chunk, suffix)
        stay.vital_signs()
        stay.charts(charted)
        stay.assessments()
        stay.infusions(infusions)
        stay.procedures(procedures, signs)
        stay.dates(dated)
        stay.outputs(outputs)


def _line_dates(signs: np.ndarray) -> np.ndarray:
    """Return which insertion dates the lines among the procedures entail; bool, (visits, dates)."""
    dated = np.zeros((len(signs), len(DATED)), bool)
    names, lines = _labels(DATED), _labels(PROCEDURES)
    for line, date in (
        ("Arterial Line", "Arterial line Insertion Date"),
        ("PICC Line", "PICC Line Insertion Date"),
        ("20 Gauge", "18 Gauge Insertion Date"),
        ("22 Gauge", "Foley Cath Insertion Date"),
    ):
        dated[:, names.index(date)] = signs[:, lines.index(line)]
    return dated


def _drains(chunk: Chunk) -> np.ndarray:
    """Return which outputs a visit has: drains in surgical patients, mostly stool in others."""
    names = _labels(OUTPUTS)
    active = np.zeros((chunk.n, len(names)), bool)
    surgical = np.array([p.service in ("SURG", "ORTHO") for p in PROBLEMS])
    cut = surgical[chunk.visits["problem"]]
    for name, often in (("Jackson Pratt #1", cut), ("Chest Tube #1", cut), ("Stool", ~cut)):
        share = np.where(often, 0.6, 0.05)
        active[:, names.index(name)] = chunk.rng.random(chunk.n) < share
    return active


class _Stay:
    """Writer of one ICU stay per visit: `icu` is the first stay, `icu2` follows a relapse."""

    def __init__(self, chunk: Chunk, suffix: str):
        self.chunk = chunk
        self.suffix = suffix
        self.begin = chunk.visits[f"{suffix}_in"]
        self.end = chunk.visits[f"{suffix}_out"]

    def _rounds(self, every: float, offset: float) -> Rounds:
        visit, time, number = rounds(self.begin, self.end, every, offset, sparse=True)
        return visit, time // 60 * 60, number

    def _ids(self, visit: np.ndarray) -> dict[str, np.ndarray]:
        v = self.chunk.visits
        return {
            "subject_id": v["subject_id"][visit],
            "hadm_id": v["hadm_id"][visit],
            "stay_id": v[f"{self.suffix}_id"][visit],
            "caregiver_id": staff(self.chunk, len(visit)),
        }

    def _store(self, time: np.ndarray, minutes: int) -> np.ndarray:
        """Return store times up to `minutes` later, equal for rows of one time."""
        return time + (1 + time // 60 * 7 % minutes) * 60

    def vital_signs(self) -> None:
        """Write vital signs every four hours, as one event."""
        rng = self.chunk.rng
        visit, time, _ = self._rounds(4, 0.2)
        for label, sign in _VITALS.items():
            keep = rng.random(len(visit)) < 0.92
            who, when = visit[keep], time[keep]
            value = vital_values(self.chunk, who, sign)
            self._chart(who, when, np.full(len(who), _CHART[label]), value)

    def _chart(
        self, visit: np.ndarray, time: np.ndarray, code: np.ndarray, value: np.ndarray
    ) -> None:
        text = pl.Series(value).cast(pl.String).str.strip_suffix(".0")
        missing = np.isnan(value)
        if missing.any():
            words = pick(_TEXTS, (code + self.chunk.rng.integers(0, 3, len(code))) % len(_TEXTS))
            text = pl.select(pl.when(pl.Series(missing)).then(words).otherwise(text)).to_series()
        self.chunk.add(
            "icu/chartevents",
            **self._ids(visit),
            charttime=time,
            storetime=self._store(time, 25),
            itemid=np.array([item.itemid for item in CHARTED])[code],
            value=text,
            valuenum=pl.Series(value).fill_nan(None),
            valueuom=pick([item.unit for item in CHARTED], code),
            warning=(self.chunk.rng.random(len(visit)) < 0.03).astype(np.int64),
        )

    def charts(self, active: np.ndarray) -> None:
        """Write nursing assessments with the signs of the latents."""
        visit, time, _ = self._rounds(6, 1.3)
        row, code = cells(active[visit], 0.82, self.chunk.rng)
        self._chart(visit[row], time[row], code, np.full(len(row), np.nan))

    def assessments(self) -> None:
        """Write the assessments of the problem's service."""
        chunk = self.chunk
        active = np.zeros((chunk.n, len(CHARTED)), bool)
        services = np.array([problem.service for problem in PROBLEMS])[chunk.visits["problem"]]
        for service, labels in _ASSESSMENTS.items():
            columns = [_CHART[label] for label in labels.split(";")]
            active[np.ix_(services == service, columns)] = True
        visit, time, _ = self._rounds(8, 3.1)
        row, code = cells(active[visit], 0.85, chunk.rng)
        self._chart(visit[row], time[row], code, np.full(len(row), np.nan))

    def infusions(self, active: np.ndarray) -> None:
        """Write inputs every four hours and, at the same time, their ingredients."""
        chunk, rng = self.chunk, self.chunk.rng
        visit, time, _ = self._rounds(4, 1.7)
        row, code = cells(active[visit], 0.8, rng)
        who, when = visit[row], time[row]
        severity = np.clip(chunk.visits["z_D"][who], 0, 1.2)
        amount = np.round(rng.gamma(3, 20, len(row)) * (1 + 0.5 * severity), 2)
        weight = chunk.patient("weight")[who]
        orders = chunk.serials(len(row), 3000)
        bolus = code % 3 == 0
        finish = when + np.where(bolus, 60, rng.integers(30, 220, len(row)) * 60)
        rate = pl.Series(np.round(amount / 4, 3)).set(pl.Series(bolus), None)
        units = [item.unit for item in INPUTS]
        categories = [item.category for item in INPUTS]
        chunk.add(
            "icu/inputevents",
            **self._ids(who),
            starttime=when,
            endtime=finish,
            storetime=self._store(when, 20),
            itemid=np.array([item.itemid for item in INPUTS])[code],
            amount=amount,
            amountuom=pick(units, code),
            rate=rate,
            rateuom=pick(["mL/hour"], np.where(bolus, -1, 0)),
            orderid=orders,
            linkorderid=orders,
            ordercategoryname=pick(categories, code),
            ordercomponenttypedescription="Main order parameter",
            ordercategorydescription=pick(["Continuous Med", "Drug Push"], bolus.astype(int)),
            patientweight=weight,
            totalamount=amount,
            totalamountuom="ml",
            isopenbag=0,
            continueinnextdept=0,
            statusdescription="FinishedRunning",
            originalamount=amount,
            originalrate=np.round(amount / 4, 3),
        )
        self._ingredients(row, code, visit, time, orders, amount)

    def _ingredients(
        self,
        row: np.ndarray,
        code: np.ndarray,
        visit: np.ndarray,
        time: np.ndarray,
        orders: np.ndarray,
        amount: np.ndarray,
    ) -> None:
        names = _labels(INGREDIENTS)
        kinds = np.zeros((len(INPUTS), len(names)), bool)
        for number, item in enumerate(INPUTS):
            for name in _INGREDIENT_OF[item.category]:
                kinds[number, names.index(name)] = True
            if item.label == "PO Intake":
                kinds[number, names.index("Oral/Gastric Ingredient")] = True
            if item.label.startswith("Dextrose"):
                kinds[number, names.index("Carbohydrates")] = True
        present = np.zeros((len(visit), len(names)), bool)
        np.logical_or.at(present, row, kinds[code])
        total = np.bincount(row, amount, len(visit))
        at, ingredient = cells(present, 0.92, self.chunk.rng)
        quantity = np.round(total[at] * (0.3 + 0.1 * ingredient), 2)
        link = np.zeros(len(visit), np.int64)
        link[row] = orders
        when = time[at]
        self.chunk.add(
            "icu/ingredientevents",
            **self._ids(visit[at]),
            starttime=when,
            endtime=when + HOUR,
            storetime=self._store(when, 20),
            itemid=np.array([item.itemid for item in INGREDIENTS])[ingredient],
            amount=quantity,
            amountuom=pick([item.unit for item in INGREDIENTS], ingredient),
            rate=quantity,
            rateuom="mL/hour",
            orderid=link[at],
            linkorderid=link[at],
            statusdescription="FinishedRunning",
            originalamount=0,
            originalrate=quantity,
        )

    def procedures(self, disease: np.ndarray, signs: np.ndarray) -> None:
        """Write the problem's procedures every 12 hours, and those that are signs every 8."""
        rng = self.chunk.rng
        visit, time, _ = self._rounds(12, 0.5)
        parts = [(visit, time, disease, 0.6)]
        visit, time, _ = self._rounds(8, 6.3)
        parts.append((visit, time, signs, 0.85))
        for visit, time, active, keep in parts:
            row, code = cells(active[visit], keep, rng)
            who, when = visit[row], time[row]
            minutes = rng.integers(1, 400, len(row))
            orders = self.chunk.serials(len(row), 3000)
            category = pick([item.category for item in PROCEDURES], code)
            self.chunk.add(
                "icu/procedureevents",
                **self._ids(who),
                starttime=when,
                endtime=when + minutes * 60,
                storetime=self._store(when, 20),
                itemid=np.array([item.itemid for item in PROCEDURES])[code],
                value=minutes.astype(float),
                valueuom="min",
                location=pick(["Right Arm", "Left Arm"], np.where(code % 4 == 0, code % 2, -1)),
                locationcategory=pick(["Peripheral"], np.where(code % 4 == 0, 0, -1)),
                orderid=orders,
                linkorderid=orders,
                ordercategoryname=category,
                ordercategorydescription="Task",
                patientweight=self.chunk.patient("weight")[who],
                isopenbag=0,
                continueinnextdept=0,
                statusdescription="FinishedRunning",
                ORIGINALAMOUNT=minutes.astype(float),
                ORIGINALRATE=1,
            )

    def dates(self, active: np.ndarray) -> None:
        """Write dates of lines and dressings every eight hours."""
        rng = self.chunk.rng
        visit, time, _ = self._rounds(8, 7.2)
        row, code = cells(active[visit], 0.85, rng)
        who, when = visit[row], time[row]
        day = self.begin[who] // DAY * DAY - rng.integers(0, 3, len(row)) * DAY
        stamp = pl.from_epoch(pl.Series(day), "s").dt.to_string("%Y-%m-%d %H:%M:%S")
        self.chunk.add(
            "icu/datetimeevents",
            **self._ids(who),
            charttime=when,
            storetime=self._store(when, 15),
            itemid=np.array([item.itemid for item in DATED])[code],
            value=stamp,
            valueuom="Date",
            warning=0,
        )

    def outputs(self, active: np.ndarray) -> None:
        """Write outputs such as urine and drainage every four hours."""
        rng = self.chunk.rng
        visit, time, _ = self._rounds(4, 2.9)
        row, code = cells(active[visit], 0.85, rng)
        who, when = visit[row], jitter(time[row], 0, rng)
        ill = np.clip(self.chunk.visits["z_D"][who], 0, 1)
        volume = np.round(rng.gamma(3, 60, len(row)) * (1 - 0.5 * ill))
        self.chunk.add(
            "icu/outputevents",
            **self._ids(who),
            charttime=when,
            storetime=self._store(when, 20),
            itemid=np.array([item.itemid for item in OUTPUTS])[code],
            value=volume,
            valueuom="ml",
        )
