"""A limit on how often something may happen: so often in the long run, so often at once."""


class TokenBucket:
    """Starts full. Owned by the thread that made it; times are monotonic seconds."""

    def __init__(self, per_s: float, burst: int, now_s: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens, self._at_s = float(burst), now_s

    def take(self, now_s: float) -> bool:
        """Return whether it may happen at `now_s`, and count it if so."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
