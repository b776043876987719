"""Laboratory tests: items, panels, and shifts of their values by the latent state."""

from dataclasses import dataclass

import numpy as np

_TESTS = """
potassium|50971|Potassium|Blood|Chemistry|mEq/L|3.3|5.1|4.2|0.5|1
sodium|50983|Sodium|Blood|Chemistry|mEq/L|133|145|139|3.2|0
creatinine|50912|Creatinine|Blood|Chemistry|mg/dL|0.5|1.2|0.9|0.25|1
chloride|50902|Chloride|Blood|Chemistry|mEq/L|96|108|102|3.5|0
urea|51006|Urea Nitrogen|Blood|Chemistry|mg/dL|6|22|16|5|0
bicarbonate|50882|Bicarbonate|Blood|Chemistry|mEq/L|21|32|26|2.8|0
anion_gap|50868|Anion Gap|Blood|Chemistry|mEq/L|10|18|14|2.2|0
glucose|50931|Glucose|Blood|Chemistry|mg/dL|70|140|112|22|0
hematocrit|51221|Hematocrit|Blood|Hematology|%|32|48|38|4|1
hemoglobin|51222|Hemoglobin|Blood|Hematology|g/dL|10.5|16|12.6|1.4|1
wbc|51301|White Blood Cells|Blood|Hematology|K/uL|4|11|8|2.2|1
platelets|51265|Platelet Count|Blood|Hematology|K/uL|140|400|235|60|0
rdw|51277|RDW|Blood|Hematology|%|10.5|15.5|13.9|1|1
mcv|51250|MCV|Blood|Hematology|fL|82|98|90|4.5|0
inr|51237|INR(PT)|Blood|Hematology||0.9|1.3|1.1|0.14|1
pt|51274|PT|Blood|Hematology|sec|9.4|14|12|1.3|1
ptt|51275|PTT|Blood|Hematology|sec|25|38|31|4.5|1
alt|50861|Alanine Aminotransferase (ALT)|Blood|Chemistry|IU/L|0|45|27|12|0
ast|50878|Asparate Aminotransferase (AST)|Blood|Chemistry|IU/L|0|45|28|12|0
alp|50863|Alkaline Phosphatase|Blood|Chemistry|IU/L|40|130|85|25|0
bilirubin|50885|Bilirubin, Total|Blood|Chemistry|mg/dL|0|1.5|0.8|0.4|1
albumin|50862|Albumin|Blood|Chemistry|g/dL|3.2|5.2|3.9|0.45|1
ldh|50954|Lactate Dehydrogenase (LD)|Blood|Chemistry|IU/L|94|260|190|45|0
ph|50820|pH|Blood|Blood Gas|units|7.33|7.45|7.39|0.035|2
po2|50821|pO2|Blood|Blood Gas|mm Hg|75|120|95|13|0
pco2|50818|pCO2|Blood|Blood Gas|mm Hg|33|47|40|4.5|0
base_excess|50802|Base Excess|Blood|Blood Gas|mEq/L|-3|3|0|1.9|0
lactate|50813|Lactate|Blood|Blood Gas|mmol/L|0.5|2.2|1.4|0.5|1
magnesium|50960|Magnesium|Blood|Chemistry|mg/dL|1.6|2.6|2.0|0.24|1
calcium|50893|Calcium, Total|Blood|Chemistry|mg/dL|8.2|10.3|8.9|0.5|1
phosphate|50970|Phosphate|Blood|Chemistry|mg/dL|2.5|4.7|3.5|0.6|1
troponin|51003|Troponin T|Blood|Chemistry|ng/mL|0|0.05|0.02|0.02|2
ckmb|50911|Creatine Kinase, MB Isoenzyme|Blood|Chemistry|ng/mL|0|10|4.5|3|0
bnp|50963|NTproBNP|Blood|Chemistry|pg/mL|0|450|220|150|0
lipase|50956|Lipase|Blood|Chemistry|IU/L|0|60|34|15|0
amylase|50867|Amylase|Blood|Chemistry|IU/L|0|100|58|22|0
ammonia|50866|Ammonia|Blood|Chemistry|umol/L|10|60|38|13|0
crp|50889|C-Reactive Protein|Blood|Chemistry|mg/L|0|10|5|3|1
esr|51288|Sedimentation Rate|Blood|Hematology|mm/hr|0|20|11|5|0
ldl|50905|Cholesterol, LDL, Calculated|Blood|Chemistry|mg/dL|0|129|95|24|0
cholesterol|50907|Cholesterol, Total|Blood|Chemistry|mg/dL|0|199|165|28|0
triglycerides|51000|Triglycerides|Blood|Chemistry|mg/dL|0|149|105|32|0
neutrophils|51256|Neutrophils|Blood|Hematology|%|34|75|63|8|1
lymphocytes|51244|Lymphocytes|Blood|Hematology|%|15|53|27|7|1
monocytes|51254|Monocytes|Blood|Hematology|%|3|13|7|2|1
eosinophils|51200|Eosinophils|Blood|Hematology|%|0|6|2.5|1.6|1
gravity|51498|Specific Gravity|Urine|Hematology||1.001|1.035|1.015|0.009|3
urine_ph|51491|pH|Urine|Hematology|units|5|8|6.2|0.6|1
urine_wbc|51516|WBC|Urine|Hematology|#/hpf|0|6|3|2|0
urine_rbc|51493|RBC|Urine|Hematology|#/hpf|0|5|2|1.8|0
epithelial|51476|Epithelial Cells|Urine|Hematology|#/hpf|0|4|1.5|1.2|0
"""

PANELS = {
    "chemistry": "potassium sodium creatinine chloride urea bicarbonate anion_gap glucose",
    "blood_count": "hematocrit hemoglobin wbc platelets rdw mcv",
    "coagulation": "inr pt ptt",
    "liver": "alt ast alp bilirubin albumin ammonia",
    "gas": "ph po2 pco2 base_excess lactate",
    "minerals": "magnesium calcium phosphate",
    "cardiac": "troponin ckmb bnp",
    "pancreas": "lipase amylase triglycerides calcium",
    "lipids": "ldl cholesterol triglycerides",
    "inflammation": "crp esr albumin ldh",
    "differential": "neutrophils lymphocytes monocytes eosinophils",
    "urine": "gravity urine_ph urine_wbc urine_rbc epithelial",
    "severity": "lactate albumin bicarbonate urea",
}


@dataclass(frozen=True)
class Test:
    """One row of `d_labitems` with its reference range and usual distribution.

    `low` and `high` bound the reference range; `mean` and `spread` (standard deviation) describe
    the distribution in `unit`; values are rounded to `decimals`.
    """

    key: str
    itemid: int
    label: str
    fluid: str
    category: str
    unit: str
    low: float
    high: float
    mean: float
    spread: float
    decimals: int


def _test(line: str) -> Test:
    key, itemid, label, fluid, category, unit, *numbers = line.split("|")
    low, high, mean, spread, decimals = numbers
    return Test(
        key,
        int(itemid),
        label,
        fluid,
        category,
        unit,
        float(low),
        float(high),
        float(mean),
        float(spread),
        int(decimals),
    )


TESTS = tuple(_test(line) for line in _TESTS.strip().splitlines())
TEST_INDEX = {test.key: position for position, test in enumerate(TESTS)}
PANEL_NAMES = tuple(PANELS)


def panel_members() -> np.ndarray:
    """Return which tests a panel contains; bool, shape (panels, tests)."""
    members = np.zeros((len(PANELS), len(TESTS)), bool)
    for row, names in enumerate(PANELS.values()):
        members[row, [TEST_INDEX[name] for name in names.split()]] = True
    return members


def shift_vector(shifts: dict[str, float]) -> np.ndarray:
    """Return the shift of each test in standard deviations, 0 by default; shape (tests,)."""
    vector = np.zeros(len(TESTS), np.float32)
    for key, shift in shifts.items():
        vector[TEST_INDEX[key]] = shift
    return vector
