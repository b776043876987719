"""Which results an evaluation makes: whom it asks, and how.

A stage's model is asked as it was trained, unless `answer` says otherwise; the mode that was chosen
is then part of the result's name (`rl:both-list`), as it is for every model that this run did not
train (`EHR-R1-8B:direct`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ehrr1.config.names import LOCAL
from ehrr1.config.schema import Config, value_of
from ehrr1.config.types import AnswerMode
from ehrr1.errors import UserError
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.models.gguf import start_of
from ehrr1.runs import short

STAGES = ("adapt", "reason", "rl")
THINKING = frozenset({"reason", "rl"})
"""The stages whose model was trained to think before it decides."""


@dataclass(frozen=True)
class Target:
    """One model asked in one way. `source` holds its weights: a folder or a name on the hub, None
    for random ones and for what a server has. `risk` or `decision` None: not asked."""

    name: str
    model: str
    source: Path | str | None
    risk: PromptMode | None
    decision: PromptMode | None


def results(cfg: Config, inputs: Mapping[str, Path]) -> list[Target]:
    """The results of this evaluation, in the order of the curriculum.

    Raises UserError where `eval.models` names a model that is not there.
    """
    found = models(cfg, inputs)
    if cfg.eval.models is not None:
        chosen = [str(name) for name in cfg.eval.models]
        if unknown := [name for name in chosen if name not in found]:
            raise UserError(
                f"eval.models: {', '.join(unknown)} is not here; there are {', '.join(found)}"
            )
        found = {name: source for name, source in found.items() if name in chosen}
    trained = cfg.engine.name in LOCAL and any(stage in inputs for stage in STAGES)
    usual: list[AnswerMode | None] = [None] if trained else ["direct"]
    answers = chosen_answers(cfg) or usual
    if cfg.eval.chains is not None:
        answers = ["think"]
    return [
        _result(cfg, model, source, answer, thinks(model, inputs))
        for model, source in found.items()
        for answer in answers
    ]


def models(cfg: Config, inputs: Mapping[str, Path]) -> dict[str, Path | str | None]:
    """Model -> where its weights are."""
    if cfg.engine.name not in LOCAL:
        return {short(value_of(cfg, "engine.model") or cfg.engine.name): None}
    stages: dict[str, Path | str | None] = {}
    for stage in STAGES:
        if stage in inputs:
            stages[stage] = inputs[stage] / "hf"
    start = start_of(cfg.model, None)
    if not stages:
        return {cfg.model.name: start}
    return {"untrained" if start is None else "base": start, **stages}


def chosen_answers(cfg: Config) -> list[AnswerMode | None]:
    """The modes that `answer` names: none, one, or several."""
    if cfg.answer is None:
        return []
    return list(cfg.answer) if isinstance(cfg.answer, list) else [cfg.answer]


def thinks(model: str, inputs: Mapping[str, Path]) -> bool:
    """Whether a stage's model was trained to think before it decides."""
    if model == "rl" and model in inputs:
        return bool(OmegaConf.load(inputs[model] / "config.yaml").rl.think != "none")
    return model in THINKING


def _result(
    cfg: Config,
    model: str,
    source: Path | str | None,
    answer: AnswerMode | None,
    thinking: bool,
) -> Target:
    how: dict[str, Any] = {"candidates": cfg.candidates, "wording": cfg.wording}
    how["chains"] = "own" if cfg.eval.chains is None else "given"
    if answer is None:
        decision = PromptMode("think" if thinking else "direct", **how)
        suffix = decision.name.removeprefix(decision.answer)
        name = f"{model}:{suffix[1:]}" if suffix else model
        return Target(name, model, source, PromptMode("direct", **how), decision)
    mode = PromptMode(answer, **how)
    # a case for yes and one for no: only risk has them
    decision_mode = None if answer == "both" else mode
    return Target(f"{model}:{mode.name}", model, source, mode, decision_mode)


def names(found: Sequence[Target]) -> list[str]:
    return [result.name for result in found]
