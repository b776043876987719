"""The results of an evaluation, and their names."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.evaluation.targets import results
from tests.settings import composed


def settings(*overrides: str, **changes: Any) -> Config:
    return composed(*overrides, **changes)


def stages(folder: Path, *names: str, think: str = "task") -> dict[str, Path]:
    for name in names:
        (folder / name).mkdir()
        OmegaConf.save({"rl": {"think": think}}, folder / name / "config.yaml")
    return {name: folder / name for name in names}


def test_stages_are_asked_as_they_were_trained_under_their_own_names(tmp_path: Path) -> None:
    found = results(settings(), stages(tmp_path, "adapt", "reason", "rl"))
    assert [one.name for one in found] == ["untrained", "adapt", "reason", "rl"]
    assert [one.decision.answer for one in found if one.decision] == [
        *("direct", "direct", "think", "think")
    ]
    assert {one.risk.answer for one in found if one.risk} == {"direct"}
    assert found[0].source is None and found[3].source == tmp_path / "rl" / "hf"


def test_a_mode_that_is_chosen_is_part_of_the_name(tmp_path: Path) -> None:
    inputs = stages(tmp_path, "adapt", "rl")
    cfg = settings(answer=["think", "both"], candidates="list", eval={"models": ["rl"]})
    think, both = results(cfg, inputs)
    assert (think.name, both.name) == ("rl:think-list", "rl:both-list")
    assert both.decision is None and both.risk is not None and both.risk.answer == "both"
    named = [one.name for one in results(settings(wording="ours"), inputs)]
    assert named == ["untrained:ours", "adapt:ours", "rl:ours"]


def test_a_model_of_others_has_its_own_name_and_tells_its_mode() -> None:
    model = {"name": "EHR-R1-8B", "path": "BlueZeros/EHR-R1-8B"}
    [one] = results(settings(model=model), {})
    assert one.name == "EHR-R1-8B:direct-release" and one.source == "BlueZeros/EHR-R1-8B"
    model = {"name": "reason", "path": "outputs/demo/reason/hf"}  # a folder called as a stage is
    [one] = results(settings(model=model, candidates="list"), {})
    assert one.name == "reason:direct-list"
    served = settings("engine=server", "engine.model=Qwen/Qwen3-8B", "answer=think")
    [one] = results(served, {})
    assert one.name == "Qwen3-8B:think" and one.source is None


def test_what_starts_from_weights_is_called_base(tmp_path: Path) -> None:
    model = {"name": "8b", "path": "Qwen/Qwen3-8B"}
    found = results(settings(model=model), stages(tmp_path, "adapt"))
    assert [one.name for one in found] == ["base", "adapt"]


def test_without_reasoning_rl_answers_at_once(tmp_path: Path) -> None:
    found = results(settings(), stages(tmp_path, "adapt", "rl", think="none"))
    assert [one.name for one in found] == ["untrained", "adapt", "rl"]
    assert found[-1].decision is not None and found[-1].decision.answer == "direct"


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best is not here; there are untrained, adapt"):
        results(settings(eval={"models": ["best"]}), stages(tmp_path, "adapt"))
