"""The constant-velocity filter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels import kalman
from visaged.kernels.kalman import F64, Motion


def one(value: float) -> F64:
    return np.array([value], dtype=np.float64)


def follow(positions: list[float], dt_s: float) -> Motion:
    motion = kalman.start(one(positions[0]), one(2.0), one(100.0))
    for position in positions[1:]:
        motion = kalman.predict(motion, dt_s, one(5.0))
        motion = kalman.correct(motion, one(position), one(2.0))
    return motion


def test_a_constant_speed_is_learned_and_continued() -> None:
    motion = follow([10.0 * i for i in range(20)], dt_s=0.1)  # 100 px/s, at 190 px now

    ahead = kalman.predict(motion, 0.5, one(5.0))
    assert motion.velocity[0] == pytest.approx(100, abs=2)
    assert ahead.position[0] == pytest.approx(240, abs=2)


def test_equal_trust_in_prediction_and_measurement_meets_in_the_middle() -> None:
    motion = kalman.start(one(0.0), one(3.0), one(0.0))

    assert kalman.correct(motion, one(10.0), one(3.0)).position[0] == pytest.approx(5)


def test_standing_still_for_zero_seconds_changes_nothing() -> None:
    motion = follow([0.0, 3.0, 6.0], dt_s=0.1)

    assert kalman.predict(motion, 0.0, one(5.0)).position[0] == motion.position[0]


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30), st.floats(0.001, 2.0))
def test_the_covariance_stays_positive_definite(positions: list[float], dt_s: float) -> None:
    motion = follow(positions, dt_s)

    assert motion.pp[0] > 0
    assert motion.vv[0] > 0
    assert motion.pp[0] * motion.vv[0] - motion.pv[0] ** 2 >= -1e-6 * motion.pp[0] * motion.vv[0]


def test_one_long_step_is_as_uncertain_in_position_as_it_is_far() -> None:
    near = kalman.predict(follow([0.0, 1.0], 0.1), 0.1, one(5.0))
    far = kalman.predict(follow([0.0, 1.0], 0.1), 1.0, one(5.0))

    assert far.pp[0] > near.pp[0]


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="negative"):
        kalman.predict(follow([0.0], 0.1), -0.1, one(5.0))


def test_disagreeing_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"measured\.shape"):
        kalman.correct(follow([0.0], 0.1), np.zeros(2), one(1.0))
