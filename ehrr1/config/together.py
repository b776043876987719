"""Check combinations of settings, by section and stage."""

from typing import TYPE_CHECKING

from ehrr1.config.names import BENCHMARKS, TRAINING
from ehrr1.config.records import (
    AnyData,
    BenchmarkData,
    Concepts,
    Data,
    Graph,
    OpenConcepts,
    UmlsConcepts,
)
from ehrr1.config.training import Launcher, LocalLauncher
from ehrr1.config.writers import (
    AnthropicEngineConfig,
    ModelChains,
    ServerChains,
    TemplateChains,
    VllmEngineConfig,
)

if TYPE_CHECKING:
    from ehrr1.config.schema import Config

NEEDED = {
    "mimic": "the folder with hosp/",
    "meds": "its folder",
    "release": "its folder",
    "ehrshot": "its folder",
    "mimiciv_cdm": "its folder",
}
"""The meaning of `data.root` for each kind of records that needs it."""

READ_BY = {
    "rescore": ("eval",),
    "predictions": ("eval",),
    "compare": ("eval",),
    "record": ("infer",),
    "question": ("infer",),
    "run": ("consolidate",),
    "checkpoint": ("consolidate",),
    "answer": ("eval", "infer", "curriculum"),
    "candidates": ("eval", "infer", "curriculum"),
    "tokenise_only": TRAINING,
}
"""Settings outside a section -> the stages that read them; other stages reject them."""


def conflicts(cfg: "Config") -> list[str]:
    """Return one line for each combination of settings that is not allowed."""
    found = [*folders(cfg), *records(cfg), *keeping(cfg), *thinking(cfg), *evaluation(cfg)]
    found += launching(cfg.launcher)
    return found + (training(cfg) if cfg.stage in (*TRAINING, "plan", "curriculum") else [])


def folders(cfg: "Config") -> list[str]:
    """Check that the folder of a run is below `output_root`."""
    return [
        f"{name}={value}: it names folders below output_root, joined by '/'; it must not begin "
        "with '/', and none of them may be '..' or contain line breaks"
        for name, value in (("name", cfg.name), ("variant", cfg.variant or ""))
        if value.startswith("/") or ".." in value.split("/") or not value.isprintable()
    ]


def training(cfg: "Config") -> list[str]:
    """Check that there is a model to train.

    A model is a folder of weights, or has its own configuration. An experiment may set sizes of its
    own model, which are not a complete configuration for another model.
    """
    config = cfg.model.config
    if isinstance(cfg.rollout, VllmEngineConfig) and cfg.rollout.tensor_parallel > 1:
        return [
            f"rollout.tensor_parallel={cfg.rollout.tensor_parallel}: with rollout=vllm each "
            "training process has an engine on its own GPU; use rollout=vllm_server to divide a "
            "model among GPUs"
        ]
    if cfg.model.path is None and config is None:
        return ["model.path=null, model.config=null: there is no model to train: model=FOLDER"]
    if config is not None and "model_type" not in config:
        return [
            f"model.config={config}: its model_type is missing; model.config=null takes what "
            f"model={cfg.model.name} is"
        ]
    return []


def records(cfg: "Config") -> list[str]:
    """Check the settings of the data and of the stages that read them."""
    data, problems = cfg.data, []
    reads = cfg.stage in ("prepare", "curriculum") or (
        cfg.stage == "eval" and data.name in BENCHMARKS and cfg.inputs.prepare is None
    )
    if data.name == "synthetic" and data.root is not None:
        problems.append(
            f"data.root={data.root} with data=synthetic, which invents its records: say what the "
            "folder is: data=mimic, meds, release, ehrshot or mimiciv_cdm"
        )
    if reads and data.name in NEEDED and data.root is None:
        problems.append(
            f"data.root=null: data={data.name} needs {NEEDED[data.name]}: data.root=DIR"
        )
    if reads and isinstance(data, BenchmarkData) and data.path is None and data.train is None:
        problems.append(
            "data.path=null: data=benchmark needs its file: data.path=FILE.jsonl (or data.train, "
            "for rows to train on)"
        )
    if data.name in BENCHMARKS and data.shard is not None:
        problems.append(f"data.shard={data.shard}: benchmarks are not sharded; leave it out")
    if data.name in ("meds", "release", *BENCHMARKS) and data.subjects_file is not None:
        problems.append(
            f"data.subjects_file={data.subjects_file}: patients are chosen with data=mimic or "
            f"data=synthetic, not with data={data.name}; leave it out"
        )
    if data.name in ("meds", "release", *BENCHMARKS):
        problems += [
            f"data.split.{split}_subjects={file}: a split is named with data=mimic or "
            f"data=synthetic, not with data={data.name}; leave it out"
            for split in ("validation", "test")
            if (file := data.split.of(f"{split}_subjects")) is not None
        ]
    if data.name in BENCHMARKS and data.questions is not None:
        problems.append(
            f"data.questions={data.questions}: samples of a benchmark file come with a question of "
            "their own; leave it out"
        )
    if data.name in BENCHMARKS and data.tell_time:
        problems.append(
            "data.tell_time=true: samples of a benchmark file come with a question of their own; "
            "leave it out"
        )
    problems += _own_task(data) + _shares(data)
    if data.shard is not None and cfg.overwrite:
        problems.append(
            "overwrite=true with data.shard would remove what other processes build: remove the "
            "folder by hand"
        )
    return problems


def _own_task(data: Data) -> list[str]:
    """Check that labels of the user's own have a question, and a store whose times they can use."""
    if data.own_labels is None and data.own_question is None:
        return []
    if data.own_labels is None or data.own_question is None:
        return [
            f"data.own_labels={data.own_labels}, data.own_question={data.own_question}: labels of "
            "your own and their question go together; set both"
        ]
    if data.name in ("release", *BENCHMARKS) or data.protocol == "paper":
        return [
            f"data.own_labels={data.own_labels}: labels of your own are for data.protocol=strict "
            f"and data=mimic, synthetic or meds, and this is data={data.name} "
            f"data.protocol={data.protocol}; leave them out"
        ]
    return []


def _shares(data: AnyData) -> list[str]:
    problems = []
    if data.shard is not None and data.shard >= data.shards:
        problems.append(
            f"data.shard={data.shard}: it must be below data.shards={data.shards}; set data.shards "
            "to the number of processes that share the work"
        )
    shares = {split: data.split.of(split) for split in ("validation", "test")}
    drawn = [n for split, n in shares.items() if data.split.of(f"{split}_subjects") is None]
    if sum(drawn) >= 1:
        problems.append(
            f"data.split={shares}: nothing is left to train on; the two shares must add up to less "
            "than 1"
        )
    return problems


def evaluation(cfg: "Config") -> list[str]:
    """Check the settings of evaluation: how models are queried, and which results are compared."""
    problems = []
    if cfg.eval.shard is not None and cfg.eval.shard >= cfg.eval.shards:
        problems.append(
            f"eval.shard={cfg.eval.shard}: it must be below eval.shards={cfg.eval.shards}; set "
            "eval.shards to the number of processes that share the work"
        )
    if cfg.eval.shard is not None and cfg.overwrite:
        problems.append(
            "overwrite=true with eval.shard would remove what other processes answer: remove the "
            "folder by hand"
        )
    if cfg.predictions is not None:
        unread = {
            "answer": cfg.answer,
            "candidates": None if cfg.candidates == "none" else cfg.candidates,
            "eval.chains": cfg.eval.chains,
            "eval.shots": cfg.eval.shots or None,
            "eval.shard": cfg.eval.shard,
            "rescore": cfg.rescore,
            "compare": cfg.compare,
        }
        problems += [
            f"{name}={value}: with predictions={cfg.predictions} no model is asked; leave it out"
            for name, value in unread.items()
            if value is not None
        ]
    if cfg.compare is not None and len(cfg.compare) < 2:
        problems.append(f"compare={cfg.compare}: give at least two folders: compare=[DIR,DIR]")
    engine = cfg.engine
    if isinstance(engine, AnthropicEngineConfig) and engine.model is None:
        problems.append("engine.model=null: engine=anthropic needs one: engine.model=NAME")
    if isinstance(engine, AnthropicEngineConfig) and cfg.eval.shots:
        problems.append(f"eval.shots={cfg.eval.shots}: engine=anthropic takes none; leave it out")
    if cfg.eval.chains is not None and isinstance(engine, AnthropicEngineConfig):
        problems.append(
            f"eval.chains={cfg.eval.chains}: engine=anthropic cannot continue a chain; leave it out"
        )
    if cfg.eval.chains is not None and cfg.answer not in (None, "think", ["think"]):
        problems.append(
            f"answer={cfg.answer}: with eval.chains={cfg.eval.chains} the chains are given; "
            "leave answer out"
        )
    problems += [
        f"{name}={cfg.of(name)}: it belongs to stage={', '.join(stages)}; this is stage={cfg.stage}"
        for name, stages in READ_BY.items()
        if cfg.of(name) not in (None, False, "none", "last") and cfg.stage not in stages
    ]
    return problems


def launching(launcher: Launcher) -> list[str]:
    """Check that a SLURM job has time to save before its limit."""
    early = 45  # seconds by which SLURM may signal early, and that a process needs to start
    if isinstance(launcher, LocalLauncher):
        return []
    if launcher.signal_seconds + early > 60 * launcher.minutes:
        return [
            f"launcher.signal_seconds={launcher.signal_seconds}: a job of launcher.minutes="
            f"{launcher.minutes} would be signalled to save at its start; change one of them"
        ]
    return []


def keeping(cfg: "Config") -> list[str]:
    """Check that stages which keep the best checkpoints also evaluate during training.

    rl has no such evaluations and keeps only the last checkpoint.
    """
    with_reason = cfg.stage == "curriculum" and cfg.rl.start == "reason"
    stages = {"curriculum": ["adapt", *["reason"] * with_reason]}.get(cfg.stage, [cfg.stage])
    blind = [s for s in ("adapt", "reason") if s in stages and cfg.supervised(s).eval_every is None]
    if not cfg.trainer.save_top_k or not blind:
        return []
    remedy = " and ".join(f"{stage}.eval_every=STEPS" for stage in blind)
    return [
        f"trainer.save_top_k={cfg.trainer.save_top_k}: evaluations during training determine "
        f"the best checkpoints; set {remedy}, or trainer.save_top_k=0"
    ]


def thinking(cfg: "Config") -> list[str]:
    """Check the settings of concepts, graph and chains for the stages that use them."""
    problems = []
    if cfg.stage in ("graph", "curriculum"):
        problems += _sources(cfg.concepts, cfg.graph)
    if cfg.stage in ("chains", "curriculum"):
        if isinstance(cfg.chains, TemplateChains):
            problems += _template(cfg, cfg.chains)
        else:
            problems += _language_model(cfg, cfg.chains)
    return problems


def _sources(concepts: Concepts, graph: Graph) -> list[str]:
    """Check that the needed files of concepts and knowledge are set."""
    problems = []
    if isinstance(concepts, OpenConcepts) and concepts.dictionary is None:
        problems.append(
            "concepts.dictionary=null: concepts=open needs a dictionary: concepts.dictionary=FILE "
            "(.tsv or .tsv.gz, docs/thinking_graph.md)"
        )
    if isinstance(concepts, UmlsConcepts) and concepts.folder is None:
        problems.append(
            "concepts.folder=null: concepts=umls needs the folder with MRCONSO.RRF: "
            "concepts.folder=DIR"
        )
    paths = isinstance(concepts, UmlsConcepts) or (
        isinstance(concepts, OpenConcepts) and concepts.relations is not None
    )
    if graph.require_path and not (graph.knowledge and paths):
        problems.append(
            "graph.require_path=true: there is no knowledge base to search; add concepts=umls or "
            "concepts=open with concepts.relations=FILE, and leave graph.knowledge=true"
        )
    if graph.counting == "release":
        refused = {
            "counted_samples_per_task": (graph.counted_samples_per_task, "all training samples"),
            "max_fdr": (graph.max_fdr, "in a way that Fisher's test does not allow"),
        }
        problems += [
            f"graph.{name}={value}: graph.counting=release counts {how}; graph.{name}=null, or "
            "graph.counting=ours"
            for name, (value, how) in refused.items()
            if value is not None
        ]
    if graph.weighed_samples_per_task is not None and graph.evidence == "cooccurrence":
        problems += _weighed(graph, graph.weighed_samples_per_task)
    return problems


def _weighed(graph: Graph, samples: int) -> list[str]:
    """Return why the concepts of records cannot be weighed together."""
    problems = []
    if graph.candidates == 0:
        problems.append("graph.candidates=0 keeps no likely items; set graph.candidates=N")
    if graph.counting == "release":
        problems.append("graph.counting=release has no likely items; set graph.counting=ours")
    drawn = graph.samples_per_task
    if drawn is None or drawn > samples:
        problems.append(
            f"graph.samples_per_task={'null' if drawn is None else drawn} draws more than is "
            "weighed; raise the former"
        )
    return [
        f"graph.weighed_samples_per_task={samples}: {one}; null weighs none" for one in problems
    ]


def _language_model(cfg: "Config", chains: ModelChains) -> list[str]:
    problems = []
    if chains.model is None and not isinstance(chains, ServerChains):
        problems.append(
            f"chains.model=null: chains={cfg.chains.writer} needs one: chains.model=NAME"
        )
    if chains.dry_run and cfg.stage == "curriculum":
        problems.append("chains.dry_run=true: a dry run is for a single stage; set stage=chains")
    if cfg.overwrite:
        problems.append(
            "overwrite=true: drafts that were paid for would be lost if the run is stopped; remove "
            "the folder by hand, or set variant=NAME"
        )
    return problems


def _template(cfg: "Config", chains: TemplateChains) -> list[str]:
    """Check that the template writer has a graph with evidence, and sections."""
    refused = {
        "chains.show_graph": (chains.show_graph, False),
        "chains.sections": (chains.sections, False),
        "graph.evidence": (cfg.graph.evidence, "none"),
    }
    return [
        f"{name}={str(value).lower()}: the template writes from the graph and in sections; choose "
        "a writer that reads the record: chains=openai, anthropic, vllm or transformers"
        for name, (value, wrong) in refused.items()
        if value == wrong
    ]
