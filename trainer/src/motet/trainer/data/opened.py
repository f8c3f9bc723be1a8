"""Data as a configuration names it, opened: the one way from there to what a run reads, or did read.

    DataConfig (+ run folder: damage noted there) --`Opened.of`--> `order` of training, `heldout` split

Held-out documents are those of the datasets that the run begins with: what an edit brings is for training only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from motet.trainer.config import DataConfig
from motet.trainer.data import damage
from motet.trainer.data.corpus import Corpus
from motet.trainer.data.order import Order
from motet.trainer.data.records import Records


@dataclass(frozen=True)
class Opened:
    """The data of a run.

    Attributes:
        order: of training, over all datasets, without what the run has had to leave out.
        begun_with: the datasets of the beginning.
    """

    data: DataConfig
    order: Order
    begun_with: Records

    @classmethod
    def of(cls, data: DataConfig, rows: int, seed: int, run: Path | None = None) -> Opened:
        """In the order of a run of `rows` rows a step; `run` is its folder, once it has begun.

        UserError if the datasets do not fit the configuration, or one another.
        """
        records = Records.of(data, data.all_paths)
        order = Order(Corpus(records, "train", data.holdout), data, rows, seed)
        order.leave_out(damage.read(run) if run else [])
        return cls(data, order, Records.of(data, data.paths) if data.edits else records)

    @property
    def heldout(self) -> Corpus:
        """The documents that training leaves out."""
        return Corpus(self.begun_with, "heldout", self.data.holdout)
