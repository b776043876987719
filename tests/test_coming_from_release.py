"""The table "Coming from the EHR-R1 release" of docs/release.md: each row as it stands there, at
tiny size."""

import re
import shlex
from pathlib import Path

import pytest

from ehrr1.config.names import TRAINING
from ehrr1.config.schema import check
from tests.conftest import ROOT, CommandLine
from tests.settings import composed
from tests.small_commands import SMALL, WITHOUT_GPUS, filled, small_places

TITLE = "## Coming from the EHR-R1 release\n"
CODE = re.compile(r"`([^`]+)`")
SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)*=.")

STAGE_OF = {"chains": "chains", "rl": "rl", "data": "prepare"}
"""The stage of a setting that stands without one; of all others it is `eval`."""

IN_SMALL: dict[str, str | None] = {"experiment=paper_8b": "experiment=smoke", **WITHOUT_GPUS}
"""What runs here in place of a setting: None leaves it out."""

NEEDED = ["chains.model=NAME"]
"""Beside the name of a writer of chains."""


RUN: set[tuple[str, ...]] = set()
"""The commands that have been run."""


def rows() -> list[tuple[str, str]]:
    """The table's cells, the release's and ours."""
    text = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    text = text.split(TITLE)[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert all(len(pair) == 2 for pair in cells)
    return [(theirs, ours) for theirs, ours in cells]


def commands(ours: str) -> list[list[str]]:
    """The settings of each command of a cell, word by word; a stage is added where none stands."""
    found = []
    for code in CODE.findall(ours):
        words = [word for word in shlex.split(code) if SETTING.match(word)]
        if not words and not code.startswith("stage="):
            continue
        if not any(word.startswith("stage=") for word in words):
            section = re.split(r"[.=]", words[0])[0]
            words.insert(0, f"stage={STAGE_OF.get(section, 'eval')}")
        found.append(words)
    return found


ALL = [pytest.param(words, id=" ".join(words)) for _, ours in rows() for words in commands(ours)]


PLACES = {"URL": "http://127.0.0.1:8000/v1", "MODEL": "a/model"}


def test_the_table_is_read() -> None:
    assert len(rows()) == 25 and len(ALL) >= 30
    theirs = " ".join(cell for cell, _ in rows())
    assert {words[0] for _, ours in rows() for words in commands(ours)} >= {
        f"stage={stage}"
        for stage in ("prepare", "graph", "chains", "adapt", "reason", "rl", "eval")
    }
    for flag in (
        *("--group patient", "--num_worker", "--gpu_memory_utilization", "--oracle_reasoning"),
        *("--top_k", "--force_task_num", "--balance_force", "--balance_sample"),
    ):
        assert flag in theirs, flag


@pytest.mark.parametrize("words", ALL)
def test_each_command_is_one_that_exists(words: list[str]) -> None:
    """As it stands in the table, with the released sizes: settings, values, and what goes
    together."""
    needed = [] if any(word.startswith("chains.model=") for word in words) else NEEDED
    needed = needed if "stage=chains" in words else []
    cfg = composed(*(filled(word, PLACES) for word in words), *needed)
    check(cfg)
    assert f"stage={cfg.stage}" in words


@pytest.fixture(scope="module")
def places(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the files and folders that the table's names stand for."""
    return small_places(smoke, tmp_path_factory.mktemp("places"))


@pytest.mark.slow
@pytest.mark.parametrize("words", ALL)
def test_each_command_runs(
    words: list[str],
    places: dict[str, str],
    released: Path,
    smoke: Path,
    tmp_path: Path,
    command_line: CommandLine,
) -> None:
    """The same command line in a process of its own, on a few patients with a tiny model."""
    own = [filled(word, places) for word in words]
    stage = next(word for word in own if word.startswith("stage=")).removeprefix("stage=")
    records = next((word for word in own if word in places), None)  # of a benchmark
    if records or "data=release" in own:
        folder = places[records] if records else str(released)
        own = [f"data.root={folder}" if word.startswith("data.root=") else word for word in own]
    elif stage in TRAINING:  # the smoke test's records are its own
        own = [word for word in own if not word.startswith("data.root=")]
    kept = [small for word in own if (small := IN_SMALL.get(word, word)) is not None]
    more = [] if "experiment=smoke" in kept else ["experiment=smoke"]
    more += SMALL.get(stage, [])
    if stage == "eval" and not any(word.startswith("model=") for word in kept):
        more.append(f"model={places['MODEL']}")
    if any(word.startswith("eval.chains=") for word in kept):
        more.append("eval.split=validation")
    if stage == "chains" and not any(word.startswith("chains.model=") for word in kept):
        more.append(f"chains.model={places['MODEL']}")
    asked = tuple(sorted({*kept, *more}))
    if asked in RUN:  # rows that differ in what needs GPUs are one here
        return
    RUN.add(asked)
    place = [f"output_root={smoke.parent}", f"variant={tmp_path.name}"]
    done = command_line(*kept, *more, *place, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr[-3000:]
