"""The page of one record (`infer.page`): what it shows, and what a browser makes of it."""

import re
import stat
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ehrr1.inference.pages import RecordPage, record_page
from ehrr1.inference.pages.curves import MOST, curves, measured
from ehrr1.inference.query import Answer
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.samples import Prepared
from tests.conftest import CommandLine
from tests.everybody import check_for_everybody

Driver = Any

TASK = "Readmission_30day"
EVIL = "<script>document.title = 'taken'</script>{{style}}"


def labs(hour: int, *rows: tuple[str, str], lower: str = "", upper: str = "") -> Event:
    """Return laboratory results: names and values in mmol/L, with a reference range for all."""
    keys = tuple(TABLES["labevents"].keys)
    normal = {"Valueuom": "mmol/L", "Ref_Range_Lower": lower, "Ref_Range_Upper": upper}
    cells = [dict.fromkeys(keys, "") | normal | {"Valuenum": value} for _, value in rows]
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
    (lactate,) = measured(RECORD)
    assert (lactate.table, lactate.item, lactate.unit) == ("labevents", "Lactate", "mmol/L")
    assert lactate.times == [datetime(2150, 3, 4, hour) for hour in (2, 5, 8)]
    assert lactate.values == [4.0, 3.0, 1.0]
    note, axis, figure = curves(RECORD, None)
    assert "1 of 1 values shown." in note and "2150-03-04 08:00</time>, the last value" in axis
    assert "Lactate <b>1 mmol/L</b>" in figure and "1 to 4, 3 values" in figure
    # from left to right with time; 4 is at the top margin, 3 a third of the way down, 1 at the foot
    assert re.search(r'd="M4\.0 4\.0L200\.0 13\.3L396\.0 32\.0"', figure)
    assert '<path class="dots" d="M4.0 4.0h0M200.0 13.3h0M396.0 32.0h0"/>' in figure
    assert "band" not in figure and "reference range" not in figure
    flat = [labs(1, ("pH", "7.4")), labs(2, ("pH", "7.4"))]
    assert 'd="M4.0 18.0L396.0 18.0"' in list(curves(flat, None))[-1]
    assert list(curves(RECORD[:1], None)) == []


def test_all_curves_share_the_time_up_to_the_question() -> None:
    record = [*RECORD, labs(10, ("Sodium", "141"))]
    _, axis, lactate, sodium = curves(record, datetime(2150, 3, 4, 10))
    assert "<time>2150-03-04 02:00</time>" in axis
    assert "<time>2150-03-04 10:00</time>, the question" in axis
    assert 'd="M4.0 4.0L151.0 13.3L298.0 32.0"' in lactate  # ends two of eight hours before
    assert 'd="M4.0 32.0L396.0 4.0"' in sodium


def test_a_band_is_the_reference_range_of_the_record() -> None:
    both = [labs(1, ("Lactate", "2"), lower="0", upper="1"), labs(2, ("Lactate", "4"))]
    figure = list(curves(both, None))[-1]
    assert '<rect class="band" width="400" y="25.0" height="7.0"/>' in figure  # 0 to 1 of 0 to 4
    assert 'd="M4.0 18.0L396.0 4.0"' in figure
    assert figure.count("reference range 0 to 1") == 2  # seen, and read aloud
    above = [labs(hour, ("HDL", str(hour)), lower="3") for hour in (1, 2)]
    figure = list(curves(above, None))[-1]
    assert '<rect class="band" width="400" y="0.0" height="4.0"/>' in figure
    assert "reference range from 3" in figure


def test_values_that_are_left_out_are_counted() -> None:
    often = [(f"Item {number:02}", "1") for number in range(MOST)]
    record = [labs(hour, *often) for hour in (1, 2, 3)]
    assert "24 of 24 values shown." in next(curves(record, None))
    record += [labs(hour, *((f"Rare {number}", "1") for number in range(9))) for hour in (4, 5)]
    note, _, *figures = curves(record, None)
    assert "24 of 33 values shown, those measured most often." in note
    assert len(figures) == 24 and not any("Rare" in figure for figure in figures)


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


@pytest.mark.parametrize("width", [420, 1400])
def test_dots_are_round_and_the_axis_stays_in_sight(
    browser: Driver, tmp_path: Path, width: int
) -> None:
    often = [(f"Item {number:02}", "1") for number in range(MOST)]
    path = tmp_path / "record.html"
    record = [labs(hour, *often) for hour in (1, 2, 3)]
    path.write_text(record_page(replace(SHOWN, record=record)), encoding="utf-8")
    size = {"width": width, "height": 500, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    spans = "return ['left', 'right'].map(end => new Set([...document.querySelectorAll('svg')]"
    spans += ".map(one => one.getBoundingClientRect()[end])).size)"
    assert browser.execute_script(spans) == [1, 1]
    dots = "return getComputedStyle(document.querySelector('.dots'))"
    assert browser.execute_script(f"{dots}.vectorEffect") == "non-scaling-stroke"
    assert browser.execute_script(f"{dots}.strokeLinecap") == "round"
    browser.execute_script("document.querySelectorAll('figure')[20].scrollIntoView()")
    axis = browser.execute_script(
        "return document.querySelector('.axis').getBoundingClientRect().toJSON()"
    )
    assert axis["top"] >= 0 and axis["bottom"] <= 60
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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
