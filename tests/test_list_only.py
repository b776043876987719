"""A list of candidates tells nothing: an attack without the record gets what chance by frequency
gets. Lists that do tell are found out."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.list_only import DRAWS, scores
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.similar import SIMILAR, neighbours_of
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture

TASKS = ("medrecon", "diagnosis", "diagnoses_icd", "procedures_icd", "pyxis", "prescriptions")


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(hospital, tmp_path_factory.mktemp("candidates"))[0]


@pytest.fixture(scope="module")
def demo(mimic_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(mimic_demo, tmp_path_factory.mktemp("demo"))[0]


class Telling:
    """Lists that tell: the answer and the items around it, as many as there are beside any."""

    def __init__(self, world: Prepared, task: str):
        self.neighbours = neighbours_of(world.answers(world.index("train", [task])))

    def __call__(self, sample: Sample) -> list[str]:
        near = [self.neighbours.get(item, []) for item in sample.target]
        found = dict.fromkeys(item for items in near for item in items)
        rest = (item for items in self.neighbours.values() for item in items)
        found |= dict.fromkeys(rest) if len(found) < SIMILAR else {}
        others = [item for item in found if item not in sample.target][:SIMILAR]
        return sorted([*sample.target, *others])


def excess(world: Prepared, task: str) -> float:
    """Return how much better the attack is than chance by frequency: the mean over some draws."""
    found = [scores(world, Candidates(world, seed), task, seed) for seed in range(DRAWS)]
    return float(np.mean([one["list_only"] - one["list_frequency"] for one in found]))


@pytest.mark.parametrize("task", TASKS)
def test_lists_tell_nothing_of_a_synthetic_hospital(world: Prepared, task: str) -> None:
    assert excess(world, task) < 0.05


@pytest.mark.parametrize("task", TASKS)
def test_lists_tell_nothing_of_the_demo(demo: Prepared, task: str) -> None:
    assert excess(demo, task) < 0.05


def test_the_attack_finds_out_lists_that_tell(demo: Prepared) -> None:
    for task in ("medrecon", "diagnosis"):
        found = scores(demo, Telling(demo, task), task, 0)
        assert found["list_only"] > found["list_frequency"] + 0.3
