"""TRL's GRPOTrainer on the prompts that `benchmarks/grpo_speed.py` wrote; runs in an environment of
its own, that holds TRL and not this project.

Generation with Transformers, PyTorch's own attention, one update a rollout (so that TRL computes no
log-probabilities of the sampling policy), loss `grpo` without a reference. No evaluation, no
reports, no checkpoints. What of a step counts as which part is said there.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils as trainer_utils

from benchmarks.grpo_speed import (
    COMPLETION_TOKENS,
    LEARNING_RATE,
    SAMPLING,
    Case,
    digest,
    rewards,
)


def clocks() -> tuple[float, float]:
    """Seconds of time, and of this process on any core."""
    return time.perf_counter(), time.process_time()


class Timed(GRPOTrainer):
    """Notes how long the parts of each step take, and which prompts it saw."""

    def __init__(self, **given: Any):
        super().__init__(**given)
        self.parts: list[dict[str, float]] = []
        self.seen: list[list[int]] = []
        self.scored = (0.0, 0.0)

    def _generate(self, prompts: list[Any]) -> Any:
        began = time.perf_counter()
        found = super()._generate(prompts)
        self.parts.append({"generate": time.perf_counter() - began})
        ids, completions = found[:2]
        assert all(one == ids[0] for one in ids)
        lengths = {len(completion) for completion in completions}
        assert lengths == {COMPLETION_TOKENS}, lengths
        self.seen.append(list(ids[0]))
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        began, cpu_began = clocks()
        found = super()._generate_and_score_completions(inputs)
        self.scored = clocks()
        spent, cpu = self.scored[0] - began, self.scored[1] - cpu_began
        self.parts[-1] |= {"score": spent - self.parts[-1]["generate"], "cpu_generate": cpu}
        return found


class Ends(TrainerCallback):
    """Notes when each step is done."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.trainer: Timed | None = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer is not None
        self.ends.append(clocks())
        spent, cpu = (b - a for a, b in zip(self.trainer.scored, self.ends[-1], strict=True))
        self.trainer.parts[-1] |= {"update": spent, "cpu_update": cpu}


def train(given: argparse.Namespace) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(given.folder / "model")
    ids = json.loads((given.folder / "prompts.json").read_text(encoding="utf-8"))
    texts = [" ".join(tokenizer.convert_ids_to_tokens(one)) for one in ids]
    settings = GRPOConfig(
        output_dir=str(given.folder / "trl"),
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        num_generations=given.case.group,
        per_device_train_batch_size=given.rows,
        gradient_accumulation_steps=given.case.group // given.rows,
        max_steps=len(texts),
        max_completion_length=COMPLETION_TOKENS,
        **SAMPLING,
        beta=0.0,
        loss_type="grpo",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=given.checkpointing,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    ends = Ends()
    trainer = Timed(
        model=str(given.folder / "model"),
        args=settings,
        reward_funcs=rewards,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[ends],
    )
    ends.trainer = trainer
    entropies = trainer._metrics["train"]["entropy"]
    trainer.train()
    (began, cpu_began), (ended, cpu_ended) = ends.ends[0], ends.ends[-1]
    counted = trainer.parts[1:]
    return {name: fmean(one[name] for one in counted) for name in counted[0]} | {
        "step": (ended - began) / len(counted),
        "cpu_step": (cpu_ended - cpu_began) / len(counted),
        "entropy": fmean(entropies[: settings.gradient_accumulation_steps]),
        "seen": digest(trainer.seen),
    }


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("folder", type=Path)
    reader.add_argument("output", type=Path)
    reader.add_argument("--case", type=Case.read, required=True)
    reader.add_argument("--steps", type=int, required=True)
    reader.add_argument("--rows", type=int, required=True, help="learnt at a time")
    reader.add_argument("--checkpointing", action="store_true")
    reader.add_argument("--completions-only", action="store_true", help="as on a GPU")
    given = reader.parse_args()
    if given.completions_only:
        # whether the head picks them out is decided, in that module, by whether there is Triton
        trainer_utils._use_triton = lambda device: True
    found = train(given)
    given.output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
