"""The `task_info` of each task in the rows of the EHR-R1 release.

The release's own reader and scorer use these values, and exports of this project write them.
"""

from typing import Any

from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.paper.context import NOTE_HIDDEN

RECALL = frozenset(
    (
        *("procedures_icd", "procedures_ccs", "diagnoses_icd", "diagnoses_ccs"),
        *("diagnosis", "diagnosis_ccs", "prescriptions", "prescriptions_atc"),
        *("medrecon", "medrecon_atc"),
    )
)
"""Tasks whose metric it calls "recall" and scores like that of "em" tasks, by sets of lines."""

METRICS = {"next_event": "acc", "discharge": "rouge"}
TARGET_KEYS = {"transfers": "eventtype", "next_event": "file_name", "discharge": "text"}
CLASSES = {"ccs": "CCS Type", "atc": "ATC Type"}


def task_info(task: str) -> dict[str, Any]:
    """Return `target_key, metric, bid_event` and `task_type` of a task.

    `bid_event` are the tables that the window does not show.
    """
    entry = ALL_TASKS[task]
    if entry.kind == "risk":
        key, metric, kind = None, "aucroc", "risk_prediction"
    else:
        ending = task.rpartition("_")[2]
        key = TARGET_KEYS.get(task) or CLASSES.get(ending) or entry.target_key
        metric = METRICS.get(task) or ("recall" if task in RECALL else "em")
        kind = "decision_making"
    hidden = ["discharge"] if task in NOTE_HIDDEN else []
    return {"target_key": key, "metric": metric, "bid_event": hidden, "task_type": kind}
