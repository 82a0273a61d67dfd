"""Methods of captum and pytorch-grad-cam in callbacks, through `FromCallable`."""

from functools import partial

import pytest
import torch
from callbacks.trainers import MEAN, STD, classifier, loader, trainer
from pytorch_lightning.loggers import CSVLogger
from support import assert_same_state, random_images, small_net, state_of

from benchmarks.peers import grad_cam_package
from lightning_xai import AverageDrop, Faithfulness, FromCallable, GradCAM, SaliencyMaps, explain
from lightning_xai.scores import pre_softmax

pytest.importorskip("captum")
pytest.importorskip("pytorch_grad_cam")
pytestmark = pytest.mark.peers


def occlusion(model, images, targets):
    """Captum's occlusion by patches of 4 x 4, (N,C,H,W)."""
    from captum.attr import Occlusion

    patch = (images.shape[1], 4, 4)
    return Occlusion(model).attribute(images, patch, strides=patch, target=targets, baselines=0)


METHODS = {
    "occlusion": FromCallable(occlusion),
    "theirs": FromCallable(partial(grad_cam_package, method="GradCAM", layer="conv2")),
    "ours": GradCAM("conv2", pre_softmax),
}


def test_their_methods_run_in_our_callbacks_beside_ours(tmp_path):
    """Values are logged, pictures written; Grad-CAM is one in both libraries; and the model is as before."""
    model = classifier(model=small_net())
    callbacks = [
        Faithfulness(METHODS, [AverageDrop()], controls={}, mean=MEAN, std=STD),
        SaliencyMaps(METHODS, n_images=2, mean=MEAN, std=STD),
    ]
    before = state_of(model.model)
    running = trainer(callbacks=callbacks, logger=CSVLogger(tmp_path))
    running.validate(model, loader(generator=torch.Generator()), verbose=False)
    values = {name: running.callback_metrics[f"val/xai/{name}/AverageDrop"] for name in METHODS}
    torch.testing.assert_close(values["theirs"], values["ours"], rtol=1e-3, atol=1e-3)
    assert values["occlusion"].isfinite()
    assert_same_state(before, state_of(model.model))
    assert len(list(tmp_path.rglob("panel.json"))) == 1


def test_occlusion_is_the_fall_of_the_logit_without_each_patch():
    """By a loop over patches."""
    model, images = small_net(), random_images(2)
    found = explain(model, images, 1, attributions=METHODS["occlusion"])
    with torch.no_grad():
        for row in (0, 4):
            for column in (0, 4):
                hidden = images.clone()
                hidden[:, :, row : row + 4, column : column + 4] = 0
                fall = 3 * (model(images) - model(hidden))[:, 1]  # each channel has it, and channels are summed
                patch = found[:, row : row + 4, column : column + 4]
                torch.testing.assert_close(patch, fall[:, None, None].expand_as(patch))
