"""Shares and medians with their 95 % intervals: Wilson's for shares, by bootstrap for medians."""

from collections.abc import Sequence

import numpy as np


def share(hits: Sequence[bool]) -> dict:
    """A share with Wilson's 95 % interval."""
    n, p, z = len(hits), float(np.mean(hits)), 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    value, low, high = (round(float(v), 4) for v in (p, low, high))
    return {"value": value, "low": low, "high": high, "n": n}


def median(values: Sequence[float]) -> dict:
    """A median with its 95 % interval by bootstrap."""
    found = np.array(values)
    draws = np.random.default_rng(0).choice(found, (2000, len(found)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    value, low, high = (round(float(v), 3) for v in (np.median(found), low, high))
    return {"value": value, "low": low, "high": high, "n": len(values)}
