"""Model and rows on another device than the CPU: whatever stays behind is found.

A GPU is not needed: tensors of the meta device have shapes and types but no values, and an
operation that meets one of the CPU beside one of them is refused, as CUDA refuses it. `Elsewhere`
lets what is read (`.item()`, `.cpu()`) be ones. Strategies are not covered: DDP and DeepSpeed
exchange values.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental import _config as config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.signatures import Call, check
from ehrr1.engines.base import SamplingParams
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.models import attention
from ehrr1.prompts.forest import Forest, collate
from ehrr1.prompts.schedule import Step
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.training.groups import Microbatch
from ehrr1.training.grpo import EngineSpec, GRPOModule, Policy
from ehrr1.training.module import ForestModule
from ehrr1.training.sft import SupervisedModule
from tests.settings import composed
from tests.test_grpo import group, rl_settings
from tests.test_models import small

META, CPU = torch.device("meta"), torch.device("cpu")
ATEN = torch.ops.aten
MOVES = {ATEN.copy_.default, ATEN._to_copy.default, ATEN.index.Tensor}
"""Operations that CUDA allows between devices: copies, and indices on the CPU."""

COMPLETIONS = 2
"""Metrics of each update of `reinforce`."""

COLUMNS = ("input_ids", "position_ids", "targets", "weights")
WAYS = ("sdpa", "flex", "varlen", "dense")


class Elsewhere(TorchDispatchMode):
    """Refuses operations on tensors of both devices, and reads ones from the meta device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        given = [one for one in tree_leaves((args, named)) if isinstance(one, Tensor)]
        there = [one for one in given if one.is_meta]
        if there and func is ATEN._local_scalar_dense.default:
            return torch.ones((), dtype=there[0].dtype).item()
        if there and CPU in (*args, *named.values()):  # whatever `.cpu()` is made of
            return torch.ones(there[0].shape, dtype=named.get("dtype") or there[0].dtype)
        # a CPU's scalar may meet any device
        left = [one for one in given if not one.is_meta and one.ndim]
        if there and left and func not in MOVES:
            raise RuntimeError(f"{func} got {left[0].dtype} [{tuple(left[0].shape)}] of the CPU")
        if there and func is ATEN.bincount.default:  # its length depends on values
            return torch.empty(COMPLETIONS, dtype=torch.long, device=META)
        return func(*args, **named)


def flex_on_one_device(query: Tensor, *others: Tensor, block_mask: Any, **named: Any) -> Tensor:
    """FlexAttention, which takes no meta tensors; its mask is the real one."""
    parts = (block_mask.kv_num_blocks, block_mask.kv_indices)
    assert {one.device for one in (query, *others, *parts)} == {META}
    assert len({one.dtype for one in (query, *others)}) == 1
    return query + 0 * sum(one.sum() for one in others)


def on_one_device(*given: Any, **named: Any) -> Tensor:
    """flash-attn's kernel, which checks devices and types itself (flash_api.cpp)."""
    tensors = [one for one in given if isinstance(one, Tensor)]
    assert {one.device for one in tensors} == {META}, "flash-attn got tensors of two devices"
    assert tensors[3].dtype == tensors[4].dtype == torch.int32
    return torch.empty_like(given[0]) + 0 * given[0]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace what Lightning does around a step, and kernels that only a GPU has."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = on_one_device  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", module)
    monkeypatch.setattr(ForestModule, "manual_backward", lambda self, loss: loss.backward())
    monkeypatch.setattr(attention, "flex_attention", flex_on_one_device)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(ForestModule, "watch", lambda self, metrics: None)
    monkeypatch.setattr(ForestModule, "lr_schedulers", lambda self: [])
    monkeypatch.setattr(
        ForestModule,
        "optimizers",
        lambda self: torch.optim.AdamW(self.model.parameters(), foreach=False),
    )
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


@pytest.fixture(scope="module")
def start() -> tuple[Any, Any]:
    return small()


def there(start: tuple[Any, Any], way: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The model on the meta device, in training."""
    model = start[0].to(META, dtype).train()
    model.set_attn_implementation(f"forest_{way}")
    return model


def placed(module: ForestModule, model: Any) -> Any:
    """A module as Lightning leaves it to a step: model, device and trainer are there."""
    module.model = model
    module._trainer = SimpleNamespace(strategy=None, world_size=1, global_step=0)  # type: ignore[assignment]
    return module.to(META)


def forest() -> Forest:
    trees = [
        Tree(list(range(5, 25)), [Branch("a", [5, 6], [7, 8, 9]), Branch("b", [], [9] * 5)]),
        Tree([5, 6, 7], [Branch("c", [8], [9])]),
    ]
    return collate(trees, record_weight=0.5)


def supervise(start: tuple[Any, Any], model: Any, folder: Path) -> None:
    """One training step of `adapt` and `reason` in two rows, and an evaluation."""
    module = SupervisedModule(lambda sharding: model, composed().adapt, 1, folder / "e.json")
    placed(module, model)
    step = Step([forest(), forest()], 1.0, 1, 1).to(META)
    module.training_step(step, 0)
    module.on_validation_start()
    module.validation_step(step, 0)


def reinforce(start: tuple[Any, Any], model: Any, folder: Path) -> None:
    """The updates of `rl` on one rollout, with everything that a loss can need."""
    changes = {"loss": "gspo", "beta": 0.1, "minibatches": 2, "correction": "sequence_truncate"}
    settings = rl_settings(**changes, kl="k3", mask_truncated=False, temperature=0.7)
    data: Any = SimpleNamespace(plan=[[0, 1]], citable=None)
    policy = Policy(lambda sharding: model, start[1], None)
    engine = EngineSpec(lambda model: None, 1.0)  # type: ignore[arg-type, return-value]
    module = GRPOModule(policy, settings, data, engine, folder, seed=0, shown=False)
    placed(module, model)
    module.reference = (model,)
    groups = [group([1.0, -1.0], [3, 2]), group([0.5, -0.5], [1, 4], name="s1")]
    sums: Any = dict.fromkeys(("entropy", "tokens", *SUMS), 0.0)
    for one in groups:
        module.learn(module.rows([one]), sums)


SUMS = (
    *("kl", "ratio", "clipped_low", "clipped_high"),
    *("mismatch", "mismatch_log", "mismatch_ratio", "correction"),
)


def generate(start: tuple[Any, Any], model: Any, folder: Path) -> None:
    """Compute with an engine in this process: a first token, answers, log-probabilities."""
    engine = TransformersEngine(model, start[1])
    prompts, sampling = [[5, 6, 7], [8, 9]], SamplingParams(1, top_p=0.9, top_k=5)
    assert len(engine.generate(prompts, sampling, group_size=2)) == 2
    trees = [Tree([5, 6, 7], [Branch("a", [8], []), Branch("b", [9, 9], [])])]
    [(_, found)] = engine.answers(trees, [5, 6])
    assert found.shape == (2, 2)
    assert len(engine.logprobs([5, 6, 7])) == 2


THEIRS = """
class Engine:
    def sleep(self, level: int = 1, *, mode="abort"): ...
class Settings:
    dtype: str = "auto"
    length: int | None = None
"""
OURS = (
    "place = {'dtype': 1}\nplace['length'] = 2\nSettings(**place)\nengine.sleep(2, mode='wait')\n"
)


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        (OURS, THEIRS, None),
        (OURS, THEIRS.replace("mode", "how"), "ours.py:4: Engine.sleep: got an unexpected keyword"),
        (OURS, THEIRS.replace("level: int = 1, *", "*"), "too many positional arguments"),
        (OURS, THEIRS.replace("level: int = 1", "level, tags"), "missing a required argument"),
        (OURS, THEIRS.replace("length", "size"), "ours.py:3: Settings: got an unexpected keyword"),
        (OURS, THEIRS.replace("sleep", "doze"), "theirs.py has no Engine.sleep"),
        (OURS.replace("engine.", "other."), THEIRS, "ours.py does not call engine.sleep"),
    ],
)
def test_a_call_that_does_not_fit_is_told(
    ours: str, theirs: str, problem: str | None, tmp_path: Path
) -> None:
    """Compare made-up sources as `python -m benchmarks.signatures` compares those it downloads."""
    (tmp_path / "ours.py").write_text(ours)
    (tmp_path / "theirs.py").write_text(theirs)
    calls = [Call("ours.py", "Settings", "theirs.py", "Settings")]
    calls.append(Call("ours.py", "engine.sleep", "theirs.py", "Engine.sleep"))
    found = [one for call in calls for one in check(call, tmp_path, tmp_path)]
    assert not found if problem is None else len(found) == 1 and problem in found[0]


WORK: dict[str, Callable[..., None]] = {
    "supervise": supervise,
    "reinforce": reinforce,
    "generate": generate,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("work", WORK)
def test_nothing_stays_on_the_cpu(
    work: str, way: str, dtype: torch.dtype, start: tuple[Any, Any], tmp_path: Path
) -> None:
    model = there(start, way, dtype)
    with Elsewhere():
        WORK[work](start, model, tmp_path)


@pytest.fixture
def left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A planted mistake: a tensor that is not moved."""
    name: str = request.param
    if name in WAYS:
        prepare = attention.PREPARE[f"forest_{name}"]
        monkeypatch.setitem(
            attention.PREPARE,
            f"forest_{name}",
            lambda shapes, device: prepare(shapes, torch.device("cpu")),
        )
    else:
        kind: Any = Forest if name in COLUMNS or name == "owners" else Microbatch
        moved = kind.to
        monkeypatch.setattr(
            kind,
            "to",
            lambda self, device: replace(moved(self, device), **{name: getattr(self, name)}),
        )
    yield name


@pytest.mark.parametrize("left_behind", [*COLUMNS, *WAYS], indirect=True)
def test_a_tensor_of_supervised_training_that_stays_is_found(
    left_behind: str, start: tuple[Any, Any], tmp_path: Path
) -> None:
    model = there(start, left_behind if left_behind in WAYS else "sdpa")
    with pytest.raises((RuntimeError, AssertionError)), Elsewhere():
        supervise(start, model, tmp_path)


@pytest.mark.parametrize(
    "left_behind", [*COLUMNS, "owners", "advantages", "sampled"], indirect=True
)
def test_a_tensor_of_reinforcement_that_stays_is_found(
    left_behind: str, start: tuple[Any, Any], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"CPU|cpu"), Elsewhere():
        reinforce(start, there(start), tmp_path)


@pytest.mark.parametrize("way", ["sdpa", "dense"])
def test_a_query_of_another_type_is_found(
    way: str, start: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As norms in float32 give it to weights in bfloat16, if nothing casts it."""
    monkeypatch.setattr(attention, "of_one_type", lambda q, k, v: (q.float(), k, v))
    with pytest.raises(RuntimeError), Elsewhere():
        supervise(start, there(start, way, torch.bfloat16), tmp_path)
