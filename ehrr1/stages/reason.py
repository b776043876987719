"""stage=reason: the model learns to think over evidence before it answers decision tasks.

Starts from the weights of `adapt`. Trains on the kept chains of `chains` (with thinking) and on
direct answers, so that these, those to risk questions above all, stay: with `reason.also_direct`
on the answer to the question of each chain, at the cost of its own tokens, as the record is shared.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import NamedTuple

import polars as pl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.schema import Config
from ehrr1.damage import damaged
from ehrr1.errors import UserError
from ehrr1.files import read_jsonl
from ehrr1.models.loading import read_config
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.messages import asking_for_both
from ehrr1.prompts.trees import Question
from ehrr1.prompts.wording import Wording, style_of
from ehrr1.reasoning.chain import parse_cases, parse_chain
from ehrr1.reasoning.facts import Citable
from ehrr1.records.events import Event
from ehrr1.runs import Run
from ehrr1.stages.adapt import ask as ask_directly
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import LEARNABLE, select
from ehrr1.terminal import plain_console
from ehrr1.training.checks import check_training
from ehrr1.training.sft import Material, builder, lay_base, tokenise, train

CHECKED, ENOUGH_SHOWN = 500, 0.9
"""Chains whose citations are looked up in their prompts, and the share that needs no warning."""

Chains = dict[str, tuple[str, str]]
"""sample_id -> (chain, answer)."""


def check(cfg: Config, inputs: dict[str, Path]) -> None:
    """Raise UserError for everything that cannot work, before anything is read."""
    start = inputs["adapt"] / "hf"
    check_training(cfg, "reason", read_config(cfg.model, start), load_chat_tokenizer(start))


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Train on chains and direct answers; return the metrics of the run."""
    check(cfg, run.inputs)
    read = tokenised(cfg, run)
    start, prepared = run.input("adapt") / "hf", Prepared(run.input("prepare"))
    thinking = sum(sample.sample_id in read.chains for sample in read.training)
    rows = zip(read.trees["sample_ids"], read.trees["cut_events"], strict=True)
    cut = {name: lost for names, lost in rows for name in names}
    shown = parallel.from_first(
        lambda: citations_shown(read.training, read.chains, cut, prepared.context)
    )
    parameters = parallel.from_first(lambda: lay_base(cfg, run, start, read.tokenizer))
    build = builder(cfg, start, read.tokenizer)
    metrics = train(read.trees, read.evaluation, build, run.folder, cfg, "reason")
    direct = len(read.training) - (0 if cfg.reason.also_direct else thinking)
    samples = {"samples/think": thinking, "samples/direct": direct}
    return metrics | samples | shown | {"parameters": parameters}


class Tokenised(NamedTuple):
    """The stage's training material: samples with their chains, and both as trees of tokens."""

    tokenizer: PreTrainedTokenizerBase
    chains: Chains
    training: Sequence[Sample]
    trees: Dataset
    evaluation: Dataset


def tokenised(cfg: Config, run: Run) -> Tokenised:
    """Return samples and trees, which are made only once. Raises UserError if no chain is there."""
    prepared = Prepared(run.input("prepare"))
    chains = kept_chains(run.input("chains") / "chains.jsonl")
    training = mixture(prepared, "train", chains, cfg, cfg.reason.samples_per_task)
    validation = mixture(prepared, "validation", chains, cfg, cfg.reason.eval_samples_per_task)
    if not any(sample.sample_id in chains for sample in training):
        raise UserError(
            f"inputs.chains={run.input('chains')}: no chain of a training sample was kept; "
            "raise chains.samples_per_task or data.subjects"
        )
    tokenizer = load_chat_tokenizer(run.input("adapt") / "hf")
    style = style_of(cfg.wording, "reason")
    questions = partial(
        ask,
        chains=chains,
        also_direct=cfg.reason.also_direct,
        risk_weight=cfg.loss.risk_weight,
        style=style,
    )
    material = Material(prepared, training, validation, questions)
    limit = cfg.reason.max_tokens
    trees, evaluation = tokenise(material, tokenizer, run.folder, limit, style, "reason")
    return Tokenised(tokenizer, chains, training, trees, evaluation)


def citations_shown(
    samples: Sequence[Sample],
    chains: Chains,
    cut: Mapping[str, int],
    context: Callable[[Sample], Sequence[Event]],
) -> dict[str, float]:
    """Return the share of the citations of chains that the model is shown as `citations_shown`.

    A prompt loses its oldest events, `cut` by sample_id; a chain that cites them teaches the model
    to invent. At most `CHECKED` chains are checked. A share below `ENOUGH_SHOWN` is told on
    standard error.
    """
    asked = [one for one in samples if one.sample_id in chains and one.sample_id in cut]
    found = total = 0
    for sample in asked[:CHECKED]:
        events, lost = context(sample), cut[sample.sample_id]
        kept = preamble_length(events)
        text = chains[sample.sample_id][0]
        read = parse_chain(text) or parse_cases(text)
        seen = Citable([*events[:kept], *events[kept + lost :]], sample.prediction_time)
        for citation in read.citations if read else ():
            total += 1
            found += citation in seen
    if not total:  # chains of other writers may be prose without citations
        return {}
    if found / total < ENOUGH_SHOWN:
        plain_console(stderr=True).print(
            f"reason: prompts show {found / total:.0%} of what the chains cite. Raise "
            "reason.max_tokens, or draw the graph with graph.record_chars=N, the characters that a "
            "prompt shows."
        )
    return {"citations_shown": found / total}


def kept_chains(path: Path) -> Chains:
    """sample_id -> (chain, answer) of the chains that passed the screening.

    Raises DamagedError if a sample has two.
    """
    found: Chains = {}
    for row in read_jsonl(path, ("sample_id", "chain", "answer", "kept")):
        if row["kept"] and row["sample_id"] in found:
            raise damaged(path, "keeps two chains of one sample")
        if row["kept"]:
            found[row["sample_id"]] = (row["chain"], row["answer"])
    return found


def ask(
    sample: Sample, chains: Chains, also_direct: bool, risk_weight: float, style: Wording
) -> list[Question]:
    """With thinking where there is a chain, else (or `also_direct`) directly as in `adapt`."""
    if sample.sample_id in chains:
        chain, answer = chains[sample.sample_id]
        own = style.own(sample)
        # the release's own chains end in the answer, and its prompts ask for nothing more
        if ALL_TASKS[sample.task].kind == "risk" and style.name != "release":
            own = asking_for_both(sample.task, own)
        thought = Question(sample.sample_id, sample.task, True, answer, chain, instruction=own)
        return [thought, *(ask_directly(sample, risk_weight, style) if also_direct else [])]
    return ask_directly(sample, risk_weight, style)


def mixture(
    prepared: Prepared,
    split: str,
    chains: Chains,
    cfg: Config,
    per_task: int | None,
) -> list[Sample]:
    """Return samples with a chain, at most `per_task` of each task, and direct ones.

    Direct ones make up `reason.direct_share` of all, if there are enough, and are drawn evenly from
    the tasks that EHR-Ins trains on; with `reason.also_direct` from those without chains.
    """
    train, learnt = split == "train", (*LEARNABLE, *prepared.own_tasks)
    index = prepared.scan_training("reason", learnt) if train else prepared.scan(split, learnt)
    has_chain = pl.col("sample_id").is_in(list(chains))
    thinking = select(index.filter(has_chain), per_task, cfg.seed)
    share = cfg.reason.direct_share
    asked = set(thinking["task"]) if cfg.reason.also_direct else set()
    tasks = [task for task in learnt if task not in asked]
    each = ceil(len(thinking) * share / (1 - share) / max(len(tasks), 1))
    direct = select(index.filter(~has_chain & pl.col("task").is_in(tasks)), each, cfg.seed)
    return prepared.as_samples(pl.concat([thinking, direct]))
