"""Names of stages, engines and kinds of data."""

import re
from pathlib import Path
from typing import Literal

STAGES = (
    *("prepare", "export", "audit", "card", "graph", "chains", "adapt", "reason", "rl", "eval"),
    *("infer", "plan", "consolidate", "curriculum"),
)
"""Valid values of `stage=`."""

ORDER = ("prepare", "graph", "chains", "adapt", "reason", "rl", "eval")
"""The stages of the curriculum, in the order of their dependencies."""

TRAINING = ("adapt", "reason", "rl")
"""The stages that train a model, in one process or a group of processes."""

LOCAL = frozenset({"transformers", "vllm"})
"""Engines that load a model on this machine."""

WordingName = Literal["file", "ours", "release"]
"""The wording of prompts (`prompts/wording.py`)."""

RELEASED_MODEL = re.compile(r"ehr[-_]r1", re.IGNORECASE)
"""Pattern of the names of released models."""

BENCHMARKS = frozenset({"benchmark", "ehrshot", "mimiciv_cdm"})
"""Kinds of data with their own questions and records, for evaluation."""


def usual_wording(data: str, *models: str | None) -> WordingName:
    """Return the default wording: the release's for its rows and its models, else "file".

    Models are recognised by the last part of their path or by the folder in the hub's cache.
    """
    names = [part for path in models if path for part in _names(path)]
    released = data in ("release", "benchmark") or any(map(RELEASED_MODEL.search, names))
    return "release" if released else "file"


def _names(path: str) -> list[str]:
    parts = Path(path).parts
    return [*parts[-1:], *(part for part in parts if part.startswith("models--"))]
