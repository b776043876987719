"""Evaluations side by side: paired on what both answered, and refused where nothing is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from ehrr1.errors import UserError
from ehrr1.evaluation.aggregate import summarise
from ehrr1.evaluation.compare import compare, labels
from ehrr1.evaluation.seeds import draw_seeds
from tests.settings import composed
from tests.test_report_page import TASKS, predictions


def evaluated(folder: Path, table: pl.DataFrame, **settings: Any) -> Path:
    """A finished evaluation of these predictions."""
    folder.mkdir(parents=True)
    table.write_parquet(folder / "predictions.parquet")
    config = {
        "name": "made_up",
        "output_root": str(folder),
        "rl": {"lr": 1e-6},
        "candidates": "none",
        "eval": {"split": "test", "suite": "release45", "max_prompt_tokens": 512},
    }
    OmegaConf.save(OmegaConf.merge(config, settings), folder / "config.yaml")
    return folder


def side_by_side(folders: list[Path], target: Path, replicates: int) -> None:
    compare(folders, target, replicates, 0, composed().concepts, 5)


def found(target: Path) -> tuple[dict[str, float], str]:
    page = (target / "report.html").read_text(encoding="utf-8")
    return json.loads((target / "metrics.json").read_text()), page


def test_differences_are_paired_on_the_samples_that_both_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = predictions({"rl": 0.3, "boosting": 1.0})
    second = predictions({"rl": 1.5, "boosting": 1.0}, seed=1).filter(pl.col("subject_id") < 140)
    folders = [
        evaluated(tmp_path / "a" / "eval", first),
        evaluated(tmp_path / "b" / "eval", second, rl={"lr": 3e-6}, candidates="list"),
    ]
    side_by_side(folders, tmp_path / "compare", 100)
    metrics, page = found(tmp_path / "compare")
    both = first.filter(pl.col("subject_id") < 140)
    theirs, ours = (summarise(one, TASKS, "test", 2, 0) for one in (both, second))
    for name in ("risk/auroc/macro", "decision/f1/macro"):
        key = f"rl@b-rl@a/{name}"
        assert metrics[key] == pytest.approx(ours[f"rl/{name}"] - theirs[f"rl/{name}"])
        assert 0 < metrics[f"{key}/low"] < metrics[key] < metrics[f"{key}/high"]
    test = second.filter(pl.col("split") == "test")
    counted = (test["sample_id"].n_unique(), test["subject_id"].n_unique())
    lines = pl.read_csv(tmp_path / "compare" / "differences.csv")
    row = lines.row(by_predicate=pl.col("metric") == "risk/auroc/macro", named=True)
    assert (row["result"], row["minus"]) == ("rl@b", "rl@a")
    assert row["difference"] == pytest.approx(metrics["rl@b-rl@a/risk/auroc/macro"])
    assert (row["samples"], row["patients"]) == counted
    for task, metric in (("Inpatient_Mortality", "auroc"), ("labevents", "f1")):
        key = f"rl@b-rl@a/{task}/{metric}"
        assert metrics[key] == pytest.approx(
            ours[f"rl/{task}/{metric}"] - theirs[f"rl/{task}/{metric}"]
        )
        assert metrics[f"{key}/low"] < metrics[key] < metrics[f"{key}/high"]
        row = lines.row(by_predicate=pl.col("metric") == f"{task}/{metric}", named=True)
        assert row["low"] == metrics[f"{key}/low"] and row["samples"] == (
            test.filter(pl.col("task") == task)["sample_id"].n_unique()
        )
    shown = capsys.readouterr().out
    assert "differences by task: decision F1" in shown and "Differences by task, risk" in page
    assert "rl@b - rl@a" in shown and f"{counted[0]:,} samples of {counted[1]}" in shown
    assert "candidates is none in a, list in b" in shown and "candidates is none in a" in page
    assert '["rl.lr","1e-06","3e-06"]' in page and '["output_root"' not in page
    assert page.count('"name":"boosting"') == 1


def test_an_evaluation_does_not_differ_from_its_copy(tmp_path: Path) -> None:
    table = predictions({"adapt": 0.5, "rl": 1.0}, patients=20)
    folders = [evaluated(tmp_path / name / "eval", table) for name in ("one", "two", "three")]
    side_by_side(folders, tmp_path / "compare", 20)
    metrics, page = found(tmp_path / "compare")
    pairs = [f"{m}@{b}-{m}@{a}" for m in ("adapt", "rl") for a, b in ORDER]
    for pair in pairs:
        ends = [metrics[f"{pair}/risk/auroc/macro{end}"] for end in ("", "/low", "/high")]
        assert ends == [0, 0, 0]
    assert "Not asked alike" not in page and "other right answers" not in page


def test_runs_of_several_seeds_are_one_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [predictions({"adapt": 0.5, "rl": 1.0}, patients=60, seed=n) for n in range(3)]
    folders = [
        evaluated(tmp_path / f"x.seed={n}" / "eval", one, seed=n) for n, one in enumerate(tables)
    ]
    other = evaluated(tmp_path / "other" / "eval", tables[0], seed=7, rl={"lr": 1})
    side_by_side([*folders, other], tmp_path / "compare", 200)
    metrics, page = found(tmp_path / "compare")
    alone = [summarise(one, TASKS, "test", 2, 0) for one in tables]
    for kind in ("risk/auroc/macro", "decision/f1/macro"):
        rl = [one[f"rl/{kind}"] for one in alone]
        gaps = [one[f"rl-adapt/{kind}"] for one in alone]
        key = f"seeds/rl@x.seed/{kind}"
        assert metrics[key] == pytest.approx(np.mean(rl))
        assert metrics[f"{key}/low"] < metrics[key] < metrics[f"{key}/high"]
        assert metrics[f"seeds/rl-adapt@x.seed/{kind}"] == pytest.approx(np.mean(gaps))
    assert not any("other" in name for name in metrics if name.startswith("seeds/"))
    shown = capsys.readouterr().out
    assert "rl-adapt@x.seed" in shown and "Mean over seeds" in page


def test_the_interval_over_seeds_has_the_variance_of_their_mean() -> None:
    values = np.array([0.3, 0.5, 0.9, 0.4])
    drawn = draw_seeds(4, 200_000, 0, "x") @ values
    assert drawn[0] == pytest.approx(values.mean())
    assert drawn[1:].mean() == pytest.approx(values.mean(), abs=2e-3)
    assert drawn[1:].var() == pytest.approx(values.var(ddof=1) / 4, rel=0.02)
    assert (draw_seeds(1, 10, 0, "x") == 1).all()


ORDER = (("one", "two"), ("one", "three"), ("two", "three"))


def test_other_right_answers_to_a_sample_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predictions({"rl": 1.0}, patients=20)
    turned = pl.when(pl.col("task") == "labevents").then(pl.lit("Urea")).otherwise("target")
    other = table.with_columns(target=turned, mode=pl.lit("think"))
    folders = [evaluated(tmp_path / "a", table), evaluated(tmp_path / "b", other)]
    side_by_side(folders, tmp_path / "compare", 20)
    shown = capsys.readouterr().out
    assert "other right answers in the two runs" in shown
    assert "mode is think and direct" in shown


def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path: Path) -> None:
    table = predictions({"rl": 1.0}, patients=20)
    a = evaluated(tmp_path / "a", table)
    elsewhere = table.with_columns(sample_id=pl.lit("other/") + pl.col("sample_id"))
    b = evaluated(tmp_path / "b", elsewhere)
    c = evaluated(tmp_path / "c", table, eval={"split": "validation"})
    empty = tmp_path / "empty"
    empty.mkdir()
    for folders, told in (
        ([a, empty], "predictions.parquet"),
        ([a, b], "no sample in common"),
        ([a, c], "different splits"),
        ([a, a], "each once"),
        ([a], "two or more"),
    ):
        with pytest.raises(UserError, match=told) as error:
            side_by_side(folders, tmp_path / "compare", 20)
        assert "\n" not in str(error.value) and "compare" in str(error.value)
    assert not (tmp_path / "compare").exists()


def test_runs_are_called_by_what_their_paths_do_not_share() -> None:
    named = {
        ("outputs/a/eval", "outputs/b/eval"): ["a", "b"],
        ("outputs/a/eval", "outputs/a/both/eval"): ["a", "a.both"],
        ("x/a/8b/eval", "x/b/eval"): ["a.8b", "b"],
        ("x/demo/eval", "x/demo/no_graph/eval"): ["demo", "demo.no_graph"],
    }
    for folders, wanted in named.items():
        assert labels([Path(folder) for folder in folders]) == wanted


def test_a_variant_is_compared_with_the_run_above_it(tmp_path: Path) -> None:
    table = predictions({"rl": 1.0}, patients=20)
    folders = [evaluated(tmp_path / one / "eval", table) for one in ("a", "a/both")]
    side_by_side(folders, tmp_path / "compare", 20)
    metrics, page = found(tmp_path / "compare")
    assert metrics["rl@a.both-rl@a/risk/auroc/macro"] == 0 and "rl@a.both" in page
