"""Sections of the configuration about records, their export and the evidence counted in them."""

from typing import Annotated, Literal

from pydantic import Field

from ehrr1.config.types import (
    Count,
    Natural,
    NotNegative,
    PathText,
    Positive,
    ProperShare,
    Section,
    Share,
    Text,
)


class Labels(Section):
    """The meaning of labels on which releases differ."""

    ed_time: Literal["hour", "triage"]
    died_in_stay: Literal["released", "exclude"]
    planned: Literal["count", "exclude"]
    transfers: Literal["count", "merge"]
    leave_out: list[Literal["against_advice", "hospice", "transfer", "observation"]]


class Paper(Section):
    """Filters of the release, under `data.protocol=paper`."""

    more_than: Natural
    fewer_than: Count
    patient_events: Count | None
    atc: Literal["released", "all"]


class Split(Section):
    """Shares of patients, or files with their ids; all other patients are for training."""

    validation: Share
    test: Share
    validation_subjects: PathText | None
    test_subjects: PathText | None


class Maps(Section):
    """Files with mappings of codes, provided by the user."""

    atc: PathText | None
    ccs_diagnoses: PathText | None
    ccs_procedures: PathText | None


class AnyData(Section):
    """Settings of all kinds of records."""

    root: PathText | None
    subjects: Count | None
    open: bool | None
    protocol: Literal["strict", "paper"]
    window_hours: Positive
    suite: Literal["paper42", "release45"] | None
    tasks: list[str] | None
    patients_per_shard: Count
    shard: Natural | None
    shards: Count
    labels: Labels
    paper: Paper
    subjects_file: PathText | None
    sampling: PathText | None
    force_task_num: Count | ProperShare | None
    balance: Literal["none", "weights", "force"]
    tell_time: bool
    questions: PathText | None
    own_labels: PathText | None = None
    own_question: Text | None = None
    split: Split
    maps: Maps


class SyntheticData(AnyData):
    """A synthetic hospital."""

    name: Literal["synthetic"]


class MimicData(AnyData):
    """MIMIC-IV's tables."""

    name: Literal["mimic"]


class MedsData(AnyData):
    """A MEDS dataset."""

    name: Literal["meds"]


class ReleaseData(AnyData):
    """The EHR-R1 release's folder."""

    name: Literal["release"]


class BenchmarkData(AnyData):
    """Rows with their own context, question and answer."""

    name: Literal["benchmark"]
    path: PathText | None
    train: PathText | None
    balanced: bool


class EhrshotData(AnyData):
    """The EHRSHOT benchmark."""

    name: Literal["ehrshot"]
    max_events: Count
    samples_per_task: Count | None
    balanced: bool


class CdmData(AnyData):
    """The MIMIC-IV-Ext-CDM benchmark."""

    name: Literal["mimiciv_cdm"]
    balanced: bool


Data = Annotated[
    SyntheticData | MimicData | MedsData | ReleaseData | BenchmarkData | EhrshotData | CdmData,
    Field(discriminator="name"),
]


class Export(Section):
    """Settings of `stage=export`."""

    split: Literal["train", "validation", "test", "all"]
    limit: Count | None
    layout: Literal[
        "parquet", "jsonl", "jsonl.zst", "rows", "meds", "release", "lm_eval", "inspect"
    ]
    similar_items: PathText | None
    workers: Count | None


class Audit(Section):
    """Settings of `stage=audit`."""

    text_samples_per_task: Count | None
    raw_patients: Natural | None
    rule_samples_per_task: Natural


class Card(Section):
    """Settings of `stage=card`."""

    samples_per_task: Count
    tokenizer: PathText | None
    max_tokens: Count


class ItemConcepts(Section):
    """Concepts are the names in the record."""

    source: Literal["items"]
    cache: PathText
    workers: Count | None


class OpenConcepts(Section):
    """Concepts of an open dictionary."""

    source: Literal["open"]
    dictionary: PathText | None
    relations: PathText | None
    cache: PathText
    workers: Count | None


class UmlsConcepts(Section):
    """Concepts of the user's licensed UMLS."""

    source: Literal["umls"]
    folder: PathText | None
    threshold: Share
    cache: PathText
    workers: Count | None


Concepts = Annotated[ItemConcepts | OpenConcepts | UmlsConcepts, Field(discriminator="source")]


class Graph(Section):
    """Settings of `stage=graph`."""

    evidence: Literal["cooccurrence", "random", "none"]
    counting: Literal["ours", "release"]
    knowledge: bool
    require_path: bool
    path_rule: Literal["meaningful", "any"]
    max_hops: Count
    max_degree: Count
    max_narrower: Count
    relations: list[str] | None
    samples_per_task: Count | None
    counted_samples_per_task: Count | None
    validation_samples_per_task: Count | None
    min_count: Count
    min_support: Count
    min_lift: NotNegative
    min_lift_low: NotNegative | None
    min_probability: Share | None
    min_routine: Share | None
    candidates: Natural
    weighed_samples_per_task: Count | None
    record_chars: Count | None
    min_npmi: Annotated[float, Field(ge=-1, le=1)] | None
    max_fdr: Annotated[float, Field(gt=0, le=0.4)] | None
    top: Count
    risk: bool
    risk_min_lift: NotNegative
    workers: Count | None
    show: Text | None
