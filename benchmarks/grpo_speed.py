"""Measure GRPO: a step of ehrr1 beside TRL's GRPOTrainer, and its update beside prefix_grouper.

    python -m benchmarks.grpo_speed [FOLDER] [--cases 1500x8 1500x16 6000x16] [--rounds 3]
        [--steps 2] [--threads 2] [--checkpointing] [--only step|update] [--json FILE]

A case `1500x8` is one prompt of 1,500 tokens a step and a group of 8 completions of 128 tokens. All
contenders start from one folder, which is written first: a random Qwen3 (hidden 256, 6 layers,
vocabulary 8,192, 6.2M parameters) and a tokenizer with one word a token. They read the same
prompts (the ids that they saw are compared), sample alike (temperature 0.7, top-p 0.95, top-k 20),
generate with Transformers, and make one update a rollout: AdamW, the GRPO loss without a
divergence, float32, 2 threads. Each runs in a process of its own; its first step is not counted.

- ehrr1: GRPOModule and `fit` on a run folder, with log, TensorBoard, and checkpoints every 15
  seconds. The prompt is computed once for its group, when it generates and when it learns.
- TRL 1.16.0 GRPOTrainer, in a virtual environment of its own (`--trl-env`, made where it is
  missing): the prompt is computed for each completion. No evaluation, no reports, no checkpoints.
- TRL, completions only: on a CPU its head scores all positions, on a GPU only those that are
  learnt; here it is made to do the latter, by one line. That favours it.

What is timed, in seconds a step (of a process the mean over its counted steps):

- generate: ehrr1 `timing/generate`, TRL `_generate`: sampling; TRL's with reading the prompt's text
  and writing the completions' texts.
- score: ehrr1 `timing/score`, TRL the rest of `_generate_and_score_completions`: rewards (a hash of
  the text), advantages, what is watched.
- update: ehrr1 `timing/prepare` and `timing/update`, TRL from there to the step's end: rows,
  forward, backward, clipping, AdamW; ehrr1's with writing the completions to a file.
- step: from the end of a step to the end of the next one. With ehrr1's check of the generator's
  weights, its log and its checkpoints.

The update alone (`--only update`) is ehrr1's forest beside prefix_grouper 0.0.1.post1, which shares
a group's prompt too, under PyTorch's attention; in an environment of its own (`--grouper-env`).
Both learn the same completions with the same loss, head, clipping and AdamW
(`benchmarks/grpo_update.py`); the fastest of the counted updates is timed. Their log-probabilities
and the gradient's norm must be equal within 1e-6 (nats on average; relative), else the benchmark
ends.

What favours whom:

- All prompts of a step are equally long and all completions have exactly 128 tokens: TRL pads
  nothing, needs no mask, and its attention takes the causal kernel. That favours TRL.
- No completion can end early (the embedding of the end is zero, so that it is never among the top
  20). ehrr1 would by default leave them all out of the loss as cut off, TRL would not: here
  `rl.mask_truncated=false`.
- Rewards differ within each group, so that ehrr1 leaves no completion out for want of an advantage;
  TRL never leaves one out. That favours TRL.
- A group is all that ehrr1 generates at a time, as in TRL; its usual steps have several prompts.
- TRL generates a group at once too, and learns `--trl-rows` completions at a time, the rest by
  gradient accumulation. By default as many as make no more than 16,384 tokens, which is ehrr1's own
  limit for a row (`rl.max_batch_tokens`).

Floating-point operations are counted by `ehrr1/models/flops.py`: products of matrices and of
attention, forward and backward, the head where something is learnt. *padded / forest* is what
follows from padded rows against one forest, both with all layers; *with the short last layer*
counts that ehrr1 computes only keys and values of a prompt in its last layer. Ratios are TRL's
figure divided by ehrr1's, the median over rounds of the figures of the same round. *CPU seconds*
are those of all threads: other work on the machine moves them less than it moves time; those of
generate hold score too, those of update all that follows it.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.measure import (
    GROUPER,
    ROOT,
    TRL,
    Cost,
    environment,
    interleaved,
    machine,
    markdown,
    median_ratio,
    parser,
    report,
    run,
)

COMPLETIONS_ONLY = "TRL, completions only"
ENV = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

COMPLETION_TOKENS = 128
SAMPLING = {"temperature": 0.7, "top_p": 0.95, "top_k": 20}
LEARNING_RATE = 2e-6
ROW_TOKENS = 16_384


def rewards(completions: Sequence[str], **columns: Any) -> list[float]:
    """In [0, 1) and different for any two texts: every completion has an advantage."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def digest(prompts: list[list[int]]) -> str:
    """By which two processes know that they saw the same prompts."""
    return f"{zlib.crc32(json.dumps(prompts).encode()):08x}"


@dataclass(frozen=True)
class Case:
    prompt: int
    group: int

    @classmethod
    def read(cls, text: str) -> "Case":
        prompt, group = map(int, text.split("x"))
        return cls(prompt, group)

    def __str__(self) -> str:
        return f"{self.prompt}x{self.group}"

    def rows(self, limit: int = ROW_TOKENS) -> int:
        """The most padded rows of equal batches that have no more than `limit` tokens."""
        fit = max(1, limit // (self.prompt + COMPLETION_TOKENS))
        return max(n for n in range(1, self.group + 1) if self.group % n == 0 and n <= fit)

    def asked(self) -> tuple[str, str]:
        """Return the bounds for the update and the whole step."""
        return ("at least 10", "") if self.prompt >= 6000 else ("", "at least 2.5")


@dataclass(frozen=True)
class Trained:
    """One process: seconds of a step (mean of its counted ones), and what it cost as a whole."""

    generate: float
    score: float
    update: float
    step: float
    cpu_generate: float
    cpu_update: float
    cpu_step: float
    entropy: float
    """Entropy of the first step per token: much the same for all, as they begin alike."""
    seen: str
    """The digest of the prompts that it generated for."""
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Updated:
    """One process: seconds and CPU seconds of its fastest counted update, what its first one found,
    and its cost."""

    update: float
    cpu_update: float
    logprobs: list[float]
    grad_norm: float
    seconds: float
    peak_mb: float


EQUAL = 1e-6
"""How far two contenders' first updates may be apart."""


class Contenders:
    """The commands of one case, and what they are given."""

    def __init__(self, given: argparse.Namespace, case: Case):
        self.given, self.case = given, case

    def setup(self) -> dict[str, Any]:
        """Write model, tokenizer and prompts; returns counts and floating-point operations."""
        return self._child(*self._ours("setup"))[0]

    def ehrr1(self, number: int) -> Trained:
        return _trained(*self._child(*self._ours("fit")))

    def trl(self, number: int) -> Trained:
        return _trained(*self._child(*self._trl()))

    def trl_completions(self, number: int) -> Trained:
        return _trained(*self._child(*self._trl(), "--completions-only"))

    def forest(self, number: int) -> Updated:
        found, cost = self._child(sys.executable, *self._update("ehrr1"))
        return Updated(**found, seconds=cost.seconds, peak_mb=cost.peak_mb)

    def grouped(self, number: int) -> Updated:
        python = environment(self.given.grouper_env, GROUPER) / "python"
        found, cost = self._child(python, *self._update("prefix_grouper"))
        return Updated(**found, seconds=cost.seconds, peak_mb=cost.peak_mb)

    def _update(self, contender: str) -> list[Any]:
        return ["-m", "benchmarks.grpo_update", contender, *self._common()]

    def _ours(self, what: str) -> list[Any]:
        return [sys.executable, "-m", "benchmarks.grpo_speed_ours", what, *self._common()]

    def _trl(self) -> list[Any]:
        python = environment(self.given.trl_env, TRL) / "python"  # made by the first call, untimed
        rows = ["--rows", self.given.trl_rows or self.case.rows()]
        return [python, "-m", "benchmarks.grpo_speed_trl", *self._common(), *rows]

    def _common(self) -> list[Any]:
        sizes = ["--case", self.case, "--steps", 1 + self.given.steps]
        checkpointing = ["--checkpointing"] if self.given.checkpointing else []
        return [self.given.folder, self.found, *sizes, *checkpointing]

    @property
    def found(self) -> Path:
        return self.given.folder / "found.json"

    def _child(self, *command: Any) -> tuple[dict[str, Any], Cost]:
        """Run a child; return its result and its cost."""
        env = ENV | {"OMP_NUM_THREADS": str(self.given.threads)}
        cost = run(command, self.given.folder / "log", env)
        return json.loads(self.found.read_text(encoding="utf-8")), cost


def _trained(found: dict[str, Any], cost: Cost) -> Trained:
    return Trained(**found, seconds=cost.seconds, peak_mb=cost.peak_mb)


def row(case: Case, name: str, rounds: list[Trained]) -> list[str]:
    """A row for `COLUMNS`."""

    def middle(field: str) -> float:
        return median(getattr(one, field) for one in rounds)

    steps = [one.step for one in rounds]
    return [
        str(case),
        name,
        *(f"{middle(field):.2f}" for field in ("generate", "score", "update", "step")),
        f"{min(steps):.2f}-{max(steps):.2f}",
        f"{middle('cpu_step'):.2f}",
        f"{middle('peak_mb'):.0f}",
    ]


COLUMNS = [
    *("case", "", "generate s", "score s", "update s", "step s", "least-most", "step CPU s"),
    "peak MB, largest process",
]


def ratios(case: Case, trained: dict[str, list[Trained]], flops: float) -> list[list[Any]]:
    """Case, name, the median over rounds, the same by CPU seconds, and what is asked."""
    found: list[list[Any]] = []
    asked_update, asked_step = case.asked()
    for name in [name for name in trained if name != "ehrr1"]:

        def slower(part: str, name: str = name) -> list[float]:
            fields = (part, f"cpu_{part}")
            return [median_ratio(trained[name], trained["ehrr1"], field) for field in fields]

        shares = [ratio / flops for ratio in slower("update")]
        memory = median_ratio(trained[name], trained["ehrr1"], "peak_mb")
        found += [
            [f"update, {name} / ehrr1", *slower("update"), asked_update],
            ["... as a share of padded / forest", *shares, "" if asked_update else "at least 0.9"],
            [f"generate, {name} / ehrr1", *slower("generate"), ""],
            [f"step, {name} / ehrr1", *slower("step"), asked_step],
            [f"peak memory, {name} / ehrr1", memory, None, ""],
        ]
    return [[str(case), *one] for one in found]


def compare_updates(given: argparse.Namespace, case: Case) -> list[list[Any]]:
    """Rows for `UPDATES`: each contender's medians, then the ratios. Ends if they differ."""
    contenders = Contenders(given, case)
    contenders.setup()
    print(f"case {case}, the update alone", file=sys.stderr, flush=True)
    chosen = {"ehrr1": contenders.forest, "prefix_grouper": contenders.grouped}
    found: Any = interleaved(chosen, given.runs, warm_up=False)
    ours, theirs = found["ehrr1"], found["prefix_grouper"]
    pairs = zip(ours[0].logprobs, theirs[0].logprobs, strict=True)
    nats = fmean(abs(a - b) for a, b in pairs)
    norm = abs(ours[0].grad_norm / theirs[0].grad_norm - 1)
    if nats > EQUAL or norm > EQUAL:
        raise SystemExit(f"case {case}: {nats} nats and {norm} of the gradient's norm apart")
    fields = ("update", "cpu_update", "peak_mb")

    def middle(rounds: list[Updated]) -> list[str]:
        return [f"{median(getattr(one, field) for one in rounds):.2f}" for field in fields]

    rows = [[name, *middle(rounds), ""] for name, rounds in found.items()]
    ratio = [f"{median_ratio(theirs, ours, field):.3f}" for field in fields]
    rows.append(["prefix_grouper / ehrr1", *ratio, f"{nats:.1e}, {norm:.1e}"])
    return [[str(case), *one] for one in rows]


UPDATES = ["case", "", "update s", "update CPU s", "peak MB", "apart: nats, gradient's norm"]


def compare(given: argparse.Namespace, case: Case) -> dict[str, Any]:
    """All rounds of a case: the operations, what was trained, the ratios."""
    contenders = Contenders(given, case)
    counts = contenders.setup()
    chosen = {"ehrr1": contenders.ehrr1}
    if not given.without_trl:
        completions = {COMPLETIONS_ONLY: contenders.trl_completions}
        chosen = {"TRL": contenders.trl} | completions | chosen
    print(f"case {case}", file=sys.stderr, flush=True)
    trained: Any = interleaved(chosen, given.runs, warm_up=False)
    seen = {one.seen for rounds in trained.values() for one in rounds}
    if seen != {counts["seen"]}:
        raise SystemExit(f"case {case}: the contenders saw different prompts: {seen}")
    found = ratios(case, trained, counts["padded / forest"])
    return {"counts": counts, "trained": trained, "ratios": found}


def main() -> None:
    reader = parser(__doc__)
    reader.set_defaults(runs=3)
    home = ROOT / "outputs" / "benchmarks"
    cases = ["1500x8", "1500x16", "6000x16"]
    reader.add_argument("folder", type=Path, nargs="?", default=home / "grpo_speed")
    reader.add_argument("--cases", nargs="+", default=cases, metavar="PROMPTxGROUP")
    reader.add_argument("--steps", type=int, default=2, help="counted, of a process (default 2)")
    reader.add_argument("--threads", type=int, default=2, help="of each (default 2)")
    reader.add_argument("--checkpointing", action="store_true", help="activations, in all")
    reader.add_argument("--trl-env", type=Path, default=home / "trl-env", metavar="DIR")
    reader.add_argument("--trl-rows", type=int, help="that TRL learns at a time")
    reader.add_argument("--without-trl", action="store_true", help="ehrr1's steps only")
    reader.add_argument("--grouper-env", type=Path, default=home / "grouper-env", metavar="DIR")
    reader.add_argument("--only", choices=["step", "update"], help="of the two comparisons")
    given = reader.parse_args()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    on, cases = machine(), list(map(Case.read, given.cases))
    updates = [] if given.only == "step" else [compare_updates(given, case) for case in cases]
    found = {} if given.only == "update" else {case: compare(given, case) for case in cases}
    tables = [markdown(UPDATES, [row for rows in updates for row in rows])] if updates else []
    tables += step_tables(given, found) if found else []
    settings = {name: getattr(given, name) for name in ("steps", "threads", "checkpointing")}
    cases_found = {str(case): one for case, one in found.items()}
    figures = {"settings": settings, "cases": cases_found, "updates": updates}
    report(given.json, "\n\n".join(tables), {"machine": on} | figures)


def step_tables(given: argparse.Namespace, found: dict[Case, dict[str, Any]]) -> list[str]:
    """The tables of whole steps."""
    operations = ("padded / forest", "with the short last layer")
    shown = [
        [str(case), *(f"{one['counts'][name]:.2f}" for name in operations)]
        for case, one in found.items()
    ]
    costs = [
        row(case, name, rounds)
        for case, one in found.items()
        for name, rounds in one["trained"].items()
    ]
    compared = [
        [case, name, f"{ratio:.3f}", f"{cpu:.3f}" if cpu else "", asked]
        for one in found.values()
        for case, name, ratio, cpu, asked in one["ratios"]
    ]
    first = next(iter(found.values()))
    entropies = [f"{n} {rounds[0].entropy:.3f}" for n, rounds in first["trained"].items()]
    return [
        f"parameters {first['counts']['parameters']:,}",
        markdown(["case", *(f"operations, {name}" for name in operations)], shown),
        markdown(COLUMNS, costs),
        markdown(["case", "", "median ratio", "by CPU seconds", "required"], compared),
        f"entropy of the first step of {given.cases[0]}: " + ", ".join(entropies),
    ]


if __name__ == "__main__":
    main()
