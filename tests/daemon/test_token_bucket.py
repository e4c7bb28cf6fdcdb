"""A token bucket: never more than its rate and its burst allow, always what they do."""

from hypothesis import given
from hypothesis import strategies as st
from visaged.daemon.token_bucket import TokenBucket


@given(
    per_s=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    waits=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_run_of_events_exceeds_burst_plus_rate_times_its_length(
    per_s: float, burst: int, waits: list[float]
) -> None:
    bucket, now_s, taken = TokenBucket(per_s, burst, 0.0), 0.0, []
    for wait_s in waits:
        now_s += wait_s
        if bucket.take(now_s):
            taken.append(now_s)

    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - taken[first]) * per_s + 1e-6


def test_a_burst_passes_at_once_and_one_more_after_a_while() -> None:
    bucket = TokenBucket(2.0, 3, 10.0)

    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.4), bucket.take(10.5), bucket.take(10.6)] == [False, True, False]
