"""Chronic conditions of the synthetic patients, which the tables do not name, and their effects.

All names and ICD codes are real; every number is invented.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """A chronic illness and its effects.

    `codes` are (ICD-9, ICD-10); `drugs` are taken at home and in hospital; `labs` are shifts of
    laboratory values by test; `history` is its phrase in notes.
    """

    name: str
    codes: tuple[str, str]
    prevalence: float
    drugs: tuple[str, ...]
    labs: dict[str, float]
    history: str


def split(text: str) -> tuple[str, ...]:
    """Split a text at commas; a semicolon represents a comma within a part."""
    return tuple(part.strip().replace(";", ",") for part in text.split(",") if part.strip())


def _condition(
    name: str, codes: str, prevalence: float, drugs: str, history: str, **labs: float
) -> Condition:
    icd9, icd10 = codes.split("/")
    return Condition(name, (icd9, icd10), prevalence, split(drugs), labs, history)


CONDITIONS = (
    _condition("hypertension", "4019/I10", 0.45, "Lisinopril, Amlodipine", "hypertension"),
    _condition(
        "diabetes",
        "25000/E119",
        0.28,
        "MetFORMIN (Glucophage), Insulin",
        "type 2 diabetes",
        glucose=1.8,
    ),
    _condition(
        "heart_failure",
        "4280/I509",
        0.2,
        "Furosemide, Carvedilol",
        "congestive heart failure",
        bnp=1.6,
        sodium=-0.5,
    ),
    _condition(
        "copd",
        "496/J449",
        0.18,
        "Albuterol Inhaler, Fluticasone Propionate 110mcg",
        "COPD",
        pco2=0.8,
        bicarbonate=0.6,
    ),
    _condition(
        "kidney_disease",
        "5859/N189",
        0.18,
        "sevelamer CARBONATE, Calcitriol",
        "chronic kidney disease",
        creatinine=2.2,
        urea=1.2,
        phosphate=0.8,
    ),
    _condition(
        "atrial_fibrillation",
        "42731/I4891",
        0.18,
        "Warfarin, Metoprolol Tartrate",
        "atrial fibrillation",
        inr=1.6,
        pt=1.6,
    ),
    _condition(
        "coronary_disease", "41401/I2510", 0.22, "Aspirin, Atorvastatin", "coronary artery disease"
    ),
    _condition(
        "cirrhosis",
        "5712/K7460",
        0.1,
        "Spironolactone, Rifaximin",
        "cirrhosis",
        bilirubin=1.8,
        platelets=-1.2,
        inr=0.8,
    ),
    _condition(
        "lung_cancer", "1629/C3490", 0.08, "Dexamethasone", "lung cancer", hemoglobin=-0.8, ldh=0.8
    ),
    _condition("depression", "311/F329", 0.22, "Escitalopram Oxalate", "depression"),
    _condition("hypothyroidism", "2449/E039", 0.15, "Levothyroxine Sodium", "hypothyroidism"),
    _condition(
        "alcohol_dependence",
        "30391/F1020",
        0.14,
        "Thiamine, FoLIC Acid",
        "alcohol use disorder",
        mcv=1.5,
        magnesium=-0.6,
    ),
    _condition("epilepsy", "34590/G40909", 0.08, "LeVETiracetam", "seizure disorder"),
    _condition("reflux", "53081/K219", 0.22, "Omeprazole", "gastroesophageal reflux"),
    _condition("hyperlipidemia", "2724/E785", 0.28, "Simvastatin", "hyperlipidemia"),
)
