"""Signs: the effects of a latent variable on the record, as pairs of names.

Each slot is a choice between two names of about equal frequency: the first is likelier if the
latent is high, the second if it is low. Both names carry information, the number of rows carries
none, and no single name is decisive. A latent has many slots in different tables, which are
independent given the latent, so that they are jointly far more informative than each of them.
"""

from dataclasses import dataclass

LATENTS = {
    "H": "needs hospital admission",
    "U": "needs intensive care",
    "D": "dying: a higher level is an earlier death",
    "B": "comes back to the emergency department within three days",
    "S": "slow recovery: length of stay",
    "R": "returns to hospital after discharge",
    "Q": "relapses after intensive care: back to the unit in the same stay",
}


@dataclass(frozen=True)
class Slot:
    """A choice in `place` between the names `high` and `low`, by the level of `latent`."""

    place: str
    latent: str
    high: str
    low: str


_SLOTS = """
medrecon H Torsemide / Hydrochlorothiazide
medrecon U Tiotropium Bromide / Montelukast
medrecon U HydrALAZINE / Losartan Potassium
medrecon D Morphine SR (MS Contin) / Ibuprofen
medrecon D Megestrol Acetate / Vitamin D
medrecon B ALPRAZolam / Melatonin
medrecon B Gabapentin / Naproxen
dispensed H Ketorolac / Famotidine
dispensed H Metoclopramide / DiphenhydrAMINE
dispensed U Midazolam / Lorazepam
dispensed U Propofol / Etomidate
dispensed D Calcium Gluconate / Magnesium Sulfate
dispensed D Sodium Bicarbonate / Dextrose 50%
dispensed B OxyCODONE (Immediate Release) / Lidocaine 5% Patch
dispensed B Haloperidol / Meclizine
orders_ed H General Care:Telemetry / General Care:Activity
orders_ed H IV therapy:IV access request / IV therapy:IV access
orders_ed H Radiology:Interventional Radiology / Radiology:Nuclear Med
orders_ed U Critical Care:Hemodynamic monitoring / General Care:Vitals/Monitoring
orders_ed U Respiratory:Mechanical Ventilation / Respiratory:Special Procedures
orders_ed U Blood Bank:Red Cell Product Order / Blood Bank:Platelet Product Order
orders_ed D Consults:Palliative Care/Ethics Support / Consults:Spiritual Care/Chaplaincy
orders_ed D General Care:Code status / General Care:Therapeutic devices/DVT/Prophylaxis
orders_ed D Blood Bank:Frozen Plasma Product Order / Blood Bank:Cryoprecipitate Product Order
orders_ed B Consults:Social Work / Consults:Nursing
orders_ed B General Care:Restraints / General Care:Other
orders_ed B Consults:Psychiatry / Consults:Pulmonary
orders D Consults:Palliative Care/Ethics Support / Consults:Spiritual Care/Chaplaincy
orders D General Care:Code status / General Care:Therapeutic devices/DVT/Prophylaxis
orders D Blood Bank:Frozen Plasma Product Order / Blood Bank:Cryoprecipitate Product Order
orders S Consults:Physical Therapy / Consults:Occupational Therapy
orders S Nutrition:Tubefeeding Order / Nutrition:PO fluid restriction
orders S General Care:Tubes/Drains / General Care:Other
orders S Radiology:MRI / Radiology:Nuclear Med
orders R Consults:Social Work / Consults:Nursing
orders R Consults:Discharge Followup Appointment / Consults:Speech/Swallowing
orders R Cardiology:Echo / Cardiology:Holter Monitor
orders R Nutrition:Nutrition consult / Nutrition:Calorie count
orders Q Respiratory:CPAP for OSA / Respiratory:Extubate
orders Q Consults:Infectious Disease / Consults:Nephrology
drugs D Meropenem / CefePIME
drugs D Hydrocortisone Na Succ. / MethylPREDNISolone Sodium Succ
drugs D Morphine Sulfate / HYDROmorphone (Dilaudid)
drugs D Glycopyrrolate / Scopolamine Patch
drugs S Enoxaparin Sodium / Heparin
drugs S QUEtiapine Fumarate / OLANZapine
drugs S Famotidine / Ranitidine
drugs S Fluconazole / Nystatin Oral Suspension
drugs R Torsemide / Hydrochlorothiazide
drugs R TraZODone / Ramelteon
drugs R Lactulose / Polyethylene Glycol
drugs R Insulin Glargine / GlipiZIDE
drugs R Midodrine / Metoprolol Succinate XL
drugs Q Acetylcysteine 20% / GuaiFENesin
drugs Q Haloperidol / Lorazepam
drugs Q HydrALAZINE / Labetalol
infusions D Norepinephrine / Phenylephrine
infusions D Vasopressin / Dopamine
infusions S Midazolam (Versed) / Dexmedetomidine (Precedex)
infusions S Jevity 1.5 (Full) / Nepro (Full)
infusions Q Bumetanide (Bumex) / Esmolol
infusions Q Ketamine / Propofol
charted D Gag Reflex / Cough Reflex
charted D Capillary Refill R / Capillary Refill L
charted D Family Communication / Support Systems
charted S Braden Mobility / Braden Activity
charted S Edema Amount / Edema Location
charted S Oral Care / Bath
charted Q Sputum Consistency / Sputum Color
charted Q Respiratory Pattern / Respiratory Effort
charted Q Delirium assessment / Daily Wake Up
icu_procedures D Family meeting held / Family updated by RN
icu_procedures D Arterial Line / 20 Gauge
icu_procedures S PICC Line / 22 Gauge
icu_procedures Q Bronchoscopy / Nasal Swab
dated S PICC Line Dressing Change / Midline Dressing Change
dated D Arterial line Tubing Change / 20 Gauge Insertion Date
dated Q Cordis/Introducer Dressing Change / 22 Gauge Insertion Date
outputs S TF Residual / Oral Gastric
outputs D Foley / Void
outputs Q Fecal Bag / Emesis
"""


def _parse(line: str) -> Slot:
    place, latent, words = line.split(" ", 2)
    high, low = words.split(" / ")
    return Slot(place, latent, high, low)


SLOTS = tuple(_parse(line) for line in _SLOTS.strip().splitlines())

# Words in free text (triage complaints): frequent if the latent is high, otherwise rare.
COMPLAINT_WORDS = {
    "H": "Weakness",
    "U": "Transfer",
    "D": "Lethargy",
    "B": "Anxiety",
}

# Laboratory shifts in standard deviations of the test, per unit of the latent.
LATENT_LABS = {
    "H": {"crp": 1.0, "urea": 0.5},
    "U": {"wbc": 1.2, "troponin": 1.2, "po2": -1.0},
    "D": {"lactate": 0.8, "bicarbonate": -0.6, "platelets": -0.6, "base_excess": -0.5},
    "B": {"ast": 0.8, "potassium": -0.7},
    "S": {"albumin": -1.1, "magnesium": -0.8, "phosphate": -0.8, "hemoglobin": -0.6},
    "R": {"urea": 0.9, "rdw": 1.0, "sodium": -0.7, "hematocrit": -0.6},
    "Q": {"pco2": 1.0, "po2": -0.7, "neutrophils": 0.7},
}

# Vital sign shifts in standard deviations of the sign, per unit of the latent.
LATENT_VITALS = {
    "H": {"heart_rate": 0.5, "pain": 0.4},
    "U": {"heart_rate": 0.7, "resp_rate": 0.9, "o2": -0.8},
    "D": {"sbp": -1.1, "dbp": -0.8, "o2": -0.6, "temperature": -0.4},
    "B": {"pain": 1.0},
    "S": {"temperature": 0.5, "resp_rate": 0.4},
    "R": {"sbp": 0.5, "heart_rate": 0.3},
    "Q": {"resp_rate": 0.8, "o2": -0.6},
}


def slots_of(place: str) -> list[Slot]:
    """Return the slots of one place, in the order of the list."""
    return [slot for slot in SLOTS if slot.place == place]
