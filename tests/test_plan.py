"""stage=plan: what is counted is what the code takes, and the command line says it."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.plan_memory import CASES, measure, model_settings, predict
from ehrr1.config.schema import Config
from ehrr1.config.schema import check as check_settings
from ehrr1.config.training import Lora
from ehrr1.errors import UserError
from ehrr1.models import attention, flops
from ehrr1.models.activations import Storages
from ehrr1.models.attention import places, sees
from ehrr1.models.loading import add_adapters, load_model
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.memory import TreeShape, anatomy
from ehrr1.models.planning import Planner, other, samples, steps, tree
from ehrr1.models.sizes import GIB, model_config
from ehrr1.prompts.forest import collate
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.stages.plan import check, engine_rows
from tests.conftest import CommandLine
from tests.metrics_page import not_on_the_page
from tests.settings import composed
from tests.test_models import model_settings as settings_of

ADAPTERS = Lora(r=16, alpha=32, dropout=0.0, targets=["q_proj", "v_proj"])


def planned(*overrides: str) -> Config:
    """The configuration with everything as released."""
    return composed("stage=plan", "experiment=released", *overrides)


@pytest.mark.parametrize(
    ("name", "count"),
    [("1.7b", 1_720_574_976), ("8b", 8_190_735_360), ("72b", 72_706_203_648)],
)
def test_parameters_are_exact(name: str, count: int) -> None:
    model = settings_of(name)
    assert anatomy(model).base == anatomy(model).learnt == count
    model.lora = ADAPTERS
    adapted = anatomy(model)
    assert adapted.base == count
    config = model_config(model)
    size = adapted.attention // config.num_attention_heads
    wide, narrow = adapted.attention, config.num_key_value_heads * size
    each = 16 * (2 * config.hidden_size + wide + narrow)
    assert adapted.learnt == adapted.adapters == config.num_hidden_layers * each


def test_contract(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line(
        "stage=plan", "model=72b", "trainer=zero3", "cluster.gpus=64",
        "cluster.gpu_memory_gib=80", f"output_root={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "activations" in done.stderr and "GPU-hours" in done.stderr
    folder = tmp_path / "released" / "72b" / "plan"
    found = json.loads((folder / "metrics.json").read_text())
    assert not not_on_the_page("plan", found)
    assert found["parameters"] == 72_706_203_648
    assert found["fits"] == 1 and found["zero_stage/smallest"] == 3
    assert found["micro_batch/largest"] >= 1 and found["hours"] > 0
    states = sum(found[f"memory_gib/{part}"] for part in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(18 * 72_706_203_648 / 64 / GIB)
    assert states < found["memory_gib/total"] < 80
    assert found["tokens_per_step"] == 64 * 8192
    assert found["checkpoint/gb"] == pytest.approx(12 * 72.706203648)
    assert found["checkpoint/pause_seconds"] == pytest.approx(20 * found["checkpoint/gb"] / 2)
    assert found["checkpoint/share"] < 0.05 and "872.47 GB" in done.stderr
    assert all(isinstance(value, int | float) for value in found.values())
    assert "| total" in (folder / "plan.md").read_text()


def test_wrong_settings_are_refused_in_one_line(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("stage=plan", "cluster.gpus=0", f"output_root={tmp_path}")
    assert done.returncode == 2 and "cluster.gpus=0" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    check_settings(planned("trainer=zero3"))
    for overrides, words in (
        (["trainer=ddp", "trainer.offload=true"], r"trainer\.offload=true"),
        (["cluster.gpus=12"], r"cluster\.gpus=12.*gpus_per_node=8"),
        (["plan.answer_tokens.adapt=9000"], r"adapt=9000.*max_tokens=8192"),
        (["trainer=zero2", "adapt.optimizer=muon"], r"optimizer=muon.*set adamw"),
        (["cluster.reserved_gib=90"], r"cluster\.reserved_gib=90"),
    ):
        with pytest.raises(UserError, match=words):
            check(planned(*overrides))


def test_memory_falls_where_it_should() -> None:
    cfg = planned("model=8b", "trainer=zero3")
    planner = Planner(cfg)
    by_gpus = []
    for gpus in (8, 16, 64):
        cfg.cluster.gpus = gpus
        by_gpus.append(planner.memory(cfg.trainer).total)
    assert by_gpus == sorted(by_gpus, reverse=True) and len(set(by_gpus)) == 3
    usual = by_gpus[-1]
    assert planner.memory(other(cfg.trainer, "zero3_offload")).total < usual
    assert planner.memory(cfg.trainer, 2).total > usual
    whole = planner.memory(other(cfg.trainer, "ddp")).total
    cfg.trainer.activation_checkpointing = False
    assert planner.memory(cfg.trainer).total > usual
    cfg.trainer.activation_checkpointing = True
    cfg.model.lora = ADAPTERS
    assert Planner(cfg).memory(other(cfg.trainer, "ddp")).total < whole / 3


def test_what_fits() -> None:
    cfg = planned("model=8b", "trainer=single", "trainer.precision=bf16-mixed")
    planner = Planner(cfg)
    assert planner.memory(cfg.trainer).total > 16 * 8_190_735_360
    assert not planner.fits(cfg.trainer) and planner.largest(cfg.trainer) == 0
    zero3 = other(planned("trainer=zero3").trainer, "zero3")
    most = planner.largest(zero3)
    room = cfg.cluster.gpu_memory_gib * GIB
    assert planner.memory(zero3, most).total <= room < planner.memory(zero3, most + 1).total
    offloaded = other(zero3, "zero3_offload")
    assert planner.on_cpu(planner.memory(offloaded)) == pytest.approx(20 * 8_190_735_360 / GIB)
    cfg.cluster.cpu_memory_gib = 100
    assert planner.fits(zero3) and not planner.fits(offloaded)


def test_rl_counts_the_group_and_its_cache() -> None:
    cfg = planned("model=8b", "trainer=zero3", "plan.stage=rl")
    planner = Planner(cfg)
    assert planner.shape.tokens == 10_000 + 16 * 2_048
    parts = planner.memory(cfg.trainer).parts
    # 36 layers, keys and values of 8 heads of 128 in bf16, 16 completions with their prompt
    assert parts["rollout_cache"] == 36 * 2 * 8 * 128 * 2 * 16 * 12_048
    assert steps(cfg, 4) == 500 * 45 / 4
    # rows of less than the group: three completions each, and the prompt six times
    divided = Planner(planned("model=8b", "plan.stage=rl", "rl.max_batch_tokens=16384"))
    assert divided.shape.tokens == 10_000 + 3 * 2_048 and divided.parts == 6
    assert divided.time().tokens_per_step == 4 * 6 * divided.shape.tokens


def test_rl_counts_what_the_engine_holds_and_keeps() -> None:
    """Beside its share, which weights and at least one completion must fit into."""
    cfg = planned("model=8b", "trainer=zero3", "plan.stage=rl", "rollout=vllm", "cluster.gpus=64")
    planner = Planner(cfg)
    found = planner.memory(cfg.trainer)
    assert found.moments["rollout"]["rollout_engine"] == 0.4 * 80 * GIB
    # a second CUDA context, NCCL and graphs are there while the engine sleeps, too
    assert {moment["engine_reserved"] for moment in found.moments.values()} == {2 * GIB}
    completion = 36 * 2 * 8 * 128 * 2 * 12_048
    assert planner.engines.holds == (32 * GIB - 2 * 8_190_735_360) // completion == 10
    assert planner.fits(cfg.trainer)
    assert "10 completions of 12,048 tokens" in str(engine_rows(planner))
    # 145 GB of weights, however many GPUs divide the trainer's
    cfg = planned("model=72b", "trainer=zero3", "plan.stage=rl", "rollout=vllm", "cluster.gpus=128")
    planner = Planner(cfg)
    assert sum(planner.memory(cfg.trainer).moments["rollout"].values()) < 80 * GIB
    assert not planner.fits(cfg.trainer) and planner.engines.holds < 0
    assert "rollout=vllm_server" in str(engine_rows(planner))
    assert not engine_rows(Planner(planned("plan.stage=rl"))) and planner.largest(cfg.trainer) == 0


def test_a_step_of_rl_by_phase() -> None:
    """72B on 128 GPUs, by hand: 64 learn, and eight servers of eight write."""
    cfg = planned(
        *(
            "model=72b",
            "trainer=zero3",
            "plan.stage=rl",
            "cluster.gpus=64",
            "rl.prompts_per_step=64",
        ),
        *("rollout=vllm_server", "rollout.sync=memory", "plan.servers=8", "plan.server_gpus=8"),
        "rl.max_batch_tokens=16384",
    )
    planner = Planner(cfg)
    time, weights = planner.time(), 2 * 72_706_203_648
    assert planner.fits(cfg.trainer) and time.gpus == 128
    # eight adapters of a node gather what ZeRO-3 divides, then one sends it
    assert time.phases["weights"] == pytest.approx(weights / 400e9 + weights / 50e9)
    # a server has the groups of eight prompts, more completions than it holds; a pass reads the
    # weights, and keys and values of 80 layers of 8 heads of 128 at half of the answer's length
    held = int((0.9 * 8 * 80 * GIB - weights) / (80 * 4096 * 12_048))
    assert planner.engines.holds == held == 119
    read = weights + held * 80 * 4096 * (10_000 + 1_024)
    passes = 2048 * 8 * 16 / held
    assert time.phases["completions"] == pytest.approx(passes * read / (8 * 3350e9 * 0.6))
    assert time.seconds_per_step == pytest.approx(sum(time.phases.values()))
    # by files the weights are written and read
    cfg.rollout.sync = "files"
    assert Planner(cfg).time().phases["weights"] == pytest.approx(weights / 400e9 + weights / 1e9)
    # in the trainer, each token waits until the weights have come from the other GPUs
    alone = planned("model=72b", "trainer=zero3", "plan.stage=rl", "cluster.gpus=64")
    assert Planner(alone).time().phases["completions"] == pytest.approx(2048 * weights / 400e9)
    cfg.plan.server_gpus = 1
    assert not Planner(cfg).fits(cfg.trainer)


def test_checkpoints_follow_the_settings() -> None:
    cfg = planned("model=8b", "trainer=zero2", "adapt.eval_every=100", "trainer.save_top_k=3")
    found = Planner(cfg).saving(seconds_per_step=2.0)
    assert found.size == 14 * 8_190_735_360 and found.room == 5 * found.size
    assert found.pause == pytest.approx(20 * found.size / 2e9) and found.every == 200
    assert found.share > 1 / 21
    cfg.plan.stage = "rl"  # which keeps the last alone
    assert Planner(cfg).saving(2.0).room == 2 * found.size
    cfg.cluster.write_gb_per_second = 1e6
    assert Planner(cfg).saving(2.0).pause == cfg.rl.save_seconds
    cfg.rl.save_seconds = 0
    assert Planner(cfg).saving(7.0).pause == 7
    cfg.model.lora = Lora(r=16, alpha=32, dropout=0.0, targets=["q_proj", "v_proj"])
    assert Planner(cfg).saving(2.0).size == 14 * Planner(cfg).body.adapters


def test_samples_and_steps_follow_the_settings() -> None:
    assert samples(planned()) == 3_500_000
    assert steps(planned(), 8) == 437_500
    assert steps(planned("plan.stage=reason"), 64) == 5 * 4_688
    few = planned("adapt.samples_per_task=100", "adapt.decision_samples_per_task=10")
    assert samples(few) == 18 * 100 + 27 * 10
    assert steps(planned("plan.questions=4"), 8) == 109_375
    assert tree(planned("plan.questions=4")).tokens == 8_192 + 3 * 128


def test_operations() -> None:
    shape = TreeShape(7, (3, 2), 5)
    forest = collate([Tree([5] * 7, [Branch("a", [5], [5] * 2), Branch("b", [5], [5])])])
    assert forest.tokens == shape.tokens
    where = places(forest.shapes, torch.device("cpu"))
    seen = sees(where, where.place[:, None], where.place[None, :]).sum().item()
    assert flops.pairs(shape) == seen
    body = anatomy(settings_of("8b"))
    short = TreeShape(100, (28,), 128)
    # six operations a weight and token; what attention adds is small for a short text
    plain = 6 * (body.layers + body.head) * short.tokens
    assert flops.training(body, short, checkpointing=False) == pytest.approx(plain, rel=0.01)
    again = flops.training(body, short, checkpointing=True)
    assert again - flops.training(body, short, False) == pytest.approx(
        2 * body.layers * short.tokens, rel=0.01
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpointing": True, "all": True},
        {"branches": 6},
        {"lora": {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}},
        {"config": {"vocab_size": 60_000}, "all": True, "checkpointing": True},
        {"config": {"vocab_size": 70_000}, "checkpointing": True},
    ],
    ids=["plain", "checkpointing", "branches", "lora", "vocabulary", "tied"],
)
def test_storages_of_a_real_step_are_as_planned(
    changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations and logits alone, byte by byte: the same count on real tensors, with attention as
    a GPU computes it."""
    monkeypatch.setitem(attention.PREPARE, "forest_sdpa", attention.two_parts)
    config = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    case = {"trunk": 640, "branch": 64} | changes
    case["config"] = config | {"vocab_size": 500} | case.get("config", {})
    found = predict(case)
    states = sum(found["parts"][name] for name in ("weights", "gradients", "optimizer"))
    model = load_model(model_settings(case))
    if case.get("lora"):
        add_adapters(model, Lora(**case["lora"]))
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable()
    ids = torch.randint(5, 400, (704,)).tolist()
    branches = [Branch("", ids[640:641], ids[641:])] * case.get("branches", 1)
    forest = collate([Tree(ids[:640], branches)], 1.0 if case.get("all") else 0.0)
    token_logprobs(model, forest).logprobs.sum().backward()  # gradients are there from here on
    with Storages() as storages:
        token_logprobs(model, forest).logprobs.sum().backward()
    assert found["planned"] - states == pytest.approx(storages.peak, rel=0.1)


@pytest.mark.parametrize("name", ["small, LoRA", "base, checkpointing, short"])
def test_measured_memory_is_as_planned(name: str) -> None:
    """A process of its own trains two steps; its peak resident memory is within 15 %."""
    assert name in CASES
    found = measure(name)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)
