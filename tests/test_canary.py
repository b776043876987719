"""Closed records, all stages: nothing of them is outside the folders that are made to hold them.

A hospital whose texts and ids can be told from all other text goes through every stage by the real
command line; then every file below the outputs, HOME, TMPDIR and the caches, what the commands
printed, what a logger was given, and what left for the network is searched.
"""

import json
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.synthetic.hospital import write_hospital
from tests.conftest import Forks
from tests.local_server import LocalServer
from tests.test_records import copied

TEXT, ID = "zqkanarie", 731_700_000_000
FOUND = re.compile(rb"zqkanarie\w*|(?<![\d.])7317\d{8}(?!\d)")
"""Canaries in texts and in ids."""

MEANT = frozenset({
    *("icd_code", "icd_version", "ndc", "itemid", "gender", "admission_type", "disposition"),
    *("admission_location", "discharge_location", "eventtype", "careunit", "curr_service"),
    *("first_careunit", "last_careunit", "field_name", "event_txt", "drug_type"),
    *("race", "insurance"),
})  # fmt: skip
"""Columns whose values mean something to the program; race and insurance name the subgroups of
`stage=eval`, which have a minimum of patients."""

HOLDERS = {
    "*/prepare/**": "the records themselves: store, index, texts, splits",
    "*/graph/**": "the thinking graphs of samples, and the counts of their concepts",
    "*/chains/**": "chains, which cite the records, and the samples that they are of",
    "*/data/*": "prompts and answers as tokens, and the samples that they are of",
    "*/hf/tokenizer*": "a tokenizer that was trained on the records has their words",
    "*/base/tokenizer*": "the same, while it is trained on",
    "*/adapt/tokenizer/*": "the same, as it was trained",
    "*/eval/predictions*": "answers to the questions of each sample",
    "*/eval/answers/**": "the same, while they are made",
    "*/audit/audit.json": "rules that predict an answer by an item, and samples that leak",
    "*/export/**": "records that were asked for, in a folder of their own",
    "*/rl/completions/*": "what the model wrote, and the samples that it was asked about",
    "*/infer/*": "answers to rows of the user's own, and a page of a record",
    "*.error.txt": "what an unexpected error said",
}
"""Files below the outputs that may hold the records, and why."""


SMALL = (
    "data.tasks=[labevents,transfers,ED_Hospitalization,LengthOfStay_3day]",
    *("adapt.epochs=1", "adapt.eval_samples_per_task=1", "rl.steps=1", "rl.group_size=2"),
    *("rl.validation_prompts=2", "rl.max_completion_tokens=8", "eval.bootstrap=2"),
)


class Recorder(LocalServer):
    """A proxy, and a server of metrics, that keeps all that it is sent and refuses it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []


class _Handler(BaseHTTPRequestHandler):
    owner: Recorder

    def log_message(self, *arguments: Any) -> None:
        pass

    def _keep(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.owner.sent.append(f"{self.command} {self.path} {self.headers}".encode() + body)
        self.send_response(200 if self.path == "/metrics" else 403)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._keep()

    def do_POST(self) -> None:
        self._keep()

    def do_CONNECT(self) -> None:
        self._keep()


Recorder.handler = _Handler

LOGGER = """
from urllib.request import ProxyHandler, Request, build_opener
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger

class Failing(Callback):
    def on_train_start(self, *_):
        raise ValueError("zqkan" + "arie")

class Posting(Logger):
    name, version = "posting", 0

    def __init__(self, url):
        super().__init__()
        self.url = url

    def post(self, *given, **named):
        request = Request(self.url, repr((given, named)).encode(), method="POST")
        build_opener(ProxyHandler({})).open(request).close()

    log_hyperparams = log_metrics = log_text = log_table = post
"""
"""A logger of the user's that sends all it is given, and a callback that quotes a record."""


def planted(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table whose texts and ids can be told from all others."""
    marked = TEXT + re.sub("[^a-z]", "", name)
    columns = []
    for column in frame.get_columns():
        number = column.cast(pl.Float64, strict=False).is_not_null()
        date = column.str.contains(r"^\d{4}-\d\d-\d\d")
        if column.name.endswith("_id"):
            shifted = (column.cast(pl.Int64, strict=False) + ID).cast(pl.String)
            texts = TEXT + column
            columns.append(shifted.fill_null(texts).alias(column.name))
        elif column.name in MEANT or (number | date | column.is_null()).all():
            columns.append(column)
        else:
            plain = number | date
            texts = column + " " + marked
            columns.append(pl.select(pl.when(plain).then(column).otherwise(texts)).to_series())
    return pl.DataFrame([c.alias(o) for c, o in zip(columns, frame.columns, strict=True)])


def told(folder: Path) -> dict[str, set[str]]:
    """File below a folder -> canaries in its text or name, if it is not one of `HOLDERS`."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        held = {*FOUND.findall(path.read_bytes()), *FOUND.findall(name.encode())}
        if held and not any(fnmatch(name, pattern) for pattern in HOLDERS):
            found[name] = {one.decode() for one in sorted(held)[:4]}
    return found


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


def test_nothing_of_closed_records_is_anywhere_else(tmp_path: Path, recorder: Recorder) -> None:
    write_hospital(tmp_path / "invented", 40, 1, progress=False)
    hospital = copied(tmp_path / "invented", tmp_path / "hospital", planted)
    home, out = tmp_path / "home", tmp_path / "out"
    for name in ("cache", "tmp"):
        (home / name).mkdir(parents=True)
    (home / "posting.py").write_text(LOGGER)
    places = {"HOME": home, "TMPDIR": home / "tmp", "XDG_CACHE_HOME": home / "cache"}
    environment = {name: str(path) for name, path in places.items()}
    environment |= {"HF_HOME": str(home / "cache" / "hf"), "TORCH_HOME": str(home / "cache")}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        environment |= {name: recorder.url, name.lower(): recorder.url}
    given = ["experiment=smoke", "data=mimic", f"data.root={hospital}", f"output_root={out}"]
    given += ["variant=closed", *SMALL]
    printed = {}

    forks = Forks(**environment)
    one = ["stage=infer", "question=Which?"]  # its answer goes to stdout, as it was asked for

    def run(*words: str, code: int = 0) -> None:
        ended, out, said = forks.run(words, home)
        assert ended == code, (words, said[-3000:])
        printed[words[-1]] = said if set(one) <= set(words) else out + said

    mine = f"{{_target_: posting.Posting, url: '{recorder.url}/metrics'}}"
    run(*given, "logger=[tensorboard,csv]", f"+logger.mine={mine}")
    folder = out / "smoke" / "closed"
    sample = pl.read_parquet(folder / "prepare" / "index.parquet").row(0, named=True)
    rows = [
        {"id": "one", "record": f"Seen by Dr {TEXT}.", "question": "Which?"},
        {"id": "two", "subject_id": sample["subject_id"], "question": f"What of {TEXT}?"},
        {"id": "bad", "record": f"{TEXT} \ud800", "question": "Which?"},
        {"id": "gone", "subject_id": ID, "time": "2100-01-01", "question": "Which?"},
    ]
    (folder / "infer").mkdir()
    asked = folder / "infer" / "rows.jsonl"
    asked.write_text("\n".join(map(json.dumps, rows)))
    drawn = json.loads((folder / "graph" / "graphs.jsonl").read_text().split("\n")[0])["sample_id"]
    shutil.copytree(folder / "eval", tmp_path / "copied" / "eval")
    for words in (
        *(["stage=audit"], ["stage=card"], ["stage=export", "export.limit=20"]),
        ["stage=infer", f"infer.path={asked}", "infer.max_new_tokens.direct=8"],
        ["stage=graph", f"graph.show={drawn}"],
        ["stage=eval", f"rescore={folder}/eval"],
        ["stage=eval", f"compare=[{folder}/eval,{tmp_path}/copied/eval]"],
        ["stage=consolidate", f"run={folder}/adapt"],
        ["stage=chains", "chains=openai", "chains.model=x", "chains.dry_run=true"],
        [*one, f"infer.subject={sample['subject_id']}", f"infer.page={folder}/infer/page.html"],
    ):
        run(*given, *words)
    run(*given, "stage=graph", "graph.show=nosuch", code=2)
    failing = ["stage=adapt", "variant=closed/failing", "+callbacks.x._target_=posting.Failing"]
    run(*given, *failing, code=1)
    forks.end()
    assert TEXT in (folder / "failing" / "adapt.error.txt").read_text()
    assert told(out) == {}
    assert told(home) == {}
    # a sample that the user named is named in the paths of its pictures
    typed = {words: FOUND.findall(words.encode()) for words in printed}
    leaks = {w: {*FOUND.findall(text.encode())} - {*typed[w]} for w, text in printed.items()}
    assert not any(leaks.values()), leaks
    sent = b"".join(recorder.sent)
    assert b"/metrics" in sent and b"train/loss" in sent  # the logger was given what it asks for
    assert not FOUND.search(sent)
    assert not [one for one in recorder.sent if b" /metrics " not in one]
    # the canaries are where they are looked for
    assert FOUND.search((folder / "prepare" / "index.parquet").read_bytes())
    stages = [path.parent for path in folder.rglob("config.yaml")]
    assert len(stages) == 11
    made = [*stages, folder / "compare"]
    more = [folder / "infer" / "page.html", folder / "failing" / "adapt.error.txt"]
    for path in [*more, *(path for one in made for path in (one, *one.rglob("*")))]:
        assert path.stat().st_mode & 0o077 == 0, path
