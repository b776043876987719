"""The command line as users type it: the whole curriculum, contracts, and wrong input."""

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
import yaml

from ehrr1.config.names import ORDER
from ehrr1.config.schema import recorded
from ehrr1.tasks.catalog import TASKS
from tests.conftest import ROOT, CommandLine


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_curriculum_leaves_every_run_folder(smoke: Path) -> None:
    for stage in ORDER:
        present = {path.name for path in (smoke / stage).iterdir()}
        assert {"config.yaml", "environment.txt", "inputs.json", "metrics.json"} <= present, stage
    for stage in ("adapt", "reason", "rl"):
        present = {path.name for path in (smoke / stage).iterdir()}
        assert {"hf", "checkpoints", "tb", "train.jsonl"} <= present, stage


def test_what_a_run_has_recorded_are_settings_that_exist(smoke: Path) -> None:
    for stage in ORDER:
        config = recorded(smoke / stage)
        written = yaml.safe_load((smoke / stage / "config.yaml").read_text())
        assert config.plain() == written and config.name == "smoke", stage


def test_prepare_counts_rows_and_samples(smoke: Path) -> None:
    found = metrics(smoke / "prepare")
    assert found["subjects"] == 40
    tables = [name.removeprefix("rows/") for name in found if name.startswith("rows/")]
    assert len(tables) == 30
    for table in tables:
        kept, reported = found[f"rows_kept/{table}"], found[f"rows_reported/{table}"]
        assert found[f"rows/{table}"] == kept + reported
    assert {f"samples/{task}" for task in TASKS} <= found.keys()


def test_training_metrics_have_their_names(smoke: Path) -> None:
    for stage in ("adapt", "reason"):
        found = metrics(smoke / stage)
        assert {"train/loss/first", "train/loss/last", "eval/loss"} <= found.keys()
    found = metrics(smoke / "rl")
    for reward in ("", "/accuracy", "/format"):
        for moment in ("before", "after"):
            assert 0 <= found[f"validation/reward{reward}/{moment}"] <= 1
    for stage in ("adapt", "reason", "rl"):
        lines = (smoke / stage / "train.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
        assert {"loss", "lr", "tokens", "seconds"} <= steps[0].keys()


def test_evaluation_has_its_names_for_every_model(smoke: Path) -> None:
    found = metrics(smoke / "eval")
    means = ("risk/auroc/macro", "risk/auprc/macro", "decision/f1/macro")
    for model in ("", "untrained/", "adapt/", "reason/", "rl/"):
        for name in means:
            assert f"{model}{name}" in found
    assert "baseline/frequency/decision/f1/macro" in found
    assert "baseline/boosting/risk/auroc/macro" in found
    assert all(isinstance(value, int | float) for value in found.values())
    predictions = pl.read_parquet(smoke / "eval" / "predictions.parquet")
    columns = ["model", "split", "mode", "sample_id", "subject_id", "task"]
    columns += ["probability", "prediction", "target"]
    assert set(columns) <= set(predictions.columns)
    assert {"untrained", "adapt", "reason", "rl"} <= set(predictions["model"])


def test_every_model_folder_loads_in_transformers(smoke: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for stage in ("adapt", "reason", "rl"):
        model = AutoModelForCausalLM.from_pretrained(smoke / stage / "hf")
        tokenizer = AutoTokenizer.from_pretrained(smoke / stage / "hf")
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Record"}], return_tensors="pt", return_dict=True
        )
        assert model(**ids).logits.shape[-1] == len(tokenizer)


def test_same_command_again_reports(smoke: Path, command_line: CommandLine) -> None:
    before = (smoke / "adapt" / "metrics.json").stat().st_mtime_ns
    done = command_line("experiment=smoke", f"output_root={smoke.parent}")
    assert done.returncode == 0
    assert "finished already" in done.stderr
    assert (smoke / "adapt" / "metrics.json").stat().st_mtime_ns == before


def test_export_writes_the_benchmark_row(smoke: Path, command_line: CommandLine) -> None:
    root = f"output_root={smoke.parent}"
    done = command_line(
        *("experiment=smoke", "stage=export", "export.layout=rows", "export.split=all"),
        *("export.limit=7", root),
    )
    assert done.returncode == 0, done.stderr
    exports = smoke / "export"
    rows = [json.loads(line) for line in (exports / "rows-all-7" / "samples.jsonl").open()]
    assert len(rows) == 7
    names = "idx instruction input output candidates task_info subject_id prediction_time messages"
    assert set(names.split()) <= rows[0].keys()


def test_same_seed_same_numbers(smoke: Path, tmp_path: Path, command_line: CommandLine) -> None:
    done = command_line(
        "experiment=smoke", "stage=adapt", "variant=again", f"output_root={tmp_path}",
        f"inputs.prepare={smoke / 'prepare'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = metrics(tmp_path / "smoke" / "again" / "adapt")
    first = metrics(smoke / "adapt")
    for name in ("train/loss/first", "train/loss/last", "eval/loss"):
        assert again[name] == first[name]


def test_without_reasoning_rl_goes_on_from_adapt(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    shutil.copytree(smoke, tmp_path / "smoke")
    asked = ["experiment=smoke", "ablation=no_reason", f"output_root={tmp_path}"]
    done = command_line(*asked, "stage=rl")
    assert done.returncode == 0, done.stderr[-3000:]
    inputs = json.loads((tmp_path / "smoke" / "no_reason" / "rl" / "inputs.json").read_text())
    assert set(inputs) == {"prepare", "adapt"}
    done = command_line(*asked, "stage=eval")
    assert done.returncode == 0, done.stderr[-3000:]
    predictions = pl.read_parquet(tmp_path / "smoke" / "no_reason" / "eval" / "predictions.parquet")
    assert {"adapt", "rl"} <= set(predictions["model"]) and "reason" not in set(
        predictions["model"]
    )


def refused(command_line: CommandLine, *arguments: str) -> str:
    """Run a wrong command; its one line of complaint."""
    done = command_line(*arguments)
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    complaints = [line for line in done.stderr.splitlines() if line.startswith("run.py: ")]
    assert len(complaints) == 1
    return complaints[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage=rx"], ["stage=rx", "adapt, audit, card, chains, consolidate, curriculum"]),
        (["model=9b"], ["model=9b", "1.7b, 72b, 8b, folder, smollm2_135m, tiny"]),
        (["experiment=nope"], ["experiment=nope", "mimic_demo"]),
        (["rl.nope=1"], ["rl.nope"]),
        (["data.subjects=many", "adapt.lr=-1"], ["data.subjects=many", "adapt.lr=-1"]),
        (["data.tasks=[labs]", "stage=prepare", "data.subjects=2"], ["labs", "labevents"]),
        (["experiment=mimic_demo"], ["data.root", "data.root=DIR"]),
        (["experiment=mimic_demo", "data.root=nowhere"], ["data.root=nowhere"]),
        (["model.lora={r: 4}"], ["model.lora.alpha: it is missing", "model.lora.targets: it is"]),
        (["stage=rl", "ablation=no_reason"], ["stage=rl", "'adapt' (not in", "no_reason/adapt"]),
        (["stage=rl", "model=8b"], ["stage=rl", "released/8b/reason", "inputs."]),
        (["stage=eval"], ["stage=eval", "stage=prepare"]),
    ],
)
@pytest.mark.slow
def test_wrong_values_are_named(
    arguments: list[str], words: list[str], tmp_path: Path, command_line: CommandLine
) -> None:
    complaint = refused(command_line, *arguments, f"output_root={tmp_path}")
    for word in words:
        assert word in complaint


@pytest.fixture
def hospital(smoke: Path, tmp_path: Path) -> Path:
    """A copy of the smoke test's hospital that a test may break."""
    return Path(shutil.copytree(smoke / "prepare" / "hospital", tmp_path / "hospital"))


def prepare(hospital: Path) -> list[str]:
    """The arguments that read a folder in MIMIC-IV's layout."""
    outputs = hospital.parent / "outputs"
    return ["stage=prepare", "data=mimic", f"data.root={hospital}", f"output_root={outputs}"]


def test_broken_tables_are_named(hospital: Path, command_line: CommandLine) -> None:
    table = hospital / "hosp" / "labevents.csv.gz"
    whole = table.read_bytes()
    header, *rows = gzip.decompress(whole).decode().splitlines()

    table.write_bytes(whole[: len(whole) // 2])
    assert "labevents.csv.gz" in refused(command_line, *prepare(hospital))

    table.write_bytes(gzip.compress(b""))
    assert "labevents.csv.gz" in refused(command_line, *prepare(hospital))

    renamed = "\n".join([header.replace("charttime", "chart_time"), *rows])
    table.write_bytes(gzip.compress(renamed.encode()))
    complaint = refused(command_line, *prepare(hospital))
    assert "labevents.csv.gz" in complaint and "charttime" in complaint

    table.write_bytes(whole)
    (hospital / "hosp" / "admissions.csv.gz").unlink()
    assert "admissions" in refused(command_line, *prepare(hospital))


def test_bad_input_leaves_a_good_run_alone(hospital: Path, command_line: CommandLine) -> None:
    assert command_line(*prepare(hospital)).returncode == 0
    folder = hospital.parent / "outputs" / "released" / "mimic" / "prepare"
    before = metrics(folder)
    (hospital / "hosp" / "patients.csv.gz").unlink()
    refused(command_line, *prepare(hospital), "overwrite=true")
    assert metrics(folder) == before


def test_missing_module_is_reported(hospital: Path, command_line: CommandLine) -> None:
    shutil.rmtree(hospital / "note")
    shutil.rmtree(hospital / "ed")
    done = command_line(*prepare(hospital))
    assert done.returncode == 0, done.stderr
    assert "triage" in done.stderr and "discharge" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted as root")
def test_full_disk_is_named(tmp_path: Path, command_line: CommandLine) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        complaint = refused(
            command_line, "stage=prepare", "data.subjects=200", f"output_root={disk}"
        )
        assert "No space left" in complaint and "output_root" in complaint
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.stem
)
@pytest.mark.slow
def test_every_experiment_composes(path: Path, command_line: CommandLine) -> None:
    text = path.read_text()
    assert text.splitlines()[1].startswith(("# python run.py", "# python sweep.py"))
    done = command_line(f"experiment={path.stem}", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["name"]


def test_help_helps(command_line: CommandLine) -> None:
    done = command_line("--help")
    assert done.returncode == 0
    for word in ("stage", "model", "experiment", "curriculum", "8b"):
        assert word in done.stdout
