"""Commands of the documentation at tiny size: what is smaller, and what their names stand for."""

import shutil
import tarfile
from pathlib import Path

import polars as pl

from tests.test_benchmark_file import risk, row, write
from tests.test_cdm import physionet
from tests.test_ehrshot import assets
from tests.test_graph_leaks import DICTIONARY, RELATIONS
from tests.test_linking import UMLS, write_umls

NUMBERS = {"N": "2", "T": "0.5", "P": "0.9", "K": "5", "k": "1", "X": "0.5"}
"""The letters that stand for numbers."""

WITHOUT_GPUS = dict.fromkeys(
    (
        *("model=1.7b", "model=8b", "model=72b", "trainer=zero3", "trainer.devices=8"),
        *("trainer.nodes=2", "rollout=vllm", "engine=vllm", "engine.tensor_parallel=8"),
        *("engine.gpu_memory_utilization=0.5", "engine=server", "engine.url=URL"),
    )
)
"""What needs GPUs, a licence or a server: these settings are composed, and other tests run them
(docs/release.md)."""

SMALL = {
    "prepare": ["data.tasks=[ICU_Mortality_7day,labevents]"],
    "chains": ["chains.dry_run=true"],
    "adapt": ["adapt.max_steps=1"],
    "reason": ["reason.max_steps=1"],
    "rl": ["rl.steps=1"],
    "eval": [
        *("eval.samples_per_task=1", "eval.bootstrap=5", "eval.untrained_samples_per_task=1"),
        *("eval.max_new_tokens.think=8", "eval.max_new_tokens.direct=8"),
    ],
    "audit": [
        *("audit.raw_patients=1", "audit.text_samples_per_task=2", "audit.rule_samples_per_task=4"),
    ],
    "export": ["export.workers=1"],
    "card": ["card.samples_per_task=2"],
    "infer": ["infer.max_new_tokens.think=8", "infer.max_new_tokens.direct=8"],
}
"""Beside the command, by stage."""


def filled(word: str, places: dict[str, str]) -> str:
    """A word with what its placeholder stands for: any value of a setting (`key=`), or the value
    itself."""
    key, _, value = word.partition("=")
    own = places.get(value, NUMBERS.get(value, value))
    return f"{key}={places.get(f'{key}=', own)}"


def small_places(smoke: Path, root: Path) -> dict[str, str]:
    """Return the files and folders that names stand for, made in `root`."""
    hospital, model = smoke / "prepare" / "hospital", str(smoke / "adapt" / "hf")
    patients = root / "patients.csv"
    table = pl.read_csv(hospital / "hosp" / "patients.csv.gz")
    patients.write_text("subject_id\n" + "\n".join(map(str, table["subject_id"][:10])) + "\n")
    sampling = root / "sampling.json"
    sampling.write_text('{"ICU_Mortality_7day": 20, "labevents": 20}')
    (root / "META").mkdir()
    write_umls(root / "META", UMLS)
    facts = "C0032285||CUI|RO|C0019134||CUI|may_treat|R||OWN|OWN||Y|N||\n"
    (root / "META" / "MRREL.RRF").write_text(facts)
    record = root / "record.md"
    record.write_text("## Patient Demographics [None]\n- Anchor_Age: 61\n")
    return {
        "DIR": str(hospital),
        "META": str(root / "META"),
        "FILE.csv": str(patients),
        "FILE.json": str(sampling),
        "FILE.md": str(record),
        "FILE.jsonl": str(smoke / "chains" / "chains.jsonl"),
        **dict.fromkeys(("MODEL", "FOLDER", "BlueZeros/EHR-R1-8B"), model),
        **dict.fromkeys(("Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"), model),
        "eval=ehrshot": str(assets(root / "ehrshot")),
        "eval=mimiciv_cdm": str(physionet(root / "cdm")),
    }


def places_of_the_pages(smoke: Path, root: Path, released: Path) -> dict[str, str]:
    """Return what `small_places` does, and what only the pages' commands name."""
    places = small_places(smoke, root)
    index = pl.read_parquet(smoke / "prepare" / "index.parquet")
    asked = index.filter(pl.col("task") == "Readmission_30day").row(0, named=True)
    with tarfile.open(root / "release.tar.gz", "w:gz") as archive:
        archive.add(released, "release")
    for name, text in (("concepts.tsv", DICTIONARY), ("relations.tsv", RELATIONS)):
        (root / name).write_text(text)
    labels = index.select("subject_id", "prediction_time").unique().head(40)
    labels = labels.with_columns((pl.int_range(pl.len()) % 3 == 0).alias("boolean_value"))
    labels.write_parquet(root / "labels.parquet")
    question = f'{{"id": "a", "record": "## Stay [None]", "task": "{asked["task"]}"}}'
    rows = [row(1), risk(2, "yes"), risk(3, "no")]
    graph = (smoke / "graph" / "graphs.jsonl").read_text().partition("\n")[0]
    sample = pl.read_ndjson(graph.encode())["sample_id"][0]
    return places | {
        "infer.subject=": str(asked["subject_id"]),
        "infer.time=": str(asked["prediction_time"]),
        "infer.path=": str(write(root / "questions.jsonl", question)),
        "graph.show=": sample,
        "data.shard=": "range(0,2)",
        "adapt.eval_every=": "1",
        "[direct,think,both]": "[think,both]",  # fewer modes and models
        "[reason,rl]": "[rl]",
        **dict.fromkeys(("FILE_OR_FOLDER", "data.path="), str(write(root / "rows.jsonl", *rows))),
        "concepts.dictionary=": str(root / "concepts.tsv"),
        "concepts.relations=": str(root / "relations.tsv"),
        "data.own_labels=": str(root / "labels.parquet"),
        "FILE.tar.gz": str(root / "release.tar.gz"),
        "data=release": str(released),
        "data=ehrshot": places["eval=ehrshot"],
        "data=mimiciv_cdm": places["eval=mimiciv_cdm"],
    }


def copied(folder: Path, to: Path) -> Path:
    """A copy of a finished run, for commands that change it or need a second one."""
    if not to.exists():
        shutil.copytree(folder, to, symlinks=True)
    return to
