"""Screening against chains that are right and chains that are wrong in one way each."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from ehrr1.reasoning.screening import RULES, screen
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.samples import Sample
from tests.conftest import shared_data
from tests.test_graph import sample

FOLDER = Path(__file__).parent / "screening"
HEADINGS = {table.heading: name for name, table in TABLES.items()}
DEMO_ROW = 22
"""An `emar` question of the open MIMIC-IV demo, as the release wrote it."""

TARGETS = {
    "synthetic": ("Insulin", "Furosemide", "Metoprolol Tartrate", "Aspirin"),
    "demo": ("Heparin", "Acetaminophen", "CefazoLIN", "Calcium Carbonate"),
    "synthetic yes/no": ("yes",),
}


class Block(NamedTuple):
    """A chain of a file, the record that it is about, and what the file says of it."""

    record: str
    told: tuple[str, ...]
    chain: str


def blocks(name: str) -> list[Block]:
    parts = re.split(r"^=== (.+)\n", (FOLDER / name).read_text(encoding="utf-8"), flags=re.M)[1:]
    heads = [tuple(head.split(" | ")) for head in parts[::2]]
    return [
        Block(head[0], head[1:], chain.strip())
        for head, chain in zip(heads, parts[1::2], strict=True)
    ]


def events(record: str) -> list[Event]:
    """Return the events of a record in Markdown, with their rows; nan and None are missing."""
    parts = re.split(r"\n\n+(?=## )", record.strip())
    return [one for part in parts if (one := event(part)) is not None]


def event(text: str) -> Event | None:
    head = re.match(r"## (.+) \[(.+)\]\n?", text)
    assert head is not None, text
    table = HEADINGS[head[1]]
    keys, body = tuple(TABLES[table].keys), text[head.end() :]
    if body.startswith("|"):
        lines = [line for line in body.splitlines()[2:] if line.startswith("|")]
        rows = [tuple(cell.strip() for cell in line[1:-1].split(" | ")) for line in lines]
    else:
        cells = re.split(rf"^- (?:{'|'.join(keys)}):", body.strip(), flags=re.M)[1:]
        rows = [tuple(cell.strip() for cell in cells)] if keys else []
    padded = [row + ("",) * (len(keys) - len(row)) for row in rows]
    shown = tuple(tuple("" if cell in ("nan", "None") else cell for cell in row) for row in padded)
    time = None if head[2] == "None" else datetime.fromisoformat(head[2])
    items = tuple(row[0] if TABLES[table].item else "" for row in shown)
    return Event(table, time, time, shown, items) if rows else None


@cache
def record(name: str) -> tuple[Sample, Sequence[Event]]:
    if name == "demo":
        lines = (shared_data("release-folder") / "ehr_bench.jsonl").read_text().splitlines()
        text = json.loads(lines[DEMO_ROW])["input"]
    else:
        text = (FOLDER / "record.md").read_text(encoding="utf-8")
    context = events(text)
    task = "ED_Hospitalization" if name.endswith("yes/no") else "emar"
    latest = max(one.time for one in context if one.time is not None)
    question = sample(1, task, *TARGETS[name])
    return replace(question, prediction_time=latest + timedelta(minutes=5)), context


def rejected_by(block: Block) -> tuple[str, ...]:
    return screen(block.chain, *record(block.record), coverage=0.5).rejected_by


BAD, GOOD = blocks("bad_chains.md"), blocks("good_chains.md")


@pytest.mark.parametrize("name", TARGETS)
def test_bad_chains_are_refused_by_the_rules_that_are_named_and_good_ones_kept(name: str) -> None:
    record(name)
    bad = {block.chain: rejected_by(block) for block in BAD if block.record == name}
    told = {
        block.chain: tuple(rule for rule in RULES if rule in block.told[0].split(", "))
        for block in BAD
        if block.record == name
    }
    assert bad == told
    good = {block.chain: rejected_by(block) for block in GOOD if block.record == name}
    assert good == dict.fromkeys(good, ())


def test_there_are_enough_chains_and_every_rule_has_one() -> None:
    assert len(BAD) >= 60 and len(GOOD) >= 60
    told = {rule for block in BAD for rule in block.told[0].split(", ")}
    assert told == set(RULES)
    assert {block.record for block in BAD} == {block.record for block in GOOD} == set(TARGETS)
