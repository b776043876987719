"""The files of examples/, by the commands of their README and of docs/howto.md."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from textwrap import indent
from typing import Any

import polars as pl
import pytest

from ehrr1.records.markdown import record_markdown
from ehrr1.stages.reason import kept_chains
from ehrr1.tasks.samples import Prepared
from tests.conftest import ROOT, CommandLine
from tests.test_training import lines_of

EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^((?:PYTHONPATH=\S+ )?python .*)$", README, re.MULTILINE)

Stage = Callable[[str], str]


@pytest.fixture(scope="module")
def place(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands are typed: examples/, and the run of `smoke`."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "examples").symlink_to(EXAMPLES)
    (folder / "outputs" / "smoke").mkdir(parents=True)
    for stage in smoke.iterdir():
        if stage.is_dir():
            (folder / "outputs" / "smoke" / stage.name).symlink_to(stage)
    return folder


@pytest.fixture(scope="module")
def stage(place: Path) -> Iterator[Stage]:
    """Run the command of the README that holds some words; return what it has told."""
    path = os.pathsep.join([str(ROOT), str(place / "examples")])
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forked_commands"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def run(words: str) -> str:
            command = words_of(words)
            assert command[:2] == ["python", "run.py"]
            wanted = {"script": "run.py", "arguments": command[2:], "folder": str(place)}
            wanted |= {"environment": {}, "log": None}
            print(json.dumps(wanted), file=asked, flush=True)
            code, _, said = json.loads(answers.readline())
            assert code == 0, said[-3000:]
            return str(said)

        yield run
        asked.close()


def words_of(words: str) -> list[str]:
    """The one command of the README that holds some words, without the variable before it."""
    [found] = [command for command in COMMANDS if words in command]
    return [word for word in found.split() if not word.startswith("PYTHONPATH=")]


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def script(place: Path, words: str) -> None:
    """Run a script of examples/ as the README does."""
    command = words_of(words)
    subprocess.run([sys.executable, *command[1:]], cwd=place, check=True, timeout=60)


@pytest.fixture(scope="module")
def labels(place: Path) -> pl.DataFrame:
    """The labels that the script writes from the tables of `smoke`."""
    script(place, "own_labels.py outputs")
    return pl.read_parquet(place / "labels.parquet")


def test_each_example_is_short_and_listed() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".yaml", ".ipynb")]
    assert len(files) == 12
    for path in files:
        name = str(path.relative_to(EXAMPLES))
        assert f"]({name})" in README, name
        if path.suffix != ".ipynb":
            assert len(path.read_text().splitlines()) <= 40, name


def test_a_task_from_labels_of_ones_own(place: Path, stage: Stage, labels: pl.DataFrame) -> None:
    assert labels["boolean_value"].n_unique() == 2
    stage("experiment=own_labels stage=prepare")
    folder = place / "outputs" / "own_labels"
    prepared = Prepared(folder / "prepare")
    samples = {(s.subject_id, s.prediction_time): s for s in prepared.samples()}
    counts = metrics_of(folder / "prepare")
    assert counts["samples/own"] == len(samples) == labels.height > 20
    assert counts["samples/labevents"] == 0
    for subject, moment, answer in labels.iter_rows():
        sample = samples[subject, moment]
        assert sample.target == (("yes",) if answer else ("no",)) and sample.task == "own"
        assert sample.instruction is not None
        assert sample.instruction.endswith("within the next three days? Answer yes or no.")
        known = [event.available_time for event in prepared.context(sample)]
        assert max(moment for moment in known if moment is not None) <= sample.prediction_time
    stage("experiment=own_labels stage=audit")
    judged = metrics_of(folder / "audit")
    assert judged["leaking_samples/own"] == 0 and judged["contexts_rechecked"] > 20
    stage("experiment=own_labels stage=adapt")
    trained = metrics_of(folder / "adapt")
    assert trained["samples"] > 0 and "eval/loss/own" in trained
    stage("experiment=own_labels stage=eval")
    answers = pl.read_parquet(folder / "eval" / "predictions.parquet")
    assert set(answers["task"]) == {"own"} and {"adapt", "boosting"} <= set(answers["model"])
    assert answers.filter(pl.col("model") == "adapt")["probability"].is_between(0, 1).all()


def test_records_of_ones_own_through_meds(place: Path, stage: Stage, labels: pl.DataFrame) -> None:
    tables = place / "outputs" / "smoke" / "prepare" / "hospital" / "hosp"
    results = pl.read_csv(tables / "labevents.csv.gz", infer_schema=False)
    names = pl.read_csv(tables / "d_labitems.csv.gz", infer_schema=False)
    events = results.join(names, on="itemid").select(
        "subject_id",
        pl.coalesce("storetime", "charttime").alias("time"),
        pl.col("label").alias("name"),
        pl.coalesce("valuenum", "value").alias("value"),
    )
    someone = events["subject_id"][0]
    born = pl.DataFrame({"subject_id": [someone] * 2, "time": ["2100-01-01 00:00:00", None]})
    born = born.with_columns(
        pl.Series("name", ["birth", "sex"]), pl.Series("value", [None, "F"], pl.String)
    )
    pl.concat([events, born]).write_csv(place / "events.csv")
    script(place, "to_meds.py events.csv")
    stage("variant=meds stage=prepare")
    folder = place / "outputs" / "own_labels" / "meds" / "prepare"
    counts, prepared = metrics_of(folder), Prepared(folder)
    assert counts["rows_kept/meds"] == events.height and 20 < counts["samples/own"] <= labels.height
    record = record_markdown(prepared.context(prepared.samples()[0]))
    assert "- Gender: F" in record and "\n| Item | Value |\n" in record
    assert re.search(r"^\| Sodium \| 1\d\d \|$", record, re.MULTILINE)


def test_callback_and_logger_of_ones_own(place: Path, stage: Stage) -> None:
    stage("experiment=own_code stage=adapt")
    folder = place / "outputs" / "own_code" / "adapt"
    lines = lines_of(folder)
    assert metrics_of(folder)["steps"] == len(lines) > 5  # it does not diverge
    logged = [json.loads(line) for line in (folder / "lines" / "metrics.jsonl").open()]
    losses = {one["step"]: one["train/loss"] for one in logged if "train/loss" in one}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in lines})
    assert (folder / "tb").is_dir()


def test_a_callback_decides_as_before_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from my_callback import Diverged
    from pytorch_lightning import Trainer

    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    stopped, callback = [], Diverged(factor=2.0)
    for loss in (4.0, 1.0, 2.0, 1.5, 2.1):
        other = Diverged(factor=2.0)
        other.load_state_dict(callback.state_dict())
        callback = other
        trainer.callback_metrics["loss"] = loss  # type: ignore[assignment]
        callback.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
        stopped.append(trainer.should_stop)
    assert stopped == [False] * 4 + [True]


def test_a_reward_of_ones_own(place: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage("experiment=own_code stage=rl")
    folder = place / "outputs" / "own_code" / "rl"
    assert all("rewards/my_reward.brief/mean" in line for line in lines_of(folder))
    completions = pl.concat(map(pl.read_parquet, (folder / "completions").glob("*.parquet")))
    given = completions["reward/my_reward.brief"]
    assert given.null_count() and given.drop_nulls().is_between(0, 1).all()
    monkeypatch.syspath_prepend(EXAMPLES)
    from my_reward import brief

    texts = ["<think>\n\n</think>\n\nA\nB", "<think>\n\n</think>\n\nA\nB\nC\nD", "yes", ""]
    kinds = ["decision", "decision", "risk", "decision"]
    assert brief(texts, kind=kinds, target=[["A", "C"]] * 4) == [1.0, 0.5, None, 0.0]


def test_a_chain_writer_of_ones_own(place: Path, command_line: CommandLine) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = [word.replace("8300", port) for word in words_of("my_writer.py 8300")[1:-1]]
    words = [word.replace("8300", port) for word in words_of("chains.model=mine")[2:]]
    with subprocess.Popen([sys.executable, *server], cwd=place, stderr=subprocess.PIPE) as writer:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with closing(socket.socket()) as one:
                    if one.connect_ex(("127.0.0.1", int(port))) == 0:
                        break
                time.sleep(0.05)
            done = command_line(*words, cwd=place)
        finally:
            writer.terminate()
    assert done.returncode == 0, done.stderr[-3000:]
    folder = place / "outputs" / "smoke" / "my_writer" / "chains"
    kept = kept_chains(folder / "chains.jsonl")
    assert len(kept) > 10
    assert all(chain.startswith("## Extraction\n") for chain, _ in kept.values())


def test_a_strict_8b_experiment_and_a_cluster(place: Path, command_line: CommandLine) -> None:
    done = command_line(*words_of("my_strict_8b stage=plan")[2:], cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    plan = (place / "outputs" / "my_strict_8b" / "plan" / "plan.md").read_text()
    assert "Qwen3" in plan or "8b" in plan
    words = words_of("launcher=my_cluster")
    assert words[1] == "sweep.py"
    done = command_line(*words[2:], cwd=place, script="sweep.py")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("prepare", "graph", "chains", "adapt", "reason", "rl", "eval"):
        assert f"my_strict_8b/{name}" in done.stdout
    assert not (place / "outputs" / "sweeps").exists()


@pytest.mark.parametrize("name", ["ask_a_model", "read_a_run"])
def test_notebooks_run_from_top_to_bottom(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    found: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{name}.ipynb cell {number}", "exec"), found)
    if name == "ask_a_model":
        assert 0 < found["answer"].probability < 1 and found["tests"].text is not None
    else:
        assert found["table"].height > 10 and found["steps"]["loss"].is_not_null().all()


def test_a_table_as_the_docs_add_it(place: Path, tmp_path: Path, command_line: CommandLine) -> None:
    """The entry of docs/howto.md in a copy of the package, and a file with two rows for it."""
    text = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    [entry] = re.findall(r"```python\n(Table\(\n.*?)```", text, re.DOTALL)
    entry = indent(entry.rstrip() + ",\n", "    ")
    for name in ("ehrr1", "conf", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    shutil.copy(ROOT / "run.py", tmp_path)
    schema = tmp_path / "ehrr1" / "records" / "schema.py"
    before = '    Table(\n        "radiology",'
    assert schema.read_text().count(before) == 1
    schema.write_text(schema.read_text().replace(before, entry + before))
    hospital = tmp_path / "hospital"
    shutil.copytree(place / "outputs" / "smoke" / "prepare" / "hospital", hospital)
    stays = pl.read_csv(hospital / "hosp" / "admissions.csv.gz", infer_schema=False)
    (hospital / "ecg").mkdir()
    stays.select(
        "subject_id",
        pl.col("admittime").alias("ecg_time"),
        pl.lit("Sinus rhythm").alias("report_0"),
        pl.lit("820").alias("rr_interval"),
    ).write_csv(hospital / "ecg" / "ecg.csv")
    words = ["experiment=smoke", "stage=prepare", "data=mimic", f"data.root={hospital}"]
    done = subprocess.run(
        [sys.executable, "run.py", *words, "data.tasks=[Inpatient_Mortality]"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "outputs" / "smoke" / "mimic" / "prepare"
    counts = metrics_of(folder)
    assert counts["rows_kept/ecg"] == stays.height
    show = (
        "from pathlib import Path; from ehrr1.tasks.samples import Prepared; "
        "from ehrr1.records.markdown import record_markdown; "
        f"one = Prepared(Path({str(folder)!r})); "
        "events = one.context(one.samples()[0]); print(record_markdown(events)); "
        "[ecg] = [event for event in events if event.table == 'ecg']; "
        "print(ecg.available_time - ecg.time)"
    )
    shown = subprocess.check_output([sys.executable, "-c", show], cwd=tmp_path, text=True)
    assert "- Report: Sinus rhythm\n- Rr_Interval: 820" in shown
    assert shown.endswith("\n1:00:00\n")
