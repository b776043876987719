"""The page of one record (`infer.page`): what it shows, and what a browser makes of it."""

import re
import stat
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ehrr1.inference.pages import RecordPage, record_page
from ehrr1.inference.pages.curves import curves, measured
from ehrr1.inference.query import Answer
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.samples import Prepared
from tests.conftest import CommandLine
from tests.everybody import check_for_everybody

Driver = Any

TASK = "Readmission_30day"
EVIL = "<script>document.title = 'taken'</script>{{style}}"


def labs(hour: int, *rows: tuple[str, str]) -> Event:
    """Return laboratory results: names and values, in mmol/L."""
    keys = tuple(TABLES["labevents"].keys)
    cells = [dict.fromkeys(keys, "") | {"Valuenum": v, "Valueuom": "mmol/L"} for _, v in rows]
    for one, (name, _) in zip(cells, rows, strict=True):
        one[keys[0]] = name
    time = datetime(2150, 3, 4, hour)
    values = tuple(tuple(one[key] for key in keys) for one in cells)
    return Event("labevents", time, time, values, tuple(name for name, _ in rows))


RECORD = [
    labs(2, ("Lactate", "4.0"), ("Sodium", "139")),
    labs(5, ("Lactate", "3.0"), (EVIL, "1")),
    labs(8, ("Lactate", "1.0"), ("Sodium", "cancelled")),
]
CHAIN = (
    "## Extraction\n"
    "Lactate | Labotary Test Events | 08:00\nTroponin | Labotary Test Events | 08:00\n"
    "## Reasoning\nLactate | falling | -> | Sodium\n## Final Results\nSodium | Lactate | Chloride"
)
SHOWN = RecordPage(
    asked=f"Which tests are next? {EVIL}",
    time=datetime(2150, 3, 4, 9),
    record=RECORD,
    answer=Answer(("Sodium", "Chloride"), chain=CHAIN, cut_events=1),
    rates={"Sodium": 0.25},
    model="outputs/demo/rl/hf",
    is_open=True,
)


def test_only_what_was_measured_twice_is_a_curve() -> None:
    assert measured(RECORD) == {
        ("labevents", "Lactate", "mmol/L"): [
            (datetime(2150, 3, 4, hour), value) for hour, value in ((2, 4.0), (5, 3.0), (8, 1.0))
        ]
    }
    (figure,) = curves(RECORD)
    assert "Lactate <b>1 mmol/L</b>" in figure and "1 to 4, 3 values" in figure
    # from left to right with time; 4 is at the top margin, 3 a third of the way down, 1 at the foot
    assert re.search(r'd="M4\.0 4\.0L75\.0 13\.3L146\.0 32\.0"', figure)
    flat = [labs(1, ("pH", "7.4")), labs(2, ("pH", "7.4"))]
    assert 'd="M4.0 18.0L146.0 18.0"' in next(curves(flat))


def test_a_page_says_what_the_chain_rests_on_and_what_it_made_up() -> None:
    text = record_page(SHOWN)
    assert "Research only. Not for clinical use" in text and "not open" not in text
    assert "3 events: what was known at 2150-03-04 09:00, of which the oldest 1 did not" in text
    first, *others = text.split("<details ")[1:]
    assert "did not fit the model" in first and "did not fit the model" not in "".join(others)
    assert '<a href="#event-2">Lactate | Labotary Test Events | 08:00</a>' in text
    assert "Troponin | Labotary Test Events | 08:00 <small>not in the record</small>" in text
    assert "<p>Sodium | Lactate | Chloride</p>" in text  # results, no citation
    assert "<td>Sodium</td><td>25.0%</td>" in text and "<td>Chloride</td><td>0.0%</td>" in text
    assert "<th scope=col>answer</th></tr></thead>" in record_page(replace(SHOWN, rates=None))
    assert "<script" not in text and "&lt;script&gt;" in text and "{{style}}" in text


def test_a_probability_stands_beside_its_base_rate() -> None:
    yes = replace(SHOWN, answer=Answer(("yes",), probability=0.625), rates={"yes": 0.125})
    text = record_page(yes)
    assert "probability of yes</span><b>62.5%</b>" in text and "<b>12.5%</b>" in text
    assert "answered at once" in text
    assert "training samples" not in record_page(replace(yes, rates=None))
    assert "not open" in record_page(replace(yes, is_open=False))


def asked(prepared: Prepared, smoke: Path) -> list[str]:
    """Return the command that asks about a patient of the smoke run."""
    sample = prepared.samples("test", [TASK])[0]
    return [
        *("experiment=smoke", "stage=infer", f"output_root={smoke.parent}", f"infer.task={TASK}"),
        *(f"infer.subject={sample.subject_id}", f"infer.time={sample.prediction_time}"),
    ]


@pytest.fixture(scope="module")
def page(smoke: Path, tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine) -> Path:
    path = tmp_path_factory.mktemp("page") / "record.html"
    prepared = Prepared(smoke / "prepare")
    done = command_line(*asked(prepared, smoke), "answer=both", f"infer.page={path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1] == f"page: {path}"
    index = prepared.index("train", [TASK])
    rate = (prepared.answers(index)["item"] == "yes").sum() / len(index)
    told = float(done.stdout.splitlines()[-1].removeprefix("probability of yes: "))
    text = path.read_text(encoding="utf-8")
    assert f"<b>{rate:.1%}</b>" in text and re.search(rf"<b>{told:.1%}</b>", text)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_everybody_can_read_and_reach_it(
    browser: Driver, page: Path, width: int, scheme: str
) -> None:
    check_for_everybody(browser, page, width, scheme)


def test_the_page_of_closed_records_is_its_owners(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    record = tmp_path / "record.md"
    record.write_text("## Admission\nA text of which nothing is known.\n", encoding="utf-8")
    page = tmp_path / "page.html"
    done = command_line(
        *("experiment=smoke", "stage=infer", f"output_root={smoke.parent}", f"record={record}"),
        *("question=Will the patient be readmitted?", f"infer.page={page}"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "keep it where the data may be kept" in page.read_text(encoding="utf-8")


def test_wrong_pages_are_refused_before_a_model_is_loaded(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    command = asked(Prepared(smoke / "prepare"), smoke)
    done = command_line(*command, f"infer.page={tmp_path}/no/record.html")
    assert done.returncode == 2 and "infer.page=" in done.stderr and "no such folder" in done.stderr
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "record": "x", "question": "Is it?"}\n', encoding="utf-8")
    batch = (*command[:3], f"infer.path={rows}", f"infer.page={tmp_path}/record.html")
    done = command_line(*batch)
    assert done.returncode == 2 and f"infer.path={rows} with infer.page=" in done.stderr
    assert not (tmp_path / "record.html").exists()
