"""Does the training term help? Fine-tuning arms from one converged network, paired by seed, against the object's truth.

    python recipes/term_effect.py                              # generated images, whose object is known
    python recipes/term_effect.py --task cifar10 --data DIR --given FILE    # from the weights of a ResNet-20

Train plainly until accuracy stands still; from that network fine-tune every arm with the same batches per seed. An arm
is compared at the largest strength, of three decades, whose accuracy on validation images stays within 0.3 points of
plain training's, over two seeds. Maps are scored against the pixels of the object (generated images), and under masks
beside fixed maps, also with logits scaled so that all networks are equally confident.

Arms: the term with each teacher and mode of BatchNorm, its other errors, at an inner layer, the paper's own setting
(Torres Figueroa et al. 2024); a penalty on the gradient's norm; and, beyond the paper, saliency-guided training (Ismail
et al. 2021) with random masks as its control, adversarial examples, a smooth teacher, and mirrored maps.

Output: one JSON file for each finished network in the run folder; ``--resume`` goes on, and more ``--seeds`` add to it.
Time on a quiet core: some two hours for the generated images, whose results are in ``recipes/results``; a quarter of an
hour for each arm on CIFAR-10.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import nn

from common.measured import save_measurement
from common.networks import save_weights
from common.options import RunOptions, option, parsed
from common.run import Run
from papers.interpretable_gradients.arms import PAPER, STRENGTHS, arms, file_name, finetuned, start
from papers.interpretable_gradients.effect import accuracy, logits_of, measured
from papers.interpretable_gradients.effect_report import draw, finished, tables, verdict
from papers.interpretable_gradients.tasks import Task, task

SLACK = 0.3
"""Points of accuracy on validation images that an arm may lose, over the seeds of the search."""
SEARCHED = 2
"""Seeds of the search."""
HOPELESS = 1.5
"""Points below the limit from which on the second seed is not tried."""


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    run: RunOptions = RunOptions(Path("runs/term_effect"))
    task: Literal["generated", "cifar10"] = option("generated", "the data set")
    data: Path | None = option(None, "folder with CIFAR-10")
    given: Path | None = option(None, "weights that the plain training begins with")
    arms: tuple[str, ...] = option((), "some of the arms, by name; default: all", nargs="+", metavar="ARM")
    seeds: int = option(5, "networks of each arm")
    results: Path | None = option(
        None, "folder of the finished seeds, all of which the tables take; default: the run's"
    )

    def __post_init__(self) -> None:
        if (self.task == "cifar10") != (self.data is not None):
            raise ValueError("--task cifar10 expected --data, and --task generated none.")


class Experiment:
    """Networks by arm, strength and seed: each is trained once and kept."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self.settings, self.run = settings, run
        self.task: Task = task(settings.task, settings.data, settings.run.fast_dev_run)
        self.weights = run.folder / "weights"
        start(self.task, self.weights, given=settings.given)
        self.other = start(self.task, self.weights, 1001)
        self.arms = settings.arms or tuple(arms(self.task))
        if unknown := set(self.arms) - set(arms(self.task)):
            raise SystemExit(f"--arms expected some of {list(arms(self.task))}, got {sorted(unknown)}.")

    def network(self, arm: str, strength: float, seed: int) -> tuple[nn.Module, float]:
        """A fine-tuned network, and its accuracy on validation images."""
        name = f"{file_name(arm, strength)}_{seed}"
        path, found = self.weights / f"{name}.safetensors", None

        def trained() -> float:
            nonlocal found
            found = finetuned(self.task, self.weights, arm, strength, seed)
            save_weights(found, path)
            validation = self.task.validation
            return accuracy(logits_of(found, validation.images), validation.labels)

        reached = self.run.part(f"trained_{name}", trained)
        if found is None:
            found = self.task.network()
            found.load_state_dict(load_file(path))
        return found.eval(), reached

    def strength_of(self, arm: str, limit: float) -> float:
        """The largest strength that keeps the accuracy; the smallest of all where none does."""
        for strength in sorted(STRENGTHS, reverse=True):
            first = self.network(arm, strength, 0)[1]
            if first < limit - HOPELESS:
                continue
            if (first + sum(self.network(arm, strength, seed)[1] for seed in range(1, SEARCHED))) / SEARCHED >= limit:
                return strength
        return min(STRENGTHS)

    def measured(self, arm: str, strength: float, seed: int) -> dict[str, Any]:
        """All that is reported of one network; plain training of the same seed comes first."""

        def compute() -> dict[str, Any]:
            wanted = None if arm == "plain" else self.measured("plain", 0.0, seed)["mean log-probability"]
            network, _ = self.network(arm, strength, seed)
            about = {"task": self.task.name, "arm": arm, "strength": strength, "seed": seed}
            return about | measured(network, self.task, self.other, wanted)

        return self.run.part(f"measured_{file_name(arm, strength)}_{seed}", compute)

    def chosen(self) -> dict[str, float]:
        """Every arm with its strength."""
        plain = [self.network("plain", 0.0, seed)[1] for seed in range(SEARCHED)]
        limit = sum(plain) / SEARCHED - SLACK
        found = {arm: self.strength_of(arm, limit) for arm in self.arms}
        return {"plain": 0.0, PAPER: 7.5e-3} | found


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the experiment; the measurements of every network."""
    settings = parsed(Settings, __doc__, argv)
    run = Run(settings.run, settings, free=("seeds", "results", "arms"))
    experiment = Experiment(settings, run)
    strengths = experiment.chosen()
    found, results = [], settings.results or run.folder / "seeds"
    for seed in range(settings.seeds):
        of_seed = [experiment.measured(arm, strength, seed) for arm, strength in strengths.items()]
        rows = json.loads(json.dumps(of_seed), parse_float=lambda text: float(f"{float(text):.6g}"))
        save_measurement(results / f"{settings.task}_{seed}.json", rows)
        found += of_seed
    values = finished(results, settings.task)
    picture = draw(values, run.folder / "effect.png")
    run.finish(f"Does the training term help? {settings.task}", verdict(values), tables(values), [picture])
    return found


if __name__ == "__main__":
    main()
