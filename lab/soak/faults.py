"""Which faults there are here, and those that are on now."""

import contextlib
import random
from collections.abc import Sequence

from lab.soak import calls, files
from lab.soak.engines import obeys_permissions
from lab.soak.place import Place
from lab.soak.plan import Kinds, Strike, Window
from lab.soak.tally import Tally

KILL = "SIGKILL"
RESTART = "restart"
RESET_DEVICE = "reset device"
OF_ENGINES = (KILL, RESTART, *[RESET_DEVICE] * 5)
"""Strikes that are for an engine, not for its files. After a reset, prompts come from the tiers."""
WIPES = frozenset({"delete root", "kvstrata clear"})
"""They come less often than the others, since what is wrong with files shows only where there are files."""


def kinds(place: Place, *, control: bool = False, calm: bool = False) -> Kinds:
    """What can be done on this machine.

    Args:
        place: of the soak.
        control: forge records too, so that the soak must find wrong answers.
        calm: nothing but what happens to engines.
    """
    if calm:
        return Kinds(windows=(), strikes=OF_ENGINES, ending=frozenset({KILL, RESTART}))
    missing = set() if place.mounted else set(files.NEED_DISK)
    if not obeys_permissions():
        missing |= files.NEED_PERMISSIONS
    strikes = [kind for kind in files.STRIKES for _ in range(1 if kind in WIPES else 2)]
    strikes += OF_ENGINES
    return Kinds(
        windows=tuple(kind for kind in (*files.WINDOWS, *calls.RULES) if kind not in missing),
        strikes=(*strikes, *(files.CONTROL if control else ())),
        exclusive=files.EXCLUSIVE,
        ending=frozenset({KILL, RESTART}),
    )


class Faults:
    """Begins and ends faults, and counts them.

    Args:
        place: of the soak.
        faulty: the layer beneath each engine.
        tally: counts.
    """

    def __init__(self, place: Place, faulty: Sequence[calls.FaultyCalls], tally: Tally) -> None:
        self._place = place
        self._faulty = faulty
        self._tally = tally
        self._on: dict[int, contextlib.ExitStack] = {}

    @property
    def any(self) -> bool:
        """Whether a window is on."""
        return bool(self._on)

    def begin(self, window: Window) -> None:
        """Begin a window; one that cannot be begun now is counted as such."""
        self._tally.planned[window.kind] += 1
        stack = contextlib.ExitStack()
        draw = random.Random(window.seed)
        try:
            if window.kind in calls.RULES:
                stack.enter_context(self._faulty[window.engine].on(window.kind, draw))
            else:
                stack.enter_context(files.WINDOWS[window.kind](self._place, draw))
        except OSError as error:
            self._missed(window.kind, error)
            return
        self._tally.done[window.kind] += 1
        self._on[window.number] = stack

    def end(self, window: Window) -> None:
        """End a window, if it was begun."""
        stack = self._on.pop(window.number, None)
        if stack is not None:
            stack.close()

    def end_all(self) -> None:
        """End every window, the last one first."""
        while self._on:
            self._on.popitem()[1].close()

    def strike(self, strike: Strike) -> None:
        """Do a strike on files; one that cannot be done now is counted as such."""
        self._tally.planned[strike.kind] += 1
        act = {**files.STRIKES, **files.CONTROL}[strike.kind]
        try:
            touched = act(self._place, random.Random(strike.seed))
        except OSError as error:
            self._missed(strike.kind, error)
            return
        if touched:
            self._tally.done[strike.kind] += 1

    def _missed(self, kind: str, error: OSError) -> None:
        name = error.strerror or str(error).partition("\n")[0][-120:]
        self._tally.not_done[f"{kind}: {name}"] += 1
