"""Search settings with Optuna, whose trials are runs like those of a grid.

    python -m ehrr1.sweeps.search SWEEP_FOLDER

search.json contains the search space and every trial. A study is rebuilt from it for each proposal,
so that nothing is lost if the search process is killed; `resume` starts another one. Trials whose
`search.curve` is worse than the median of the finished trials are stopped (Golovin et al., 2017,
the median rule).
"""

import json
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser

# converts `interval(...)` and the like as Hydra's own Optuna sweeper does; its version is pinned
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ehrr1.config.names import TRAINING
from ehrr1.errors import UserError
from ehrr1.files import read_json, write_json
from ehrr1.runs import metrics_of
from ehrr1.spelling import quoted
from ehrr1.sweeps.control import (
    end,
    launcher_of,
    module_of,
    refuse_others,
    start_missing,
    tell_begun,
)
from ehrr1.sweeps.expand import CONFIG_DIR, begun, name_of, own
from ehrr1.sweeps.grid import parsed
from ehrr1.sweeps.local import detached
from ehrr1.sweeps.state import Entry, RunStatus, Sweep, alone, status

LOOK_SECONDS = 2

STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass
class Trial:
    """A trial: proposed values, runs, state and score.

    runs: names of the runs; the last one is scored. curve: step -> mean of `search.curve` over the
    steps since the previous entry.
    """

    params: dict[str, Any]
    runs: list[str]
    state: str = "running"
    value: float | None = None
    curve: dict[int, float] = field(default_factory=dict)


@dataclass
class Search:
    """The content of a sweep's search.json."""

    settings: dict[str, Any]
    arguments: list[str]
    space: dict[str, str]
    trials: list[Trial]
    stopped: bool = False

    @staticmethod
    def read(book: Sweep) -> "Search":
        """Read search.json of a sweep."""
        found = read_json(book.folder / "search.json")
        trials = [
            Trial(**{**one, "curve": {int(k): v for k, v in one["curve"].items()}})
            for one in found.pop("trials")
        ]
        return Search(**found, trials=trials)

    def write(self, book: Sweep) -> None:
        """Write search.json of a sweep, atomically."""
        write_json(book.folder / "search.json", asdict(self))


def space_of(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split overrides into the search space and fixed overrides.

    The space maps settings to Optuna's distributions in JSON. Raises UserError if it is empty.
    """
    space, fixed = {}, []
    for override in overrides:
        if override.startswith(CONFIG_DIR):
            fixed.append(override)
            continue
        read = parsed(override, OverridesParser.create())
        if read.is_sweep_override() and read.key_or_group != "stage":
            distribution = create_optuna_distribution_from_override(read)
            space[read.get_key_element()] = distribution_to_json(distribution)
        else:
            fixed.append(override)
    if not space:
        raise UserError(
            "search.metric: nothing is searched; give a setting an interval, such as "
            "'adapt.lr=tag(log, interval(1e-4, 1e-1))', or choices: adapt.optimizer=adamw,muon"
        )
    return space, fixed


def study_of(search: Search) -> optuna.Study:
    """Return an Optuna study with all trials so far."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # the pinned version warns that the creation of trials is experimental
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    draws = search.settings["seed"] + len(search.trials)
    study = optuna.create_study(
        direction=search.settings["direction"],
        sampler=optuna.samplers.TPESampler(seed=draws, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    for trial in search.trials:
        study.add_trial(frozen(search, trial))
    return study


def frozen(search: Search, trial: Trial) -> FrozenTrial:
    """Return a trial in Optuna's form."""
    return create_trial(
        state=STATES[trial.state],
        params=trial.params,
        distributions={key: json_to_distribution(text) for key, text in search.space.items()},
        value=trial.value,
        intermediate_values={step: value * sign(search) for step, value in trial.curve.items()},
    )


def sign(search: Search) -> int:
    """Return the factor that gives the curve the direction of the study.

    A curve is better if larger for a reward and if smaller for everything else, whereas a study has
    a single direction.
    """
    larger = "reward" in str(search.settings["curve"])
    return 1 if larger == (search.settings["direction"] == "maximize") else -1


def propose(search: Search) -> dict[str, Any]:
    """Return the values of the next trial.

    Numbers are rounded to four significant digits, since they are part of a folder's name.
    """
    distributions: dict[str, Any] = {
        key: json_to_distribution(text) for key, text in search.space.items()
    }
    params = study_of(search).ask(distributions).params
    for key, value in params.items():
        if isinstance(value, float) and not isinstance(
            distributions[key], optuna.distributions.CategoricalDistribution
        ):
            low, high = distributions[key].low, distributions[key].high
            params[key] = min(max(float(f"{value:.4g}"), low), high)
    return params


def spelled(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    plain = re.fullmatch(r"[\w.+-]+", str(value))
    return str(value) if plain else quoted(str(value))


def begin_search(arguments: Sequence[str]) -> int:
    """Write a search with its first trials and start it in the background.

    Returns the exit code. Raises UserError as `begun` and `space_of` do.
    """
    space, fixed = space_of(own(arguments))
    elsewhere = [one for one in arguments if one.startswith(("launcher", "output_root="))]
    name = f"name={name_of(arguments)}"
    search = Search({"seed": 0, "direction": "minimize"}, [*fixed, *elsewhere, name], space, [])
    asked = begun([*search.arguments, *chosen_values(propose(search))])
    search.settings = asked.search
    book, module = Sweep(asked.folder), module_of(asked.launcher["name"])
    module.check(asked.launcher)
    with book.held():
        if (book.folder / "sweep.json").exists():
            refuse_others(book, own(arguments))
        else:
            book.write(own(arguments), asked.launcher, [])
            search.write(book)
        step(book, Search.read(book), module)
    search_behind(book)
    tell_begun(book, asked.root)
    return 0


def search_behind(book: Sweep) -> None:
    """Start the search process in the background."""
    detached([sys.executable, "-m", "ehrr1.sweeps.search", str(book.folder)], book)


def begin_trial(book: Sweep, search: Search) -> None:
    """Propose a trial and add its runs to the sweep; the current round starts them."""
    params = propose(search)
    entries = begun([*search.arguments, *chosen_values(params)]).entries
    search.trials.append(Trial(params, [entry.run for entry in entries]))
    search.write(book)
    book.add(entries)


def chosen_values(params: dict[str, Any]) -> list[str]:
    """Return overrides that count as swept, so that each value is part of its folder's name."""
    return [f"{key}=choice({spelled(value)})" for key, value in params.items()]


def resumed(book: Sweep, runs: Sequence[str]) -> list[str]:
    """Continue a search and return the runs to start.

    These are the runs in `runs` that belong to trials which were not pruned. Failed trials with a
    run in `runs` are resumed.
    """
    search = Search.read(book)
    search.stopped = False
    wanted = {run for trial in search.trials if trial.state != "pruned" for run in trial.runs}
    for trial in search.trials:
        if trial.state == "failed" and set(trial.runs) & set(runs):
            trial.state = "running"
    search.write(book)
    search_behind(book)
    return [run for run in runs if run in wanted]


def stopped(book: Sweep) -> None:
    """Stop a search from proposing further trials."""
    search = Search.read(book)
    search.stopped = True
    search.write(book)


def step(book: Sweep, search: Search, module: ModuleType) -> bool:
    """Do one round of the search and return whether any trial is running.

    A round reads results, stops trials that lag behind, proposes new trials up to `parallel`, and
    starts missing runs.
    """
    entries = {entry.run: entry for entry in book.entries()}
    told = {one.run: one for one in status(book, module.active(book))}
    for trial in [trial for trial in search.trials if trial.state == "running"]:
        if not set(trial.runs) <= set(entries):  # killed before it wrote them
            search.trials.remove(trial)
            continue
        settle(search, trial, entries, told)
        if trial.state == "running" and lags(search, trial):
            stop(book, search, trial, told, module)
    while (
        len(search.trials) < search.settings["trials"]
        and sum(trial.state == "running" for trial in search.trials) < search.settings["parallel"]
    ):
        begin_trial(book, search)
    search.write(book)
    start_missing(book, module, [entry.run for entry in book.entries()], again=False)
    return any(trial.state == "running" for trial in search.trials)


def settle(
    search: Search, trial: Trial, entries: dict[str, Entry], told: dict[str, RunStatus]
) -> None:
    """Update a trial's state, score and curve from its runs."""
    metric, last = search.settings["metric"], entries[trial.runs[-1]]
    trained = [entries[run] for run in trial.runs if entries[run].stage in TRAINING]
    if search.settings["curve"] and trained:
        trial.curve = curve_of(search, Path(trained[-1].folder))
    if all(told[run].state == "done" for run in trial.runs):
        found = metrics_of(Path(last.folder)).get(metric)
        trial.state, trial.value = ("failed", None) if found is None else ("complete", found)
    elif any(told[run].state in ("failed", "cancelled") for run in trial.runs):
        trial.state = "failed"


def curve_of(search: Search, folder: Path) -> dict[int, float]:
    """Return the mean of `search.curve` over each block of `search.every_steps` steps."""
    every, name = search.settings["every_steps"], search.settings["curve"]
    log = folder / "train.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    values = [json.loads(line).get(name) for line in lines if line.endswith("\n")]
    ends = range(every, len(values) + 1, every)
    parts = {end: [v for v in values[end - every : end] if v is not None] for end in ends}
    return {end: fmean(part) for end, part in parts.items() if part}


def lags(search: Search, trial: Trial) -> bool:
    """Return whether the trial's curve is worse than the median of finished trials at its step."""
    if not trial.curve:
        return False
    study = study_of(search)
    return bool(study.pruner.prune(study, frozen(search, trial)))


def stop(
    book: Sweep,
    search: Search,
    trial: Trial,
    told: dict[str, RunStatus],
    module: ModuleType,
) -> None:
    """Stop a trial and end its runs that no other trial needs."""
    others = {run for one in search.trials if one is not trial for run in one.runs}
    over = [
        run for run in trial.runs if told[run].state in ("pending", "running") and run not in others
    ]
    note = f"stopped by the search: {search.settings['curve']} lags at step {max(trial.curve)}"
    end(book, module, over, note)
    trial.state = "pruned"


def search_on(book: Sweep) -> None:
    """Repeat rounds until no trial is running or the search is stopped."""
    with alone(book.folder / ".searcher.lock") as free:
        module, more = launcher_of(book), free
        while more:
            with book.held():
                search = Search.read(book)
                more = not search.stopped and step(book, search, module)
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    search_on(Sweep(Path(sys.argv[1])))
