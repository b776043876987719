"""ICD-9 and ICD-10 codes of the synthetic hospital: version | code | CCS class | title.

Classes are those of AHRQ's Clinical Classifications Software, single level; `p` marks procedures.
"""

# ruff: noqa: E501  (titles are spelled as published)
_DIAGNOSES = """
9|4019|98|Unspecified essential hypertension
9|25000|49|Diabetes mellitus without mention of complication, type II or unspecified type, not stated as uncontrolled
9|4280|108|Congestive heart failure, unspecified
9|496|127|Chronic airway obstruction, not elsewhere classified
9|5859|158|Chronic kidney disease, unspecified
9|42731|106|Atrial fibrillation
9|41401|101|Coronary atherosclerosis of native coronary artery
9|5712|660|Alcoholic cirrhosis of liver
9|1629|19|Malignant neoplasm of bronchus and lung, unspecified
9|311|657|Depressive disorder, not elsewhere classified
9|2449|48|Unspecified acquired hypothyroidism
9|30391|660|Other and unspecified alcohol dependence, continuous
9|34590|83|Epilepsy, unspecified, without mention of intractable epilepsy
9|53081|138|Esophageal reflux
9|2724|53|Other and unspecified hyperlipidemia
9|486|122|Pneumonia, organism unspecified
9|51881|131|Acute respiratory failure
9|27651|55|Dehydration
9|2761|55|Hyposmolality and/or hyponatremia
9|0389|2|Unspecified septicemia
9|5990|159|Urinary tract infection, site not specified
9|5849|157|Acute kidney failure, unspecified
9|2762|55|Acidosis
9|42823|108|Acute on chronic systolic heart failure
9|2768|55|Hypopotassemia
9|49121|127|Obstructive chronic bronchitis with (acute) exacerbation
9|V1582|663|Personal history of tobacco use
9|5789|153|Hemorrhage of gastrointestinal tract, unspecified
9|2851|60|Acute posthemorrhagic anemia
9|5780|153|Hematemesis
9|2875|62|Thrombocytopenia, unspecified
9|43491|109|Cerebral artery occlusion, unspecified with cerebral infarction
9|7843|95|Aphasia
9|27800|58|Obesity, unspecified
9|5070|129|Pneumonitis due to inhalation of food or vomitus
9|41071|100|Subendocardial infarction, initial episode of care
9|82021|226|Closed fracture of intertrochanteric section of neck of femur
9|56409|155|Other constipation
9|25013|50|Diabetes with ketoacidosis, type I [juvenile type], uncontrolled
9|5722|151|Hepatic encephalopathy
9|5770|152|Acute pancreatitis
9|5601|145|Paralytic ileus
9|78650|102|Chest pain, unspecified
9|78659|102|Other chest pain
9|29181|660|Alcohol withdrawal
9|6826|197|Cellulitis and abscess of leg, except foot
9|70703|199|Pressure ulcer, lower back
10|I10|98|Essential (primary) hypertension
10|E119|49|Type 2 diabetes mellitus without complications
10|I509|108|Heart failure, unspecified
10|J449|127|Chronic obstructive pulmonary disease, unspecified
10|N189|158|Chronic kidney disease, unspecified
10|I4891|106|Unspecified atrial fibrillation
10|I2510|101|Atherosclerotic heart disease of native coronary artery without angina pectoris
10|K7460|151|Unspecified cirrhosis of liver
10|C3490|19|Malignant neoplasm of unspecified part of unspecified bronchus or lung
10|F329|657|Major depressive disorder, single episode, unspecified
10|E039|48|Hypothyroidism, unspecified
10|F1020|660|Alcohol dependence, uncomplicated
10|G40909|83|Epilepsy, unspecified, not intractable, without status epilepticus
10|K219|138|Gastro-esophageal reflux disease without esophagitis
10|E785|53|Hyperlipidemia, unspecified
10|J189|122|Pneumonia, unspecified organism
10|J9601|131|Acute respiratory failure with hypoxia
10|E860|55|Dehydration
10|E871|55|Hypo-osmolality and hyponatremia
10|A419|2|Sepsis, unspecified organism
10|N390|159|Urinary tract infection, site not specified
10|N179|157|Acute kidney failure, unspecified
10|E872|55|Acidosis
10|I5023|108|Acute on chronic systolic (congestive) heart failure
10|E876|55|Hypokalemia
10|J441|127|Chronic obstructive pulmonary disease with (acute) exacerbation
10|Z87891|663|Personal history of nicotine dependence
10|K922|153|Gastrointestinal hemorrhage, unspecified
10|D62|60|Acute posthemorrhagic anemia
10|K921|153|Melena
10|D696|62|Thrombocytopenia, unspecified
10|I639|109|Cerebral infarction, unspecified
10|R4701|95|Aphasia
10|E669|58|Obesity, unspecified
10|J690|129|Pneumonitis due to inhalation of food and vomit
10|I214|100|Non-ST elevation (NSTEMI) myocardial infarction
10|S72141A|226|Displaced intertrochanteric fracture of right femur, initial encounter for closed fracture
10|K5900|155|Constipation, unspecified
10|E1010|50|Type 1 diabetes mellitus with ketoacidosis without coma
10|K7290|151|Hepatic failure, unspecified without coma
10|K859|152|Acute pancreatitis, unspecified
10|K567|145|Ileus, unspecified
10|R079|102|Chest pain, unspecified
10|R0789|102|Other chest pain
10|F10231|660|Alcohol dependence with withdrawal delirium
10|L03115|197|Cellulitis of right lower limb
10|L89152|199|Pressure ulcer of sacral region, stage 2
"""

_PROCEDURES = """
9|9604|p216|Insertion of endotracheal tube
9|9671|p216|Continuous invasive mechanical ventilation for less than 96 consecutive hours
9|3893|p54|Venous catheterization, not elsewhere classified
9|3891|p54|Arterial catheterization
9|8872|p193|Diagnostic ultrasound of heart
9|9390|p217|Non-invasive mechanical ventilation
9|4513|p70|Other endoscopy of small intestine
9|9904|p222|Transfusion of packed cells
9|8703|p177|Computerized axial tomography of head
9|9915|p223|Parenteral infusion of concentrated nutritional substances
9|3722|p47|Left heart cardiac catheterization
9|3607|p45|Insertion of drug-eluting coronary artery stent(s)
9|7935|p146|Open reduction of fracture with internal fixation, femur
9|8151|p153|Total hip replacement
9|5491|p88|Percutaneous abdominal drainage
9|5110|p82|Endoscopic retrograde cholangiopancreatography [ERCP]
9|9462|p219|Alcohol detoxification
9|8914|p199|Electroencephalogram
9|8622|p169|Excisional debridement of wound, infection, or burn
10|0BH17EZ|p216|Insertion of Endotracheal Airway into Trachea, Via Natural or Artificial Opening
10|5A1945Z|p216|Respiratory Ventilation, 24-96 Consecutive Hours
10|02HV33Z|p54|Insertion of Infusion Device into Superior Vena Cava, Percutaneous Approach
10|B24BZZZ|p193|Ultrasonography of Heart with Aorta
10|5A09357|p217|Assistance with Respiratory Ventilation, Less than 24 Consecutive Hours, Continuous Positive Airway Pressure
10|0DJ08ZZ|p70|Inspection of Upper Intestinal Tract, Via Natural or Artificial Opening Endoscopic
10|30233N1|p222|Transfusion of Nonautologous Red Blood Cells into Peripheral Vein, Percutaneous Approach
10|B020ZZZ|p177|Computerized Tomography (CT Scan) of Brain
10|3E0G76Z|p223|Introduction of Nutritional Substance into Upper GI, Via Natural or Artificial Opening
10|4A023N7|p47|Measurement of Cardiac Sampling and Pressure, Left Heart, Percutaneous Approach
10|027034Z|p45|Dilation of Coronary Artery, One Artery with Drug-eluting Intraluminal Device, Percutaneous Approach
10|0QS636Z|p146|Reposition Right Upper Femur with Intramedullary Internal Fixation Device, Percutaneous Approach
10|0SR9019|p153|Replacement of Right Hip Joint with Metal Synthetic Substitute, Cemented, Open Approach
10|4A133B1|p204|Monitoring of Arterial Pressure, Peripheral, Percutaneous Approach
10|0W9G3ZZ|p88|Drainage of Peritoneal Cavity, Percutaneous Approach
10|0FJB8ZZ|p82|Inspection of Hepatobiliary Duct, Via Natural or Artificial Opening Endoscopic
10|3E0436Z|p223|Introduction of Nutritional Substance into Central Vein, Percutaneous Approach
10|HZ2ZZZZ|p219|Detoxification Services for Substance Abuse Treatment
10|4A10X4Z|p199|Monitoring of Central Nervous Electrical Activity, External Approach
10|0JBQ0ZZ|p169|Excision of Right Foot Subcutaneous Tissue and Fascia, Open Approach
10|05HM33Z|p54|Insertion of Infusion Device into Right Internal Jugular Vein, Percutaneous Approach
"""

_CLASSES = """
2|Septicemia (except in labor)
19|Cancer of bronchus; lung
48|Thyroid disorders
49|Diabetes mellitus without complication
50|Diabetes mellitus with complications
53|Disorders of lipid metabolism
55|Fluid and electrolyte disorders
58|Other nutritional; endocrine; and metabolic disorders
60|Acute posthemorrhagic anemia
62|Coagulation and hemorrhagic disorders
83|Epilepsy; convulsions
95|Other nervous system disorders
98|Essential hypertension
100|Acute myocardial infarction
101|Coronary atherosclerosis and other heart disease
102|Nonspecific chest pain
106|Cardiac dysrhythmias
108|Congestive heart failure; nonhypertensive
109|Acute cerebrovascular disease
122|Pneumonia (except that caused by tuberculosis or sexually transmitted disease)
127|Chronic obstructive pulmonary disease and bronchiectasis
129|Aspiration pneumonitis; food/vomitus
131|Respiratory failure; insufficiency; arrest (adult)
138|Esophageal disorders
145|Intestinal obstruction without hernia
151|Other liver diseases
152|Pancreatic disorders (not diabetes)
153|Gastrointestinal hemorrhage
155|Other gastrointestinal disorders
157|Acute and unspecified renal failure
158|Chronic kidney disease
159|Urinary tract infections
197|Skin and subcutaneous tissue infections
199|Chronic ulcer of skin
226|Fracture of neck of femur (hip)
657|Mood disorders
660|Alcohol-related disorders
663|Screening and history of mental health and substance abuse codes
p216|Respiratory intubation and mechanical ventilation
p54|Other vascular catheterization; not heart
p193|Diagnostic ultrasound of heart (echocardiogram)
p217|Other respiratory therapy
p70|Upper gastrointestinal endoscopy; biopsy
p222|Blood transfusion
p177|Computerized axial tomography (CT) scan head
p223|Enteral and parenteral nutrition
p47|Diagnostic cardiac catheterization; coronary arteriography
p45|Percutaneous transluminal coronary angioplasty (PTCA)
p146|Treatment; fracture or dislocation of hip and femur
p153|Hip replacement; total and partial
p88|Abdominal paracentesis
p82|Endoscopic retrograde cannulation of pancreas (ERCP)
p219|Alcohol and drug rehabilitation/detoxification
p199|Electroencephalogram (EEG)
p169|Debridement of wound; infection or burn
p204|Swan-Ganz catheterization for monitoring
"""


def _rows(text: str) -> list[list[str]]:
    return [line.split("|", 3) for line in text.strip().splitlines()]


def _titles(text: str) -> dict[tuple[str, int], str]:
    return {(code, int(version)): title for version, code, _, title in _rows(text)}


def _classes(text: str) -> dict[tuple[str, int], str]:
    names = dict(line.split("|", 1) for line in _CLASSES.strip().splitlines())
    return {(code, int(version)): names[group] for version, code, group, _ in _rows(text)}


DIAGNOSIS_TITLES = _titles(_DIAGNOSES)
PROCEDURE_TITLES = _titles(_PROCEDURES)
DIAGNOSIS_CLASSES = _classes(_DIAGNOSES)
PROCEDURE_CLASSES = _classes(_PROCEDURES)
