"""Each fenced command of README and docs runs at tiny size, or the page says why it does not.

`<!-- not run: REASON -->` in front of a fence is about all of its commands; as
`<!-- not run: WORDS: REASON -->` about those that begin with these words. All others run here, with
the settings of `experiment=smoke` and the names of files and patients filled in. What needs GPUs is
left out (`WITHOUT_GPUS`), which makes many commands the same: each is run once. `make demo` and
what is no more than a stage of the smoke test has been run by the fixture `smoke`. Sweeps begin
with --dry-run; `tests/test_sweeps.py` begins some, and asks for their status."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ehrr1.config.names import ORDER, TRAINING
from tests.chat_server import ChatServer
from tests.conftest import ROOT, CommandLine
from tests.small_commands import SMALL, WITHOUT_GPUS, copied, filled, places_of_the_pages
from tests.test_docs import OURS, SWEEP_COMMANDS, SWEEPS, Fence, commands, fences, lay_out
from tests.test_writers import chain

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Form = tuple[str, ...]

GONE = {
    *("variant", "name", "output_root", "seed", "overwrite", "experiment"),
    *("data.subjects", "data.tasks", "rl.prompts_per_step", "adapt.trees_per_step"),
    *("eval.samples_per_task", "graph.samples_per_task", "engine.url"),
}
"""Settings of a command's folder, seed and size, which are the test's."""

AS_SMOKE = {"chains.reasons=all", "graph.weighed_samples_per_task=null"}
"""Settings that the smoke test has itself."""

OF_BENCHMARKS = {
    *("data=benchmark", "data=ehrshot", "data=mimiciv_cdm", "eval=ehrshot", "eval=mimiciv_cdm"),
}
OF_GRAPHS = ("data.protocol=paper", "concepts", "graph.c", "graph.m")
"""Settings that need other records or graphs than the smoke test's: of fewer tasks."""

OTHERS = OF_BENCHMARKS | {"data=meds", "data=release"}
"""Records that are not MIMIC-IV's."""
ROOTS = ("data.root=DIR", "data.root=EHRSHOT_ASSETS")
HERE = "run here"
READERS = ("benchmarks.chain_sample", "benchmarks.citations", "benchmarks.path_sample")
"""Benchmarks that only read a finished run."""

RUN_FOLDER = re.compile(rf"(?:(?:outputs|OUT)/\w+(?:/(\w+))?|OTHER)/({'|'.join(ORDER)})(?![\w.])")


def excuse(fence: Fence, words: list[str]) -> str | None:
    """Return why the page says that a command is not run; None if it does not."""
    about, _, why = (fence.reason or "").partition(": ")
    if not why:
        return fence.reason
    return why if " ".join(words).startswith(about) else None


def how(fence: Fence, words: list[str]) -> str | None:
    """Say what becomes of a command; None: nothing."""
    if why := excuse(fence, words):
        return f"not run: {why}"
    if words == ["make", "demo"]:
        return "the fixture `smoke`"
    if set(words) & {*OURS, *READERS}:
        return HERE
    place = next((n for n, word in enumerate(words) if word in SWEEPS), None)
    if place is None:
        return None
    return "tests/test_sweeps.py" if words[place + 1] in SWEEP_COMMANDS else HERE


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_each_command_is_run_or_marked(page: Path, tmp_path: Path) -> None:
    lost = [
        f"{fence.line}: {' '.join(words)}"
        for fence in fences(page)
        for words in commands(fence, tmp_path)
        if how(fence, words) is None
    ]
    assert not lost, "neither run nor marked"


def key(word: str) -> str:
    return word.partition("=")[0]


def stage_of(words: Sequence[str]) -> str:
    found = [word.removeprefix("stage=") for word in words if word.startswith("stage=")]
    return found[0] if found else "curriculum"


def sizes(words: list[str]) -> list[str]:
    """Return what makes a command small, beside its own settings."""
    stage, found = stage_of(words), []
    if "chains=openai" in words:
        found = ["chains.samples_per_task=1", "chains.drafts=1"]
    for learned in TRAINING if stage in ORDER else ():
        of_it = [f"{learned}.", f"+{learned}.", f"~{learned}."]
        of_it += ["ablation="] * (learned != "adapt")  # which ablations leave as it is
        before = ORDER.index(learned) < ORDER.index(stage)  # it is found by the same settings
        if learned == stage or (before and any(word.startswith(tuple(of_it)) for word in words)):
            found += SMALL[learned]
    few = any(word.startswith(OF_GRAPHS) for word in words)
    if (stage == "prepare" or few) and not OF_BENCHMARKS & set(words):
        found += SMALL["prepare"]
    scored = any(key(word) in ("rescore", "compare") for word in words)
    if stage in ("audit", "card", "eval", "export", "infer") and not scored:
        found += SMALL[stage]
    return found


def swept(words: list[str]) -> list[str]:
    """Return the settings of a sweep of the smoke test, which begins with a finished stage."""
    gone = ("experiment", "data.root", "launcher", "name", "--dry-run")
    return ["experiment=smoke", *(word for word in words if key(word) not in gone), "--dry-run"]


@dataclass
class Desk:
    """The place at which commands are typed, each tiny form once."""

    smoke: Path
    folder: Path
    places: dict[str, str]
    command_line: CommandLine
    ran: dict[Form, Path] = field(default_factory=dict)
    """The folder of each form that was run; those of the smoke test are its own."""
    named: dict[tuple[str, str], Path] = field(default_factory=dict)
    """The finished stages of a page's variants, by the names there."""

    def type(self, words: list[str]) -> None:
        """Run a command of a page at tiny size, unless that has been run."""
        if words[1] == "-m":
            return self.read(words)
        start = next(n for n, word in enumerate(words) if word in OURS + SWEEPS)
        settings = words[start + 1 :]
        if words[start] in SWEEPS and {"stage=curriculum", "--dry-run"} <= {*settings}:
            given = [filled(word, self.places) for word in settings if word != "--dry-run"]
            self.once(("sweep.py", *given, "--dry-run"))
        elif words[start] in SWEEPS:
            self.once(("sweep.py", *swept(settings)))
        elif "stage=plan" in settings:  # computes nothing: as it stands
            self.once(("run.py", *settings))
        else:
            form = self.small(settings)
            stage = stage_of(form)
            if set(SMALL["prepare"]) & set(form) and stage != "prepare":
                protocol = {"data.protocol=paper"} & set(form)
                first = {"experiment=smoke", "stage=prepare", *protocol, *SMALL["prepare"]}
                self.once(("run.py", *sorted(first, key=key)))
            folder = self.once(form)
            for word in settings:
                if key(word) in ("variant", "ablation", "concepts", "model"):
                    self.named[word.partition("=")[2], stage] = folder / stage

    def read(self, words: list[str]) -> None:
        """Run a benchmark that reads a finished run."""
        named = [str(self.smoke) if word == "outputs/demo" else word for word in words[1:]]
        command = [sys.executable, *map(self.finished, named)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"

    def once(self, form: Form) -> Path:
        """Run a form that has not been run; return its variant's folder."""
        if form not in self.ran:
            script, *words = form
            bare = set(words) - {f"stage={one}" for one in ORDER} == {"experiment=smoke"}
            self.ran[form] = self.smoke / ("" if bare else f"docs-{len(self.ran)}")
            if not bare:
                self.run(script, words, self.ran[form].name)
        return self.ran[form]

    def run(self, script: str, words: list[str], variant: str) -> None:
        place = [f"output_root={self.smoke.parent}"] if "experiment=smoke" in words else []
        if place and script == "run.py" and "stage=infer" not in words:  # which has no folder
            place.append(f"variant={variant}")
        done = self.command_line(
            *words, *place, cwd=self.folder, script=script, OPENAI_API_KEY="test"
        )
        assert done.returncode == 0, f"{script} {' '.join(words)}: {done.stderr[-3000:]}"

    def small(self, settings: list[str]) -> Form:
        """Return a command's tiny form."""
        kept = [
            word
            for word in settings
            if not (word in WITHOUT_GPUS or word in AS_SMOKE or key(word) in GONE)
        ]
        kept = [self.finished(word) for word in self.with_records(kept)]
        kept = [filled(word, self.places) if "=" in word else word for word in kept]
        own = {f"inputs.{stage}={self.smoke / stage}" for stage in ORDER}
        kept = [word for word in kept if word not in own]
        if "chains=openai" in kept and not any(word.startswith("chains.base") for word in kept):
            kept.append(f"chains.base_url={self.places['chains.base_url=']}")
        bare = len(kept) == 1 and stage_of(kept) in ORDER  # as the smoke test has run it
        more = [] if bare else sizes(kept)
        return ("run.py", *sorted({"experiment=smoke", *kept, *more}, key=key))

    def with_records(self, words: list[str]) -> list[str]:
        """Return the settings with records of their kind; MIMIC-IV's are the smoke test's own."""
        if kind := next((word for word in words if word in OTHERS), None):
            root = f"data.root={self.meds() if kind == 'data=meds' else self.places.get(kind)}"
            return [root if word in ROOTS else word for word in words]
        own = [word for word in words if word != "data=mimic" and key(word) != "data.root"]
        tables = stage_of(own) == "prepare" and "data.root=DIR" in words
        tables = tables and "data.protocol=paper" not in words  # its settings are enough
        return [*own, "data=mimic", "data.root=DIR"] if tables else own

    def meds(self) -> Path:
        return self.once(self.small(["stage=export", "export.layout=meds"])) / "export/meds/meds"

    def finished(self, word: str) -> str:
        """Return a word with runs of this test in place of runs below outputs/."""
        used: list[Path] = []

        def place(match: re.Match[str]) -> str:
            folder = self.named.get((match[1], match[2]), self.smoke / match[2])
            if folder in used or word.startswith("run="):
                folder = copied(folder, self.folder / "copies" / folder.parent.name / match[2])
            used.append(folder)
            return str(folder)

        return RUN_FOLDER.sub(place, word)


@pytest.fixture(scope="module")
def desk(
    smoke: Path,
    released: Path,
    command_line: CommandLine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    places = places_of_the_pages(smoke, folder, released)
    with ChatServer(answer=chain) as server:
        places |= {"chains.base_url=": server.url, "chains.model=": server.model}
        yield Desk(smoke, folder, places, command_line)


FENCES = [
    pytest.param(page, fence, id=f"{page.stem}:{fence.line}")
    for page in PAGES
    for fence in fences(page)
    if fence.language == "bash"
    and re.search(r"(run|sweep)\.py|^ehrr1|benchmarks", fence.text, re.MULTILINE)
]


@pytest.mark.parametrize(("page", "fence"), FENCES)
def test_commands_run(page: Path, fence: Fence, desk: Desk, tmp_path: Path) -> None:
    for one in fences(page):
        lay_out(one, desk.folder)
    for words in commands(fence, tmp_path):
        if how(fence, words) == HERE:
            desk.type(words)
