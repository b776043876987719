"""Sections of the configuration about who writes: chains, answers, completions."""

from typing import Annotated, Literal

from pydantic import Field

from ehrr1.config.types import (
    AnswerMode,
    Count,
    Natural,
    NotNegative,
    PathText,
    Positive,
    PositiveShare,
    Section,
    Share,
    Text,
)


class AnyChains(Section):
    """What all writers of chains have."""

    show_graph: bool
    sections: bool
    coverage: Share
    samples_per_task: Count | None


class TemplateChains(AnyChains):
    """Chains composed from the graph."""

    writer: Literal["template"]
    max_evidence: Count


class ModelChains(AnyChains):
    """What all language models that write chains have."""

    model: PathText | None
    drafts: Count
    max_tokens: Count
    max_prompt_chars: Count
    dry_run: bool
    budget_tokens: Count | None


class TransformersChains(ModelChains):
    """A model in this process."""

    writer: Literal["transformers"]
    batch_size: Count
    temperature: NotNegative


class VllmChains(ModelChains):
    """A model in an engine of vLLM."""

    writer: Literal["vllm"]
    batch_size: Count
    temperature: NotNegative
    gpu_memory_utilization: Share
    kv_cache_gib: Positive


class Price(Section):
    """Dollars a million tokens."""

    input: NotNegative
    output: NotNegative
    cache_write: NotNegative
    cache_read: NotNegative


class BatchPrice(Price):
    """Dollars a million tokens; `batch` is a factor."""

    batch: NotNegative


class EndpointChains(ModelChains):
    """What all models behind an API have."""

    compliant_endpoint: bool
    base_url: Text | None
    concurrency: Count
    max_retries: Natural
    timeout_seconds: Positive
    budget_usd: Positive | None
    price: Price


class AnthropicChains(EndpointChains):
    """Claude, by Anthropic's API."""

    writer: Literal["anthropic"]
    temperature: Share
    batches: bool
    batch_size: Count
    poll_seconds: Positive
    price: BatchPrice


class OpenAIChains(EndpointChains):
    """A model behind an API that speaks OpenAI's chat completions."""

    writer: Literal["openai"]
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    length_setting: Literal["max_completion_tokens", "max_tokens"]


Chains = Annotated[
    TemplateChains | TransformersChains | VllmChains | AnthropicChains | OpenAIChains,
    Field(discriminator="writer"),
]


class TransformersEngine(Section):
    """The model in this process."""

    name: Literal["transformers"]


class VllmEngine(Section):
    """An engine of vLLM in a process of its own."""

    name: Literal["vllm"]
    tensor_parallel: Count
    gpu_memory_utilization: PositiveShare
    kv_cache_gib: Positive


class ServerEngine(Section):
    """A server that speaks OpenAI's protocol."""

    name: Literal["server"]
    url: Text
    model: Text | None
    tokenizer: PathText | None
    key_variable: Text | None
    concurrency: Count
    timeout_seconds: Positive
    max_retries: Natural


class AnthropicEngine(Section):
    """Claude, by Anthropic's API."""

    name: Literal["anthropic"]
    model: Text | None
    compliant_endpoint: bool
    base_url: Text | None
    concurrency: Count
    max_retries: Natural
    timeout_seconds: Positive
    max_prompt_chars: Count


Engine = Annotated[
    TransformersEngine | VllmEngine | ServerEngine | AnthropicEngine, Field(discriminator="name")
]


class TransformersRollout(Section):
    """Completions in the training process."""

    name: Literal["transformers"]
    batch_size: Count


class VllmRollout(Section):
    """Completions by an engine beside each training process."""

    name: Literal["vllm"]
    batch_size: Count
    gpu_memory_utilization: PositiveShare
    kv_cache_gib: Positive
    exchange: PathText | None


class ServerRollout(Section):
    """Completions by a server of ours on other GPUs."""

    name: Literal["vllm_server"]
    url: Text
    timeout: Positive
    batch_size: Count
    exchange: PathText | None


Rollout = Annotated[TransformersRollout | VllmRollout | ServerRollout, Field(discriminator="name")]


class NewTokens(Section):
    """How long an answer may be, after thinking and without."""

    think: Count
    direct: Count


class Baselines(Section):
    """What the baselines learn from."""

    samples_per_task: Count | None
    max_features: Count


class Eval(Section):
    """`stage=eval`."""

    models: list[str] | None
    suite: Literal["paper42", "release45", "ehrshot", "mimiciv_cdm"]
    split: Literal["validation", "test"]
    samples_per_task: Count | None
    decision_samples_per_task: Count | None
    untrained_samples_per_task: Count | None
    max_prompt_tokens: Count
    max_new_tokens: NewTokens
    draws: Count
    temperature: Positive
    top_p: PositiveShare
    top_k: Natural
    matching: Literal["ours", "release"]
    shots: Natural
    chains: PathText | None
    calibration_samples_per_task: Natural
    shard: Natural | None
    shards: Count
    batch_tokens: Count
    batch_size: Count
    bootstrap: Count
    baselines: Baselines
    cases: Natural


class Infer(Section):
    """`stage=infer`."""

    subject: int | None
    time: Text | None
    path: PathText | None
    output: PathText | None
    task: Text | None
    max_prompt_tokens: Count
    max_new_tokens: NewTokens
    temperature: NotNegative
    stream: bool


AnswerModes = AnswerMode | list[AnswerMode] | None
"""`answer`: how models are asked."""

LocalChains = TransformersChains | VllmChains
"""Chains by a model on this machine."""
