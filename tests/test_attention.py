"""A forest is exact: every attention gives what each branch has alone behind its trunk."""

import random
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from ehrr1.errors import UserError
from ehrr1.models import attention, merged_attention
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.prefix_cache import SharedTrunks
from ehrr1.models.prune_last_layer import shorten_last_layer
from ehrr1.prompts.forest import Shape, collate
from ehrr1.prompts.trees import Tree
from tests.test_forest import random_tree

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "qwen2.5": Qwen2Config(**SMALL),
    "llama": LlamaConfig(**SMALL),
}
TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (2e-6, 1e-5)}
"""Of log-probabilities, absolute; of the gradient, relative to its norm."""


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Compute on a CPU what flash-attn's function of this name does; its kernel needs a GPU."""
    assert causal and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    found = []
    for begin, end, first, last in zip(
        cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True
    ):
        queries, keys = int(end - begin), int(last - first)
        assert queries <= max_seqlen_q and keys <= max_seqlen_k
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        found.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[begin:end].transpose(0, 1),
                k[first:last].transpose(0, 1),
                v[first:last].transpose(0, 1),
                attn_mask=mask,
                scale=softmax_scale,
                enable_gqa=True,
            ).transpose(0, 1)
        )
    return torch.cat(found)


def flex_attention_with_gradient(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """FlexAttention refuses gradients on CPU: with one, its mask function over all pairs."""
    if not query.requires_grad:
        return flex_attention(query, key, value, **given)
    rows, columns = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    zero = torch.tensor(0)
    mask = given["block_mask"].mask_mod(zero, zero, rows, columns)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=given["scale"], enable_gqa=given["enable_gqa"]
    )


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(attention, "flex_attention", flex_attention_with_gradient)


@pytest.fixture(autouse=True)
def norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' norms compute in float32 whatever the model's type, which would hide any
    difference below 1e-7: here they compute in the type that they are given."""

    def forward(norm: LlamaRMSNorm, states: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(
            states, norm.weight.shape, norm.weight, norm.variance_epsilon
        )

    for kind in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(kind, "forward", forward)


def small_model(kind: str, dtype: torch.dtype, way: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        CONFIGS[kind], attn_implementation=attention.choose(way, dtype), dtype=dtype
    )


def alone(model: PreTrainedModel, tree: Tree) -> Tensor:
    """The reference: each branch behind the trunk as a row of its own."""
    found = []
    for branch in tree.branches:
        ids = tree.trunk + branch.prompt + branch.completion
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        learnt = len(branch.completion)
        targets = torch.tensor(branch.completion)
        found.append(logits[-learnt - 1 : -1].gather(1, targets[:, None])[:, 0])
    return torch.cat(found)


def gradient(model: PreTrainedModel, logprobs: Tensor) -> Tensor:
    """Return the gradient of a sum in which every learnt token has another weight."""
    weights = torch.linspace(0.5, 1.5, len(logprobs), dtype=logprobs.dtype)
    parts = torch.autograd.grad((weights * logprobs).sum(), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def assert_exact(model: PreTrainedModel, trees: list[Tree], chunk: int = 2**25) -> None:
    together = token_logprobs(model, collate(trees), chunk=chunk).logprobs
    reference = torch.cat([alone(model, tree) for tree in trees])
    value, relative = TOLERANCES[reference.dtype]
    assert (together - reference).abs().max() < value
    with torch.no_grad():
        plain = token_logprobs(model, collate(trees), chunk=chunk).logprobs
    assert (plain - reference).abs().max() < value
    expected = gradient(model, reference)
    assert (gradient(model, together) - expected).norm() / expected.norm() < relative


WAYS = ("sdpa", "flex", "varlen", "dense")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32"])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("way", WAYS)
def test_forest_equals_single_rows(way: str, kind: str, dtype: torch.dtype) -> None:
    """1 to 16 branches, trunks of 0 to 300 tokens, several trees in a row, grouped queries; with
    and without activation checkpointing, with the last layer whole and shortened."""
    generator = random.Random(1)
    trees = [random_tree(generator, trunk, n) for trunk, n in ((7, 1), (300, 5), (23, 16), (0, 2))]
    for short in (False, True):
        for checkpointing in (False, True):
            model = small_model(kind, dtype, way)
            if short:
                shorten_last_layer(model)
            if checkpointing:
                model.gradient_checkpointing_enable()
            assert_exact(model, trees)
    assert_exact(model, trees, chunk=300)  # and in chunks over the vocabulary


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_long_trunks_and_long_branches(way: str) -> None:
    """A trunk of 4,000 tokens, and branches that `sdpa` computes one at a time and several."""
    generator = random.Random(2)
    tree = random_tree(generator, 4000, 3)
    tree.branches[1].completion.extend(generator.randrange(1, 99) for _ in range(300))
    model = small_model("qwen3", torch.float64, way)
    shorten_last_layer(model)
    assert_exact(model, [tree, random_tree(generator, 100, 2)])


@pytest.mark.parametrize("way", WAYS)
def test_completions_right_behind_the_trunk(way: str) -> None:
    """As in GRPO without a question of its own: the trunk's last token predicts."""
    generator = random.Random(3)
    trees = [random_tree(generator, trunk, n, asked=False) for trunk, n in ((7, 4), (40, 2))]
    model = small_model("qwen3", torch.float64, way)
    shorten_last_layer(model)
    assert_exact(model, trees)


def test_record_tokens_are_learnt_exactly_too() -> None:
    tree = random_tree(random.Random(4), 50, 3)
    model = small_model("llama", torch.float64)
    shorten_last_layer(model)
    found = token_logprobs(model, collate([tree], record_weight=0.5)).logprobs
    ids = torch.tensor([tree.trunk])
    record = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    reference = torch.cat([record, alone(model, tree)])
    assert (found - reference).abs().max() < 1e-10


def test_a_record_costs_its_last_layer_keys_and_values_only() -> None:
    """A trunk's token passes no feed-forward part of the last layer, and all of the others."""
    model = small_model("qwen3", torch.float32)
    shorten_last_layer(model)
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda mlp, given, out: seen.append(out.shape[1]))
    tree = random_tree(random.Random(3), 30, 4)
    token_logprobs(model, collate([tree]))
    assert seen == [len(tree), len(tree) - 30]
    seen.clear()
    token_logprobs(model, collate([tree], record_weight=1.0))
    assert seen == [len(tree), len(tree)]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MistralConfig(**SMALL, sliding_window=16), "sliding_window=16"),
        (Gemma3TextConfig(**SMALL, sliding_window=16), "sliding_window=16"),
        (Gemma2Config(**SMALL), "attn_logit_softcapping"),
        (Qwen3NextConfig(**SMALL), "linear_attention"),
    ],
)
def test_layers_that_do_not_attend_to_everything_are_refused(
    config: PreTrainedConfig, named: str
) -> None:
    """Their own attention differs from a forest's, which nothing would show."""
    with pytest.raises(UserError, match=f"{config.model_type} has layers with {named}"):
        attention.check_reach(config, 17)


def test_a_window_that_holds_the_longest_text_changes_nothing() -> None:
    """The row may be longer than the window: each text counts by itself."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MistralConfig(**SMALL, sliding_window=50), attn_implementation="forest_sdpa"
    )
    trees = [random_tree(random.Random(n), 20, 2) for n in range(3)]
    assert sum(map(len, trees)) > 50
    found = token_logprobs(model, collate(trees)).logprobs
    expected = torch.cat([alone(model, tree) for tree in trees])
    assert (found - expected).abs().max() < 2e-6
    with pytest.raises(UserError, match="sliding_window=50"):
        token_logprobs(model, collate([random_tree(random.Random(0), 60, 1)]))
    for kind in CONFIGS.values():
        attention.check_reach(kind, 8192)


def test_branches_are_bunched_within_a_bound() -> None:
    assert merged_attention.bunched([100, 100, 100, 300, 10]) == [[100, 100], [100], [300], [10]]
    one, other = attention.two_parts([Shape(5, (2, 3)), Shape(0, (4,))], torch.device("cpu"))
    assert (one.trunk, one.length, other.trunk, other.length) == (5, 5, 0, 4)
    own = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert one.bunches[0].mask(5).int().tolist() == [[1] * 5 + row for row in own]


def test_calls_of_the_cpu_cover_each_pair_once() -> None:
    """One branch is just causal, several have a mask."""
    shapes = [Shape(13, (2, 3)), Shape(0, (4,)), Shape(7, (600, 5))]
    where = attention.places(shapes, torch.device("cpu"))
    expected = attention.sees(where, where.place[:, None], where.place[None, :]).int()
    found = torch.zeros_like(expected)
    begun = torch.zeros(len(found), dtype=torch.bool)
    for call in merged_attention.calls(shapes):
        queries, keys = (len(found[place]) for place in (call.queries, call.keys))
        pairs = torch.ones(queries, keys).tril() if call.causal else torch.ones(queries, keys)
        found[call.queries, call.keys] += (pairs if call.mask is None else call.mask.exp()).int()
        assert call.first == (not begun[call.queries].any()) == (not begun[call.queries].all())
        begun[call.queries] = True
    assert found.equal(expected)


def test_merged_parts_equal_one_masked_call() -> None:
    """Compare the CPU's computation with the GPU's, values and gradients, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [Shape(40, (3, 7, 300, 1)), Shape(9, (5,)), Shape(0, (6, 2))]
    length = sum(shape.trunk + sum(shape.branches) for shape in shapes)
    given = [
        torch.randn(1, heads, length, 16, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    ]
    for one in given:
        one.requires_grad_()
    masked = attention.two_parts(shapes, torch.device("cpu"))
    merged = merged_attention.calls(shapes)
    found, expected = (attention.sdpa(*given, parts, None) for parts in (merged, masked))
    assert (found - expected).abs().max() < 1e-12
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = (torch.autograd.grad(one, given, upstream) for one in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_auto_takes_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = torch.bfloat16, torch.float32
    assert attention.choose("dense", half) == "forest_dense"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention.choose("auto", half) == "forest_sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    assert attention.choose("auto", half) == "forest_flex"
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    assert attention.choose("auto", half) == "forest_varlen"
    # flash-attn has no kernel for it
    assert attention.choose("auto", single) == "forest_flex"


def test_rows_read_their_prompts_while_others_end() -> None:
    """Prompts of several lengths, groups of which some rows end, prompts that none continues."""
    torch.manual_seed(0)
    lengths, heads, shared, size, group = [5, 9, 2, 7], 4, 2, 8, 3
    cache = DynamicCache()
    trunk = [torch.randn(len(lengths), shared, max(lengths), size) for _ in "kv"]
    cache.update(*trunk, 0)
    trunks = SharedTrunks(cache, lengths, group)
    rows = torch.arange(len(lengths) * group)
    # all rows, one less, two prompts without any, a single row
    for kept in (None, [0, 1, 2, *range(4, 12)], [0, 1, 8, 9], [2]):
        if kept is not None:
            trunks.keep(torch.tensor(kept))
            rows = rows[kept]
        query = torch.randn(len(rows), heads, 1, size)
        key, value = (torch.randn(len(rows), shared, 3, size) for _ in "kv")
        found = trunks.attend(0, query, key, value, 0.3)
        for at, row in enumerate(rows.tolist()):
            prompt = row // group
            whole = [
                torch.cat([some[prompt, :, -lengths[prompt] :], own[at]], 1)
                for some, own in zip(trunk, (key, value), strict=True)
            ]
            expected = scaled_dot_product_attention(query[at], *whole, scale=0.3, enable_gqa=True)
            assert torch.allclose(found[at], expected, atol=1e-6)
