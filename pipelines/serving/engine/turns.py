"""Fair turns: how jobs share the slots, and the rows of a step, so that a large job does not hold up small ones."""

from __future__ import annotations

from collections.abc import Sequence


def slots_allowed(held: int, free: int, rest: int) -> int:
    """How many more slots a job may take: as long as it holds fewer than are free.

    This is the dynamic threshold of Choudhury and Hahne (1998): one large job takes half of all slots, two take a third
    each, and some slots stay free for those that come.

    Args:
        held: slots that the job has.
        free: slots that nobody has.
        rest: slots that its pictures that have not begun would take.
    """
    taken = max(0, -(-(free - held) // 2))
    return min(rest, taken, free)


def fair_shares(wanted: Sequence[int], budget: int) -> list[int]:
    """How many of `budget` rows each job gets: as even as what they want allows (max-min fairness).

    What cannot be divided evenly goes to those that stand first.
    """
    shares = [0] * len(wanted)
    while budget > 0:
        open_jobs = [number for number, rows in enumerate(wanted) if shares[number] < rows]
        if not open_jobs:
            break
        each = max(1, budget // len(open_jobs))
        for number in open_jobs[:budget]:
            given = min(each, wanted[number] - shares[number])
            shares[number] += given
            budget -= given
    return shares
