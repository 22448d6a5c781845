"""Are two variants different? Runs are paired by their seed."""

from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Comparison:
    """A variant's figures over the seeds, and its difference from the base; None where too few seeds say nothing.

    `deviation` is the sample standard deviation. `interval`: of the mean difference, 95 %, by Student's t. `p_value`: of the
    paired two-sided t-test. `adjusted`: by Holm's method for all variants that are compared.
    """

    mean: float
    deviation: Optional[float]
    difference: Optional[float] = None
    interval: Optional[tuple[float, float]] = None
    p_value: Optional[float] = None
    adjusted: Optional[float] = None


def compare(figures: Mapping[str, Sequence[float]], base: str) -> dict[str, Comparison]:
    """Compares all with `base`; each has one figure per seed, in the same order of seeds."""
    reference = np.asarray(figures[base], dtype=float)
    p_values = {}
    for name, values in figures.items():
        differences = np.asarray(values, dtype=float) - reference
        if name != base and len(differences) > 1 and np.ptp(differences):  # equal ones have no spread to test against
            p_values[name] = float(stats.ttest_1samp(differences, 0).pvalue)
    adjusted = dict(zip(p_values, holm(list(p_values.values()))))
    return {name: _comparison(values, reference, name == base, p_values.get(name), adjusted.get(name)) for name, values in figures.items()}


def _comparison(values, reference, is_base: bool, p_value: Optional[float], adjusted: Optional[float]) -> Comparison:
    values = np.asarray(values, dtype=float)
    mean, deviation = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None
    if is_base:
        return Comparison(mean, deviation)
    differences = values - reference
    middle = float(differences.mean())
    interval = None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * differences.std(ddof=1) / len(values) ** 0.5)
        interval = (middle - half, middle + half)
    return Comparison(mean, deviation, middle, interval, p_value, adjusted)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979) of the p-values of one family of tests."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
