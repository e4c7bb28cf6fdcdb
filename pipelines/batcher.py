"""Who of several cameras gets how many places in a batch."""

from collections.abc import Sequence


def share_places(wanted: Sequence[int], places: int, first: int = 0) -> list[int]:
    """Return how many of `places` each gets of those it `wanted`: max-min fair.

    Nobody gets more than wanted, and nobody gets less than another who was not satisfied, but for the
    places left over by the division: those go to `first` and the ones after it, so let that change.

    Args:
        wanted: faces each camera would like to have analysed, >= 0.
        places: faces in a batch, >= 0.
        first: index of the one who is served first.
    """
    granted = [0] * len(wanted)
    order = [(first + step) % len(wanted) for step in range(len(wanted))] if wanted else []
    while places > 0 and (hungry := [i for i in order if granted[i] < wanted[i]]):
        each = max(1, places // len(hungry))
        for index in hungry:
            more = min(each, wanted[index] - granted[index], places)
            granted[index] += more
            places -= more
    return granted
