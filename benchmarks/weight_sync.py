"""Measure how long new weights take to reach a vLLM engine beside the trainer: memory and files.

    python -m benchmarks.weight_sync [FOLDER] [--rounds 5] [--size tiny|135m] [--json FILE]

Random weights in float32, in the shape of SmolLM2-135M (the default, 538 MB) or of a Qwen3 of 9
million parameters (tiny, 37 MB). Both ways serve the same engine in turn, after a first round that
does not count. `seconds` is the time in which `load_weights` returns; `CPU seconds` is what trainer
and engine compute in it, which other programs on the machine hardly change. After each transfer
the engine's log-probabilities are compared with the trainer's, as in training; this is not timed.
On a CPU `memory` is a shared buffer, and `files` are in the machine's page cache.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, PreTrainedModel

from benchmarks.measure import ROOT, machine, markdown, parser, report
from benchmarks.rollout_speed import make_model, random_model
from ehrr1.config.writers import Sync, VllmSettings
from ehrr1.engines.vllm import VLLMEngine
from ehrr1.engines.weight_sync import SYNC_TOLERANCE, check_sync
from ehrr1.models.logprobs import token_logprobs
from ehrr1.models.weights import whole_weights
from ehrr1.prompts.forest import collate
from ehrr1.prompts.trees import Branch, Tree

WAYS: tuple[Sync, Sync] = ("memory", "files")
PROBE = list(range(5, 69))


@dataclass(frozen=True)
class Sent:
    """One transfer."""

    seconds: float
    cpu_seconds: float


def smollm2(folder: Path) -> PreTrainedModel:
    """Write a model in the shape of SmolLM2-135M to `folder`; return it."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return random_model(config, folder)


def cpu_seconds(process: int) -> float:
    """Return the user and system seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sent(engine: VLLMEngine, model: PreTrainedModel, way: Sync) -> Sent:
    """Change the weights, pass them to the engine, and check that they are there."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    engine.sync = way
    both = (os.getpid(), engine.process.pid)
    begin, before = time.perf_counter(), sum(map(cpu_seconds, both))
    engine.load_weights(whole_weights(model))
    found = Sent(time.perf_counter() - begin, sum(map(cpu_seconds, both)) - before)
    forest = collate([Tree(PROBE[:1], [Branch("probe", [], PROBE[1:])])])
    with torch.no_grad():
        ours = token_logprobs(model, forest, 1.0).logprobs
    check_sync(engine.logprobs(PROBE), ours.tolist(), SYNC_TOLERANCE[torch.float32])
    return found


def row(name: str, found: list[Sent]) -> list[str]:
    seconds = [one.seconds for one in found]
    cpu = median(one.cpu_seconds for one in found)
    return [name, f"{median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}", f"{cpu:.2f}"]


def main() -> None:
    reader = parser(__doc__)
    home = ROOT / "outputs" / "benchmarks" / "weight_sync"
    reader.add_argument("folder", type=Path, nargs="?", default=home)
    reader.add_argument("--size", choices=["tiny", "135m"], default="135m")
    given = reader.parse_args()
    on, folder = machine(), given.folder / given.size
    model = smollm2(folder / "hf") if given.size == "135m" else make_model(folder / "hf")[0]
    engine = VLLMEngine(
        folder / "hf",
        2,
        VllmSettings(batch_size=8, gpu_memory_utilization=0.4, kv_cache_gib=0.3),
        max_length=256,
        dtype=torch.float32,
        device=torch.device("cpu"),
        exchange=folder / "exchange",
        log=folder / "vllm.log",
    )
    rounds: dict[Sync, list[Sent]] = {way: [] for way in WAYS}
    try:
        for number in range(given.runs + 1):
            for way in WAYS:
                found = sent(engine, model, way)
                print(f"round {number} {way}: {found.seconds:.2f} s", file=sys.stderr, flush=True)
                if number:  # the first warms up
                    rounds[way].append(found)
    finally:
        engine.close()
    columns = ["rollout.sync", "seconds", "least-most", "CPU seconds"]
    table = markdown(columns, [row(name, found) for name, found in rounds.items()])
    report(given.json, table, {"machine": on, "size": given.size, "rounds": rounds})


if __name__ == "__main__":
    main()
