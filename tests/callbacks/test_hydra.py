"""A Hydra configuration can name our callbacks, as the Lightning-Hydra template reads them."""

from pathlib import Path
from typing import Any

import pytest
from callbacks.trainers import MEAN, STD, classifier, loader, trainer
from torchvision.transforms import Normalize

from lightning_xai import AverageDrop, Faithfulness, GradCAM, ModelIntegrity, SaliencyMaps

hydra = pytest.importorskip("hydra")
RECIPES = Path(__file__).parents[2] / "recipes"


def callbacks(*overrides: str) -> dict[str, Any]:
    """What Hydra makes of the file: one callback for each name with a target."""
    with hydra.initialize_config_dir(str(RECIPES), version_base=None):
        config = hydra.compose("callbacks_hydra", [*overrides])
    return {name: hydra.utils.instantiate(one) for name, one in config.items() if "_target_" in one}


def test_the_file_gives_callbacks_that_run() -> None:
    """Attributions and metrics are real ones, options can be overridden, and mean and std come from the data."""
    found = callbacks("saliency_maps.n_images=3", "+faithfulness.attributions.gradcam.layer=conv2")
    assert [type(one) for one in found.values()] == [SaliencyMaps, Faithfulness, ModelIntegrity]
    assert found["saliency_maps"].n_images == 3
    assert found["faithfulness"].attributions["gradcam"] == GradCAM("conv2")
    assert isinstance(found["faithfulness"].metrics["AverageDrop"], AverageDrop)
    data = loader()
    data.dataset.transform = Normalize(MEAN, STD)
    running = trainer(callbacks=list(found.values()))
    running.validate(classifier(), data, verbose=False)
    assert "val/xai/gradcam_plus/AverageGain" in running.logged_metrics
