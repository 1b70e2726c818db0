"""Sets of numbers as sorted arrays: a number takes 8 bytes, a tenth of what it takes in a Python set."""

import numpy as np
from numpy.typing import NDArray


def among(numbers: NDArray[np.int64], members: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of `numbers`, in any order, are among `members`, which rise: (number,) bool."""
    if not len(members):
        return np.zeros(len(numbers), np.bool_)
    place = np.searchsorted(members, numbers)
    return np.asarray(members[np.minimum(place, len(members) - 1)] == numbers, np.bool_)
