"""Which rows of a batch belong to which tower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Which rows belong to which tower: `counts` on the host, their running sum `offsets_G` (int32) on the device.

    `counts` is None where only the device knows: rows that tokens dealt out to experts.
    """

    counts: tuple[int, ...] | None
    offsets_G: Tensor

    def slices(self) -> Iterator[tuple[int, slice]]:
        """(tower, its rows) of every tower that has rows; waits for the device if the host does not know them."""
        begin = 0
        counts = (
            self.counts
            if self.counts is not None
            else self.offsets_G.diff(prepend=self.offsets_G.new_zeros(1)).tolist()
        )
        for tower, count in enumerate(counts):
            if count:
                yield tower, slice(begin, begin + count)
            begin += count

    def of(self, weight: Tensor) -> Groups:
        """The groups that `weight` [G, ...] is for: these, or all rows as one if there is one matrix."""
        return self if len(weight) == len(self.offsets_G) else self.whole

    @property
    def whole(self) -> Groups:
        """All rows as one group."""
        return Groups(self.counts and (sum(self.counts),), self.offsets_G[-1:])
