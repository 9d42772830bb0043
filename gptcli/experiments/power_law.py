"""Fits a scaling law to the losses of small networks, and predicts the loss of a larger network.

The law is `loss = floor + scale * size^-exponent`.

Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models"; the floor as in Hoffmann et
al. 2022, "Training Compute-Optimal Large Language Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gptcli.errors import GptcliError
from gptcli.experiments.intervals import t_975
from gptcli.plurals import agreeing, counted

_EXPONENTS = np.geomspace(0.01, 3.0, 1200)
FEWEST = 5
"""The fewest points for a fit. Five points minus the three fitted numbers leave two degrees of
freedom for the interval."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """The law `loss = floor + scale * size^-exponent`, fitted to `points` networks.

    `residual` says how far their losses are from the curve, in nats."""

    floor: float
    scale: float
    exponent: float
    residual: float
    covariance: Any
    points: int

    def at(self, size: float) -> float:
        """The loss that the law gives for a network of `size`."""
        return float(self.floor + self.scale * size**-self.exponent)

    def predict(self, size: float) -> tuple[float, tuple[float, float]]:
        """The loss that the law gives for `size`, and the 95 % interval for a single run.

        The interval includes the uncertainty of the three fitted numbers (to first order) and the
        scatter of the points around the curve."""
        slope = _gradient(np.array([size]), self.scale, self.exponent)[0]
        variance = float(slope @ self.covariance @ slope) + self.residual**2
        half = t_975(self.points - 3) * variance**0.5
        return self.at(size), (self.at(size) - half, self.at(size) + half)


def fit(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The power law that fits `losses` with the least squared error. Its floor is at least 0.

    Raises GptcliError if there are fewer than five points, or if larger networks are not better."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    if len(x) < FEWEST:
        raise GptcliError(
            f"{counted(len(x), 'network')} {agreeing(len(x), 'is', 'are')} too few to fit a law; "
            f"{FEWEST} are needed",
            "give more --minutes",
            exit_code=1,
        )
    unit = float(np.exp(np.log(x).mean()))  # dividing the sizes by this mean makes powers near 1
    best: tuple[float, float, float, float] | None = None
    for exponent in _EXPONENTS:
        powers = (x / unit) ** -exponent
        floor, scale = np.linalg.lstsq(np.stack((np.ones_like(x), powers), 1), y, rcond=None)[0]
        if floor < 0:
            floor, scale = 0.0, float((powers @ y) / (powers @ powers))
        error = float(((floor + scale * powers - y) ** 2).sum())
        if scale > 0 and (best is None or error < best[0]):
            best = (error, float(floor), float(scale), float(exponent))
    if best is None or y[np.argmax(x)] >= y[np.argmin(x)]:
        raise GptcliError(
            "the larger networks are not better, so nothing can be predicted",
            "give more --minutes: larger networks need more tokens before they are better",
            exit_code=1,
        )
    error, floor, scale, exponent = best
    scale *= unit**exponent
    residual = (error / (len(x) - 3)) ** 0.5
    slopes = _gradient(x, scale, exponent)
    covariance = residual**2 * np.linalg.pinv(slopes.T @ slopes, rcond=1e-14, hermitian=True)
    return PowerLaw(floor, scale, exponent, residual, covariance, len(x))


def _gradient(x: Floats, scale: float, exponent: float) -> Floats:
    """The derivatives of the loss with respect to floor, scale and exponent: (len(x), 3)."""
    powers = x**-exponent
    return np.stack((np.ones_like(x), powers, -scale * powers * np.log(x)), axis=1)
