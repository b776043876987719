"""The stages by what they read and by the settings that change their results."""

from ehrr1.config.names import LOCAL, ORDER
from ehrr1.config.schema import Config

INPUTS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "audit": ("prepare",),
    "export": ("prepare",),
    "card": ("prepare",),
    "graph": ("prepare",),
    "chains": ("prepare", "graph"),
    "adapt": ("prepare",),
    "reason": ("prepare", "chains", "adapt"),
    "rl": ("prepare", "reason"),
    "eval": ("prepare",),
    "plan": (),
}
"""The stages that each stage reads; `needed` returns those it cannot do without."""

OPTIONAL_INPUTS: dict[str, tuple[str, ...]] = {"eval": ("adapt", "reason", "rl")}
"""The stages that a stage reads where they are finished."""

RESULT_SETTINGS: dict[str, tuple[str, ...]] = {
    "prepare": ("seed", "data"),
    "audit": ("seed", "audit"),
    "export": ("seed",),  # its folder's name tells the rest (`paths.export_name`)
    "card": (),
    "graph": ("seed", "concepts", "graph"),
    "chains": ("seed", "chains"),
    "adapt": ("seed", "model", "loss", "adapt", "trainer", "callbacks", "wording"),
    "reason": ("seed", "model", "loss", "reason", "trainer", "callbacks", "wording"),
    "rl": ("seed", "model", "rl", "rollout", "trainer", "callbacks", "wording"),
    "eval": (
        *("seed", "model", "concepts", "eval", "engine", "answer", "candidates", "wording"),
        "predictions",
    ),
    "plan": (),
}
"""The sections of the configuration that change a stage's result."""

GIVEN = "given"
"""The value of `eval.chains` that means the chains of the run itself, instead of a file."""

READ_LATER: dict[str, tuple[str, ...]] = {
    "prepare": (".",),
    "graph": ("graphs.jsonl",),
    "chains": ("chains.jsonl",),
    "adapt": ("hf",),
    "reason": ("hf",),
    "rl": ("hf",),
    "eval": ("predictions.parquet",),
}
"""The files and folders of a stage that others read: a manifest lists them (`ehrr1/damage.py`)."""

NOT_COMPARED = frozenset(
    {
        *("data.shard", "data.shards", "graph.workers", "graph.show"),
        *("concepts.cache", "concepts.workers"),
        *("chains.concurrency", "chains.max_retries", "chains.timeout_seconds"),
        *("chains.poll_seconds", "chains.batch_size", "chains.batches", "chains.dry_run"),
        *("chains.budget_tokens", "chains.budget_usd", "chains.compliant_endpoint"),
        *("chains.gpu_memory_utilization", "chains.kv_cache_gib"),
        *("adapt.save_seconds", "reason.save_seconds", "rl.save_seconds"),
        *("trainer.save_top_k", "trainer.monitor", "trainer.keep_best"),
        *("adapt.eval_every", "reason.eval_every"),
        *("eval.shard", "eval.shards", "eval.batch_size", "eval.batch_tokens", "eval.cases"),
        *("engine.tensor_parallel", "engine.gpu_memory_utilization", "engine.kv_cache_gib"),
        *("engine.batch_size", "engine.batch_tokens", "rollout.batch_tokens"),
        *("rollout.tensor_parallel", "chains.tensor_parallel", "chains.batch_tokens", "chains.url"),
        *("engine.url", "engine.key_variable", "engine.concurrency", "engine.timeout_seconds"),
        *("engine.max_retries", "engine.compliant_endpoint", "rollout.compliant_endpoint"),
        *("rollout.sync", "rollout.exchange", "rollout.url", "rollout.timeout_seconds"),
    }
)
"""Settings of those sections that say who does the work and at what cost, and change no result."""

TOKENS: dict[str, tuple[str, ...]] = {
    "adapt": (
        *("seed", "wording", "model.path", "loss.risk_weight", "adapt.samples_per_task"),
        *("adapt.decision_samples_per_task", "adapt.eval_samples_per_task", "adapt.max_tokens"),
    ),
    "reason": (
        *("seed", "wording", "model.path", "loss.risk_weight", "reason.samples_per_task"),
        *("reason.eval_samples_per_task", "reason.max_tokens", "reason.direct_share"),
        "reason.also_direct",
    ),
    "rl": (
        *("seed", "wording", "model.path", "rl.samples_per_task", "rl.tasks", "rl.think"),
        *("rl.max_prompt_tokens", "rl.validation_prompts"),
    ),
}
"""The settings of a training stage that change its tokenised samples, beside its inputs."""

ALWAYS_AGAIN = frozenset({"audit", "card", "plan"})
"""Stages that only show what is there: they run again and replace their earlier run."""


def needed(cfg: Config, stage: str) -> tuple[str, ...]:
    """Return the stages that `stage` cannot do without, with these settings."""
    inputs = INPUTS[stage]
    if stage == "eval" and cfg.predictions is not None:
        return inputs  # no model is asked
    if stage == "rl":
        inputs = ("prepare", cfg.rl.start)
    if stage == "eval" and cfg.engine.name in LOCAL and cfg.model.path is None:
        inputs += ("adapt",)  # a model from nothing, untrained, knows nothing and has no tokenizer
    if stage == "eval" and cfg.eval.chains == GIVEN:
        inputs += ("chains",)
    return inputs


def optional(cfg: Config, stage: str) -> tuple[str, ...]:
    """Return the stages that `stage` reads where they are finished, with these settings."""
    return () if cfg.predictions is not None else OPTIONAL_INPUTS.get(stage, ())


def order(cfg: Config) -> tuple[str, ...]:
    """Return the stages of the curriculum with these settings, in order.

    Where `rl` starts from `adapt`, no stage needs `reason` or what leads to it.
    """
    left_out = ("graph", "chains", "reason") if cfg.rl.start == "adapt" else ()
    return tuple(stage for stage in ORDER if stage not in left_out)
