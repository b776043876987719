"""The inputs of `stage=prepare`: how each kind is opened, split by patient, and asked about.

`data=mimic` and the synthetic hospital are tables, asked about by `data.protocol`; so is our own
export as MEDS. Others' MEDS and the EHR-R1 release bring their own samples.
"""

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import locked, remove
from ehrr1.records.codes import ClassMaps
from ehrr1.records.meds.source import MedsFolder
from ehrr1.records.mimic import MimicFolder
from ehrr1.records.openness import decide
from ehrr1.records.reading import Folder
from ehrr1.records.release import layout
from ehrr1.records.release.archives import part, root_of
from ehrr1.records.release.source import ReleaseFolder
from ehrr1.stages.given_chains import CHAINS, write_given
from ehrr1.tasks import build
from ehrr1.tasks.catalog import OWN
from ehrr1.tasks.index import Index, build_index, joined
from ehrr1.tasks.label_files import label_index, read_labels, read_own_labels
from ehrr1.tasks.labels import LabelOptions
from ehrr1.tasks.paper.index import Limits, paper_index
from ehrr1.tasks.questions import ending_in_yes_no, read_questions, ready_rows
from ehrr1.tasks.release.index import release_index, release_splits
from ehrr1.tasks.release.lists import keep_lists
from ehrr1.tasks.release.rows import items_of, read_release_index
from ehrr1.tasks.samples import INDEX
from ehrr1.tasks.sampling import read_subjects
from ehrr1.tasks.splits import split_patients
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

AnySource = MimicFolder | MedsFolder | ReleaseFolder

CCSR = "ccsr"
"""`data.maps.ccs_diagnoses`: the package's CCSR categories."""

UNPACKED = ".release"
"""Where archives are unpacked, below the folder of `prepare`."""


def opened(cfg: Config, folder: Path) -> AnySource:
    """Return the input with its patients read.

    The synthetic hospital is written first if it is the input.
    """
    source = _opened(cfg, folder)
    brings_samples = isinstance(source, MedsFolder) and not source.own
    source.as_released = cfg.data.protocol == "paper" and not source.listed and not brings_samples
    return source


def _opened(cfg: Config, folder: Path) -> AnySource:
    if cfg.data.name == "meds":
        return MedsFolder(Path(str(cfg.data.root)), cfg.data.patients_per_shard)
    if cfg.data.name == "release":
        work = folder / UNPACKED
        root = root_of(Path(str(cfg.data.root)), work)
        patients = part(root, layout.FOLDER, work)
        return ReleaseFolder(root, patients, cfg.data.patients_per_shard)
    root, maps = hospital(cfg, folder)
    file = cfg.data.subjects_file
    chosen = read_subjects(Path(file)) if file else None
    class_maps = ClassMaps(
        maps,
        ccsr=cfg.data.maps.ccs_diagnoses == CCSR,
        ndc_as_number=cfg.data.protocol == "paper" and cfg.data.paper.atc == "released",
    )
    return MimicFolder(Folder(root), class_maps, cfg.data.patients_per_shard, chosen)


def splits_of(cfg: Config, source: AnySource) -> pl.DataFrame:
    """Return the input's own splits, or patients named or drawn by `data.split`.

    Raises UserError if the names leave a split empty.
    """
    if isinstance(source, MedsFolder) and source.splits is not None:
        return source.splits
    shares, named = cfg.data.split, named_splits(cfg)
    test = 0.0 if isinstance(source, ReleaseFolder) else shares.test
    drawn = split_patients(
        source.subjects, validation=shares.validation, test=test, seed=cfg.seed, named=named
    )
    for split in ("train", *named) if named else ():
        if not (drawn["split"] == split).any():
            raise UserError(
                f"{_files_of(cfg, named)}: of {len(source.subjects):,} patients none is left for "
                f"{split}; name others, or read more (data.subjects_file, data.root)"
            )
    if isinstance(source, ReleaseFolder):
        return release_splits(read_release_index(source.root), source.subjects, drawn)
    return drawn


def named_splits(cfg: Config) -> dict[str, pl.Series]:
    """Split -> the patients that `data.split.<split>_subjects` names.

    Raises UserError for a file that cannot be read and for patients in both.
    """
    named = {
        split: read_subjects(Path(file), f"data.split.{split}_subjects")
        for split in ("validation", "test")
        if (file := cfg.data.split.of(f"{split}_subjects"))
    }
    if len(named) == 2:
        both = named["test"].filter(named["test"].is_in(named["validation"].implode()))
        if len(both):
            raise UserError(
                f"{_files_of(cfg, named)}: {len(both):,} patients stand in both (the first is "
                f"{both[0]}): leave each in one"
            )
    return named


def _files_of(cfg: Config, named: Collection[str]) -> str:
    settings = [f"data.split.{split}_subjects" for split in named]
    files = [cfg.data.split.of(f"{split}_subjects") for split in named]
    return ", ".join(f"{one}={file}" for one, file in zip(settings, files, strict=True))


def index_of(
    cfg: Config, source: AnySource, splits: pl.DataFrame, tasks: Collection[str]
) -> build.BuildIndex:
    """Return the function that makes a shard's samples.

    These are the input's own where it has some, otherwise those of the protocol, and those of the
    user's own labels (`data.own_labels`).
    """
    if cfg.data.own_labels is None:
        return _index_of(cfg, source, splits, tasks)
    window = timedelta(hours=cfg.data.window_hours)
    events = source.files if isinstance(source, MedsFolder) else []
    local = None if events else Path("data.root")
    labels = read_own_labels(Path(cfg.data.own_labels), source.subjects, events, local)
    theirs = _index_of(cfg, source, splits, tasks)

    def index(rows: pl.DataFrame, names: pl.Series, parents: dict[str, pl.DataFrame]) -> Index:
        subjects = parents["patients"]["subject_id"]
        own = label_index(rows, names, parents["admissions"], subjects, splits, window, labels)
        return joined(theirs(rows, names, parents), own)

    return index


def _index_of(
    cfg: Config, source: AnySource, splits: pl.DataFrame, tasks: Collection[str]
) -> build.BuildIndex:
    """Return the function that makes the samples of the input or of the protocol."""
    window = timedelta(hours=cfg.data.window_hours)
    if isinstance(source, ReleaseFolder):
        return by_position(source, splits, tasks)
    if isinstance(source, MedsFolder) and not source.own:
        return by_labels(source, splits, window, tasks)
    given = cfg.data.labels.plain()
    options = LabelOptions(**given | {"leave_out": tuple(given["leave_out"])})
    notes = "discharge" in source.tables
    own = cfg.data.paper
    limits = Limits(own.more_than, own.fewer_than, own.patient_events)

    def index(rows: pl.DataFrame, names: pl.Series, parents: dict[str, pl.DataFrame]) -> Index:
        if cfg.data.protocol == "paper":
            return paper_index(rows, names, parents, splits, tasks, limits, notes=notes)
        return build_index(rows, names, parents, splits, window, tasks, options)

    return index


def questions_of(cfg: Config, source: AnySource) -> dict[str, str]:
    """Return the questions that the user names, or those of the release's ready rows.

    Labels of the user's own come with theirs. The mapping is empty where ours are asked.
    """
    path = Path(cfg.data.questions) if cfg.data.questions else None
    if isinstance(source, ReleaseFolder) and path is None:
        path = ready_rows(source.root)
        told = f"those of {path.name}" if path else "ours; data.questions=FILE of rows asks theirs"
        console.print(f"questions: {told}")
    own = {OWN: ending_in_yes_no(cfg.data.own_question)} if cfg.data.own_question else {}
    return (read_questions(path) if path else {}) | own


def openness_of(cfg: Config, source: AnySource) -> dict[str, Any]:
    """Return whether the records may be shown to anyone, and why."""
    invented = cfg.data.name == "synthetic"
    folder = source.root if isinstance(source, ReleaseFolder) else Path(str(cfg.data.root))
    return decide(cfg.data.open, None if invented else folder, source.subjects)


def close(source: AnySource, folder: Path) -> dict[str, int]:
    """Keep of the input what later stages read, and remove what was only unpacked.

    Returns what was counted, by the name of its metric.
    """
    if not isinstance(source, ReleaseFolder):
        return {}
    keep_lists(source.root, folder, folder / UNPACKED)
    samples = pl.read_parquet(folder / INDEX, columns=["sample_id"], glob=False)["sample_id"]
    chains = write_given(source.root, set(samples), folder / CHAINS)
    remove(folder / UNPACKED)
    return {f"given_chains/{outcome}": count for outcome, count in sorted(chains.items())}


def hospital(cfg: Config, folder: Path) -> tuple[Path, dict[str, Path | None]]:
    """Return the folder of the tables and the class maps.

    The synthetic hospital is written if it is the input.
    """
    maps = {
        kind: Path(path) if path and path != CCSR else None
        for kind, path in cfg.data.maps.plain().items()
    }
    if cfg.data.root is not None:
        return Path(str(cfg.data.root)), maps
    from ehrr1.synthetic.hospital import write_hospital

    root = folder / "hospital"
    with locked(folder / ".hospital.lock"):  # shares may ask for it at the same time
        if not root.exists():
            write_hospital(root, cfg.data.subjects or 0, cfg.seed)
    own = {kind: root / "maps" / f"{name}.csv" for kind, name in layout.MAPS.items()}
    if cfg.data.maps.ccs_diagnoses == CCSR:
        del own["ccs_diagnoses"]
    return root, maps | {kind: maps[kind] or path for kind, path in own.items()}


def by_labels(
    source: MedsFolder, splits: pl.DataFrame, window: timedelta, tasks: Collection[str]
) -> build.BuildIndex:
    """Return the index of a MEDS dataset of others, whose label files are the samples."""
    labels = read_labels(source.root / "task_labels", tasks, source.files)
    if labels.unknown:
        console.print(f"task_labels: no risk tasks of ours: {', '.join(labels.unknown)}")
    elsewhere = (~labels.frame["subject_id"].is_in(source.subjects.implode())).sum()
    if elsewhere:
        console.print(f"task_labels: {elsewhere:,} labels are of patients that data/ has not")
    if labels.frame.is_empty():
        console.print(
            f"{source.root}/task_labels holds no labels of our risk tasks, so they have no "
            "samples: put task_labels/<task>.parquet there (docs/formats.md)"
        )

    def index(rows: pl.DataFrame, names: pl.Series, parents: dict[str, pl.DataFrame]) -> Index:
        subjects = parents["patients"]["subject_id"]
        return label_index(rows, names, parents["admissions"], subjects, splits, window, labels)

    return index


def by_position(
    source: ReleaseFolder, splits: pl.DataFrame, tasks: Collection[str]
) -> build.BuildIndex:
    """Return the index of the release's folder, made from its own index files."""
    asked = read_release_index(source.root)
    answers = asked["answer"].drop_nulls().unique()
    source.names = {item for cell in answers for item in items_of(cell) if item}
    number = source.shards.number(asked["subject_id"])

    def index(rows: pl.DataFrame, names: pl.Series, parents: dict[str, pl.DataFrame]) -> Index:
        subjects = parents["patients"]["subject_id"]
        shard = source.shards.number(subjects)[0]
        own = {s: source.positions[s] for s in subjects.to_list() if s in source.positions}
        return release_index(rows, names, asked.filter(number == shard), splits, own, tasks)

    return index
