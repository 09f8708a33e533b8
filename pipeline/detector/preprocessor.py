"""mmdet's preprocessor of images, with fewer copies."""

from typing import Any

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import ImgDataPreprocessor
from mmengine.utils import is_seq_of
from torch import Tensor


class _FewCopies(ImgDataPreprocessor):
    """Writes each image into its place of the batch, and computes there."""

    def cast_data(self, data: Any) -> Any:
        """The data on this device; where they are there, mmengine copies all the same."""
        return data if self.device.type == "cpu" else super().cast_data(data)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """What `ImgDataPreprocessor` returns, to the last bit."""
        if not self._enable_normalize or not is_seq_of(data["inputs"], Tensor):
            result: dict[str, Any] = super().forward(data, training)
            return result
        data = self.cast_data(data)
        images = data["inputs"]
        divisor = self.pad_size_divisor
        height, width = (
            -(-max(image.shape[side] for image in images) // divisor) * divisor for side in (1, 2)
        )
        batch = self.mean.new_empty(len(images), images[0].shape[0], height, width)
        if len({image.shape for image in images}) == 1:
            self._place(torch.stack(list(images)), batch)
        else:
            for place, image in enumerate(images):
                self._place(image[None], batch[place : place + 1])
        return {"data_samples": None} | data | {"inputs": batch}

    def _place(self, images: Tensor, batch: Tensor) -> None:
        """Normalise images of one size (b, 3, h, w), and pad them to (b, 3, H, W)."""
        height, width = images.shape[2:]
        batch[:, :, height:] = self.pad_value
        batch[:, :, :height, width:] = self.pad_value
        if self._channel_conversion:
            images = images.flip(1)
        batch[:, :, :height, :width].copy_(images).sub_(self.mean).div_(self.std)


@MODELS.register_module()
class FewCopiesPreprocessor(DetDataPreprocessor, _FewCopies):
    """mmdet's `DetDataPreprocessor`: the same arguments and the same result."""


def with_few_copies(model: ConfigDict) -> ConfigDict:
    """The same model, which computes the same of its images with fewer copies."""
    given = model.get("data_preprocessor")
    if not given or given.get("type") != DetDataPreprocessor.__name__:
        return model
    return ConfigDict(
        model, data_preprocessor=ConfigDict(given, type=FewCopiesPreprocessor.__name__)
    )
