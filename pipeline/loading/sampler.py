"""Which view of which image a training shows next."""

from collections.abc import Iterator

import numpy as np
from mmdet.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from pipeline.loading.dataset import ViewDataset
from pipeline.views.plan import choose_views


@DATA_SAMPLERS.register_module()
class ViewSampler(Sampler[int]):
    """Every image once an epoch, in random order, in the view of (seed, epoch, image id).

    Args:
        dataset: the views to choose from.
        seed: decides order and views.
        shuffle: whether the order is random, too.
    """

    def __init__(self, dataset: ViewDataset, seed: int = 0, shuffle: bool = True) -> None:
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.rank, self.world_size = get_dist_info()
        self.ids = dataset.image_ids()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; mmengine calls it before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        plan = len(self.dataset.plan)
        flat = np.arange(len(self.ids)) * plan
        flat += choose_views(self.seed, self.epoch, self.ids, plan)
        if self.shuffle:
            flat = np.random.default_rng([self.seed, self.epoch]).permutation(flat)
        # Ranks get equally many; the first images of the order fill up the last round.
        total = len(self) * self.world_size
        flat = np.resize(flat, total)
        return iter(flat[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        return -(-len(self.ids) // self.world_size)
