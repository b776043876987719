"""The tasks: the questions that are asked about a record, one entry per task.

Adding a task takes one entry here and no code elsewhere (a risk task also needs its rule in
`labels`). Keys are those of EHR-R1 (including its spelling "Tranfer"); the wording of the questions
is our own.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ehrr1.tasks.external.benchmark_tasks import (
    CDM_DISEASE,
    CDM_ICD,
    CDM_QUESTIONS,
    EHRSHOT_QUESTIONS,
)

Kind = Literal["decision", "risk"]
Metric = Literal["f1", "auroc", "accuracy", "rouge"]
Target = Literal["item", "class", "heading", "text", "label"]

YES_NO = "Answer yes or no."
"""The end of every question of a risk task."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question."""

    key: str
    kind: Kind
    anchor_table: str
    """Table whose events (decision) or stays (risk) are predicted; "any" for next_event."""
    metric: Metric
    instruction: str
    target: Target
    """Source of the answer: item names, their classes, a table's heading, a text, or yes/no."""
    target_key: str
    """Column that the release names as the source of the answer."""
    ehr_ins_cap: int
    """Maximum number of samples of the task in EHR-Ins (a cap for training, not for prepare)."""
    in_paper_24: bool = False
    most_items: int | None = None
    """Maximum number of distinct items; events with more are not used."""


def _decision(
    key: str,
    table: str,
    target_key: str,
    instruction: str,
    cap: int,
    *,
    target: Target = "item",
    metric: Metric = "f1",
    paper: bool = True,
    most_items: int | None = None,
) -> Task:
    return Task(
        key, "decision", table, metric, instruction, target, target_key, cap, paper, most_items
    )


def _risk(key: str, table: str, cap: int, instruction: str) -> Task:
    return Task(key, "risk", table, "auroc", f"{instruction} {YES_NO}", "label", "label", cap)


_DECISION = (
    _decision(
        "admissions",
        "admissions",
        "admission_type",
        "Given this record, as which type will the patient's next hospital admission be classified "
        "when it ends?",
        100_000,
    ),
    _decision(
        "transfers",
        "transfers",
        "careunit",
        "Given this record, to which care unit is the patient transferred next?",
        100_000,
    ),
    _decision(
        "services",
        "services",
        "curr_service",
        "Given this record, which hospital service takes over the patient's care next?",
        20_000,
    ),
    _decision(
        "omr",
        "omr",
        "result_name",
        "Given this record, which outpatient measurements are recorded next?",
        20_000,
    ),
    _decision(
        "labevents",
        "labevents",
        "item_name",
        "Given this record, which laboratory tests are taken next?",
        100_000,
    ),
    _decision(
        "microbiologyevents",
        "microbiologyevents",
        "test_name",
        "Given this record, which microbiology tests are taken next?",
        100_000,
    ),
    _decision(
        "radiology",
        "radiology",
        "exam_name",
        "Given this record, which radiology examinations are done next?",
        100_000,
    ),
    _decision(
        "diagnoses_icd",
        "diagnoses_icd",
        "diagnoses",
        "Given this record, with which ICD diagnoses will this stay be coded at discharge?",
        200_000,
    ),
    _decision(
        "diagnoses_ccs",
        "diagnoses_icd",
        "ccs_type",
        "Given this record, into which CCS classes will the discharge diagnoses of this hospital "
        "stay fall?",
        200_000,
        target="class",
    ),
    _decision(
        "diagnosis",
        "diagnosis",
        "icd_title",
        "Given this record, with which ICD diagnoses will this emergency visit be coded?",
        100_000,
    ),
    _decision(
        "diagnosis_ccs",
        "diagnosis",
        "ccs_type",
        "Given this record, into which CCS classes will the diagnoses of this emergency department "
        "visit fall?",
        200_000,
        target="class",
    ),
    _decision(
        "procedures_icd",
        "procedures_icd",
        "procedures",
        "Given this record, which ICD procedures are performed next?",
        200_000,
    ),
    _decision(
        "procedures_ccs",
        "procedures_icd",
        "ccs_type",
        "Given this record, into which CCS classes do the next procedures fall?",
        200_000,
        target="class",
    ),
    _decision(
        "poe",
        "poe",
        "order_type",
        "Given this record, which types of provider orders are entered next?",
        100_000,
    ),
    _decision(
        "emar",
        "emar",
        "medication",
        "Given this record, which medications are charted as administered next?",
        100_000,
    ),
    _decision(
        "prescriptions",
        "prescriptions",
        "drug",
        "Given this record, which drugs are prescribed next?",
        200_000,
    ),
    _decision(
        "prescriptions_atc",
        "prescriptions",
        "atc_type",
        "Given this record, to which ATC classes do the drugs prescribed next belong?",
        200_000,
        target="class",
    ),
    _decision(
        "medrecon",
        "medrecon",
        "name",
        "Given this record, which home medications are reconciled next in the emergency room?",
        200_000,
    ),
    _decision(
        "medrecon_atc",
        "medrecon",
        "atc_type",
        "Given this record, to which ATC classes do the home medications reconciled next in the "
        "emergency department belong?",
        200_000,
        target="class",
    ),
    _decision(
        "ingredientevents",
        "ingredientevents",
        "item_name",
        "Given this record, which ingredients of intake are charted next in the intensive care "
        "unit?",
        20_000,
    ),
    _decision(
        "datetimeevents",
        "datetimeevents",
        "item_name",
        "Given this record, for which items is a date or time charted next in the intensive care "
        "unit?",
        20_000,
    ),
    _decision(
        "procedureevents",
        "procedureevents",
        "item_name",
        "Given this record, which bedside procedures start next in the intensive care unit?",
        20_000,
    ),
    _decision(
        "inputevents",
        "inputevents",
        "item_name",
        "Given this record, which infusions, boluses or feeds start next in the intensive care "
        "unit?",
        20_000,
    ),
    _decision(
        "outputevents",
        "outputevents",
        "item_name",
        "Given this record, which outputs are measured next in the intensive care unit?",
        20_000,
    ),
    _decision(
        "pyxis",
        "pyxis",
        "name",
        "Given this record, which drugs are dispensed next in the emergency department?",
        200_000,
        paper=False,
    ),
    _decision(
        "chartevents",
        "chartevents",
        "item_name",
        "Given this record, which observations are charted next in the intensive care unit?",
        200_000,
        paper=False,
        most_items=9,
    ),
    _decision(
        "next_event",
        "any",
        "event",
        "Given this record, what kind of event comes next?",
        100_000,
        target="heading",
        metric="accuracy",
        paper=False,
    ),
    _decision(
        "discharge",
        "discharge",
        "text",
        "Given this record, write the discharge note of this hospital stay.",
        0,
        target="text",
        metric="rouge",
        paper=False,
    ),
)

_RISK = (
    _risk(
        "ED_Hospitalization",
        "edstays",
        40_000,
        "Will this emergency department visit lead to a hospital admission?",
    ),
    _risk(
        "ED_Inpatient_Mortality",
        "edstays",
        40_000,
        "Will the patient of this emergency department visit die in hospital before being "
        "discharged?",
    ),
    _risk(
        "ED_ICU_Tranfer_12hour",
        "edstays",
        40_000,
        "Will the patient enter an intensive care unit no later than 12 hours after leaving the "
        "emergency department?",
    ),
    _risk(
        "ED_Reattendance_3day",
        "edstays",
        40_000,
        "Will the patient come back to the emergency department within 72 hours of going home?",
    ),
    _risk(
        "ED_Critical_Outcomes",
        "edstays",
        40_000,
        "Will this emergency department visit end critically, that is, in death in hospital or in "
        "intensive care within 12 hours of leaving the department?",
    ),
    _risk(
        "Readmission_30day",
        "admissions",
        40_000,
        "Will the patient be admitted to hospital again within 30 days of this discharge?",
    ),
    _risk(
        "Readmission_60day",
        "admissions",
        40_000,
        "Will the patient be admitted to hospital again within 60 days of this discharge?",
    ),
    _risk(
        "Inpatient_Mortality",
        "admissions",
        40_000,
        "One day into this hospital stay: will the patient die before being discharged?",
    ),
    _risk(
        "LengthOfStay_3day",
        "admissions",
        40_000,
        "One day into this hospital stay: will it last longer than 3 days in all?",
    ),
    _risk(
        "LengthOfStay_7day",
        "admissions",
        40_000,
        "One day into this hospital stay: will it last longer than 7 days in all?",
    ),
    *(
        _risk(
            f"ICU_Mortality_{days}day",
            "icustays",
            40_000 if days == 7 else 20_000,
            "One day into this intensive care stay: will the patient die within the next "
            f"{24 * days if days == 1 else days} {'hours' if days == 1 else 'days'}?",
        )
        for days in (1, 2, 3, 7, 14)
    ),
    *(
        _risk(
            f"ICU_Stay_{days}day",
            "icustays",
            40_000,
            f"One day into this intensive care stay: will it last {days} days or longer in all?",
        )
        for days in (7, 14)
    ),
    _risk(
        "ICU_Readmission",
        "icustays",
        40_000,
        "One day into this intensive care stay: will the patient, once moved out, return to "
        "intensive care during the same hospital stay?",
    ),
)

TASKS: dict[str, Task] = {task.key: task for task in (*_DECISION, *_RISK)}
"""All tasks of the project: 45 of the release's catalogue, and `discharge`."""

ONE_ITEM = ("admissions", "transfers", "services", "next_event", CDM_DISEASE)
"""Decision tasks whose answer is one item."""

BENCHMARK_TASKS: dict[str, Task] = {
    **{key: _risk(key, "any", 0, text) for key, text in EHRSHOT_QUESTIONS.items()},
    **{
        key: _decision(key, "any", source, CDM_QUESTIONS[key], 0, paper=False)
        for key, source in ((CDM_DISEASE, "disease"), (CDM_ICD, "icd_diagnosis"))
    },
}
"""Tasks of other benchmarks, whose samples are read from files and used for evaluation only."""

NAMED_TASKS: dict[str, Task] = TASKS | BENCHMARK_TASKS
"""Tasks whose question is known without a prepared folder."""

OWN = "own"
"""The task of the user's own labels (`data.own_labels`)."""

ALL_TASKS: dict[str, Task] = NAMED_TASKS | {
    OWN: _risk(OWN, "any", 40_000, "Will the outcome that the user has labelled happen?")
}
"""With the user's own task. Its question here is never asked: `data.own_question` replaces it."""


def telling_time(question: str, time: datetime) -> str:
    """Return the question preceded by the prediction time (`data.tell_time`)."""
    return f"It is {time:%Y-%m-%d %H:%M:%S}. {question}"


SUITES: dict[str, tuple[str, ...]] = {
    "paper42": tuple(key for key, task in TASKS.items() if task.in_paper_24 or task.kind == "risk"),
    "release45": tuple(key for key in TASKS if key != "discharge"),
    "ehrshot": tuple(EHRSHOT_QUESTIONS),
    "mimiciv_cdm": tuple(CDM_QUESTIONS),
}
"""Named sets of tasks: the paper's 24 decision and 18 risk tasks; the released 45; benchmarks."""
