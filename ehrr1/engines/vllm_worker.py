"""Our extension of vLLM's worker processes (`worker_extension_cls`), for vLLM 0.32.0."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ehrr1.engines.weight_carriers import Offer
from ehrr1.engines.weight_stream import Receiver
from ehrr1.engines.weight_sync import read

NAME = "ehrr1.engines.vllm_worker.Worker"

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `Worker.prepare` knows the sampler of V1
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of an engine's or server's processes."""

ENVIRONMENT_ON_CPU = {"TORCHDYNAMO_DISABLE": "1"}
"""Saves 20 seconds of compiling, for a function that counts."""

LEAST_TEMPERATURE = 1e-5
"""Below it vLLM takes the likeliest token."""


class Worker:
    """Methods added to vLLM's worker class; called through `collective_rpc`."""

    model_runner: Any
    vllm_config: Any
    device: torch.device
    use_v2_model_runner: bool

    def prepare(self) -> dict[str, str | int]:
        """Return log-probabilities at the sampling temperature; says how the model is served.

        Doing it again does nothing. Raises RuntimeError for the model runner that cannot.
        """
        if self.use_v2_model_runner:
            raise RuntimeError("set VLLM_USE_V2_MODEL_RUNNER=0: ehrr1 knows the sampler of V1")
        sampler = self.model_runner.sampler
        if "forward" not in vars(sampler):
            sampler.forward = at_temperature(sampler.forward)
        return {
            "dtype": str(self.vllm_config.model_config.dtype).removeprefix("torch."),
            "device": self.device.type,
            "workers": self.vllm_config.parallel_config.world_size_across_dp,
        }

    def take_weights(self, folder: str) -> None:
        """Load the safetensors of a folder in place."""
        self._load(read(Path(folder)))

    def receive_weights(self, offer: str) -> None:
        """Load the weights of an `Offer` in place, as they arrive from the trainer's memory."""
        from vllm.utils.nccl import unpinned_nccl_env

        given = Offer(**json.loads(offer))
        place = self.vllm_config.parallel_config
        rank = given.first + place.data_parallel_index * place.world_size + place.rank
        # NCCL waits forever if the trainer lacks what vLLM sets for its own groups
        with unpinned_nccl_env(), Receiver(given, rank, self.device) as trainer:
            self._load(trainer.weights())

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load whole weights in place.

        If that fails, the engine's weights are a mixture, and the next load replaces them.
        """
        from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_processing

        self.prepare()  # this worker may have been started anew since
        model = self.model_runner.get_model()
        try:
            self.model_runner.reload_weights(weights_iterator=weights)
        except BaseException:
            # otherwise tensors of this load would be counted in the next one
            finalize_layerwise_processing(model, self.vllm_config.model_config)
            raise
        if not torch.cuda.is_available():
            pack_heads(model)


def at_temperature(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return vLLM's sampler with the temperature applied before all else.

    Its raw log-probabilities are those at temperature 1, its processed ones those after top-k and
    top-p; learning needs those between the two. With logits that are divided beforehand and a
    temperature of 1 the raw ones are just that, and tokens are drawn as before. The log-
    probabilities of prompts do not pass here and stay at temperature 1.
    """

    def divided(logits: Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        temperature = sampling_metadata.temperature  # [rows]; None where all are greedy
        if temperature is not None:
            drawn = temperature >= LEAST_TEMPERATURE
            logits = logits.float() / temperature.where(drawn, 1.0)[:, None]
            sampling_metadata = replace(sampling_metadata, temperature=drawn.to(temperature.dtype))
        return forward(logits, sampling_metadata, *args, **kwargs)

    return divided


def pack_heads(model: torch.nn.Module) -> None:
    """Pack embeddings and output heads again after new weights are loaded on a CPU.

    On a CPU vLLM multiplies by a packed copy of each matrix and repacks a layer when its weights
    are loaded. A head that is tied to the embeddings receives no weights of its own, so its copy
    would silently stay the old one.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)
