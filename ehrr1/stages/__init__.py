"""The stages: one file each, with `run(cfg, run) -> metrics`, and what runs them."""

import gc
import importlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

from rich.text import Text

from ehrr1 import parallel, runs
from ehrr1.command import with_stage, words_with
from ehrr1.config.learning import ahead
from ehrr1.config.names import BENCHMARKS, TRAINING
from ehrr1.config.schema import Config
from ehrr1.config.writers import ModelChains
from ehrr1.damage import MANIFEST, check, digest_beside, is_whole
from ehrr1.errors import LeakError, StoppedError, UserError
from ehrr1.evaluation.finished import require_finished
from ehrr1.limits import require_addresses
from ehrr1.stages.consolidate import consolidate_run
from ehrr1.stages.ending import made_again, tell_next, tell_result
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

SHARED = {"prepare": ("data", "shards"), "eval": ("eval", "answers")}
"""The stages whose work several processes share by files: the section with `shard`, and the name of
what they make."""


def module_of(stage: str) -> ModuleType:
    """Import a stage's file and return it; `prepare` and `export` do not wait for torch.

    What was imported stays: the garbage collector is off meanwhile, and never searches it later.
    Searching half a million objects again and again takes a third of a stage's first seconds.
    """
    gc.collect()  # garbage of an earlier stage would stay too
    gc.disable()
    try:
        return importlib.import_module(f"ehrr1.stages.{stage}")
    finally:
        gc.freeze()
        gc.enable()


def execute(cfg: Config) -> None:
    """Run the stage that `cfg.stage` names; `curriculum` runs all of them in order."""
    parallel.end_with_parent()
    require_addresses(cfg.stage)
    if cfg.tokenise_only:
        _tokenise(cfg)
        return
    if cfg.stage == "infer":
        checks = module_of("infer_checks")  # before torch is imported
        checks.check(cfg)
        checks.check_inputs(cfg)
        module_of("infer").run_infer(cfg)
        return
    if cfg.stage == "eval" and (cfg.rescore or cfg.compare):
        _score_again(cfg)
        return
    if cfg.stage == "eval" and parallel.size() > 1:
        if cfg.predictions is not None:
            raise UserError(
                f"predictions={cfg.predictions}: one process scores logs; start it without srun or "
                "torchrun"
            )
        cfg.eval.shard, cfg.eval.shards = parallel.rank(), parallel.size()
        parallel.leave()  # each saves what it has answered, and waits for nobody
    if cfg.stage == "consolidate":
        consolidate_run(cfg, console)
        return
    if parallel.size() > 1:
        _execute_in_group(cfg, cfg.stage)
        return
    if cfg.stage == "graph" and cfg.graph.show is not None:
        _show_graph(cfg)
        return
    if cfg.stage == "chains" and isinstance(cfg.chains, ModelChains) and cfg.chains.dry_run:
        _dry_run(cfg)
        return
    if _brings_records(cfg):
        _execute_one(cfg, "prepare")  # a file or two: no reason to ask for another command
    stages = runs.order(cfg) if cfg.stage == "curriculum" else (cfg.stage,)
    if cfg.stage == "curriculum":
        _check_training(cfg, stages)
    for stage in stages:
        if _needs_group(cfg, stage):
            _start_group(cfg, stage)
        else:
            _execute_one(cfg, stage)
    # a share of a stage that others still work on is not followed by anything
    if not parallel.has_parent() and runs.is_finished(runs.folder_of(cfg, stages[-1])):
        tell_next(cfg, stages[-1], console)


def _check_training(cfg: Config, stages: Sequence[str]) -> None:
    """Raise UserError for what the training stages of a curriculum would refuse after others."""
    left = [s for s in stages if s in TRAINING and not runs.is_finished(runs.folder_of(cfg, s))]
    if not left:
        return
    from ehrr1.training.checks import wrong_code  # with torch

    problems = []
    for stage in left:
        problems += [*ahead(cfg, stage, _processes(cfg)), *wrong_code(cfg, stage)]
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))


def _needs_group(cfg: Config, stage: str) -> bool:
    """Return whether a stage is to be trained by several processes that are not started yet.

    Raises UserError where an earlier stage is missing: `trainer.devices=auto` waits for torch.
    """
    finished = runs.is_finished(runs.folder_of(cfg, stage))
    if stage not in TRAINING or (finished and not cfg.overwrite):
        return False
    _check_inputs(cfg, stage)
    return _processes(cfg) > 1


def _show_graph(cfg: Config) -> None:
    """Draw one sample of a graph, which is made first where it is not there yet."""
    if not cfg.inputs.graph:
        _execute_one(cfg, "graph")
    with kept_for(cfg, "graph", runs.find_inputs(cfg, "chains")):
        module_of("show_graph").show(cfg, console)


def _dry_run(cfg: Config) -> None:
    """Say what writing chains would cost; no run is begun."""
    from ehrr1.stages.chains import dry_run

    inputs = _check_inputs(cfg, "chains")
    runs.check_inputs(cfg, inputs)
    with kept_for(cfg, "chains", inputs):
        dry_run(cfg, inputs, runs.folder_of(cfg, "chains"))


def _brings_records(cfg: Config) -> bool:
    """Return whether a benchmark's records are to be prepared first, in the variant of the run.

    They are not if they were prepared with the same settings elsewhere. Processes that share the
    work would all do it: they must find the records.
    """
    if cfg.stage != "eval" or cfg.data.name not in BENCHMARKS:
        return False
    if cfg.eval.shard is not None or cfg.inputs.prepare is not None:
        return False
    return runs.made(cfg, "prepare", "eval") == runs.folder_of(cfg, "prepare")


def _score_again(cfg: Config) -> None:
    """Score a finished evaluation again, or set several side by side; no run is begun.

    Raises UserError for a folder that is no finished evaluation, before torch is imported.
    """
    setting = "compare" if cfg.compare else "rescore"
    folders = [Path(folder) for folder in cfg.compare or [str(cfg.rescore)]]
    for folder in folders:
        require_finished(setting, folder)
        check(folder, cfg.check == "full")
    made = runs.home(cfg) / "compare" if cfg.compare else folders[0]
    made.parent.mkdir(parents=True, exist_ok=True)  # it holds open runs too
    with runs.kept_beside(made, any(runs.are_closed(folder, "eval") for folder in folders)):
        stage = module_of("eval")
        stage.compare_runs(cfg) if cfg.compare else stage.rescore(cfg)


def _processes(cfg: Config) -> int:
    """Return the number of processes that train, one a device."""
    return parallel.wanted(cfg.trainer)


def _start_group(cfg: Config, stage: str) -> None:
    """Run a stage in several processes on this machine, each with the same command.

    Raises UserError for settings that cannot work, before they start.
    """
    inputs = _check_inputs(cfg, stage)
    runs.check_inputs(cfg, inputs)
    module_of(stage).check(cfg, inputs)
    if cfg.trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes={cfg.trainer.nodes}: start the command on every node, by srun with "
            f"{cfg.trainer.devices} tasks a node, or by torchrun (docs/training.md)"
        )
    module = Path(sys.argv[0]).name == "__main__.py"  # a script there would see ehrr1/ as its path
    entry = ["-m", "ehrr1"] if module else [sys.argv[0]]
    command = [sys.executable, *entry, *words_with(stage)]
    if code := parallel.start(command, _processes(cfg)):
        sys.exit(code)


def _execute_in_group(cfg: Config, stage: str) -> None:
    """Train as one process of several; process 0 opens the run's folder."""
    if stage not in TRAINING:
        raise UserError(
            f"stage={stage} runs in one process, and srun or torchrun started {parallel.size()}; "
            f"start one, or name one of {', '.join(sorted(TRAINING))}"
        )
    parallel.check_size(_processes(cfg), cfg.trainer.devices, cfg.trainer.nodes)
    from ehrr1.training.strategies import on_gpu

    parallel.join(on_gpu(cfg.trainer))
    try:
        if parallel.rank() == 0:
            _execute_one(cfg, stage)
            if not parallel.has_parent():
                tell_next(cfg, stage, console)
        elif (run := parallel.from_first(lambda: None)) is not None:
            with kept_for(cfg, stage, run.inputs):
                module_of(stage).run(cfg, run)
    except (UserError, SystemExit):  # after other errors, processes may wait in the group
        parallel.part()
        raise
    parallel.part()


def _execute_one(cfg: Config, stage: str) -> None:
    """Run one stage in this process, or say that it is finished already."""
    if stage in SHARED and cfg.of(SHARED[stage][0]).shard is not None:
        _execute_share(cfg, stage)
        return
    with ExitStack() as stack:
        run = _opened(cfg, stage, stack)
        folder = runs.folder_of(cfg, stage)
        if run is None:
            _tell_finished(stage, folder)
            return
        resumed = ": resumed" * run.resuming
        _tell(stage, f"{resumed} -> {folder}")
        for name, read in run.inputs.items():
            if read != runs.folder_of(cfg, name):
                console.print(f"  {name} is read from {read}", soft_wrap=True)
        if stage in TRAINING:
            _share_tokens(cfg, run)
        begin = time.monotonic()
        with blaming_inputs(run):
            metrics = module_of(stage).run(cfg, run)
        seconds = time.monotonic() - begin
        if stage in TRAINING or stage == "eval":
            from ehrr1.stages import hparams

            hparams.write(cfg, run, metrics)
        metrics = {**metrics, "seconds": round(seconds, 3)}
        runs.finish(run, metrics, made_again(cfg, stage, folder))
        _tell(stage, f": done in {seconds:.0f} s")
        tell_result(stage, folder, console)


@contextmanager
def blaming_inputs(run: runs.Run) -> Iterator[None]:
    """Raise DamagedError instead of any other error, if a large file of an input is the cause.

    The quick check before the stage has not read it, and a run without a manifest is not checked at
    all. Processes of a group cannot wait for that.
    """
    try:
        yield
    except (UserError, StoppedError, LeakError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Polars is no Exception
        if parallel.size() == 1:
            from ehrr1.tasks.samples import read_through

            for folder in run.inputs.values():
                try:
                    check(folder, full=True)
                    if not (folder / MANIFEST).exists():
                        read_through(folder)
                except UserError as cause:
                    raise cause from error
        raise


def _tokenise(cfg: Config) -> None:
    """Tokenise the samples of a training stage in its run's folder; the run is left unfinished.

    Nothing is asked of the machine: it is another than the one that will train.
    """
    stage = cfg.stage
    if parallel.size() > 1:
        raise UserError(
            f"tokenise_only=true: srun or torchrun started {parallel.size()} processes; start one, "
            "which takes all cores"
        )
    if problems := ahead(cfg, stage, 1):
        raise UserError("; ".join(problems))
    with ExitStack() as stack:
        run = _opened(cfg, stage, stack)
        if run is None:
            _tell_finished(stage, runs.folder_of(cfg, stage))
            return
        _share_tokens(cfg, run)
        module_of(stage).tokenised(cfg, run)
        _tell(
            stage,
            f": tokenised -> {run.folder / 'data'}; the same command without tokenise_only=true "
            "trains",
        )


def _share_tokens(cfg: Config, run: runs.Run) -> None:
    """Take the tokenised samples of another run that has the same ones, as links to its files.

    Files without their digest are not taken: they are damaged, or of version 0.1.
    """
    data = run.folder / "data"
    if data.exists() or cfg.overwrite:
        return
    for other in runs.tokenised_alike(cfg, run.stage, run.inputs):
        files = sorted((other / "data").glob("*.arrow"))
        if files and all(map(is_whole, files)):
            console.print(f"  tokenised samples are those of {other}", soft_wrap=True)
            data.mkdir()
            for file in (*map(digest_beside, files), *files):
                (data / file.name).hardlink_to(file)
            return


def _tell_finished(stage: str, folder: Path) -> None:
    """Say that a run was finished before, and what it has."""
    _tell(stage, f": finished already, in {folder}")
    tell_result(stage, folder, console)


def _tell(stage: str, words: str) -> None:
    console.print(Text.assemble((stage, "bold"), words), soft_wrap=True)


def _opened(cfg: Config, stage: str, stack: ExitStack) -> runs.Run | None:
    """Open the run's folder and return it in every process of a group.

    Returns None where the run is finished, and to the other processes where it is refused.
    """
    try:
        stack.enter_context(kept_for(cfg, stage, _check_inputs(cfg, stage)))
        run = stack.enter_context(runs.opened(cfg, stage))
    except UserError:
        parallel.from_first(lambda: None)
        raise
    return parallel.from_first(lambda: run)


def kept_for(cfg: Config, stage: str, inputs: Mapping[str, Path]) -> AbstractContextManager[None]:
    """Return a context in which what a stage makes of closed records stays with their user.

    Of records that are not prepared yet it is unknown whose they are: `prepare` decides.
    """
    if stage == "prepare":
        declared = cfg.data.open
        closed = cfg.data.name != "synthetic" if declared is None else not declared
    else:
        closed = "prepare" in inputs and not runs.data_is_open(inputs["prepare"])
    folder = runs.folder_of(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)  # it holds open runs too
    number = f"-{parallel.rank()}" if parallel.rank() else ""
    return runs.kept_beside(folder, closed, number)


def _execute_share(cfg: Config, stage: str) -> None:
    """Do one process's share of a stage; the process that finds all shares done joins them."""
    module = module_of(stage)
    (section, made), folder = SHARED[stage], runs.folder_of(cfg, stage)
    share, shares = cfg.of(section).shard, cfg.of(section).shards
    with kept_for(cfg, stage, _check_inputs(cfg, stage)), runs.joined(cfg, stage, share) as run:
        if run is None:
            _tell_finished(stage, folder)
            return
        with blaming_inputs(run):
            left = module.run_share(cfg, run)
    _tell(stage, f": share {share} of {shares} is done; {left} {made} are missing")
    if not left:
        with suppress(runs.FolderInUseError):  # another share is finishing and will put together
            whole = cfg.model_copy(deep=True)
            whole.of(section).shard = None
            _execute_one(whole, stage)


def _check_inputs(cfg: Config, stage: str) -> dict[str, Path]:
    """Return the folders of the inputs, without importing the stage.

    Raises MissingRunError for missing ones; for a training stage it says how to find out what the
    model would need.
    """
    try:
        return runs.find_inputs(cfg, stage)
    except runs.MissingRunError as error:
        if stage not in TRAINING:
            raise
        message = f"{error}. Whether model={cfg.model.name} fits: {with_stage('plan')}"
        raise runs.MissingRunError(message, error.stage) from None
