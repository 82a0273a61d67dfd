"""Lightning callbacks, for users of ``pytorch_lightning`` and of ``lightning.pytorch`` alike.

What they add to a validation, in forward passes of an image: ResNet-18 at 112 px on one quiet CPU core, medians of 3
rounds (``recipes/results/callback_prices.json``, whose first line measures it anew).

| callback, with its defaults | passes |
|---|---|
| `SaliencyMaps` of 8 images, 2 methods | 59 |
| `Faithfulness` of one CAM: average drop, increase and gain, with controls | 1.9 for each of 256 images |
| the same with `Insertion` and `Deletion`, whose curves bend little here | 13 for each, 22 where they bend |
| `Faithfulness` of a CAM and a gradient at the image: average drop and gain | 4.1 for each of 256 images |
| `ModelIntegrity`, 32 probes | 44; some 200 where a method of the run looks at the image |
| all three, with the README's methods | 1,360: 1.68 plain epochs of a validation of 2,000 images |

A disk that is full, or a folder that is read-only or gone, costs pictures, which one warning says, and never the run.
Lightning's own CSVLogger does end it. One that goes on, and writes its rows as soon as there is space again:

    class PatientLogger(CSVLogger):
        def save(self):
            with contextlib.suppress(OSError):
                super().save()
"""

from lightning_xai.callbacks.faithfulness import Faithfulness
from lightning_xai.callbacks.model_integrity import ModelIntegrity
from lightning_xai.callbacks.saliency_maps import SaliencyMaps

__all__ = ["Faithfulness", "ModelIntegrity", "SaliencyMaps"]
