"""Utilisation, worked out on reading: from the best rate that any run of an environment reached."""

import pandas as pd

from kdbench.analysis.estimates import OFF, UNSURE


def share_yardsticks(*frames: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
    """Work utilisation out anew, by yardsticks that the rows of all these `cells` share.

    A yardstick is the highest rate of a large matrix product, in operations per second, by
    environment and precision. Others at work, a cold clock, or a bad moment only ever make a rate
    too low, so the best one is nearest to the truth, whichever run measured it; and a step that
    beats it proves it too low. Sets `utilisation` (missing where a step beats the yardstick),
    `yardstick` and `utilisation_issue` (what is wrong with it; missing: nothing).
    """
    cells = pd.concat(frames, keys=range(len(frames)))
    key = [cells["environment_id"], cells["precision"]]
    seconds, rate = cells["step_seconds_median"], cells["matmul_flops_per_second"]
    reached, rate = cells["flops_step"] / seconds.where(seconds > 0), rate.where(rate > 0)
    best, most = (v.groupby(key, dropna=False).transform("max") for v in (rate, reached))
    known = best.notna() & reached.notna()
    # the second: what an older store's value was worked out from is not there any more
    value = (reached / best).where(known, cells["utilisation"])
    beaten = (most > best).where(known, value > 1).fillna(value=False)
    steady = cells["rates_steady"].fillna(value=False)
    sure = steady & ~cells["rates_contended"].fillna(value=False)
    best_sure = (rate.notna() & sure).groupby(key, dropna=False).transform("any")
    flag = pd.Series(pd.NA, index=cells.index, dtype="string")
    flag = flag.mask(~best_sure.where(known, sure), UNSURE).mask(beaten, OFF)
    cells = cells.assign(
        utilisation=value.mask(beaten),
        yardstick=best.where(known),
        utilisation_issue=flag.where(value.notna()),
    )
    own = cells.index.get_level_values(0)
    return tuple(cells[own == n].droplevel(0) for n in range(len(frames)))
