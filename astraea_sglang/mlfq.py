"""In which queue of the Stateful-MLFQ is a program? Three moves over a level, 0 first (Astraea 4.3, Algorithm 1)."""

from collections.abc import Sequence


def after_segment(level: int, cost: int, yielded: bool, thresholds: Sequence[int]) -> int:
    """Where does a program go when a segment of it finishes?

    One queue down if the segment's token `cost` exceeded its queue's threshold (compute-intensive); one queue up if it
    `yielded` to a tool before it had used the quota up (I/O-intensive); else it stays. `thresholds[i]`, in tokens,
    belongs to queue i; below the last queue there is nothing, so its quota is that of the one above.
    """
    if level < len(thresholds) and cost > thresholds[level]:
        return level + 1
    quota = thresholds[min(level, len(thresholds) - 1)] if thresholds else 0
    if yielded and cost < quota:
        return max(level - 1, 0)
    return level


def after_aging(level: int, response_ratio: float, last: int, aging: float) -> int:
    """Where does a waiting program go? From the `last` queue to the first once its response ratio exceeds `aging`."""
    return 0 if level == last and response_ratio > aging else level
