"""Questions in the wording of a file of rows, such as those of the EHR-R1 release.

See `data.questions`.
"""

from collections.abc import Mapping
from pathlib import Path

from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.tasks.catalog import NAMED_TASKS, YES_NO
from ehrr1.tasks.external.benchmark import rows_of
from ehrr1.tasks.samples import QUESTIONS


def read_questions(path: Path) -> dict[str, str]:
    """Return task -> question, read from JSONL or CSV rows with `instruction` and a task.

    Raises UserError if there is no such file, no question in it, or two for one task.
    """
    if not path.is_file():
        raise UserError(f"data.questions={path}: there is no such file")
    found: dict[str, str] = {}
    for _, row in rows_of(path):
        if isinstance(row, str):
            continue
        info = row.get("task_info")
        task = info.get("task") if isinstance(info, dict) else None
        question = row.get("instruction")
        if task not in NAMED_TASKS or not isinstance(question, str) or not question.strip():
            continue
        if found.setdefault(task, question) != question:
            raise UserError(
                f"data.questions={path}: the task {task} has two questions, "
                f"'{found[task]}' and '{question}': keep the rows of one"
            )
    if not found:
        raise UserError(
            f"data.questions={path}: no row has an instruction and a task that is known: rows of "
            "the benchmark are needed, as JSONL or CSV"
        )
    return found


def ending_in_yes_no(question: str) -> str:
    """Return the question of a risk task, which says how it is answered."""
    text = question.strip()
    return text if text.lower().rstrip(".?! ").endswith("yes or no") else f"{text} {YES_NO}"


def ready_rows(root: Path) -> Path | None:
    """Return a file of ready rows in the release's folder, whose questions are its own, or None."""
    places = (root, root / "ehr_bench", root / "ehr_ins")
    return next((file for place in places for file in sorted(place.glob("*.jsonl"))), None)


def keep_questions(questions: Mapping[str, str], prepare: Path) -> None:
    """Write the questions to the file from which `samples.Prepared` reads them."""
    write_json(prepare / QUESTIONS, dict(questions))
