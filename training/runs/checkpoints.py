"""Atomic checkpoints: safetensors files with a list of their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from dinoviz.atomic_files import why
from dinoviz.errors import DinovizError
from dinoviz.json_files import read_json
from training.config.base import shortened
from training.runs.files import CHECKPOINT, CHECKPOINT_FILE, checked, opened

MOST_STATE = 64_000_000  # bytes of a state.json, which holds the losses since the last record
KEPT = 2  # the newest, and the one before in case the newest is damaged


class CheckpointError(DinovizError):
    """Why a checkpoint cannot be written or read, as part of a sentence."""

    def __init__(self, reason: str):
        super().__init__(reason.removesuffix("."))


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its step, its folder, and the state saved with the tensors."""

    step: int
    folder: Path
    state: dict

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its parts, for `tensors`."""
        return tuple(sorted(file.stem for file in self.folder.glob("*.safetensors")))

    def tensors(self, key: str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """The tensors of one part by name, bit-equal to those saved. Raises DinovizError for an unknown part."""
        if key not in self.keys:
            raise DinovizError(f"The checkpoint of step {self.step} has the parts {', '.join(self.keys)}, not {key}.")
        return safetensors.torch.load_file(self.folder / f"{key}.safetensors", device=str(device))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimiser as tensors by name; "0.exp_avg" is that of the first parameter."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Set the state that `optimizer_tensors` returned; learning rates and groups do not change."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        i, name = key.split(".", 1)
        state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save(folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> Path:
    """Write folder/step-00000123 atomically, then delete all others except the last good one before it.

    Raises CheckpointError if it cannot be written; existing checkpoints are then unchanged.
    """
    final = folder / f"step-{step:08}"
    part = final.with_name(f"{final.name}.part")
    try:
        with removed_on_failure(part):
            for left in folder.glob("*.part"):  # by a process that was killed
                shutil.rmtree(left)
            part.mkdir(parents=True)
            _fill(part, step, tensors, state)
            _put(part, final)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(why(error)) from None
    _delete_others(folder, final)
    return final


def newest(folder: Path, refused: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest undamaged checkpoint, or None. refused: called with a message for each damaged one."""
    for each in _candidates(folder):
        try:
            return _read(each)
        except CheckpointError as error:
            refused(f"The checkpoint {each.name} is skipped: {error}.")
    return None


def _fill(part: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
    files = {}
    for key, by_name in tensors.items():
        file = part / f"{key}.safetensors"
        safetensors.torch.save_file(_storable(by_name), file)
        files[file.name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
        _sync_file(file)
    about = part / "state.json"
    about.write_text(json.dumps({"step": step, "state": state, "files": files}), encoding="utf-8")
    _sync_file(about)
    _sync_folder(part)


def _storable(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous and without shared memory, which safetensors refuses."""
    ready, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return ready


def _put(part: Path, final: Path) -> None:
    # A resumed run may reach the step of a checkpoint again. A folder cannot replace another atomically, so the old one
    # is first renamed to a name that `newest` also finds.
    if final.exists():
        old = final.with_name(f"{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
    part.replace(final)
    _sync_folder(final.parent)


def _delete_others(folder: Path, final: Path) -> None:
    """Keep `final` and the first good one before it; later ones are from before the run was resumed."""
    kept = [final]
    for each in _candidates(folder):
        if each in kept:
            continue
        if len(kept) < KEPT and _step(each) < _step(final) and _is_good(each):
            kept.append(each)
        else:
            shutil.rmtree(each, ignore_errors=True)


def _candidates(folder: Path) -> list[Path]:
    """Newest step first; of one step, the renamed one last."""
    found = [each for each in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}(\.old)?", each.name)]
    return sorted(found, key=lambda each: (-_step(each), each.name))


def _step(folder: Path) -> int:
    return int(folder.name.removesuffix(".old").removeprefix("step-"))


def _is_good(folder: Path) -> bool:
    try:
        _read(folder, hashes=False)
    except CheckpointError:
        return False
    return True


def _read(folder: Path, *, hashes: bool = True) -> Checkpoint:
    """hashes: whether to check hashes, about a second for a gigabyte, or sizes only."""
    about = read_json(folder / "state.json", CheckpointError, max_bytes=MOST_STATE, finite=False)
    about = checked(about, CHECKPOINT, "state.json", tuple(CHECKPOINT), CheckpointError)
    for name, written in about["files"].items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+\.safetensors", name) or not isinstance(written, dict):
            raise CheckpointError(f"state.json lists {shortened(name)}, which is not a file of a checkpoint")
        checked(written, CHECKPOINT_FILE, "state.json", tuple(CHECKPOINT_FILE), CheckpointError)
        try:
            with opened(folder / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size != written["size"]:
                    raise CheckpointError(f"{name} has {size} bytes instead of {written['size']}")
                if hashes and hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                    raise CheckpointError(f"{name} is damaged: its hash differs")
        except OSError as error:
            raise CheckpointError(f"{name}: {error.strerror or error}") from None
    return Checkpoint(about["step"], folder, about["state"])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_file(file: Path) -> None:
    """Flush a file to the disk before it is renamed."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not supported on Windows and some network disks
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove a file or a folder, if it exists, when an exception is raised."""
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise
