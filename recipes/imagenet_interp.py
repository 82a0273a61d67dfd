"""Train a classifier with the guided-gradient term beside one without it, and compare how they explain themselves.

    python recipes/imagenet_interp.py                                    # generated images, 2 CPU cores, 4 minutes
    python recipes/imagenet_interp.py --data DIR --model resnet50 --pretrained --preset paper
    python recipes/imagenet_interp.py --data DIR --model resnet50 --weights FILE --epochs 0       # evaluation only

Data: nothing (images generated from a seed), a folder ``train/<class>/*``, ``val/<class>/*`` as of ImageNet,
``cifar10`` or ``imagenette`` (downloaded by torchvision), or WebDataset shards.
Output: tables on the screen, and a run folder with ``report.html``, ``results.json``, ``maps.png``, ``curves.png``,
checkpoints and logs. ``--help`` explains the options; what to expect is in the README.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import argparse
import copy
import csv
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import lightning_xai as xai
from common.data.images import Batch, ImageData, image_data
from common.explained_images import examples
from common.networks import create_classifier, load_weights, model_options
from common.options import DataOptions, ModelOptions, RunOptions, built
from common.run import Run, first_images, is_first_process
from common.tables import interval
from lightning_xai.baselines import to_pixels
from lightning_xai.report import Cell, Example, Picture, Table
from lightning_xai.visualization import Panel, overlay

ERRORS = {
    "cosine": xai.regularization.CosineLoss,
    "sigmoid_masking": xai.regularization.SigmoidMaskingLoss,
    "centered_sigmoid_masking": xai.regularization.CenteredSigmoidMaskingLoss,
    "histogram_intersection": xai.regularization.HistogramIntersectionLoss,
    "l1": xai.regularization.L1DistanceLoss,
    "l2": xai.regularization.L2DistanceLoss,
}
TEACHERS = {
    "negative_loss": xai.regularization.negative_loss_teacher,
    "loss": xai.regularization.loss_teacher,
    "class_score": xai.regularization.class_score_teacher,
}
SCHEDULES: dict[str, Callable[[float, int], Callable[[int], float]]] = {
    "constant": lambda weight, steps: xai.regularization.ConstantWeight(weight),
    "warmup": lambda weight, steps: xai.LinearWarmup(weight, max(1, steps // 5)),
}
ATTRIBUTIONS = {
    "gradcam": lambda layer: xai.GradCAM(layer),
    "gradcam_plus": lambda layer: xai.GradCAMPlus(layer),
    "gradcam_plus_plus": lambda layer: xai.GradCAMPlusPlus(layer),
    "input_gradient": lambda layer: xai.InputGradient(),
    "guided_gradient": lambda layer: xai.GuidedGradient(),
}
LOGGERS = {
    # a resumed run gets a folder of its own: the logger deletes what it finds in one that it uses again; every row is
    # written at once, so that a process that is killed has logged what it did
    "csv": lambda folder, name: CSVLogger(
        folder, name="", version=f"csv_{next_attempt(folder)}", flush_logs_every_n_steps=1
    ),
    "tensorboard": lambda folder, name: TensorBoardLogger(folder, name="", version="tensorboard"),
    "wandb": lambda folder, name: WandbLogger(name=name, project="lightning_xai", save_dir=folder),
    "mlflow": lambda folder, name: MLFlowLogger("lightning_xai", run_name=name, save_dir=str(folder / "mlflow")),
}
PRESETS: dict[str, dict[str, Any]] = {
    # small enough for 4 minutes on 2 CPU cores, large enough for maps that can be right or wrong
    "generated": {
        "model": "resnet10t",
        "model_options": ["channels=(16, 32, 48, 64)", "stem_width=8", "output_stride=8"],
        "optimizer": "adamw",
        "lr": 1e-2,
        "lr_schedule": "onecycle",
        "batch_size": 64,
        "epochs": 7,
        "lambda_": 0.1,
        "schedule": "warmup",
        "n_explained": 256,
        "image_size": 64,
    },
    # fine-tuning of a network that is already good
    "finetune": {
        "model": "resnet50",
        "optimizer": "adam",
        "lr": 1e-5,
        "batch_size": 64,
        "lr_schedule": "constant",
        "epochs": 1,
        "lambda_": 7.5e-3,
        "schedule": "constant",
        "n_explained": 1000,
        "image_size": 224,
    },
    # "A Learning Paradigm for Interpretable Gradients", section 6.3.1; lambda as reported for the published version
    "paper": {
        "model": "resnet50",
        "optimizer": "adam",
        "lr": 1e-5,
        "batch_size": 100,
        "epochs": 5,
        "lr_schedule": "plateau",
        "teacher": "loss",
        "lambda_": 7.5e-3,
        "schedule": "constant",
        "n_explained": 1000,
        "image_size": 224,
    },
}


class Classifier(xai.GuidedGradientMixin, pl.LightningModule):
    """A network trained with the guided-gradient term of the given weight."""

    def __init__(
        self, model: nn.Module, loss: xai.GuidedGradientLoss, weight: float, num_classes: int, args: argparse.Namespace
    ) -> None:
        super().__init__()
        self.model = model
        self.interpretability = loss
        self.weight = weight
        self.args = args
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.hits: list[bool] = []
        self.skipped: set[str] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,K)."""
        return self.model(images)

    def on_fit_start(self) -> None:
        """Schedule the term, unless its weight sets itself; only the Trainer knows the number of steps."""
        if isinstance(self.interpretability.weight, xai.regularization.AdaptiveWeight):
            return
        steps = int(self.trainer.estimated_stepping_batches)
        self.interpretability.weight = SCHEDULES[self.args.schedule](self.weight, steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classification loss plus lambda times the term."""
        images, labels, skipped = batch
        self.skipped.update(skipped)
        loss, _ = self.guided_gradient_loss(images, labels, model=self.model)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy and loss; the explanations are the callbacks' business."""
        images, labels, skipped = batch
        self.skipped.update(skipped)
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("val/accuracy", self.accuracy, prog_bar=True, batch_size=len(images))
        self.log("val/loss", F.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Whether each image is classified rightly."""
        images, labels, skipped = batch
        self.skipped.update(skipped)
        self.hits += (self(images).argmax(1) == labels).tolist()

    def configure_optimizers(self) -> Any:
        """As the command line says."""
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        options = {"momentum": 0.9} if self.args.optimizer == "sgd" else {}
        optimizer = kinds[self.args.optimizer](self.parameters(), self.args.lr, **options)
        if self.args.lr_schedule == "constant":
            return optimizer
        if self.args.lr_schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        steps = int(self.trainer.estimated_stepping_batches)
        onecycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.args.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": onecycle, "interval": "step"}}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a preset gives what is not said there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--data", help="folder, cifar10, imagenette, or shards; nothing: generated images")
    data.add_argument("--val-data", help="validation shards, where --data names training shards")
    data.add_argument("--image-size", type=int, help="side of the images in pixels")
    data.add_argument("--mean", type=float, nargs=3, help="mean of the channels; default: the model's, else ImageNet's")
    data.add_argument("--std", type=float, nargs=3, help="standard deviation of the channels; default as for --mean")
    data.add_argument("--batch-size", type=int, help="images in a batch of one device")
    data.add_argument("--workers", type=int, default=0, help="processes that load images")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="name in timm or torchvision, or package.module:function")
    model.add_argument("--model-options", nargs="*", default=[], metavar="NAME=VALUE", help="for the constructor")
    model.add_argument("--weights", type=Path, help="safetensors file or checkpoint; pickled code is not executed")
    model.add_argument("--pretrained", action="store_true", help="download the library's weights")
    term = parser.add_argument_group("training term")
    term.add_argument("--lambda", dest="lambda_", type=float, help="weight of the term")
    term.add_argument("--schedule", choices=SCHEDULES, help="how the weight comes in")
    term.add_argument("--error", choices=ERRORS, default="cosine", help="how gradients are compared")
    term.add_argument("--teacher", choices=TEACHERS, default="negative_loss", help="whose guided gradient teaches")
    term.add_argument("--batch-norm", choices=["training", "evaluation"], default="training", help="under the term")
    term.add_argument("--every-n-steps", type=int, default=1, help="compute the term in every n-th step only")
    term.add_argument("--fraction", type=float, default=1.0, help="compute the term of this share of each batch")
    term.add_argument("--term-layer", metavar="NAME", help="take the term at this inner layer, not at the image")
    term.add_argument("--adaptive", type=float, metavar="SHARE", help="instead of a schedule: as GradientShare allows")
    train = parser.add_argument_group("training")
    train.add_argument("--preset", choices=PRESETS, help="settings to start from; default: generated or finetune")
    train.add_argument("--optimizer", choices=["adam", "adamw", "sgd"], help="sgd has momentum 0.9")
    train.add_argument("--lr", type=float, help="learning rate")
    train.add_argument("--lr-schedule", choices=["constant", "onecycle", "plateau"], help="plateau: of the loss")
    train.add_argument("--epochs", type=int, help="0: evaluate only")
    train.add_argument("--max-steps", type=int, default=-1, help="stop after so many steps")
    train.add_argument("--seed", type=int, default=0, help="of weights, data order and generated images")
    train.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True, help="with lambda = 0 too")
    explain = parser.add_argument_group("explanations")
    explain.add_argument("--attributions", nargs="+", choices=ATTRIBUTIONS, default=list(ATTRIBUTIONS), help="methods")
    explain.add_argument("--layer", help="dotted name of the layer for CAM methods; default: the last spatial one")
    explain.add_argument("--n-explained", type=int, help="images in the final table")
    explain.add_argument("--n-followed", type=int, default=8, help="images drawn; four of them in each epoch")
    run = parser.add_argument_group("run")
    run.add_argument("--run", type=Path, default=Path("runs/imagenet_interp"), help="folder of the results")
    run.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    run.add_argument("--logger", nargs="*", choices=LOGGERS, default=["csv"], help="where to log; several are fine")
    run.add_argument("--precision", default="32-true", help="as of the Trainer, bf16-mixed say")
    run.add_argument("--accelerator", default="auto", help="as of the Trainer")
    run.add_argument("--strategy", default="auto", help="as of the Trainer, ddp say")
    run.add_argument("--devices", default="auto", help="as of the Trainer")
    run.add_argument("--num-nodes", type=int, default=1, help="as of the Trainer")
    run.add_argument("--fast-dev-run", action="store_true", help="two small batches of everything, to try the script")
    known, _ = parser.parse_known_args(argv)
    preset = known.preset or ("finetune" if known.data else "generated")
    defaults = dict(PRESETS[preset])
    if known.model:
        defaults.pop("model_options", None)  # they are those of the preset's own model
    parser.set_defaults(preset=preset, **defaults)
    return parser.parse_args(argv)


def attributions_of(args: argparse.Namespace, data: ImageData, model: nn.Module) -> dict[str, xai.Attribution]:
    """The methods asked for, tried once; guided gradients are left out, and said so, without rectifiers."""
    image = torch.zeros(1, 3, data.image_size, data.image_size)
    methods: dict[str, xai.Attribution] = {name: ATTRIBUTIONS[name](args.layer) for name in args.attributions}
    if "guided_gradient" in methods:
        try:
            xai.explain(model, image, attributions=xai.GuidedGradient())
        except ValueError as error:
            say(f"guided_gradient is left out: {error}")
            del methods["guided_gradient"]
    if not methods:
        raise ValueError("`--attributions` expected a method besides guided_gradient for this network.")
    xai.explain(model, image, attributions=methods)
    return methods


def term_of(args: argparse.Namespace, weight: float) -> xai.GuidedGradientLoss:
    """The training term asked for; where its weight does not set itself, training brings the schedule."""
    adaptive = None
    if args.adaptive is not None and weight:
        adaptive = xai.regularization.AdaptiveWeight(xai.regularization.GradientShare(args.adaptive), start=weight)
    return xai.GuidedGradientLoss(
        ERRORS[args.error](),
        adaptive,
        teacher=TEACHERS[args.teacher],
        batch_norm=args.batch_norm,
        every_n_steps=args.every_n_steps,
        fraction=args.fraction,
        layer=args.term_layer,
    )


def try_term(args: argparse.Namespace, data: ImageData, network: nn.Module) -> None:
    """One step with the term on a copy: what it refuses is refused before training."""
    images, labels = torch.zeros(2, 3, data.image_size, data.image_size), torch.zeros(2, dtype=torch.long)
    term_of(args, args.lambda_)(copy.deepcopy(network).eval(), images, labels, F.cross_entropy, 0)


@rank_zero_only
def say(text: str) -> None:
    """Print, once for all processes."""
    print(text, flush=True)


def train_and_test(
    args: argparse.Namespace,
    data: ImageData,
    model: nn.Module,
    methods: dict[str, xai.Attribution],
    weight: float,
    folder: Path,
) -> dict[str, Any]:
    """Train one network and measure it.

    Returns:
        For each image whether it is right; the values of each metric, by attribution; names of unreadable files.
    """
    pl.seed_everything(args.seed, workers=True, verbose=False)
    module = Classifier(model, term_of(args, weight), weight, len(data.classes), args)
    standard: dict[str, Any] = {"mean": data.mean, "std": data.std}
    metrics = [kind(keep_values=True) for kind in (xai.AverageDrop, xai.AverageIncrease, xai.AverageGain)]
    integrity = xai.ModelIntegrity(args.layer, **standard)
    loggers: list[Logger] = [LOGGERS[name](folder, f"{args.run.name}-{folder.name}") for name in args.logger]
    if args.epochs:
        watching: list[Callback] = [
            xai.SaliencyMaps(methods, n_images=min(4, args.n_followed), class_names=data.classes, **standard),
            xai.Faithfulness(methods, metrics, n_images=min(64, args.n_explained), controls={}, **standard),
            integrity,
            ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_last=True),
        ]
        last = folder / "checkpoints" / "last.ckpt"
        trainer_of(args, loggers, watching).fit(module, data, ckpt_path=last if args.resume and last.exists() else None)
    faithfulness = xai.Faithfulness(methods, metrics, n_images=args.n_explained, control_images=None, **standard)
    # after training, the last validation has checked these weights already
    tested: list[Callback] = [faithfulness] if args.epochs else [faithfulness, integrity]
    trainer_of(args, loggers, tested).test(module, data, verbose=False)
    found: dict[str, Any] = {**faithfulness.states[0]}
    values = {name: {metric: one.values.tolist() for metric, one in states.items()} for name, states in found.items()}
    parts = of_all_processes((module.hits, module.skipped))
    correct = [hit for hits, _ in parts for hit in hits]
    return {"correct": correct, "values": values, "skipped": sorted(set().union(*(names for _, names in parts)))}


def of_all_processes(mine: Any) -> list[Any]:
    """What each process has, by rank."""
    if not dist.is_initialized():
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def trainer_of(args: argparse.Namespace, loggers: list[Logger], callbacks: list[Callback]) -> pl.Trainer:
    """A Trainer as the command line says."""
    few = 2 if args.fast_dev_run else None
    return pl.Trainer(
        accelerator=args.accelerator,
        strategy=args.strategy,
        devices=args.devices,
        num_nodes=args.num_nodes,
        precision=args.precision,
        max_epochs=1 if args.fast_dev_run else args.epochs,
        max_steps=args.max_steps,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        enable_model_summary=False,
        log_every_n_steps=1 if args.fast_dev_run else 10,
        limit_train_batches=few,
        limit_val_batches=few,
        limit_test_batches=few,
    )


def arm(
    args: argparse.Namespace,
    data: ImageData,
    network: nn.Module,
    methods: dict[str, xai.Attribution],
    weight: float,
    name: str,
) -> dict[str, Any]:
    """One network from the common start to its results, or what an earlier run left of it."""
    folder = args.run / name
    done = folder / "results.json"
    weights = folder / "model.safetensors"
    if done.exists():
        load_weights(network, weights)
        return json.loads(done.read_text())
    say(f"\n{name}: lambda = {weight:g}")
    results = train_and_test(args, data, network, methods, weight, folder)
    if is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), weights)
        write_whole(done, json.dumps(results))
    return results


def write_whole(path: Path, text: str) -> None:
    """Write a file at once: a process that is killed leaves the earlier one or none, never half of it."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def summary(arms: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means of each network, and the paired difference of the second to the first, image by image."""
    tables = {
        name: {
            ("accuracy", ""): 100 * np.array(one["correct"]),
            **{(m, a): np.array(v) for a, values in one["values"].items() for m, v in values.items()},
        }
        for name, one in arms.items()
    }
    rows = []
    for key in next(iter(tables.values())):
        row: dict[str, Any] = {"metric": key[0], "attribution": key[1]}
        row["networks"] = {name: interval(table[key], seed) for name, table in tables.items()}
        if len(tables) == 2:
            first, second = (table[key] for table in tables.values())
            row["difference"] = interval(second - first, seed)
        rows.append(row)
    return {"rows": rows}


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """A table for each metric."""
    networks = list(rows[0]["networks"])
    heads = ["", *networks, *([f"{networks[1]} - {networks[0]}"] if len(networks) == 2 else [])]
    cells = {metric: [_cells(row) for row in rows if row["metric"] == metric] for metric in METRICS}
    return [Table(title, heads, cells[metric]) for metric, title in METRICS.items()]


def _cells(row: dict[str, Any]) -> list[Cell]:
    return [row["attribution"], *row["networks"].values(), *([row["difference"]] if "difference" in row else [])]


METRICS = {
    "accuracy": "Accuracy in percent, higher is better",
    "AverageDrop": "Average drop in percent, lower is better",
    "AverageIncrease": "Average increase in percent, higher is better",
    "AverageGain": "Average gain in percent, higher is better",
}


TELLING = {"AverageDrop": False, "AverageGain": True}
"""Metrics that tell images apart, and whether higher is better; an increase is there or not."""


def draw_maps(
    args: argparse.Namespace,
    data: ImageData,
    networks: dict[str, nn.Module],
    methods: dict[str, xai.Attribution],
    path: Path,
) -> str:
    """The same images under every network, side by side; returns the title."""
    images, labels = first_images(data.test_dataloader(), args.n_followed)
    pixels = to_pixels(images, data.mean, data.std)
    overlays, facts = {}, {"label": [data.classes[label] for label in labels.tolist()]}
    for name, network in networks.items():
        with torch.no_grad():
            probabilities = network.eval()(images).softmax(1)
        best = probabilities.max(1)
        facts[name] = [f"{data.classes[c]} ({p:.2f})" for p, c in zip(best[0].tolist(), best[1].tolist(), strict=True)]
        for method, maps in xai.explain(network, images, attributions=methods).items():
            overlays[f"{method}\n{name}"] = overlay(pixels, maps)
    ordered = {key: overlays[key] for method in args.attributions for key in overlays if key.split("\n")[0] == method}
    title = "Maps of the predicted class" + ("; generated images" if data.generated else "")
    Panel(pixels, ordered, facts).figure(title).savefig(path)
    return title


CURVES = {
    "train/{term}/classification_loss": "classification loss L_C",
    "train/{term}/cosine": "cosine of gradient and guided gradient",
    "val/accuracy": "validation accuracy",
    "val/xai/gradcam/AverageDrop": "average drop of Grad-CAM, percent",
}


def draw_curves(folders: dict[str, Path], term: str, generated: bool, path: Path) -> None:
    """Losses, alignment, accuracy and faithfulness over the steps of training, as the CSV logger kept them."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    figure.suptitle("Training" + (" on generated images" if generated else ""))
    logged = {name: list(_logged(folder)) for name, folder in folders.items()}
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        axes.set(title=title, xlabel="step")
        for i, (name, rows) in enumerate(logged.items()):
            points = curve(rows, key.format(term=term))
            if points:
                axes.plot(*zip(*points, strict=True), color=f"C{i}", label=name, marker="." if len(points) < 20 else "")
                axes.legend()
    figure.savefig(path, dpi=100)


def curve(rows: Iterable[dict[str, str]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a key; of a step that was done again after an interruption the later value."""
    return sorted({int(row["step"]): float(row[key]) for row in rows if row.get(key)}.items())


def _logged(folder: Path) -> Iterator[dict[str, str]]:
    for attempt in sorted(attempts(folder)):
        metrics = folder / f"csv_{attempt}" / "metrics.csv"
        if metrics.exists():  # not where a process was killed before it logged anything
            with metrics.open() as file:
                yield from csv.DictReader(file)


def attempts(folder: Path) -> list[int]:
    """Numbers of the logs of a run and of its resumptions."""
    return [int(path.name.removeprefix("csv_")) for path in folder.glob("csv_*")]


def next_attempt(folder: Path) -> int:
    """One above the highest, so that no earlier log is in the way, whichever of them are still there."""
    return max(attempts(folder), default=-1) + 1


_FREE = {"devices", "accelerator", "num_nodes", "strategy", "workers"}  # may change when a run is resumed


BAD_COMMAND_LINE = (ValueError, TypeError, LookupError, AttributeError, OSError, ImportError, RuntimeError)


def prepared(args: argparse.Namespace) -> tuple[ImageData, nn.Module, dict[str, xai.Attribution]]:
    """Data, the initial network and the methods, so that a bad command line fails before anything is written."""
    try:
        steps = args.max_steps if args.epochs else 0
        asked = built(DataOptions, args), built(ModelOptions, args)
        data = image_data(*asked, seed=args.seed, small=args.fast_dev_run, steps=steps)
        if not data.trainable and args.epochs:
            say("There are no training images: the network is evaluated only.")
            args.epochs = 0
        pl.seed_everything(args.seed, workers=True, verbose=False)
        options = model_options(args.model_options)
        network = create_classifier(
            args.model, len(data.classes), pretrained=args.pretrained, weights=args.weights, **options
        )
        if args.lambda_ and args.epochs:
            try_term(args, data, network)
        return data, network, attributions_of(args, data, network)
    except (*BAD_COMMAND_LINE, pickle.UnpicklingError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; returns the values of ``results.json`` (nothing on ranks other than zero)."""
    args = parse(argv)
    data, start, methods = prepared(args)
    run = Run(built(RunOptions, args), vars(args), free=_FREE) if is_first_process() else None
    weights = {"plain": 0.0, "guided": args.lambda_} if args.compare else {"guided": args.lambda_}
    if not args.epochs:
        weights = {"given": 0.0}
    networks = {name: copy.deepcopy(start) for name in weights}
    arms = {name: arm(args, data, networks[name], methods, weight, name) for name, weight in weights.items()}
    return report(args, data, networks, methods, arms, run) if run else {}


def report(
    args: argparse.Namespace,
    data: ImageData,
    networks: dict[str, nn.Module],
    methods: dict[str, xai.Attribution],
    arms: dict[str, dict[str, Any]],
    run: Run,
) -> dict[str, Any]:
    """Write and show what was found."""
    first = next(iter(arms.values()))
    found = {
        **summary(arms, args.seed),
        "images": len(first["correct"]),
        "explained": max(len(v) for values in first["values"].values() for v in values.values()),
        "generated": data.generated,
        "skipped": sorted({name for one in arms.values() for name in one["skipped"]}),
    }
    caption = draw_maps(args, data, networks, methods, run.folder / "maps.png")
    if args.epochs and "csv" in args.logger:  # report.html draws the logs' curves itself
        term = term_of(args, args.lambda_).name(next(iter(networks.values())))
        draw_curves({name: args.run / name for name in networks}, term, data.generated, run.folder / "curves.png")
    images: list[Example] = []
    if not dist.is_initialized():  # several processes measure the images in another order than the loader's
        for name, network in networks.items():
            images += examples(name, network, arms[name]["values"], data, methods, list(TELLING), run.folder)
    note = " generated" if data.generated else ""
    text = (
        f"Means over {found['images']}{note} test images, of which {found['explained']} were explained, with bootstrap "
        "95 % intervals over images. A difference is paired, image by image, and speaks of these two networks, not of "
        "training in general."
    )
    pictures = [Picture("maps.png", caption)]
    run.finish("Guided gradients in training", text, tables(found["rows"]), pictures, found, images, TELLING)
    if found["skipped"]:
        print(f"{len(found['skipped'])} files could not be read: {', '.join(found['skipped'][:5])}")
    return found


if __name__ == "__main__":
    main()
