"""All faults, drawn without replacement: each comes before any comes again."""

from tests.chaos import damage, faults, outside

ALL = (
    faults.KillWorker,
    faults.KillRunner,
    faults.KillRunnerAndWorker,
    faults.KillAll,
    faults.KillSampler,
    faults.KillWarm,
    faults.Terminate,
    faults.TerminateAll,
    faults.Interrupt,
    faults.InterruptTwice,
    faults.HangUp,
    faults.Suspend,
    faults.Exhaust,
    faults.Hang,
    faults.HangDeaf,
    faults.HangInChild,
    outside.FullDisk,
    outside.ReadOnly,
    outside.ReadOnlyFromTheStart,
    outside.SecondRun,
    outside.ClockBack,
    damage.Damage,
    damage.DamagedCommit,
)
NAMES = tuple(fault.name for fault in ALL)
# Kills are what there are to be most of.
_SHARE_OF_KILLS = 12
# As many may meet one run, while it goes on.
_TOGETHER = 4


class Deck:
    """Deals the faults of each run.

    Attributes:
        lacks: why a kind could not be had, by its name.
    """

    def __init__(self, names, draw, *, first):
        self._kinds = [fault for fault in ALL if fault.name in names]
        self._draw = draw
        self._left = []
        self._first = first
        self.lacks = {}

    def deal(self, sandbox, wanted):
        """Deal the faults of the next run: one, or some that it survives, of those wanted."""
        self._left = [kind for kind in self._left if kind.name in wanted]
        dealt = []
        while not dealt or (dealt[-1].goes_on and len(dealt) < _TOGETHER):
            fault = self._next(sandbox, wanted, [f.name for f in dealt])
            if fault is None:
                break
            dealt.append(fault)
        return dealt

    def wants_rows(self, wanted):
        """Whether all that is still to be had needs a run that finds rows: a sweep goes on then."""
        left = [k for k in self._kinds if k.name in wanted and k.name not in self.lacks]
        return bool(left) and all(kind.later for kind in left)

    def _next(self, sandbox, wanted, dealt):
        rows = bool(sandbox.ledger.statuses)
        if not any(rows or not kind.later for kind in self._left):
            if dealt:
                return None
            self._shuffle(wanted)
        for place, kind in enumerate(self._left):
            fault = kind()
            if fault.later and not rows:
                continue
            lacks = fault.lacks(sandbox)
            if lacks is not None:
                self.lacks[fault.name] = lacks
            elif not dealt or (fault.goes_on and fault.name not in dealt):
                del self._left[place]
                return fault
        if not dealt:  # none of those left can be had here
            self._left = []
        return None

    def _shuffle(self, wanted):
        """Each once at first, and from then on the kills more often."""
        self._left = [
            kind
            for kind in self._kinds
            if kind.name in wanted
            for _ in range(_SHARE_OF_KILLS if kind.kills and not self._first else 1)
        ]
        self._draw.shuffle(self._left)
        self._first = False
