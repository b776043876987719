"""Simulation of the course of illness: arrivals, problems, stays and outcomes.

All patients of a chunk advance simultaneously, visit by visit. A visit has latent variables (see
`synthetic.signs.LATENTS`); thresholds on them, with little noise, determine admission, intensive
care, length of stay, death and return. The rows of all tables are drawn from the result.
"""

from dataclasses import dataclass

import numpy as np

from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.signs import LATENTS

DAY = 86400
HOUR = 3600
NEVER = np.iinfo(np.int64).min
MAX_VISITS = 16
LATENT_NOISE = 0.16
OUTCOME_NOISE = 0.2
STOP = 0.28
BY_EMERGENCY = 0.76
# Log odds of each latent's high state before the shift of the problem.
BASE = {"H": -1.05, "U": -0.9, "D": -2.3, "B": -1.75, "Q": -1.75}
RETURN_SHARES = (0.19, 0.1)  # within 30 days, within 31 to 60 days
SLOW_SHARES = (0.14, 0.15)  # 3 to 7 days, more than 7 days


@dataclass
class Course:
    """One chunk: `patients` and `visits`, each a dict of columns of equal length.

    Times are in seconds since 1970; `NEVER` marks those that do not occur.
    """

    patients: dict[str, np.ndarray]
    visits: dict[str, np.ndarray]


def _matrix(attribute: str, names: list[str]) -> np.ndarray:
    rows = [[getattr(problem, attribute).get(name, 0.0) for name in names] for problem in PROBLEMS]
    return np.array(rows, np.float32)


def _causes() -> np.ndarray:
    """Return the increase of a problem's log odds by a condition, shape (conditions, problems)."""
    rows = [
        [1.1 * (condition.name in problem.cause) for problem in PROBLEMS]
        for condition in CONDITIONS
    ]
    return np.array(rows, np.float32)


def _chance(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def simulate(first: int, count: int, rng: np.random.Generator) -> Course:
    """Simulate patients `first` to `first + count - 1` until their last visit."""
    patients = _patients(first, count, rng)
    now = patients["start"].copy()
    active = np.ones(count, bool)
    forced = np.zeros(count, bool)  # the last stay's latent decided a readmission
    again = np.zeros(count, bool)  # ... or a return to the emergency department
    visits: list[dict[str, np.ndarray]] = []
    for number in range(MAX_VISITS):
        who = np.flatnonzero(active)
        if not len(who):
            break
        visit = _visit(who, now[who], forced[who], again[who], patients, rng)
        visit["number"] = np.full(len(who), number)
        visits.append(visit)
        dead = visit["dod"] != NEVER
        patients["dod"][who[dead]] = visit["dod"][dead]
        now[who] = visit["next"]
        forced[who], again[who] = visit["returns"], visit["reattends"]
        stop = (rng.random(len(who)) < STOP) & ~visit["returns"] & ~visit["reattends"]
        active[who[dead | stop]] = False
    joined = {key: np.concatenate([visit[key] for visit in visits]) for key in visits[0]}
    order = np.lexsort((joined["number"], joined["patient"]))
    return Course(patients, {key: values[order] for key, values in joined.items()})


def _patients(first: int, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    age = np.clip(rng.normal(62, 16, count), 19, 91).astype(np.int64)
    older = (age - 62) / 16
    logit = np.log([[c.prevalence / (1 - c.prevalence) for c in CONDITIONS]])
    conditions = rng.random((count, len(CONDITIONS))) < _chance(logit + 0.3 * older[:, None])
    epoch = (np.datetime64("2110-01-01") - np.datetime64("1970-01-01")).astype(np.int64)
    start = (epoch + rng.integers(0, 80 * 365, count)) * DAY + rng.integers(
        0, DAY // 60, count
    ) * 60
    return {
        "subject_id": 10_000_032 + 7 * np.arange(first, first + count),
        "female": rng.random(count) < 0.48,
        "age": age,
        "conditions": conditions,
        "start": start,
        "dod": np.full(count, NEVER),
        "race": rng.choice(6, count, p=[0.6, 0.16, 0.08, 0.06, 0.05, 0.05]),
        "insurance": rng.choice(3, count, p=[0.45, 0.4, 0.15]),
        "marital": rng.choice(4, count, p=[0.38, 0.36, 0.16, 0.1]),
        "era": rng.random(count) < 0.5,  # True: first visits coded in ICD-9, later ones in ICD-10
        "weight": np.clip(rng.normal(81, 16, count), 42, 160).round(),
        "height": np.clip(rng.normal(66, 4, count), 56, 78).round(),
        "mood": rng.normal(0, 1, (count, 8)),  # personal baselines of vital signs
    }


def _visit(
    who: np.ndarray,
    now: np.ndarray,
    forced: np.ndarray,
    again: np.ndarray,
    patients: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Simulate one visit of each patient in `who`, from arrival to the time of the next."""
    n = len(who)
    conditions = patients["conditions"][who]
    weight = np.log([p.weight for p in PROBLEMS]) + conditions @ _causes()
    problem = (weight + rng.gumbel(size=weight.shape)).argmax(1)
    emergency = again | (rng.random(n) < np.where(forced, 0.55, BY_EMERGENCY))
    older = (patients["age"][who] - 62) / 16
    z = _latents(problem, conditions, older, emergency, forced, rng)
    level = {key: z[key] + OUTCOME_NOISE * rng.standard_normal(n) for key in LATENTS}
    admitted = ~emergency | forced | (level["H"] > 0.5)
    visit = {"patient": who, "problem": problem, "emergency": emergency, "admitted": admitted}
    visit |= {f"z_{key}": values for key, values in z.items()}
    visit |= _emergency_times(now, emergency, rng)
    visit |= _stay_times(visit, z, level, rng)
    visit |= _aftermath(visit, level, rng)
    return visit


def _latents(
    problem: np.ndarray,
    conditions: np.ndarray,
    older: np.ndarray,
    emergency: np.ndarray,
    forced: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the latent levels, each around 0 (well) or up to about 1 (ill), with noise."""
    n = len(problem)
    shift = dict(zip(LATENTS, _matrix("risks", list(LATENTS)).T, strict=True))
    burden = conditions.sum(1) - 2.8

    def high(key: str, extra: np.ndarray | float = 0.0) -> np.ndarray:
        return rng.random(n) < _chance(BASE[key] + 0.7 * shift[key][problem] + extra)

    def level(state: np.ndarray) -> np.ndarray:
        return state + LATENT_NOISE * rng.standard_normal(n)

    admit = high("H", 0.15 * older) | (forced & emergency)
    intensive = high("U", 0.9 * ~emergency)
    dying = high("D", 0.2 * older + 0.5 * intensive + 0.1 * burden)
    inside = admit | ~emergency
    slow = _ordered(SLOW_SHARES, 0.5 * shift["S"][problem] + 0.1 * older, rng)
    back = _ordered(RETURN_SHARES[::-1], 0.5 * shift["R"][problem] + 0.12 * burden, rng)
    return {
        "H": level(admit),
        "U": level(intensive & inside),
        "D": level(dying * inside * rng.uniform(0.7, 1.3, n)),
        "B": level(high("B")),
        "S": level(np.array([0.0, 0.65, 1.15])[slow]),
        "R": level(np.array([0.0, 0.75, 1.1])[back]),
        "Q": level(high("Q")),
    }


def _ordered(
    shares: tuple[float, float], shift: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw one of three ordered states, with odds shifted by `shift`.

    State 1 has the probability `shares[0]` and state 2 `shares[1]` if `shift` is 0. Returns
    integers of shape `shift.shape`.
    """
    draw = rng.logistic(size=len(shift)) + shift
    top = np.log(shares[1] / (1 - shares[1]))
    middle = np.log(sum(shares) / (1 - sum(shares)))
    return (draw > -middle).astype(int) + (draw > -top)


def _emergency_times(
    now: np.ndarray, emergency: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    length = (rng.uniform(3.2, 9.5, len(now)) * HOUR).astype(np.int64)
    return {
        "ed_in": np.where(emergency, now, NEVER),
        "ed_out": np.where(emergency, now + length, NEVER),
        "arrive": now,
    }


def _log_uniform(low: float, high: float, position: np.ndarray) -> np.ndarray:
    """Return the value at `position` (0 to 1) of a log-uniform distribution between two bounds."""
    return low * (high / low) ** position


def _stay_days(level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the planned days in hospital: three ranges by level, longer for a higher level."""
    n = len(level)
    u = rng.random(n)
    short = _log_uniform(1.15, 2.95, u)
    middle = _log_uniform(3.1, 6.8, u)
    high = np.clip((level - 0.9) / 0.6, 0, 1)
    long = _log_uniform(7.4, 30, 0.65 * high + 0.35 * u)
    return np.where(level > 0.9, long, np.where(level > 0.33, middle, short))


def _stay_times(visit: dict, z: dict, level: dict, rng: np.random.Generator) -> dict:
    n = len(visit["patient"])
    admitted, emergency = visit["admitted"], visit["emergency"]
    start = np.where(emergency, visit["ed_out"] - rng.integers(5, 40, n) * 60, visit["arrive"])
    floor_start = np.where(emergency, visit["ed_out"], visit["arrive"])
    days = _stay_days(level["S"], rng)
    icu = admitted & (level["U"] > 0.5)
    late = admitted & ~icu & (rng.random(n) < 0.06) & (days > 2.5)
    delay = np.where(late, rng.uniform(24, 40, n), rng.uniform(0, 5, n) * (rng.random(n) < 0.6))
    icu_in = floor_start + (delay * HOUR).astype(np.int64)
    icu |= late
    share = np.where(level["S"] > 0.9, rng.uniform(0.75, 0.95, n), rng.uniform(0.5, 0.85, n))
    icu_days = np.maximum(days * share, np.where(rng.random(n) < 0.06, 0.7, 1.08))
    first_out = icu_in + (icu_days * DAY).astype(np.int64)
    relapse = icu & (level["Q"] > 0.5) & ~(level["D"] > 0.4)
    second_in = first_out + (rng.uniform(0.4, 1.2, n) * DAY).astype(np.int64)
    second_out = second_in + (rng.uniform(0.8, 2.2, n) * DAY).astype(np.int64)
    end = np.maximum(start + (days * DAY).astype(np.int64), first_out + 4 * HOUR)
    end = np.where(~icu, start + (days * DAY).astype(np.int64), end)
    end = np.where(relapse, np.maximum(end, second_out + 6 * HOUR), end)
    death, inside = _death(admitted, np.where(icu, icu_in, start), end, level["D"], rng)
    end = np.where(inside, death, end)
    in_icu = icu & inside & ((death < first_out) | (death < icu_in + 6 * DAY))
    first_out = np.where(in_icu, death, np.minimum(first_out, end - HOUR))
    icu &= first_out > icu_in + HOUR
    times = {"admit": start, "bed": floor_start, "disch": end}
    times |= {"icu_in": icu_in, "icu_out": first_out, "icu2_in": second_in, "icu2_out": second_out}
    present = {"icu2_in": relapse & icu, "icu2_out": relapse & icu, "icu_in": icu, "icu_out": icu}
    times = {
        key: np.where(present.get(key, admitted), value, NEVER) for key, value in times.items()
    }
    times["died"] = inside
    times["death"] = np.where(admitted & (death != NEVER), death, NEVER)
    return times


def _death(
    admitted: np.ndarray,
    reference: np.ndarray,
    planned_end: np.ndarray,
    level: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the time of death and whether it occurs in hospital.

    The level determines the days, counted from `reference` + 24 h.
    """
    n = len(level)
    dying = admitted & (level > 0.45)
    position = np.clip((1.35 - level) / 0.75 + 0.2 * rng.standard_normal(n), 0, 1)
    days = _log_uniform(0.12, 22, position)
    early = rng.random(n) < 0.05
    hours = np.where(early, rng.uniform(6, 23, n), 24 + 24 * days)
    death = reference + (hours * HOUR).astype(np.int64)
    inside = dying & ((death < planned_end) | ((days < 15) & (rng.random(n) < 0.85)))
    return np.where(dying, death, NEVER), inside


def _aftermath(visit: dict, level: dict, rng: np.random.Generator) -> dict:
    """Return the time of the next visit, and the date of death if the patient dies."""
    n = len(visit["patient"])
    admitted, dying = visit["admitted"], visit["death"] != NEVER
    u = rng.random(n)
    soon = admitted & ~dying & (level["R"] > 0.92)
    later = admitted & ~dying & ~soon & (level["R"] > 0.4)
    again = ~admitted & (level["B"] > 0.5)
    days = np.where(admitted, _log_uniform(62, 500, u), _log_uniform(4, 300, u))
    days = np.where(soon, _log_uniform(1.5, 29.5, u), days)
    days = np.where(later, 30.5 + 29 * u, days)
    days = np.where(again, 0.15 + 2.7 * u, days)
    leave = np.where(admitted, visit["disch"], visit["ed_out"])
    return {
        "next": (leave + (days * DAY).astype(np.int64)) // 60 * 60,
        "returns": soon | later,
        "reattends": again,
        "dod": np.where(dying, visit["death"], NEVER),
    }
