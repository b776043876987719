"""Sections of the configuration about models, their training, and clusters."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from ehrr1.config.types import (
    Count,
    Finite,
    FunctionPath,
    Name,
    Natural,
    NotNegative,
    PathText,
    Positive,
    PositiveShare,
    Section,
    Share,
    Target,
    Text,
)

Attention = Literal["auto", "sdpa", "flex", "varlen", "dense"]


class Tokenizer(Section):
    """The tokenizer: the model's own or one trained on the corpus, and its vocabulary size."""

    train: bool
    vocab_size: Count | None


class Start(Section):
    """Initialisation of a model that is trained from scratch (`models/tiny_init.py`)."""

    query_gains: list[Positive]
    value_gain: Positive
    cooccurrence: Share


class Lora(Section):
    """Low-rank adapters that are trained instead of the weights (Hu et al., arXiv 2106.09685)."""

    r: Count
    alpha: Count
    dropout: Share
    targets: list[str]


class ModelSettings(Section):
    """A model's size, weights and implementation."""

    name: Text
    path: PathText | None
    attention: Attention
    lora: Lora | None
    tokenizer: Tokenizer
    start: Start | None = None
    config: dict[str, Any] | None
    """Transformers' configuration of the model: `model_type`, `hidden_size`, ..."""

    @classmethod
    def of_folder(cls, path: str | None, attention: Attention = "auto") -> Self:
        """Return the settings of a model in a folder, with all weights trainable."""
        whole = Tokenizer(train=False, vocab_size=None)
        return cls(
            name="folder", path=path, attention=attention, lora=None, tokenizer=whole, config=None
        )


Devices = Count | Literal["auto"]


class TrainerSettings(Section):
    """Strategy, processes and precision of training, and the checkpoints that stay."""

    strategy: Literal["single", "ddp", "zero1", "zero2", "zero3"]
    offload: bool
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Devices
    nodes: Count
    precision: Literal["32-true", "bf16-mixed"]
    activation_checkpointing: bool
    save_top_k: Natural
    monitor: Name


class Loss(Section):
    """The loss of supervised training."""

    on: Literal["answer", "all"]
    record_weight: NotNegative
    risk_weight: Positive
    function: FunctionPath | None


class Optimization(Section):
    """Settings of every training stage."""

    samples_per_task: Count | None
    optimizer: Literal["adamw", "muon"] | Target
    schedule: Literal["cosine"] | FunctionPath
    lr: Positive
    warmup: Share
    weight_decay: NotNegative
    beta2: Share
    clip: Positive
    save_seconds: NotNegative


class Supervised(Optimization):
    """Settings of both supervised stages."""

    eval_samples_per_task: Count | None
    max_tokens: Count
    max_batch_tokens: Count
    trees_per_step: Count
    epochs: Count
    max_steps: Count | None
    short_first: bool
    eval_every: Count | None


class Adapt(Supervised):
    """Settings of `stage=adapt`."""

    decision_samples_per_task: Count | None


class Reason(Supervised):
    """Settings of `stage=reason`."""

    direct_share: Share
    also_direct: bool


def _joined(value: Any) -> Any:
    """Join nested nodes to dotted names.

    Hydra reads `+rl.rewards.my_rewards.length=0.5` as a nested node; the name is my_rewards.length.
    """
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, one in value.items():
        parts = _joined(one).items() if isinstance(one, dict) else ()
        found |= {f"{name}.{rest}": weight for rest, weight in parts} or {name: one}
    return found


class RL(Optimization):
    """Settings of `stage=rl`."""

    start: Literal["adapt", "reason"]
    tasks: Literal["all", "decision", "risk"]
    steps: Count | None
    prompts_per_step: Count
    group_size: Annotated[int, Field(ge=2)]
    inner_epochs: Count
    minibatches: Count
    order: Literal["random", "easy_first"]
    think: Literal["task", "both", "none"]
    dynamic_sampling: Natural
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] | FunctionPath
    level: Literal["token", "sequence"]
    scale: Literal["group", "batch", "none"]
    epsilon: Share
    epsilon_high: NotNegative
    beta: NotNegative
    kl: Literal["k1", "k2", "k3"]
    mask_truncated: bool
    correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ]
    correction_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    ratio_bounds: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    temperature: Positive
    top_p: PositiveShare
    top_k: Natural
    max_prompt_tokens: Count
    max_completion_tokens: Count
    max_batch_tokens: Count
    rewards: Annotated[dict[str, Finite], BeforeValidator(_joined)]
    """Weights of the reward functions by name, which may be the user's (`your.module.function`)."""
    require_closed_think: bool
    reward_timeout_seconds: Positive
    validation_prompts: Count
    bootstrap: Count


class AnswerTokens(Section):
    """Tokens of a question with its answer."""

    adapt: Count
    reason: Count


class Plan(Section):
    """Settings of `stage=plan`."""

    stage: Literal["adapt", "reason", "rl"]
    micro_batch: Count
    questions: Count
    answer_tokens: AnswerTokens
    fill: PositiveShare
    samples: Count | None
    utilisation: PositiveShare
    bandwidth_utilisation: PositiveShare
    servers: Count
    server_gpus: Count


class Cluster(Section):
    """The machines that `stage=plan` assumes."""

    gpus: Count
    gpus_per_node: Count
    gpu_memory_gib: Positive
    reserved_gib: NotNegative
    engine_reserved_gib: NotNegative
    cpu_memory_gib: Positive | None
    peak_tflops: Positive
    memory_gb_per_second: Positive
    nvlink_gb_per_second: Positive
    network_gb_per_second: Positive
    write_gb_per_second: Positive


class LocalLauncher(Section):
    """Runs of a sweep on this machine."""

    name: Literal["local"]
    parallel: Count


class Job(Section):
    """SLURM resources of one run; for a stage, only those that differ from the defaults."""

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    minutes: Count | None = None
    cpus_per_task: Count | None = None
    memory_gb: Count | None = None
    gpus_per_node: Natural | None = None
    setup: list[str] | None = None
    srun_args: list[str] | None = None
    signal_seconds: Annotated[int, Field(ge=0, le=65_535)] | None = None
    requeues: Natural | None = None


class SlurmLauncher(Section):
    """Runs of a sweep as jobs on a SLURM cluster."""

    name: Literal["slurm"]
    partition: Text | None
    account: Text | None
    qos: Text | None
    minutes: Count
    cpus_per_task: Count
    memory_gb: Count | None
    gpus_per_node: Natural
    setup: list[str]
    srun_args: list[str]
    sbatch: dict[str, Any]
    """Any other flags of sbatch by name."""
    stages: dict[Literal["prepare", "graph", "chains", "adapt", "reason", "rl", "eval"], Job]
    signal_seconds: Annotated[int, Field(ge=0, le=65_535)]
    requeues: Natural
    parallel: Count


Launcher = Annotated[LocalLauncher | SlurmLauncher, Field(discriminator="name")]


class Search(Section):
    """Settings of a search with Optuna."""

    metric: Text | None
    direction: Literal["minimize", "maximize"]
    trials: Count
    curve: Text | None
    every_steps: Count
