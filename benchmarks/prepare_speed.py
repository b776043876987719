"""Measure stage=prepare beside MEDS-Extract and beside only reading the files, in turn.

    python -m benchmarks.prepare_speed DIR [--runs 5] [--json FILE] [--meds-env DIR]

DIR holds the MIMIC-IV demo (hosp/, icu/, ed/). Whole processes are timed, imports included, each
with its default number of threads; a first round is not counted (files then lie in the page cache,
byte code is compiled). A ratio is the median over rounds of the two times of the same round.

- prepare: `python run.py stage=prepare experiment=mimic_demo data.root=DIR`: reads the 28 tables of
  hosp/, icu/, ed/ that it knows and 4 dictionaries, writes the store and the index of samples.
- MEDS-Extract 0.7.1 with MIMIC-IV-MEDS 0.2.0, in a virtual environment of its own (`--meds-env`,
  made where it is missing): `meds-extract-run spec=MIMIC-IV do_download=false dataset_key=demo
  input_dir=... output_dir=...`, without parallel workers, as in its published figure. It reads 16
  tables of hosp/ and icu/ (and dictionaries), none of ed/. It stops without the concept maps that
  it would download from mimic-code; it is given maps that hold a header and no rows, which spares
  it their joins.
- floor: `polars.read_csv(path, infer_schema_length=0)` of every file once, one after the other.

At last one run that is not timed says which packages are imported in any of its processes.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import (
    COST_COLUMNS,
    ROOT,
    Cost,
    cost_row,
    environment,
    interleaved,
    machine,
    markdown,
    median_ratio,
    parser,
    report,
    run,
)

REQUIREMENTS = ("MIMIC-IV-MEDS==0.2.0", "MEDS-extract==0.7.1")
CONCEPT_MAPS = (
    *("d_labitems_to_loinc", "meas_chartevents_main", "proc_datetimeevents", "proc_itemid"),
    *("inputevents_to_rxnorm", "outputevents_to_loinc"),
)
CONCEPT_COLUMNS = (
    *("itemid (omop_source_code)", "label", "omop_concept_id", "omop_concept_code"),
    *("omop_concept_name", "omop_vocabulary_id"),
)
FLOOR = """
import sys, polars
for path in sys.argv[1:]:
    polars.read_csv(path, infer_schema_length=0)
"""
HEAVY = ("torch", "transformers")


class Contenders:
    """The three commands; what they write lies in `work` and is removed after each run."""

    def __init__(self, data: Path, meds: Path, work: Path):
        self.data, self.meds, self.work = data, meds, work
        self.files = sorted(path for path in data.glob("*/*.csv*"))
        self.meds_input = work / "meds-input"
        self.meds_input.mkdir()
        for module in data.iterdir():
            if module.is_dir():
                (self.meds_input / module.name).symlink_to(module)
        for name in CONCEPT_MAPS:
            header = ",".join(CONCEPT_COLUMNS) + "\n"
            (self.meds_input / f"{name}.csv").write_text(header, encoding="utf-8")

    def prepare(self, number: int, env: dict[str, str] | None = None) -> Cost:
        output = self.work / f"prepare-{number}"
        command = [sys.executable, "run.py", "stage=prepare", "experiment=mimic_demo"]
        command += [f"data.root={self.data}", f"output_root={output}"]
        return self._run(command, output, env)

    def meds_extract(self, number: int) -> Cost:
        output = self.work / f"meds-{number}"
        command = [self.meds / "meds-extract-run", "spec=MIMIC-IV", "do_download=false"]
        command += ["dataset_key=demo", f"input_dir={self.meds_input}", f"output_dir={output}"]
        # It starts its stages by name: its own environment must come first.
        return self._run(command, output, {"PATH": f"{self.meds}:{os.environ['PATH']}"})

    def floor(self, number: int) -> Cost:
        return run([sys.executable, "-c", FLOOR, *self.files], self.log)

    @property
    def log(self) -> Path:
        return self.work / "log"

    def _run(self, command: list, output: Path, env: dict[str, str] | None) -> Cost:
        cost = run(command, self.log, env)
        shutil.rmtree(output)
        return cost

    def imported(self) -> dict[str, bool]:
        """Return whether stage=prepare, or a process that it starts, imports the heavy packages."""
        self.prepare(0, {"PYTHONPROFILEIMPORTTIME": "1"})
        modules = set()
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("import time:"):
                modules.add(line.rsplit("|", 1)[-1].strip().partition(".")[0])
        if "polars" not in modules:
            raise SystemExit("the import times do not even name polars: they were not recorded")
        return {name: name in modules for name in HEAVY}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", type=Path, metavar="DIR", help="the MIMIC-IV demo")
    arguments.add_argument(
        "--meds-env", type=Path, default=ROOT / "outputs/benchmarks/meds-env", metavar="DIR"
    )
    given = arguments.parse_args()
    meds = environment(given.meds_env, REQUIREMENTS)
    on = machine()
    with tempfile.TemporaryDirectory() as work:
        contenders = Contenders(given.data.resolve(), meds, Path(work))
        costs = interleaved(
            {
                "prepare": contenders.prepare,
                "MEDS-Extract": contenders.meds_extract,
                "floor": contenders.floor,
            },
            given.runs,
        )
        imported = contenders.imported()
    ratios = {
        "time / MEDS-Extract": (
            median_ratio(costs["prepare"], costs["MEDS-Extract"], "seconds"),
            0.2,
        ),
        "peak memory / MEDS-Extract": (
            median_ratio(costs["prepare"], costs["MEDS-Extract"], "peak_mb"),
            1.0,
        ),
        "time / floor": (median_ratio(costs["prepare"], costs["floor"], "seconds"), 5.0),
    }
    table = markdown(COST_COLUMNS, [cost_row(name, found) for name, found in costs.items()])
    table += "\n\n" + markdown(
        ["prepare's", "median ratio", "at most"],
        [[name, f"{ratio:.3f}", str(most)] for name, (ratio, most) in ratios.items()],
    )
    table += "\n\nimported by stage=prepare: " + ", ".join(
        f"{name} {'yes' if there else 'no'}" for name, there in imported.items()
    )
    figures = {"machine": on, "costs": costs, "ratios": ratios, "imported": imported}
    report(given.json, table, figures)


if __name__ == "__main__":
    main()
