"""README and docs: every link leads somewhere, every command and setting is one that exists.

The shell reads the commands, and settings are composed and checked as by the command line, up to
the point where a stage would begin. A fence whose commands this cannot check has the reason in
front of it: `<!-- not run: REASON -->`."""

import ast
import configparser
import contextlib
import io
import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from docs import settings_page
from ehrr1 import cli, runs
from ehrr1.config.fields import keys
from ehrr1.config.learning import ahead
from ehrr1.config.names import ORDER, TRAINING
from ehrr1.config.schema import Config, check
from ehrr1.errors import UserError
from ehrr1.spelling import refuse_no_choice, spelled_out
from ehrr1.stages.infer_checks import check as check_infer
from ehrr1.sweeps import cli as sweep_cli
from tests.conftest import ROOT
from tests.metrics_page import not_on_the_page
from tests.settings import composed

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
CURRENT = [page for page in PAGES[:2] + PAGES[3:] if page.parent.name != "examples"]
"""Pages of commands that are composed: not the changelog, which has those of earlier versions, nor
the examples, which a test of their own runs."""

CURRENT_IDS = [str(page.relative_to(ROOT)) for page in CURRENT]
ELSEWHERE = ("http://", "https://", "mailto:")

LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```(\w*)$")
REASON = re.compile(r"<!-- not run: (\S.*) -->$")
FILE = re.compile(r"(?:# @package _global_\n)?# ([\w./-]+\.(?:py|yaml))\n")
NAME = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=.*)?$")
WORD = re.compile(r"[~+]{0,2}[a-z_]+(/[a-z_]+)?(\.\w+)*(=|$)")

SUFFIXES = (".json", ".jsonl", ".md", ".parquet", ".png", ".py")
"""Ends of files that are named like a section."""

NUMBERS = {"N": "2", "K": "2", "k": "1", "n": "2", "T": "0.5", "P": "0.9", "X": "0.5", "STEP": "2"}
"""The letters that stand for numbers."""

COMMANDS = ("python run.py ", "python sweep.py ", "python -m ", "make ")
"""How a command within a line begins."""

CHOICES = {
    "model": dict.fromkeys(("MODEL", "FOLDER", "DIR"), "a/model"),
    "experiment": {"NAME": "demo"},
    "ablation": {"NAME": "none"},
}
"""What the names of choices stand for, by group."""

OURS = ("run.py", "ehrr1", "ehrr1.sif")
SWEEPS = ("sweep.py", "ehrr1-sweep")
STARTERS = ("python", "torchrun", "srun", "docker", "apptainer", "ehrr1", "ehrr1-sweep")
"""Programs that start ours."""

OTHERS = {
    *("apptainer", "conda", "cut", "docker", "hf", "inspect", "lm_eval", "ls"),
    *("meds-evaluation-cli", "uv"),
}
"""Programs of others, which need a reason in front of the fence."""

SWEEP_COMMANDS = ("status", "logs", "resume", "cancel", "compare", "clean")

RECORD = """\
command_not_found_handle() { printf '%s\\x1f' "$@" >> "$LOG"; printf '\\x1e' >> "$LOG"; }
PATH=/nowhere
set -u
"""
"""What runs before a fence: the shell reads it, loops and variables included, and no program runs;
the words of each command are written down."""


@dataclass(frozen=True)
class Fence:
    """A block of a page between two lines of backticks."""

    line: int
    language: str
    reason: str | None
    text: str


def fences(page: Path) -> list[Fence]:
    """The fences of a page, each with the reason why its commands cannot be checked."""
    found: list[Fence] = []
    begun: tuple[int, str, str | None] | None = None
    inside: list[str] = []
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if begun is None and match:
            told = REASON.match(before)
            begun, inside = (number, match[1], told[1] if told else None), []
        elif begun is not None and line == "```":
            found.append(Fence(*begun, "\n".join(inside)))
            begun = None
        elif begun is not None:
            inside.append(line)
        before = line or before
    assert begun is None, f"{page}: the fence of line {begun} has no end"
    return found


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page outside of its fences, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    for _, line in prose(page):
        if match := re.match(r"#+ (.+)$", line):
            heading = re.sub(r"\]\([^)]*\)", "", match[1]).replace("[", "").replace("`", "")
            seen[re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")] += 1
    return {f"{name}-{n}" if n else name for name, many in seen.items() for n in range(many)}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for number, line in prose(page):
        for link in LINK.findall(SPAN.sub("", line)):
            if link.startswith(ELSEWHERE):
                continue
            place, _, anchor = link.partition("#")
            target = (page.parent / place).resolve() if place else page
            missing = not target.exists() or (anchor and anchor not in anchors(target))
            if missing:
                dead.append(f"{number}: {link}")
    assert not dead


def test_every_page_is_in_the_contents() -> None:
    linked = {
        (ROOT / "docs" / link.partition("#")[0]).resolve()
        for _, line in prose(ROOT / "docs" / "index.md")
        for link in LINK.findall(line)
    }
    assert {page for page in PAGES if page.parent == ROOT / "docs"} - linked == {
        ROOT / "docs" / "index.md"
    }


def test_the_readme_fits_a_few_screens() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    picture = next(number for number, line in enumerate(lines) if line.startswith("!["))
    # what, for whom, what it is not, contents, commands: then the picture, on the first screen
    assert picture < 20
    first = "\n".join(lines[:picture])
    parts = ("It is for researchers", "not for clinical use", "docs/index.md", "make demo")
    places = [first.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_fence_says_what_it_is(page: Path) -> None:
    assert not [fence.line for fence in fences(page) if not fence.language]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type commands in."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "paper_8b", "smoke"):  # a sweep goes on from finished stages
        for stage in ORDER[:-1]:
            (tmp_path / "outputs" / name / stage).mkdir(parents=True)
            (tmp_path / "outputs" / name / stage / "metrics.json").write_text("{}")
    return tmp_path


def lay_out(fence: Fence, folder: Path) -> None:
    """Write the file that a fence holds, which a later command reads."""
    if named := FILE.match(fence.text):
        (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
        (folder / named[1]).write_text(fence.text)


def would_begin(cfg: Config) -> None:
    """Check the settings as a stage does, before it reads anything."""
    check(cfg)
    if cfg.stage == "infer":
        check_infer(cfg)
    if isinstance(cfg.trainer.devices, int):
        stages = runs.order(cfg) if cfg.stage == "curriculum" else [cfg.stage]
        processes = cfg.trainer.devices * cfg.trainer.nodes
        problems = [one for s in stages if s in TRAINING for one in ahead(cfg, s, processes)]
        if problems:
            raise UserError("; ".join(problems))


@pytest.mark.slow
@pytest.mark.parametrize("page", CURRENT, ids=CURRENT_IDS)
def test_commands_exist(page: Path, world: Path) -> None:
    wrong = []
    for fence in fences(page):
        lay_out(fence, world)
        for words in commands(fence, world):
            told = complaint(words, others_too=fence.reason is not None)
            wrong += [f"{fence.line}: {' '.join(words)}: {told}"] * bool(told)
    for number, line in prose(page):
        for words in in_line(line):
            told = complaint(words, others_too=False)
            wrong += [f"{number}: {' '.join(words)}: {told}"] * bool(told)
        for words in settings_in(line):
            told = wrong_run(words, begins=False)
            wrong += [f"{number}: {' '.join(words)}: {told}"] * bool(told)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_experiments_begin_with_a_command_that_exists(world: Path) -> None:
    wrong = []
    for file in sorted((ROOT / "experiments").glob("*.yaml")):
        text = re.split(r", | \(", file.read_text().splitlines()[1].removeprefix("# "))[0]
        told = complaint(shlex.split(text), others_too=False)
        wrong += [f"{file.name}: {text}: {told}"] * bool(told)
    assert not wrong, "\n".join(wrong)


def commands(fence: Fence, folder: Path) -> list[list[str]]:
    """The words of each command of a fence, as the shell reads them."""
    text = fence.text
    if fence.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    elif fence.language != "bash":
        return []
    log = folder / "commands.log"
    log.write_text("")
    shell = ["bash", "--norc", "--noprofile", "-c", RECORD + text.replace(".venv/bin/", "")]
    done = subprocess.run(
        shell,
        cwd=folder,
        env={"LOG": str(log), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, f"line {fence.line}: {done.stderr}"
    return [one.split("\x1f")[:-1] for one in log.read_text().split("\x1e")[:-1]]


def in_line(line: str) -> list[list[str]]:
    """The words of the commands that stand within a line; `...` stands for more of them."""
    spans = [span for span in SPAN.findall(line) if span.startswith(COMMANDS)]
    found = [shlex.split(span) for span in spans]
    return [words for words in found if not any(word.endswith("...") for word in words)]


def settings_in(line: str) -> list[list[str]]:
    """The settings that stand together within a line: a part of a command."""
    spans = [span for span in SPAN.findall(line) if span.startswith(("stage=", "experiment="))]
    found = [span.split(" ") for span in spans]
    return [
        words
        for words in found
        if len(words) > 1
        and all(WORD.match(one) and not one.endswith("...") and not varies(one) for one in words)
    ]


def complaint(words: list[str], others_too: bool) -> str | None:
    """Say what is wrong with a command; None if nothing is.

    others_too: programs of others may be called."""
    program, *rest = words
    if program == "make":
        return wrong_targets([word for word in rest if "=" not in word])
    if program == "python" and rest[0] == "-m":
        return wrong_module(rest[1], rest[2:])
    if program == "pytest":
        return wrong_module("pytest", rest)
    for names, judge in ((OURS, wrong_run), (SWEEPS, wrong_sweep)):
        place = next((n for n, word in enumerate(words) if word in names), None)
        if place is not None and program in STARTERS and "build" not in words:
            return judge(words[place + 1 :])
    if "pip" in words[:2]:
        return wrong_extras(rest)
    if program not in OTHERS:
        return "no program that is known (`OTHERS`)"
    return None if others_too else "no program of ours, and no reason in front of the fence"


def wrong_targets(targets: list[str]) -> str | None:
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return next((f"no target {one}" for one in targets if one not in known), None)


def wrong_module(module: str, rest: list[str]) -> str | None:
    """A module of ours is there, and its file has each option; a test's file is there."""
    if module == "pytest":
        files = [word.partition("::")[0] for word in rest if word.startswith("tests/")]
        return next((f"no file {one}" for one in files if not (ROOT / one).exists()), None)
    file = ROOT / f"{module.replace('.', '/')}.py"
    if not file.exists():
        return f"no file {file}"
    flags = [word for word in rest if word.startswith("--")]
    return next((f"no option {one}" for one in flags if one not in file.read_text()), None)


def wrong_extras(rest: list[str]) -> str | None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = [one for word in rest for one in re.findall(r"\[(.*)\]", word) if word[0] in ".e"]
    known = setup["options.extras_require"]
    names = [name for one in asked for name in one.split(",")]
    return next((f"no extra {name}" for name in names if name not in known), None)


def filled(words: list[str]) -> list[str]:
    """The words with a number for each letter that stands for one."""
    parts = [word.partition("=") for word in words]
    return [
        key + equals + CHOICES.get(key, NUMBERS).get(value, value) for key, equals, value in parts
    ]


def wrong_run(words: list[str], begins: bool = True) -> str | None:
    """Say what the command line answers to settings; `begins`: as far as a stage would begin."""
    try:
        cli.refuse_flags(words)
        overrides = [word for word in filled(words) if "=" in word or word.startswith("~")]
        if "--config-dir" in words:
            folder = Path(words[words.index("--config-dir") + 1]).absolute()
            overrides.append(f"hydra.searchpath=[{folder}]")
        if "-m" in words:
            overrides = [first_of(one) for one in spelled_out(overrides, swept=True)]
        refuse_no_choice(spelled_out(overrides), cli.CONF)
        cfg = composed(*overrides)
        if begins:
            would_begin(cfg)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return str(error)
    return None


def varies(word: str) -> bool:
    [parsed] = OverridesParser.create().parse_overrides(spelled_out([word], swept=True)[-1:])
    return parsed.is_sweep_override()


def first_of(override: str) -> str:
    """The first value of a setting that varies; of another, itself."""
    [parsed] = OverridesParser.create().parse_overrides([override])
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.key_or_group}={next(iter(parsed.sweep_string_iterator()))}"


def wrong_sweep(words: list[str]) -> str | None:
    """Say what a sweep would be refused for; one that exists is not asked for."""
    if words[0] in SWEEP_COMMANDS:
        unknown = {one for one in words if one.startswith("--")}
        return str(unknown) if unknown - sweep_cli.FLAGS.get(words[0], set()) else None
    grid = [one for one in words if "interval(" not in one and not one.startswith("search.")]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            sweep_cli.run([*filled([one for one in grid if one != "--dry-run"]), "--dry-run"])
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", CURRENT, ids=CURRENT_IDS)
def test_settings_exist(page: Path) -> None:
    known = keys(Config)
    free = ("logger", "callbacks", "rl.rewards", "model.config", "launcher.sbatch")
    free += ("trainer.callback_metrics",)  # of Lightning's trainer
    wrong = []
    for number, line in prose(page):
        for name in [match[1] for span in SPAN.findall(line) if (match := NAME.match(span))]:
            of_ours = name.partition(".")[0] in Config.model_fields
            if not of_ours or name.startswith(free) or name.endswith(SUFFIXES):
                continue
            if not any(one == name or one.startswith(f"{name}.") for one in known):
                wrong.append(f"{number}: {name}")
    assert not wrong


def told_texts() -> str:
    """Every text within the program's code, messages among them."""
    nodes = [
        node
        for file in sorted((ROOT / "ehrr1").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    ]
    return "\n".join(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


OF_OTHERS = {
    *("zsh: no matches found", "syntax error near unexpected token"),
    *(", and 20,428 were written", "Connection refused"),
}
"""Messages of other programs, and one whose numbers are its own."""


def test_messages_in_troubleshooting_are_real() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    told, messages = told_texts(), [line.split("`")[1] for line in rows]
    assert len(messages) >= 40
    assert {one for one in messages if one not in told} == OF_OTHERS


def test_the_page_of_settings_is_current() -> None:
    """`make docs` writes it again."""
    GlobalHydra.instance().clear()
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page()
    told = settings_page.page()
    whole = [name for name in keys(Config) if not name.startswith("model.lora.")]
    assert not [name for name in whole if f"`{name}`" not in told]


def test_every_setting_has_a_meaning() -> None:
    """The comment beside it in conf/, or beside the same setting elsewhere (`settings_page`)."""
    page = settings_page.PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) >= 350
    assert not [row.split("`")[1] for row in rows if not re.split(r"(?<!\\)\|", row)[-2].strip()]


def test_every_metric_is_on_its_page(smoke: Path) -> None:
    """Those of the curriculum; tests of other stages ask for theirs (`not_on_the_page`)."""
    lacking = {}
    for stage in ORDER:
        found = json.loads((smoke / stage / "metrics.json").read_text())
        lacking[stage] = not_on_the_page(stage, found)
    for stage in TRAINING:
        lines = (smoke / stage / "train.jsonl").read_text().splitlines()
        lacking[f"{stage}/train.jsonl"] = not_on_the_page(
            stage, {name for line in lines for name in json.loads(line)}
        )
    assert not {place: names for place, names in lacking.items() if names}


def test_a_name_that_is_not_on_the_page_is_found() -> None:
    assert not_on_the_page("card", ["samples", "measured", "leaking_samples"]) == [
        "leaking_samples"
    ]
    assert not_on_the_page("audit", ["hours_ahead/emar/max", "hours_ahead/emar"]) == [
        "hours_ahead/emar"
    ]
