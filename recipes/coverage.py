r"""Every architecture: what each explanation does on one small model of every family of timm and torchvision.

    python recipes/coverage.py                                # two hours of one core; goes on where it was interrupted
    python recipes/coverage.py --only timm:resnet torchvision:vit_b_16 --out trial.json
    python recipes/coverage.py --table                        # prints the table of what was found

Random weights, normalisations that are not neutral, with statistics of images drawn here; images as small as the model
takes. Each model has a process of its own with a time limit. The outcome of a check is one of

    works      and the number is what it should be, or the library says by itself how far it is from that;
    refused    with the library's own sentence, which names the operation and the reason;
    wrong      a number that is off and nobody said so, or an error that is not ours;
    time       out of time.

What is checked, and the number beside it:

    layer      ``layer=None`` finds a layer; its name
    places     nine patches, changed one at a time, move that layer most where the map draws them, up to one row and one
               column; the share of them
    gradcam    Grad-CAM and HiResCAM are finite and not constant; their rank correlation
    gradient   the input gradient equals plain autograd's; the relative difference
    guided     the guided gradient is finite, or the network has no rectifiers, which is said
    lrp        LRP with z+ (with epsilon in transformers): the share of the logit that arrives; 0.9 to 1.1, or a warning
    lossless   the same with the rule `lossless`
    deeplift   completeness: the sum of the map over the difference of the scores
    integrated Integrated Gradients with 64 steps: the same
"""

from __future__ import annotations

import common.threads  # noqa: F401

import json
import math
import platform
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data.generated import GeneratedImages
from common.options import option, parsed
from common.run import write_whole
from lightning_xai import GradCAM, InputGradient, explain
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
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import centered, pre_softmax
from lightning_xai.trace import Capture, last_spatial_layer, name_of, run

SMALLEST_OF_TIMM = [
    "beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deepseek_vit_412m", "deit_tiny_patch16_224", "densenet121", "dla46x_c",
    "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet",
    "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0",
    "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m_enc", "ghostnet_050", "hardcorenas_b",
    "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s", "lowformer_b0",
    "test_mambaout", "test_coatnet", "poolformerv2_s12", "gmlp_ti16_224", "lcnet_035", "mobilenetv5_base",
    "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "nest_tiny",
    "nextvit_small", "test_nfnet", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny",
    "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d", "test_resnet", "resnetv2_18",
    "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050",
    "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window16_256", "swinv2_cr_tiny_224",
    "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny",
    "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos", "samvit_base_patch16_224", "vitamin_small_224",
    "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p", "xcit_nano_12_p8_224",
]  # fmt: skip
"""The model with the fewest parameters of each module of timm 1.0.31, as `timm.list_modules()` names them."""
MORE_OF_TIMM = [
    "repvgg_a0", "mobileone_s0", "mixnet_s", "ecaresnet26t", "regnetv_040", "mobilenetv2_100",
    "mobilenetv3_small_100", "efficientnet_b0", "convnextv2_atto", "nf_resnet26", "resnet18",
]  # fmt: skip
"""Forms that the smallest of their family lack."""
OF_TORCHVISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf",
    "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn",
    "vit_b_16", "wide_resnet50_2",
]  # fmt: skip
"""One model of each family of torchvision."""
NAMES = [
    *(f"timm:{name}" for name in (*SMALLEST_OF_TIMM, *MORE_OF_TIMM)),
    *(f"torchvision:{name}" for name in OF_TORCHVISION),
]
CLASSES = 10
SIZES: list[tuple[int, dict[str, Any]]] = [
    *((64, {"img_size": 64}), (64, {}), (96, {}), (128, {"img_size": 128}), (128, {}), (224, {}), (256, {}), (299, {})),
]
"""Sizes of images that are tried, and what the model is told of them."""
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The sweep."""

    only: tuple[str, ...] = option((), "models such as timm:resnet18; default: all")
    checks: tuple[str, ...] = option((), "names of checks; default: all")
    out: Path = option(Path(__file__).parent / "results" / "coverage.json", "file of the outcomes, which are kept")
    seconds: int = option(300, "time limit of a model")
    again: bool = option(False, "whether to check again what is in the file already")
    table: bool = option(False, "print the table and check nothing")
    alone: bool = option(False, "in this process, and print the outcome (what the sweep starts)")


def create(name: str) -> tuple[nn.Module, Tensor]:
    """A model and eight images of the smallest size that it takes."""
    library, kind = name.split(":")
    trouble: Exception | None = None
    for size, options in SIZES:
        try:
            torch.manual_seed(0)
            model = _of_timm(kind, options) if library == "timm" else _of_torchvision(kind, options)
            images = drawn(size)
            with torch.no_grad():
                model.eval()(images[:2])
            return calibrated(model, images), images
        except Exception as error:  # of another size, perhaps
            trouble = trouble or error
    raise RuntimeError(f"no size of images is right for {name}: {trouble}")


def _of_timm(kind: str, options: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(kind, num_classes=CLASSES, **options)


def _of_torchvision(kind: str, options: dict[str, Any]) -> nn.Module:
    import torchvision

    options = {"image_size" if one == "img_size" else one: value for one, value in options.items()}
    options |= {"aux_logits": False, "init_weights": True} if kind in ("googlenet", "inception_v3") else {}
    options |= {"input_size": (224, 224)} if kind == "maxvit_t" else {}
    return getattr(torchvision.models, kind)(num_classes=CLASSES, **options)


def drawn(size: int) -> Tensor:
    """Eight drawn images, standardised, with some noise."""
    data = GeneratedImages(8, size=size)
    images = (data.images / 255 - 0.5) / 0.25
    return images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def calibrated(model: nn.Module, images: Tensor) -> nn.Module:
    """Normalisations that are not neutral and know these images; a last layer that does not begin with zeros."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = None
        norm.train()
    for layer in [one for one in model.modules() if isinstance(one, nn.Linear)][-1:]:
        nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
    if norms:
        with torch.no_grad():
            model(images)
    return model.eval()


def layer(model: nn.Module, images: Tensor) -> Outcome:
    """The automatic layer."""
    return judged(True, name_of(model, last_spatial_layer(model, images)))


def places(model: nn.Module, images: Tensor) -> Outcome:
    """Where the automatic layer's map draws what single patches change."""
    capture = Capture({None: last_spatial_layer(model, images)})
    before = run(model, images[:1], capture).activation(None)
    cells = torch.tensor([[i * (n - 1) // 2 for i in range(3)] for n in before.shape[2:]])
    patches, moved = torch.cartesian_prod(*cells), []
    for patch in patches.tolist():
        changed = images[:1].clone()
        spans = zip(patch, before.shape[2:], images.shape[2:], strict=True)
        rows, columns = (slice(i * size // n, -(-(i + 1) * size // n)) for i, n, size in spans)
        changed[..., rows, columns] *= -1
        moved.append((run(model, changed, capture).activation(None) - before).norm(dim=1).flatten())
    most = (torch.stack(moved) / torch.stack(moved).mean(0)).argmax(1)
    found = torch.stack([most // before.shape[3], most % before.shape[3]], 1)
    share = ((found - patches).abs().amax(1) <= 1).float().mean().item()
    return judged(share > 0.75, share)


def gradcam(model: nn.Module, images: Tensor) -> Outcome:
    """Grad-CAM and HiResCAM."""
    maps = explain(model, images, attributions={"gradcam": GradCAM(), "hirescam": HiResCAM()})
    fine = all(bool(one.isfinite().all()) and bool((one.flatten(1).std(1) > 0).any()) for one in maps.values())
    return judged(fine, rank_correlation(maps["gradcam"].flatten(1), maps["hirescam"].flatten(1)).nanmedian().item())


def gradient(model: nn.Module, images: Tensor) -> Outcome:
    """The input gradient against plain autograd."""
    found = explain(model, images, 1, attributions=InputGradient(score=pre_softmax))
    given = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(given)[:, 1].sum(), given)
    error = (found - expected.sum(1)).norm() / expected.sum(1).norm()
    return judged(error < 1e-3, error.item())


def guided(model: nn.Module, images: Tensor) -> Outcome:
    """The guided gradient."""
    maps = explain(model, images, attributions=GuidedGradient())
    return judged(bool(maps.isfinite().all()) and bool(maps.abs().sum() > 0), None)


def lrp(model: nn.Module, images: Tensor) -> Outcome:
    """LRP with the rules that the docstring of `Rules` advises."""
    kinds = [type(one).__name__ for one in model.modules()]
    transformer = any("Att" in kind for kind in kinds) and not any("BatchNorm" in kind for kind in kinds)
    return _conserved(model, images, Rules(linear=Epsilon(), signed_sums=in_proportion) if transformer else Rules())


def without_loss(model: nn.Module, images: Tensor) -> Outcome:
    """LRP with the rule that loses nothing in layers."""
    return _conserved(model, images, Rules(convolution=lossless, linear=lossless))


def _conserved(model: nn.Module, images: Tensor, rules: Rules) -> Outcome:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        maps = explain(model, images, attributions=LRP(rules))
    logits = model(images).detach().amax(1)
    kept = (maps.flatten(1).sum(1) / logits).median().item()
    said = any("LRP expected the relevance" in str(one.message) for one in told)
    return judged(math.isfinite(kept) and (0.85 < kept < 1.15 or said), kept) | ({"said": True} if said else {})


def deeplift(model: nn.Module, images: Tensor) -> Outcome:
    """DeepLIFT's completeness."""
    return _complete(model, images, DeepLIFT(baseline=torch.tensor(0.1)), 1e-2)


def integrated(model: nn.Module, images: Tensor) -> Outcome:
    """Completeness of Integrated Gradients, whose error is that of a sum of 64 steps."""
    return _complete(model, images, IntegratedGradients(score=centered, baseline=torch.tensor(0.1), n_steps=64), 0.3)


def _complete(model: nn.Module, images: Tensor, method: Any, error: float) -> Outcome:
    maps = explain(model, images, 1, attributions=method)
    targets = torch.ones(len(images), dtype=torch.long)
    with torch.no_grad():
        rise = centered(model(images), targets) - centered(model(torch.full_like(images, 0.1)), targets)
    share = (maps.flatten(1).sum(1) / rise).median().item()
    return judged(abs(share - 1) < error, share)


CHECKS: dict[str, Callable[[nn.Module, Tensor], Outcome]] = {
    "layer": layer,
    "places": places,
    "gradcam": gradcam,
    "gradient": gradient,
    "guided": guided,
    "lrp": lrp,
    "lossless": without_loss,
    "deeplift": deeplift,
    "integrated": integrated,
}


def judged(fine: Any, number: Any) -> Outcome:
    """An outcome with its number."""
    return {"outcome": "works" if fine else "wrong", "number": number}


def checked(check: Callable[[nn.Module, Tensor], Outcome], model: nn.Module, images: Tensor) -> Outcome:
    """The outcome of a check; an error of ours that was meant is a refusal."""
    try:
        return check(model, images)
    except Exception as error:
        ours = "lightning_xai" in traceback.extract_tb(error.__traceback__)[-1].filename
        refused = ours and isinstance(error, (NotImplementedError, ValueError, TypeError, RuntimeError))
        return {"outcome": "refused" if refused else "wrong", "reason": f"{type(error).__name__}: {error}"[:400]}


def alone(name: str, checks: Sequence[str]) -> dict[str, Any]:
    """All that is found for one model, in this process."""
    torch.set_num_threads(1)
    began = time.monotonic()
    model, images = create(name)
    images = images[:2]
    outcomes = {one: checked(CHECKS[one], model, images) for one in checks}
    parameters = sum(one.numel() for one in model.parameters())
    facts = {"size": images.shape[-1], "parameters": parameters, "seconds": round(time.monotonic() - began, 1)}
    return {**facts, "checks": outcomes}


def in_a_process(name: str, checks: Sequence[str], seconds: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--alone", "--only", name, "--checks", *checks]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
        return dict(json.loads(ended.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"checks": {one: {"outcome": "time"} for one in checks}}
    except (subprocess.CalledProcessError, IndexError, ValueError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1][:400]
        return {"checks": {one: {"outcome": "wrong", "reason": reason} for one in checks}}


def sweep(options: Options) -> dict[str, Any]:
    """Check what is not in the file yet, and write it after each model."""
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    checks = options.checks or tuple(CHECKS)
    for name in options.only or NAMES:
        earlier = found["models"].get(name, {"checks": {}})
        missing = [one for one in checks if options.again or one not in earlier["checks"]]
        if not missing or options.table:
            continue
        fresh = in_a_process(name, missing, options.seconds)
        found["models"][name] = {**earlier, **fresh, "checks": {**earlier["checks"], **fresh["checks"]}}
        found |= {"command": "python recipes/coverage.py", "commit": commit(), "machine": platform.platform()}
        found |= {"torch": torch.__version__, "python": platform.python_version()}
        write_whole(options.out, json.dumps(found, indent=1))
        print(name, {one: told["outcome"] for one, told in fresh["checks"].items()}, flush=True)
    return found


def commit() -> str:
    """The commit of the library that is measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def cell(outcome: Outcome) -> str:
    """An outcome in a word, or its number."""
    number = outcome.get("number")
    shown = f"{number:.2f}" if isinstance(number, float) else str(number or "works")
    return f"{shown}{' (said)' if outcome.get('said') else ''}" if outcome["outcome"] == "works" else outcome["outcome"]


def table(found: dict[str, Any]) -> str:
    """Rows of models, columns of checks, and what was refused or wrong below."""
    rows, reasons = ["| model | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 1) + "|"], []
    for name, one in found["models"].items():
        rows.append(f"| {name} | " + " | ".join(cell(one["checks"].get(c, {"outcome": "-"})) for c in CHECKS) + " |")
        reasons += [f"{name}, {c}: {told['reason']}" for c, told in one["checks"].items() if "reason" in told]
    told = {c: [one["checks"][c]["outcome"] for one in found["models"].values() if c in one["checks"]] for c in CHECKS}
    counts = [f"{check}: {dict(Counter(outcomes))}" for check, outcomes in told.items()]
    return "\n".join([*rows, "", *counts, "", *reasons])


def main(argv: Sequence[str] | None = None) -> None:
    """Check, or print what was found."""
    options = parsed(Options, __doc__, argv)
    if options.alone:
        print(json.dumps(alone(options.only[0], options.checks)))
        return
    print(table(sweep(options)))


if __name__ == "__main__":
    main()
