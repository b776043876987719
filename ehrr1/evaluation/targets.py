"""The results of an evaluation: its models and their prompt modes.

The model of a stage is evaluated in the mode that it was trained in, unless `answer` names another;
the mode is then part of the result's name (`rl:both-list`), as it is for every model that this run
did not train (`EHR-R1-8B:direct`).
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
"""The stages whose models are trained to think before they answer decision questions."""


@dataclass(frozen=True)
class Target:
    """One model in one prompt mode.

    `source` is the folder of its weights or its name on the Hugging Face Hub; None means random
    weights, or a model behind a server or an API. `risk` and `decision` are the modes of the two
    kinds of questions; None means that they are not asked.
    """

    name: str
    model: str
    source: Path | str | None
    risk: PromptMode | None
    decision: PromptMode | None


def results(cfg: Config, inputs: Mapping[str, Path]) -> list[Target]:
    """Return the results of this evaluation, in the order of the curriculum.

    Raises UserError if `eval.models` names a model that the run does not have.
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
    """Return the folder or Hub name of each model's weights, by the model's name.

    None stands for random weights, and for a model behind a server or an API.
    """
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
    """Return the modes that `answer` names: none, one or several."""
    if cfg.answer is None:
        return []
    return list(cfg.answer) if isinstance(cfg.answer, list) else [cfg.answer]


def thinks(model: str, inputs: Mapping[str, Path]) -> bool:
    """Return whether the model was trained to think before it answers decision questions.

    For `rl` this is read from the settings of its run (`rl.think`).
    """
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
    """Return the result of a model in mode `answer`; None is the mode that it was trained in."""
    how: dict[str, Any] = {"candidates": cfg.candidates, "wording": cfg.wording}
    how["chains"] = "own" if cfg.eval.chains is None else "given"
    if answer is None:
        decision = PromptMode("think" if thinking else "direct", **how)
        suffix = decision.name.removeprefix(decision.answer)
        name = f"{model}:{suffix[1:]}" if suffix else model
        return Target(name, model, source, PromptMode("direct", **how), decision)
    mode = PromptMode(answer, **how)
    # only risk questions have a case for yes and a case for no
    decision_mode = None if answer == "both" else mode
    return Target(f"{model}:{mode.name}", model, source, mode, decision_mode)


def names(found: Sequence[Target]) -> list[str]:
    """Return the names of the results."""
    return [result.name for result in found]
