"""data.protocol=paper beside what the release's own code wrote from 30 patients of the demo."""

from pathlib import Path

import pytest

from benchmarks.paper_release import Samples, compared, lists, texts
from ehrr1.records.release.layout import MAPS
from ehrr1.tasks.samples import Prepared
from tests.test_records import prepared


def of_the_release(demo: Path, released: Path, folder: Path, **paper: object) -> Prepared:
    """The folder's patients, prepared from the demo's tables."""
    subjects = folder / "subjects.txt"
    subjects.parent.mkdir(parents=True, exist_ok=True)
    patients = sorted(path.stem for path in (released / "patients_ehr").iterdir())
    subjects.write_text("\n".join(patients))
    maps = {
        kind: str(released / "index_mapping/hosp" / f"{name}.csv") for kind, name in MAPS.items()
    }
    settings = {"subjects_file": str(subjects), "maps": maps, "paper": paper}
    return prepared(demo, folder / "prepare", protocol="paper", **settings)[0]


@pytest.fixture(scope="module")
def world(mimic_demo: Path, released: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return of_the_release(mimic_demo, released, tmp_path_factory.mktemp("paper"))


def test_every_list_of_events_is_the_releases(released: Path, world: Prepared) -> None:
    assert lists(released, world) == (30, 30)


def test_every_sample_is_the_releases(released: Path, world: Prepared) -> None:
    """By positions, admission, discharge note and answer. What we have more is told in the docs."""
    tasks = compared(released, world)
    assert sum(own.release for own in tasks.values()) == 7264
    assert sum(own.equal for own in tasks.values()) == 7264
    assert {task: own.only_ours for task, own in tasks.items() if own.only_ours} == {
        "Readmission_30day": 21,
        "Readmission_60day": 21,
    }
    assert tasks["next_event"] == Samples(3470, 4325, 3470, 0, 0, 0, 855)
    assert sum(own.not_drawn for own in tasks.values()) == 855
    assert tasks["prescriptions_atc"] == Samples(218, 218, 218, 0, 0, 0, 0)
    assert "diagnoses_icd" not in tasks


def test_every_context_shows_the_releases_events(released: Path, world: Prepared) -> None:
    """In the 108 ready rows: the same headings, times and rows in the same order."""
    found = texts(released, world)
    assert (found["records"], found["events"]) == (108, 3893)
    assert not found["other number of events"] and not found["other heading or rows"]
    assert not found["other"]
    kinds = {
        "equal": 79_161,
        "missing: None or nan, ours empty": 95_873,
        "a number written otherwise": 22_845,
        "a result in words, theirs nan": 430,
        "outer blanks": 91,
    }
    assert {name: found[name] for name in kinds} == kinds
    assert found["cells"] == sum(kinds.values())


def test_all_drugs_have_their_class_with_another_join(
    released: Path, mimic_demo: Path, tmp_path: Path
) -> None:
    world = of_the_release(mimic_demo, released, tmp_path, atc="all")
    found = compared(released, world)["prescriptions_atc"]
    assert found == Samples(218, 372, 108, 110, 0, 154, 0)
