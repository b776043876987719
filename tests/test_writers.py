"""Chains by language models: a server with faults, processes that are killed, budgets, refusals."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ehrr1.config.schema import check
from ehrr1.config.writers import AnthropicChains, EndpointChains
from ehrr1.engines.anthropic import cacheable_tokens, is_cacheable
from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.reasoning.ledger import ATTEMPTS, Ledger, SentRequest
from ehrr1.stages import execute
from tests.conftest import ROOT, CommandLine
from tests.killed_writers import prompts
from tests.killed_writers import write as ask
from tests.messages_server import Body, Faults, MessagesServer, text_of
from tests.metrics_page import not_on_the_page
from tests.settings import changed, composed
from tests.test_models import small, write_folder

SAMPLES = 2000
FAULTS = Faults(
    rate_limited=0.03, overloaded=0.03, broken=0.03, slow=0.005, cut=0.03, malformed=0.02,
    wrong=0.02, truncated=0.02, empty=0.02, expired=0.05, errored=0.05, missing=0.02,
)  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")


def settings(server: MessagesServer, **changes: Any) -> AnthropicChains:
    """The writer's own settings, in a hurry."""
    hurry = {"timeout_seconds": 2.0, "poll_seconds": 0.05, "max_retries": 4, "drafts": 1}
    own = {"model": "some-model", "base_url": server.url, **hurry}
    made: AnthropicChains = changed(composed("chains=anthropic").chains, **own | changes)
    return made


def rows(path: Path) -> list[dict[str, Any]]:
    """The ledger, read as anyone would read it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM drafts ORDER BY number")]


def said(row: dict[str, Any]) -> str:
    """Return the text of the request for a row's sample, as the server knows it."""
    return f"record {row['sample_id'].split()[1]}\n{row['sample_id']}"


class KilledWriters:
    """Processes that write one after the other (`tests.killed_writers`)."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def kill(self, when: Callable[[], bool]) -> None:
        """Kill the one of now once something is true."""
        assert self.process.stdout is not None
        child = int(self.process.stdout.readline())
        deadline = time.monotonic() + 60
        while not when():
            assert time.monotonic() < deadline, "nothing to kill"
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)

    def go_on(self) -> None:
        """Let the next one begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextmanager
def killed_writers(
    path: Path, cfg: EndpointChains, count: int = SAMPLES
) -> Iterator[KilledWriters]:
    """Writers of so many samples; the last must come to its end."""
    file = path.with_name("settings.yaml")
    file.write_text(yaml.safe_dump(cfg.plain()))
    command = [sys.executable, "-m", "tests.killed_writers", str(path), str(file), str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield KilledWriters(process)
            assert process.wait(timeout=100) == 0
        finally:
            process.kill()


def check_ledger(path: Path, server: MessagesServer) -> list[dict[str, Any]]:
    """Nothing lost, nothing doubled: a row a sample, and its text is the answer to its prompt."""
    found = rows(path)
    assert [row["sample_id"] for row in found] == [f"sample {n}" for n in range(SAMPLES)]
    assert {row["state"] for row in found} <= {"done", "failed"}
    for row in found:
        if row["state"] == "done":
            empty = row["stop_reason"] == "refusal"
            assert row["text"] == ("" if empty else f"answer to {said(row)}"), row
            assert row["tokens_in"] == len(said(row)) - 1
        else:
            assert row["attempts"] == ATTEMPTS and row["error"]
    reasons = Counter(row["stop_reason"] for row in found)
    assert reasons["refusal"] > 20 and reasons["max_tokens"] > 20
    return found


def test_two_thousand_samples_with_faults_and_kills(tmp_path: Path) -> None:
    path, kills = tmp_path / "ledger.sqlite", (300, 1200)
    with MessagesServer(FAULTS, seed=1, slow_seconds=2.5) as server:
        cfg = settings(server, concurrency=24)
        before: list[tuple[int, set[str]]] = []
        with killed_writers(path, cfg) as writers:
            for answered in kills:
                writers.kill(lambda n=answered: sum(server.served.values()) >= n)
                time.sleep(0.3)  # what was on its way has arrived
                done = {said(row) for row in rows(path) if row["state"] == "done"}
                before.append((len(server.bodies), done))
                writers.go_on()
        found = check_ledger(path, server)
        assert server.most_at_once <= 24 * 2  # those of a killed process may still be answered
        for name in ("rate_limited", "overloaded", "broken", "slow", "cut", "malformed", "wrong"):
            assert server.happened[name], name
        # what stood in the ledger when the process was killed was never asked again
        for asked, done in before:
            assert len(done) > 200
            assert not done & set(map(text_of, server.bodies[asked:]))
        # only answers that were on their way when a process was killed were given twice
        twice = sum(server.served[said(row)] - 1 for row in found if row["state"] == "done")
        assert 0 <= twice <= 24 * len(kills)
        assert sum(row["state"] == "failed" for row in found) < 5


def test_two_thousand_samples_in_batches_with_faults_and_kills(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with MessagesServer(FAULTS, seed=2, slow_seconds=2.5, hang_at=3) as server:
        cfg = settings(server, batches=True, batch_size=250)
        with killed_writers(path, cfg) as writers:
            writers.kill(lambda: len(server.batches) == 3)  # created, and nobody knows its number
            server.hang_at = None
            waiting = Counter(row["batch_key"] for row in rows(path) if row["state"] == "sent")
            nameless = [row for row in rows(path) if row["batch_key"] and not row["batch_id"]]
            assert len(waiting) == 3 and len(nameless) == 250
            writers.go_on()
            writers.kill(lambda: sum(server.served.values()) >= 700)  # within the results
            writers.go_on()
        found = check_ledger(path, server)
        for name in ("expired", "errored", "missing"):
            assert server.happened[name], name
        ids = {row["batch_id"] for row in nameless} | {row["batch_id"] for row in found}
        assert ids - {None} <= set(server.batches)
        paid = Counter(useful_entries(server))
        assert all(paid[said(row)] == (row["state"] == "done") for row in found)


def useful_entries(server: MessagesServer) -> Iterator[str]:
    """Count what was answered and paid for, one entry of a batch at a time."""
    for batch in server.batches.values():
        for entry in batch["requests"]:
            asked = text_of(entry["params"])
            attempt = entry["custom_id"].split("-")[0]
            if server.fault(f"{asked}/{attempt}", 0, batch=True) in (None, "truncated", "empty"):
                yield asked


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("truncated", "done", "max_tokens"),
        ("empty", "done", "refusal"),
        ("wrong", "failed", "malformed answer (TypeError)"),
    ],
)
def test_what_becomes_of_bad_answers(
    tmp_path: Path, batches: bool, fault: str, state: str, reason: str
) -> None:
    with MessagesServer(Faults(**{fault: 1.0})) as server:
        ask(tmp_path / "ledger.sqlite", settings(server, batches=batches), 3)
        for row in rows(tmp_path / "ledger.sqlite"):
            assert row["state"] == state
            assert row["stop_reason" if state == "done" else "error"] == reason


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("overloaded", "status 529"),
        ("rate_limited", "status 429"),
        ("broken", "status 500"),
        ("cut", "APIConnectionError"),
        ("slow", "APITimeoutError"),
        ("malformed", "malformed answer (no JSON)"),
    ],
)
def test_no_answer_is_asked_for_again_and_then_failed(
    tmp_path: Path, fault: str, reason: str
) -> None:
    with MessagesServer(Faults(**{fault: 1.0}), slow_seconds=0.4) as server:
        cfg = settings(server, max_retries=0, timeout_seconds=0.2)
        ask(tmp_path / "ledger.sqlite", cfg, 3)
        found = rows(tmp_path / "ledger.sqlite")
        assert [(row["state"], row["error"]) for row in found] == [("failed", reason)] * 3
        assert len(server.bodies) == 3 * ATTEMPTS


@pytest.mark.parametrize("reason", ["expired", "errored", "missing"])
def test_entries_of_batches_are_asked_for_again_and_then_failed(
    tmp_path: Path, reason: str
) -> None:
    told = {"errored": "errored (api_error)", "missing": "no result"}
    with MessagesServer(Faults(**{reason: 1.0})) as server:
        ask(tmp_path / "ledger.sqlite", settings(server, batches=True), 3)
        found = rows(tmp_path / "ledger.sqlite")
        assert {(row["state"], row["error"]) for row in found} == {
            ("failed", told.get(reason, reason))
        }
        assert len(server.batches) == ATTEMPTS


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_ends_the_run_at_once(tmp_path: Path, batches: bool, status: int) -> None:
    with MessagesServer(status=status) as server:
        cfg = settings(server, batches=batches, concurrency=4)
        with pytest.raises(UserError, match=f"status {status}") as error:
            ask(tmp_path / "ledger.sqlite", cfg, 100)
        assert "\n" not in str(error.value)
        assert len(server.headers) <= 4
        server.status = None
        ask(tmp_path / "ledger.sqlite", cfg, 100)
    assert {row["state"] for row in rows(tmp_path / "ledger.sqlite")} == {"done"}


@pytest.mark.parametrize("batches", [False, True])
def test_an_endpoint_that_is_gone_ends_the_run_and_loses_nothing(
    tmp_path: Path, batches: bool
) -> None:
    with MessagesServer() as server:
        cfg = settings(server, batches=batches, max_retries=0, concurrency=4)
    with pytest.raises(UserError, match="does not answer"):
        ask(tmp_path / "ledger.sqlite", cfg, 100)
    assert {row["state"] for row in rows(tmp_path / "ledger.sqlite")} <= {"open", "sent"}
    with MessagesServer() as server:
        cfg.base_url = server.url
        ask(tmp_path / "ledger.sqlite", cfg, 100)
        assert len(server.batches) == (1 if batches else 0)
    assert {row["state"] for row in rows(tmp_path / "ledger.sqlite")} == {"done"}


def test_a_batch_whose_creation_was_not_confirmed_is_not_created_again(tmp_path: Path) -> None:
    with MessagesServer(lose_creations=2) as server:
        cfg = settings(server, batches=True, batch_size=4)
        ask(tmp_path / "ledger.sqlite", cfg, 12)
        assert len(server.batches) == 3
        assert set(Counter(useful_entries(server)).values()) == {1}
    assert {row["batch_id"] for row in rows(tmp_path / "ledger.sqlite")} == set(server.batches)


def test_an_unconfirmed_batch_without_results_is_created_again(tmp_path: Path) -> None:
    with MessagesServer(Faults(missing=1.0), lose_creations=1) as server:
        ask(tmp_path / "ledger.sqlite", settings(server, batches=True), 3)
        assert len(server.batches) == 1 + ATTEMPTS
    found = rows(tmp_path / "ledger.sqlite")
    assert {(row["state"], row["error"]) for row in found} == {("failed", "no result")}


@pytest.mark.parametrize(("times", "attempts"), [(2, 1), (3, 2)])
def test_results_that_are_no_json_are_fetched_again(
    tmp_path: Path, times: int, attempts: int
) -> None:
    with MessagesServer(garble_results=times) as server:
        ask(tmp_path / "ledger.sqlite", settings(server, batches=True, max_retries=2), 3)
    found = rows(tmp_path / "ledger.sqlite")
    assert {(row["state"], row["attempts"]) for row in found} == {("done", attempts)}


def test_batches_that_are_under_way_are_taken_in_first(tmp_path: Path) -> None:
    with MessagesServer(batch_seconds=60) as server:
        cfg = settings(server, batches=True, batch_size=4, timeout_seconds=0.5, max_retries=0)
        path = tmp_path / "ledger.sqlite"
        with Ledger(path) as ledger:
            ledger.begin((f"sample {n}" for n in range(8)), 1)
            [(first, prompt)] = prompts(8, {"sample 0"})
            ledger.put_in_batch("key", [SentRequest(first, 0, prompt)])
            ledger.batch_created("key", "msgbatch_0")
        cfg.batches = False
        with pytest.raises(UserError, match=r"1 batches .* set chains\.batches=true"):
            ask(path, cfg, 8)
        cfg.batches = True  # that batch is unknown to the server: it is asked for again
        server.batch_seconds = 0
        ask(path, cfg, 8)
    assert {(row["state"], row["attempts"]) for row in rows(path)} == {("done", 1), ("done", 2)}


def test_what_is_sent(tmp_path: Path) -> None:
    """Shared text is marked for the cache if it is long enough for the model. A temperature needs
    the version of the API that takes one."""
    long = " again" * 400  # 2,400 characters: 600 tokens at least
    with MessagesServer() as server:
        ask(tmp_path / "short.sqlite", settings(server, model="claude-sonnet-5-5"), 1)
        own = settings(
            server, model="claude-haiku-4-5", temperature=0.5, thinking=None, effort=None
        )
        ask(tmp_path / "older.sqlite", own, 1, long)
        own = settings(server, model="claude-sonnet-5-5", drafts=3)
        ask(tmp_path / "long.sqlite", own, 2, long)
    short, older, first = server.bodies[0], server.bodies[1], server.bodies[2]
    mark = {"type": "ephemeral"}
    assert short["model"] == "claude-sonnet-5-5" and short["max_tokens"] == 8192
    assert (short["thinking"], short["output_config"]) == (
        {"type": "adaptive"},
        {"effort": "medium"},
    )
    assert short["system"] == [{"type": "text", "text": "guidelines"}]
    [content] = [message["content"] for message in short["messages"]]
    assert content == [{"type": "text", "text": text} for text in ("record 0", "sample 0")]
    assert not {"thinking", "output_config"} & older.keys()
    assert "cache_control" not in str(older)  # 4,096 tokens are the least for this model
    assert first["system"][0]["cache_control"] == mark
    marks = [block.get("cache_control") for block in first["messages"][0]["content"]]
    assert marks == [None, mark]  # the prefix up to here is the same for all drafts
    assert "temperature" not in short and older["temperature"] == 0.5
    versions = [headers["anthropic-version"] for headers in server.headers[:2]]
    assert versions[0] > "2026" and versions[1] == "2023-06-01"
    found = [row["cache_write"] > 0 < row["tokens_in"] for row in rows(tmp_path / "long.sqlite")]
    assert found == [True, False, False] * 2
    assert [row["cache_write"] for row in rows(tmp_path / "short.sqlite")] == [0]


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("claude-opus-5-5", 512),
        ("claude-sonnet-5-5-20260928", 512),
        ("claude-sonnet-5", 1024),
        ("claude-haiku-4-5", 4096),
        ("another", 4096),
    ],
)
def test_what_is_long_enough_for_the_cache(model: str, least: int) -> None:
    assert cacheable_tokens(model) == least
    assert is_cacheable(model, "x" * 4 * least) and not is_cacheable(model, "x" * (4 * least - 1))


@pytest.mark.parametrize("batches", [False, True])
def test_what_an_answer_costs(tmp_path: Path, batches: bool) -> None:
    more = " again" * 400
    with MessagesServer(answer=lambda body: "answer") as server:
        own = {"model": "claude-sonnet-5-5", "batches": batches, "drafts": 2}
        ask(tmp_path / "ledger.sqlite", settings(server, **own), 1, more)
    prompt, out = len(f"record 0{more}sample 0"), len("answer")
    first, second = (prompt * 2.5 + out * 10) / 1e6, (prompt * 0.2 + out * 10) / 1e6
    factor = 0.5 if batches else 1
    costs = sorted(row["cost_usd"] for row in rows(tmp_path / "ledger.sqlite"))
    assert costs == pytest.approx([second * factor, first * factor])


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("text", ["7 ", "\u00e9"])
def test_a_budget_holds_for_texts_of_many_tokens(tmp_path: Path, batches: bool, text: str) -> None:
    """The server counts a token per character, not 0.4 as records have on average: reservations
    by the average let a budget be exceeded."""
    with MessagesServer(answer=lambda body: "answer") as server:
        cfg = settings(server, batches=batches, budget_usd=0.5, max_tokens=500)
        with pytest.raises(UserError, match=r"chains\.budget_usd=0\.5: [1-9]"):
            ask(tmp_path / "ledger.sqlite", cfg, 50, text * 25_000)
    spent = sum(row["cost_usd"] for row in rows(tmp_path / "ledger.sqlite"))
    assert 0.2 < spent <= 0.5


@pytest.mark.parametrize("fault", ["cut", "slow", "malformed", "wrong"])
def test_a_budget_holds_for_requests_whose_answer_is_lost(tmp_path: Path, fault: str) -> None:
    """The endpoint may charge for each request that it received."""
    with MessagesServer(Faults(**{fault: 0.5}), slow_seconds=0.4) as server:
        server.answer = lambda body: "answer"
        budget = {"budget_tokens": 20_000, "max_tokens": 500, "timeout_seconds": 0.2}
        with pytest.raises(UserError, match="by requests without an answer"):
            ask(tmp_path / "ledger.sqlite", settings(server, **budget), 100, "a" * 1000)
    received = sum(len(text_of(body)) + len("answer") for body in server.bodies)
    assert 5_000 < received <= 20_000
    found = rows(tmp_path / "ledger.sqlite")
    assert sum(row["unsure_tokens"] for row in found) >= 2 * 1500


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("budget", [{"budget_tokens": 6000}, {"budget_usd": 0.05}])
def test_a_budget_stops_before_it_is_overspent(
    tmp_path: Path, batches: bool, budget: dict[str, float]
) -> None:
    path = tmp_path / "ledger.sqlite"
    with MessagesServer() as server:
        cfg = settings(server, batches=batches, batch_size=10, max_tokens=500, **budget)
        with pytest.raises(UserError, match="the same command continues") as error:
            ask(path, cfg, 500)
        found = rows(path)
        done = [row for row in found if row["state"] == "done"]
        assert f"{len(done)} of 500 drafts are written, {500 - len(done)} are left" in str(error)
        assert 20 < len(done) < 500
        tokens = sum(row["tokens_in"] + row["tokens_out"] for row in done)
        dollars = sum(row["cost_usd"] for row in done)
        assert tokens <= budget.get("budget_tokens", tokens)
        assert dollars <= budget.get("budget_usd", dollars)
        cfg = changed(cfg, **dict.fromkeys(budget))
        ask(path, cfg, 500)
        assert {row["state"] for row in rows(path)} == {"done"}
        assert max(server.served.values()) == 1


def chain(body: Body) -> str:
    """A chain out of the evidence that a prompt shows."""
    lines = text_of(body).splitlines()
    arrows = [number for number, line in enumerate(lines) if line.startswith("-> ")]
    cited = [lines[n - 1] for n in arrows if n - 1 not in arrows]
    derived = dict.fromkeys(lines[n][3:].rsplit(" (", 1)[0] for n in arrows)
    reasons = [" | ".join([line.split(" | ")[0], "->", *derived]) for line in cited]
    return "\n".join(
        ["## Extraction", *cited, "## Reasoning", *reasons, "## Final Results", *derived]
    )


def arguments(smoke: Path, root: Path, *more: str) -> list[str]:
    return [
        "experiment=smoke",
        "stage=chains",
        f"inputs.prepare={smoke / 'prepare'}",
        f"inputs.graph={few_graphs(smoke, root.parent / 'graph')}",
        f"output_root={root}",
        *more,
    ]


def few_graphs(smoke: Path, folder: Path) -> Path:
    """The graph stage's folder with every 80th sample, one of them without evidence."""
    if not folder.exists():
        folder.mkdir()
        for name in ("config.yaml", "metrics.json"):
            shutil.copy(smoke / "graph" / name, folder)
        lines = (smoke / "graph" / "graphs.jsonl").read_text().splitlines()[::80]
        bare = json.loads(lines[-1])
        bare["graph"]["nodes"] = [n for n in bare["graph"]["nodes"] if n["kind"] == "answer"]
        bare["graph"]["edges"] = []
        (folder / "graphs.jsonl").write_text("\n".join([*lines[:-1], json.dumps(bare)]) + "\n")
    return folder


def stage(smoke: Path, root: Path, *more: str) -> None:
    """Run a stage as run.py does, without starting Python again."""
    cfg = composed(*arguments(smoke, root, *more))
    check(cfg)
    execute(cfg)


def outputs(root: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = root / "smoke" / "chains"
    lines = (folder / "chains.jsonl").read_text().splitlines()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not not_on_the_page("chains", metrics)
    return list(map(json.loads, lines)), metrics


def test_the_whole_stage_with_a_budget_that_ends_it_in_between(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    root = tmp_path / "outputs"
    faults = Faults(overloaded=0.05, malformed=0.05, truncated=0.05, empty=0.05)
    with MessagesServer(faults, answer=chain) as server:
        given = arguments(smoke, root, "chains=anthropic", "chains.model=some-model")
        given += [f"chains.base_url={server.url}", "chains.drafts=2", "chains.max_tokens=500"]
        stopped = command_line(*given, "chains.budget_usd=0.5")
        assert stopped.returncode == 2 and stopped.stderr.count("run.py:") == 1, stopped.stderr
        assert "raise chains.budget_usd" in stopped.stderr
        folder = root / "smoke" / "chains"
        assert not (folder / "chains.jsonl").exists() and not (folder / "metrics.json").exists()
        done = {row["number"] for row in rows(folder / "ledger.sqlite") if row["state"] == "done"}
        assert done
        stage(smoke, root, *given[len(arguments(smoke, root)) :], "chains.budget_usd=100")
    ledger, (lines, metrics) = rows(folder / "ledger.sqlite"), outputs(root)
    assert metrics["asked"] == len(ledger) == len(lines) + metrics["failed"]
    written = {(row["sample_id"], row["draft"]): row for row in ledger if row["state"] == "done"}
    assert [(line["sample_id"], line["draft"]) for line in lines] == list(written)
    for line in lines:
        row = written[line["sample_id"], line["draft"]]
        assert (line["chain"], line["tokens_in"]) == (row["text"], row["tokens_in"])
        assert ("unfinished" in line["rejected_by"]) == (row["stop_reason"] != "end_turn")
    assert metrics["prompt/decision.v2"] == len(lines)
    assert metrics["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in ledger), abs=1e-5)
    assert metrics["tokens_out"] == sum(line["tokens_out"] for line in lines)
    kept = [line for line in lines if line["kept"]]
    assert len(kept) > 2
    assert all(not line["rejected_by"] and line["faithfulness"] == 1 for line in kept)
    assert max(Counter(line["sample_id"] for line in kept).values()) == 1
    without = sum(metrics[name] for name in metrics if name.startswith("no_evidence/"))
    graphs = (tmp_path / "graph" / "graphs.jsonl").read_text().splitlines()
    assert without == len(graphs) - len({row["sample_id"] for row in ledger}) > 0


def test_records_that_are_not_open_stay_here(smoke: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    shutil.copytree(smoke / "prepare", closed, symlinks=True)
    write_json(closed / "open.json", {"open": False, "why": "data.open=false"})
    (closed / "manifest.json").unlink()  # it lists what was prepared as open
    with MessagesServer(answer=chain) as server:
        given = ["chains=anthropic", "chains.model=some-model", f"chains.base_url={server.url}"]
        given += [f"inputs.prepare={closed}", "chains.drafts=1"]
        # what the command says of the data does not count: it is the records that were prepared
        with pytest.raises(UserError, match="third party") as error:
            stage(smoke, tmp_path / "outputs", *given, "data.open=true")
        assert "chains.compliant_endpoint=true" in str(error.value)
        assert not server.headers and not (tmp_path / "outputs" / "smoke" / "chains").exists()
        stage(smoke, tmp_path / "outputs", *given, "chains.compliant_endpoint=true")
        assert server.headers


def test_a_key_is_needed(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with MessagesServer() as server:
        given = ["chains=anthropic", "chains.model=some-model", f"chains.base_url={server.url}"]
        with pytest.raises(UserError, match="ANTHROPIC_API_KEY is not set"):
            stage(smoke, tmp_path / "outputs", *given)
        assert not server.headers
    assert not (tmp_path / "outputs" / "smoke" / "chains").exists()


def test_a_refused_model_leaves_no_folder_and_a_paid_draft_does(
    smoke: Path, tmp_path: Path
) -> None:
    with MessagesServer(status=404, answer=chain) as server:
        given = ["chains=anthropic", f"chains.base_url={server.url}", "chains.drafts=1"]
        with pytest.raises(UserError, match="status 404"):
            stage(smoke, tmp_path / "outputs", *given, "chains.model=typo")
        server.status = None
        with pytest.raises(UserError, match="budget_tokens"):
            stage(
                smoke,
                tmp_path / "outputs",
                *given,
                "chains.model=some-model",
                "chains.budget_tokens=30000",
            )
        with pytest.raises(UserError, match="other settings"):
            stage(smoke, tmp_path / "outputs", *given, "chains.model=typo")
        assert (tmp_path / "outputs" / "smoke" / "chains" / "ledger.sqlite").exists()


def test_without_graphs_every_sample_is_asked_about(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["chains=anthropic", "chains.model=some-model", "chains.dry_run=true"]
    graph = few_graphs(smoke, tmp_path / "graph")
    samples = (graph / "graphs.jsonl").read_text().count("\n")
    counts = []
    for evidence in ("cooccurrence", "none"):
        made_with = yaml.safe_load((graph / "config.yaml").read_text())
        made_with["graph"]["evidence"] = evidence
        (graph / "config.yaml").write_text(yaml.safe_dump(made_with))
        stage(smoke, tmp_path / "outputs", *given)
        counts += [int(count) for count in re.findall(r"(\d+) samples", capsys.readouterr().out)]
    assert counts[0] < counts[1] == samples


def test_a_dry_run_bounds_the_cost_and_asks_nothing(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server counts a token per character, and its answers are as long as they may be."""
    with MessagesServer(answer=lambda body: "x" * 500) as server:
        given = ["chains=anthropic", "chains.model=some-model", f"chains.base_url={server.url}"]
        given += ["chains.drafts=1", "chains.max_tokens=500"]
        stage(smoke, tmp_path / "outputs", *given, "chains.dry_run=true")
        assert not server.headers
        assert not (tmp_path / "outputs" / "smoke" / "chains").exists()
        told = " ".join(capsys.readouterr().out.split())
        stage(smoke, tmp_path / "outputs", *given)
    assert "Message Batches, prompts cached" in told and "4,096 tokens are the least" in told
    way = r"Messages, {}\W+([\d,]+)\W+([\d,]+)\W+([\d,.]+)"
    most, expected = (
        [float(cell.replace(",", "")) for cell in re.search(way.format(name), told).groups()]  # type: ignore[union-attr]
        for name in (r"at most \*", "nothing cached")
    )
    _, metrics = outputs(tmp_path / "outputs")
    spent = [metrics[name] for name in ("tokens_in", "tokens_out", "cost_usd")]
    assert all(paid <= bound + 0.005 for paid, bound in zip(spent, most, strict=True))
    assert spent[1] == most[1] and 0 < expected[0] < spent[0]  # 0.4 tokens per character expected


HERE = (
    "chains=transformers",
    "chains.max_prompt_chars=4000",
    "chains.show_graph=false",
    "chains.max_tokens=12",
    "chains.drafts=2",
    "chains.batch_size=16",
)


def test_a_model_on_this_machine_writes_the_same_after_a_stop(smoke: Path, tmp_path: Path) -> None:
    given = [*HERE, f"chains.model={smoke / 'adapt' / 'hf'}", "chains.temperature=1.0"]
    stage(smoke, tmp_path / "one", *given)
    with pytest.raises(UserError, match="budget_tokens"):
        stage(smoke, tmp_path / "two", *given, "chains.budget_tokens=40000")
    stage(smoke, tmp_path / "two", *given)
    (lines, metrics), (again, _) = outputs(tmp_path / "one"), outputs(tmp_path / "two")
    assert lines == again
    assert metrics["asked"] == len(lines) and metrics["failed"] == 0 and metrics["cost_usd"] == 0
    assert metrics["tokens_in"] == sum(line["tokens_in"] for line in lines) > 0
    assert all(0 < line["tokens_out"] <= 12 for line in lines)
    by_sample = [
        (first["chain"], second["chain"])
        for first, second in zip(lines[::2], lines[1::2], strict=True)
    ]
    assert sum(one != other for one, other in by_sample) > len(by_sample) / 2


def test_a_model_that_cannot_write_is_told_before_anything(smoke: Path, tmp_path: Path) -> None:
    model, tokenizer = small()
    write_folder(model, tokenizer, tmp_path / "hf")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").unlink(missing_ok=True)
    for folder, problem in ((tmp_path / "none", "no Hugging Face"), (tmp_path / "hf", "template")):
        with pytest.raises(UserError, match=problem) as error:
            stage(smoke, tmp_path / "outputs", *HERE, f"chains.model={folder}")
        assert f"chains.model={folder}" in str(error.value)
    with pytest.raises(UserError, match=r"chains\.max_tokens=9000"):
        given = [*HERE, f"chains.model={smoke / 'adapt' / 'hf'}", "chains.max_tokens=9000"]
        stage(smoke, tmp_path / "outputs", *given)


def test_a_run_in_which_nothing_was_written_is_no_finished_run(smoke: Path, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    with MessagesServer(Faults(wrong=1.0), answer=chain) as server:
        given = ["chains=anthropic", f"chains.base_url={server.url}", "chains.model=some-model"]
        with pytest.raises(UserError, match=r"not one of \d+ drafts was written \(malformed"):
            stage(smoke, root, *given, "chains.drafts=1", "chains.concurrency=40")
    assert not (root / "smoke" / "chains").exists()
