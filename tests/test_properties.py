"""Properties that hold for any records: generated patients, and the specification said once more.

`KNOWN` restates in the plainest way when a row of each table is known; nothing here asks the
product for it. Rows are found again in a context by the token in their text cells, `labevents#3`;
what becomes known later than its row carries `late:inputevents#3`.
"""

import gzip
import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrr1.records.events import Event
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample, preamble_length
from tests.small_tables import (
    DAY,
    ED,
    HADM,
    HOUR,
    ICU,
    MAPS,
    START,
    Rows,
    frame,
    place,
    row,
    write_csv,
)
from tests.test_records import prepared

SECOND = timedelta(seconds=1)

# Columns of the event, columns of the store time, the delay where there is none (docs/tasks.md).
KNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...], timedelta]] = {
    "transfers": (("intime",), (), 0 * HOUR),
    "services": (("transfertime",), (), 0 * HOUR),
    "medrecon": (("charttime",), (), 0 * HOUR),
    "pyxis": (("charttime",), (), 0 * HOUR),
    "vitalsign": (("charttime",), (), 0 * HOUR),
    "omr": (("chartdate",), ("chartdate",), 0 * HOUR),
    "poe": (("ordertime",), (), 0 * HOUR),
    "prescriptions": (("starttime",), (), 0 * HOUR),
    "emar": (("charttime",), ("storetime",), HOUR / 4),
    "labevents": (("charttime",), ("storetime",), 2 * HOUR),
    "microbiologyevents": (("charttime", "chartdate"), ("storetime", "storedate"), 3 * DAY),
    "chartevents": (("charttime",), ("storetime",), HOUR),
    "datetimeevents": (("charttime",), ("storetime",), HOUR),
    "inputevents": (("starttime",), ("storetime",), HOUR),
    "ingredientevents": (("starttime",), ("storetime",), HOUR),
    "procedureevents": (("starttime",), ("storetime",), DAY),
    "outputevents": (("charttime",), ("storetime",), HOUR),
    "radiology": (("charttime",), ("storetime",), 12 * HOUR),
    "discharge": (("charttime",), ("storetime",), 3 * DAY),
}
OF_ED = {"triage": ("intime", SECOND), "diagnosis": ("outtime", 0 * SECOND)}
AT_DISCHARGE = ("procedures_icd", "diagnoses_icd")
NEVER_SHOWN = ("pharmacy", "hcpcsevents", "drgcodes")
PARENTS = {"admissions": "admittime", "edstays": "intime", "icustays": "intime"}
EARLIER = (*AT_DISCHARGE, "discharge", "diagnosis")
"""Tables of which a context may leave out what is known: it shows the latest earlier stay's."""
INPATIENT = ("admissions", "services", "poe", "prescriptions", "icustays", "chartevents")
INPATIENT += ("datetimeevents", "inputevents", "ingredientevents", "procedureevents")
INPATIENT += ("outputevents",)
"""Tables that an emergency visit's context hides where they belong to the coming admission."""

# The order in which events of one time stand.
RANKED = """
    patients admissions transfers services edstays triage medrecon pyxis vitalsign diagnosis omr poe
    pharmacy prescriptions emar labevents microbiologyevents procedures_icd hcpcsevents icustays
    chartevents datetimeevents inputevents ingredientevents procedureevents outputevents radiology
    discharge diagnoses_icd drgcodes
"""
RANK = {name: number for number, name in enumerate(RANKED.split())}

DRAWN = (*KNOWN, *OF_ED, *AT_DISCHARGE, *NEVER_SHOWN)
LATE = {"inputevents": "amountuom", "ingredientevents": "amountuom", "procedureevents": "valueuom"}

Tables = dict[str, Rows]
Drawn = tuple[str, int, int, int, int | None, int | None, int]

# --- patients ---------------------------------------------------------------------------------

HALVES = st.integers(-2, 60)


def drawn_rows(hours: st.SearchStrategy[int]) -> st.SearchStrategy[Drawn]:
    """Table, patient, stay, hours since the ED visit, hours until stored, until over, a kind."""
    later = st.none() | HALVES
    return st.tuples(
        st.sampled_from(DRAWN),
        *(st.integers(0, 1), st.integers(0, 1)),
        hours,
        *(later, later, st.integers(0, 2)),
    )


def skeleton(days: Sequence[int]) -> Tables:
    """Two patients with two hospital stays each, from the ED and with a day in the ICU."""
    tables: Tables = {name: [] for name in ("patients", *PARENTS)}
    for patient in (0, 1):
        tables["patients"].append(row("patients", patient, patient, START))
        for stay in (0, 1):
            for name, own in parents(patient, stay, days[2 * patient + stay]).items():
                tables[name].append(own)
    return tables


def parents(patient: int, stay: int, days: int) -> dict[str, dict[str, str]]:
    """An ED visit, the admission three hours later, an ICU stay one day into it."""
    come, number = START + 10 * stay * DAY, 10 * patient + stay
    admitted, died = come + 3 * HOUR, stay == 1 and days == 1
    discharged = admitted + days * DAY
    ids = {"hadm_id": HADM + number, "stay_id": ED + number}
    visit = {**ids, "outtime": come + 4 * HOUR, "disposition": "ADMITTED"}
    if days == 6:
        visit |= {"hadm_id": None, "disposition": "HOME"}
    hospital = {**ids, "dischtime": discharged, "hospital_expire_flag": int(died)}
    hospital |= {"discharge_location": f"never#{number}"}
    icu = {"hadm_id": HADM + number, "stay_id": ICU + number, "outtime": admitted + 3 * DAY}
    return {
        "edstays": row("edstays", number, patient, come, **visit),
        "admissions": row("admissions", number, patient, admitted, **hospital),
        "icustays": row("icustays", number, patient, admitted + DAY, **icu),
    }


def add(tables: Tables, number: int, drawn: Drawn) -> dict[str, str]:
    """Appends a drawn row to its table; returns it."""
    name, patient, stay, hours, stored, over, kind = drawn
    come, token = START + 10 * stay * DAY, f"{name}#{number}"
    time = come + hours * HOUR
    ids = 10 * patient + stay
    given: dict[str, object] = {
        "hadm_id": None if kind == 2 and name in ("labevents", "emar") else HADM + ids,
        "stay_id": (ED if RANK[name] < RANK["omr"] else ICU) + ids,
    }
    if name in KNOWN and "storetime" in KNOWN[name][1]:
        given["storetime"] = None if stored is None else time + stored * HOUR
    if name in LATE:
        given["endtime"] = None if over is None else time + over * HOUR
        given[LATE[name]] = f"late:{token}"
    if name == "microbiologyevents":
        given |= {"charttime": None if kind == 1 else time}
        given |= {"storedate": None if over is None else (time + over * HOUR).date()}
    if name in AT_DISCHARGE:
        given |= {"icd_code": f"X{number}"}
    if name == "datetimeevents":
        given |= {"itemid": 60_000 + number}
    if name in ("labevents", "chartevents", "prescriptions", "pyxis"):
        # Several rows of one event share their place, so that only content can order them.
        given |= dict.fromkeys(("labevent_id", "pharmacy_id", "med_rn"), kind)
    own = row(name, number, patient, time, **given)
    tables.setdefault(name, []).append(own := {c: own[c] for c in row(name, 0, 0, START)})
    return own


def world_of(drawn: Sequence[Drawn], days: Sequence[int]) -> Tables:
    tables = skeleton(days)
    for number, one in enumerate(drawn):
        add(tables, number, one)
    return tables


WORLDS = st.builds(
    world_of,
    st.lists(drawn_rows(st.integers(0, 96)), min_size=4, max_size=24),
    st.tuples(*[st.integers(1, 6)] * 4),
)
"""Rows spread over four days."""
CROWDED = st.builds(
    world_of,
    st.lists(drawn_rows(st.integers(5, 6)), min_size=8, max_size=24),
    st.tuples(*[st.integers(2, 5)] * 4),
)
"""Most rows share their time with others."""


def dictionaries(rows: int) -> Tables:
    """Names by which a row without text of its own is found again."""
    tables: Tables = {
        "hosp/d_labitems": [{"itemid": f"{50_000 + n}", "label": f"Lab {n}"} for n in range(3)],
        "icu/d_items": [{"itemid": f"{50_000 + n}", "label": f"Item {n}"} for n in range(3)],
    }
    numbers = range(rows)
    tables["icu/d_items"] += [
        {"itemid": f"{60_000 + n}", "label": f"datetimeevents#{n}"} for n in numbers
    ]
    for kind, name in (("diagnoses", "diagnoses_icd"), ("procedures", "procedures_icd")):
        tables[f"hosp/d_icd_{kind}"] = [
            {"icd_code": f"X{n}", "icd_version": "10", "long_title": f"{name}#{n}"} for n in numbers
        ]
    return tables


def whole(tables: Tables) -> Tables:
    return {place(name): rows for name, rows in tables.items()} | dictionaries(40)


def prepare(folder: Path, tables: Tables, name: str = "one") -> Prepared:
    root = write_csv(folder / name, whole(tables))
    return prepare_folder(folder, root, name)


def prepare_folder(folder: Path, root: Path, name: str) -> Prepared:
    write_csv(folder, {f"maps/{kind}": rows for kind, rows in MAPS.items()})
    maps: dict[str, Any] = {kind: str(folder / "maps" / f"{kind}.csv") for kind in MAPS}
    return prepared(root, folder / f"{name}.run", maps=maps)[0]


# --- what is known when, said once more -------------------------------------------------------


def time_of(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def known_at(name: str, own: Mapping[str, str], tables: Tables) -> datetime | None:
    """When a row becomes known; None: never shown."""
    if name in NEVER_SHOWN:
        return None
    if name in PARENTS:
        return time_of(own[PARENTS[name]])
    if name in OF_ED:
        column, plus = OF_ED[name]
        (visit,) = (stay for stay in tables["edstays"] if stay["stay_id"] == own["stay_id"])
        return datetime.fromisoformat(visit[column]) + plus
    if name in AT_DISCHARGE:
        (stay,) = (stay for stay in tables["admissions"] if stay["hadm_id"] == own["hadm_id"])
        coded = datetime.fromisoformat(stay["dischtime"])
        happened = time_of(own["chartdate"]) if name == "procedures_icd" else None
        return max(coded, happened) if happened else coded
    event_columns, store_columns, delay = KNOWN[name]
    event = happened_at(own, event_columns)
    for column in store_columns:
        if own[column]:
            stored = datetime.fromisoformat(own[column])
            return max(event, stored + DAY if column.endswith("date") else stored)
    return event + delay


def happened_at(own: Mapping[str, str], columns: Sequence[str]) -> datetime:
    return next(datetime.fromisoformat(own[column]) for column in columns if own[column])


def total_known_at(name: str, own: Mapping[str, str], known: datetime) -> datetime | None:
    """When the total of an interval is known; None: never, for it has no end."""
    return max(known, datetime.fromisoformat(own["endtime"])) if own["endtime"] else None


def times_known(tables: Tables) -> dict[str, datetime | None]:
    """Token -> when it is known."""
    times: dict[str, datetime | None] = {}
    for name, rows in tables.items():
        for own in rows if name != "patients" else ():
            token = token_of(name, own)
            known = times[token] = known_at(name, own, tables)
            if name in LATE and known:
                times[f"late:{token}"] = total_known_at(name, own, known)
    return times


def token_of(name: str, own: Mapping[str, str]) -> str:
    if name in AT_DISCHARGE:
        return f"{name}#{own['icd_code'][1:]}"
    if name == "datetimeevents":
        return f"{name}#{int(own['itemid']) - 60_000}"
    if name == "icustays":  # nothing of it is shown but its time
        return f"{name}#{int(own['stay_id']) - ICU}"
    cells = " ".join(value for value in own.values() if not value.startswith("late:"))
    return re.findall(rf"{name}#\d+", cells)[0]


TOKEN = re.compile(r"(?:late:)?\w+#\d+")


def shown(events: Sequence[Event]) -> set[str]:
    cells = " ".join(cell for event in events for own in event.rows for cell in own)
    return set(TOKEN.findall(cells))


def by_the_cut(time: datetime | None, sample: Sample) -> bool:
    """Risk: known by the prediction time; decision: known before it."""
    if time is None:
        return False
    if TASKS[sample.task].kind == "risk":
        return time <= sample.prediction_time
    return time < sample.prediction_time


# --- the properties ---------------------------------------------------------------------------

examples = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@examples
@given(WORLDS)
def test_a_context_holds_what_was_known_and_nothing_else(tables: Tables) -> None:
    times = times_known(tables)
    owner = {token_of(n, o): (n, o) for n, rows in tables.items() if n != "patients" for o in rows}
    with TemporaryDirectory() as folder:
        world = prepare(Path(folder), tables)
        for sample in world.samples():
            events = world.context(sample)
            found = shown(events)
            assert all(by_the_cut(times.get(token), sample) for token in found), sample
            assert all(e.time is None or by_the_cut(e.time, sample) for e in events), sample
            for token, (name, own) in owner.items():
                known = times[token]
                if name in (*EARLIER, "icustays") or own["subject_id"] != str(sample.subject_id):
                    continue
                if sample.ed_stay is not None and name in INPATIENT:
                    continue
                if known and known >= sample.window_start and by_the_cut(known, sample):
                    assert token in found, (sample, token)
                    over = times.get(f"late:{token}")
                    assert (f"late:{token}" in found) == by_the_cut(over, sample), (sample, token)


def split(folder: Path, tables: Tables, seed: int) -> Path:
    """The same rows in another order, in any of the formats or in several files."""
    chance, root = random.Random(seed), folder / "split"
    for name, rows in whole(tables).items():
        rows = chance.sample(rows, len(rows))
        columns = chance.sample(list(rows[0]), len(rows[0]))
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance.random() < 0.5:
            write_as(chance.choice(FORMATS), path, frame(rows, columns))
            continue
        path.mkdir()
        cuts = sorted(chance.choices(range(len(rows) + 1), k=2))
        for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
            write_as(chance.choice(FORMATS), path / f"part-{number}", frame(rows[a:b], columns))
    return root


FORMATS = (".csv", ".csv.gz", ".parquet")


def write_as(suffix: str, path: Path, rows: pl.DataFrame) -> None:
    path = path.with_name(path.name + suffix)
    if suffix == ".parquet":
        rows.write_parquet(path, row_group_size=3)
        return
    text = rows.write_csv().encode()
    path.write_bytes(gzip.compress(text) if suffix == ".csv.gz" else text)


def content(world: Prepared) -> list[tuple[Sample, list[Event]]]:
    return [(sample, world.context(sample)) for sample in world.samples()]


@examples
@given(WORLDS | CROWDED, st.integers(0, 2**32))
def test_the_order_of_rows_and_how_they_are_split_into_files_change_nothing(
    tables: Tables, seed: int
) -> None:
    with TemporaryDirectory() as folder:
        one = prepare(Path(folder), tables)
        other = prepare_folder(Path(folder), split(Path(folder), tables, seed), "other")
        assert content(one) == content(other)
        drop = ["target_row"]  # the place of a note in the store
        assert one.index().drop(drop).equals(other.index().drop(drop))


@examples
@given(CROWDED)
def test_equal_times_have_a_fixed_order(tables: Tables) -> None:
    """By time, then by table, then by stay, then by the hospital's own number of the row."""
    numbers = {
        token_of("labevents", own): int(own["labevent_id"]) for own in tables.get("labevents", [])
    }
    with TemporaryDirectory() as folder:
        world = prepare(Path(folder), tables)
        for sample in world.samples():
            events = world.context(sample)
            window = [
                (event.time, RANK[event.table]) for event in events[preamble_length(events) :]
            ]
            assert all(one <= next for one, next in pairwise(window)), sample
            for event in events:
                if event.table == "labevents":
                    order = [numbers[token] for own in event.rows for token in shown_in(own)]
                    assert order == sorted(order)


def shown_in(cells: Sequence[str]) -> list[str]:
    """The token of one row, once."""
    return sorted(set(TOKEN.findall(" ".join(cells))))


def before(world: Prepared, limit: datetime) -> dict[str, tuple[Sample, list[Event]]]:
    return {
        sample.sample_id: (sample, events)
        for sample, events in content(world)
        if sample.prediction_time < limit
    }


@examples
@given(WORLDS, drawn_rows(st.integers(0, 96)))
def test_a_row_that_is_known_later_changes_nothing_before(tables: Tables, drawn: Drawn) -> None:
    """No context, and no sample but those that ask for the new row's own event."""
    name = drawn[0]
    with TemporaryDirectory() as folder:
        one = prepare(Path(folder), tables)
        own = add(tables, 30, drawn)
        known = known_at(name, own, tables)
        event = happened_at(own, KNOWN[name][0]) if name in KNOWN else None
        old, new = (
            before(world, known or datetime.max)
            for world in (one, prepare(Path(folder), tables, "more"))
        )

    def asks_for_it(sample: Sample) -> bool:
        if sample.subject_id != int(own["subject_id"]) or sample.prediction_time != event:
            return False
        return sample.task == "next_event" or TASKS[sample.task].anchor_table == name

    if name in NEVER_SHOWN:
        event = None
    for worlds in (old, new):
        for key in [key for key, (sample, _) in worlds.items() if asks_for_it(sample)]:
            del worlds[key]
    assert old == new


def test_a_new_name_later_does_not_change_the_order_of_rows_that_only_content_orders(
    tmp_path: Path,
) -> None:
    """Names are numbered in the store; the order of equal rows must not depend on the numbers."""
    tables = skeleton((3, 3, 3, 3))
    same = {"hadm_id": HADM, "drug": "Saline", "pharmacy_id": 1}
    tables["prescriptions"] = [
        row("prescriptions", n, 0, START + 5 * HOUR, **same) for n in range(12)
    ]
    tables["labevents"] = [row("labevents", 1, 0, START + 9 * HOUR)]
    limit = START + 2 * DAY
    old = before(prepare(tmp_path, tables), limit)
    for number, name in enumerate(("A", "B", "C")):
        later = {"hadm_id": HADM, "curr_service": name}
        tables["services"] = [row("services", 1, 0, START + 3 * DAY, **later)]
        assert before(prepare(tmp_path, tables, f"more{number}"), limit) == old


LABELLED_BY_THE_FUTURE = ("Readmission_30day", "Readmission_60day", "ICU_Readmission")
"""Competing events, of which docs/tasks.md tells, leave samples of these out."""


@examples
@given(WORLDS, st.integers(0, 1), st.integers(1, 6))
def test_a_stay_that_begins_later_changes_no_context_before(
    tables: Tables, patient: int, days: int
) -> None:
    with TemporaryDirectory() as folder:
        one = prepare(Path(folder), tables)
        more = {name: [*rows] for name, rows in tables.items()}
        for name, own in parents(patient, 2, days).items():
            more[name].append(own)
        begun = START + 20 * DAY
        old, new = (before(w, begun) for w in (one, prepare(Path(folder), more, "more")))
    for key in old.keys() & new.keys():
        assert old[key][1] == new[key][1]
    for key in old.keys() ^ new.keys():
        assert key.split("/")[0] in LABELLED_BY_THE_FUTURE, key
