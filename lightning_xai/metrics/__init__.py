"""Faithfulness metrics: a pure function, then its torchmetrics class.

| metric | question | better |
|---|---|---|
| `AverageDrop`, `AbsoluteDrop` | how much of the class's probability is lost when only what the map shows is left | lower |
| `AverageIncrease`, `AverageGain`, `RelativeGain` | how often it grows, and by what share of what was missing | higher |
| `ADCC`, `Coherency`, `Complexity` | the drop, weighed with the stability and the extent of the map | higher, higher, lower |
| `RelativePerformance` | the geometric mean of that probability under one method over that under another | |
| `Deletion`, `Insertion`, `ROAD` | how fast the class goes, or comes back, in the order of the map | lower, higher, higher gap |
| `MaximalPatchMasking` | what a patch around the maximum is worth | lower |
| `PointingGame`, `EnergyInBox`, `EnergyPointingAccuracy`, `GridPointingGame` | whether the map lies on the object | higher |
| `Infidelity`, `MaxSensitivity` | whether it accounts for perturbations, and stays under tiny ones | lower |
| `ClassSensitivity`, `ParameterRandomization` | whether it depends on the class, and on what was learnt | lower |
| `GradientAlignment`, `GradientVariation`, `GradientRoughness` | how the network's gradient looks, whatever the method | |

Each rewards something else, and each can be fooled: `FakeCAM`, a map of ones with one zero, has next to no drop.
"""  # noqa: E501

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.base import ExplanationMetric, FromMetric, Number, number_named, number_of
from lightning_xai.metrics.boxes import Boxes, box_masks
from lightning_xai.metrics.class_sensitivity import ClassSensitivity, class_sensitivity, random_other_targets
from lightning_xai.metrics.coherency import ADCC, Coherency, Complexity, adcc, coherency, complexity
from lightning_xai.metrics.confidence import (
    AbsoluteDrop,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    RelativeGain,
    absolute_drop,
    average_drop,
    average_gain,
    average_increase,
    relative_gain,
)
from lightning_xai.metrics.constant_maps import ConstantMaps
from lightning_xai.metrics.curves import Deletion, Insertion
from lightning_xai.metrics.energy_levels import EnergyPointingAccuracy, energy_pointing
from lightning_xai.metrics.gradients import (
    GradientAlignment,
    GradientRoughness,
    GradientVariation,
    gradient_alignment,
    gradient_roughness,
    gradient_variation,
)
from lightning_xai.metrics.grid_pointing import GridPointingGame, confident_groups, mosaics
from lightning_xai.metrics.localization import EnergyInBox, PointingGame, energy_in_box, pointing_game
from lightning_xai.metrics.masking import degenerate, masked_images, masked_scores, normalized_masks
from lightning_xai.metrics.patch_masking import SIZES, MaximalPatchMasking, patch_masked_scores
from lightning_xai.metrics.perturbation import (
    PerturbationCurves,
    curve_area,
    deletion_curve,
    insertion_curve,
    perturbation_curves,
)
from lightning_xai.metrics.randomization import (
    ParameterRandomization,
    Randomization,
    parameter_randomization,
    randomizable_layers,
)
from lightning_xai.metrics.relative import RelativePerformance, log_relative_performance
from lightning_xai.metrics.road import ROAD, RoadScores, linear_imputation, noisy_linear_imputation, road_scores
from lightning_xai.metrics.robustness import (
    Infidelity,
    MaxSensitivity,
    Perturbation,
    gaussian_perturbation,
    infidelity,
    max_sensitivity,
    square_perturbation,
)
from lightning_xai.metrics.sample import Batch, Sample, Setting
from lightning_xai.metrics.similarity import map_similarities
from lightning_xai.metrics.statistics import Comparison, compare
from lightning_xai.metrics.sweep import Curve, featureless

__all__ = [
    "ADCC",
    "ROAD",
    "SIZES",
    "AbsoluteDrop",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "Batch",
    "Boxes",
    "ClassSensitivity",
    "Coherency",
    "Comparison",
    "Complexity",
    "ConstantMaps",
    "Curve",
    "Deletion",
    "EnergyInBox",
    "EnergyPointingAccuracy",
    "ExplanationMetric",
    "FromMetric",
    "GradientAlignment",
    "GradientRoughness",
    "GradientVariation",
    "GridPointingGame",
    "ImageAverage",
    "Infidelity",
    "Insertion",
    "MaxSensitivity",
    "MaximalPatchMasking",
    "Number",
    "ParameterRandomization",
    "Perturbation",
    "PerturbationCurves",
    "PointingGame",
    "Randomization",
    "RelativeGain",
    "RelativePerformance",
    "RoadScores",
    "Sample",
    "Setting",
    "absolute_drop",
    "adcc",
    "average_drop",
    "average_gain",
    "average_increase",
    "box_masks",
    "class_sensitivity",
    "coherency",
    "compare",
    "complexity",
    "confident_groups",
    "curve_area",
    "degenerate",
    "deletion_curve",
    "energy_in_box",
    "energy_pointing",
    "featureless",
    "gaussian_perturbation",
    "gradient_alignment",
    "gradient_roughness",
    "gradient_variation",
    "infidelity",
    "insertion_curve",
    "linear_imputation",
    "log_relative_performance",
    "map_similarities",
    "masked_images",
    "masked_scores",
    "max_sensitivity",
    "mosaics",
    "noisy_linear_imputation",
    "normalized_masks",
    "number_named",
    "number_of",
    "parameter_randomization",
    "patch_masked_scores",
    "perturbation_curves",
    "pointing_game",
    "random_other_targets",
    "randomizable_layers",
    "relative_gain",
    "road_scores",
    "square_perturbation",
]
