"""What came out of one policy, and how two policies compare, seed by seed."""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The measurements of one policy.

    Attributes:
      policy: Its name.
      accuracy: Test accuracy after the last epoch, ``(seeds,)``.
      gains: Mean of ``|gamma|`` over all channels after each epoch, ``(epochs, seeds)``.
      losses: Mean training loss of each epoch, ``(epochs, seeds)``.
      gradients: ``|dL/dgamma|`` at the end, ``(seeds, channels)``.
      effective: ``eta_eff / eta`` of the gammas at the end, ``(seeds, channels)``.
    """

    policy: str
    accuracy: Numbers
    gains: Numbers
    losses: Numbers
    gradients: Numbers
    effective: Numbers


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and its standard error.

    Attributes:
      mean: The mean.
      error: Its standard error.
      seeds: Over how many seeds.
    """

    mean: float
    error: float
    seeds: int

    @property
    def margin(self) -> float:
        """Half of the 95 % interval, by Student's t."""
        return float(scipy.stats.t.ppf(0.975, self.seeds - 1)) * self.error

    def __format__(self, spec: str) -> str:
        """Mean and error, each in the format of one number."""
        return f"{self.mean:{spec}} ± {self.error:{spec.lstrip('+')}}"


def estimate(values: Numbers) -> Estimate:
    """The mean of ``(seeds,)`` values and its standard error; two seeds at least."""
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return Estimate(float(np.mean(values)), float(error), len(values))


def comparison(quantity: str, difference: Estimate, spec: str, unit: str = "") -> str:
    """What the seeds say of a difference, without claiming more than they do.

    Args:
      quantity: What differs, as the beginning of a sentence.
      difference: Mean and standard error of the differences, taken seed by seed.
      spec: The format of one number.
      unit: What to write after the numbers.

    Returns:
      One sentence: the difference, whether it is larger than its standard error, and whether its
      95 % interval holds 0.
    """
    size = abs(difference.mean)
    if size <= difference.error:
        verdict = "not larger than its standard error: these runs do not tell the policies apart"
    elif size <= difference.margin:
        verdict = (
            "larger than its standard error, but its 95 % interval (Student's t) holds 0: a hint, "
            "no more"
        )
    else:
        verdict = (
            "larger than its standard error, and its 95 % interval (Student's t) does not hold 0"
        )
    pairs = f"over {difference.seeds} pairs of runs"
    return f"{quantity}: {difference:{spec}}{unit} {pairs}, {verdict}."
