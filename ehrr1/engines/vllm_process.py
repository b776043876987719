"""The child process in which vLLM runs for `VLLMEngine`.

    python -m ehrr1.engines.vllm_process SOCKET

Not in the trainer's process: there vLLM would patch `torch` (on a CPU it turns `set_num_threads`
into nothing), and want the process group that the trainer has made for itself. SOCKET is the file
descriptor of a socket to the trainer. Requests and replies are lines of JSON; the first request is
`Settings`. The process ends with the trainer, however that went.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ehrr1.engines.base import SamplingParams
from ehrr1.engines.vllm_worker import NAME


@dataclass(frozen=True)
class Settings:
    """Settings with which the engine starts."""

    folder: str
    dtype: str
    max_length: int
    """Tokens of prompt and completion together."""
    batch_size: int
    end_id: int
    gpu: bool
    gpu_memory_utilization: float
    kv_cache_gib: float
    tensor_parallel: int
    sleeps: bool
    """Whether the trainer will put the engine to sleep."""


class EngineProcess:
    """vLLM and the requests it serves; one method per request, which yields the replies."""

    def __init__(self, settings: Settings):
        from vllm import LLM

        self.end_id, self.asleep = settings.end_id, False
        place: dict[str, Any] = {"dtype": settings.dtype}
        if settings.gpu:
            # compiled, as vLLM is by itself
            place["gpu_memory_utilization"] = settings.gpu_memory_utilization
            place["enable_sleep_mode"] = settings.sleeps
            place["tensor_parallel_size"] = settings.tensor_parallel
        else:
            place["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
            place["enforce_eager"] = True  # compiling takes longer than small models run
            # after a part of a prompt vLLM takes a seeded draw back, which a CPU's generator cannot
            place["enable_chunked_prefill"] = False
        self.llm: Any = LLM(
            settings.folder,
            max_model_len=settings.max_length,
            max_num_seqs=settings.batch_size,
            enable_prefix_caching=True,  # a prompt is computed once for its group
            skip_tokenizer_init=True,
            generation_config="vllm",
            worker_extension_cls=NAME,
            **place,
        )
        self.llm.collective_rpc("prepare")

    def generate(
        self, prompts: list[list[int]], seeds: list[int], group_size: int, sampling: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield a reply for each finished prompt: its index and its group."""
        given = SamplingParams(**sampling)
        wanted = [self._parameters(given, group_size, seed) for seed in seeds]
        for output in self._outputs(prompts, wanted):
            group = [completion(one) for one in output.outputs]
            yield {"number": int(output.request_id), "group": group}

    def answers(self, prompts: list[list[int]], ids: list[int]) -> Iterator[dict[str, Any]]:
        """Yield a reply for each finished prompt: its index and the log-probabilities of `ids`."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, logprob_token_ids=ids, detokenize=False)
        for output in self._outputs(prompts, [asked] * len(prompts)):
            [told] = output.outputs[0].logprobs
            yield {"number": int(output.request_id), "logprobs": [told[i].logprob for i in ids]}

    def _outputs(self, prompts: list[list[int]], wanted: list[Any]) -> Iterator[Any]:
        """Yield vLLM's output of each finished prompt; its `request_id` is the prompt's index."""
        from vllm.inputs.engine import tokens_input

        engine = self.llm.llm_engine
        # keys and values of older weights; and a run that resumes would have none to begin with
        self.llm.reset_prefix_cache()
        for number, (prompt, parameters) in enumerate(zip(prompts, wanted, strict=True)):
            engine.add_request(str(number), tokens_input(prompt), parameters)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield output

    def sleep(self) -> Iterator[None]:
        """Free the GPU's memory; yield None when done.

        Weights are forgotten (level 2), not copied to the CPU: new ones follow.
        """
        self.llm.sleep(level=2)
        self.asleep = True
        yield None

    def take_weights(self, folder: str) -> Iterator[None]:
        """Load the safetensors in `folder`; yield None when done."""
        self._load("take_weights", folder)
        yield None

    def receive_weights(self, offer: str) -> Iterator[None]:
        """Load the weights that the trainer offers from its memory; yield None when done."""
        self._load("receive_weights", offer)
        yield None

    def _load(self, method: str, source: str) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc(method, args=(source,))

    def wake(self) -> Iterator[None]:
        """Take memory for keys and values; yield None when done.

        After the weights are there and the trainer has freed what it sent them from: loading needs
        room too.
        """
        if self.asleep and not self.llm.wake_up(tags=["kv_cache"]):
            raise RuntimeError("vLLM sleeps on with its weights and its keys and values awake")
        self.asleep = False
        yield None

    def logprobs(self, tokens: list[int]) -> Iterator[list[float]]:
        """Yield the log-probability of each token but the first, at temperature 1."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompt = {"prompt_token_ids": tokens}
        [output] = self.llm.generate([prompt], asked, use_tqdm=False)
        pairs = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
        yield [at[token].logprob for at, token in pairs]

    def _parameters(self, sampling: SamplingParams, group_size: int, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=group_size,
            seed=spread(seed),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            logprobs=0,
            # only the end of a turn ends, whatever else the model's own settings name
            ignore_eos=True,
            stop_token_ids=[self.end_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def spread(seed: int) -> int:
    """Spread seeds apart: vLLM samples the i-th of a group with seed + i."""
    return seed << 20


def completion(output: Any) -> tuple[list[int], list[float], bool]:
    """Return the fields of a `Completion`."""
    pairs = zip(output.logprobs, output.token_ids, strict=True)
    logprobs = [at[token].logprob for at, token in pairs]
    return list(output.token_ids), logprobs, output.finish_reason == "length"


def end_with(parent: int) -> None:
    """Exit this process when its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Serve requests from the socket until the trainer closes it."""
    end_with(os.getppid())
    # the trainer decides what a signal to all processes means: it saves, and then closes us
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    trainer = socket.socket(fileno=int(sys.argv[1]))
    trainer.set_inheritable(False)
    requests, replies = trainer.makefile("r"), trainer.makefile("w")
    engine = EngineProcess(Settings(**json.loads(requests.readline())))
    replies.write("null\n")
    replies.flush()
    work: dict[str, Callable[..., Iterator[Any]]] = {
        "generate": engine.generate,
        "answers": engine.answers,
        "sleep": engine.sleep,
        "take_weights": engine.take_weights,
        "receive_weights": engine.receive_weights,
        "wake": engine.wake,
        "logprobs": engine.logprobs,
    }
    for line in requests:
        request = json.loads(line)
        for reply in work[request.pop("work")](**request):
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
