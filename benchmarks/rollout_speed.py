"""Measure the generation of completions: vLLM's engine beside the model that trains, in turn.

    python -m benchmarks.rollout_speed [FOLDER] [--batches 1 4 16 64] [--rounds 5] [--json FILE]

A Qwen3 with random weights (hidden 256, 6 layers, vocabulary 8,192, heads of 64), float32 on 2
threads. The first load is that of rollouts: 2 prompts of 1,500 random tokens, 8 completions of up
to 128 tokens each, drawn at temperature 1 from all tokens; the end of a turn is 1 token in 8,192,
so that nearly all take 128. Each of `--batches` is a number of prompts of 300 tokens with one
greedy completion each, as in evaluation; the share of tokens is told in which both agree.
Both are given the weights anew before each round, as in training, so that no prompt is remembered;
bringing them is timed by itself. Both stay alive between their rounds; the engine's start is told
apart. The ratio is the median over rounds of the two figures of the same round.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import sys
import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from benchmarks.measure import ROOT, machine, markdown, median_ratio, parser, report
from ehrr1.config.writers import VllmSettings
from ehrr1.engines.base import SamplingParams, TrainableEngine
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.engines.vllm import VLLMEngine
from ehrr1.engines.weight_sync import SYNC_TOLERANCE, check_sync
from ehrr1.models.attention import choose

COMPLETION = 128
END = 8191
"""The end-of-turn token; no prompt has it, and a completion seldom (1 token in 8,192)."""


@dataclass(frozen=True)
class Load:
    """Prompts of random tokens, and how they are continued."""

    prompts: int
    length: int
    group: int
    temperature: float

    def __str__(self) -> str:
        return f"{self.prompts} x {self.group} completions, prompts of {self.length} tokens"


ROLLOUTS = Load(prompts=2, length=1500, group=8, temperature=1.0)


@dataclass(frozen=True)
class Written:
    """One round of one contender."""

    tokens: int
    seconds: float
    sync_seconds: float
    first: list[list[int]]
    """The tokens of each prompt's first completion."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def random_model(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Write a float32 model with random weights to `folder`; return it."""
    torch.manual_seed(0)
    attention = choose("auto", torch.float32)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    ).eval()
    model.save_pretrained(folder)
    return model


def make_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    config = Qwen3Config(
        vocab_size=END + 1,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        eos_token_id=END,
    )
    model = random_model(config, folder)
    words = Tokenizer(models.WordLevel({"<end>": END}, unk_token="<end>"))
    return model, PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>"
    )


def written(rollout: TrainableEngine, model: PreTrainedModel, load: Load, number: int) -> Written:
    begin = time.perf_counter()
    rollout.load_weights(model.named_parameters())
    synced = time.perf_counter()
    shape, drawn = (load.prompts, load.length), torch.Generator().manual_seed(number)
    prompts = torch.randint(END, shape, generator=drawn).tolist()
    sampling = SamplingParams(COMPLETION, temperature=load.temperature)
    groups = rollout.generate(prompts, sampling, group_size=load.group)
    seconds = time.perf_counter() - synced
    tokens = sum(len(one.tokens) for group in groups for one in group)
    return Written(tokens, seconds, synced - begin, [group[0].tokens for group in groups])


def row(name: str, rounds: list[Written]) -> list[str]:
    speeds = [one.tokens_per_second for one in rounds]
    return [
        name,
        f"{median(speeds):.0f}",
        f"{min(speeds):.0f}-{max(speeds):.0f}",
        f"{median(one.sync_seconds for one in rounds):.2f}",
        f"{rounds[0].tokens}",
    ]


COLUMNS = ["", "tokens/s", "least-most", "seconds to bring weights", "tokens a round"]


def measured(
    contenders: dict[str, TrainableEngine], model: PreTrainedModel, load: Load, runs: int
) -> dict[str, list[Written]]:
    """Let both write in turn; the first round warms up."""
    rounds: dict[str, list[Written]] = {name: [] for name in contenders}
    for number in range(runs + 1):
        for name, rollout in contenders.items():
            found = written(rollout, model, load, number)
            print(f"{load}: {number} {name}: {found.seconds:.2f} s", file=sys.stderr, flush=True)
            if number:
                rounds[name].append(found)
    return rounds


def agreement(rounds: dict[str, list[Written]]) -> float:
    """The share of tokens up to the first that differs, of all tokens."""
    pairs = [
        pair
        for ours, theirs in zip(rounds["transformers"], rounds["vllm"], strict=True)
        for pair in zip(ours.first, theirs.first, strict=True)
    ]
    same = sum(
        sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)))
        for pair in pairs
    )
    return same / sum(len(one) for one, _ in pairs)


def told(load: Load, rounds: dict[str, list[Written]]) -> str:
    ratio = median_ratio(rounds["vllm"], rounds["transformers"], "tokens_per_second")
    text = f"{load}\n\n" + markdown(COLUMNS, [row(name, found) for name, found in rounds.items()])
    text += f"\n\ntokens/s, vllm / transformers: {ratio:.2f}"
    return text + ("" if load.temperature else f"; the same tokens: {agreement(rounds):.1%}")


def main() -> None:
    reader = parser(__doc__)
    home = ROOT / "outputs" / "benchmarks" / "rollout_speed"
    reader.add_argument("folder", type=Path, nargs="?", default=home)
    reader.add_argument("--batches", type=int, nargs="*", default=[])
    given = reader.parse_args()
    loads = [ROLLOUTS, *(Load(number, 300, 1, 0.0) for number in given.batches)]
    on = machine()
    model, tokenizer = make_model(given.folder / "hf")
    begin = time.perf_counter()
    engine = VLLMEngine(
        given.folder / "hf",
        END,
        VllmSettings(batch_size=256, gpu_memory_utilization=0.4, kv_cache_gib=1.0),
        max_length=ROLLOUTS.length + COMPLETION,
        dtype=torch.float32,
        device=torch.device("cpu"),
        exchange=given.folder / "exchange",
        log=given.folder / "vllm.log",
    )
    start = time.perf_counter() - begin
    contenders: dict[str, TrainableEngine] = {
        "transformers": TransformersEngine(model, tokenizer),
        "vllm": engine,
    }
    probe = list(range(0, END, 128))
    ours = contenders["transformers"].logprobs(probe)
    check_sync(engine.logprobs(probe), ours, SYNC_TOLERANCE[torch.float32])
    try:
        found = {load: measured(contenders, model, load, given.runs) for load in loads}
    finally:
        engine.close()
    table = "\n\n".join(told(load, rounds) for load, rounds in found.items())
    table += f"\n\nthe engine started in {start:.1f} s"
    figures = {str(load): rounds for load, rounds in found.items()}
    report(given.json, table, {"machine": on, "rounds": figures, "start_seconds": start})


if __name__ == "__main__":
    main()
