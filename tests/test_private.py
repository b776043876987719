"""Closed records stay home: which servers may receive them, and who may read what is written."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from ehrr1 import EHRModel, runs, stages
from ehrr1.engines.endpoint import is_local
from ehrr1.errors import UserError
from ehrr1.files import write_json, write_text
from ehrr1.runs.privacy import without_messages
from ehrr1.stages import rl
from ehrr1.stages.infer import run_infer
from tests.conftest import ROOT
from tests.openai_server import CompletionsServer
from tests.settings import composed

SECRET = "Mrs Canary of Finchley"


def own_address() -> str:
    """An address of this machine in its network, by which it is reached like another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine is in no network")
        found: str = probe.getsockname()[0]
    if is_local(f"http://{found}"):
        pytest.skip("this machine is in no network")
    return found


class Elsewhere(CompletionsServer):
    """A server that is reached by an address of the network."""


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.1:8000/v1", True),
        ("http://LOCALHOST/v1", True),
        ("http://127.0.0.1@10.0.0.1/v1", False),
        ("http://no.such.host.invalid/v1", False),
        ("http://[half/v1", False),
        ("127.0.0.1:8000", False),
    ],
)
def test_a_server_is_this_machine_if_all_its_addresses_are(url: str, here: bool) -> None:
    assert is_local(url) is here


def test_completions_on_another_machine_need_permission(tmp_path: Path) -> None:
    for decided in (True, False):
        write_json(tmp_path / str(decided) / "open.json", {"open": decided, "why": "told"})
    away = ["stage=rl", "rollout=vllm_server", "rollout.url=http://10.0.0.1:8100"]
    closed = {"prepare": tmp_path / "False"}
    with pytest.raises(UserError, match=r"^rollout=vllm_server: the records are closed.*10.0.0.1"):
        rl.check(composed(*away), closed)
    several = [*away[:2], "rollout.url=[http://127.0.0.1:8100,http://10.0.0.1:8100]"]
    with pytest.raises(UserError, match=r"rollout.url=http://10.0.0.1:8100 is another machine"):
        rl.check(composed(*several), closed)
    # the next thing that is missing is the model: nothing forbids the server
    for words, inputs in (
        (away, {"prepare": tmp_path / "True"}),
        ([*away, "rollout.compliant_endpoint=true"], closed),
        (away[:2], closed),
    ):
        with pytest.raises(KeyError, match="reason"):
            rl.check(composed(*words), inputs)


def test_questions_reach_another_machine_only_where_they_may(smoke: Path, tmp_path: Path) -> None:
    """By the command's own path; two doors open it, and an open store does not open a text."""
    (tmp_path / "record.md").write_text(f"## Note [2150-01-01 08:00:00]\n{SECRET}")
    server = Elsewhere()
    server.host = own_address()
    with server:
        asked = ["experiment=smoke", "stage=infer", f"output_root={smoke.parent}", "engine=server"]
        asked += [f"record={tmp_path / 'record.md'}", "question=Which?", f"engine.url={server.url}"]
        asked += [f"engine.tokenizer={smoke / 'rl' / 'hf'}", "infer.max_new_tokens.direct=8"]
        with pytest.raises(UserError, match=r"engine=server: the records are closed"):
            run_infer(composed(*asked))
        with pytest.raises(UserError, match=r"engine=server: the records are closed"):
            EHRModel(engine="server", url=server.url)
        assert not server.bodies and not server.keys
        for door in ("data.open=true", "engine.compliant_endpoint=true"):
            run_infer(composed(*asked, door))
            assert len(server.bodies) == 1
            server.bodies.clear()


def test_an_open_store_may_be_asked_about_anywhere(smoke: Path) -> None:
    server = Elsewhere()
    server.host = own_address()
    patient = pl.read_parquet(smoke / "prepare" / "split.parquet")["subject_id"][0]
    with server:
        asked = ["experiment=smoke", "stage=infer", f"output_root={smoke.parent}", "engine=server"]
        asked += [f"infer.subject={patient}", "question=Which?", f"engine.url={server.url}"]
        asked += [f"engine.tokenizer={smoke / 'rl' / 'hf'}", "infer.max_prompt_tokens=400"]
        run_infer(composed(*asked, "infer.max_new_tokens.direct=8"))
        assert len(server.bodies) == 1


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_what_is_made_of_closed_records_is_the_users_own(tmp_path: Path) -> None:
    with runs.kept(True, tmp_path / "error.txt"):
        write_text(tmp_path / "closed" / "deep" / "file", SECRET)
        child = f"from pathlib import Path; Path({str(tmp_path / 'child')!r}).write_text('x')"
        subprocess.run([sys.executable, "-c", child], check=True)
        (tmp_path / "run").mkdir()
        write_text(tmp_path / "run" / "config.yaml", "x")
        assert modes(tmp_path / "run") == {0o700, 0o600}
        runs.open_up(tmp_path / "run")  # these turned out to be open
        write_text(tmp_path / "run" / "store" / "rows", "x")
    assert modes(tmp_path / "closed") == {0o700, 0o600}
    assert modes(tmp_path / "child") == {0o600}
    assert modes(tmp_path / "run") == {0o755, 0o644}
    with runs.kept(False, tmp_path / "error.txt"):
        write_text(tmp_path / "open" / "file", "x")
    write_text(tmp_path / "after" / "file", "x")
    assert modes(tmp_path / "open") == modes(tmp_path / "after") == {0o755, 0o644}
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize(
    ("words", "closed"),
    [
        (["data=synthetic"], False),
        (["data=synthetic", "data.open=false"], True),
        (["data=mimic", "data.root=x"], True),
        (["data=mimic", "data.root=x", "data.open=true"], False),
    ],
)
def test_a_folder_is_closed_from_the_start(words: list[str], closed: bool, tmp_path: Path) -> None:
    cfg = composed("experiment=smoke", *words, output_root=str(tmp_path))
    with stages.kept_for(cfg, "prepare", {}):
        write_text(runs.folder_of(cfg, "prepare") / "file", "x")
    assert modes(runs.folder_of(cfg, "prepare")) == ({0o700, 0o600} if closed else {0o755, 0o644})


FAILS = """
import sys
from pathlib import Path
from ehrr1 import runs
with runs.kept(sys.argv[2] == "closed", Path(sys.argv[1])):
    try:
        {"a": 1}[sys.argv[3]]
    except KeyError as error:
        raise ValueError(sys.argv[3] + " again") from error
"""


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("records", ["closed", "open"])
def test_a_traceback_of_closed_records_quotes_nothing(records: str, tmp_path: Path) -> None:
    file = tmp_path / "adapt.error.txt"
    command = [sys.executable, "-c", FAILS, str(file), records, SECRET]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ValueError" in done.stderr
    assert (SECRET in done.stderr) == (records == "open")
    assert file.exists() == (records == "closed")
    if file.exists():
        assert f"{SECRET} again" in file.read_text() and str(file) in done.stderr
        assert "builtins.KeyError" in done.stderr and modes(file) == {0o600}


def test_errors_that_quote_nothing_are_told_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mend it"), runs.kept(True, tmp_path / "error.txt"):
        raise UserError("mend it")
    assert not list(tmp_path.iterdir())


def test_a_chain_of_errors_ends(tmp_path: Path) -> None:
    one, two = ValueError(SECRET), KeyError(SECRET)
    one.__context__, two.__context__ = two, one
    told = without_messages(one, tmp_path / "x")
    assert told.count("Traceback") == 2 and SECRET not in told
