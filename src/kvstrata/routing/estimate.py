"""What is believed of all factors of a replica, or of the fleet, and how it fades. Pure."""

import math
from typing import Self

import msgspec
import numpy as np

from kvstrata.routing.cost import LEARNED, Vector

FURTHEST = 1024.0
"""Largest factor that is ever believed, and its inverse the smallest."""


class SavedEstimate(msgspec.Struct):
    """Form of an `Estimate` in a file."""

    mean: list[float]
    covariance: list[list[float]]
    age: float
    count: int
    outliers: int
    changes: int


class Estimate:
    """Mean and covariance of the logarithms of factors, in the order of `cost.LEARNED`.

    Args:
        prior: float64 (8, 8), covariance at the beginning and after long silence; the mean is 0 then.
        now: seconds.
    """

    __slots__ = ("at", "changes", "count", "covariance", "mean", "outliers", "prior", "run")

    def __init__(self, prior: Vector, now: float) -> None:
        self.prior = prior
        self.mean: Vector = np.zeros(len(LEARNED))
        self.covariance: Vector = prior.copy()
        self.at = now
        self.count = 0
        self.outliers = 0
        self.changes = 0
        self.run = 0

    def forget(self, now: float, constant: float) -> None:
        """Let time pass: towards no deviation, and to as little certainty as at the beginning."""
        passed = max(now - self.at, 0.0)
        self.at = max(now, self.at)
        kept = math.exp(-passed / constant)
        self.mean *= kept
        self.covariance = kept**2 * self.covariance + (1 - kept**2) * self.prior

    def widen(self) -> None:
        """Be as uncertain as at the beginning again, and more."""
        self.covariance += self.prior

    def save(self, now: float) -> SavedEstimate:
        """For a file. The age is kept instead of the time: the clock may begin anew."""
        return SavedEstimate(
            self.mean.tolist(),
            self.covariance.tolist(),
            max(now - self.at, 0.0),
            self.count,
            self.outliers,
            self.changes,
        )

    @classmethod
    def load(cls, saved: SavedEstimate, prior: Vector, now: float) -> Self:
        """What `save` made.

        Raises:
            ValueError: it is none, or out of bounds.
        """
        size = len(LEARNED)
        estimate = cls(prior, now - max(saved.age, 0.0))
        mean, covariance = np.array(saved.mean), np.array(saved.covariance)
        if mean.shape != (size,) or covariance.shape != (size, size):
            raise ValueError("a matrix of another size")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("numbers that are none")
        if np.abs(mean).max() > math.log(FURTHEST) + 1e-9 or np.abs(covariance).max() > 1e3:
            raise ValueError("factors out of bounds")
        symmetric = (covariance + covariance.T) / 2
        if np.linalg.eigvalsh(symmetric).min() < -1e-6:
            raise ValueError("a covariance that is none")
        estimate.mean, estimate.covariance = mean, symmetric
        estimate.count, estimate.outliers, estimate.changes = (
            saved.count,
            saved.outliers,
            saved.changes,
        )
        return estimate
