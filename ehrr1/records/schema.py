"""MIMIC-IV's tables, one entry per table.

An entry states where the table's file is, when a row happened, when it became *known*, which
columns are shown, and which of them only later. Adding a table takes one entry here and no code
elsewhere. Headings and keys are those of EHR-R1 (including its spelling "Labotary"), so that
records read like those its models were trained on.
"""

from datetime import timedelta

from ehrr1.records.lookups import DIAGNOSIS_TITLE, EXAM_NAME, ICU_ITEM, LAB_ITEM, PROCEDURE_TITLE
from ehrr1.records.table_spec import At, Table


def _same(*columns: str) -> dict[str, tuple[str, ...]]:
    """Return keys that are the names of these columns in title case."""
    return {column.title(): (column,) for column in columns}


CHARTTIME, STARTTIME, STORETIME, INTIME = (
    (At(column),) for column in ("charttime", "starttime", "storetime", "intime")
)
END_OF_STAY = (At("end_of_stay", of="admissions"),)
"""End of the stay by `records.hindsight`; `dischtime` may be a day too early."""
END = (At("endtime"), At("storetime"))

ITEM_NAME: dict[str, tuple[str, ...]] = {"Item_Name": ("item_name",)}
OBSERVATION = frozenset(f"{kind} OBSERVATION" for kind in ("AMBULATORY", "DIRECT", "EU")).union(
    ["OBSERVATION ADMIT"]
)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

VITALS = _same("temperature", "heartrate", "resprate") | {"O2Sat": ("o2sat",)}
VITALS |= _same("sbp", "dbp", "pain")


def _intake(name: str, heading: str) -> Table:
    """Return a table of substances given over an interval.

    The rate is known at once, the amount when the interval is over.
    """
    return Table(
        name,
        "icu",
        heading,
        ITEM_NAME | _same("amount", "amountuom", "rate", "rateuom"),
        event_time=STARTTIME,
        known_at=STORETIME,
        delay=HOUR,
        item=("item_name",),
        lookups=ICU_ITEM,
        late=("Amount", "Amountuom"),
        late_known_at=END,
        stay=True,
        order_by="orderid",
        inpatient=True,
    )


def _charted(name: str, heading: str, keys: dict[str, tuple[str, ...]]) -> Table:
    """Return a table of values that are charted at the bedside and stored soon after."""
    return Table(
        name,
        "icu",
        heading,
        keys,
        event_time=CHARTTIME,
        known_at=STORETIME,
        delay=HOUR,
        item=("item_name",),
        lookups=ICU_ITEM,
        stay=True,
        inpatient=True,
    )


_TABLES = (
    Table(
        "patients",
        "hosp",
        "Patient Demographics",
        _same("anchor_age", "gender"),
        event_time=(),
        context="always",
        hadm=False,
        unique="subject_id",
        extra=("anchor_year", "dod"),
    ),
    Table(
        "admissions",
        "hosp",
        "Admissions",
        # The release extracts Admission_Info from the discharge note: it is unknown at admission.
        _same("admission_type", "admission_location") | {"Admission_Info": ()},
        event_time=(At("admittime"),),
        item=("admission_type",),
        # The type is the final one: these stays begin alike, and some are converted.
        late=("Admission_Type",),
        late_known_at=(At("end_of_stay"),),
        late_items=OBSERVATION,
        until_then="OBSERVATION",
        unique="hadm_id",
        inpatient=True,
        extra=(
            *("dischtime", "deathtime", "discharge_location", "hospital_expire_flag"),
            *("race", "insurance"),
        ),
    ),
    Table(
        "transfers",
        "hosp",
        "Transfers",
        _same("eventtype", "careunit"),
        event_time=INTIME,
        item=("careunit", "eventtype"),
        order_by="transfer_id",
        extra=("outtime",),
    ),
    Table(
        "services",
        "hosp",
        "Services",
        _same("curr_service"),
        event_time=(At("transfertime"),),
        item=("curr_service",),
        inpatient=True,
    ),
    Table(
        "edstays",
        "ed",
        "EDstays",
        _same("gender", "race"),
        event_time=INTIME,
        hadm=False,
        stay=True,
        unique="stay_id",
        extra=("hadm_id", "outtime", "disposition"),
    ),
    Table(
        "triage",
        "ed",
        "Triage",
        VITALS | _same("acuity", "chiefcomplaint"),
        event_time=(At("intime", of="edstays", plus=timedelta(seconds=1)),),
        hadm=False,
        stay=True,
    ),
    Table(
        "medrecon",
        "ed",
        "Medrecon",
        {"Name": ("name",), "Atc Type": ("class",)},
        event_time=CHARTTIME,
        item=("name",),
        classes="atc",
        hadm=False,
        stay=True,
    ),
    Table(
        "pyxis",
        "ed",
        "Pyxis",
        _same("name"),
        event_time=CHARTTIME,
        item=("name",),
        hadm=False,
        stay=True,
        order_by="med_rn",
    ),
    Table(
        "vitalsign",
        "ed",
        "Vitalsign",
        VITALS | _same("rhythm"),
        event_time=CHARTTIME,
        hadm=False,
        stay=True,
    ),
    Table(
        "diagnosis",
        "ed",
        "ED Diagnoses on International Classification of Diseases",
        {"Icd_Title": ("icd_title",), "Ccs Type": ("class",)},
        event_time=(At("outtime", of="edstays"),),
        item=("icd_title",),
        classes="ccs_diagnoses",
        hadm=False,
        stay=True,
        order_by="seq_num",
    ),
    Table(
        "omr",
        "hosp",
        "Online Medical Record",
        _same("result_name", "result_value"),
        event_time=(At("chartdate"),),
        known_at=(At("chartdate", end_of_day=True),),
        item=("result_name",),
        hadm=False,
        order_by="seq_num",
    ),
    Table(
        "poe",
        "hosp",
        "Provider Order Entry",
        _same("order_type", "order_subtype"),
        event_time=(At("ordertime"),),
        item=("order_type",),
        order_by="poe_seq",
        inpatient=True,
    ),
    Table(
        "pharmacy",
        "hosp",
        "Pharmacy",
        _same("medication", "proc_type", "status"),
        event_time=(At("entertime"),),
        context="no",
        item=("medication",),
        order_by="pharmacy_id",
        inpatient=True,
    ),
    Table(
        "prescriptions",
        "hosp",
        "Prescriptions",
        {"Drug": ("drug",), "Atc Type": ("class",)}
        | _same("prod_strength", "dose_val_rx", "dose_unit_rx"),
        event_time=STARTTIME,
        entered=True,
        delay=HOUR,
        item=("drug",),
        classes="atc",
        order_by="pharmacy_id",
        inpatient=True,
    ),
    Table(
        "emar",
        "hosp",
        "Electronic Medicine Administration Record",
        _same("medication", "event_txt"),
        event_time=CHARTTIME,
        known_at=STORETIME,
        delay=timedelta(minutes=15),
        item=("medication",),
        order_by="emar_seq",
    ),
    Table(
        "labevents",
        "hosp",
        "Labotary Test Events",
        # A result in words ("NEG", "HOLD") has no valuenum; the reported text is shown.
        ITEM_NAME
        | {"Valuenum": ("valuenum", "value")}
        | _same("valueuom", "ref_range_lower", "ref_range_upper", "flag", "comments"),
        event_time=CHARTTIME,
        known_at=STORETIME,
        delay=2 * HOUR,
        item=("item_name",),
        lookups=LAB_ITEM,
        order_by="labevent_id",
    ),
    Table(
        "microbiologyevents",
        "hosp",
        "Microbiology Test Events",
        # The release omits the organism, which is the main result of a culture.
        _same("test_name", "dilution_text", "interpretation", "comments", "ab_name", "org_name"),
        event_time=(At("charttime"), At("chartdate")),
        known_at=(At("storetime"), At("storedate", end_of_day=True)),
        delay=3 * DAY,
        item=("test_name",),
        order_by="microevent_id",
    ),
    Table(
        "procedures_icd",
        "hosp",
        "Procedures on International Classification of Diseases",
        {"Procedures": ("long_title",), "Ccs Type": ("class",)},
        event_time=(At("chartdate"),),
        known_at=END_OF_STAY,
        not_before=(At("chartdate", end_of_day=True),),
        context="earlier",
        item=("long_title",),
        classes="ccs_procedures",
        lookups=PROCEDURE_TITLE,
        order_by="seq_num",
    ),
    Table(
        "hcpcsevents",
        "hosp",
        "Healthcare Common Procedure Coding System",
        _same("short_description"),
        event_time=(At("chartdate"),),
        known_at=END_OF_STAY,
        not_before=(At("chartdate", end_of_day=True),),
        context="no",
        item=("short_description",),
        order_by="seq_num",
    ),
    Table(
        "icustays",
        "icu",
        "ICUstays",
        {},
        event_time=INTIME,
        stay=True,
        unique="stay_id",
        inpatient=True,
        extra=("outtime", "first_careunit"),
    ),
    _charted(
        "chartevents",
        "Chart Events",
        ITEM_NAME | {"Valuenum": ("valuenum", "value")} | _same("valueuom", "warning"),
    ),
    _charted("datetimeevents", "Datetime Events", ITEM_NAME),
    _intake("inputevents", "Input Events"),
    _intake("ingredientevents", "Ingredient Events"),
    Table(
        "procedureevents",
        "icu",
        "Procedure Events",
        ITEM_NAME | _same("value", "valueuom", "location", "locationcategory"),
        event_time=STARTTIME,
        known_at=STORETIME,
        delay=DAY,
        item=("item_name",),
        lookups=ICU_ITEM,
        late=("Value", "Valueuom"),
        late_known_at=END,
        stay=True,
        order_by="orderid",
        inpatient=True,
    ),
    _charted("outputevents", "Output Events", ITEM_NAME | _same("value", "valueuom")),
    Table(
        "radiology",
        "note",
        "Radiology Examinations",
        _same("note_type", "exam_name", "text"),
        event_time=CHARTTIME,
        known_at=STORETIME,
        delay=12 * HOUR,
        item=("exam_name",),
        lookups=EXAM_NAME,
        order_by="note_seq",
    ),
    Table(
        "discharge",
        "note",
        "Discharge",
        _same("note_type", "text"),
        event_time=CHARTTIME,
        known_at=STORETIME,
        delay=3 * DAY,
        context="earlier",
        order_by="note_seq",
    ),
    Table(
        "diagnoses_icd",
        "hosp",
        "Diagnoses on International Classification of Diseases",
        {"Diagnoses": ("long_title",), "Ccs Type": ("class",)},
        event_time=END_OF_STAY,
        known_at=END_OF_STAY,
        context="earlier",
        item=("long_title",),
        classes="ccs_diagnoses",
        lookups=DIAGNOSIS_TITLE,
        order_by="seq_num",
    ),
    Table(
        "drgcodes",
        "hosp",
        "Diagnosis Related Groups",
        _same("description"),
        event_time=END_OF_STAY,
        known_at=END_OF_STAY,
        context="no",
        item=("description",),
    ),
)

FOREIGN = Table(
    "meds",
    "meds",
    "Medical Events",
    {"Item": ("item",), "Value": ("value",)},
    event_time=(At("time"),),
    item=("item",),
)
"""Events of MEDS datasets other than MIMIC-IV exports of this project (`records.meds.source`)."""

MIMIC_TABLES = tuple(table.name for table in _TABLES)

TABLES: dict[str, Table] = {table.name: table for table in (*_TABLES, FOREIGN)}
"""All tables, in the order of events that have the same time."""

ORDER: tuple[str, ...] = tuple(TABLES)
"""Names of the tables; the index of a table is its number in the store."""

REQUIRED = ("patients", "admissions")
"""Tables that trajectories need; every other table may be missing."""
