"""Co-learning (CoLAD of LAD, WACV 2022): two networks train on one assignment.

Each object, or each of its levels, takes its costs from the network that tells its candidates
apart more clearly; there is no teacher that was trained before.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseModel, ModuleList
from torch import Tensor

from pipeline.assignment.criterion import Criterion, choose_teachers
from pipeline.detector.build import build_detector, preprocessing, without_waits
from pipeline.detector.checkpoint import load_weights, read_weights
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.batched_paa import BatchAssignment, assign_by_costs, batch_candidates
from pipeline.heads.family import find_family
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.heads.logged import counted
from pipeline.heads.paa import PAA
from pipeline.heads.paa_costs import HeadOutputs, candidate_costs, check_rule
from pipeline.heads.prior_grid import read_grid
from pipeline.project.errors import UserError


@dataclass(frozen=True)
class SharedAssignment(BatchAssignment):
    """The assignment of a batch that both networks learn.

    Attributes:
        taught: (2,) the part of the objects, or of their levels, that each network taught.
    """

    taught: Tensor


@MODELS.register_module()
class CoLAD(BaseModel):
    """Two PAA detectors that learn one shared assignment with mmdet's LAD losses.

    Args:
        names: of the networks, for what is logged.
        networks: their configs, with an `ObjectnessLADHead`.
        criterion: what decides who teaches.
        per_level: whether each level of an object has a teacher of its own.
        checkpoints: for each network what `read_weights` reads its first weights from, or None.

    Raises:
        UserError: the networks differ in their priors or preprocessing, or do not assign as PAA.
    """

    def __init__(
        self,
        names: Sequence[str],
        networks: Sequence[ConfigDict],
        criterion: Criterion,
        per_level: bool,
        checkpoints: Sequence[dict[str, Any] | None] = (None, None),
    ) -> None:
        super().__init__(data_preprocessor=without_waits(networks[0]).data_preprocessor)
        self.names = names
        self.networks = ModuleList([build_detector(model) for model in networks])
        self.criterion = criterion
        self.per_level = per_level
        self.checkpoints = checkpoints
        for name, network in zip(names, self.networks, strict=True):
            check_rule(network.bbox_head, f"the network {name}")
        grids = [read_grid(one.bbox_head.prior_generator) for one in self.networks]
        self.grid = grids[0]
        self._require_same("priors", grids)
        self._require_same("data_preprocessor", [preprocessing(model) for model in networks])

    def _require_same(self, what: str, found: list[Any]) -> None:
        if found[0] != found[1]:
            raise UserError(
                f"networks that learn together must have the same {what}, but "
                + " and ".join(f"{n} has {f}" for n, f in zip(self.names, found, strict=True))
            )

    def init_weights(self) -> None:
        """Start from random or pretrained weights, or from the networks' checkpoints."""
        super().init_weights()
        for network, checkpoint in zip(self.networks, self.checkpoints, strict=True):
            if checkpoint:
                load_weights(network, read_weights(**checkpoint), checkpoint["file"])

    def forward(
        self, inputs: Tensor, data_samples: SampleList, mode: str = "loss"
    ) -> dict[str, Tensor]:
        """What `loss` says; the networks predict on their own.

        Args:
            inputs: (B, 3, H, W) normalised images.
            data_samples: B samples, as the preprocessor leaves them.
            mode: as mmengine names it, `loss`.
        """
        assert mode == "loss", mode
        return self.loss(inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """`LADHead`'s losses of both networks, by NETWORK.loss, and who taught: taught_by_NETWORK.

        mmengine adds up what has "loss" in its name; the others, with the count of fallbacks, it
        only logs.

        Args:
            inputs: (B, 3, H, W) normalised images.
            data_samples: B samples, as the preprocessor leaves them.
        """
        outputs = [HeadOutputs(*one.bbox_head(one.extract_feat(inputs))) for one in self.networks]
        assignment = self.assign(outputs, data_samples)
        objects, crowds, metas = unpack_gt_instances(data_samples)
        found = counted(fallbacks=assignment.fallbacks)
        for name, network, output, taught in zip(
            self.names, self.networks, outputs, assignment.taught, strict=True
        ):
            losses = network.bbox_head.loss_by_feat(
                *output, objects, metas, crowds, label_assignment_results=assignment.labels
            )
            found |= {f"{name}.{key}": value for key, value in losses.items()}
            found[f"taught_by_{name}"] = taught
        return found

    @torch.no_grad()
    def assign(self, outputs: Sequence[HeadOutputs], data_samples: SampleList) -> SharedAssignment:
        """The shared assignment of a batch, without gradient.

        Args:
            outputs: of both heads.
            data_samples: B samples, as the preprocessor leaves them.
        """
        heads = [network.bbox_head for network in self.networks]
        grid = BatchGrid.of(self.grid, data_samples, outputs[0].device)
        candidates = batch_candidates(data_samples, grid)
        costs = torch.stack(
            [
                candidate_costs(head, output, candidates)
                for head, output in zip(heads, outputs, strict=True)
            ]
        )
        teachers = choose_teachers(
            costs,
            candidates.group,
            candidates.level,
            len(grid.grid.strides),
            self.criterion,
            self.per_level,
        )
        shared = costs.gather(0, teachers.of_candidate[None])[0]
        assignment = assign_by_costs(heads[0].num_classes, shared, candidates, grid)
        return SharedAssignment(assignment.labels, assignment.fallbacks, teachers.fractions)


def learning_together(model: ConfigDict) -> ConfigDict:
    """The config of a PAA with a head that learns a given assignment.

    Raises:
        UserError: the head is of another family.
    """
    if find_family(model.bbox_head.type) is not PAA:
        raise UserError(
            f"co-learning picks teachers by PAA's costs, and {model.bbox_head.type} has none; take "
            "PAA heads, or train the others as students or online"
        )
    model = copy.deepcopy(model)
    model.bbox_head.type = ObjectnessLADHead.__name__
    return model
