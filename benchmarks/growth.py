"""Measure how time and memory of stage=prepare grow with the number of patients.

    python -m benchmarks.growth FOLDER [--sizes 1000 4000 16000] [--runs 5] [--json FILE]

Synthetic hospitals (`ehrr1.synthetic.hospital.write_hospital`, seed 0) of so many patients are
written to FOLDER/<patients> once and used again. Whole processes of `python run.py stage=prepare
data=mimic data.root=FOLDER/<patients>` are timed in turn, imports included; a first round is not
counted.

The full MIMIC-IV 3.1 is extrapolated by rows: the straight line through the two largest hospitals'
(rows read, median seconds), prolonged to the 798 million rows of the tables that we read: hosp/ and
icu/ by mimic-code's validation counts for 3.1 (432,997,491 of chartevents), ingredientevents
14,253,480, ed/ 2.2 7,887,229. It supposes the same machine, a disk that keeps pace, and the
synthetic hospitals' mixture of tables and samples per row; notes are left out.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import (
    COST_COLUMNS,
    ROOT,
    Cost,
    cost_row,
    interleaved,
    machine,
    markdown,
    median_ratio,
    parser,
    report,
    run,
)

WRITE = """
import sys
from pathlib import Path
from ehrr1.synthetic.hospital import write_hospital
write_hospital(Path(sys.argv[1]), int(sys.argv[2]), seed=0)
"""

FULL_ROWS = {
    "admissions": 546_028,
    "chartevents": 432_997_491,
    "datetimeevents": 9_979_761,
    "diagnoses_icd": 6_364_488,
    "drgcodes": 761_856,
    "emar": 42_808_593,
    "hcpcsevents": 186_074,
    "icustays": 94_458,
    "ingredientevents": 14_253_480,
    "inputevents": 10_953_713,
    "labevents": 158_374_764,
    "microbiologyevents": 3_988_224,
    "omr": 7_753_027,
    "outputevents": 5_359_395,
    "patients": 364_627,
    "pharmacy": 17_847_567,
    "poe": 52_212_109,
    "prescriptions": 20_292_611,
    "procedureevents": 808_706,
    "procedures_icd": 859_655,
    "services": 593_071,
    "transfers": 2_413_581,
    "ed/ 2.2": 425_087 + 899_050 + 2_987_342 + 1_586_053 + 425_087 + 1_564_610,
}
"""Rows of MIMIC-IV 3.1 and MIMIC-IV-ED 2.2, by table."""

PUBLISHED = "32 min, 20.3 GB (MEDS-Extract 0.7.0 with MIMIC-IV-MEDS, 20 cores, hosp/ and icu/)"


class Growth:
    """Runs stage=prepare on hospitals of several sizes."""

    def __init__(self, folder: Path, work: Path):
        self.folder, self.work = folder.resolve(), work
        self.rows: dict[int, int] = {}

    def write(self, patients: int) -> None:
        """Write the hospital, if it is not there: a process of its own keeps this one small."""
        target = self.folder / str(patients)
        if not target.exists():
            command = [sys.executable, "-c", WRITE, str(target), str(patients)]
            subprocess.run(command, cwd=ROOT, check=True)

    def prepare(self, patients: int, number: int) -> Cost:
        output = self.work / f"{patients}-{number}"
        command = [sys.executable, "run.py", "stage=prepare", "data=mimic"]
        command += [f"data.root={self.folder / str(patients)}", f"output_root={output}"]
        cost = run(command, self.work / "log")
        (metrics,) = output.rglob("metrics.json")
        self.rows[patients] = _rows(metrics)
        shutil.rmtree(output)
        return cost


def _rows(metrics: Path) -> int:
    """Rows read, of all tables."""
    found = json.loads(metrics.read_text(encoding="utf-8"))
    return sum(int(count) for name, count in found.items() if name.startswith("rows/"))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path, metavar="FOLDER", help="holds the hospitals")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    given = arguments.parse_args()
    if len(given.sizes) < 2 or sorted(given.sizes) != given.sizes:
        arguments.error("--sizes: at least two, the smallest first")
    on = machine()
    with tempfile.TemporaryDirectory(dir=given.folder.parent) as work:
        growth = Growth(given.folder, Path(work))
        for patients in given.sizes:
            growth.write(patients)
        costs = interleaved(
            {
                str(patients): lambda number, patients=patients: growth.prepare(patients, number)
                for patients in given.sizes
            },
            given.runs,
        )
    small, large = given.sizes[-2:]
    ratio = median_ratio(costs[str(large)], costs[str(small)], "seconds")
    seconds = {size: median(cost.seconds for cost in costs[str(size)]) for size in (small, large)}
    per_row = (seconds[large] - seconds[small]) / (growth.rows[large] - growth.rows[small])
    full_rows = sum(FULL_ROWS.values())
    full = seconds[large] + per_row * (full_rows - growth.rows[large])
    columns = ["patients", "rows read", *COST_COLUMNS[1:]]
    rows = [
        [f"{size:,}", f"{growth.rows[size]:,}", *cost_row("", costs[str(size)])[1:]]
        for size in given.sizes
    ]
    peak = max(cost.peak_mb for found in costs.values() for cost in found)
    table = f"""{markdown(columns, rows)}

time({large:,}) / time({small:,}), median of rounds: {ratio:.2f} (at most 4.6)
largest peak memory of all runs: {peak / 1000:.2f} GB (at most 3 GB)
full MIMIC-IV 3.1, {full_rows / 1e6:.0f} million rows at {per_row * 1e6:.2f} s a million: \
{full / 60:.0f} min
best published: {PUBLISHED}"""
    figures = {
        "machine": on,
        "costs": costs,
        "rows": growth.rows,
        "ratio": ratio,
        "full_minutes": full / 60,
    }
    report(given.json, table, figures)


if __name__ == "__main__":
    main()
