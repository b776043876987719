"""A run is a folder: its path follows from what is asked, and its files say what made it.

    <output_root>/<name>[/<variant>]/<stage>/
        config.yaml       the resolved configuration
        inputs.json       the runs it read, each with a fingerprint of its result
        environment.txt   Python, platform, processor, its kernels and threads, package versions
        manifest.json     the files that later stages read: sizes, digests (`ehrr1/damage.py`)
        metrics.json      flat, name to number; written last: it marks the run as finished

A finished run is reported and not made again, a half-done one resumes, one made with other
settings is refused with the difference. Exports lie one level deeper (`paths.export_name`).
"""

from ehrr1.runs.catalog import (
    ALWAYS_AGAIN,
    GIVEN,
    INPUTS,
    NOT_COMPARED,
    RESULT_SETTINGS,
    needed,
    optional,
    order,
)
from ehrr1.runs.compare import differences, flat, made_from
from ehrr1.runs.folder import (
    FolderInUseError,
    Run,
    check_inputs,
    finish,
    held,
    joined,
    opened,
    rewrite_metrics,
    rewriting,
)
from ehrr1.runs.paths import data_is_open, folder_of, home, is_finished, metrics_of, short
from ehrr1.runs.privacy import kept, kept_beside, open_up
from ehrr1.runs.search import (
    MissingRunError,
    are_closed,
    find_inputs,
    inputs_of,
    made,
    tokenised_alike,
)

__all__ = [
    "ALWAYS_AGAIN",
    "GIVEN",
    "INPUTS",
    "NOT_COMPARED",
    "RESULT_SETTINGS",
    "FolderInUseError",
    "MissingRunError",
    "Run",
    "are_closed",
    "check_inputs",
    "data_is_open",
    "differences",
    "find_inputs",
    "finish",
    "flat",
    "folder_of",
    "held",
    "home",
    "inputs_of",
    "is_finished",
    "joined",
    "kept",
    "kept_beside",
    "made",
    "made_from",
    "metrics_of",
    "needed",
    "open_up",
    "opened",
    "optional",
    "order",
    "rewrite_metrics",
    "rewriting",
    "short",
    "tokenised_alike",
]
