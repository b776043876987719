"""From overrides to runs: which runs there are, what they share, what is refused."""

from pathlib import Path

import pytest

from ehrr1.config.names import ORDER
from ehrr1.errors import UserError, need_extra
from ehrr1.sweeps.expand import begun
from ehrr1.sweeps.state import Entry
from tests.conftest import CommandLine

BIG = ["stage=curriculum", "trainer=zero3", "launcher=slurm_8gpu", "trainer.nodes=8"]
"""A curriculum on 64 GPUs."""


def planned(root: Path, *overrides: str) -> dict[str, Entry]:
    """The runs of a sweep of experiment=smoke, by name."""
    found = begun(["experiment=smoke", *overrides, f"output_root={root}"]).entries
    return {entry.run: entry for entry in found}


def finished(root: Path, *names: str) -> None:
    for name in names:
        (root / "smoke" / name).mkdir(parents=True)
        (root / "smoke" / name / "metrics.json").write_text("{}")


def test_a_grid_branches_where_its_settings_matter(tmp_path: Path) -> None:
    found = planned(tmp_path, "stage=curriculum", "seed=0,1", "rl.loss=grpo,dapo")
    assert list(found)[:7] == [f"smoke/{stage}" for stage in ORDER]
    assert list(found)[7:9] == ["smoke/rl.loss=dapo/rl", "smoke/rl.loss=dapo/eval"]
    assert len(found) == 15  # of 28: records, chains and what `rl` starts from are shared
    inner = found["smoke/seed=1/rl.loss=dapo/rl"]
    assert inner.needs == ["smoke/prepare", "smoke/seed=1/reason"]
    assert "seed=1" in inner.overrides and "rl.loss=dapo" in inner.overrides
    assert inner.settings == {"seed": "1", "rl.loss": "dapo"}
    last = found["smoke/seed=1/rl.loss=dapo/eval"]
    assert "smoke/seed=1/rl.loss=dapo/rl" in last.needs and "smoke/seed=1/adapt" in last.needs
    assert "seed=1" not in last.overrides  # all answer the same questions
    assert last.settings == inner.settings


def test_an_ablation_takes_its_own_way(tmp_path: Path) -> None:
    found = planned(tmp_path, "stage=curriculum", "ablation=none,no_reason,random_graph")
    assert found["smoke/no_reason/rl"].needs == ["smoke/prepare", "smoke/adapt"]
    assert "smoke/no_reason/reason" not in found and "smoke/random_graph/adapt" not in found
    assert found["smoke/random_graph/reason"].needs == [
        *("smoke/prepare", "smoke/random_graph/chains", "smoke/adapt"),
    ]


def test_what_is_finished_is_read_and_what_is_missing_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 'reason'.*add it to the chain \(stage=reason,rl"):
        planned(tmp_path, "stage=rl", "seed=1,2")
    finished(tmp_path, "prepare", "reason")
    found = planned(tmp_path, "stage=rl", "seed=1,2")
    assert list(found) == ["smoke/seed=1/rl", "smoke/seed=2/rl"]
    assert found["smoke/seed=1/rl"].needs == []
    assert f"inputs.reason='{tmp_path}/smoke/reason'" in found["smoke/seed=1/rl"].overrides


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["stage=adapt,infer"], "stage=adapt,infer: infer cannot be a link"),
        (["stage=prepare", "rl.los=1,2"], "rl.los"),
        (["stage=prepare", "model=tiny,huge"], "huge"),
        (["stage=prepare", "data.subjects=10,-3"], "data.subjects=-3: "),
        (["stage=prepare", "rl.lr=1e-3,1e-4"], "rl.lr: swept, but the result of prepare"),
        (["stage=prepare", "data.subjects=10,10"], "a value occurs twice"),
        (["stage=prepare", "status"], "status: neither an override"),
        (["stage=prepare", "data.subjects=[1"], "data.subjects"),
        (["stage=prepare", "name=a/b"], "name=a/b: it becomes a folder"),
        # what training stages would refuse, after graph and chains have run
        ([*BIG, "adapt.trees_per_step=8"], "adapt.trees_per_step=8: 64 processes cannot share it"),
        ([*BIG, "adapt.lr=1e-3,1e-4"], "rl.prompts_per_step=4: 64 processes cannot share it"),
        ([*BIG, "reason.optimizer=muon"], "reason.optimizer=muon with trainer.strategy=zero3"),
        (["stage=adapt", "inputs.prepare=.", "tokenise_only=true"], "tokenise_only=true: no stage"),
        (["stage=curriculum", "rl.minibatches=3"], "rl.minibatches=3: rl.prompts_per_step=4"),
        (["stage=curriculum", "trainer=ddp", "trainer.devices=3"], "=4: 3 processes cannot share"),
        (["stage=curriculum", "reason.max_tokens=9000"], "=9000: model=tiny reads at most 8192"),
        (["stage=curriculum", "+rl.rewards={nowhere.f: 1.0}"], "rl.rewards.nowhere.f: "),
    ],
)
def test_what_cannot_be_is_refused_whole(
    tmp_path: Path, overrides: list[str], complaint: str
) -> None:
    with pytest.raises(UserError) as error:
        planned(tmp_path, *overrides)
    assert complaint in str(error.value)
    assert not list(tmp_path.iterdir())


def test_groups_by_glob_and_names_that_no_folder_can_have(tmp_path: Path) -> None:
    found = planned(
        tmp_path, "stage=prepare,graph", "ablation=glob(no_k*)", "data.subjects=choice(9,8)"
    )
    assert "smoke/data.subjects=9/prepare" in found
    assert "smoke/data.subjects=9/no_knowledge/graph" in found
    finished(tmp_path, "prepare")
    odd = planned(
        tmp_path, "stage=adapt", "model.lora={r: 4, alpha: 8, dropout: 0.0, targets: [q_proj]}"
    )
    (name,) = odd
    assert "/" not in name.removeprefix("smoke/").removesuffix("/adapt") and " " not in name


@pytest.mark.slow
def test_a_run_that_was_begun_on_all_gpus_goes_on(
    tmp_path: Path, command_line: CommandLine
) -> None:
    """`trainer.devices=auto` stands in the command as a number, and is the same run when the sweep
    is asked for again; another learning rate is not."""
    finished(tmp_path, "prepare")
    asked = ["stage=adapt", "launcher=slurm_8gpu", "trainer=zero3"]
    ((_, entry),) = planned(tmp_path, *asked).items()
    config = command_line(*entry.overrides, "--cfg", "job", "--resolve")
    assert config.returncode == 0, config.stderr
    folder = Path(entry.folder)
    folder.mkdir(parents=True)
    written = config.stdout.replace("wording: null", "wording: file")  # as the schema fills it in
    (folder / "config.yaml").write_text(written)
    (folder / "inputs.json").write_text("{}")
    assert list(planned(tmp_path, *asked)) == [entry.run]
    (folder / "config.yaml").write_text(written.replace("devices: 8", "devices: 4"))
    with pytest.raises(UserError, match=r"trainer\.devices: 4 there, 8 now"):
        planned(tmp_path, *asked)


def test_tasks_follow_from_the_trainer(tmp_path: Path) -> None:
    finished(tmp_path, "prepare", "trainer=zero3-trainer.nodes=2/reason", "trainer=zero3/reason")
    slurm = ["stage=rl", "launcher=slurm_8gpu", "seed=1,2", "trainer=zero3"]
    slurm.append("rl.prompts_per_step=16")
    entry = planned(tmp_path, *slurm, "trainer.nodes=2")
    job = next(iter(entry.values())).job
    assert (job["nodes"], job["tasks_per_node"], job["gpus_per_node"]) == (2, 8, 8)
    assert "trainer.devices=8" in next(iter(entry.values())).overrides
    finished(tmp_path, "trainer=zero3-trainer.devices=4/reason")
    with pytest.raises(UserError, match=r"trainer.devices=4, launcher.gpus_per_node=8"):
        planned(tmp_path, *slurm, "trainer.devices=4")
    data = planned(tmp_path, "stage=prepare", "data.subjects=7,9", "launcher=slurm_8gpu")
    assert next(iter(data.values())).job["gpus_per_node"] == 0


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(UserError, match=r"launcher=slurm: no_such_package .*\[sweeps\]"):
        need_extra("launcher=slurm", "no_such_package", "sweeps")
    need_extra("launcher=slurm", "hydra", "sweeps")
