"""Chains by any endpoint that speaks OpenAI's chat completions: `chains=openai`."""

import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ehrr1.config.writers import OpenAIChains
from ehrr1.engines.endpoint import is_local
from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.reasoning.ledger import ATTEMPTS
from ehrr1.reasoning.openai_completions import OWN_ADDRESS
from tests.chat_server import ChatServer
from tests.conftest import CommandLine, StartCommand
from tests.killed_writers import write as ask
from tests.messages_server import Faults, text_of
from tests.settings import changed, composed
from tests.test_writers import arguments, chain, killed_writers, outputs, rows, stage

SAMPLES = 600
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and no proxy."""
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    for name in (*PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)


def settings(server: ChatServer, **changes: Any) -> OpenAIChains:
    """The writer's own settings, in a hurry."""
    hurry = {"timeout_seconds": 2.0, "max_retries": 4, "drafts": 1}
    own = {"model": "some-model", "base_url": server.url, **hurry}
    made: OpenAIChains = changed(composed("chains=openai").chains, **own | changes)
    return made


def given(server: ChatServer, *more: str) -> list[str]:
    """The words of a command."""
    return ["chains=openai", "chains.model=some-model", f"chains.base_url={server.url}", *more]


def elsewhere(server: ChatServer) -> str:
    """The server by an address that reaches it, and does not say that it is this machine."""
    return server.url.replace("127.0.0.1", "0.0.0.0")


def said(row: dict[str, Any]) -> str:
    """Return the text of the request for a row's sample, as the server knows it."""
    return f"record {row['sample_id'].split()[1]}\n\n{row['sample_id']}"


def states(path: Path) -> Counter[str]:
    return Counter(row["state"] for row in rows(path))


@pytest.mark.slow
def test_faults_and_kills_lose_nothing_and_ask_for_nothing_that_is_there(tmp_path: Path) -> None:
    path, kills = tmp_path / "ledger.sqlite", (100, 350)
    faults = Faults(rate_limited=0.03, broken=0.03, slow=0.005, cut=0.03, malformed=0.02,
                    wrong=0.02, truncated=0.03, empty=0.03)  # fmt: skip
    with ChatServer(faults, seed=1, slow_seconds=2.5) as server:
        before: list[tuple[int, set[str]]] = []
        with killed_writers(path, settings(server, concurrency=16), SAMPLES) as writers:
            for answered in kills:
                writers.kill(lambda n=answered: sum(server.served.values()) >= n)
                time.sleep(0.3)  # what was on its way has arrived
                done = {said(row) for row in rows(path) if row["state"] == "done"}
                before.append((len(server.bodies), done))
                writers.go_on()
        for name in ("rate_limited", "broken", "slow", "cut", "malformed", "wrong"):
            assert server.happened[name], name
        for asked, done in before:
            assert len(done) > 60
            assert not done & set(map(text_of, server.bodies[asked:]))
        found = rows(path)
        twice = sum(server.served[said(row)] - 1 for row in found if row["state"] == "done")
        assert 0 <= twice <= 16 * len(kills)  # those that were on their way
    assert [row["sample_id"] for row in found] == [f"sample {n}" for n in range(SAMPLES)]
    for row in found:
        if row["state"] == "done":
            empty = row["stop_reason"] == "refusal"
            assert row["text"] == ("" if empty else f"answer to {said(row)}"), row
            assert row["tokens_in"] == len("guidelines") + len(said(row))
        else:
            assert row["attempts"] == ATTEMPTS and row["error"]
    reasons = Counter(row["stop_reason"] for row in found)
    assert reasons["refusal"] > 5 and reasons["max_tokens"] > 5 and reasons["end_turn"] > 400
    assert states(path)["failed"] < 5


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("truncated", "done", "max_tokens"),
        ("empty", "done", "refusal"),
        ("wrong", "failed", "malformed answer (TypeError)"),
        ("overloaded", "failed", "status 529"),
        ("rate_limited", "failed", "status 429"),
        ("broken", "failed", "status 500"),
        ("cut", "failed", "APIConnectionError"),
        ("slow", "failed", "APITimeoutError"),
        ("malformed", "failed", "malformed answer (no JSON)"),
    ],
)
def test_what_becomes_of_bad_answers_and_of_none(
    tmp_path: Path, fault: str, state: str, reason: str
) -> None:
    with ChatServer(Faults(**{fault: 1.0}), slow_seconds=0.4) as server:
        cfg = settings(server, max_retries=0, timeout_seconds=0.2)
        ask(tmp_path / "ledger.sqlite", cfg, 3)
    for row in rows(tmp_path / "ledger.sqlite"):
        assert row["state"] == state
        assert row["stop_reason" if state == "done" else "error"] == reason
    assert len(server.bodies) == 3 * (ATTEMPTS if state == "failed" else 1)


def test_rate_limits_and_server_errors_are_asked_again_by_the_sdk(tmp_path: Path) -> None:
    with ChatServer(Faults(rate_limited=0.3, broken=0.3), seed=2) as server:
        ask(tmp_path / "ledger.sqlite", settings(server, max_retries=20), 20)
        assert server.happened["rate_limited"] > 3 and server.happened["broken"] > 3
    found = rows(tmp_path / "ledger.sqlite")
    assert {(row["state"], row["attempts"]) for row in found} == {("done", 1)}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"key": "another"}, r"status 401 \(.*Incorrect API key .*\); check OPENAI_API_KEY"),
        ({"model": "another"}, r"404 \(.*does not exist.*\); check chains\.model and chains\.base"),
        ({"knows_not": ["temperature"]}, r"400 \(.*\); check .*chains\.temperature \(null for"),
        ({"knows_not": ["max_completion_tokens"]}, r"400 \(.*chains\.length_setting"),
        ({"broke": True}, r"429 \(.*exceeded your current quota.*\); check the account"),
    ],
)
def test_what_cannot_pass_ends_the_run_at_once_in_one_line(
    tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    with ChatServer() as server:
        before = {name: vars(server)[name] for name in wrong}
        vars(server).update(wrong)
        cfg = settings(server, concurrency=4, temperature=0.5, max_retries=0)
        with pytest.raises(UserError, match=told) as error:
            ask(tmp_path / "ledger.sqlite", cfg, 100)
        assert "\n" not in str(error.value) and str(error.value).startswith("chains=openai: ")
        assert len(server.headers) <= 4
        vars(server).update(before)
        ask(tmp_path / "ledger.sqlite", cfg, 100)
    assert states(tmp_path / "ledger.sqlite") == {"done": 100}


def test_a_prompt_that_a_filter_refuses_is_an_answer_and_costs_nothing(tmp_path: Path) -> None:
    with ChatServer(flagged="record 7") as server:
        ask(tmp_path / "ledger.sqlite", settings(server), 10)
        assert len(server.headers) == 10
    found = {row["sample_id"]: row for row in rows(tmp_path / "ledger.sqlite")}
    flagged = found.pop("sample 7")
    assert (flagged["state"], flagged["stop_reason"]) == ("done", "content_filter")
    assert (flagged["text"], flagged["cost_usd"], flagged["tokens_in"]) == ("", 0, 0)
    assert {row["stop_reason"] for row in found.values()} == {"end_turn"}


def test_what_is_sent(tmp_path: Path) -> None:
    with ChatServer() as server:
        ask(tmp_path / "one.sqlite", settings(server), 1)
        changes = {"temperature": 0.5, "length_setting": "max_tokens", "drafts": 2, "effort": "low"}
        ask(tmp_path / "two.sqlite", settings(server, **changes), 1)
    one, two, again = server.bodies
    texts = {"system": "guidelines", "user": "record 0\n\nsample 0"}
    messages = [{"role": role, "content": text} for role, text in texts.items()]
    assert one == {"model": "some-model", "messages": messages, "max_completion_tokens": 8192}
    rest = {"max_tokens": 8192, "temperature": 0.5, "reasoning_effort": "low"}
    assert two == again == {"model": "some-model", "messages": messages, **rest}


@pytest.mark.parametrize("caches", [True, False])
def test_what_an_answer_costs(tmp_path: Path, caches: bool) -> None:
    with ChatServer(caches=caches) as server:
        ask(tmp_path / "ledger.sqlite", settings(server, drafts=2), 1)
    prompt, out = len("guidelinesrecord 0\n\nsample 0"), len("answer to record 0\n\nsample 0")
    first, second = rows(tmp_path / "ledger.sqlite")
    assert (first["tokens_in"], first["tokens_out"], first["cache_read"]) == (prompt, out, 0)
    assert first["cost_usd"] == pytest.approx((prompt * 2 + out * 10) / 1e6)
    read = prompt if caches else 0
    assert (second["tokens_in"], second["cache_read"]) == (prompt, read)
    costs = ((prompt - read) * 2 + read * 0.1 + out * 10) / 1e6
    assert second["cost_usd"] == pytest.approx(costs)


def test_thoughts_are_no_part_of_a_draft(tmp_path: Path) -> None:
    with ChatServer(
        answer=lambda body: "<think>\nLet me see.\n</think>\n\n## Extraction"
    ) as server:
        ask(tmp_path / "ledger.sqlite", settings(server), 1)
    assert [row["text"] for row in rows(tmp_path / "ledger.sqlite")] == ["## Extraction"]


@pytest.mark.parametrize("budget", [{"budget_tokens": 6000}, {"budget_usd": 0.06}])
def test_a_budget_stops_before_it_is_overspent(tmp_path: Path, budget: dict[str, float]) -> None:
    path = tmp_path / "ledger.sqlite"
    with ChatServer() as server:
        cfg = settings(server, max_tokens=500, **budget)
        with pytest.raises(UserError, match="the same command continues"):
            ask(path, cfg, 500)
        done = [row for row in rows(path) if row["state"] == "done"]
        assert 20 < len(done) < 500
        tokens = sum(row["tokens_in"] + row["tokens_out"] for row in done)
        assert tokens <= budget.get("budget_tokens", tokens)
        assert sum(row["cost_usd"] for row in done) <= budget.get("budget_usd", 1)
        ask(path, changed(cfg, **dict.fromkeys(budget)), 500)
        assert max(server.served.values()) == 1
    assert states(path) == {"done": 500}


def test_an_endpoint_that_is_gone_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    with ChatServer() as server:
        cfg = settings(server, max_retries=0, concurrency=4)
    with pytest.raises(UserError, match=r"does not answer \(APIConnectionError\)"):
        ask(tmp_path / "ledger.sqlite", cfg, 100)
    assert states(tmp_path / "ledger.sqlite").keys() <= {"open", "sent"}


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://[::1]:8000/v1", True),
        (None, False),
        ("https://NAME.openai.azure.com/openai/v1/", False),
        ("http://localhost.example.org/v1", False),
        ("http://localhost@example.org/v1", False),
        ("http://127.0.0.1.example.org/v1", False),
        ("http://192.168.0.7:8000/v1", False),
        ("http://0.0.0.0:8000/v1", False),
    ],
)
def test_which_addresses_are_this_machine(address: str | None, here: bool) -> None:
    assert is_local(address or OWN_ADDRESS) is here


def test_what_is_meant_for_this_machine_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy of the environment sees what goes elsewhere, and nothing of what goes to here; an
    address of the environment, or one to which a server redirects, sees nothing at all."""
    path = tmp_path / "ledger.sqlite"
    with ChatServer() as server, ChatServer(status=403) as other:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        monkeypatch.setenv("OPENAI_BASE_URL", other.url)
        ask(path, settings(server), 3)
        server.moved_to = other.url
        with pytest.raises(UserError, match="status 307"):
            ask(tmp_path / "moved.sqlite", settings(server), 3)
        assert not other.headers and states(path) == {"done": 3}
        heard = len(server.headers)
        with pytest.raises(UserError, match="status 403"):
            ask(tmp_path / "other.sqlite", settings(server, base_url=elsewhere(server)), 3)
        assert other.headers and len(server.headers) == heard


def test_the_whole_stage_killed_in_between(
    smoke: Path, tmp_path: Path, command_line: CommandLine, start_command: StartCommand
) -> None:
    """By the command line: SIGKILL within the requests, then the same command again."""
    root = tmp_path / "outputs"
    folder = root / "smoke" / "chains"
    faults = Faults(rate_limited=0.1, broken=0.1, malformed=0.05, truncated=0.05, empty=0.05)
    with ChatServer(faults, answer=chain) as server:
        more = ["chains.drafts=4", "chains.max_tokens=500", "chains.concurrency=2"]
        words = arguments(smoke, root, *given(server, *more))
        process = start_command(*words)
        deadline = time.monotonic() + 100
        while sum(server.served.values()) < 20 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "metrics.json").exists()
        time.sleep(0.3)  # what was on its way has arrived
        asked, served = len(server.bodies), sum(server.served.values())
        paid = {row["number"] for row in rows(folder / "ledger.sqlite") if row["state"] == "done"}
        assert len(paid) >= 15
        done = command_line(*words)
        assert done.returncode == 0, done.stderr
        assert len(server.bodies) > asked
        ledger, (lines, metrics) = rows(folder / "ledger.sqlite"), outputs(root)
        # each draft is paid for once, but for those that were on their way
        answered = [row for row in ledger if row["state"] == "done"]
        assert 0 <= sum(server.served.values()) - len(answered) <= served - len(paid) <= 2
    assert paid <= {row["number"] for row in answered}
    assert metrics["asked"] == len(ledger) == len(lines) + metrics["failed"]
    for name in ("tokens_in", "tokens_out", "cache_read", "cost_usd"):
        assert 0 < metrics[name] == pytest.approx(sum(row[name] for row in ledger), abs=1e-5)
    kept = [line for line in lines if line["kept"]]
    assert len(kept) > 2
    assert all(not line["rejected_by"] and line["faithfulness"] == 1 for line in kept)
    assert sum("unfinished" in line["rejected_by"] for line in lines) == sum(
        row["stop_reason"] != "end_turn" for row in answered
    )


def test_records_that_are_not_open_stay_here(smoke: Path, tmp_path: Path) -> None:
    closed, root = tmp_path / "closed", tmp_path / "outputs"
    shutil.copytree(smoke / "prepare", closed, symlinks=True)
    write_json(closed / "open.json", {"open": False, "why": "data.open=false"})
    (closed / "manifest.json").unlink()  # it lists what was prepared as open
    with ChatServer(answer=chain) as server:
        words = [*given(server), f"inputs.prepare={closed}", "chains.drafts=1"]
        away = [*words, f"chains.base_url={elsewhere(server)}"]
        for address in (away, [*words, "chains.base_url=null"]):
            with pytest.raises(UserError, match="third party") as error:
                stage(smoke, root, *address, "data.open=true")
            assert "chains.compliant_endpoint=true" in str(error.value)
            assert "\n" not in str(error.value)
        assert not server.headers and not (root / "smoke" / "chains").exists()
        stage(smoke, root, *away, "chains.compliant_endpoint=true")
        assert server.headers
        stage(smoke, tmp_path / "here", *words)  # a server on this machine
        assert outputs(tmp_path / "here")[1]["asked"] > 0


def test_a_key_is_needed_elsewhere(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with ChatServer(answer=chain, key="none") as server:
        away = [*given(server), f"chains.base_url={elsewhere(server)}"]
        with pytest.raises(UserError, match="OPENAI_API_KEY is not set: chains=openai needs a key"):
            stage(smoke, tmp_path / "outputs", *away)
        assert not server.headers and not (tmp_path / "outputs" / "smoke" / "chains").exists()
        stage(smoke, tmp_path / "outputs", *given(server))
        assert server.headers


def test_an_address_is_one(smoke: Path, tmp_path: Path) -> None:
    words = ["chains=openai", "chains.model=some-model", "chains.base_url=localhost:8000/v1"]
    with pytest.raises(UserError, match=r"chains\.base_url=localhost:8000/v1: give it as http"):
        stage(smoke, tmp_path / "outputs", *words)


def test_a_dry_run_tells_the_cost_and_asks_nothing(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatServer() as server:
        stage(smoke, tmp_path / "outputs", *given(server, "chains.dry_run=true"))
        assert not server.headers
    told = capsys.readouterr().out
    assert "chains=openai, model some-model" in told and "Chat Completions, nothing cached" in told
    assert not (tmp_path / "outputs" / "smoke" / "chains").exists()


def test_a_wrong_model_leaves_no_folder_and_a_paid_draft_does(smoke: Path, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    with ChatServer(answer=chain) as server:
        with pytest.raises(UserError, match="status 404"):
            stage(smoke, root, *given(server), "chains.model=typo")
        assert not (root / "smoke" / "chains").exists()
        with pytest.raises(UserError, match="budget_tokens"):
            stage(smoke, root, *given(server), "chains.budget_tokens=30000")
        with pytest.raises(UserError, match="other settings"):
            stage(smoke, root, *given(server), "chains.model=typo")
        assert (root / "smoke" / "chains" / "ledger.sqlite").exists()
