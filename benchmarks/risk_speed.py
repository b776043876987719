"""Measure the scoring of yes/no questions: one prefill for all questions on a record, against one
prompt at a time with one generated token.

    python -m benchmarks.risk_speed PREPARED TOKENIZER [--records 24] [--rounds 3] [--json FILE]

PREPARED is a finished `stage=prepare`, TOKENIZER a model folder whose tokenizer reads it (of the
demo: outputs/demo/prepare and outputs/demo/adapt/hf). A Qwen3 with random weights (hidden 256, 6
layers, heads of 64), float32 on 2 threads. Records are test contexts of at least 1,000 tokens, none
cut, first those of the eight intensive care questions, then those of all 18 risk tasks in the
proportion in which they occur. The peer is `transformers`' own model and `generate`, one prompt,
one token, its logits read. Rounds alternate; the ratio is the median over rounds of the two times
of the same round. The floor is the ratio of the tokens that both compute.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config

from benchmarks.measure import machine, markdown, median_ratio, parser, report
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.models.attention import choose
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question, Tree
from ehrr1.scoring.risk import AnswerTokens, answer_tokens, probability_of_yes
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import RISK, by_context, select

ICU = tuple(task for task in RISK if task.startswith("ICU_"))
LEAST, MOST = 1000, 8000
"""Tokens of a record."""
BATCH_TOKENS = 32_768

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """One round of one contender."""

    seconds: float
    probabilities: Floats


def trees_of(
    prepared: Prepared, prompt_builder: PromptBuilder, tasks: Sequence[str], records: int
) -> list[Tree]:
    """The questions on `records` records of at least `LEAST` tokens, drawn blindly."""
    index = select(prepared.scan("test", list(tasks)), 20 * records, seed=0)
    groups: list[list[Sample]] = list(by_context(prepared.as_samples(index)).values())
    np.random.default_rng(0).shuffle(groups)  # type: ignore[arg-type]
    found: list[Tree] = []
    for group in groups:
        events = prepared.context(group[0])
        questions = [Question(s.sample_id, s.task, think=False) for s in group]
        tree = prompt_builder.tree(events, preamble_length(events), questions)
        if len(tree.trunk) >= LEAST and not tree.cut_events:
            found.append(tree)
        if len(found) == records:
            return found
    sys.exit(f"only {len(found)} records of {LEAST} tokens or more: prepare more patients")


def make_models(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same weights twice: with our attention, and as Transformers has it."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        max_position_embeddings=2 * MOST,
    )
    models = []
    for attention in (choose("auto", torch.float32), "sdpa"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            deepcopy(config), dtype=torch.float32, attn_implementation=attention
        )
        models.append(model.eval())
    return models[0], models[1]


def together(rollout: TransformersEngine, trees: Sequence[Tree], words: AnswerTokens) -> Floats:
    ids = [*words.yes, *words.no]
    found = dict(rollout.answers(trees, ids))
    yes = [np.logaddexp.reduce(found[n][:, : len(words.yes)], axis=1) for n in range(len(trees))]
    no = [np.logaddexp.reduce(found[n][:, len(words.yes) :], axis=1) for n in range(len(trees))]
    return 1 / (1 + np.exp(np.concatenate(no) - np.concatenate(yes)))


@torch.no_grad()
def one_by_one(model: PreTrainedModel, trees: Sequence[Tree], words: AnswerTokens) -> Floats:
    found = []
    for prompt in (tree.trunk + branch.prompt for tree in trees for branch in tree.branches):
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        found.append(probability_of_yes(output.logits[0][0].numpy(), words))
    return np.array(found)


def compare(
    name: str, trees: Sequence[Tree], contenders: dict[str, object], words: AnswerTokens, runs: int
) -> tuple[list[str], dict[str, object]]:
    rounds: dict[str, list[Scored]] = {key: [] for key in contenders}
    for number in range(runs + 1):
        for key, score in (("together", together), ("one by one", one_by_one)):
            begin = time.perf_counter()
            probabilities = score(contenders[key], trees, words)  # type: ignore[operator]
            seconds = time.perf_counter() - begin
            print(f"{name} {number} {key}: {seconds:.2f} s", file=sys.stderr, flush=True)
            if number:  # the first warms up
                rounds[key].append(Scored(seconds, probabilities))
    ratio = median_ratio(rounds["one by one"], rounds["together"], "seconds")
    separate = sum(len(t.trunk) + len(b.prompt) for t in trees for b in t.branches)
    shared = sum(len(tree) for tree in trees)
    apart = np.abs(rounds["together"][0].probabilities - rounds["one by one"][0].probabilities)
    floor = separate / shared
    questions = sum(len(tree.branches) for tree in trees)
    speed = questions / median(one.seconds for one in rounds["together"])
    row = [
        name,
        str(len(trees)),
        str(questions),
        f"{np.mean([len(tree.trunk) for tree in trees]):.0f}",
        f"{speed:.1f}",
        f"{ratio:.2f}",
        f"{floor:.2f}",
        f"{ratio / floor:.2f}",
        f"{apart.max():.1e}",
    ]
    return row, {"ratio": ratio, "tokens_ratio": floor, "apart": float(apart.max())}


COLUMNS = [
    *("", "records", "questions", "tokens a record", "questions/s", "times faster"),
    *("ratio of tokens", "share of the ratio", "max difference of probabilities"),
]


def main() -> None:
    reader = parser(__doc__)
    reader.add_argument("prepared", type=Path)
    reader.add_argument("tokenizer", type=Path)
    reader.add_argument("--records", type=int, default=24)
    given = reader.parse_args()
    on, tokenizer = machine(), load_tokenizer(given.tokenizer)
    prepared, prompt_builder = Prepared(given.prepared), PromptBuilder(tokenizer, MOST)
    ours, plain = make_models(tokenizer)
    rollout = TransformersEngine(ours, tokenizer, batch_tokens=BATCH_TOKENS)
    contenders: dict[str, object] = {"together": rollout, "one by one": plain}
    words, rows, figures = answer_tokens(tokenizer), [], {}
    for name, tasks in (("eight ICU questions", ICU), ("all 18 tasks", RISK)):
        trees = trees_of(prepared, prompt_builder, tasks, given.records)
        row, figures[name] = compare(name, trees, contenders, words, given.runs)
        rows.append(row)
    report(given.json, markdown(COLUMNS, rows), {"machine": on, **figures})


if __name__ == "__main__":
    main()
