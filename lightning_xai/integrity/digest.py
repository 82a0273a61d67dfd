"""What a model consists of, in hashes: parameters, buffers, tree of modules, code and hooks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lightning_xai.integrity.code import code_of_hooks, code_of_modules


@dataclass(frozen=True)
class Digest:
    """SHA-256 of each part of a model.

    Equal digests mean the same files and code; different ones need not mean another function: a dtype, a folded
    BatchNorm or a new release of a library change them as well.

    Attributes:
        parameters: Names, dtypes, shapes and values.
        buffers: The same of the buffers, such as BatchNorm's statistics.
        modules: Names, classes and settings of all submodules.
        code: Bytecode of all methods of modules from outside torch, of functions that stand on modules themselves, and
            of functions that these call (`code_of_modules`). It changes with the version of Python.
        hooks: Places and code of hooks: forward and backward, on parameters, and for all modules of the process.

    Example:
        >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> Digest.of(first).differences(Digest.of(second))
        ('parameters',)
    """

    parameters: str
    buffers: str
    modules: str
    code: str
    hooks: str

    @classmethod
    def of(cls, model: nn.Module) -> Digest:
        """The digest of a model."""
        modules = list(model.named_modules())
        tree = (f"{name} {type(one).__module__}.{type(one).__qualname__} {one.extra_repr()}" for name, one in modules)
        return cls(
            parameters=digest_of_tensors(dict(model.named_parameters())),
            buffers=digest_of_tensors(dict(model.named_buffers())),
            modules=_hash(line.encode() for line in tree),
            code=_hash(code_of_modules(model)),
            hooks=_hash(code_of_hooks(model)),
        )

    def differences(self, other: Digest) -> tuple[str, ...]:
        """The parts that differ."""
        theirs = asdict(other)
        return tuple(part for part, value in asdict(self).items() if theirs[part] != value)


def digest_of_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and values; where and in which memory format it lies does not matter.

    Example:
        >>> digest_of_tensor(torch.ones(2)) == digest_of_tensor(torch.ones(4)[::2])
        True
    """
    return digest_of_tensors({"": tensor})


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, in the order of these.

    Example:
        >>> digest_of_tensors({"a": torch.ones(2)}) == digest_of_tensors({"b": torch.ones(2)})
        False
    """

    def parts() -> Iterable[bytes]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return _hash(parts())


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)  # the length keeps "ab", "c" apart from "a", "bc"
    return found.hexdigest()
