r"""Every architecture: what each explanation does on one small model of every family of three libraries.

    python recipes/coverage.py                                # 40 minutes of one core; goes on where it was interrupted
    python recipes/coverage.py --only timm:resnet18 torchvision:vit_b_16 --out trial.json
    python recipes/coverage.py --table                        # writes the table of what was found, beside the file

The models are those of `common.architectures`: timm, torchvision and transformers (extra ``coverage``), random weights,
normalisations that are not neutral, with statistics of images drawn here; images as small as the model takes. Each
model has a process of its own with a time limit. The outcome of a check is one of

    works      and the number is what it should be, or the library says by itself how far it is from that;
    unclear    of `places` alone: with random weights no patch moves any place more than others, in large images either;
    refused    with the library's own sentence, which names the operation and the reason;
    wrong      a number that is off and nobody said so, or an error that is not ours;
    time       out of time.

What is checked, and the number beside it:

    layer      ``layer=None`` finds a layer; its name
    places     patches of up to seven rows and columns, changed one at a time, move that layer where the map draws them:
               the correlation of their row (or column, the smaller one) with the one around which the layer moves more
               than it does with other patches, which is not chance. Next to 0 for rows and columns exchanged, negative
               for a mirrored map; where each place sees half of the image, it is less than 1
    gradcam    Grad-CAM and HiResCAM are finite and not constant; their rank correlation
    gradient   the input gradient equals plain autograd's; the relative difference
    guided     the guided gradient is finite and not zero; which rectifiers it clamps at
    lrp        LRP with z+ (with epsilon in transformers): the share of the logit that arrives; 0.9 to 1.1, or a warning
    lossless   the same with the rule `lossless`
    folded     LRP of the same function with batch normalisation folded into convolutions; the relative difference
    deeplift   completeness: the sum of the map over the difference of the scores
    integrated Integrated Gradients equal plain autograd's at the same points, to 1e-6 or to what images that differ by
               1e-13 make of it; the relative difference
    term       a step with the guided-gradient term: the relative difference of all parameters' gradients from those of
               PyTorch's own double backward, in float64
    integrity  nobody is accused; the verdict
"""

from __future__ import annotations

import common.threads  # noqa: F401

import contextlib
import copy
import json
import math
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures import CLASSES, NAMES, create
from common.coverage_table import Outcome, table
from common.measured import save_measurement
from common.options import option, parsed
from common.processes import fresh_processes
from lightning_xai import GradCAM, GuidedGradientLoss, InputGradient, explain
from lightning_xai.attribution import (
    LRP,
    DeepLIFT,
    Epsilon,
    GuidedGradient,
    HiResCAM,
    IntegratedGradients,
    Rules,
    in_proportion,
    lossless,
)
from lightning_xai.integrity import inspect_model
from lightning_xai.ranks import rank_correlation
from lightning_xai.regularization import keep_saturated
from lightning_xai.scores import centered, pre_softmax
from lightning_xai.trace import Capture, Rectifiers, copied, guided, last_spatial_layer, logits_of, name_of, run

RESULTS = Path(__file__).parent / "results"
LARGEST = 1024
"""Pixels of a side of the largest images in which places are told apart."""


@dataclass(frozen=True)
class Options:
    """The sweep."""

    only: tuple[str, ...] = option((), "models such as timm:resnet18; default: all")
    checks: tuple[str, ...] = option((), "names of checks; default: all")
    out: Path = option(RESULTS / "coverage.json", "file of the outcomes, which are kept")
    seconds: int = option(900, "limit of the processor time of a model")
    again: bool = option(False, "whether to check again what is in the file already")
    table: bool = option(False, "write the table and check nothing")


class Logits(nn.Module):
    """A classifier that gives logits and nothing else, as the training term wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,K)."""
        logits = logits_of(self.model(images))
        if logits is None:
            raise TypeError("no logits")
        return logits


def layer(model: nn.Module, images: Tensor) -> Outcome:
    """The automatic layer."""
    return judged(True, name_of(model, last_spatial_layer(model, images)))


def places(model: nn.Module, images: Tensor) -> Outcome:
    """Where the automatic layer's map draws what single patches change: further from chance than three deviations.

    Where each place sees all of a small image, they are told apart in a larger one.
    """
    capture = Capture({None: last_spatial_layer(model, images[:2])})
    own, other, chance = _follows(model, images, capture)
    while not own > chance and images.shape[-1] <= LARGEST / 2:
        images = F.interpolate(images, scale_factor=2, mode="bilinear")
        with contextlib.suppress(Exception):  # of a size that is not the model's
            own, other, chance = _follows(model, images, capture)
    unclear = {} if own > chance or max(-own, other) > chance else {"outcome": "unclear"}
    return judged(own > chance, own) | unclear


def _follows(model: nn.Module, images: Tensor, capture: Capture) -> tuple[float, float, float]:
    """Correlations of where patches lie with where a layer moves, and with axes exchanged; what chance may make."""
    grid = run(model, images[:1], capture).activation(None).shape[2:]
    patches = torch.cartesian_prod(*(torch.linspace(0, n - 1, min(n, 7)).round().long() for n in grid))
    images = images[: -(-32 // len(patches))]
    before, moved = run(model, images, capture).activation(None), []
    for patch in patches.tolist():
        changed = images.clone()
        spans = zip(patch, grid, images.shape[2:], strict=True)
        rows, columns = (slice(i * size // n, -(-(i + 1) * size // n)) for i, n, size in spans)
        changed[..., rows, columns] *= -1
        moved.append((run(model, changed, capture).activation(None) - before).norm(dim=1))
    centres = torch.cat([_centres(one) for one in torch.stack(moved, 1)])
    lie = patches.repeat(len(images), 1).T.to(centres)
    found = torch.corrcoef(torch.cat([lie, centres.T]))[:2, 2:]
    return found.diag().min().item(), found.flip(0).diag().abs().max().item(), 3 * len(centres) ** -0.5


def _centres(moved: Tensor) -> Tensor:
    """Row and column around which maps (P,h,w) move more than the others do there, (P,2)."""
    usual = moved / moved.mean(0)
    excess = (usual / usual.mean((1, 2), keepdim=True) - 1).clamp(min=0).square()
    where = [torch.arange(n).to(moved) for n in moved.shape[1:]]
    return (
        torch.stack([(excess.sum(2) * where[0]).sum(1), (excess.sum(1) * where[1]).sum(1)], 1)
        / excess.sum((1, 2))[:, None]
    )


def gradcam(model: nn.Module, images: Tensor) -> Outcome:
    """Grad-CAM and HiResCAM."""
    maps = explain(model, images, attributions={"gradcam": GradCAM(), "hirescam": HiResCAM()})
    fine = all(bool(one.isfinite().all()) and bool((one.flatten(1).std(1) > 0).any()) for one in maps.values())
    return judged(fine, rank_correlation(maps["gradcam"].flatten(1), maps["hirescam"].flatten(1)).nanmedian().item())


def gradient(model: nn.Module, images: Tensor) -> Outcome:
    """The input gradient against plain autograd."""
    found = explain(model, images, 1, attributions=InputGradient(score=pre_softmax))
    return _close(found, _plain_gradient(model, images).sum(1))


def _plain_gradient(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(Logits(model)(leaf)[:, 1].sum(), leaf)[0]


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> Outcome:
    error = ((found - expected).norm() / expected.norm()).item()
    return judged(error < tolerance, error)


def guided_map(model: nn.Module, images: Tensor) -> Outcome:
    """The guided gradient."""
    rectifiers = _rectifiers(model, images)
    maps = explain(model, images, attributions=GuidedGradient(rectifiers=rectifiers))
    return judged(maps.isfinite().all() and maps.abs().sum() > 0, rectifiers)


def _rectifiers(model: nn.Module, images: Tensor) -> Rectifiers:
    """Those of the papers where the network has them."""
    with torch.enable_grad():
        logits = Logits(model)(images.clone().requires_grad_())
    try:
        with guided(logits, "relu"):
            return "relu"
    except ValueError:
        return "all"


def lrp(model: nn.Module, images: Tensor) -> Outcome:
    """LRP with the rules that the docstring of `Rules` advises."""
    return _conserved(model, images, _advised(model))


def _advised(model: nn.Module) -> Rules:
    kinds = [type(one).__name__ for one in model.modules()]
    transformer = any("Att" in kind for kind in kinds) and not any("BatchNorm" in kind for kind in kinds)
    return Rules(linear=Epsilon(), signed_sums=in_proportion) if transformer else Rules()


def without_loss(model: nn.Module, images: Tensor) -> Outcome:
    """LRP with the rule that loses nothing in layers."""
    return _conserved(model, images, Rules(convolution=lossless, linear=lossless))


def _conserved(model: nn.Module, images: Tensor, rules: Rules) -> Outcome:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        maps = explain(model, images, attributions=LRP(rules))
    logits = Logits(model)(images).detach().amax(1)
    kept = (maps.flatten(1).sum(1) / logits).median().item()
    said = any("LRP expected the relevance" in str(one.message) for one in told)
    return judged(math.isfinite(kept) and (0.9 <= kept <= 1.1 or said), kept) | ({"said": True} if said else {})


def folded(model: nn.Module, images: Tensor) -> Outcome:
    """LRP of a model and of the same function with batch normalisation in the weights of convolutions, in float64."""
    model, images = copied(model).double(), images.double()
    same = copied(model)
    if not _fold(same, images):
        return judged(True, "nothing to fold")
    one, other = (explain(net, images, 1, attributions=LRP(_advised(net))) for net in (model, same))
    return _close(other, one, 1e-6)


def _fold(model: nn.Module, images: Tensor) -> int:
    """Put what normalises the output of a convolution into it, where nobody else sees that output; how many were."""
    pairs = _pairs(model, images[:1])
    if _folded_alike(model, images[:1], pairs):
        return len(pairs)
    return sum(_folded_alike(model, images[:1], [pair]) for pair in pairs)


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[Any, Any]]:
    """Convolutions that are called once, and what normalises their output."""
    came_from: dict[int, tuple[nn.Module, Tensor]] = {}
    pairs: list[tuple[Any, Any]] = []
    calls: Counter[nn.Module] = Counter()

    def leave(module: nn.Module, args: Any, output: Tensor) -> None:
        calls[module] += 1
        came_from[id(output)] = module, output

    def enter(module: nn.Module, args: Any) -> None:
        pairs.append((came_from.get(id(args[0]), (None,))[0], module))

    hooks = [
        one.register_forward_hook(leave) if isinstance(one, nn.Conv2d) else one.register_forward_pre_hook(enter)
        for one in model.modules()
        if type(one) is nn.Conv2d or isinstance(one, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if conv is not None and norm.affine and calls[conv] == 1]


@torch.no_grad()
def _folded_alike(model: nn.Module, images: Tensor, pairs: list[tuple[Any, Any]]) -> bool:
    """Fold these; not where the function would be another."""
    net, kept = (
        Logits(model),
        copy.deepcopy([(conv._parameters, norm._parameters, norm._buffers) for conv, norm in pairs]),
    )
    expected = net(images)
    for conv, norm in pairs:
        conv.weight, conv.bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        nn.init.ones_(norm.weight), nn.init.zeros_(norm.bias)
        norm.running_mean.zero_(), norm.running_var.fill_(1 - norm.eps)
    alike = bool((net(images) - expected).norm() < 1e-3 * expected.norm())
    if not alike:
        for (conv, norm), before in zip(pairs, kept, strict=True):
            conv._parameters, norm._parameters, norm._buffers = before
    return alike


def deeplift(model: nn.Module, images: Tensor) -> Outcome:
    """DeepLIFT's completeness."""
    maps = explain(model, images, 1, attributions=DeepLIFT(baseline=torch.tensor(0.1)))
    targets, net = torch.ones(len(images), dtype=torch.long), Logits(model)
    with torch.no_grad():
        rise = centered(net(images), targets) - centered(net(torch.full_like(images, 0.1)), targets)
    share = (maps.flatten(1).sum(1) / rise).median().item()
    return judged(abs(share - 1) < 1e-2, share)


def integrated(model: nn.Module, images: Tensor) -> Outcome:
    """Integrated Gradients of three steps, in float64: rounding would move points across the kinks of rectifiers."""
    model, images = copied(model).double(), images.double()
    method = IntegratedGradients(score=pre_softmax, baseline=torch.tensor(0.1, dtype=torch.float64), n_steps=3)
    found = explain(model, images, 1, attributions=method)

    def plain(images: Tensor) -> Tensor:
        points = [(0.1 + at * (images - 0.1), weight) for at, weight in zip(*method.rule(3), strict=True)]
        mean = sum((weight * _plain_gradient(model, one) for one, weight in points), torch.zeros(()))
        return (mean * (images - 0.1)).sum(1)

    expected = plain(images)
    rounding = (plain(images * (1 + 1e-13)) - expected).norm() / expected.norm()
    return _close(found, expected, max(1e-6, rounding.item()))


def term(model: nn.Module, images: Tensor) -> Outcome:
    """A step with the term against PyTorch's own double backward, in float64 and training mode."""
    images, labels = images.double(), torch.arange(len(images)) % CLASSES
    models = [Logits(copied(model)).double().train() for _ in range(2)]
    rectifiers = _rectifiers(models[0], images)
    loss = GuidedGradientLoss(weight=1.0, rectifiers=rectifiers, image_weights=keep_saturated)
    torch.manual_seed(0)
    loss(models[0], images, labels, F.cross_entropy, 0).loss.backward()
    torch.manual_seed(0)
    _plain_term(models[1], images, labels, rectifiers).backward()
    found, expected = (
        torch.cat([one.grad.flatten() for one in net.parameters() if one.grad is not None]) for net in models
    )
    return _close(found, expected, 1e-6)


def _plain_term(model: nn.Module, images: Tensor, labels: Tensor, rectifiers: Rectifiers) -> Tensor:
    leaf = images.clone().requires_grad_()
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        mock.patch.object(F, "hardsigmoid", _hardsigmoid),
        mock.patch.object(F, "normalize", _normalize),
    ):
        loss = F.cross_entropy(model(leaf.clone()), labels)
    with guided(loss, rectifiers):
        (taught,) = torch.autograd.grad(-loss, leaf, retain_graph=True)
    (gradient,) = torch.autograd.grad(-loss, leaf, create_graph=True)
    return loss - F.cosine_similarity(gradient.flatten(1), taught.flatten(1)).mean()


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """PyTorch's own cannot be differentiated twice."""
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, x / 6 + 0.5))


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1) -> Tensor:
    """The second derivative of PyTorch's own is nan at zeros."""
    return x / x.square().sum(dim, keepdim=True).clamp(min=1e-24).sqrt()


def integrity(model: nn.Module, images: Tensor) -> Outcome:
    """The verdict without a reference; random classes are made to take turns, for one alone shows nothing."""
    model = copied(model)
    with torch.no_grad():
        for head in [one for one in model.modules() if isinstance(one, nn.Linear) and one.bias is not None][-1:]:
            if head.out_features == CLASSES:
                head.bias.sub_(Logits(model)(images).mean(0))
    verdict = inspect_model(model, images).verdict
    return judged(not verdict.alarms, str(verdict))


CHECKS: dict[str, Callable[[nn.Module, Tensor], Outcome]] = {
    "layer": layer,
    "places": places,
    "gradcam": gradcam,
    "gradient": gradient,
    "guided": guided_map,
    "lrp": lrp,
    "lossless": without_loss,
    "folded": folded,
    "deeplift": deeplift,
    "integrated": integrated,
    "term": term,
    "integrity": integrity,
}
N_IMAGES = {"term": 3, "integrity": 8, "places": 8}
"""Where two are not enough."""


def judged(fine: Any, number: Any) -> Outcome:
    """An outcome with its number."""
    return {
        "outcome": "works" if fine else "wrong",
        "number": float(f"{number:.3g}") if isinstance(number, float) else number,
    }


def checked(check: Callable[[nn.Module, Tensor], Outcome], model: nn.Module, images: Tensor) -> Outcome:
    """The outcome of a check; an error of ours that was meant is a refusal."""
    try:
        return check(model, images)
    except Exception as error:
        ours = "lightning_xai" in traceback.extract_tb(error.__traceback__)[-1].filename
        refused = ours and isinstance(error, (NotImplementedError, ValueError, TypeError, RuntimeError))
        return {"outcome": "refused" if refused else "wrong", "reason": f"{type(error).__name__}: {error}"[:400]}


def alone(name: str, checks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What is found for one model, in this process: names with facts and outcomes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, images = create(name)
    yield "size", images.shape[-1]
    yield "parameters", sum(one.numel() for one in model.parameters())
    for one in checks:
        yield one, checked(CHECKS[one], model, images[: N_IMAGES.get(one, 2)])


def _tell(ours: Connection, name: str, checks: Sequence[str], seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    try:
        for told in alone(name, checks):
            ours.send(told)
            ours.send(("seconds", round(time.process_time(), 1)))
    except RuntimeError as error:
        ours.send(("reason", str(error)[:400]))


def in_a_process(name: str, checks: Sequence[str], seconds: int) -> dict[str, Any]:
    """The same in a process of its own, with a limit of its processor time; what it had found by then is kept."""
    processes = fresh_processes()
    theirs, ours = processes.Pipe(duplex=False)
    process = processes.Process(target=_tell, args=(ours, name, checks, seconds))
    process.start()
    ours.close()
    found: dict[str, Any] = {}
    with contextlib.suppress(EOFError):
        while True:
            found.update([theirs.recv()])
    process.join()
    out_of_time = process.exitcode == -signal.SIGXCPU
    died = {"outcome": "wrong", "reason": found.pop("reason", f"the process ended with {process.exitcode}")}
    told = {one: found.pop(one, {"outcome": "time"} if out_of_time else died) for one in checks}
    return {**found, "checks": told}


def sweep(options: Options) -> dict[str, dict[str, Any]]:
    """Check what is not in the file yet, and write it after each model."""
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    found = {row["model"]: row for row in rows}
    checks = options.checks or tuple(CHECKS)
    for name in () if options.table else options.only or NAMES:
        earlier = found.get(name, {"model": name, "checks": {}})
        missing = [one for one in checks if options.again or one not in earlier["checks"]]
        if missing:
            fresh = in_a_process(name, missing, options.seconds)
            found[name] = {**earlier, **fresh, "checks": {**earlier["checks"], **fresh["checks"]}}
            save_measurement(options.out, list(found.values()))
            print(
                name, fresh.get("seconds"), {one: told["outcome"] for one, told in fresh["checks"].items()}, flush=True
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Check, and write the table of what was found."""
    options = parsed(Options, __doc__, argv)
    options.out.with_suffix(".md").write_text(table(sweep(options), NAMES, CHECKS), encoding="utf-8")


if __name__ == "__main__":
    main()
