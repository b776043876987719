"""Do the 95 % intervals cover the truth in 95 % of studies?

    python -m benchmarks.coverage [--studies 1000] [--patients 300] [--replicates 1000]

Each study invents patients with one to four samples each. Samples of a patient share a level, which
their scores know in part: answers about one patient are alike, as in real evaluations. The truth is
known: by the normal distribution for AUROC, else from a study of two million patients.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.measure import machine, markdown, parser, report
from ehrr1.evaluation.bootstrap import Resamples, estimate
from ehrr1.evaluation.metrics import (
    weighted_auprc,
    weighted_auroc,
    weighted_brier,
    weighted_mean,
)

Floats = NDArray[np.float64]
SHARED = 0.5
"""Of the variance, what the samples of a patient have in common."""

GAPS = (1.0, 0.8)
"""How far the mean scores of the two classes are apart, of each model."""


class Study:
    """Two models' probabilities and F1 on the samples of some patients."""

    def __init__(self, generator: np.random.Generator, patients: int):
        size = generator.integers(1, 5, patients)
        self.subjects = np.repeat(np.arange(patients), size)
        n = len(self.subjects)

        def noise() -> Floats:
            own = np.repeat(generator.normal(size=patients), size)
            return np.sqrt(SHARED) * own + np.sqrt(1 - SHARED) * generator.normal(size=n)

        # a patient who is ill once is likelier to be ill again
        self.labels = noise() < norm.ppf(0.25)
        common = noise()
        self.scores = [
            norm.cdf(0.8 * common + 0.6 * noise() + self.labels * gap - 1) for gap in GAPS
        ]
        self.f1 = [
            np.clip(0.5 + 0.25 * (0.8 * common + 0.6 * noise()) + g, 0, 1) for g in (0, 0.03)
        ]

    def values(self, weights: Floats) -> dict[str, Floats]:
        """Metric -> [R], under weights [R, n]."""
        auroc = [weighted_auroc(scores, self.labels, weights) for scores in self.scores]
        f1 = [weighted_mean(values, weights) for values in self.f1]
        return {
            "AUROC": auroc[0],
            "AUROC, difference of two models": auroc[0] - auroc[1],
            "AUPRC": weighted_auprc(self.scores[0], self.labels, weights),
            "Brier": weighted_brier(self.scores[0], self.labels, weights),
            "F1": f1[0],
            "F1, difference of two models": f1[0] - f1[1],
        }


def truth() -> dict[str, float]:
    """The values in a study so large that chance is gone; AUROC by the normal distribution."""
    study = Study(np.random.default_rng(10**6), 2_000_000)
    found = study.values(np.ones((1, len(study.subjects))))
    return {name: float(value[0]) for name, value in found.items()} | exact()


def exact() -> dict[str, float]:
    """Return the exact value: scores of both classes are normal with variance 1 before `cdf`."""
    first, second = (float(norm.cdf(gap / np.sqrt(2))) for gap in GAPS)
    return {"AUROC": first, "AUROC, difference of two models": first - second}


def coverage(studies: int, patients: int, replicates: int) -> dict[str, float]:
    """Metric -> the share of studies whose interval holds the truth."""
    known = truth()
    covered = dict.fromkeys(known, 0)
    for number in range(studies):
        study = Study(np.random.default_rng(number), patients)
        resamples = Resamples.draw(study.subjects, replicates, seed=number)
        for name, values in study.values(resamples.weights(study.subjects)).items():
            _, low, high = estimate(values)
            covered[name] += low <= known[name] <= high
    return {name: count / studies for name, count in covered.items()}


def main() -> None:
    reader = parser(__doc__)
    reader.add_argument("--studies", type=int, default=1000)
    reader.add_argument("--patients", type=int, default=300)
    reader.add_argument("--replicates", type=int, default=1000)
    given = reader.parse_args()
    shares = coverage(given.studies, given.patients, given.replicates)
    rows = [[name, f"{share:.1%}"] for name, share in shares.items()]
    figures = {"machine": machine(), "shares": shares, "studies": given.studies}
    report(given.json, markdown(["metric", "intervals that cover"], rows), figures)


if __name__ == "__main__":
    main()
