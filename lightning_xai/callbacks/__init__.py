"""Lightning callbacks, for users of ``pytorch_lightning`` and of ``lightning.pytorch`` alike."""

from lightning_xai.callbacks.faithfulness import Faithfulness
from lightning_xai.callbacks.model_integrity import ModelIntegrity
from lightning_xai.callbacks.saliency_maps import SaliencyMaps

__all__ = ["Faithfulness", "ModelIntegrity", "SaliencyMaps"]
