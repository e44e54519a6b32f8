"""Seconds to the first token of one request on one replica: what it is made of, term by term.

**Prefill is not linear.** The token at position p looks back at p tokens, so what is left of a prompt of N
tokens behind B reusable ones costs

    per_token * (N - B)  +  per_pair * (N² - B²) / 2

where (N² - B²) / 2 = (N - B) * (B + (N - B) / 2): the new tokens times what they see on average. Layers with
a window or a state have a bounded past, which belongs to the first part.

**A load** pays each tier's latency once and its bytes at the tier's bandwidth. What comes from storage passes
through host memory, so it pays both. Reads of one replica share its way to storage: a read waits for those
that were begun before it.

**What overlaps.** A load needs no computation, and runs while others compute. But the engine looks for one
only when a step has tokens left to give, which behind a queue of prefills is when that queue is done. So
wait, load and prefill are added up, and `Profile.overlap` says which share of storage reads is hidden by the
wait nevertheless.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from kvstrata.errors import ConfigError

Vector = npt.NDArray[np.float64]
LEAST, MOST = 1e-9, 1e18
"""Of what a profile states: beyond, a price would be no number."""

LEARNED = (
    "overhead",
    "compute",
    "attention",
    "memory_latency",
    "memory_transfer",
    "storage_latency",
    "storage_transfer",
    "wait",
)
"""Terms that have a factor, in the order of every vector of factors. Names as in `Terms`."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stated of a replica before anything is known. Round figures are good enough.

    Attributes:
        overhead_seconds: what a request costs whose prompt is all on the device.
        prefill_tokens_per_s: of short prompts.
        attention_doubles_at: tokens of a prompt that takes twice as long as its length says.
        memory_latency_seconds: of a load from host memory, whatever its size.
        memory_bytes_per_s: from host memory to the device.
        storage_latency_seconds: of a load from storage, whatever its size.
        storage_bytes_per_s: from storage to host memory, by all threads of one engine together. Of both of
            storage's figures, what is better than memory's counts as memory's.
        overlap: share of storage reads that goes on while the request waits for others, 0 to 1.
    """

    overhead_seconds: float = 0.02
    prefill_tokens_per_s: float = 10_000.0
    attention_doubles_at: float = 65_536.0
    memory_latency_seconds: float = 0.002
    memory_bytes_per_s: float = 10e9
    storage_latency_seconds: float = 0.005
    storage_bytes_per_s: float = 2e9
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if field == "overlap":
                if not 0 <= value <= 1:
                    raise ConfigError(f"profile: overlap is a share from 0 to 1, not {value}")
            elif not LEAST <= value <= MOST:
                raise ConfigError(f"profile: {field} must be from {LEAST} to {MOST:g}, not {value}")

    def rates(self) -> tuple[float, ...]:
        """Seconds per unit, in the order of `LEARNED`: request, token, pair, load, byte, load, byte, s.

        Storage is not taken to be faster than memory, whatever is stated: the blame for loads that last
        longer would go to memory, and loads from there would be given up too.
        """
        per_token = 1 / self.prefill_tokens_per_s
        return (
            self.overhead_seconds,
            per_token,
            2 * per_token / self.attention_doubles_at,
            self.memory_latency_seconds,
            1 / self.memory_bytes_per_s,
            max(self.storage_latency_seconds, self.memory_latency_seconds),
            1 / min(self.storage_bytes_per_s, self.memory_bytes_per_s),
            1.0,
        )


class Work(msgspec.Struct, frozen=True, gc=False):
    """What a request makes a replica do.

    Attributes:
        left: tokens to compute, at least 1.
        before: tokens that are there before them.
        memory_bytes: loaded from memory alone.
        storage_bytes: loaded from storage, through memory.
        wait: seconds of computation queued before it.
        overlapped: seconds of storage reads that the wait hides, at most.
        unsure: seconds of the prompt that was being computed already: what it has left is a difference, so
            that the wait is off by a share of the whole prompt however little is left.
    """

    left: int
    before: int
    memory_bytes: int = 0
    storage_bytes: int = 0
    wait: float = 0.0
    overlapped: float = 0.0
    unsure: float = 0.0

    def units(self) -> tuple[float, ...]:
        """How much of each of `LEARNED` this is: times the rates, it is seconds."""
        moved = self.memory_bytes + self.storage_bytes
        return (
            1.0,
            float(self.left),
            self.left * (self.before + self.left / 2),
            1.0 if moved else 0.0,
            float(moved),
            1.0 if self.storage_bytes else 0.0,
            float(self.storage_bytes),
            self.wait,
        )
