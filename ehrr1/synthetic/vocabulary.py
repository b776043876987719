"""Names and codes of the synthetic hospital's drugs and ICU items.

Names are real, and item ids are those of MIMIC-IV. Drugs: name | ATC class | NDC | strength | dose
| unit | route. Items: itemid | label | unit | category.
"""

from dataclasses import dataclass

# ruff: noqa: E501  (tables: one row per line)
_DRUGS = """
Lisinopril|ACE inhibitors, plain|51079098120|5mg Tablet|5|mg|PO/NG
Amlodipine|Dihydropyridine derivatives|51079045120|5mg Tablet|5|mg|PO
MetFORMIN (Glucophage)|Biguanides|51079097220|500mg Tablet|500|mg|PO
Insulin|Insulins and analogues, fast-acting|00002821501|100 Units / mL - 10 mL V|20|UNIT|SC
Furosemide|Sulfonamides, plain|51079007220|20mg Tablet|20|mg|PO/NG
Carvedilol|Alpha and beta blocking agents|51079093120|12.5mg Tablet|12.5|mg|PO/NG
Albuterol Inhaler|Selective beta-2-adrenoreceptor agonists|00173068254|8 g Inhaler|250|PUFF|IH
Fluticasone Propionate 110mcg|Glucocorticoids, inhaled|00173071920|12g Inhaler|1|PUFF|IH
sevelamer CARBONATE|Drugs for treatment of hyperkalemia and hyperphosphatemia|58468013001|800mg Tablet|800|mg|PO
Calcitriol|Vitamin D and analogues|23155011801|0.25 mcg Capsule|0.25|mcg|PO
Warfarin|Vitamin K antagonists|00056016975|Check with MD for Dose|1|dose|PO/NG
Metoprolol Tartrate|Beta blocking agents, selective|51079025520|25mg Tablet|25|mg|PO
Aspirin|Platelet aggregation inhibitors excl. heparin|00904404073|81mg Tab|81|mg|PO/NG
Atorvastatin|HMG CoA reductase inhibitors|63304082790|10mg Tablet|10|mg|PO/NG
Spironolactone|Aldosterone antagonists|68084020601|25mg Tablet|25|mg|PO/NG
Rifaximin|Intestinal antibiotics|65649030303|550mg Tablet|550|mg|PO/NG
Dexamethasone|Glucocorticoids|00054817625|2mg Tab|2|mg|PO
Escitalopram Oxalate|Selective serotonin reuptake inhibitors|00904642661|10mg Tablet|10|mg|PO/NG
Levothyroxine Sodium|Thyroid hormones|00074434190|25mcg Tablet|25|mcg|PO/NG
Thiamine|Vitamin B1, plain|00904054460|100mg Tablet|100|mg|PO/NG
FoLIC Acid|Folic acid and derivatives|51079010520|1 mg Tab|1|mg|PO/NG
LeVETiracetam|Other antiepileptics|50474059540|500 mg Tablet|500|mg|PO
Omeprazole|Proton pump inhibitors|00093521193|20mg Cap|20|mg|PO
Simvastatin|HMG CoA reductase inhibitors|51079045420|10mg Tablet|10|mg|PO/NG
CefTRIAXone|Third-generation cephalosporins|00409733201|1g Vial|1|gm|IV
Azithromycin|Macrolides|62756051244|500mg Vial|500|mg|IV
Benzonatate|Other cough suppressants|67877010501|100mg Capsule|100|mg|PO
Piperacillin-Tazobactam|Combinations of penicillins, incl. beta-lactamase inhibitors|00206886202|4.5 g Frozen Bag|4.5|g|IV
Vancomycin|Glycopeptide antibacterials|67457033950|500mg Vial|40|mg|IV
Acetaminophen|Anilides|00904198261|325mg Tablet|325|mg|PO/NG
Metolazone|Sulfonamides, plain|51079002420|5 mg Tab|5|mg|PO
Potassium Chloride|Potassium|76439034310|20mEq Packet|20|mEq|PO
PredniSONE|Glucocorticoids|00054872425|5 mg Tablet|5|mg|PO/NG
Albuterol 0.083% Neb Soln|Selective beta-2-adrenoreceptor agonists|49502069724|0.083%;3mL Vial|5|NEB|IH
Levofloxacin|Fluoroquinolones|50458092010|250 mg Tablet|250|mg|PO/NG
Pantoprazole|Proton pump inhibitors|00904647461|40mg Tablet|40|mg|PO
Octreotide Acetate|Somatostatin and analogues|00703331104|100mcg/mL-1mL|100|mcg|SC
CeftriaXONE|Third-generation cephalosporins|00409733201|1g Vial|1|gm|IV
Clopidogrel|Platelet aggregation inhibitors excl. heparin|51079055720|75 mg Tablet|75|mg|PO/NG
Bisacodyl|Contact laxatives|00574705050|10mg Suppository|10|mg|PR
Heparin Sodium|Heparin group|00264958720|25,000 unit Premix Bag|1|UNIT|IV
CefazoLIN|First-generation cephalosporins|00264310311|1g Froz.Bag|1|g|IV
Calcium Carbonate|Calcium|00054812025|1250mg Tablet|1250|mg|PO/NG
Insulin Human Regular|Insulins and analogues, fast-acting|00002821501|100 Units / mL - 10 mL V|100|UNIT|IV DRIP
Magnesium Sulfate|Magnesium|00409672924|2 g / 50 mL Premix Bag|2|gm|IV
Phytonadione|Vitamin K|00187170405|5mg Tablet|5|mg|PO/NG
Ondansetron|Serotonin (5HT3) antagonists|51079052420|4 mg Tablet|4|mg|PO/NG
MetRONIDAZOLE (FLagyl)|Imidazole derivatives|51079012620|500 mg Tab|500|mg|PO/NG
Acetaminophen IV|Anilides|43825010201|1000 mg / 100 mL Vial|1000|mg|IV
Nitroglycerin SL|Organic nitrates|00071041724|0.3mg SL Tablet Bottle|0.3|mg|SL
Diazepam|Benzodiazepine derivatives, anxiolytic|51079028420|2 mg Tab|2|mg|PO/NG
Multivitamins|Multivitamins, plain|00904053061|1 Tablet|1|TAB|PO/NG
Ampicillin-Sulbactam|Combinations of penicillins, incl. beta-lactamase inhibitors|00641611710|3g Vial|3|g|IV
Ibuprofen|Propionic acid derivatives|00904585361|400mg Tablet|400|mg|PO
Torsemide|Sulfonamides, plain|68084053901|20 mg Tab|20|mg|PO/NG
Hydrochlorothiazide|Thiazides, plain|63739012810|25mg Tablet|25|mg|PO/NG
Insulin Glargine|Insulins and analogues, long-acting|60505156728|1 mg Tablet|1|mg|PO/NG
GlipiZIDE|Sulfonylureas|51079081120|10 mg Tab|10|mg|PO/NG
Tiotropium Bromide|Anticholinergics, inhaled|00597007575|18mcg Capsule-Inhalation|1|CAP|IH
Montelukast|Leukotriene receptor antagonists|60505159767|20 mg Tablet|20|mg|PO/NG
HydrALAZINE|Hydrazinophthalazine derivatives|68084044701|10 mg Tab|10|mg|PO/NG
Losartan Potassium|Angiotensin II receptor blockers, plain|68084034601|25mg Tablet|25|mg|PO/NG
Morphine SR (MS Contin)|Natural opium alkaloids|00406831562|15mg Tab|15|mg|PO
Megestrol Acetate|Progestogens|60505163819|500 mg Tablet|500|mg|PO/NG
Vitamin D|Vitamin D and analogues|10432017002|400 Unit Tablet|400|UNIT|PO/NG
ALPRAZolam|Benzodiazepine derivatives, anxiolytic|63739067410|1 mg Tablet|1|mg|PO/NG
Melatonin|Melatonin receptor agonists|60505166858|10 mg Tablet|10|mg|PO/NG
Gabapentin|Other antiepileptics|68084078301|100mg Capsule|100|mg|PO/NG
Naproxen|Propionic acid derivatives|00904553561|250mg Tablet|250|mg|PO
Meropenem|Carbapenems|00310032165|1000mg Vial|1000|mg|IV
CefePIME|Fourth-generation cephalosporins|60505614604|1g Vial|1|g|IV
Hydrocortisone Na Succ.|Glucocorticoids|00009001103|100mg/2mL Vial|100|mg|IV
MethylPREDNISolone Sodium Succ|Glucocorticoids|00009003928|40mg Vial|40|mg|IV
Morphine Sulfate|Natural opium alkaloids|00409189001|2 mg Syringe|2|mg|IV
HYDROmorphone (Dilaudid)|Natural opium alkaloids|42858030125|2mg Tablet|2|mg|PO/NG
Glycopyrrolate|Synthetic anticholinergics, quaternary ammonium compounds|00143968125|0.4 mg / 2 mL Vial|0.2|mg|IV
Scopolamine Patch|Belladonna alkaloids|10019055302|1.5mg Patch|1|PTCH|TD
Enoxaparin Sodium|Heparin group|00075062431|30mg Syringe|30|mg|SC
Heparin|Heparin group|63323026201|5000 Units / mL- 1mL Via|5000|UNIT|SC
QUEtiapine Fumarate|Diazepines and oxazepines|00904627761|25mg Tablet|25|mg|PO/NG
OLANZapine|Diazepines and oxazepines|00002411533|5mg Tablet|5|mg|PO
Famotidine|H2-receptor antagonists|51079096620|20 mg Tablet|20|mg|PO/NG
Ranitidine|H2-receptor antagonists|00904526161|150mg Tablet|150|mg|PO/NG
Fluconazole|Triazole derivatives|68462010340|150mg Tablet|150|mg|PO/NG
Nystatin Oral Suspension|Antibiotics, stomatological|00472500360|500,000 Unit UDCUP|5|mL|PO
TraZODone|Other antidepressants|00904399061|50mg Tablet|50|mg|PO/NG
Ramelteon|Melatonin receptor agonists|64764080510|8 mg Tablet|8|mg|PO/NG
Lactulose|Osmotically acting laxatives|00121457735|20g/30mL Cup|30|mL|PO/NG
Polyethylene Glycol|Osmotically acting laxatives|11523726808|17g Packet|17|g|PO/NG
Midodrine|Adrenergic and dopaminergic agents|51079045320|5 mg Tab|5|mg|PO
Metoprolol Succinate XL|Beta blocking agents, selective|68084065901|25mg XL Tab|25|mg|PO
Acetylcysteine 20%|Mucolytics|00409330803|30mL Vial|3|mL|NEB
GuaiFENesin|Expectorants|00121174410|200 mg / 10 mL UDCup|10|mL|PO/NG
Haloperidol|Butyrophenone derivatives|25021080601|5mg/mL Vial|5|mg|IM
Lorazepam|Benzodiazepine derivatives, anxiolytic|51079038620|1mg Tablet|1|mg|PO/NG
Labetalol|Alpha and beta blocking agents|00185001001|100mg Tablet|100|mg|PO/NG
Docusate Sodium|Softeners, emollients|00904224461|100mg Capsule|100|mg|PO
Senna|Contact laxatives|57896045208|8.6 mg / 4.9 mL Syringe|8.6|mg|PO/NG
Sodium Chloride 0.9%  Flush|Electrolyte solutions|60505199274|10 mg Tablet|10|mg|PO/NG
0.9% Sodium Chloride|Electrolyte solutions|00338004904|1000mL Bag|1000|mL|IV
Lactated Ringers|Electrolyte solutions|00338011704|1000ml Bag|1000|mL|IV
Potassium Chloride (Powder)|Potassium|00456066270|20mEq Packet|20|mEq|PO/NG
Neutra-Phos|Phosphate products|60258000601|Powder Packet|1|PKT|PO/NG
OxyCODONE (Immediate Release)|Natural opium alkaloids|00406055262|5mg Tablet|5|mg|PO/NG
Nicotine Patch|Drugs used in nicotine dependence|00536589488|7mg/24Hr Patch|7|mg/day|TD
"""

_INPUTS = """
225158|NaCl 0.9%|mL|Fluids/Intake
220949|Dextrose 5%|mL|Fluids/Intake
226452|PO Intake|mL|Fluids/Intake
225166|Potassium Chloride|mEq|Medications
222011|Magnesium Sulfate|grams|Medications
223258|Insulin - Regular|units|Medications
221744|Fentanyl|mg|Medications
225975|Heparin Sodium (Prophylaxis)|dose|Medications
225855|Ceftriaxone|dose|Antibiotics
225845|Azithromycin|dose|Antibiotics
225893|Piperacillin/Tazobactam (Zosyn)|dose|Antibiotics
225798|Vancomycin|dose|Antibiotics
221794|Furosemide (Lasix)|mg|Medications
222056|Nitroglycerin|mg|Medications
225879|Levofloxacin|dose|Antibiotics
225910|Pantoprazole (Protonix)|dose|Medications
225155|Octreotide|mg|Medications
225168|Packed Red Blood Cells|mL|Blood Products/Colloids
222042|Nicardipine|mg|Medications
221319|Alteplase (TPA)|mg|Medications
225152|Heparin Sodium|units|Medications
225850|Cefazolin|dose|Antibiotics
228315|Acetaminophen-IV|mg|Medications
220862|Albumin 25%|mL|Blood Products/Colloids
225828|LR|mL|Fluids/Intake
225884|Metronidazole|dose|Antibiotics
221456|Calcium Gluconate|grams|Medications
221385|Lorazepam (Ativan)|mg|Medications
225833|Thiamine|mg|Medications
225843|Ampicillin/Sulbactam (Unasyn)|dose|Antibiotics
221906|Norepinephrine|mg|Medications
221749|Phenylephrine|mg|Medications
222315|Vasopressin|units|Medications
221662|Dopamine|mg|Medications
221668|Midazolam (Versed)|mg|Medications
229420|Dexmedetomidine (Precedex)|mcg|Medications
229011|Jevity 1.5 (Full)|mL|Nutrition - Enteral
228351|Nepro (Full)|mL|Nutrition - Enteral
229639|Bumetanide (Bumex)|mg|Medications
221429|Esmolol|mg|Medications
221712|Ketamine|mg|Medications
222168|Propofol|mg|Medications
"""

_INGREDIENTS = """
220490|Water|mL|Ingredients
227074|IVF ingredient|mL|Ingredients
226060|Calories|Kcal|Ingredients
227075|Oral/Gastric Ingredient|mL|Ingredients
220454|Protein|grams|Ingredients
226221|Enteral Nutrition Ingredient|mL|Ingredients
226509|Blood Ingredient|mL|Ingredients
220364|Carbohydrates|mg|Ingredients - general (Not In Use)
"""

_PROCEDURES = """
225451|Sputum Culture||6-Cultures
225459|Chest X-Ray||5-Imaging
225401|Blood Cultured||6-Cultures
225454|Urine Culture||6-Cultures
225432|Transthoracic Echo||5-Imaging
225794|Non-invasive Ventilation||2-Ventilation
225439|Endoscopy||4-Procedures
224277|18 Gauge||Access Lines - Peripheral
224275|20 Gauge||Access Lines - Peripheral
224274|22 Gauge||Access Lines - Peripheral
221214|CT scan||5-Imaging
223253|Magnetic Resonance Imaging||5-Imaging
225402|EKG||4-Procedures
225430|Cardiac Cath||4-Procedures
225469|OR Received||3-Significant Events
221216|X-ray||5-Imaging
225445|Paracentesis||4-Procedures
221217|Ultrasound||5-Imaging
221223|EEG||4-Procedures
225816|Wound Culture||6-Cultures
225752|Arterial Line||Access Lines - Invasive
224264|PICC Line||Access Lines - Invasive
225792|Invasive Ventilation||2-Ventilation
228125|Family meeting held||7-Communication
228129|Family updated by RN||7-Communication
225400|Bronchoscopy||4-Procedures
225966|Nasal Swab||6-Cultures
229351|Foley Catheter||GI/GU
224263|Multi Lumen||Access Lines - Invasive
229581|Portable Chest X-Ray||5-Imaging
"""

_OUTPUTS = """
226559|Foley|mL|Output
226560|Void|mL|Output
227510|TF Residual|mL|Output
226576|Oral Gastric|mL|Output
226580|Fecal Bag|mL|Output
226571|Emesis|mL|Output
226579|Stool|mL|Output
226588|Chest Tube #1|mL|Output
226599|Jackson Pratt #1|mL|Drains
226561|Condom Cath|mL|Output
226575|Nasogastric|mL|Output
226567|Straight Cath|mL|Output
226619|Pigtail #1|mL|Drains
226582|Ostomy (output)|mL|Output
"""

_DATED = """
225755|18 Gauge Insertion Date||Access Lines - Peripheral
225754|20 Gauge Insertion Date||Access Lines - Peripheral
225753|22 Gauge Insertion Date||Access Lines - Peripheral
224288|Arterial line Insertion Date||Access Lines - Invasive
224290|Arterial line Tubing Change||Access Lines - Invasive
224287|Arterial Line Dressing Change||Access Lines - Invasive
224280|Multi Lumen Insertion Date||Access Lines - Invasive
224279|Multi Lumen Dressing Change||Access Lines - Invasive
224282|Multi Lumen Tubing Change||Access Lines - Invasive
224184|PICC Line Insertion Date||Access Lines - Invasive
224186|PICC Line Dressing Change||Access Lines - Invasive
225345|Midline Dressing Change||Access Lines - Invasive
224295|Cordis/Introducer Dressing Change||Access Lines - Invasive
229352|Foley Cath Insertion Date||GI/GU
225322|Dialysis Catheter Insertion Date||Access Lines - Invasive
227790|Impaired Skin  - Dressing Change #1||Skin - Impairment
228793|Pressure ulcer #1- Dressing change||Skin - Impairment
"""

_CHARTED = """
220045|Heart Rate|bpm|Routine Vital Signs
220210|Respiratory Rate|insp/min|Respiratory
220277|O2 saturation pulseoxymetry|%|Respiratory
220179|Non Invasive Blood Pressure systolic|mmHg|Routine Vital Signs
220180|Non Invasive Blood Pressure diastolic|mmHg|Routine Vital Signs
223761|Temperature Fahrenheit|°F|Routine Vital Signs
220048|Heart Rhythm||Routine Vital Signs
220739|GCS - Eye Opening||Neurological
223900|GCS - Verbal Response||Neurological
223901|GCS - Motor Response||Neurological
223835|Inspired O2 Fraction||Respiratory
220339|PEEP set|cmH2O|Respiratory
224685|Tidal Volume (observed)|mL|Respiratory
224687|Minute Volume|L/min|Respiratory
226732|O2 Delivery Device(s)||Respiratory
223834|O2 Flow|L/min|Respiratory
225664|Glucose finger stick (range 70-100)||Labs
223791|Pain Level||Pain/Sedation
223904|Gag Reflex||Neurological
223905|Cough Reflex||Neurological
223951|Capillary Refill R||Cardiovascular (Pulses)
224308|Capillary Refill L||Cardiovascular (Pulses)
224024|Family Communication||Restraint/Support Systems
224023|Support Systems||Restraint/Support Systems
224057|Braden Mobility||Skin - Assessment
224056|Braden Activity||Skin - Assessment
224862|Edema Amount||Skin - Incisions
224031|Edema Location||Skin - Incisions
226168|Oral Care||Treatments
228393|Bath||Treatments
224369|Sputum Consistency||Respiratory
224370|Sputum Color||Respiratory
223985|Respiratory Pattern||Pulmonary
223990|Respiratory Effort||Pulmonary
228332|Delirium assessment||Pain/Sedation
228298|Daily Wake Up||Pain/Sedation
224003|Abdominal Assessment||GI/GU
224004|Bowel Sounds||GI/GU
224001|Diet Type||GI/GU
223986|RUL Lung Sounds||Pulmonary
223988|LUL Lung Sounds||Pulmonary
227121|Pupil Response Right||Neurological
227288|Pupil Response Left||Neurological
228409|Strength L Arm||Neurological
228412|Strength R Arm||Neurological
224016|Urine Color||GI/GU
224026|Skin Integrity||Skin - Assessment
228399|Facial Droop||Neurological
"""


@dataclass(frozen=True)
class Drug:
    """One product of the formulary; `ndc` has 11 digits, zero-padded."""

    name: str
    atc: str
    ndc: str
    strength: str
    dose: str
    unit: str
    route: str

    @property
    def home_name(self) -> str:
        """Return the name in lower case, as the reconciliation of home drugs writes it."""
        return self.name.split(" (")[0].lower()


@dataclass(frozen=True)
class Item:
    """One row of `d_items`."""

    itemid: int
    label: str
    unit: str
    category: str


def _rows(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.strip().splitlines()]


def _items(text: str) -> tuple[Item, ...]:
    return tuple(Item(int(row[0]), row[1], row[2], row[3]) for row in _rows(text))


DRUGS = tuple(Drug(*row) for row in _rows(_DRUGS))
INPUTS = _items(_INPUTS)
INGREDIENTS = _items(_INGREDIENTS)
PROCEDURES = _items(_PROCEDURES)
OUTPUTS = _items(_OUTPUTS)
DATED = _items(_DATED)
CHARTED = _items(_CHARTED)
