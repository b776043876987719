"""The stages by name, and what kinds of choices there are."""

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

BENCHMARKS = frozenset({"benchmark", "ehrshot", "mimiciv_cdm"})
"""Data that bring their own questions and records, to evaluate on."""
