"""Requests that wait because every replica has as many as it may have. First come, first served."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvstrata.router.refusals import RefusedError, unavailable


@dataclass(slots=True, eq=False)
class _Place:
    fits: Callable[[], bool]
    turn: asyncio.Future[None]


class Line:
    """The line. `wake` has to be called whenever there may be room."""

    def __init__(self) -> None:
        self._places: deque[_Place] = deque()

    def __len__(self) -> int:
        return len(self._places)

    async def wait(self, fits: Callable[[], bool], longest: int, seconds: float) -> None:
        """Wait until `fits` says that there is room for this one.

        Who returns from here has to take the room before it awaits anything, and to call `wake`.

        Args:
            fits: asked often; cheap.
            longest: places in the line.
            seconds: how long to wait.

        Raises:
            RefusedError: 429, the line is full; 503, the wait was too long.
        """
        if len(self._places) >= longest:
            raise RefusedError(
                429,
                "queue_full",
                f"All replicas are busy and {longest} requests wait already, the router's max_waiting. "
                "Send it again later, or add replicas.",
                kind="rate_limit_error",
                retry_after=max(1, round(seconds / 4)),
            )
        place = _Place(fits, asyncio.get_running_loop().create_future())
        self._places.append(place)
        try:
            async with asyncio.timeout(seconds):
                await place.turn
        except TimeoutError:
            if place not in self._places:
                self.wake()
            raise unavailable(
                "queue_timeout",
                f"All replicas stayed busy for {seconds:g} s, the router's max_wait. Send it again later.",
                max(1, round(seconds / 4)),
            ) from None
        except BaseException:
            if place not in self._places:
                self.wake()  # it had its turn, and gives it up
            raise
        finally:
            if place in self._places:
                self._places.remove(place)

    def wake(self) -> None:
        """Let the first one go for which there is room; it wakes the next."""
        for place in self._places:
            if not place.turn.done() and place.fits():
                self._places.remove(place)
                place.turn.set_result(None)
                return
