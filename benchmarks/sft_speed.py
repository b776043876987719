"""Measure supervised training on answers: beside TRL's SFTTrainer and beside a bare loop, in turn.

    python -m benchmarks.sft_speed [FOLDER] [--rounds 3] [--trees 40] [--without-trl] [--json FILE]

Samples: all risk questions on the ICU stays and admissions of a synthetic hospital (400 patients,
written to FOLDER by stage=prepare) whose records have at least 1,000 tokens; several questions
share a record. They are tokenised once, by a tokenizer trained on the hospital's records, and all
contenders learn the same token ids with the same initial weights (Qwen3, 6.2M parameters), AdamW,
float32, 2 threads, and as many optimizer steps. Each runs in a process of its own; timed is
training from the end of its first step on, without imports, reading and that step.

- TRL 1.16.0 SFTTrainer, in a virtual environment of its own (`--trl-env`, made where it is
  missing): each sample behind its own copy of the record, packed (bfd) to `--row-tokens`, loss
  on completions only. No evaluation, no reports, no checkpoints.
- TRL, labelled positions only: on a CPU its head scores all positions, on a GPU only those that are
  learnt; here it is made to do the latter, by one line. That favours it.
- ehrr1: its LightningModule and `fit` on a run folder, with log, TensorBoard, a checkpoint every 15
  seconds and one at the end: they are timed too.
- bare: the same forests, from trees in memory, in a loop: collate, forward, backward, clip, AdamW.

Before the rounds TRL takes one step on the samples of our first step: both losses are printed.
A ratio is the median over rounds of the two figures of the same round. *CPU seconds* are those of
all threads: other work on the machine moves them less than it moves time.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import (
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

LEARNING_RATE = 1e-4
SPEEDS = ("samples_per_second", "samples_per_cpu_second")
LABELLED = "TRL, labelled positions only"
ENV = {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Trained:
    """One process: what it trained after its first step, and what it cost as a whole."""

    samples: int
    tokens: int
    """Computed: of TRL padding and each copy of a record, of ours each record once."""
    training_seconds: float
    cpu_seconds: float
    losses: list[float]
    seconds: float
    peak_mb: float

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.training_seconds

    @property
    def samples_per_cpu_second(self) -> float:
        return self.samples / self.cpu_seconds

    @property
    def tokens_per_sample(self) -> float:
        return self.tokens / self.samples


class Contenders:
    """The commands, and what they are given."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.steps = -(-given.trees // given.trees_per_step)

    def samples(self) -> dict[str, int]:
        """Write what the contenders learn; returns what it is."""
        command = [sys.executable, "run.py", "stage=prepare", "data.subjects=400"]
        run([*command, f"output_root={self.given.folder}"], self.log)
        return self._child(*self._ours("samples"))[0]

    def trl_first_step(self) -> float:
        """TRL's loss on the samples of our first step, with the initial weights."""
        return self._child(*self._trl(), "--first-step")[0]["losses"][0]

    def trl_sft(self, number: int) -> Trained:
        return _trained(*self._child(*self._trl()))

    def trl_labelled(self, number: int) -> Trained:
        return _trained(*self._child(*self._trl(), "--labelled"))

    def ehrr1(self, number: int) -> Trained:
        return _trained(*self._child(*self._ours("fit")))

    def bare(self, number: int) -> Trained:
        return _trained(*self._child(*self._ours("bare")))

    @property
    def log(self) -> Path:
        return self.given.folder / "log"

    def _trl(self) -> list[Any]:
        sizes = ["--steps", self.steps, "--row-tokens", self.given.row_tokens]
        python = environment(self.given.trl_env, TRL) / "python"  # made by the first call, untimed
        return [python, "-m", "benchmarks.sft_speed_trl", *self._common(), *sizes]

    def _ours(self, what: str) -> list[Any]:
        sizes = ["--trees", self.given.trees, "--trees-per-step", self.given.trees_per_step]
        sizes += ["--row-tokens", self.given.row_tokens]
        return [sys.executable, "-m", "benchmarks.sft_speed_ours", what, *self._common(), *sizes]

    def _common(self) -> list[Any]:
        checkpointing = ["--checkpointing"] if self.given.checkpointing else []
        return [self.given.folder, self.found, "--lr", LEARNING_RATE, *checkpointing]

    @property
    def found(self) -> Path:
        return self.given.folder / "found.json"

    def _child(self, *command: Any) -> tuple[dict[str, Any], Cost]:
        """Run a child; return its result and its cost."""
        cost = run(command, self.log, ENV)
        return json.loads(self.found.read_text(encoding="utf-8")), cost


def _trained(found: dict[str, Any], cost: Cost) -> Trained:
    return Trained(
        samples=found["samples"],
        tokens=found["tokens"],
        training_seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"],
        losses=found["losses"],
        seconds=cost.seconds,
        peak_mb=cost.peak_mb,
    )


def row(name: str, rounds: list[Trained]) -> list[str]:
    """A row for `COLUMNS`."""

    def middle(field: str) -> float:
        return median(getattr(one, field) for one in rounds)

    speeds = [one.samples_per_second for one in rounds]
    return [
        name,
        f"{middle('samples_per_second'):.2f}",
        f"{min(speeds):.2f}-{max(speeds):.2f}",
        f"{middle('samples_per_cpu_second'):.2f}",
        f"{rounds[0].samples}",
        f"{rounds[0].tokens:,}",
        f"{middle('peak_mb'):.0f}",
        f"{middle('seconds'):.0f}",
    ]


COLUMNS = [
    *("", "samples/s", "least-most", "samples/CPU s", "samples", "tokens computed"),
    *("peak MB, largest process", "seconds, whole process"),
]


def ratios(trained: dict[str, list[Trained]]) -> list[list[Any]]:
    """Return the bounds: name, the median over rounds, the same by CPU seconds, the bound."""
    ehrr1, bare = trained["ehrr1"], trained["bare"]
    found: list[list[Any]] = []
    for name in [name for name in ("TRL", LABELLED) if name in trained]:
        trl = trained[name]
        tokens = median_ratio(trl, ehrr1, "tokens_per_sample")
        speed = [median_ratio(ehrr1, trl, field) for field in SPEEDS]
        share = [one / tokens for one in speed]
        memory = median_ratio(ehrr1, trl, "peak_mb")
        found += [
            [f"tokens computed a sample, {name} / ehrr1", tokens, None, ""],
            [f"samples/s, ehrr1 / {name}", *speed, "at least 2.5"],
            ["... as a share of the tokens' ratio", *share, "at least 0.85"],
            [f"peak memory, ehrr1 / {name}", memory, None, "at most 1.0"],
        ]
    slower = [median_ratio(bare, ehrr1, field) for field in SPEEDS]
    return [*found, ["time a sample, ehrr1 / bare", *slower, "at most 1.10"]]


def main() -> None:
    reader = parser(__doc__)
    reader.set_defaults(runs=3)
    home = ROOT / "outputs" / "benchmarks"
    reader.add_argument("folder", type=Path, nargs="?", default=home / "sft_speed")
    reader.add_argument("--trl-env", type=Path, default=home / "trl-env", metavar="DIR")
    reader.add_argument("--trees", type=int, default=40, help="records (default 40)")
    reader.add_argument("--trees-per-step", type=int, default=4, help="(default 4)")
    reader.add_argument("--row-tokens", type=int, default=2400, help="for all (default 2400)")
    reader.add_argument("--checkpointing", action="store_true", help="activations, in all")
    reader.add_argument("--without-trl", action="store_true", help="ehrr1 and bare only")
    given = reader.parse_args()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    contenders = Contenders(given)
    counts, on = contenders.samples(), machine()
    if (longest := counts["longest"]) > given.row_tokens:
        raise SystemExit(f"--row-tokens={given.row_tokens}: TRL would cut a sample of {longest}")
    first, chosen = {}, {"ehrr1": contenders.ehrr1, "bare": contenders.bare}
    if not given.without_trl:
        first["TRL"] = contenders.trl_first_step()
        chosen = {"TRL": contenders.trl_sft, LABELLED: contenders.trl_labelled} | chosen
    trained: Any = interleaved(chosen, given.runs, warm_up=False)
    found = ratios(trained)
    table = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    table += "\n\n" + markdown(COLUMNS, [row(name, rounds) for name, rounds in trained.items()])
    table += "\n\n" + markdown(
        ["", "median ratio", "by CPU seconds", "required"],
        [
            [name, f"{one:.3f}", f"{cpu:.3f}" if cpu else "", asked]
            for name, one, cpu, asked in found
        ],
    )
    first |= {name: trained[name][0].losses[0] for name in ("ehrr1", "bare")}
    table += "\n\nloss of the first step: " + ", ".join(f"{n} {v:.7f}" for n, v in first.items())
    figures = {"machine": on, "samples": counts, "trained": trained, "first_step": first}
    report(given.json, table, figures | {"ratios": found})


if __name__ == "__main__":
    main()
