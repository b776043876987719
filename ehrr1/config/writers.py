"""Sections of the configuration about generation: chains, answers, completions."""

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


class TransformersSettings(Section):
    """Settings of generation by Transformers in this process."""

    batch_size: Count
    batch_tokens: Count = 131_072


class VllmSettings(Section):
    """Settings of a vLLM engine in a process of its own."""

    batch_size: Count
    tensor_parallel: Count = 1
    gpu_memory_utilization: PositiveShare
    kv_cache_gib: Positive


class ServerSettings(Section):
    """Settings of a server that implements OpenAI's completions API."""

    url: Text
    model: PathText | None
    tokenizer: PathText | None
    key_variable: Text | None
    compliant_endpoint: bool = False
    concurrency: Count
    timeout_seconds: Positive
    max_retries: Natural


Effort = Literal["low", "medium", "high", "xhigh", "max"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Thinking = Literal["adaptive", "between_tools", "disabled"]


class AnyChains(Section):
    """Settings of all writers of chains."""

    show_graph: bool
    sections: bool
    coverage: Share
    samples_per_task: Count | None


class TemplateChains(AnyChains):
    """Chains composed from the graph."""

    writer: Literal["template"]
    style: Literal["compact", "prose"]
    max_evidence: Count
    reasons: Literal["all", "weighed"]


class ModelChains(AnyChains):
    """Settings of all language models that write chains."""

    model: PathText | None
    drafts: Count
    max_tokens: Count
    max_prompt_chars: Count
    dry_run: bool
    budget_tokens: Count | None


class TransformersChains(ModelChains, TransformersSettings):
    """Chains by a model in this process."""

    writer: Literal["transformers"]
    temperature: NotNegative


class VllmChains(ModelChains, VllmSettings):
    """Chains by a model in a vLLM engine."""

    writer: Literal["vllm"]
    temperature: NotNegative


class ServerChains(ModelChains, ServerSettings):
    """Chains by a model behind a completions API; prompts are sent as token ids."""

    writer: Literal["server"]
    temperature: NotNegative


class Price(Section):
    """Prices in US dollars per million tokens."""

    input: NotNegative
    output: NotNegative
    cache_write: NotNegative
    cache_read: NotNegative


class BatchPrice(Price):
    """Prices in US dollars per million tokens; `batch` is the relative price of a batch."""

    batch: NotNegative


class EndpointChains(ModelChains):
    """Settings of all models behind an API."""

    compliant_endpoint: bool
    base_url: Text | None
    concurrency: Count
    max_retries: Natural
    timeout_seconds: Positive
    budget_usd: Positive | None
    price: Price


class AnthropicChains(EndpointChains):
    """Chains by Claude through Anthropic's API."""

    writer: Literal["anthropic"]
    temperature: Share
    thinking: Thinking | None
    effort: Effort | None
    batches: bool
    batch_size: Count
    poll_seconds: Positive
    price: BatchPrice


class OpenAIChains(EndpointChains):
    """Chains by a model behind an API for OpenAI's chat completions."""

    writer: Literal["openai"]
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    effort: ReasoningEffort | None
    length_setting: Literal["max_completion_tokens", "max_tokens"]


Chains = Annotated[
    TemplateChains
    | TransformersChains
    | VllmChains
    | ServerChains
    | AnthropicChains
    | OpenAIChains,
    Field(discriminator="writer"),
]


class TransformersEngineConfig(TransformersSettings):
    """A model in this process."""

    name: Literal["transformers"]


class VllmEngineConfig(VllmSettings):
    """A vLLM engine in a separate process."""

    name: Literal["vllm"]


class ServerEngineConfig(ServerSettings):
    """A server that implements OpenAI's completions API."""

    name: Literal["server"]


class AnthropicEngineConfig(Section):
    """Claude through Anthropic's API."""

    name: Literal["anthropic"]
    model: Text | None
    thinking: Thinking | None
    effort: Effort | None
    thinking_tokens: Natural
    compliant_endpoint: bool
    base_url: Text | None
    concurrency: Count
    max_retries: Natural
    timeout_seconds: Positive
    max_prompt_chars: Count


EngineConfig = Annotated[
    TransformersEngineConfig | VllmEngineConfig | ServerEngineConfig | AnthropicEngineConfig,
    Field(discriminator="name"),
]


Sync = Literal["memory", "files"]
"""The ways in which new weights reach an engine."""


class VllmRolloutConfig(VllmEngineConfig):
    """A vLLM engine next to each training process."""

    sync: Sync = "files"
    exchange: PathText | None


class VllmServerConfig(Section):
    """vLLM servers on other GPUs, started by `python -m ehrr1.engines.vllm_server`."""

    name: Literal["vllm_server"]
    url: Text | Annotated[list[Text], Field(min_length=1)]
    compliant_endpoint: bool = False
    timeout_seconds: Positive
    batch_size: Count
    sync: Sync = "files"
    exchange: PathText | None

    @property
    def urls(self) -> list[str]:
        """Return the address of each server."""
        return [self.url] if isinstance(self.url, str) else self.url


RolloutConfig = Annotated[
    TransformersEngineConfig | VllmRolloutConfig | VllmServerConfig, Field(discriminator="name")
]


class NewTokens(Section):
    """Maximum tokens of an answer, with and without thinking."""

    think: Count
    direct: Count


class Baselines(Section):
    """Training data of the baselines."""

    samples_per_task: Count | None
    max_features: Count


class Eval(Section):
    """Settings of `stage=eval`."""

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
    atc_level: Literal[4, 5]
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
    """Settings of `stage=infer`."""

    subject: int | None
    time: Text | None
    path: PathText | None
    output: PathText | None
    page: PathText | None
    task: Text | None
    max_prompt_tokens: Count | None
    max_new_tokens: NewTokens
    temperature: NotNegative
    stream: bool


AnswerModes = AnswerMode | list[AnswerMode] | None
"""The setting `answer`: direct answers, thinking, or both."""

LocalChains = TransformersChains | VllmChains | ServerChains
"""Chains by a model that this project's engines run."""
