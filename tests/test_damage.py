"""Damaged files between stages: one line that names the file and what makes it again, exit code 2.

Every file that a later stage reads is damaged in all ways that `damages` knows for its format, one
at a time, and the next stage is run by the command line. Then the same files are damaged while the
stage that wrote them is not finished.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from ehrr1 import runs
from ehrr1.damage import DamagedError, check
from ehrr1.errors import UserError
from ehrr1.evaluation.prediction_store import PredictionStore
from ehrr1.evaluation.predictions import read_predictions
from ehrr1.files import read_json, read_jsonl, read_yaml
from ehrr1.graph.cooccurrence import Cooccurrence
from ehrr1.models.loading import fill, read_whole
from ehrr1.prompts.dataset import read_trees
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.reasoning.ledger import Ledger
from ehrr1.runs.paths import data_is_open, read_decision, read_inputs
from ehrr1.stages.chains import graph_places
from ehrr1.stages.reason import kept_chains
from ehrr1.tasks.samples import Prepared
from ehrr1.training.checkpoints import last_checkpoint
from ehrr1.training.consolidation import learnt_weights
from tests.conftest import CommandLine
from tests.damages import ANY, Damage, damages, of_weights

Run = Callable[..., tuple[int, str]]

READ = {
    "prepare": (
        *("index.parquet", "names.parquet", "split.parquet", "open.json", "config.yaml"),
        *("store/shards.json", "store/0000/rows.arrow", "store/0000/patients.arrow"),
        "store/0000/names.arrow",
    ),
    "graph": ("graphs.jsonl", "config.yaml"),
    "chains": ("chains.jsonl", "inputs.json"),
    "adapt": ("hf/model.safetensors", "hf/config.json", "hf/tokenizer.json"),
    "eval": ("predictions.parquet", "config.yaml"),
}
"""Files that a later stage reads, by the stage that makes them."""

NEXT = {"prepare": "graph", "graph": "chains", "chains": "reason", "adapt": "reason"}


@pytest.fixture(scope="module")
def finished(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the curriculum, to damage."""
    folder = tmp_path_factory.mktemp("damaged") / "smoke"
    shutil.copytree(smoke, folder)
    return folder


@pytest.fixture(scope="module")
def command(command_line: CommandLine) -> Run:
    """The exit code of a command, and what it says on stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        done = command_line(*arguments)
        return done.returncode, done.stderr

    return run


def restored(path: Path, damage: Damage) -> Iterator[None]:
    """Damage a file, and put it back."""
    content = path.read_bytes()
    damage.do(path)
    yield
    path.write_bytes(content)


def next_command(stage: str, finished: Path) -> list[str]:
    if stage == "eval":
        return ["stage=eval", f"rescore={finished / 'eval'}"]
    inputs = [
        f"inputs.{name}={finished / name}" for name in ("prepare", "graph", "chains", "adapt")
    ]
    return [
        "experiment=smoke",
        f"stage={NEXT[stage]}",
        *inputs,
        f"output_root={finished.parent}/next",
    ]


@pytest.mark.parametrize("stage", READ)
def test_a_damaged_input_is_one_line(stage: str, finished: Path, command: Run) -> None:
    """All damages are checked as the stage does it, and one of each file by the command line."""
    problems, tried = [], 0
    given = next_command(stage, finished)
    for turn, name in enumerate(READ[stage]):
        path = finished / stage / name
        every = [one for one in damages(path) if stage != "eval" or one.name != "missing"]
        for damage in every:
            for _ in restored(path, damage):
                with pytest.raises(DamagedError, match=f"^{re.escape(str(path))} "):
                    check(finished / stage)
        tried += len(every)
        for damage in every[turn % len(every) :: len(every)]:
            for _ in restored(path, damage):
                code, said = command(*given)
            line = re.compile(
                rf"run\.py: .*{re.escape(str(path))} .*stage={stage} .*python run\.py .*\n"
            )
            if code != 2 or not line.fullmatch(said):
                problems.append(f"{name}, {damage.name}: exit code {code}: {said[-300:]}")
    assert not problems, "\n".join(problems)
    assert tried >= 14
    assert not (finished.parent / "next" / "smoke" / NEXT.get(stage, "none")).exists()


def test_nothing_is_wrong_with_what_is_whole(finished: Path) -> None:
    for stage in ("prepare", "graph", "chains", "adapt", "reason", "rl", "eval"):
        check(finished / stage, full=True)


def test_a_full_check_sees_more_files_and_other_metrics(finished: Path) -> None:
    for stage in ("prepare", "adapt"):
        folder = finished / stage
        for place in (folder / "x.jsonl", folder / ("store" if stage == "prepare" else "hf") / "x"):
            place.write_text("x")
            check(folder)
            if place.parent == folder and stage == "adapt":
                check(folder, full=True)  # nobody reads whatever lies there
            else:
                with pytest.raises(DamagedError, match=f"{place} was not written by stage={stage}"):
                    check(folder, full=True)
            place.unlink()
    metrics = finished / "eval" / "metrics.json"
    content = metrics.read_text()
    metrics.write_text(content.replace("1", "2", 1))
    check(finished / "eval")
    with pytest.raises(DamagedError, match=r"metrics.json is not as .* stage=eval rescore="):
        check(finished / "eval", full=True)
    runs.rewrite_metrics(finished / "eval", json.loads(content))
    check(finished / "eval", full=True)


def test_the_command_of_a_damaged_file_makes_it_again(finished: Path, command: Run) -> None:
    weights = finished / "adapt" / "hf" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    code, said = command(*next_command("adapt", finished))
    again = said.rpartition("python run.py ")[2].split()
    assert code == 2 and again[0] == "stage=consolidate"
    # the copy lies elsewhere than the run whose command it is
    assert command("stage=consolidate", f"run={finished / 'adapt'}")[0] == 0
    assert weights.read_bytes() == content
    check(finished / "adapt", full=True)


READERS: dict[str, Callable[[Path], object]] = {
    "prepare/open.json": read_decision,
    "adapt/inputs.json": lambda path: read_inputs(path.parent),
    "prepare/config.yaml": read_yaml,
    "graph/graphs.jsonl": graph_places,
    "chains/chains.jsonl": kept_chains,
    "adapt/data/training.arrow": read_trees,
    "adapt/train.jsonl": lambda path: list(read_jsonl(path, ("step", "loss"))),
    "eval/predictions.parquet": read_predictions,
    "graph/counts/{}.npz": Cooccurrence.load,
}
"""Files that a stage reads of its own when it is resumed, and of runs without a manifest."""


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("open.json", '["open"]', data_is_open),
        ("open.json", '{"open": 1, "why": "told"}', data_is_open),
        ("open.json", '{"open": true, "why": 5}', data_is_open),
        ("inputs.json", "[]", read_inputs),
        ("inputs.json", '{"prepare": 5}', read_inputs),
        ("step=2.ckpt", "", lambda folder: [*learnt_weights(folder / "step=2.ckpt")]),
    ],
)
def test_what_is_of_another_kind_is_named(
    name: str, content: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DamagedError, match=re.escape(name)):
        read(tmp_path)


SEEN = ("a line twice", "rows twice", "a line of another kind")
"""Damage that a rule refuses where no manifest does."""


@pytest.mark.parametrize("name", READERS)
def test_readers_of_each_format_name_the_file(name: str, finished: Path, tmp_path: Path) -> None:
    source, read = finished / name, READERS[name]
    if not source.exists():
        source = sorted(source.parent.glob("*.npz"))[0]
    path = tmp_path / source.name
    shutil.copy(source, path)
    read(path)
    for damage in damages(path):
        for _ in restored(path, damage):
            if damage.whole and damage.name not in SEEN:
                try:
                    read(path)
                except DamagedError as error:
                    assert str(path) in str(error)
                continue
            if name == "adapt/train.jsonl" and damage.name == "a line twice":
                continue
            if damage.name == "empty" and path.suffix == ".jsonl":
                continue  # as many as none
            if path.suffix == ".yaml" and damage.name in ("half of it", "zeros at the end"):
                continue  # fewer settings
            with pytest.raises(DamagedError, match=re.escape(str(path))):
                read(path)


@pytest.mark.parametrize("read", [read_json, read_yaml, lambda path: list(read_jsonl(path))])
def test_too_many_levels_are_damage(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "deep"
    path.write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        read(path)


def test_checkpoints_are_whole_or_named(finished: Path, tmp_path: Path) -> None:
    source, _ = last_checkpoint(finished / "adapt" / "checkpoints")
    assert source is not None
    path = tmp_path / source.name
    shutil.copy(source, path)
    for damage in ANY:
        for _ in restored(path, damage):
            if damage.name in ("half of it", "empty", "other text", "the last byte cut"):
                with pytest.raises(DamagedError, match="delete it; the same command goes on"):
                    list(learnt_weights(path))


def test_a_ledger_is_whole_or_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.begin([f"sample-{number}" for number in range(300)], 2)
    content = path.read_bytes()
    page = len(content) // 2 // 4096 * 4096
    for broken in (
        content[: len(content) // 2],
        content[:page] + bytes(4096) + content[page + 4096 :],
        b"no database" * 1000,
    ):
        path.write_bytes(broken)
        with pytest.raises(DamagedError, match="asked and paid again"):
            Ledger(path)


def test_predictions_that_none_has_made_are_not_scored(finished: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(finished / "eval" / "predictions.parquet")
    first = pl.int_range(pl.len()) == 0
    risk = table.filter(pl.col("probability").is_not_null())
    for what, wrong in {
        "1 probabilities outside": risk.with_columns(
            probability=pl.when(first).then(1.5).otherwise("probability")
        ),
        "probabilities outside": risk.with_columns(probability=pl.lit(float("nan"))),
        "1 targets": risk.with_columns(
            target=pl.when(first).then(pl.lit("maybe")).otherwise("target")
        ),
        "an answer twice": pl.concat([table, table]),
    }.items():
        path = tmp_path / "rl" / "0-000000.parquet"
        path.parent.mkdir(exist_ok=True)
        for lacking in ("", "race", "problem"):  # an earlier version wrote fewer columns
            wrong.drop(lacking or []).write_parquet(path)
            with pytest.raises(DamagedError, match=what):
                PredictionStore(tmp_path, "rl").read()
    table.drop("race", "draw").unique(["model", "sample_id"]).write_parquet(path)
    read_predictions(path)


def test_a_damaged_page_of_an_unlisted_index_is_one_line(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    """It is met in the middle of a stage, by whatever reads a part of the index."""
    copy = tmp_path / "prepare"
    shutil.copytree(smoke / "prepare", copy)
    (copy / "manifest.json").unlink()
    index = copy / "index.parquet"
    column = pq.ParquetFile(index).metadata.row_group(0).column(0)
    with index.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(bytes(16))  # of the page's header
    pl.scan_parquet(index).collect_schema()
    with pytest.raises(DamagedError, match=re.escape(f"{index} cannot be read")):
        Prepared(copy).index()
    done = command_line(
        *("experiment=smoke", "stage=adapt", f"inputs.prepare={copy}", f"output_root={tmp_path}")
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{index} cannot be read" in done.stderr and "overwrite=true" in done.stderr


@pytest.mark.parametrize("damage", of_weights(), ids=lambda damage: damage.name)
@pytest.mark.parametrize("way", ["whole", "divided"])
def test_wrong_weights_are_named(way: str, damage: Damage, smoke: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "hf"
    shutil.copytree(smoke / "adapt" / "hf", folder)
    model = read_whole(folder, torch.float32)
    fill(model, folder)
    damage.do(folder / "model.safetensors")
    told = {
        "a layer less": r"lacks \d+ \(model\.layers\.0\.",
        "a layer more": "surplus 1 .*layers.99",
    }
    with pytest.raises(
        UserError, match=told.get(damage.name, r"q_proj.weight \[1, \d+\] instead of")
    ):
        read_whole(folder, torch.float32) if way == "whole" else fill(model, folder)


def test_a_truncated_shard_of_weights_is_one_line(smoke: Path, tmp_path: Path) -> None:
    import torch

    for damage in ANY:
        folder = tmp_path / damage.name
        shutil.copytree(smoke / "adapt" / "hf", folder)
        damage.do(folder / "model.safetensors")
        if damage.name not in ("a byte flipped", "zeros at the end"):  # other numbers
            with pytest.raises(UserError, match=re.escape(f"model.path={folder}")):
                read_whole(folder, torch.float32)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_damaged_tokenizer_is_one_line(name: str, smoke: Path, tmp_path: Path) -> None:
    source = smoke / "adapt" / "hf"
    for number, damage in enumerate(damages(source / name)):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        damage.do(folder / name)
        if damage.whole or (name != "tokenizer.json" and damage.name in ("missing",)):
            continue
        with pytest.raises(UserError, match=re.escape(f"model.path={folder}")):
            load_tokenizer(folder)


def test_an_empty_tokenizer_is_refused(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(smoke / "adapt" / "hf", folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"] |= {"vocab": {}, "merges": []}
    content["added_tokens"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(folder)


def test_wrong_adapters_are_named(smoke: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    base, folder = smoke / "adapt" / "hf", tmp_path / "adapters"
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(read_whole(base, torch.float32), config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    read_whole(folder, torch.float32)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    other = name.replace("layers.0", "layers.99")
    for told, wrong in {
        "lacks 1": {one: value for one, value in tensors.items() if one != name},
        "surplus 1 .*layers.99": tensors | {other: tensors[name].clone()},
        r"\[1, \d+\] instead of": tensors | {name: tensors[name][:1].clone()},
    }.items():
        save_file(wrong, weights)
        with pytest.raises(UserError, match=told):
            read_whole(folder, torch.float32)


def test_a_text_of_the_trees_that_is_not_utf8_is_damage(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "training.arrow"
    content = (finished / "adapt" / "data" / "training.arrow").read_bytes()
    sample_id = str(read_trees(finished / "adapt" / "data" / "training.arrow")[0]["sample_ids"][0])
    assert sample_id.encode() in content
    path.write_bytes(content.replace(sample_id.encode(), b"\xbf" + sample_id.encode()[1:]))
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        read_trees(path)


def test_a_text_of_the_ledger_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.begin(["sample/1"], 2)
    path.write_bytes(path.read_bytes().replace(b"sample/1", b"\xbfample/1"))
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        Ledger(path)
