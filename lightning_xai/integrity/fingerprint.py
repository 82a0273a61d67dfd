"""Fingerprints: what a trusted model does on probe images, in a small file, so that it need not be kept itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.files import write_whole
from lightning_xai.integrity.comparison import ModelComparison, compare_evidence
from lightning_xai.integrity.digest import Digest, digest_of_tensor, digest_of_tensors
from lightning_xai.integrity.evidence import KINDS, Evidence, evidence_of, fault_of, methods_of, traced
from lightning_xai.integrity.maps import AT_LAYER
from lightning_xai.kinds import require_kinds
from lightning_xai.scores import predicted
from lightning_xai.trace import Calling, Trace, name_of, require_images, require_model
from lightning_xai.types import OneLayer

FORMAT = "lightning_xai fingerprint 2"


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A trusted model's behaviour on probe images: logits, sketches of gradients, maps, and digests of its parts.

    The probes are not inside, only their digest: pass the same ones when comparing. Some 32 images of different classes
    and 1000 classes make 0.3 MB. Behaviour is compared to the precision of the coarser dtype, so that another dtype,
    device or memory format and folded BatchNorms pass; the digests tell of those.

    Attributes:
        layer: Name of the explained layer.
        layer_shape: Its output for one image, (D,h,w).
        evidence: Logits, gradients and maps.
        digest: Hashes of the model's parts.
        images: Hash of the probe images.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(8, 1, 6, 6)
        >>> fingerprint = Fingerprint.of(model, images)
        >>> print(fingerprint.compare(model.to(torch.bfloat16), images).verdict)
        unchanged
    """

    layer: str
    layer_shape: tuple[int, int, int]
    evidence: Evidence
    digest: Digest
    images: str

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        *,
        layer: OneLayer = None,
        attributions: Mapping[str, Attribution] | None = None,
        calling: Calling | None = None,
    ) -> Fingerprint:
        """Take a model's fingerprint: one pass, three sweeps from the logits to the layer, and what the methods cost.

        Args:
            model: The trusted classifier, images (N,C,H,W) -> logits (N,K), K >= 2.
            images: Probe images (N,C,H,W), cast to the dtype and device of the model.
            layer: Where maps are made: dotted name, module, or None for the last layer with a spatial output.
            attributions: Methods whose maps are compared, with Grad-CAM and HiResCAM at the layer; each needs a field
                ``score``.
            calling: What else the model is given, where its logits are, and the context it runs in.

        Returns:
            The fingerprint.

        Raises:
            ValueError: If a layer does not exist, or a method has no ``score``.
        """
        methods = methods_of(attributions)
        module, trace = traced(model, images, layer, methods, calling)
        evidence = evidence_of(trace, module, predicted(trace.logits), methods)
        _, *shape = trace.activation(module).shape
        name = name_of(model, module)
        return cls(name, (shape[0], shape[1], shape[2]), evidence, Digest.of(model), digest_of_tensor(images))

    def compare(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        layer: OneLayer = None,
        attributions: Mapping[str, Attribution] | None = None,
        calling: Calling | None = None,
    ) -> ModelComparison:
        """Compare a model with the trusted one; costs as much as `of`.

        Args:
            model: The model in question.
            images: The probe images of the fingerprint.
            layer: The explained layer where it has another name now. None for the one of the same name, maybe behind
                a prefix such as that of a wrapper; where there is none such, for the last with a spatial output.
            attributions: The methods of the fingerprint, by the same names.
            calling: What else the model is given, where its logits are, and the context it runs in.

        Returns:
            The comparison, with a ``verdict``; it prints as a table.

        Raises:
            ValueError: If the images, the classes, the methods or the layer's shape are not those of the fingerprint.
        """
        methods = methods_of(attributions)
        require_model(model, calling)
        require_images(images)
        self._check(images, methods)
        at = _likely_name(model, self.layer) if layer is None else layer
        module, trace = traced(model, images, at, methods, calling)
        name = name_of(model, module)
        self._check_shapes(trace, module, name)
        found = evidence_of(trace, module, predicted(self.evidence.logits), methods)
        return compare_evidence(found, self.evidence, layer=name, differing=self._differing(model, found))

    def save(self, path: str | Path) -> None:
        """Write the fingerprint into a safetensors file; nothing in it is executed on loading.

        Its checksum tells of damage. It is no signature: whoever can replace the file can make another.

        Args:
            path: The file; its folder is made.

        Raises:
            OSError: If it cannot be written; an earlier file is as it was.
            TypeError: If the path is none.
            ImportError: If safetensors is not installed.
        """
        from safetensors.torch import save  # not needed by anything else

        require_kinds(Fingerprint.save, path=path)
        tensors = {name: tensor.contiguous() for name, tensor in _tensors(self.evidence).items()}
        about = json.dumps(
            {
                "layer": self.layer,
                "layer_shape": self.layer_shape,
                "eps": self.evidence.eps,
                "functions": self.evidence.functions,
                "digest": dataclasses.asdict(self.digest),
                "images": self.images,
            }
        )
        told = {"format": FORMAT, "about": about, "checksum": _checksum(about, tensors)}
        write_whole(Path(path), save(tensors, metadata=told))

    @classmethod
    def load(cls, path: str | Path) -> Fingerprint:
        """Read a fingerprint.

        Args:
            path: The file.

        Returns:
            The fingerprint, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no fingerprint, or is truncated or corrupted.
            ImportError: If safetensors is not installed.
        """
        require_kinds(Fingerprint.load, path=path)
        about, tensors = _read(Path(path))
        maps = {kind: {n.partition(" ")[2]: t for n, t in tensors.items() if n.startswith(kind)} for kind in KINDS}
        if fault := fault_of(about, tensors, maps):
            raise ValueError(
                f"`path` expected a file of Fingerprint.save, got {Path(path).name!r}, with {fault}. "
                "Take the fingerprint again, of a model that is trusted."
            )
        evidence = Evidence(
            logits=tensors["logits"],
            common=tensors["common"],
            centered=tensors["centered"],
            raw_maps=maps["raw "],
            zero_sum_maps=maps["zero-sum "],
            eps=about["eps"],
            functions=tuple(about["functions"]),
        )
        depth, height, width = about["layer_shape"]
        return cls(about["layer"], (depth, height, width), evidence, Digest(**about["digest"]), about["images"])

    def _check(self, images: Tensor, methods: Mapping[str, Attribution]) -> None:
        if digest_of_tensor(images) != self.images:
            raise ValueError(
                f"`images` expected the {len(self.evidence.logits)} probe images of the fingerprint, got others: "
                f"{tuple(images.shape)}, {images.dtype}. Pass the very tensor, in its dtype: it is cast to the model's."
            )
        theirs = set(self.evidence.raw_maps) - set(AT_LAYER)
        if set(methods) != theirs:
            raise ValueError(
                f"`attributions` expected the methods of the fingerprint, {sorted(theirs)}, got {sorted(methods)}."
            )

    def _differing(self, model: nn.Module, found: Evidence) -> tuple[str, ...]:
        functions = ("autograd functions",) if found.functions != self.evidence.functions else ()
        return (*self.digest.differences(Digest.of(model)), *functions)

    def _check_shapes(self, trace: Trace, module: nn.Module, name: str) -> None:
        classes = self.evidence.logits.shape[1]
        if trace.logits.shape[1] != classes:
            raise ValueError(
                f"`model` expected logits of {classes} classes as of the fingerprint, got {trace.logits.shape[1]}. "
                "Compare models for the same classes."
            )
        shape = tuple(trace.activation(module).shape[1:])
        if shape != self.layer_shape:
            raise ValueError(
                f"`layer` expected an output of shape {self.layer_shape} for each image as of {self.layer!r} in the "
                f"fingerprint, got {shape} of {name!r}: another architecture, or another layer."
            )


def compare_models(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    *,
    layer: OneLayer = None,
    reference_layer: OneLayer = None,
    attributions: Mapping[str, Attribution] | None = None,
    calling: Calling | None = None,
) -> ModelComparison:
    """Compare a model with a trusted one, such as that of an earlier checkpoint.

    Args:
        model: The model in question, images (N,C,H,W) -> logits (N,K), K >= 2.
        reference: The trusted model.
        images: Probe images (N,C,H,W); some 32 of different classes.
        layer: Where maps are made: dotted name, module, or None for the name of the reference's.
        reference_layer: Where they are made in the reference; None for the last layer with a spatial output.
        attributions: Methods whose maps are compared too, for both models.
        calling: What else the models are given, where their logits are, and the context they run in.

    Returns:
        The comparison, with a ``verdict``; it prints as a table.

    Raises:
        ValueError: If the models' classes or layers differ in shape, or a layer does not exist.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> print(compare_models(model, model, torch.rand(8, 1, 6, 6)).verdict)
        unchanged
    """
    require_model(model, calling)
    fingerprint = Fingerprint.of(reference, images, layer=reference_layer, attributions=attributions, calling=calling)
    return fingerprint.compare(model, images, layer=layer, attributions=attributions, calling=calling)


def _likely_name(model: nn.Module, layer: str) -> str | None:
    names = [name for name, _ in model.named_modules()]
    behind_prefix = [name for name in names if name.endswith(f".{layer}")]
    if layer in names:
        return layer
    return behind_prefix[0] if len(behind_prefix) == 1 else None


def _tensors(evidence: Evidence) -> dict[str, Tensor]:
    tensors = {"logits": evidence.logits, "common": evidence.common, "centered": evidence.centered}
    tensors |= {f"raw {name}": maps for name, maps in evidence.raw_maps.items()}
    return tensors | {f"zero-sum {name}": maps for name, maps in evidence.zero_sum_maps.items()}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open  # not needed by anything else

    if not path.is_file():
        raise FileNotFoundError(f"`path` expected a fingerprint file, got {str(path)!r}, which does not exist.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"`path` expected a fingerprint file, got {path.name!r}, truncated or corrupted.") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"`path` expected a file of Fingerprint.save, got {path.name!r} of format {metadata.get('format')!r}."
        )
    if metadata.get("checksum") != _checksum(metadata.get("about", ""), tensors):
        raise ValueError(f"`path` expected a fingerprint file, got {path.name!r}, whose contents were altered.")
    try:
        return json.loads(metadata["about"]), tensors
    except (KeyError, ValueError) as error:
        raise ValueError(f"`path` expected a fingerprint file, got {path.name!r} without a description.") from error


def _checksum(about: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{about} {digest_of_tensors(tensors)}".encode()).hexdigest()
