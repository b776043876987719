"""Checks of the composed configuration, all problems at once, before anything expensive.

Hydra knows which settings exist; this table says which values make sense. Files, folders and
what a stage needs of its data are checked by whoever opens them.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ehrr1.errors import UserError


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; `above` excludes `low` itself, `none` allows null."""

    low: float = 0
    high: float = float("inf")
    whole: bool = False
    above: bool = False
    none: bool = False

    def problem(self, value: Any) -> str | None:
        if value is None and self.none:
            return None
        fits = isinstance(value, int) or (isinstance(value, float) and not self.whole)
        if isinstance(value, bool) or not fits:
            return f"a {'whole ' * self.whole}number is needed{' or null' * self.none}"
        value = float(value)
        if value < self.low or value > self.high or (self.above and value == self.low):
            sign = ">" if self.above else ">="
            upper = f" and <= {self.high:g}" if self.high < float("inf") else ""
            return f"it must be {sign} {self.low:g}{upper}"
        return None


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str | None, ...]

    def problem(self, value: Any) -> str | None:
        return None if value in self.words else f"choose one of {', '.join(map(_word, self.words))}"


@dataclass(frozen=True)
class Switch:
    """true or false."""

    def problem(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "choose true or false"


@dataclass(frozen=True)
class Devices:
    """How many processes: a number, or `auto`."""

    def problem(self, value: Any) -> str | None:
        if value == "auto" or COUNT.problem(value) is None:
            return None
        return "a whole number is needed, or auto for one a GPU"


def _word(word: str | None) -> str:
    return "null" if word is None else word


Rule = Number | Choice | Switch | Devices
COUNT = Number(1, whole=True)
COUNT_OR_ALL = Number(1, whole=True, none=True)
SHARE = Number(0, 1)
POSITIVE = Number(0, above=True)

TRAINING: dict[str, Rule] = {
    "samples_per_task": COUNT_OR_ALL,
    "eval_samples_per_task": COUNT_OR_ALL,
    "max_tokens": COUNT,
    "max_batch_tokens": COUNT,
    "trees_per_step": COUNT,
    "epochs": COUNT,
    "max_steps": COUNT_OR_ALL,
    "optimizer": Choice(("adamw", "muon")),
    "lr": POSITIVE,
    "warmup": SHARE,
    "weight_decay": Number(0),
    "beta2": SHARE,
    "clip": POSITIVE,
    "save_seconds": POSITIVE,
}

WRITERS: dict[str, dict[str, Rule]] = {
    "template": {"max_evidence": COUNT},
    "transformers": {
        "batch_size": COUNT,
        "drafts": COUNT,
        "temperature": Number(0),
        "max_tokens": COUNT,
        "max_prompt_chars": COUNT,
        "dry_run": Switch(),
        "budget_tokens": COUNT_OR_ALL,
    },
    "anthropic": {
        "compliant_endpoint": Switch(),
        "batches": Switch(),
        "batch_size": COUNT,
        "poll_seconds": POSITIVE,
        "concurrency": COUNT,
        "max_retries": Number(0, whole=True),
        "timeout_seconds": POSITIVE,
        "drafts": COUNT,
        "temperature": SHARE,
        "max_tokens": COUNT,
        "max_prompt_chars": COUNT,
        "dry_run": Switch(),
        "budget_tokens": COUNT_OR_ALL,
        "budget_usd": Number(0, above=True, none=True),
        **{
            f"price.{kind}": Number(0)
            for kind in ("input", "output", "cache_write", "cache_read", "batch")
        },
    },
}
"""What each writer of chains has beside the settings of all."""
WRITERS["vllm"] = WRITERS["transformers"] | {
    "gpu_memory_utilization": SHARE,
    "kv_cache_gib": POSITIVE,
}

RULES: dict[str, Rule] = {
    "seed": Number(0, 2**31 - 1, whole=True),
    "overwrite": Switch(),
    "split": Choice(("train", "validation", "test", "all")),
    "limit": COUNT_OR_ALL,
    "layout": Choice(("rows", "meds", "release")),
    "data.subjects": COUNT_OR_ALL,
    "data.open": Switch(),
    "data.protocol": Choice(("strict", "paper")),
    "data.window_hours": POSITIVE,
    "data.patients_per_shard": COUNT,
    "data.shard": Number(0, whole=True, none=True),
    "data.shards": COUNT,
    "data.suite": Choice((None, "paper42", "release45")),
    "data.labels.ed_time": Choice(("hour", "triage")),
    "data.labels.died_in_stay": Choice(("released", "exclude")),
    "data.labels.planned": Choice(("count", "exclude")),
    "data.force_task_num": COUNT_OR_ALL,
    "data.balance": Choice(("none", "weights", "force")),
    "data.split.validation": SHARE,
    "data.split.test": SHARE,
    "audit.text_samples_per_task": COUNT_OR_ALL,
    "graph.evidence": Choice(("cooccurrence", "random", "none")),
    "graph.knowledge": Switch(),
    "graph.require_path": Switch(),
    "graph.max_hops": COUNT,
    "graph.max_degree": COUNT,
    "graph.samples_per_task": COUNT_OR_ALL,
    "graph.validation_samples_per_task": COUNT_OR_ALL,
    "graph.min_count": COUNT,
    "graph.min_support": COUNT,
    "graph.min_lift": Number(0),
    "graph.min_npmi": Number(-1, 1, none=True),
    "graph.max_fdr": Number(0, 0.4, above=True, none=True),
    "graph.top": COUNT,
    "graph.risk": Switch(),
    "graph.risk_min_lift": Number(0),
    "graph.workers": COUNT_OR_ALL,
    "concepts.source": Choice(("items", "open", "umls")),
    "concepts.workers": COUNT_OR_ALL,
    "chains.writer": Choice(("template", "anthropic", "vllm", "transformers")),
    "chains.show_graph": Switch(),
    "chains.sections": Switch(),
    "chains.coverage": SHARE,
    "chains.samples_per_task": COUNT_OR_ALL,
    "loss.on": Choice(("answer", "all")),
    "loss.record_weight": Number(0),
    "loss.risk_weight": POSITIVE,
    **{f"adapt.{name}": rule for name, rule in TRAINING.items()},
    **{f"reason.{name}": rule for name, rule in TRAINING.items()},
    "adapt.decision_samples_per_task": COUNT_OR_ALL,
    "reason.direct_share": SHARE,
    "rl.samples_per_task": COUNT_OR_ALL,
    "rl.steps": COUNT_OR_ALL,
    "rl.prompts_per_step": COUNT,
    "rl.group_size": Number(2, whole=True),
    "rl.optimizer": Choice(("adamw", "muon")),
    "rl.lr": POSITIVE,
    "rl.inner_epochs": COUNT,
    "rl.minibatches": COUNT,
    "rl.order": Choice(("random", "easy_first")),
    "rl.think": Choice(("task", "both")),
    "rl.dynamic_sampling": Number(0, whole=True),
    "rl.loss": Choice(("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")),
    "rl.level": Choice(("token", "sequence")),
    "rl.scale": Choice(("group", "batch", "none")),
    "rl.beta": Number(0),
    "rl.kl": Choice(("k1", "k2", "k3")),
    "rl.epsilon": SHARE,
    "rl.epsilon_high": Number(0),
    "rl.mask_truncated": Switch(),
    "rl.correction": Choice(
        ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    ),
    "rl.correction_cap": Number(1),
    "rl.reward_timeout_seconds": POSITIVE,
    "rl.max_batch_tokens": COUNT,
    "rl.bootstrap": COUNT,
    "rl.save_seconds": POSITIVE,
    "rl.warmup": SHARE,
    "rl.weight_decay": Number(0),
    "rl.beta2": SHARE,
    "rl.clip": POSITIVE,
    "rl.temperature": POSITIVE,
    "rl.top_p": Number(0, 1, above=True),
    "rl.top_k": Number(0, whole=True),
    "rl.max_prompt_tokens": COUNT,
    "rl.max_completion_tokens": COUNT,
    "rl.validation_prompts": COUNT,
    "eval.suite": Choice(("paper42", "release45")),
    "eval.split": Choice(("validation", "test")),
    "eval.samples_per_task": COUNT_OR_ALL,
    "eval.decision_samples_per_task": COUNT_OR_ALL,
    "eval.untrained_samples_per_task": COUNT_OR_ALL,
    "graph.counted_samples_per_task": COUNT_OR_ALL,
    "eval.max_prompt_tokens": COUNT,
    "eval.max_new_tokens.think": COUNT,
    "eval.max_new_tokens.direct": COUNT,
    "eval.bootstrap": COUNT,
    "card.samples_per_task": COUNT,
    "card.max_tokens": COUNT,
    "trainer.strategy": Choice(("single", "ddp", "zero1", "zero2", "zero3")),
    "trainer.offload": Switch(),
    "trainer.accelerator": Choice(("auto", "cpu", "gpu")),
    "trainer.devices": Devices(),
    "trainer.nodes": COUNT,
    "trainer.precision": Choice(("32-true", "bf16-mixed")),
    "trainer.activation_checkpointing": Switch(),
    "model.attention": Choice(("auto", "sdpa", "flex", "varlen", "dense")),
    "cluster.gpus": COUNT,
    "cluster.gpus_per_node": COUNT,
    "cluster.gpu_memory_gib": POSITIVE,
    "cluster.reserved_gib": Number(0),
    "cluster.cpu_memory_gib": Number(0, above=True, none=True),
    "cluster.peak_tflops": POSITIVE,
    "plan.stage": Choice(("adapt", "reason", "rl")),
    "plan.micro_batch": COUNT,
    "plan.questions": COUNT,
    "plan.answer_tokens.adapt": COUNT,
    "plan.answer_tokens.reason": COUNT,
    "plan.fill": Number(0, 1, above=True),
    "plan.samples": COUNT_OR_ALL,
    "plan.utilisation": Number(0, 1, above=True),
    "plan.generation_utilisation": Number(0, 1, above=True),
}


def check(cfg: DictConfig) -> None:
    """Raise one UserError that lists every setting with a value that makes no sense."""
    problems = []
    writer = {f"chains.{name}": rule for name, rule in WRITERS.get(cfg.chains.writer, {}).items()}
    for name, rule in (RULES | writer).items():
        value = OmegaConf.select(cfg, name, throw_on_missing=True)
        problem = rule.problem(value)
        if problem:
            problems.append(f"{name}={value}: {problem}")
    if cfg.data.name == "mimic" and cfg.data.root is None:
        problems.append("data.root=null: data=mimic needs the folder with hosp/: data.root=DIR")
    if cfg.data.name in ("meds", "release") and cfg.data.root is None:
        problems.append(f"data.root=null: data={cfg.data.name} needs its folder: data.root=DIR")
    if cfg.data.name == "benchmark" and cfg.data.path is None:
        problems.append("data.path=null: data=benchmark needs its file: data.path=FILE.jsonl")
    if cfg.data.name == "benchmark" and not isinstance(cfg.data.balanced, bool):
        problems.append(f"data.balanced={cfg.data.balanced}: choose true or false")
    if cfg.data.name == "benchmark" and cfg.data.shard is not None:
        problems.append(f"data.shard={cfg.data.shard}: a benchmark file is read at once; leave out")
    if cfg.data.name in ("meds", "release", "benchmark") and cfg.data.subjects_file is not None:
        problems.append(
            f"data.subjects_file={cfg.data.subjects_file}: patients are chosen with data=mimic or "
            f"data=synthetic, not with data={cfg.data.name}; leave it out"
        )
    shard, shards = cfg.data.shard, cfg.data.shards
    if not problems and shard is not None and shard >= shards:
        problems.append(
            f"data.shard={shard}: it must be below data.shards={shards}; set data.shards to the "
            "number of processes that share the work"
        )
    if shard is not None and cfg.overwrite:
        problems.append(
            "overwrite=true with data.shard would remove what other processes build: remove the "
            "folder by hand"
        )
    shares = cfg.data.split
    if not problems and shares.validation + shares.test >= 1:
        problems.append(
            f"data.split={OmegaConf.to_container(shares)}: nothing is left to train on; "
            "the two shares must add up to less than 1"
        )
    problems += _adapters(cfg.model.lora)
    problems += _thinking(cfg)
    if problems:
        raise UserError("; ".join(problems))


def _thinking(cfg: DictConfig) -> list[str]:
    """Settings of concepts, graph and chains that do not go together, where they are used."""
    problems = []
    if cfg.stage in ("graph", "curriculum"):
        problems += _sources(cfg.concepts, cfg.graph)
    if cfg.stage in ("chains", "curriculum"):
        if cfg.chains.writer == "template":
            problems += _template(cfg)
        else:
            problems += _language_model(cfg)
    return problems


def _sources(concepts: DictConfig, graph: DictConfig) -> list[str]:
    """Files that are needed and not named."""
    problems = []
    if concepts.source == "open" and concepts.dictionary is None:
        problems.append(
            "concepts.dictionary=null: concepts=open needs a dictionary: concepts.dictionary=FILE "
            "(.tsv or .tsv.gz, docs/thinking_graph.md)"
        )
    if concepts.source == "umls" and concepts.folder is None:
        problems.append(
            "concepts.folder=null: concepts=umls needs the folder with MRCONSO.RRF: "
            "concepts.folder=DIR"
        )
    paths = {"items": False, "open": concepts.get("relations") is not None, "umls": True}
    if graph.require_path and not (graph.knowledge and paths[concepts.source]):
        problems.append(
            "graph.require_path=true: there is no knowledge base to search; add concepts=umls or "
            "concepts=open with concepts.relations=FILE, and leave graph.knowledge=true"
        )
    return problems


def _language_model(cfg: DictConfig) -> list[str]:
    problems = []
    if cfg.chains.model is None:
        problems.append(
            f"chains.model=null: chains={cfg.chains.writer} needs one: chains.model=NAME"
        )
    if cfg.chains.dry_run and cfg.stage == "curriculum":
        problems.append("chains.dry_run=true: it is one stage that is counted; name stage=chains")
    if cfg.overwrite:
        problems.append(
            "overwrite=true: drafts that were paid for would be lost if the run is stopped; remove "
            "the folder by hand, or set variant=NAME"
        )
    return problems


def _template(cfg: DictConfig) -> list[str]:
    """The template writes from the graph, in sections, and from nothing else."""
    refused = {
        "chains.show_graph": (cfg.chains.show_graph, False),
        "chains.sections": (cfg.chains.sections, False),
        "graph.evidence": (cfg.graph.evidence, "none"),
    }
    return [
        f"{name}={str(value).lower()}: the template writes from the graph and in sections; choose "
        "a writer that reads the record: chains=anthropic, chains=vllm or chains=transformers"
        for name, (value, wrong) in refused.items()
        if value == wrong
    ]


def _adapters(lora: DictConfig | None) -> list[str]:
    """What is wrong with `model.lora`, which is null or has four settings."""
    if lora is None:
        return []
    rules: dict[str, Rule] = {"r": COUNT, "alpha": POSITIVE, "dropout": SHARE}
    missing = sorted({*rules, "targets"} - set(lora))
    if missing:
        return [
            f"model.lora={dict(lora)}: {', '.join(missing)} missing; for example "
            "model.lora='{r: 16, alpha: 32, dropout: 0.0, targets: [q_proj, v_proj]}'"
        ]
    return [
        f"model.lora.{name}={lora[name]}: {problem}"
        for name, rule in rules.items()
        if (problem := rule.problem(lora[name]))
    ]
