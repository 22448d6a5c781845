"""Are two variants different? Runs are paired by their seed."""

from dataclasses import dataclass, replace
from typing import Mapping, Optional, Sequence

import numpy as np
from scipy import stats

# Percent points. One image of ImageNet's 50,000 is 0.002; differences that are closer than this are rounded forms of the same one.
RESOLUTION = 1e-6


@dataclass(frozen=True)
class Comparison:
    """A variant's figures over the seeds, and its difference from the base; None where the seeds say nothing of chance: there is
    one, or the difference is the same with each.

    `deviation` is the sample standard deviation. `interval`: of the mean difference, 95 %, by Student's t. `p_value`: of the
    paired two-sided t-test. `adjusted`: by Holm's method for all variants that are compared, tested or not.
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
    found = {
        name: _comparison(np.asarray(values, dtype=float), None if name == base else reference)
        for name, values in figures.items()
    }
    others = [name for name in figures if name != base]
    adjusted = holm([1.0 if found[name].p_value is None else found[name].p_value for name in others])
    for name, value in zip(others, adjusted):
        if found[name].p_value is not None:
            found[name] = replace(found[name], adjusted=value)
    return found


def _comparison(values: np.ndarray, reference: Optional[np.ndarray]) -> Comparison:
    mean, deviation = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None
    if reference is None:
        return Comparison(mean, deviation)
    differences = values - reference
    middle = float(differences.mean())
    if len(values) < 2 or np.ptp(differences) < RESOLUTION:
        return Comparison(mean, deviation, middle)
    half = float(stats.t.ppf(0.975, len(values) - 1) * differences.std(ddof=1) / len(values) ** 0.5)
    return Comparison(
        mean, deviation, middle, (middle - half, middle + half), float(stats.ttest_1samp(differences, 0).pvalue)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979) of the p-values of one family of tests."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
