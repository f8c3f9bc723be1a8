"""The collate: from rows of pieces of documents to a batch, born grouped by tower.

    rows --`Dropout.cut`--> rows, some captions by themselves
         --`segments.lay_out`--> segments --`segments.count`--> how many tokens each tower gets, how many labels there are
         --memory of just that size, pinned if there is a GPU--`segments.write`--> ids, positions, labels, ...
         --picture by picture--> latents in float32, their noise and its time
    -> `GroupedBatch`

Labels are counted without reading a token, so that every rank knows those of the whole global batch.

Letters: P pieces, R rows, Z segments, C their columns, M modalities of the vocabulary, K codebooks, G towers, T tokens of
the batch, N latents of width D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from motet.core.hashing import content_hash
from motet.trainer.data import codebooks, segments
from motet.trainer.data.batch import DIFFUSION, GroupedBatch
from motet.trainer.data.corpus import Documents
from motet.trainer.data.dropout import Dropout
from motet.trainer.data.packed import Rows
from motet.trainer.vocabulary import Towers, Vocabulary

COLUMNS = {
    "ids_T": torch.int64,
    "position_T": torch.int64,
    "document_T": torch.int32,
    "block_T": torch.int32,
    "place_T": torch.int64,
    "labels_T": torch.int64,
    "label_modality_T": torch.int8,
}
"""What a batch says of every token, in the order in which `segments.write` takes it."""


@dataclass(frozen=True)
class Noise:
    """The diffusion noise of training, a pure function of (seed, epoch, document, span).

    Attributes:
        seed: training's, or a fixed one for evaluation, so that evaluations compare.
        steps: diffusion steps; times are 0..steps-1. A picture before its caption gets less than half of them, or the
            caption could not be learnt from it (Transfusion, arXiv 2408.11039, section 4.3.4).
    """

    seed: int
    steps: int = 1000

    def draw(self, epoch: int, document: int, span: int, early: bool, noise_ND: np.ndarray) -> int:
        """Fill the float32 noise of one picture, standard normal; its diffusion step. `document` is its key."""
        random = np.random.Generator(np.random.Philox(key=[self._key, epoch], counter=[0, span, document, 0]))
        time = int(random.random() * (self.steps // 2 if early else self.steps))
        random.standard_normal(dtype=np.float32, out=noise_ND)
        return time

    @cached_property
    def _key(self) -> int:
        return int(content_hash("noise", self.seed)[:16], 16)


class Collate:
    """Makes batches of rows.

    Args:
        vocabulary: where ids land; it knows every modality of the documents.
        towers: which tower each modality uses.
        sequence: tokens per row; no row holds more.
        noise: the diffusion noise; only its `steps` matter to data without latents.
        dropout: which captions are dropped; None = none.
        streams: how frames of several codebooks become tokens, as `data.streams`; the documents' lengths must agree.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        towers: Towers,
        sequence: int,
        noise: Noise,
        dropout: Dropout | None = None,
        streams: Mapping[str, str] | None = None,
    ):
        self.vocabulary, self.towers, self.sequence = vocabulary, towers, sequence
        self.noise, self.dropout = noise, dropout or Dropout()
        names = vocabulary.modalities
        self._rule_M2 = codebooks.table(vocabulary.tokenizers, names, streams or {})
        marks = [(vocabulary.begin[m], vocabulary.end[m]) for m in names[1:]]
        self._mark_M2 = np.array([(vocabulary.bos, vocabulary.eos), *marks], np.int64)
        self._latent = names.index(vocabulary.latent_modality) if vocabulary.latent_modality else -1
        self._tower_M = np.array(towers.of_modality, np.int64)
        self._books_M = np.array([len(vocabulary.base[m]) for m in names], np.int64)
        self._base_MK = np.zeros((len(names), max(self._books_M)), np.int64)
        for m, name in enumerate(names):
            self._base_MK[m, : self._books_M[m]] = vocabulary.base[name]
        self._pinned = torch.cuda.is_available()

    def counts(self, rows: Rows) -> dict[str, int]:
        """Labels of each modality in these rows, without reading a token; latents under `diffusion`."""
        names, rows = self.vocabulary.modalities, self.dropout.cut(rows)
        segment_ZC = self._lay_out(rows.documents, rows.piece_P5)
        token_M, label_M, further_MK, _ = segments.count(segment_ZC, rows.documents.length_S, self._rule_M2)
        counts = dict(zip(names, (label_M + further_MK.sum(1)).tolist(), strict=True))
        if self._latent >= 0:
            counts[DIFFUSION] = int(token_M[self._latent])
        return counts

    def batch(self, rows: Rows) -> GroupedBatch:
        """The rows as one batch; places that no piece fills are padding, which text's tower gets."""
        vocabulary, rows = self.vocabulary, self.dropout.cut(rows)
        documents, piece_P5 = rows.documents, rows.piece_P5
        if rows.length_R.max(initial=0) > self.sequence:
            raise ValueError(f"a row holds more than {self.sequence} tokens")
        segment_ZC = self._lay_out(documents, piece_P5)
        token_M, label_M, further_MK, codes = segments.count(segment_ZC, documents.length_S, self._rule_M2)
        T, N = len(rows) * self.sequence, int(token_M[self._latent]) if self._latent >= 0 else 0
        token_M[segments.TEXT] += T - token_M.sum()
        counts_G = np.bincount(self._tower_M, token_M, len(self.towers)).astype(np.int64)
        end_G = np.cumsum(counts_G)
        column = {name: self._empty(T, dtype=dtype) for name, dtype in COLUMNS.items()}
        label_row_M, latent_row_N = self._empty(int(label_M.sum())), self._empty(N)
        further_row_J, further_ids_J = self._empty(codes), self._empty(codes)
        further_label_row_Q, further_labels_Q = (self._empty(int(further_MK.sum())) for _ in range(2))
        next_MK = (further_MK.cumsum() - further_MK.reshape(-1)).reshape(further_MK.shape)
        segments.write(
            segment_ZC,
            documents.length_S,
            rows.start_R1,
            self.sequence,
            self._tower_M,
            end_G - counts_G,
            self._base_MK,
            self._books_M,
            self._rule_M2,
            self._mark_M2,
            vocabulary.pad,
            documents.tokens_T,
            *(tensor.numpy() for tensor in (*column.values(), label_row_M, latent_row_N)),
            *(further_row_J.numpy(), further_ids_J.numpy()),
            next_MK,
            *(further_label_row_Q.numpy(), further_labels_Q.numpy()),
        )
        latents_ND, noise_ND = (self._empty(N, vocabulary.latent_dim, dtype=torch.float32) for _ in range(2))
        time_N = self._empty(N)
        latents = latents_ND.numpy(), noise_ND.numpy(), time_N.numpy()
        pictures = self._pictures(documents, piece_P5, segment_ZC, *latents)
        offsets_G = self._empty(len(self.towers), dtype=torch.int32)
        offsets_G.numpy()[:] = end_G
        return GroupedBatch(
            rows=len(rows),
            sequence=self.sequence,
            modalities=vocabulary.modalities,
            **column,
            offsets_G=offsets_G,
            counts=tuple(counts_G.tolist()),
            label_row_M=label_row_M,
            further_row_J=further_row_J,
            further_ids_J=further_ids_J,
            further_label_row_Q=further_label_row_Q,
            further_labels_Q=further_labels_Q,
            further_ranges=self._ranges(further_MK),
            latent_row_N=latent_row_N,
            latents_ND=latents_ND,
            noise_ND=noise_ND,
            time_N=time_N,
            pictures=pictures,
            latent_modality=vocabulary.latent_modality,
        )

    def _ranges(self, further_MK: np.ndarray) -> tuple[tuple[int, int, int, int], ...]:
        """Ids, modality and labels of every further codebook that has labels."""
        found = []
        for m, k in np.argwhere(further_MK).tolist():
            name = self.vocabulary.modalities[m]
            begin = self.vocabulary.base[name][k]
            end = begin + self.vocabulary.tokenizers[name].codebooks[k]
            found.append((begin, end, m, int(further_MK[m, k])))
        return tuple(found)

    def _lay_out(self, documents: Documents, piece_P5: np.ndarray) -> np.ndarray:
        index = self.vocabulary.modalities.index
        return segments.lay_out(
            piece_P5,
            documents.span_D,
            documents.spans_D,
            documents.modality_S,
            documents.length_S,
            documents.at_S,
            np.array([index(m) for m in documents.modalities], np.int64),
            self._mark_M2,
            self._latent,
        )

    def _pictures(
        self,
        documents: Documents,
        piece_P5: np.ndarray,
        segment_ZC: np.ndarray,
        latents_ND: np.ndarray,
        noise_ND: np.ndarray,
        time_N: np.ndarray,
    ) -> tuple[tuple[int, int], ...]:
        """Fill the latents, their noise and its times; the grid of each picture."""
        end, pictures = 0, []
        for segment in segment_ZC[segment_ZC[:, segments.KIND] == segments.LATENTS].tolist():
            piece, _, _, span, first, _, length = segment
            document, _, _, flipped, epoch = piece_P5[piece].tolist()
            nth = span - int(documents.span_D[document])
            other = span + 1 - 2 * nth  # of two spans
            leads = documents.spans_D[document] == 2 and nth == flipped
            early = bool(leads and documents.modality_S[other] == segments.TEXT)
            begin, end = end, end + length
            latents_ND[begin:end] = documents.latents_VW[first : first + length]
            key = int(documents.key_D[document])
            time_N[begin:end] = self.noise.draw(epoch, key, nth, early, noise_ND[begin:end])
            height = int(documents.height_S[span])
            pictures.append((height, length // height))
        return tuple(pictures)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, pin_memory=self._pinned)
