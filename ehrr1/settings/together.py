"""Settings that do not go together, by stage."""

from omegaconf import DictConfig, OmegaConf

from ehrr1.runs import ORDER, order
from ehrr1.settings.table import ANSWERS, LAUNCHERS


def evaluation(cfg: DictConfig) -> list[str]:
    """How models are asked, and which finished evaluations are looked at."""
    answers = cfg.answer if OmegaConf.is_list(cfg.answer) else [cfg.answer]
    problems = [
        f"answer={cfg.answer}: choose direct, think or both, a list of them, or null"
        for answer in answers
        if answer not in (None, *ANSWERS)
    ]
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
    if cfg.compare is not None and (not OmegaConf.is_list(cfg.compare) or len(cfg.compare) < 2):
        problems.append(f"compare={cfg.compare}: give at least two folders: compare=[DIR,DIR]")
    if cfg.engine.name == "anthropic" and cfg.engine.model is None:
        problems.append("engine.model=null: engine=anthropic needs one: engine.model=NAME")
    if cfg.engine.name == "anthropic" and cfg.eval.shots:
        problems.append(f"eval.shots={cfg.eval.shots}: engine=anthropic shows none; leave it out")
    of_stage = {"rescore": "eval", "compare": "eval", "record": "infer", "question": "infer"}
    problems += [
        f"{name}={cfg[name]}: it belongs to stage={stage}; this is stage={cfg.stage}"
        for name, stage in of_stage.items()
        if cfg[name] is not None and cfg.stage != stage
    ]
    return problems


def launching(launcher: DictConfig) -> list[str]:
    """What SLURM is asked for a stage is named and ruled as for all of them."""
    if launcher.name == "local":
        return [] if "stages" not in launcher else ["launcher.stages: launcher=local has none"]
    rules = LAUNCHERS["slurm"]
    if not OmegaConf.is_dict(launcher.stages) or not OmegaConf.is_dict(launcher.sbatch):
        return ["launcher.stages, launcher.sbatch: settings by name are needed, or {}"]
    problems = []
    early = 45  # seconds that SLURM may send it before its time, and that a process needs to begin
    if not any(
        LAUNCHERS["slurm"][k].problem(launcher[k]) for k in ("minutes", "signal_seconds")
    ) and (launcher.signal_seconds + early > 60 * launcher.minutes):
        problems.append(
            f"launcher.signal_seconds={launcher.signal_seconds}: a job of launcher.minutes="
            f"{launcher.minutes} would be told to save as soon as it begins; set one of them"
        )
    for stage, given in launcher.stages.items():
        if stage not in ORDER or not OmegaConf.is_dict(given):
            problems.append(
                f"launcher.stages.{stage}={given}: name a stage of {', '.join(ORDER)} and its "
                "settings: {prepare: {cpus_per_task: 32}}"
            )
            continue
        for name, value in given.items():
            known = name in rules and name != "parallel"
            problem = rules[str(name)].problem(value) if known else f"choose of {', '.join(rules)}"
            if problem:
                problems.append(f"launcher.stages.{stage}.{name}={value}: {problem}")
    return problems


def keeping(cfg: DictConfig) -> list[str]:
    """Which checkpoints are best is said by evaluations during training; rl has none, and keeps the
    last one."""
    asked = order(cfg) if cfg.stage == "curriculum" else (cfg.stage,)
    blind = [s for s in ("adapt", "reason") if s in asked and cfg[s].eval_every is None]
    if not cfg.trainer.keep_best or not blind:
        return []
    remedy = " and ".join(f"{stage}.eval_every=STEPS" for stage in blind)
    return [
        f"trainer.keep_best={cfg.trainer.keep_best}: evaluations during training say which are "
        f"best; set {remedy}, or trainer.keep_best=0"
    ]


def thinking(cfg: DictConfig) -> list[str]:
    """Settings of concepts, graph and chains that do not go together, where they are used."""
    problems = []
    if cfg.stage in ("graph", "curriculum"):
        problems += _sources(cfg.concepts, cfg.graph)
    if cfg.stage in ("chains", "curriculum"):
        if cfg.chains.writer == "template":
            problems += _template(cfg)
        else:
            problems += _language_model(cfg)
    return problems


def _sources(concepts: DictConfig, graph: DictConfig) -> list[str]:
    """Files that are needed and not named."""
    problems = []
    if concepts.source == "open" and concepts.dictionary is None:
        problems.append(
            "concepts.dictionary=null: concepts=open needs a dictionary: concepts.dictionary=FILE "
            "(.tsv or .tsv.gz, docs/thinking_graph.md)"
        )
    if concepts.source == "umls" and concepts.folder is None:
        problems.append(
            "concepts.folder=null: concepts=umls needs the folder with MRCONSO.RRF: "
            "concepts.folder=DIR"
        )
    paths = {"items": False, "open": concepts.get("relations") is not None, "umls": True}
    if graph.require_path and not (graph.knowledge and paths[concepts.source]):
        problems.append(
            "graph.require_path=true: there is no knowledge base to search; add concepts=umls or "
            "concepts=open with concepts.relations=FILE, and leave graph.knowledge=true"
        )
    return problems


def _language_model(cfg: DictConfig) -> list[str]:
    problems = []
    if cfg.chains.model is None:
        problems.append(
            f"chains.model=null: chains={cfg.chains.writer} needs one: chains.model=NAME"
        )
    if cfg.chains.dry_run and cfg.stage == "curriculum":
        problems.append("chains.dry_run=true: it is one stage that is counted; name stage=chains")
    if cfg.overwrite:
        problems.append(
            "overwrite=true: drafts that were paid for would be lost if the run is stopped; remove "
            "the folder by hand, or set variant=NAME"
        )
    return problems


def _template(cfg: DictConfig) -> list[str]:
    """The template writes from the graph, in sections, and from nothing else."""
    refused = {
        "chains.show_graph": (cfg.chains.show_graph, False),
        "chains.sections": (cfg.chains.sections, False),
        "graph.evidence": (cfg.graph.evidence, "none"),
    }
    return [
        f"{name}={str(value).lower()}: the template writes from the graph and in sections; choose "
        "a writer that reads the record: chains=anthropic, chains=vllm or chains=transformers"
        for name, (value, wrong) in refused.items()
        if value == wrong
    ]
