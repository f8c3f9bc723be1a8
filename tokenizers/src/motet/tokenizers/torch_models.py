"""Given weights on disk -> a frozen torch model; and how every encoder here runs: fp32, inference only, threads as told.

`read_state` opens one file of weights, `open_diffusers` a folder or hub id in the layout of diffusers; nothing is ever
unpickled beyond plain tensors. `weights_hash` says what a model holds, whatever file it came from. `running` is the
context in which a model encodes and decodes.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from motet.core.configuration import Settings
from motet.core.errors import UserError, one_line
from motet.core.hashing import content_hash

Model = TypeVar("Model", bound=nn.Module)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_SECONDS = 5.0  # to answer


DEVICE = r"^(cpu|cuda(:\d+)?)$"
"""What a setting `device` may say."""


@contextmanager
def running(threads: int) -> Iterator[None]:
    """Run torch without gradients on `threads` threads; the process's own number is put back afterwards.

    On a GPU convolutions are those of fp32 too (TF32 keeps 10 bits, and codes would flip), the same every time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_num_threads(before)


def weights_hash(model: nn.Module, **settings: Any) -> str:
    """Content hash over a model's weights (as the fp32 that runs) and the settings that change what it puts out."""
    state = sorted(model.state_dict().items())
    return content_hash(settings, *(part for name, value in state for part in (name, value.cpu().numpy())))


def limits(settings: Settings, *names: str) -> dict[str, Any]:
    """What limits of samples add to a content hash: nothing at their defaults, so that those tokenizers stay what they were.

    A limit decides which samples become tokens: with another one, shards that are there would be without the samples that
    it lets in, or hold those that it refuses.
    """
    fields = type(settings).model_fields
    return {name: value for name in names if (value := getattr(settings, name)) != fields[name].default}


def to_device(model: Model, device: str) -> Model:
    """The model moved to `device`, if it is not there; UserError if this machine has none.

    Called when there is something to encode or decode, so that a job can be planned on a machine without a GPU.
    """
    if next(model.parameters()).device == torch.device(device):
        return model
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # no driver, no such number, out of memory; built without CUDA
        raise UserError(
            f"device: {device} cannot be used here ({one_line(error)}); run where there is one, or set device to cpu"
        ) from None


def device_class(device: str) -> dict[str, str]:
    """What a device adds to a content hash: nothing for the CPU; a GPU's kind, as it rounds otherwise, never its index."""
    kind = torch.device(device).type
    return {} if kind == "cpu" else {"device": kind}


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Named tensors of a `.safetensors` file, or of a torch file that holds nothing but tensors in containers.

    Tensors under a key `state_dict`, `model` or `best_state` are found too.

    Raises:
        UserError: no such file, damaged, or a pickle that would run code when loaded.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; give the path of a .safetensors or torch file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not a file of plain tensors, and motet runs no code from files; convert it to safetensors"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as weights ({one_line(error)}); fetch the file again") from None
    for key in ("state_dict", "model", "best_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no named tensors; give a file of weights")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def open_diffusers(kind: type[Model], path: str, subfolder: str = "") -> Model:
    """A diffusers autoencoder in fp32 from a folder (`config.json` + safetensors) or a hub id `owner/name`.

    Raises:
        UserError: nothing there, another class of model, weights that do not fit, or a hub that cannot be reached.
    """
    folder = Path(path, subfolder)
    if folder.is_dir():
        _check_config(folder, kind)
    elif Path(path).exists() or not HUB_ID.fullmatch(path):
        raise UserError(
            f"{folder}: no such folder of weights; path must be a diffusers folder (`motet tokenizer fit` makes one) or a hub id owner/name"
        )
    else:
        try:
            fetch(path, "config.json", subfolder)
        except UserError as error:
            raise UserError(f"{error}, or to one that `motet tokenizer fit` made") from None
    diffusers_log = logging.getLogger("diffusers")
    level = diffusers_log.level
    diffusers_log.setLevel(logging.ERROR)  # what it warns about is checked below
    try:
        model, info = kind.from_pretrained(  # type: ignore[attr-defined]
            path,
            subfolder=subfolder or None,
            torch_dtype=torch.float32,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__}: {one_line(error)}; fetch it again") from None
    finally:
        diffusers_log.setLevel(level)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise UserError(
                f"{folder}: weights do not fit config.json ({problem.replace('_', ' ')}: {info[problem][0]}, "
                f"{len(info[problem])} in all); use the config.json that belongs to them"
            )
    return model.eval().requires_grad_(False)


def fetch(hub_id: str, name: str, subfolder: str = "") -> Path:
    """A file of a model on the hub, from its cache or downloaded; asks once and briefly, so that no hub is told at once."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    inside = f"{subfolder}/{name}" if subfolder else name
    cached = try_to_load_from_cache(hub_id, inside)
    if isinstance(cached, str):
        return Path(cached)
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, inside), timeout=HUB_SECONDS)
        return Path(hf_hub_download(hub_id, inside))
    except Exception as error:  # the errors of three layers of network clients, which have no common class
        raise UserError(
            f"{hub_id}: is no folder here, and {constants.ENDPOINT} does not give its {inside} ({one_line(error)}); download "
            "the model where there is a network and set path to its folder"
        ) from None


def load_strictly(model: Model, state: dict[str, torch.Tensor], where: Path) -> Model:
    """`state` into `model`, every name and shape equal; frozen. UserError names the first that is not."""
    own = {name: value.shape for name, value in model.state_dict().items()}
    wrong = sorted(own.keys() ^ state.keys()) or sorted(name for name in own if own[name] != state[name].shape)
    if wrong:
        raise UserError(
            f"{where}: these weights do not fit the model: {wrong[0]}, {len(wrong)} in all; check which it is"
        )
    model.load_state_dict(state)
    return model.float().eval().requires_grad_(False)


def _check_config(folder: Path, kind: type[nn.Module]) -> None:
    """The folder holds a configuration of this class."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: has no config.json; path must be a diffusers folder (or set subfolder)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; fetch it again") from None
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != kind.__name__:
        raise UserError(
            f"{file}: _class_name: describes {found}, expected {kind.__name__}; use the tokenizer made for it"
        )
