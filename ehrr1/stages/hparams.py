"""TensorBoard's HParams page: what a run was told, and what came of it.

Parameters are the overrides of the command, so that the page has a column for what differs and not
for every setting; metrics are `final/<name>`, without those of single tasks and subgroups.

They lie in a folder of their own, `tb/final`, as the page has a column for each curve of such a
folder. TensorBoard can be told the columns instead, but of many runs that told it takes any one's.
"""

from collections.abc import Collection
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ehrr1.config.names import TRAINING
from ehrr1.config.schema import Config
from ehrr1.runs import Run
from ehrr1.tasks.catalog import ALL_TASKS

NOT_SHOWN = ("stage", "inputs.", "output_root", "overwrite", "experiment", "launcher", "variant")

MAIN = ("risk/auroc/macro", "decision/f1/macro")
"""What is shown of each model, where an evaluation names it."""

LAYOUT = {
    "training": {
        "loss": ["Multiline", [r"train/loss$"]],
        "gradient norm": ["Multiline", [r"train/grad_norm$"]],
        "learning rate": ["Multiline", [r"train/lr$"]],
    },
    "reward": {
        "reward": ["Multiline", [r"train/reward$"]],
        "parts": ["Multiline", [r"train/rewards/.*/mean$"]],
        "groups without signal": ["Multiline", [r"train/frac_reward_zero_std$"]],
        "completion length": ["Multiline", [r"train/completions/mean_length$"]],
    },
    "timing": {
        "seconds": ["Multiline", [r"train/seconds$", r"train/timing/.*"]],
        "tokens a second": ["Multiline", [r"train/tokens_per_second$"]],
    },
    "evaluation": {
        "risk": ["Multiline", [r"(adapt|reason|rl)/risk/(auroc|auprc)/macro$"]],
        "decisions": ["Multiline", [r"(adapt|reason|rl)/decision/f1/macro$"]],
        "loss": ["Multiline", [r"eval/loss$"]],
    },
}
"""TensorBoard's Custom Scalars page: section -> chart -> which curves."""


def write(cfg: Config, run: Run, metrics: dict[str, Any]) -> None:
    """Add parameters and final metrics to `tb/` of a finished run."""
    _, began, ended = hparams({"experiment": cfg.name, **parameters(cfg, run)}, {})
    with SummaryWriter(str(run.folder / "tb" / "final")) as writer:
        for summary in (began, ended):
            writer.file_writer.add_summary(summary)
        writer.add_custom_scalars(LAYOUT)
        for name in columns(metrics):
            writer.add_scalar(f"final/{name}", float(metrics[name]), 0)


def parameters(cfg: Config, run: Run) -> dict[str, bool | str | float | int]:
    """Return the settings of the command line and the seed.

    For an evaluation the seed is that of the model it scores.
    """
    trained = [folder for stage, folder in run.inputs.items() if stage in TRAINING]
    of_model = run.stage == "eval" and trained
    seed = OmegaConf.load(trained[-1] / "config.yaml").seed if of_model else cfg.seed
    found: dict[str, bool | str | float | int] = {"seed": int(seed)}
    if not HydraConfig.initialized():
        return found
    parser = OverridesParser.create()
    for override in parser.parse_overrides(list(HydraConfig.get().overrides.task)):
        if not override.key_or_group.startswith(NOT_SHOWN):
            value: Any = override.value()
            simple = isinstance(value, bool | int | float)
            found[override.key_or_group] = value if simple else str(value)
    return found


def columns(metrics: Collection[str]) -> list[str]:
    """Return the metrics that describe a whole run.

    Those of single tasks, subgroups, ends of intervals, baselines and differences are left out; of
    single models only the main ones stay.
    """
    apart = {"low", "high", "subgroup", "baseline", *ALL_TASKS}
    found = []
    for name in metrics:
        owner, _, rest = name.partition("/")
        own = rest in metrics and rest not in MAIN
        if not (own or "-" in owner or apart & set(name.split("/"))):
            found.append(name)
    return found
