"""Questions exported for lm-evaluation-harness and Inspect, and their logs.

`harness_logs/` has real logs of both (README.md there). The last test runs both, in the environment
that EHRR1_HARNESS_ENV names.
"""

import importlib.util
import json
import math
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from ehrr1.config.together import conflicts
from ehrr1.errors import UserError
from ehrr1.evaluation.harness_logs import log_files, read_log, table_of
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.runs import Run
from ehrr1.scoring.answers import read_answer
from ehrr1.scoring.risk import NO_SPELLINGS, YES_SPELLINGS
from ehrr1.scoring.sets import set_scores
from ehrr1.stages import eval as evaluation
from ehrr1.stages import export, prepare
from ehrr1.tasks.samples import Prepared, preamble_length
from tests.conftest import CommandLine
from tests.settings import composed, record

LOGS = Path(__file__).parent / "harness_logs"
RISK = ["ED_Reattendance_3day", "LengthOfStay_3day"]
DECISION = ["labevents", "next_event"]

LM_EVAL = {"10000046": 0.105119, "10000060": 0.088378, "10000109": 0.081770}
INSPECT = {"10000046": 0.105158, "10000060": 0.088409}
"""Patient -> P(yes) in the logs. That of our own evaluation of the same model is as in INSPECT, and
0.081796: lm-evaluation-harness adds spellings that are several tokens to this model."""

WRITTEN = "\nVitamin D and analogues\nvitamin d\n18"
"""The answer to `next_event`: the model's, in our own evaluation too."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The questions of the logs, as `stage=prepare data=benchmark` reads them."""
    folder = tmp_path_factory.mktemp("prepare")
    cfg = composed("data=benchmark", data={"path": str(LOGS / "questions.jsonl")})
    record(cfg, folder)
    prepare.run(cfg, Run(folder, "prepare"))
    return Prepared(folder)


@pytest.fixture(scope="module")
def exports(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that `stage=export` writes for both frameworks, by layout."""
    root = tmp_path_factory.mktemp("exports")
    for layout in ("lm_eval", "inspect"):
        cfg = composed("stage=export", f"export.layout={layout}", "wording=file")
        metrics = export.write(cfg, Run(root, "export", {"prepare": prepared.folder}))
        assert metrics == {"rows": 5, "samples/ED_Reattendance_3day": 2} | {
            f"samples/{task}": 1 for task in ("LengthOfStay_3day", "labevents", "next_event")
        }
    return {layout: root / layout for layout in ("lm_eval", "inspect")}


@pytest.fixture(scope="module")
def scores(exports: dict[str, Path]) -> ModuleType:
    """The module of scores in an export, imported as the frameworks do."""
    spec = importlib.util.spec_from_file_location(
        "ehr_scores", exports["inspect"] / "ehr_scores.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(folder: Path) -> list[dict[str, Any]]:
    """The questions in an export."""
    files = sorted(folder.glob("data/*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def logged(place: Path, prepared: Prepared) -> pl.DataFrame:
    """The predictions of the logs at a place, by sample."""
    answers = [answer for path in log_files(place) for answer in read_log(path)]
    table = table_of(place, answers, prepared)
    assert table.height == len(answers)
    return table.sort("sample_id")


# --- the export -----------------------------------------------------------------------------------


class Loader(yaml.SafeLoader):
    """Reads `!function module.name` as its name."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_tasks_of_lm_eval(exports: dict[str, Path], scores: ModuleType) -> None:
    files = {path.stem: path for path in exports["lm_eval"].glob("*.yaml")}
    found = {name: yaml.load(path.read_text(), Loader) for name, path in files.items()}
    assert set(found) == {
        *("_risk", "_decision", "ehr_risk", "ehr_decision"),
        *(f"ehr_{task}" for task in RISK + DECISION),
    }
    assert found["ehr_risk"]["task"] == [f"ehr_{task}" for task in RISK]
    assert found["ehr_decision"]["task"] == [f"ehr_{task}" for task in DECISION]
    for text in files.values():
        names = [word for word in text.read_text().split() if word.startswith("ehr_scores.")]
        assert all(callable(getattr(scores, name.split(".")[1])) for name in names)
    one_class = found["ehr_LengthOfStay_3day"]
    assert [metric["metric"] for metric in one_class["metric_list"]] == ["brier"]
    assert one_class["process_results"] == "ehr_scores.one_class_results"
    assert "metric_list" not in found["ehr_ED_Reattendance_3day"]
    [first, *_] = rows(exports["lm_eval"])
    assert found["_risk"]["description"] == first["messages"][0]["content"]


def test_an_export_needs_nothing_of_ours(exports: dict[str, Path]) -> None:
    for folder in exports.values():
        assert (folder / "README.md").read_text().startswith("# Questions on health records")
        for path in folder.rglob("*.py"):
            assert "ehrr1" not in path.read_text()
    assert rows(exports["lm_eval"]) == rows(exports["inspect"])


def test_the_prompts_that_lm_eval_logged_are_ours(
    prepared: Prepared, exports: dict[str, Path]
) -> None:
    """Also the questions of the export are those of the logs."""
    tokenizer = train_tokenizer({"## Triage [2150-01-01]\n": 3, "yes": 3, "no": 3}, 400)
    builder = PromptBuilder(tokenizer, 10_000)
    samples = {sample.sample_id: sample for sample in prepared.as_samples(prepared.index())}
    questions = {row["sample_id"]: row for row in rows(exports["lm_eval"])}
    for path in log_files(LOGS / "lm_eval"):
        for line in map(json.loads, path.read_text().splitlines()):
            sample = samples.pop(line["doc"]["sample_id"])
            assert line["doc"] == questions[sample.sample_id]
            context = prepared.context(sample)
            words = PromptMode("direct").words(sample, None)
            question = Question(sample.sample_id, sample.task, False, instruction=words)
            tree = builder.tree(context, preamble_length(context), [question])
            ours = tokenizer.decode(tree.trunk + tree.branches[0].prompt)
            assert line["arguments"]["gen_args_0"]["arg_0"] == ours
    assert not samples


def test_the_scores_of_an_export_are_ours(scores: ModuleType) -> None:
    assert scores.YES == YES_SPELLINGS and scores.NO == NO_SPELLINGS
    target = ["Potassium", "Lactate"]
    for text in [
        *("potassium\n- Lactate", "Potassium\nPotassium\nSodium", "", "  \n", "Sodium"),
        *("<think>\nx\n</think>\n\nLactate", "x</think>Lactate", "<think>Lactate", "</think>"),
        *("a<think>b</think>Lactate", "<think>a</think>b</think>Lactate", "* LACTATE\n• Sodium"),
    ]:
        ours = set_scores(read_answer(text, "decision").items, target)
        found = scores.set_scores(text, target)
        assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(
            [ours.precision, ours.recall, ours.f1]
        ), text
    pairs = [(True, 0.9), (False, 0.9), (True, 0.2), (False, 0.1), (False, math.nan)]
    known = pairs[:-1]
    assert scores.auroc(pairs) == roc_auc_score(*zip(*known, strict=True))
    assert math.isnan(scores.auroc(known[::2]))
    assert scores.brier(pairs) == pytest.approx((0.01 + 0.81 + 0.64 + 0.01) / 4)
    half = {"yes": math.log(0.1), " Yes": math.log(0.2), "no": math.log(0.1)}
    assert scores.probability_of_yes(half) == pytest.approx(0.75)
    assert math.isnan(scores.probability_of_yes({"maybe": -0.1}))


# --- the logs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "expected"), [("lm_eval", LM_EVAL), ("inspect", INSPECT)])
def test_real_logs_are_read(framework: str, expected: dict[str, float], prepared: Prepared) -> None:
    table = logged(LOGS / framework, prepared)
    assert set(table["model"]) == {"smoke-adapt"} and set(table["wording"]) == {"file"}
    risk = table.filter(pl.col("task").is_in(RISK))
    patients = risk["subject_id"].cast(pl.String)
    found = dict(zip(patients, risk["probability"], strict=True))
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(risk["prediction"]) == {"no"}
    decisions = dict(table.filter(pl.col("task").is_in(DECISION))["task", "completion"].iter_rows())
    assert set(decisions) == set(DECISION) and decisions["next_event"] == WRITTEN
    [read] = table.filter(pl.col("task") == "next_event")["prediction"]
    assert read == WRITTEN.strip() and not table["problem"].is_not_null().any()


def test_answers_that_a_log_lacks_are_reported(prepared: Prepared, tmp_path: Path) -> None:
    """A sample that failed, and one without yes or no among its tokens."""
    [path] = (LOGS / "inspect").glob("*risk*.json")
    log = json.loads(path.read_text())
    first, second = log["samples"]
    first["output"]["choices"] = []
    tokens = second["output"]["choices"][0]["logprobs"]["content"][0]
    tokens["top_logprobs"] = tokens["top_logprobs"][2:3]
    (tmp_path / "log.json").write_text(json.dumps(log))
    table = logged(tmp_path, prepared)
    assert table["problem"].to_list() == ["the log has no answer", "no probability of yes or no"]
    assert table["probability"].null_count() == 2


def test_logs_are_scored(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = LOGS / "lm_eval"
    cfg = composed("stage=eval", f"predictions={place}", eval={"bootstrap": 5})
    metrics = evaluation.run(cfg, Run(tmp_path, "eval", {"prepare": prepared.folder}))
    printed = capsys.readouterr().err
    assert "5 answers, 5 of them to samples of eval.split=test" in printed
    assert "0 cannot be read" in printed
    assert metrics["samples/ED_Reattendance_3day"] == 2
    assert metrics["ED_Reattendance_3day/auroc"] == 0.0
    brier = (LM_EVAL["10000046"] ** 2 + (1 - LM_EVAL["10000060"]) ** 2) / 2
    assert metrics["ED_Reattendance_3day/brier"] == pytest.approx(brier, abs=1e-5)
    assert metrics["smoke-adapt/decision/f1/macro"] == 0.0
    assert pl.read_parquet(tmp_path / "predictions.parquet").height == 5
    none = composed("stage=eval", f"predictions={place}", "eval.split=validation")
    with pytest.raises(UserError, match=r"none of its 5 answers belongs to eval.split=validation"):
        evaluation.run(none, Run(tmp_path / "none", "eval", {"prepare": prepared.folder}))


def wrong_logs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Places that are no logs of these questions, by what is wrong, with the message."""
    [inspect] = (LOGS / "inspect").glob("*risk*.json")
    [lm_eval] = LOGS.glob("lm_eval/*/*LengthOfStay*.jsonl")
    text = lm_eval.read_text()
    files = {
        "empty/x.txt": "no log",
        "results/results_x.json": json.dumps({"results": {}}),
        "archive/x.eval": "",
        "cut/samples_x.jsonl": text[:-100],
        "list.json": "[]",
        "other_task/samples_x.jsonl": text.replace("LengthOfStay_3day", "gsm8k"),
        "other_sample/samples_x.jsonl": text.replace("10000109/", "1/"),
        "twice/a/samples_x.jsonl": text,
        "twice/b/a/samples_x.jsonl": text,
        "no_samples/x.json": inspect.read_text().replace('"samples":[', '"simples":['),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    messages = {
        "nowhere": "it has no log; give the output folder of lm_eval --log_samples",
        "empty": "it has no log",
        "results": "it has no log",
        "archive": "x.eval is not read; convert it: inspect log convert",
        "cut": "cannot be read .JSONDecodeError",
        "list.json": "cannot be read .TypeError",
        "other_task": "cannot be read .KeyError: 'gsm8k'",
        "other_sample": "1 of 1 samples are not among those of .*: inputs.prepare=DIR",
        "twice": "a answers some questions more than once",
        "no_samples": "cannot be read .KeyError: 'samples'",
    }
    return {name: (folder / name, message) for name, message in messages.items()}


def test_wrong_logs_are_one_line(prepared: Prepared, tmp_path: Path) -> None:
    for name, (place, message) in wrong_logs(tmp_path).items():
        with pytest.raises(UserError, match=message) as raised:
            logged(place, prepared)
        assert str(raised.value).startswith("predictions=") and "\n" not in str(raised.value), name


def test_settings_of_models_are_refused() -> None:
    cfg = composed("stage=eval", "predictions=x", "answer=think", "candidates=list", "eval.shots=1")
    assert conflicts(cfg) == [
        f"{setting}: with predictions=x no model is asked; leave it out"
        for setting in ("answer=think", "candidates=list", "eval.shots=1")
    ]
    assert conflicts(composed("stage=rl", "predictions=x")) == [
        "predictions=x: it belongs to stage=eval; this is stage=rl"
    ]


# --- the frameworks themselves --------------------------------------------------------------------


@pytest.fixture(scope="session")  # as `smoke`, which is not made where this one skips
def programs() -> Path:
    """The folder with the programs `lm_eval` and `inspect`."""
    place = os.environ.get("EHRR1_HARNESS_ENV")
    if place is None:
        pytest.skip("no environment with lm_eval and inspect_ai: make harness, EHRR1_HARNESS_ENV")
    return Path(place).resolve() / "bin"


def test_both_frameworks_answer_as_we_do(
    programs: Path,
    prepared: Prepared,
    exports: dict[str, Path],
    smoke: Path,
    command_line: CommandLine,
    tmp_path: Path,
) -> None:
    """The same model, on the same questions: P(yes), and the texts of decisions."""
    model = smoke / "adapt" / "hf"
    common = ["experiment=smoke", "data=benchmark", "wording=file", f"output_root={tmp_path}"]
    common.append(f"data.path={LOGS / 'questions.jsonl'}")
    done = command_line(*common, "stage=eval", f"model={model}", "answer=direct")
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = tmp_path.rglob("predictions.parquet")
    ours = pl.read_parquet(path).filter(pl.col("model").str.ends_with(":direct"))

    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    lm_eval = [
        *(str(programs / "lm_eval"), "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={model},enable_thinking=False", "--apply_chat_template"),
        *("--include_path", str(exports["lm_eval"]), "--tasks", "ehr_risk,ehr_decision"),
        *("--gen_kwargs", "max_gen_toks=16"),
        *("--log_samples", "--output_path", str(tmp_path / "lm_eval")),
    ]
    inspect = [
        *(str(programs / "inspect"), "eval", "--model", "hf/smoke-adapt", "--display", "plain"),
        *("-M", f"model_path={model}", "-M", "enable_thinking=false", "-M", "do_sample=false"),
        *("--log-format", "json", "--log-dir", str(tmp_path / "inspect")),
    ]
    tasks = exports["inspect"] / "tasks.py"
    for command in (
        lm_eval,
        [*inspect, f"{tasks}@ehr_risk", "--top-logprobs", "900"],
        [*inspect, f"{tasks}@ehr_decision", "--max-tokens", "16"],
    ):
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    # lm_eval adds spellings that are several tokens to a tokenizer of 1,024; Inspect reads one
    for framework, tolerance in {"lm_eval": 1e-3, "inspect": 1e-5}.items():
        both = logged(tmp_path / framework, prepared).join(
            ours, on="sample_id", suffix="_ours", validate="1:1"
        )
        assert both.height == 5
        difference = (both["probability"] - both["probability_ours"]).abs()
        assert difference.null_count() == 2 and difference.max() < tolerance  # type: ignore[operator]
        assert both["completion"].equals(both["completion_ours"])
