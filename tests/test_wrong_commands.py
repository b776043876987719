"""Wrong commands and files of settings: one line that names the setting and a remedy, exit code 2,
and nothing begun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from ehrr1 import cli, stages, sweep_cli
from ehrr1.config.schema import Config
from tests.conftest import FORKS, ROOT, CommandLine, run_py

DOORS = {"run.py": cli.main, "sweep.py": sweep_cli.main}


def run(config: Config) -> None:
    raise AssertionError(f"stage={config.stage} has begun")


def refused(
    door: str,
    arguments: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The one line that a wrong command leaves, as `python run.py` would print it."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    monkeypatch.setattr(stages, "execute", run)
    root = folder / "outputs"
    monkeypatch.setattr(sys, "argv", [door, *arguments, f"output_root={root}"])
    with pytest.raises(SystemExit) as ended:
        DOORS[door]()
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed.err
    [line] = printed.err.splitlines()
    assert line.startswith(f"{door}: ") and "Traceback" not in line
    assert not printed.out and not root.exists()
    return line.removeprefix(f"{door}: ")


WRONG: dict[str, list[str]] = {
    # settings that do not exist
    "adapt.lrr=3": ["adapt.lrr: there is no such setting; did you mean adapt.lr?"],
    "+adapt.lrr=3": ["adapt.lrr: there is no such setting; did you mean adapt.lr?"],
    "rl.rewards={log:1}": [
        "rl.rewards: a name that it does not have",
        "'+rl.rewards={NAME: VALUE}'",
    ],
    "~adapt.lr": ["adapt.lr: it is missing", "a number > 0"],
    "lr=3": ["lr: there is no such setting; did you mean adapt.lr, reason.lr, rl.lr?"],
    "+rl.entropy_bonus=0.01 +adapt.learning_rate=1e-5": [
        *("rl.entropy_bonus: there is no such setting", "did you mean adapt.lr?"),
    ],
    "+report_to=wandb": ["report_to: there is no such setting", "logger=[tensorboard,wandb]"],
    "logger=[tensorboard,comet]": ["logger=comet", "choose one of csv, mlflow, tensorboard, wandb"],
    "trainer.keep_best=2": ["trainer.keep_best: this setting is called trainer.save_top_k now"],
    "+callbacks.x=3": ["callbacks.x=3: it must be a class with its arguments"],
    "adapt.optimizer=adam": ["adapt.optimizer=adam: it must be one of adamw, muon or a class"],
    "trainer.max_steps=10": ["did you mean adapt.max_steps, reason.max_steps, rl.steps?"],
    "+trainer.num_gpus=8 +inputs.sft=x": ["did you mean trainer.devices?", "inputs.sft: there is"],
    "resume=true": ["resume: there is no such setting: the same command again resumes a run"],
    "ckpt_path=x": ["ckpt_path: there is no such setting: the same command again resumes a run"],
    # what they were called in earlier versions
    "stage=eval split=validation limit=3": [
        "split: this setting",
        "(of an evaluation: eval.split)",
    ],
    "limit=3": ["limit: this setting is called export.limit (of an evaluation:"],
    "+layout=rows +similar_items=x": [
        "layout: this setting is called export.layout now",
        "similar_items: this setting is called export.similar_items now",
    ],
    # other choices' settings
    "chains.model=x": ["chains.model: it belongs to chains=transformers", "another is chosen"],
    "+engine.url=x +data.max_events=3": [
        *("engine.url: it belongs to engine=server", "data.max_events: it belongs to data=ehrshot"),
    ],
    # types and ranges
    "adapt.short_first=no_thanks rollout.batch_size=lots": [
        "adapt.short_first=no_thanks: it must be true or false",
        "rollout.batch_size=lots: it must be a whole number >= 1",
    ],
    "adapt.lr=-1": ["adapt.lr=-1: it must be a number > 0"],
    "adapt.lr=nan reason.lr=inf rl.lr=[1,2] loss.risk_weight=true": [
        *("adapt.lr=nan: it must be a number > 0", "reason.lr=inf: it must be a number > 0"),
        *("rl.lr=[1, 2]: it must be a number > 0", "loss.risk_weight=true: it must be a number"),
    ],
    "adapt.epochs=1.5 rl.group_size=1": [
        *("adapt.epochs=1.5: it must be a whole number", "rl.group_size=1: it must be a whole"),
    ],
    "data.split.test=4 graph.min_lift=inf rl.rewards.accuracy=nan": [
        "data.split.test=4: it must be a number >= 0 and <= 1",
        *("graph.min_lift=inf: it must be", "rl.rewards.accuracy=nan: it must be a number"),
    ],
    "rl.ratio_bounds=[0.9] seed=-1": ["it must be a list of 2", "seed=-1: it must be a whole"],
    "adapt=null data.labels=3": [
        "adapt=null: it must be a section of settings",
        "data.labels=3: it must be a section of settings",
    ],
    "data=mimic data.root=": ["data.root=: it must be a file or a folder"],
    "name= answer=deep": ["name=: it must be a text that is not empty", "answer=deep: it must be"],
    # choices
    "data=null": ["data=null: choose one of benchmark, ehrshot, meds, mimic"],
    "stage=[adapt]": ["stage=[adapt]: did you mean stage=adapt", "choose one of adapt, audit"],
    "stage=sft": ["stage=sft: did you mean stage=adapt, reason? choose one of"],
    "stage=train": ["stage=train: did you mean stage=adapt, reason? choose one of"],
    "stage=RL": ["stage=RL: did you mean stage=rl? choose one of"],
    "stage=grpo": ["stage=grpo: did you mean stage=rl? choose one of"],
    "model=qwen3-8b": ["model=qwen3-8b: did you mean model=8b? choose one of"],
    "model=9b": ["model=9b: did you mean model=8b? choose one of"],
    "trainer=deepspeed": ["trainer=deepspeed: did you mean trainer=zero2, zero3?"],
    "experiment=nope": ["experiment=nope: choose one of", "mimic_demo"],
    # what another stage reads
    "stage=prepare question=x": ["question=x: it belongs to stage=infer; this is stage=prepare"],
    "stage=rl rescore=DIR": ["rescore=DIR: it belongs to stage=eval; this is stage=rl"],
    "stage=adapt answer=think": ["answer=think: it belongs to stage=eval, infer, curriculum"],
    "compare=[/a,/b]": ["it belongs to stage=eval; this is stage=curriculum"],
    # what does not go together
    "data.root=/tmp": ["data.root=/tmp with data=synthetic", "data=mimic"],
    "data=mimic": ["data.root=null: data=mimic needs the folder with hosp/: data.root=DIR"],
    "stage=graph concepts=umls": ["concepts.folder=null", "concepts.folder=DIR"],
    "stage=chains chains=anthropic": ["chains.model=null: chains=anthropic needs one"],
    "stage=chains chains=openai": ["chains.model=null: chains=openai needs one"],
    "stage=chains chains=openai chains.batches=true": ["chains.batches: it belongs to"],
    "data.shard=16 stage=prepare": ["data.shard=16: it must be below data.shards=16"],
    "data.split.test=0.95": ["data.split=", "nothing is left to train on"],
    "stage=eval compare=[a]": ["compare=", "compare=[DIR,DIR]"],
    "stage=eval eval.chains=given answer=both": ["answer=both: with eval.chains=given", "leave"],
    "stage=eval eval.chains=given engine=anthropic engine.model=x": ["eval.chains=given", "leave"],
    "data.force_task_num=1.5": ["it must be a whole number >= 1 or a number > 0 and < 1 or null"],
    "stage=adapt model=folder": ["model.path=null, model.config=null", "model=FOLDER"],
    # Hydra's grammar
    "adapt.lr": ["adapt.lr", "missing EQUAL", "--help"],
    "--config-dir=/nowhere": ["/nowhere", "not found"],
}
"""Command -> what is said."""


SWEEPS: dict[str, list[str]] = {
    "adapt.lrr=1,2": ["adapt.lrr: there is no such setting; did you mean adapt.lr?"],
    "+adapt.lrr=1,2": ["adapt.lrr: there is no such setting; did you mean adapt.lr?"],
    "lr=1,2": ["lr: there is no such setting; did you mean adapt.lr, reason.lr, rl.lr?"],
    "stage=adapt,rx": ["stage=adapt,rx: rx cannot be a link", "curriculum"],
    "stage=prepare data.subjects=10,-3": ["data.subjects=-3: it must be a whole number >= 1"],
    "model=tiny,9b": ["model=9b: did you mean model=8b? choose one of"],
    "data=null": ["data=null: choose one of"],
    "split=test": ["split: this setting is called export.split (of an evaluation: eval.split) now"],
    "stage=prepare question=x": ["question=x: it belongs to stage=infer"],
}


@pytest.mark.parametrize(
    ("door", "command", "words"),
    [
        *(("run.py", command, words) for command, words in WRONG.items()),
        *(("sweep.py", command, words) for command, words in SWEEPS.items()),
    ],
)
def test_a_wrong_command_is_one_line(
    door: str,
    command: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(door, command.split(), tmp_path, monkeypatch, capsys)
    for one in words:
        assert one in line


WHOLE = "# @package _global_\n"
NO_YAML = "a file of settings (conf/, experiments/, --config-dir) is no YAML"
NO_SECTION = "experiment: its file has settings outside of any section: its first line must be"
FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "misspelt": (
        WHOLE + "rl: {group_sizes: 64}\ntrainr: {devices: 4}\n",
        ["rl.group_sizes: there is no such setting; did you mean rl.group_size?", "trainer?"],
    ),
    "of_no_section": (WHOLE + "group_sizes: 64\n", ["did you mean rl.group_size?"]),
    "no_text": (WHOLE + "adapt: {1: 2}\n", ["adapt.1: there is no such setting"]),
    "null_section": (WHOLE + "data: null\n", ["data=null: it must be a section of settings"]),
    "list_of_section": (WHOLE + "adapt: [1, 2]\n", ["experiment/list_of_section", "merge"]),
    "text_for_number": (WHOLE + "adapt: {lr: '3'}\n", ["adapt.lr=3: it must be a number > 0"]),
    "without_header": ("adapt: {lr: 1.0e-4}\n", [NO_SECTION, "@package _global_"]),
    "broken": (WHOLE + "adapt: {lr: 1\n", [NO_YAML, "broken.yaml", "line 2"]),
    "tabbed": (WHOLE + "adapt:\n\tlr: 1\n", [NO_YAML, "tabbed.yaml", "line 3"]),
    "twice": (WHOLE + "rl: {lr: 1}\nrl: {lr: 2}\n", [NO_YAML, "duplicate key rl", "twice.yaml"]),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", [NO_YAML, "utf-8"]),
    "empty": ("", [NO_SECTION]),
    "plain": ("just some text\n", [NO_SECTION]),
    "list": ("- a\n- b\n", [NO_SECTION]),
    "number": ("5\n", ["a file of settings", "has none", "int"]),
    "tag": (WHOLE + "adapt: !!python/object:os.system {}\n", [NO_YAML, "tag.yaml", "line 2"]),
    "defaults_text": (WHOLE + "defaults: tiny\n", ["experiment/defaults_text", "must be a list"]),
    "defaults_number": (WHOLE + "defaults: [5]\n", ["defaults", "a file of settings"]),
    "no_group": (WHOLE + "defaults: [override /modle: tiny]\n", ["modle", "did you mean model?"]),
    "no_choice": (WHOLE + "defaults: [override /model: tinny]\n", ["did you mean model=tiny?"]),
    "to_nothing": (WHOLE + 'adapt: {lr: "${not.there}"}\n', ["'not.there' not found", "adapt.lr"]),
    "half": (WHOLE + 'adapt: {lr: "${oops"}\n', ["${oops", "adapt.lr"]),
    "of_no_kind": (WHOLE + 'adapt: {lr: "${nope:1}"}\n', ["nope", "adapt.lr"]),
}
"""Name -> what stands in the experiment's file, and what is said."""


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = FILES[name]
    file = tmp_path / "experiment" / f"{name}.yaml"
    file.parent.mkdir()
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    given = ["--config-dir", str(tmp_path), f"experiment={name}"]
    line = refused("run.py", given, tmp_path, monkeypatch, capsys)
    for one in words:
        assert one in line


@pytest.mark.parametrize(
    ("door", "command", "words"),
    [
        ("run.py", "stage=sft", "did you mean stage=adapt, reason?"),
        ("run.py", "adapt.lrr=3", "did you mean adapt.lr?"),
        ("run.py", "stage=eval compare=[/a,/b]", "compare=/a: it has no predictions.parquet"),
        ("run.py", "stage=eval rescore=/a", "rescore=/a: it has no predictions.parquet"),
        ("sweep.py", "adapt.lrr=1,2", "did you mean adapt.lr?"),
    ],
)
def test_by_a_real_process(door: str, command: str, words: str, tmp_path: Path) -> None:
    done = run_py(*command.split(), f"output_root={tmp_path / 'outputs'}", script=door)
    assert done.returncode == 2 and not done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{door}: ") and words in line
    assert not list(tmp_path.iterdir())


def test_a_forked_command_says_the_same(tmp_path: Path, command_line: CommandLine) -> None:
    """Check what other tests rest on: paths, arguments, both outputs and exit codes."""
    for arguments in (["--version"], ["stage=adapt", "output_root=none"], ["stage=nope"]):
        whole, forked = (run(*arguments, cwd=tmp_path) for run in (run_py, command_line))
        assert vars(forked) | {"args": []} == vars(whole) | {"args": []}
    assert FORKS.server is not None, "it was a whole process too: a variable of its imports is set"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command", ["run.py --help | true", "sweep.py | true", "run.py --help >&-"]
)
def test_an_output_that_nobody_reads_is_no_error(command: str, unbuffered: str) -> None:
    """Check it with and without Python's buffer, which fails at the end, and at once."""
    shell = ["bash", "-o", "pipefail", "-c", f"{sys.executable} {command}"]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(shell, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_writer_that_the_experiment_does_not_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that an experiment's settings for its own writer do not refuse another."""
    found: list[Config] = []
    monkeypatch.setattr(stages, "execute", found.append)
    for given in (
        ["experiment=demo", "chains=vllm", "chains.model=x"],
        [
            "experiment=paper",
            "chains=template",
            "graph.require_path=false",
            "chains.show_graph=true",
        ],
    ):
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        root = f"output_root={tmp_path}"
        monkeypatch.setattr(sys, "argv", ["run.py", "stage=chains", *given, "data.root=/x", root])
        sys.argv += ["data=mimic"]
        cli.main()
    assert [one.chains.writer for one in found] == ["vllm", "template"]
