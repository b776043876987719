"""Apply rewards: find them by name, call them within a time limit, check and add values."""

import asyncio
import inspect
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

from ehrr1.errors import UserError
from ehrr1.scoring.answers import read_answer
from ehrr1.training import targets
from ehrr1.training.rewards import REWARDS, Reward, Values

Columns = Mapping[str, Sequence[Any]]


class RewardError(RuntimeError):
    """A reward failed, hung or returned no valid values; the message quotes no patients' text."""


@dataclass(frozen=True)
class Scores:
    """The rewards of C completions.

    `total` [C] is the weighted sum of those rewards that apply to a completion, as in TRL; 0 where
    none does. `parts` has each reward's own values [C], without its weight. `problems` [C] says why
    an answer could not be read, None where it could: unreadable is told apart from wrong.
    """

    total: list[float]
    parts: dict[str, Values]
    problems: list[str | None]


def score(
    completions: Sequence[str],
    columns: Columns,
    weights: Mapping[str, float],
    timeout_seconds: float | None = None,
) -> Scores:
    """Apply the rewards that `weights` names (`rl.rewards`); one of weight 0 is only logged.

    `columns` are described in `training.rewards`. Raises RewardError for a reward that raises,
    takes longer than `timeout_seconds`, or returns anything but one finite number or None a
    completion: one nan would spoil all advantages, silently.
    """
    values = call(resolve(weights), completions, columns, timeout_seconds)
    parts = {name: checked(name, values[name], columns) for name in weights}
    total = [0.0] * len(completions)
    for name, weight in weights.items():
        for place, value in enumerate(parts[name]):
            total[place] += 0.0 if value is None else weight * value
    found = zip(completions, columns["kind"], strict=True)
    return Scores(total, parts, [read_answer(text, kind).problem for text, kind in found])


def resolve(names: Iterable[str]) -> dict[str, Reward]:
    """Return the rewards of these names; raise one UserError with all that cannot be found."""
    rewards, problems = {}, []
    for name in names:
        try:
            rewards[name] = find(name)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return rewards


def find(name: str) -> Reward:
    """Return one of REWARDS, or the function of a dotted path: `my_rewards.length`.

    It may be in the current folder, on PYTHONPATH or installed. Raises UserError otherwise.
    """
    if name in REWARDS:
        return REWARDS[name]
    setting = f"rl.rewards.{name}"
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"{setting}: no such reward; choose among {', '.join(REWARDS)}, or name a function of "
            "your own as module.function"
        )
    reward: Reward = targets.find(setting, name)
    return reward


def call(
    rewards: Mapping[str, Reward],
    completions: Sequence[str],
    columns: Columns,
    seconds: float | None,
) -> dict[str, Any]:
    """Return each reward's values. Async ones run concurrently, the others one after another.

    A reward that hangs cannot be stopped, but its thread does not keep the process from ending.
    """
    together = {
        name: asyncio.run_coroutine_threadsafe(_awaited(reward, completions, columns), event_loop())
        for name, reward in rewards.items()
        if inspect.iscoroutinefunction(reward)
    }
    results: dict[str, Any] = {}
    for name, reward in rewards.items():
        if name not in together:
            results |= _finished({name: _begun(reward, completions, columns)}, columns, seconds)
    return results | _finished(together, columns, seconds)


async def _awaited(reward: Any, completions: Sequence[str], columns: Columns) -> Any:
    return await reward(completions, **columns)


def _begun(reward: Reward, completions: Sequence[str], columns: Columns) -> Future[Any]:
    """Call a reward in a daemon thread: an executor's would have to end before the process can."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(reward(completions, **columns))
        except BaseException as error:  # raised again by whoever waits
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _finished(
    futures: Mapping[str, Future[Any]], columns: Columns, seconds: float | None
) -> dict[str, Any]:
    late = wait(futures.values(), timeout=seconds).not_done
    if late:
        for future in late:
            future.cancel()
        event_loop.cache_clear()  # a reward that blocks it would take the next ones along
        names = ", ".join(f"rl.rewards.{name}" for name in futures if futures[name] in late)
        raise RewardError(
            f"{names}: not done after rl.reward_timeout_seconds={seconds:g}, {_batch(columns)}; "
            "raise that setting if it needs the time"
        )
    return {name: _result(name, future, columns) for name, future in futures.items()}


def _result(name: str, future: Future[Any], columns: Columns) -> Any:
    try:
        return future.result()
    except Exception as error:
        raise RewardError(
            f"rl.rewards.{name} raised {type(error).__name__}, {_batch(columns)}"
        ) from error


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of async rewards, which runs in a thread of its own.

    One for the whole run: a client that a reward keeps open belongs to the loop that opened it.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def checked(name: str, values: Any, columns: Columns) -> Values:
    """Return `values` if they are one finite number or None per completion.

    Raises RewardError otherwise.
    """
    count = len(columns["sample_id"])
    setting = f"rl.rewards.{name}"
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"{setting} returned {type(values).__name__}, not a list, {_batch(columns)}"
        )
    if len(values) != count:
        raise RewardError(
            f"{setting} returned {len(values)} values for {count} completions, {_batch(columns)}"
        )
    return [_number(setting, value, place, columns) for place, value in enumerate(values)]


def _number(setting: str, value: Any, place: int, columns: Columns) -> float | None:
    if value is None:
        return None
    where = f"for sample {columns['sample_id'][place]} of task {columns['task'][place]}"
    if not isinstance(value, Real):
        raise RewardError(f"{setting} returned {type(value).__name__}, not a number, {where}")
    if not math.isfinite(value):
        raise RewardError(f"{setting} is {value} {where}")
    return float(value)


def _batch(columns: Columns) -> str:
    """Name a batch of completions by its first samples."""
    ids = list(dict.fromkeys(columns["sample_id"]))
    return f"samples {', '.join(map(str, ids[:3]))}{', ...' * (len(ids) > 3)}"
