"""The stages by name, and what kinds of choices there are."""

import re
from pathlib import Path
from typing import Literal

STAGES = (
    *("prepare", "export", "audit", "card", "graph", "chains", "adapt", "reason", "rl", "eval"),
    *("infer", "plan", "consolidate", "curriculum"),
)
"""What `stage=` may be."""

ORDER = ("prepare", "graph", "chains", "adapt", "reason", "rl", "eval")
"""The curriculum: each stage in the order in which its input is made."""

TRAINING = ("adapt", "reason", "rl")
"""The stages that train a model, in one process or a group of them."""

LOCAL = frozenset({"transformers", "vllm"})
"""Engines that load a model here."""

WordingName = Literal["file", "ours", "release"]
"""How a sample is put to a model (`prompts/wording.py`)."""

RELEASED_MODEL = re.compile(r"ehr[-_]r1", re.IGNORECASE)

BENCHMARKS = frozenset({"benchmark", "ehrshot", "mimiciv_cdm"})
"""Data that bring their own questions and records, to evaluate on."""


def usual_wording(data: str, *models: str | None) -> WordingName:
    """The wording where none is chosen: the release's for its rows and its models, which are told
    by the last part of their path, or by the hub's cache folder."""
    names = [part for path in models if path for part in _names(path)]
    released = data in ("release", "benchmark") or any(map(RELEASED_MODEL.search, names))
    return "release" if released else "file"


def _names(path: str) -> list[str]:
    parts = Path(path).parts
    return [*parts[-1:], *(part for part in parts if part.startswith("models--"))]
