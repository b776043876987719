"""MIMIC-IV's dictionary files, which give names to the codes in its tables."""

from ehrr1.records.table_spec import Lookup

LAB_ITEM = (Lookup("hosp", "d_labitems", {"itemid": "itemid"}, "label", "item_name"),)
ICU_ITEM = (Lookup("icu", "d_items", {"itemid": "itemid"}, "label", "item_name"),)
ICD = {"icd_code": "icd_code", "icd_version": "icd_version"}
DIAGNOSIS_TITLE = (Lookup("hosp", "d_icd_diagnoses", ICD, "long_title", "long_title"),)
PROCEDURE_TITLE = (Lookup("hosp", "d_icd_procedures", ICD, "long_title", "long_title"),)
EXAM_NAME = (
    Lookup(
        "note",
        "radiology_detail",
        {"note_id": "note_id"},
        "field_value",
        "exam_name",
        only=("field_name", "exam_name"),
        optional=True,
    ),
)
