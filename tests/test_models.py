"""Sizes, loading, export, and generation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ehrr1.config.training import ModelSettings
from ehrr1.engines.base import SamplingParams
from ehrr1.engines.transformers import TransformersEngine, batches, kept
from ehrr1.errors import UserError
from ehrr1.models import loading
from ehrr1.models.loading import end_at_turn, load_model
from ehrr1.models.sizes import check_memory, parameter_count, requirements
from ehrr1.prompts.tokenizer import load_tokenizer, train_tokenizer
from ehrr1.prompts.trees import Branch, Tree
from tests.settings import composed


def model_settings(name: str, **config: Any) -> ModelSettings:
    """The section `model`, with other values in what Transformers calls the configuration."""
    return composed(f"model={name}", model={"config": config}).model


def small() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = train_tokenizer({"Potassium\nSodium": 3, "yes": 3, "no": 3}, 300)
    settings = model_settings("tiny", hidden_size=32, intermediate_size=48)
    return load_model(settings, None, tokenizer, seed=1), tokenizer


def write_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model as a stage leaves it in hf/."""
    model.generation_config = end_at_turn(model.config, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("smollm2_135m", 134_515_008),
        ("1.7b", 1_720_574_976),
        ("8b", 8_190_735_360),
        ("72b", 72_706_203_648),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert parameter_count(model_settings(name)) == count


def test_requirements_and_memory_are_known_before_loading() -> None:
    line = requirements(model_settings("8b"))
    assert "8,190,735,360" in line and "Qwen/Qwen3-8B" in line and "\n" not in line
    check_memory(model_settings("tiny"), "cpu")
    with pytest.raises(UserError, match="model=72b"):
        check_memory(model_settings("72b"), "cpu")


def test_weights_that_cannot_be_had_are_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "reachable", lambda source: Path(source).is_dir())
    settings = model_settings("8b")
    settings.path = "nobody/has-this-model"
    with pytest.raises(UserError, match=r"model\.path=nobody/has-this-model"):
        load_model(settings)
    settings.path = str(tmp_path)
    with pytest.raises(UserError, match=r"model\.path"):
        load_model(settings)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_random_weights_come_from_the_seed() -> None:
    (one, tokenizer), (two, _) = small(), small()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.config.vocab_size == len(tokenizer)
    assert one.training


def test_a_model_is_a_hugging_face_folder(tmp_path: Path) -> None:
    model, tokenizer = small()
    write_folder(model, tokenizer, tmp_path / "hf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert again.generation_config.eos_token_id == words.convert_tokens_to_ids("<|im_end|>")
    ids = torch.tensor([tokenizer("Potassium\nyes")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)
    chat = words.apply_chat_template(
        [{"role": "user", "content": "x"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert chat.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


PROMPTS = [[5, 6, 7], [8] * 11, [9, 10, 11, 12, 13, 14, 15]]


def test_greedy_generation_equals_transformers() -> None:
    model, tokenizer = small()
    rollout = TransformersEngine(model, tokenizer, batch_size=2)
    groups = rollout.generate(PROMPTS, SamplingParams(12, temperature=0))
    for prompt, [completion] in zip(PROMPTS, groups, strict=True):
        output = model.eval().generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert completion.tokens == output[0, len(prompt) :].tolist()
        assert completion.truncated == (completion.tokens[-1] != tokenizer.eos_token_id)


def test_a_group_shares_its_prompt_exactly() -> None:
    """Heads that share keys, prompts of several lengths, completions that end early."""
    tokenizer = train_tokenizer({"Potassium\nSodium": 3, "yes": 3, "no": 3}, 300)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}
    settings = model_settings("tiny", **shape)
    model = load_model(settings, None, tokenizer, seed=1)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 8
    rollout = TransformersEngine(model, tokenizer)
    groups = rollout.generate(PROMPTS, SamplingParams(20), group_size=5, seeds=[1, 2, 3])
    assert len({len(one.tokens) for group in groups for one in group}) > 2
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for one in group:
            whole = rollout.logprobs(prompt + one.tokens)[len(prompt) - 1 :]
            assert one.logprobs == pytest.approx(whole, abs=2e-5)


def test_sampling_returns_the_plain_logprobs_of_its_temperature() -> None:
    model, tokenizer = small()
    rollout = TransformersEngine(model, tokenizer, batch_size=8)
    with torch.no_grad():  # an end that is sometimes drawn: rows then leave the batch
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 8
    sampling = SamplingParams(15, temperature=0.7, top_p=0.9, top_k=20)
    groups = rollout.generate(PROMPTS, sampling, group_size=4, seeds=[3, 4, 5])
    assert groups == rollout.generate(PROMPTS, sampling, group_size=4, seeds=[3, 4, 5])
    assert groups != rollout.generate(PROMPTS, sampling, group_size=4, seeds=[6, 7, 8])
    for prompt, group, seed in zip(PROMPTS, groups, [3, 4, 5], strict=True):
        [alone] = rollout.generate([prompt], sampling, group_size=4, seeds=[seed])
        assert [one.tokens for one in alone] == [one.tokens for one in group]
    assert len({len(c.tokens) for group in groups for c in group}) > 1
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([prompt + completion.tokens])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1] / 0.7
            chances = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            assert torch.allclose(chances, torch.tensor(completion.logprobs), atol=1e-5)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logprobs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def left(top_p: float, top_k: int) -> list[bool]:
        return kept(logprobs, SamplingParams(1, 1.0, top_p, top_k)).isfinite()[0].tolist()

    assert left(1.0, 0) == [True] * 4
    assert left(1.0, 2) == [True, True, False, False]
    assert left(0.7, 0) == [True, True, False, False]
    assert left(0.1, 0) == [True, False, False, False]
    assert left(0.6, 3) == [True, True, False, False]


def test_next_token_logprobs_of_trees() -> None:
    model, tokenizer = small()
    trees = [
        Tree([5, 6, 7], [Branch("a", [8, 9], []), Branch("b", [10], [11])]),
        Tree([9] * 6, [Branch("c", [12], [])]),
    ]
    rollout = TransformersEngine(model, tokenizer, batch_tokens=10)
    found = dict(rollout.answers(trees, ids := [3, 0, 11]))
    assert sorted(found) == [0, 1]
    for number, tree in enumerate(trees):
        for branch, row in zip(tree.branches, found[number], strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([tree.trunk + branch.prompt])).logits[0, -1]
            wanted = logits.log_softmax(-1)[ids].double().numpy()
            np.testing.assert_allclose(row, wanted, atol=1e-5)


def test_batches_take_every_item_once_longest_first_within_the_limits() -> None:
    lengths = [5, 1, 9, 30, 9, 2]
    assert list(batches(lengths, 20)) == [[3], [2, 4], [0, 5, 1]]
    assert list(batches(lengths, 1000, 4)) == [[3, 2, 4, 0], [5, 1]]
    assert list(batches([], 20)) == []
