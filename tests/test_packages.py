"""The package as others get it: built, installed where there is no checkout, and run from there."""

import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

import ehrr1
from tests.conftest import ROOT

SOURCE = ["setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"]
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def call(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy: setuptools leaves its folders where it works."""
    folder = tmp_path_factory.mktemp("source")
    for name in [*SOURCE, "CHANGELOG.md"]:
        copy(ROOT / name, folder)
    for name in ("ehrr1", "conf", "experiments"):
        skipped = ignore_patterns("__pycache__")
        copytree(ROOT / name, folder / name, symlinks=True, ignore=skipped)
    call(sys.executable, "-c", BUILD_SDIST, folder, cwd=folder)
    return folder / f"ehrr1-{ehrr1.__version__}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the source distribution as pip does; without a network, so without
    build isolation."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps"]
    call(*pip, "--no-build-isolation", "-w", sdist.parent, sdist, cwd=sdist.parent)
    return sdist.parent / f"ehrr1-{ehrr1.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def commands(wheel: Path) -> Path:
    """The folder of commands of an environment in which the wheel is installed.

    The dependencies are those of the environment that runs the tests: a .pth file adds its folder
    of packages. The editable install in that folder does not come along, since Python reads the
    .pth files of its own folder alone, not those of folders that they add."""
    folder = wheel.parent / "environment"
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    call(*pip, "install", "-q", "--no-index", "--no-deps", wheel, cwd=wheel.parent)
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))
    for kind in ("purelib", "platlib"):
        (packages / f"dependencies_{kind}.pth").write_text(sysconfig.get_path(kind) + "\n")
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_package_and_the_configuration(wheel: Path) -> None:
    """Links are followed: conf/ and experiments/ are inside as real files."""
    expected = {
        str((Path(folder) / name).relative_to(ROOT)): (Path(folder) / name).read_bytes()
        for folder, _, names in os.walk(ROOT / "ehrr1", followlinks=True)
        for name in names
        if not name.endswith(".pyc")
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }
    assert found.keys() == expected.keys()
    assert found == expected
    assert "ehrr1/conf/experiment/smoke.yaml" in found


def test_the_lock_is_in_the_source_distribution(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"constraints.txt", "CHANGELOG.md", "smoke.yaml"} <= names
    assert "test_packages.py" not in names


def typed() -> list[list[str]]:
    """The words of a newcomer's commands, as docs/install.md has them, from the first of ours on.

    The two before it build and install the wheel, as `wheel` and `commands` do."""
    _, section = (ROOT / "docs" / "install.md").read_text().split("## As a package\n")
    lines = section.split("```bash\n")[1].split("\n```")[0].splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["pip", "wheel"], ["pip", "install"]]
    assert len(lines) <= 10
    return [line.split() for line in lines[2:]]


def test_the_installed_package_runs_the_curriculum_from_another_folder(
    commands: Path, tmp_path: Path
) -> None:
    told = call(commands / "python", "-c", "import ehrr1; print(ehrr1.__file__)", cwd=tmp_path)
    assert Path(told).is_relative_to(commands.parent)
    told = ""
    for words in typed():
        told = call(commands / words[0], *words[1:], cwd=tmp_path)
    assert all(words in told for words in ("decision F1", "rl - adapt", "frequency"))
    metrics = json.loads((tmp_path / "outputs" / "smoke" / "eval" / "metrics.json").read_text())
    assert metrics
    assert os.listdir(tmp_path) == ["outputs"]


def test_the_installed_sweep_plans_a_grid(commands: Path, tmp_path: Path) -> None:
    assert "OVERRIDES" in call(commands / "ehrr1-sweep", "--help", cwd=tmp_path)
    grid = ["experiment=smoke", "stage=prepare", "seed=0,1", "--dry-run"]
    told = call(commands / "ehrr1-sweep", *grid, cwd=tmp_path)
    assert "seed" in told


def test_the_version(commands: Path, tmp_path: Path) -> None:
    expected = f"ehrr1 {ehrr1.__version__}\n"
    assert call(commands / "ehrr1", "--version", cwd=tmp_path) == expected
    assert call(sys.executable, ROOT / "run.py", "--version", cwd=tmp_path) == expected
    installed = commands.parent.glob("lib/python*/site-packages/ehrr1-*.dist-info")
    assert PathDistribution(next(installed)).version == ehrr1.__version__


def test_every_dependency_has_one_version() -> None:
    """constraints.txt holds without markers for every Python and platform because of that."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [normal(line.split("==")[0]) for line in lines if not line.startswith("#")]
    assert len(pins) == len(set(pins))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    groups = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    asked = {normal(line.split(";")[0]) for group in groups for line in group.split("\n") if line}
    assert asked - set(pins) == set()


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
