"""Constant-velocity Kalman filters for boxes: four independent axes, each with position and velocity.

The axes of a box are centre x, centre y, width and height. Process and measurement noise are diagonal,
so a box is four filters of two states and everything is closed-form: no matrix is inverted.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Motion:
    """Where something is and how it moves, with the uncertainty of both; every array is `(A,)` float64.

    `position` px, `velocity` px/s; `pp`, `pv`, `vv` are the entries of each axis' 2x2 covariance
    (position-position, position-velocity, velocity-velocity).
    """

    position: F64
    velocity: F64
    pp: F64
    pv: F64
    vv: F64


def start(position: F64, position_std: F64, velocity_std: F64) -> Motion:
    """Return a motion at rest at `position` `(A,)`, uncertain by the given standard deviations `(A,)`."""
    if not position.shape == position_std.shape == velocity_std.shape:
        raise ValueError(f"{position.shape=} {position_std.shape=} {velocity_std.shape=}")
    zero = np.zeros_like(position, dtype=np.float64)
    return Motion(position.astype(np.float64), zero, position_std**2, zero, velocity_std**2)


def predict(motion: Motion, dt_s: float, acceleration_std: F64) -> Motion:
    """Return the motion `dt_s` seconds later, at constant velocity up to a random acceleration.

    Args:
        motion: the state now.
        dt_s: seconds, >= 0.
        acceleration_std: `(A,)` px/s^2, standard deviation of the white acceleration noise.

    Raises:
        ValueError: `dt_s` is negative.

    Source: Bar-Shalom et al., "Estimation with Applications to Tracking and Navigation", 2001, 6.3.2
    (discrete white noise acceleration).
    """
    if dt_s < 0:
        raise ValueError(f"{dt_s=} is negative")
    q = acceleration_std**2
    return Motion(
        motion.position + motion.velocity * dt_s,
        motion.velocity,
        motion.pp + 2 * dt_s * motion.pv + dt_s**2 * motion.vv + q * dt_s**4 / 4,
        motion.pv + dt_s * motion.vv + q * dt_s**3 / 2,
        motion.vv + q * dt_s**2,
    )


def correct(motion: Motion, measured: F64, measurement_std: F64) -> Motion:
    """Return the motion after its position was measured.

    Args:
        motion: the state predicted to the time of the measurement.
        measured: `(A,)` px.
        measurement_std: `(A,)` px, > 0.

    Raises:
        ValueError: the shapes disagree.
    """
    if not motion.position.shape == measured.shape == measurement_std.shape:
        raise ValueError(f"{motion.position.shape=} {measured.shape=} {measurement_std.shape=}")
    total = motion.pp + measurement_std**2
    gain_p, gain_v = motion.pp / total, motion.pv / total
    surprise = measured - motion.position
    return Motion(
        motion.position + gain_p * surprise,
        motion.velocity + gain_v * surprise,
        (1 - gain_p) * motion.pp,
        (1 - gain_p) * motion.pv,
        motion.vv - gain_v * motion.pv,
    )


def surprise(motion: Motion, measured: F64, measurement_std: F64) -> F64:
    """Return `(M, A)` how many standard deviations each of `(M, A)` measurements lies from the prediction."""
    distance: F64 = (measured - motion.position) / np.sqrt(motion.pp + measurement_std**2)
    return distance
