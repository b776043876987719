"""Strategies: how the processes of a run share the work (`trainer.strategy`).

`single` is one process; `ddp` gives each process the whole model; `zero1`, `zero2` and `zero3`
divide optimizer states, gradients and weights by DeepSpeed (Rajbhandari et al., arXiv 1910.02054).
On a CPU the same code runs with gloo, for tests and laptops.
"""

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isfinite
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor

from ehrr1 import parallel
from ehrr1.config.learning import is_zero
from ehrr1.config.training import TrainerSettings
from ehrr1.models.loading import Sharding
from ehrr1.prompts.forest import Forest

if not torch.cuda.is_available():
    # read by the first `import deepspeed`, which comes later than this
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def on_gpu(trainer: TrainerSettings) -> bool:
    """Return whether this run uses GPUs; `trainer.accelerator=auto` takes them if there are any."""
    return trainer.accelerator == "gpu" or (
        trainer.accelerator == "auto" and torch.cuda.is_available()
    )


def environment() -> ClusterEnvironment:
    """Return Lightning's description of the processes, which are started before (`parallel.py`)."""
    return TorchElasticEnvironment() if parallel.size() > 1 else LightningEnvironment()


def make_strategy(trainer: TrainerSettings, clip: float) -> Strategy | str:
    """Return Lightning's strategy for `trainer.strategy`; ZeRO clips gradients to norm `clip`."""
    if is_zero(trainer):
        config = zero_config(trainer, clip)
        kind = DeepSpeed if on_gpu(trainer) else DeepSpeedOnCPU
        return kind(config=config, exclude_frozen_parameters=True)
    if trainer.strategy == "ddp" and parallel.size() > 1:
        return DDPStrategy(process_group_backend="nccl" if on_gpu(trainer) else "gloo")
    return "auto"


def zero_config(trainer: TrainerSettings, clip: float) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Accumulation is 1: the module marks a step's last row, and divides by the step's own weight.
    """
    zero: dict[str, Any] = {
        "stage": int(trainer.strategy[-1]),
        "contiguous_gradients": True,
        "overlap_comm": on_gpu(trainer),
    }
    if trainer.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu(trainer)}
    # the gradients of a step's rows are summed in float32, those of a row computed in bf16; with
    # stage 1 DeepSpeed would take an optimizer whose checkpoints `zero_to_fp32` cannot read
    summed = {"data_types": {"grad_accum_dtype": "fp32"}} if zero["stage"] > 1 else {}
    return summed | {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # its compiled Adam is for GPU machines; on CPU PyTorch's is as fast and needs no compiler
        "zero_force_ds_cpu_optimizer": on_gpu(trainer),
        "gradient_clipping": clip,
        "train_micro_batch_size_per_gpu": 1,
    }


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's DeepSpeed with two changes.

    The model is divided while it is built by `models/loading.py`. Each row by itself passes through
    DeepSpeed's engine (`forward`), not the whole step, as ZeRO-3 adds up gradients only between two
    forward passes of the engine.
    """

    def training_step(self, *given: Any, **named: Any) -> Any:
        """Call the module's own step."""
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*given, **named)

    def model_sharded_context(self) -> Any:
        """Return a context that divides nothing: `models/loading.py` does."""
        self._init_config_if_needed()
        return nullcontext()


class DeepSpeedOnCPU(DeepSpeed):
    """DeepSpeed with gloo on CPUs.

    Lightning allows GPUs only, for three reasons that do not hold here: a check, the numbers of
    devices, and a device number in place of None.
    """

    def __init__(self, **given: Any):
        super().__init__(process_group_backend="gloo", **given)

    def setup_environment(self) -> None:
        """Set up processes without the check for GPUs."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Join the group of processes by gloo."""
        self.set_world_ranks()
        # plain gloo: its own shared-memory operation would be compiled first, for half a minute
        deepspeed_gloo: Any = importlib.import_module("deepspeed.comm.torch")
        deepspeed_gloo.build_shm_op = lambda: None
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(
        self, model: Any, optimizer: Any, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        import deepspeed

        engine, optimizer, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, optimizer


def forward(module: LightningModule, loss: Callable[[Forest], Tensor], forest: Forest) -> Tensor:
    """Return `loss(forest)`, computed through DeepSpeed's engine if there is one."""
    strategy = module.trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        return strategy.deepspeed_engine(loss, forest)
    return loss(forest)


def row(module: LightningModule, last: bool) -> AbstractContextManager[Any]:
    """Return the context of one row's forward and backward pass.

    Processes exchange gradients at a step's last row only.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        strategy.deepspeed_engine.set_gradient_accumulation_boundary(last)
    elif isinstance(strategy, DDPStrategy) and not last:
        model: Any = strategy.model
        return model.no_sync()
    return nullcontext()


def step(module: LightningModule, optimizers: Sequence[Any], clip: float) -> float:
    """Clip the gradient's norm to `clip`, take the optimizers' step, return the norm before.

    No step is taken if the norm is not finite.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        optimizers[0].step()  # clips too, and leaves out the step where the norm is not finite
        return float(strategy.deepspeed_engine.get_global_grad_norm())
    learnt = [p for p in module.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(learnt, clip).item()
    if isfinite(norm):
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            # past Lightning's wrapper, which would count a second step
            optimizer.optimizer.step()
    return norm


def sharding(module: LightningModule) -> Sharding | None:
    """Return the context that divides layers as soon as they are built; None without ZeRO-3."""
    strategy = module.trainer.strategy
    if not (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
        return None
    import deepspeed

    return partial(deepspeed.zero.Init, config_dict_or_path=strategy.config)


def steps_on_cpu(module: LightningModule) -> bool:
    """Return whether the optimizer's step is on the CPU while the model is on a GPU."""
    strategy = module.trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy) or isinstance(strategy, DeepSpeedOnCPU):
        return False
    config: Any = strategy.config
    return "offload_optimizer" in config["zero_optimization"]


def frozen(module: LightningModule, build: Callable[[Sharding | None], Any]) -> Any:
    """Return a second model without gradients, on the module's device.

    Under ZeRO-3 it is divided like the first; `build` builds it in that division.
    """
    model = build(sharding(module)).eval().requires_grad_(False)
    strategy = module.trainer.strategy
    if not (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
        return model.to(module.device)
    import deepspeed

    config: Any = strategy.config
    kept = ("train_micro_batch_size_per_gpu", "bf16")
    engine, *_ = deepspeed.initialize(
        args=argparse.Namespace(device_rank=module.local_rank),
        model=model,
        config={"zero_optimization": {"stage": 3}} | {k: config[k] for k in kept if k in config},
        dist_init_required=False,
    )
    return engine.module  # its layers gather their weights by themselves
