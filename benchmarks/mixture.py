"""Fits of mixtures, against scikit-learn's as mmdet's `PAAHead` asks for them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from mmdet.models.dense_heads import PAAHead
from mmdet.structures import SampleList
from mmengine.dataset import pseudo_collate
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import Figures, Row, alternate, medians, one_thread
from benchmarks.random_teacher import SCALE, RandomTeacher, draw_view, random_images
from pipeline.assignment.mixture import Mixtures, fit_mixtures
from pipeline.assignment.paa import order, pool_candidates
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_data_info
from pipeline.detector.build import preprocessing
from pipeline.project.params import Params, Views
from pipeline.project.paths import Paths
from pipeline.store.schema import plan_store
from pipeline.teacher_pass.labelling import load_teacher, view_dataset
from pipeline.teacher_pass.teacher import Outputs, candidate_costs
from pipeline.training.batch_grid import level_shapes_of, own_grid
from pipeline.training.online_assignment import batch_candidates
from pipeline.views.plan import FixedPlan, View

Costs = npt.NDArray[np.float32]
BATCH = 16
"""Views that the teacher sees at once."""
SCALE_FACTORS = (1, 1.25, 0.8, 1.5, 0.67, 1.1, 0.9)
"""Of the project's scales, for as many real costs as are asked for."""
TIE = 1e-12
"""Log densities that differ by less are equal but for rounding."""


def problems_of(head: PAAHead, outputs: Outputs, samples: SampleList) -> list[Costs]:
    """The costs that mixtures are fitted to, ascending: an array an object.

    Args:
        head: whose losses are the costs.
        outputs: of that head.
        samples: the views, as the preprocessor leaves them.
    """
    shapes = level_shapes_of(outputs.scores)
    inside = own_grid(head, samples, shapes, outputs.device)
    candidates = batch_candidates(head, samples, shapes, inside)
    costs = candidate_costs(head, outputs, candidates)
    pooled = pool_candidates(costs, candidates.group, candidates.level, len(shapes))
    pooled = pooled[order(costs[pooled], candidates.group[pooled])]
    counts = candidates.group[pooled].unique(return_counts=True)[1].tolist()
    return [one.numpy() for one in costs[pooled].cpu().split(counts) if len(one) >= 2]


def trained_problems(params: Params, paths: Paths, count: int) -> list[Costs]:
    """Costs of the project's teacher: of its training images at its scales, then at others.

    Args:
        params: the settings.
        paths: where data and teacher are.
        count: how many are enough; a small data set has fewer.

    Raises:
        UserError: data or teacher are missing.
    """
    data = load_data_info(paths)
    teacher, model = load_teacher(paths, data)
    images = load_images(data.train.annotations)
    divisor = preprocessing(model)["pad_size_divisor"]
    problems: list[Costs] = []
    with tqdm(total=count, desc="costs", unit="object", mininterval=2) as bar:
        for plan in _plans(params.views):
            dataset = view_dataset(data, plan)
            for shard in plan_store(images, plan, teacher.grid, divisor, BATCH, 0).shards():
                batch = pseudo_collate([dataset[view] for view in shard.views.tolist()])
                with torch.inference_mode():
                    ready = teacher.detector.data_preprocessor(batch)
                    outputs = teacher.forward(ready["inputs"])
                    found = problems_of(teacher.head, outputs, ready["data_samples"])
                problems += found
                bar.update(len(found))
                if len(problems) >= count:
                    return problems[:count]
    return problems


def _plans(views: Views) -> Iterator[FixedPlan]:
    scales = (views.sampled or views).all_scales()
    for factor in SCALE_FACTORS:
        yield FixedPlan(
            tuple(
                View((round(long * factor), round(short * factor)), flip)
                for long, short in scales
                for flip in (False, True)
            )
        )


def random_problems(count: int) -> list[Costs]:
    """Costs of the random teacher, on images like COCO's."""
    teacher = RandomTeacher(seed=0)
    problems: list[Costs] = []
    images = random_images(max(4, count // 4), seed=0)
    for image in tqdm(images, desc="costs", unit="view", mininterval=2):
        view = draw_view(teacher, image.objects, SCALE)
        problems += problems_of(teacher.head, view.outputs, [view.sample])
        if len(problems) >= count:
            break
    return problems[:count]


def pad(problems: Sequence[Costs]) -> tuple[Tensor, Tensor]:
    """The costs as a batch: (N, K), and which places hold one."""
    valid = torch.zeros(len(problems), max(map(len, problems)), dtype=torch.bool)
    costs = torch.zeros(valid.shape)
    for row, problem in enumerate(problems):
        costs[row, : len(problem)] = torch.from_numpy(problem)
        valid[row, : len(problem)] = True
    return costs, valid


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


def compare_fits(problems: Sequence[Costs]) -> Agreement:
    """Fit each problem in both ways."""
    mixtures = fit_mixtures(*pad(problems))
    equal = ties = equal_float32 = 0
    for row, costs in enumerate(tqdm(problems, desc="comparing", unit="fit", mininterval=2)):
        first, threshold = _separation(mixtures, row, len(costs))
        single, _ = _sklearn_separation(costs)
        equal_float32 += _same((first, threshold), single)
        double, density = _sklearn_separation(costs.astype(np.float64))
        if _same((first, threshold), double):
            equal += 1
        elif (first == double[0]).all():
            ties += abs(density[threshold] - density[double[1]]) < TIE
    return Agreement(len(problems), equal, ties, len(problems) - equal - ties, equal_float32)


Separation = tuple[npt.NDArray[np.bool_], int]
"""Which costs belong to component 0, and the place of the one of highest density among them."""


def _separation(mixtures: Mixtures, row: int, count: int) -> Separation:
    first = mixtures.first[row, :count].numpy()
    return first, _threshold(first, mixtures.log_density[row, :count].numpy())


def _sklearn_separation(costs: npt.NDArray) -> tuple[Separation, npt.NDArray]:
    component, density = sklearn_fit(costs)
    first = component == 0
    return (first, _threshold(first, density)), density


def _threshold(first: npt.NDArray[np.bool_], density: npt.NDArray) -> int:
    return int(np.where(first, density, -np.inf).argmax())


def _same(one: Separation, other: Separation) -> bool:
    return bool((one[0] == other[0]).all()) and one[1] == other[1]


def measure_mixtures(problems: list[Costs], batch: int, repeats: int, source: str) -> Figures:
    """Compare all fits, and time a batch of them on one thread.

    Args:
        problems: costs of objects.
        batch: objects in the batch.
        repeats: of the timing.
        source: where the costs are from, for the note.
    """
    rng = np.random.default_rng(0)
    chosen = [problems[place] for place in rng.integers(len(problems), size=batch)]
    together = pad(chosen)
    with one_thread():
        agreement = compare_fits(problems)
        times = medians(
            alternate(
                {
                    "ours": lambda _: fit_mixtures(*together),
                    "scikit-learn": lambda _: [sklearn_fit(costs) for costs in chosen],
                },
                repeats,
            )
        )
    same = agreement.equal + agreement.ties
    rows = [
        Row(
            f"mixture fits, {batch} objects, one thread",
            batch / times["ours"],
            "scikit-learn",
            batch / times["scikit-learn"],
            "fits/s",
            at_least=80,
        ),
        Row(
            f"same components and threshold ({agreement.ties} by a tie)",
            same,
            "scikit-learn, float64",
            agreement.fits,
            "fits",
            at_least=1,
        ),
        Row(
            "same components and threshold",
            agreement.equal_float32,
            "scikit-learn, float32 as mmdet",
            agreement.fits,
            "fits",
        ),
    ]
    return Figures(rows, f"costs of {source}", {"agreement": asdict(agreement)})
