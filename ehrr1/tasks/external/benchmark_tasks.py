"""The questions of other benchmarks in our own wording; `catalog` turns them into tasks.

EHRSHOT's keys are its own (Wornow et al., arXiv 2307.02028); its 15th task, chexpert, has several
labels and is left out. The questions about laboratory values ask whether the result is *normal*, as
in the evaluation of EHR-R1: yes corresponds to EHRSHOT's label 0, so that AUROC is the same for
either direction, and AUPRC is not.
"""

DISEASES = ("appendicitis", "cholecystitis", "diverticulitis", "pancreatitis")
"""The four diseases of MIMIC-IV-CDM (Hager et al., Nature Medicine 2024)."""

LAB = "lab_"
"""Prefix of the keys of the tasks in which yes means a normal value."""


def _value(test: str, condition: str, normal: str) -> str:
    return (
        f"The {test} is about to be reported, which may show {condition}: will the value be "
        f"normal, that is, {normal}?"
    )


def _first(disease: str) -> str:
    return f"Will {disease} be diagnosed in this patient for the first time within the next year?"


EHRSHOT_QUESTIONS: dict[str, str] = {
    "guo_los": "This is the day of admission: will the patient stay in hospital for 7 days or "
    "longer?",
    "guo_readmission": "The patient is discharged today: will the patient be admitted to hospital "
    "again within 30 days?",
    "guo_icu": "This is the day of admission: will the patient enter intensive care during this "
    "hospital stay?",
    "lab_anemia": _value("haemoglobin", "anaemia", "120 g/L or above"),
    "lab_hyperkalemia": _value("potassium", "hyperkalaemia", "5.5 mmol/L or below"),
    "lab_hypoglycemia": _value("glucose", "hypoglycaemia", "3.9 mmol/L or above"),
    "lab_hyponatremia": _value("sodium", "hyponatraemia", "135 mmol/L or above"),
    "lab_thrombocytopenia": _value(
        "platelet count", "thrombocytopenia", "150 thousand per microlitre or above"
    ),
    "new_acutemi": _first("an acute myocardial infarction"),
    "new_celiac": _first("coeliac disease"),
    "new_hyperlipidemia": _first("hyperlipidaemia"),
    "new_hypertension": _first("essential hypertension"),
    "new_lupus": _first("lupus"),
    "new_pancan": _first("pancreatic cancer"),
}

CDM_DISEASE, CDM_ICD = "cdm_disease", "cdm_icd"

CDM_QUESTIONS: dict[str, str] = {
    CDM_DISEASE: "Given this record, which of these four is the main disease of this hospital "
    f"stay: {', '.join(DISEASES[:-1])} or {DISEASES[-1]}? Answer with its name alone.",
    CDM_ICD: "Given this record, with which ICD diagnoses will this stay be coded at discharge?",
}
