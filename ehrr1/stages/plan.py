"""stage=plan: memory, time and GPU-hours of a training stage, and whether it fits.

For a model, trainer and cluster it prints tables of the stage `plan.stage`, and writes plan.md and
metrics. Nothing is loaded or downloaded: the model is built on the meta device. What is counted,
and what is assumed, stands in docs/plan.md.
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import write_text
from ehrr1.models.memory import STAGES, Memory, generation_bytes
from ehrr1.models.planning import TRAINERS, Planner, Time, other
from ehrr1.models.rollout_time import engine_room
from ehrr1.models.saving import Saving
from ehrr1.models.sizes import GIB
from ehrr1.runs import Run
from ehrr1.tasks.card_sections import table
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

GB = 10**9

Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table: its title, heads and rows."""


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Plan the memory, time and checkpoints of a stage; return the metrics."""
    check(cfg)
    planner = Planner(cfg)
    found, time = planner.memory(cfg.trainer), planner.time()
    saving = planner.saving(time.seconds_per_step)
    metrics = memory_metrics(planner, found) | time_metrics(time) | saving_metrics(saving)
    metrics |= {
        "fits": int(planner.fits(cfg.trainer)),
        **engine_metrics(planner),
        "micro_batch/largest": planner.largest(cfg.trainer),
        "zero_stage/smallest": planner.smallest_stage(),
    }
    for name in TRAINERS:
        trainer = other(cfg.trainer, name)
        metrics[f"trainers/{name}/memory_gib"] = planner.memory(trainer).total / GIB
        metrics[f"trainers/{name}/fits"] = int(planner.fits(trainer))
    sections = [memory_table(planner, found), run_table(planner, metrics)]
    sections += [step_table(planner, time)] if planner.rl else []
    show(run, [*sections, saving_table(planner, saving), trainers_table(metrics)])
    return metrics


def check(cfg: Config) -> None:
    """Raise UserError for all settings that cannot work together, at once."""
    trainer, cluster, problems = cfg.trainer, cfg.cluster, []
    if trainer.offload and not STAGES[trainer.strategy]:
        problems.append(
            f"trainer.offload=true: trainer.strategy={trainer.strategy} keeps its optimizer on "
            "the GPU; set false, or trainer=zero3_offload"
        )
    if cluster.gpus > cluster.gpus_per_node and cluster.gpus % cluster.gpus_per_node:
        problems.append(
            f"cluster.gpus={cluster.gpus}: several nodes are whole ones; give a multiple of "
            f"cluster.gpus_per_node={cluster.gpus_per_node}"
        )
    if cluster.reserved_gib >= cluster.gpu_memory_gib:
        problems.append(
            f"cluster.reserved_gib={cluster.reserved_gib}: it must be less than "
            f"cluster.gpu_memory_gib={cluster.gpu_memory_gib}"
        )
    stage, serving = cfg.plan.stage, cfg.plan.servers * cfg.plan.server_gpus
    if serving > 1 and (stage != "rl" or cfg.rollout.name != "vllm_server"):
        problems.append(
            f"plan.servers={cfg.plan.servers}, plan.server_gpus={cfg.plan.server_gpus}: servers "
            "write completions with plan.stage=rl rollout=vllm_server"
        )
    if STAGES[trainer.strategy] and cfg.training(stage).optimizer == "muon":
        problems.append(
            f"{stage}.optimizer=muon: trainer.strategy={trainer.strategy} divides the matrices "
            "that Muon needs whole; set adamw"
        )
    if stage != "rl":
        answer, most = cfg.plan.answer_tokens.of(stage), cfg.supervised(stage).max_tokens
        if answer >= most:
            problems.append(
                f"plan.answer_tokens.{stage}={answer}: it must leave room for a record within "
                f"{stage}.max_tokens={most}"
            )
    if problems:
        raise UserError("; ".join(problems))


def memory_metrics(planner: Planner, found: Memory) -> dict[str, float | int]:
    """Parameters, and GiB by part; parts that stand at different moments do not add up."""
    sizes = {"rollout_cache": 0.0} | found.parts
    parts = {f"memory_gib/{name}": size / GIB for name, size in sizes.items()}
    return {
        "parameters": planner.body.base,
        "parameters/learnt": planner.body.learnt,
        **parts,
        "memory_gib/total": found.total / GIB,
        "memory_gib/cpu_node": planner.on_cpu(found),
    }


def engine_metrics(planner: Planner) -> dict[str, float | int]:
    """Return the metrics of the engines that write completions; none without vLLM."""
    if not planner.rl or planner.cfg.rollout.name == "transformers":
        return {}
    return {"engine/completions": planner.engines.holds}


def time_metrics(time: Time) -> dict[str, float | int]:
    """Return the metrics of the planned time."""
    hours = time.steps * time.seconds_per_step / 3600
    return {
        "trees_per_step": time.trees_per_step,
        "tokens_per_step": time.tokens_per_step,
        "steps": time.steps,
        "seconds_per_step": time.seconds_per_step,
        "hours": hours,
        "gpu_hours": hours * time.gpus,
        **{f"seconds/{phase}": seconds for phase, seconds in time.phases.items()},
    }


def saving_metrics(saving: Saving) -> dict[str, float | int]:
    """Return the metrics of the planned checkpoints."""
    return {
        "checkpoint/gb": saving.size / GB,
        "checkpoint/seconds": saving.seconds,
        "checkpoint/pause_seconds": saving.pause,
        "checkpoint/share": saving.share,
        "checkpoint/disk_gb": saving.room / GB,
    }


def memory_table(planner: Planner, found: Memory) -> Section:
    """Return memory in GiB, a part a row and a moment of the step a column."""
    rows = [
        [part, *(_n(parts.get(part, 0.0) / GIB) for parts in found.moments.values())]
        for part in found.parts
    ]
    sums = [_n(sum(parts.values()) / GIB) for parts in found.moments.values()]
    return planner.title(), ["GiB a GPU", *found.moments], [*rows, ["total", *sums]]


def run_table(planner: Planner, metrics: dict[str, float | int]) -> Section:
    """Return the section on the run."""
    cfg, smallest = planner.cfg, metrics["zero_stage/smallest"]
    trees, asked = f"{metrics['trees_per_step']:,}", planner.asked_trees
    if metrics["trees_per_step"] != asked:
        trees += f": {planner.step_setting}={asked} cannot be shared evenly"
    rows = [
        ("memory a GPU", f"{_n(metrics['memory_gib/total'])} of {cfg.cluster.gpu_memory_gib} GiB"),
        ("memory of a node's CPUs", f"{_n(metrics['memory_gib/cpu_node'])} GiB"),
        *engine_rows(planner),
        ("fits", _yes(metrics["fits"])),
        ("largest micro batch", f"{metrics['micro_batch/largest']} x {planner.shape.tokens:,}"),
        ("smallest ZeRO stage", "none fits" if smallest < 0 else str(smallest)),
        ("trees a step", trees),
        ("tokens a step", f"{metrics['tokens_per_step']:,.0f}"),
        ("steps", f"{metrics['steps']:,}"),
        ("seconds a step", _n(metrics["seconds_per_step"])),
        ("hours", f"{metrics['hours']:,.1f} at {cfg.plan.utilisation:.0%} of the peak"),
        ("GPU-hours", f"{metrics['gpu_hours']:,.0f}"),
    ]
    return "The run", ["what", "value"], rows


def engine_rows(planner: Planner) -> list[tuple[str, str]]:
    """Return the row that says what the memory of a vLLM engine holds; none without vLLM."""
    cfg = planner.cfg
    if not planner.rl or cfg.rollout.name == "transformers":
        return []
    fleet, weights = planner.engines, planner.body.base * generation_bytes(cfg.trainer) / GIB
    told = f"{_n(engine_room(cfg) / GIB)} GiB: weights {_n(weights)}, "
    if fleet.holds > 0:
        told += f"{fleet.holds:,} completions of {planner.generated_tokens:,} tokens at a time"
    else:
        told += "and no room for a completion: "
        told += (
            "raise rollout.gpu_memory_utilization, or divide the model among the GPUs of a server "
            "(rollout=vllm_server)"
            if cfg.rollout.name == "vllm"
            else f"raise plan.server_gpus={fleet.gpus}"
        )
    number = f"{fleet.number} engines of {fleet.gpus} GPUs, each"
    return [("engine a GPU" if cfg.rollout.name == "vllm" else number, told)]


PHASES = {
    "weights": "the new weights reach the engines",
    "prompts": "each prompt is read once for its group",
    "completions": "they are written token by token",
    "learning": "the update, and a reference if there is one",
}
"""Phases of a step of rl (`models.rollout_time`)."""


def step_table(planner: Planner, time: Time) -> Section:
    """Return the section on the phases of a step of rl, saves included."""
    saving = planner.saving(time.seconds_per_step)
    saved = time.seconds_per_step * saving.share / (1 - saving.share)
    rows = [
        (name, _n(seconds), f"{seconds / time.seconds_per_step:.0%}", PHASES[name])
        for name, seconds in time.phases.items()
    ]
    rows.append(("saves", _n(saved), f"{saved / time.seconds_per_step:.0%}", "on average, at most"))
    return "A step", ["phase", "seconds", "share", "what"], rows


def saving_table(planner: Planner, saving: Saving) -> Section:
    """Return the section on checkpoints."""
    speed, parts = planner.cfg.cluster.write_gb_per_second, ["the last", "one being written"]
    share = f"{saving.share:.1%} at most"
    if saving.every is not None:
        parts.append(f"trainer.save_top_k={saving.kept}")
        share += f", if each evaluation ({_time(saving.every)}) is among the best"
    rows = [
        ("a checkpoint", f"{_n(saving.size / GB)} GB"),
        ("written in", f"{_time(saving.seconds)} at {speed:g} GB/s"),
        ("the next one", f"after {_time(saving.pause)} at least"),
        ("share of the time", share),
        ("disk", f"{_n(saving.room / GB)} GB: {', '.join(parts)}"),
    ]
    return "Checkpoints", ["what", "value"], rows


def trainers_table(metrics: dict[str, float | int]) -> Section:
    """Return the section on the choices of `trainer`."""
    rows = [
        (
            name,
            _n(metrics[f"trainers/{name}/memory_gib"]),
            _yes(metrics[f"trainers/{name}/fits"]),
        )
        for name in TRAINERS
    ]
    title = "Every trainer, with this precision and activation checkpointing"
    return title, ["trainer", "GiB a GPU", "fits"], rows


def show(run: Run, sections: Sequence[Section]) -> None:
    """Print the tables, and write the same to plan.md."""
    parts = ["# Plan"]
    for title, heads, rows in sections:
        shown = Table()
        for number, head in enumerate(heads):
            shown.add_column(head, justify="right" if number else "left")
        for row in rows:
            shown.add_row(*row, style="bold" if row[0] in ("total", "fits") else None)
        console.print(Text(title, "bold"), shown, sep="\n")
        parts += [f"## {title}", table(heads, rows)]
    write_text(run.folder / "plan.md", "\n\n".join(parts) + "\n")


def _time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.1f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _n(value: float) -> str:
    return f"{value:,.2f}"


def _yes(value: float) -> str:
    return "yes" if value else "no"
