"""Fits of mixtures, against scikit-learn's as mmdet's `PAAHead` asks for them.

PAA pools the candidates of an object that cost least; a mixture is fitted to the costs of the pool,
which here are an array an object, ascending.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from mmdet.structures import SampleList
from mmengine.dataset import pseudo_collate
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from benchmarks.measure import Figures, Ratio, alternate, medians, one_thread
from benchmarks.random_teacher import SCALE, RandomTeacher, draw_view, random_images
from pipeline.assignment.mixture import Mixtures, fit_mixtures
from pipeline.assignment.paa import pool_candidates, sort_by_group
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import preprocessing
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.batched_paa import batch_candidates
from pipeline.heads.paa_costs import HeadOutputs, candidate_costs
from pipeline.loading.dataset import view_dataset
from pipeline.project.paths import Paths
from pipeline.store.schema import plan_store
from pipeline.teacher_pass.label import load_teacher
from pipeline.teacher_pass.teacher import Teacher
from pipeline.views.plan import FixedPlan, View
from pipeline.views.priors import PaddedViews
from pipeline.views.settings import Views

Costs = npt.NDArray[np.float32]
BATCH = 16
"""Views that the teacher sees at once."""
SCALE_FACTORS = (1, 1.25, 0.8, 1.5, 0.67, 1.1, 0.9)
"""Of the project's scales, for as many real costs as are asked for."""
TIE = 1e-12
"""Log densities that differ by less are equal but for rounding."""


def pooled_costs(teacher: Teacher, outputs: HeadOutputs, samples: SampleList) -> list[Costs]:
    """The costs that mixtures are fitted to in a batch: of each object that has 2 or more.

    Args:
        teacher: whose head's losses are the costs.
        outputs: of that head.
        samples: the views, as the preprocessor leaves them.
    """
    candidates = batch_candidates(samples, BatchGrid.of(teacher.grid, samples, outputs.device))
    costs = candidate_costs(teacher.head, outputs, candidates)
    levels = len(teacher.grid.strides)
    pooled = pool_candidates(costs, candidates.group, candidates.level, levels)
    pooled = pooled[sort_by_group(costs[pooled], candidates.group[pooled])]
    counts = candidates.group[pooled].unique(return_counts=True)[1].tolist()
    return [one.numpy() for one in costs[pooled].cpu().split(counts) if len(one) >= 2]


def trained_costs(views: Views, paths: Paths, count: int) -> list[Costs]:
    """Costs of a project's teacher: of its training images at its scales, then at others.

    Args:
        views: which views there are.
        paths: where data and teacher are.
        count: how many objects are enough; a small data set has fewer.

    Raises:
        UserError: data or teacher are missing.
    """
    split = load_split(paths, "train")
    teacher, model = load_teacher(paths, split)
    images = load_images(split.annotations)
    divisor = preprocessing(model)["pad_size_divisor"]
    costs: list[Costs] = []
    with tqdm(total=count, desc="costs", unit="object", mininterval=2) as bar:
        for plan in _plans(views):
            dataset = view_dataset(split, plan)
            padded_views = PaddedViews(plan, teacher.grid, divisor)
            for shard in plan_store(images, padded_views, BATCH, soft_classes=0).shards():
                batch = pseudo_collate([dataset[view] for view in shard.views.tolist()])
                with torch.inference_mode():
                    ready = teacher.detector.data_preprocessor(batch)
                    outputs = HeadOutputs(*teacher.forward(ready["inputs"]))
                    found = pooled_costs(teacher, outputs, ready["data_samples"])
                costs += found
                bar.update(len(found))
                if len(costs) >= count:
                    return costs[:count]
    return costs


def _plans(views: Views) -> Iterator[FixedPlan]:
    """Each scale with and without a flip: those of the settings, then larger and smaller ones."""
    scales = (views.sampled or views).all_scales()
    for factor in SCALE_FACTORS:
        yield FixedPlan(
            tuple(
                View((round(long * factor), round(short * factor)), flip)
                for long, short in scales
                for flip in (False, True)
            )
        )


def random_costs(count: int) -> list[Costs]:
    """Costs of `count` objects by the random teacher, on images like COCO's."""
    teacher = RandomTeacher(seed=0)
    costs: list[Costs] = []
    images = random_images(max(4, count // 4), seed=0)
    for image in tqdm(images, desc="costs", unit="view", mininterval=2):
        view = draw_view(teacher, image.objects, SCALE)
        costs += pooled_costs(teacher, view.outputs, [view.sample])
        if len(costs) >= count:
            break
    return costs[:count]


def pad_costs(costs: Sequence[Costs]) -> tuple[Tensor, Tensor]:
    """The costs of N objects as one batch.

    Returns:
        (N, K) float32 with room for the K costs of the object that has most, and (N, K) bool, true
        where there is a cost.
    """
    own = [torch.from_numpy(one) for one in costs]
    valid = [torch.ones(len(one), dtype=torch.bool) for one in own]
    return pad_sequence(own, batch_first=True), pad_sequence(valid, batch_first=True)


def sklearn_fit(costs: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """What `PAAHead` asks scikit-learn for: component and log density of each cost."""
    x = costs[:, None]
    mixture = GaussianMixture(
        2,
        weights_init=np.array([0.5, 0.5]),
        means_init=np.array([[x.min()], [x.max()]]),
        precisions_init=np.ones((2, 1, 1)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x)
    return mixture.predict(x), mixture.score_samples(x)


@dataclass(frozen=True)
class Agreement:
    """How our fits compare with scikit-learn's: the components of all costs, and the threshold.

    Attributes:
        fits: how many were compared.
        equal: the same, with scikit-learn in float64.
        ties: the same but for densities that are equal up to rounding.
        different: the others.
        equal_float32: the same, with scikit-learn in float32, as mmdet calls it.
    """

    fits: int
    equal: int
    ties: int
    different: int
    equal_float32: int


def compare_fits(costs: Sequence[Costs]) -> Agreement:
    """Fit the costs of each object in both ways."""
    mixtures = fit_mixtures(*pad_costs(costs))
    equal = ties = equal_float32 = 0
    for number, own in enumerate(tqdm(costs, desc="comparing", unit="fit", mininterval=2)):
        first, threshold = _separation(mixtures, number, len(own))
        single, _ = _sklearn_separation(own)
        equal_float32 += _same((first, threshold), single)
        double, density = _sklearn_separation(own.astype(np.float64))
        if _same((first, threshold), double):
            equal += 1
        elif (first == double[0]).all():
            ties += abs(density[threshold] - density[double[1]]) < TIE
    return Agreement(len(costs), equal, ties, len(costs) - equal - ties, equal_float32)


Separation = tuple[npt.NDArray[np.bool_], int]
"""Which costs belong to component 0, and the place of the one of highest density among them."""


def _separation(mixtures: Mixtures, number: int, count: int) -> Separation:
    first = mixtures.first[number, :count].numpy()
    return first, _threshold(first, mixtures.log_density[number, :count].numpy())


def _sklearn_separation(costs: npt.NDArray) -> tuple[Separation, npt.NDArray]:
    component, density = sklearn_fit(costs)
    first = component == 0
    return (first, _threshold(first, density)), density


def _threshold(first: npt.NDArray[np.bool_], density: npt.NDArray) -> int:
    return int(np.where(first, density, -np.inf).argmax())


def _same(one: Separation, other: Separation) -> bool:
    return bool((one[0] == other[0]).all()) and one[1] == other[1]


def measure_mixtures(costs: list[Costs], batch: int, repeats: int, source: str) -> Figures:
    """Compare all fits, and time a batch of them on one thread.

    Args:
        costs: of each object.
        batch: objects in the batch.
        repeats: of the timing.
        source: where the costs are from, for the note.
    """
    rng = np.random.default_rng(0)
    chosen = [costs[place] for place in rng.integers(len(costs), size=batch)]
    together = pad_costs(chosen)
    with one_thread():
        agreement = compare_fits(costs)
        times = medians(
            alternate(
                {
                    "ours": lambda _: fit_mixtures(*together),
                    "scikit-learn": lambda _: [sklearn_fit(own) for own in chosen],
                },
                repeats,
            )
        )
    same = agreement.equal + agreement.ties
    ratios = [
        Ratio(
            f"mixture fits, {batch} objects, one thread",
            batch / times["ours"],
            "scikit-learn",
            batch / times["scikit-learn"],
            "fits/s",
            at_least=80,
        ),
        Ratio(
            f"same components and threshold ({agreement.ties} by a tie)",
            same,
            "scikit-learn, float64",
            agreement.fits,
            "fits",
            at_least=1,
        ),
        Ratio(
            "same components and threshold",
            agreement.equal_float32,
            "scikit-learn, float32 as mmdet",
            agreement.fits,
            "fits",
        ),
    ]
    return Figures(ratios, f"costs of {source}", {"agreement": asdict(agreement)})
