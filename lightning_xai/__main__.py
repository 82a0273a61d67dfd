"""The command line: ``python -m lightning_xai explain IMAGES --model NAME`` and ``... report RUN``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import lightning_xai as xai
from lightning_xai.folders import Explainer
from lightning_xai.networks import create_classifier, preprocessing_of
from lightning_xai.report import write_report

METHODS = {
    name: kind
    for name, kind in vars(xai).items()
    if isinstance(kind, type) and issubclass(kind, xai.Attribution) and kind not in (xai.Attribution, xai.FromCallable)
}


def main(argv: Sequence[str] | None = None) -> Path:
    """Read the command line and do what it says; returns the page that was written."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:  # the command's own usage tells what there is
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        page: Path = args.work(args)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(page)
    return page


def _parser() -> ArgumentParser:
    parser = ArgumentParser("python -m lightning_xai", description="What image classifiers look at.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "explain the predicted classes of all images in a folder; run it again to go on where it was stopped"
    explain = commands.add_parser("explain", help=text, description=f"{text.capitalize()}.")
    explain.set_defaults(work=_explain, parser=explain)
    add = explain.add_argument
    add("images", type=Path, metavar="IMAGES", help="folder of images, with the folders in it, or one image")
    kinds = "timm:NAME, torchvision:NAME, or package.module:NAME of a function or LightningModule"
    add("--model", required=True, metavar="NAME", help=kinds)
    add("--num-classes", type=int, metavar="K", help="default: as many as the architecture has")
    add("--weights", type=Path, metavar="FILE", help="safetensors file or checkpoint; pickled code is not executed")
    add("--pretrained", action="store_true", help="download the library's weights")
    add("--out", type=Path, metavar="FOLDER", default=Path("explanations"), help="for the results (%(default)s)")
    add("--methods", nargs="+", type=_method, choices=METHODS, metavar="NAME", default=["GradCAM"],
        help=f"any of {', '.join(METHODS)} (GradCAM)")  # fmt: skip
    add("--classes", type=Path, metavar="FILE", help="names of the classes, one a line; default: as the model says")
    add("--image-size", type=int, metavar="PIXELS", help="side of the images; default: the model's own, or 224")
    add("--mean", type=float, nargs="+", metavar="M", help="mean of the channels; default: the model's, or ImageNet's")
    add("--std", type=float, nargs="+", metavar="S", help="their standard deviation")
    add("--batch-size", type=int, default=8, help="images in a pass (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute (%(default)s)")
    text = "write the page of a run, or of two runs side by side"
    report = commands.add_parser("report", help=text, description=f"{text.capitalize()}.")
    report.set_defaults(work=lambda args: write_report(args.run, args.other), parser=report)
    report.add_argument("run", type=Path, metavar="RUN", help="folder of a run; the page is written there")
    report.add_argument("other", type=Path, metavar="RUN2", nargs="?", help="folder of a run to compare it with")
    return parser


def _method(name: str) -> str:
    """As it is written, in whichever case it is given."""
    return {one.lower(): one for one in METHODS}.get(name.lower(), name)


def _explain(args: Namespace) -> Path:
    model = create_classifier(args.model, args.num_classes, pretrained=args.pretrained, weights=args.weights).to(
        args.device
    )
    if args.model.startswith(("timm:", "torchvision:")) and not (args.pretrained or args.weights):
        print("The weights are random: give `--pretrained` or `--weights FILE`.", file=sys.stderr)
    size = None if args.image_size is None else (3, args.image_size, args.image_size)
    said = {"input_size": size, "mean": args.mean, "std": args.std}
    wanted = preprocessing_of(model, **{name: value for name, value in said.items() if value is not None})
    mean, std = wanted.standard
    known = {"mean": mean, "std": std} if mean else {}
    methods = {}
    for name in args.methods:
        method: Any = METHODS[name]  # a dataclass, as all of ours are
        methods[name] = method(**{one.name: known[one.name] for one in fields(method) if one.name in known})
    names = None if args.classes is None else args.classes.read_text(encoding="utf-8").splitlines()
    depends = ("model", "num_classes", "weights", "pretrained", "methods", "classes", "image_size", "mean", "std")
    settings = {name: getattr(args, name) for name in depends}
    return Explainer(model, methods, wanted, args.out, names, args.batch_size, settings)(args.images)


if __name__ == "__main__":
    main()
