import numpy as np
import pytest
import torch

from pipeline.store.coding import (
    BEND,
    LONGEST,
    NEUTRAL,
    OCTAVES,
    RUN,
    STEPS_PER_OCTAVE,
    TAIL,
    Coding,
    SoftSettings,
    decode_distances,
    decode_fraction,
    encode_distances,
    encode_fraction,
)
from pipeline.teacher_pass.settings import Labels
from tests.conftest import DEVICES


def coding_of(cut: float, levels: int, power: float) -> Coding:
    return Coding(cut=cut, levels=levels, power=power)


CODINGS = [
    Coding(),
    coding_of(0.005, 254, 2),
    coding_of(0.01, 2, 1),
    coding_of(0.3, 15, 4),
    coding_of(1e-6, 254, 0.5),
]
each_coding = pytest.mark.parametrize("coding", CODINGS, ids=str)


def probabilities(priors: int = 203, classes: int = 7, seed: int = 0) -> torch.Tensor:
    """A long tail whose height differs by place and by class, with some peaks."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.sin(torch.arange(priors) / 9)[:, None]
    usual = torch.randn(classes, generator=generator)
    noise = torch.randn(priors, classes, generator=generator)
    peak = 5 * (torch.rand(priors, classes, generator=generator) < 0.05)
    return (-5.5 + place + usual + 0.4 * noise + peak).sigmoid()


def decoded(coding: Coding, exact: torch.Tensor) -> torch.Tensor:
    return coding.decode(*coding.encode(exact))


@each_coding
def test_values_equal_a_numpy_reference(coding: Coding):
    start = coding.cut ** (1 / coding.power)
    bounds = [
        (start + (1 - start) * k / coding.levels) ** coding.power for k in range(coding.levels + 1)
    ]
    middles = [
        (start + (1 - start) * (k + 0.5) / coding.levels) ** coding.power
        for k in range(coding.levels)
    ]
    np.testing.assert_allclose(coding.edges(), bounds[:-1], rtol=1e-6)
    np.testing.assert_allclose(coding.values(), [0, *middles], rtol=1e-6)
    widest = max(
        max(value - low, high - value)
        for low, value, high in zip(bounds, middles, bounds[1:], strict=False)
    )
    assert coding.max_error() == pytest.approx(widest, rel=1e-5)


@each_coding
@pytest.mark.parametrize("device", DEVICES)
def test_round_trip_above_the_cut(coding: Coding, device: str):
    exact = torch.cat([probabilities().flatten(), torch.linspace(0, 1, 5000)])[:, None].to(device)
    above = exact >= coding.cut
    error = (decoded(coding, exact) - exact).abs()[above]
    assert float(error.max()) <= coding.max_error() + 1e-6


@each_coding
def test_codes_are_in_range_and_ascend(coding: Coding):
    exact = torch.linspace(0, 1, 20001)[:, None]
    codes, tail_mean, tail_scale = coding.encode(exact)
    assert codes.dtype == torch.uint8
    assert tail_mean.dtype == torch.float16
    assert tail_scale.dtype == torch.uint8
    assert codes.shape == exact.mT.shape
    assert tail_mean.shape == (1,)
    assert tail_scale.shape == (-(-20001 // RUN),)
    assert int(codes.max()) == coding.levels
    assert (codes.int().diff(dim=-1) >= 0).all()
    assert torch.equal(codes == TAIL, exact.mT < coding.cut)
    assert set(codes.unique().tolist()) <= set(range(coding.levels + 1))


@each_coding
def test_values_keep_their_codes(coding: Coding):
    values = coding.values()[1:, None]
    assert torch.equal(coding.encode(values)[0][0], torch.arange(1, coding.levels + 1).byte())
    torch.testing.assert_close(decoded(coding, values), values, rtol=0, atol=0)


@each_coding
def test_edges(coding: Coding):
    below = torch.nextafter(torch.tensor(coding.cut), torch.tensor(0.0))
    exact = torch.stack([torch.tensor(0.0), below, torch.tensor(coding.cut), torch.tensor(1.0)])
    codes, *_ = coding.encode(exact[:, None])
    assert codes[0].tolist() == [TAIL, TAIL, 1, coding.levels]


def tail_by_hand(coding: Coding, exact: np.ndarray) -> np.ndarray:
    """The model of the tail, one entry after the other, in float64; 0 above the cut."""
    priors, classes = exact.shape
    in_tail = exact < coding.cut

    def mean(scale: np.ndarray) -> np.ndarray:
        return np.array(
            [
                exact[in_tail[:, c], c].sum() / max(scale[in_tail[:, c]].sum(), 1e-300)
                for c in range(classes)
            ]
        )

    usual, scale = mean(np.ones(priors)), np.ones(priors)
    for start in range(0, priors, RUN):
        run = slice(start, min(start + RUN, priors))
        expected = sum(
            usual[c] for p in range(priors)[run] for c in range(classes) if in_tail[p, c]
        )
        if expected > 0:
            ratio = exact[run][in_tail[run]].sum() / expected
            octaves = np.log2(np.clip(ratio, 2.0**-OCTAVES, 2.0**OCTAVES))
            scale[run] = 2 ** (np.round(octaves * STEPS_PER_OCTAVE) / STEPS_PER_OCTAVE)
    tail = scale[:, None] * mean(scale).astype(np.float16)
    return np.where(in_tail, np.minimum(tail, coding.cut), 0)


@each_coding
def test_tail_equals_a_numpy_reference(coding: Coding):
    exact = probabilities()
    codes, *_ = coding.encode(exact)
    found = torch.where(codes.mT == TAIL, decoded(coding, exact), 0)
    expected = tail_by_hand(coding, exact.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@each_coding
def test_each_class_keeps_the_sum_of_its_tail(coding: Coding):
    exact = probabilities()
    in_tail = exact < coding.cut
    tail = torch.where(in_tail, decoded(coding, exact), 0)
    # Where the model would leave the tail it is held at the cut, and loses what is above.
    held = (tail >= coding.cut).any(0)
    found, expected = (part.double().sum(0) for part in (tail, torch.where(in_tail, exact, 0)))
    np.testing.assert_allclose(found[~held], expected[~held], rtol=2**-10, atol=1e-5)
    assert (found <= expected * (1 + 2**-10) + 1e-5).all()
    assert float(tail.max()) <= np.float32(coding.cut)


def test_tail_follows_the_place():
    coding = coding_of(0.012, 63, 1.5)
    exact = torch.full((64, 5), 2e-4)
    exact[32:] = 32e-4
    torch.testing.assert_close(decoded(coding, exact), exact, rtol=1e-3, atol=0)


def test_all_tail_and_no_tail():
    coding = coding_of(0.01, 63, 1.5)
    quiet = torch.full((10, 3), 0.002)
    codes, tail_mean, tail_scale = coding.encode(quiet)
    assert not codes.any()
    torch.testing.assert_close(tail_mean, torch.full((3,), 0.002).half())
    assert (tail_scale == NEUTRAL).all()

    nothing = torch.zeros(10, 3)
    assert torch.equal(decoded(coding, nothing), nothing)

    loud = torch.linspace(0.01, 1, 30).view(10, 3)
    codes, tail_mean, tail_scale = coding.encode(loud)
    assert codes.all()
    assert not tail_mean.any()
    assert (tail_scale == NEUTRAL).all()


def test_some_zeros_in_the_tail():
    coding = coding_of(0.01, 63, 1.5)
    exact = torch.zeros(16, 3)
    exact[8:, 1] = 0.004
    found = decoded(coding, exact)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[8:], exact[8:], rtol=1e-3, atol=0)
    assert float(found[:8].max()) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_a_view_does_not_depend_on_the_others(device: str):
    coding = Coding()
    views = torch.stack([probabilities(seed=seed) for seed in range(5)]).to(device)
    together = coding.encode(views)
    for number, view in enumerate(views):
        for alone, part in zip(coding.encode(view), together, strict=True):
            assert torch.equal(alone, part[number])
    assert torch.equal(coding.decode(*together)[2], decoded(coding, views[2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree():
    coding = Coding()
    for ours, theirs in zip(
        coding.encode(probabilities()), coding.encode(probabilities().cuda()), strict=True
    ):
        assert torch.equal(ours, theirs.cpu())


def test_no_priors():
    coding = coding_of(0.01, 63, 1.5)
    parts = coding.encode(torch.zeros(0, 4))
    assert [tuple(part.shape) for part in parts] == [(4, 0), (4,), (0,)]
    assert coding.decode(*parts).shape == (0, 4)


def test_not_a_number_is_refused():
    exact = probabilities()
    exact[3, 2] = torch.nan
    with pytest.raises(ValueError, match="not a number"):
        coding_of(0.01, 63, 1.5).encode(exact)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cut": 0}, "greater than 0"),
        ({"cut": 1}, "less than 1"),
        ({"levels": 1}, "greater than or equal to 2"),
        ({"levels": 255}, "less than or equal to 254"),
        ({"power": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float], message: str):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"1 validation error.*\n{name}\n.*{message}"):
        Coding(**wrong)


def test_distances():
    distances = torch.cat([torch.linspace(-200, 200, 9001), torch.tensor([0.0, 1e-3, -1e-3])])
    codes = encode_distances(distances)
    assert codes.dtype == torch.int8
    found = decode_distances(codes)
    within = distances.abs() <= LONGEST
    error = (found - distances).abs()[within]
    # Half a step is 1.9 % of sqrt(distance^2 + bend^2), and the curve bends a little within it.
    assert (error <= 0.0195 * (distances[within].square() + BEND**2).sqrt()).all()
    torch.testing.assert_close(found[~within], distances[~within].sign() * LONGEST)
    assert float(decode_distances(encode_distances(torch.zeros(1)))) == 0
    torch.testing.assert_close(encode_distances(found), codes, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("distance", "code", "decoded"), [(1, 13, 1.03), (50, 102, 49.2), (-1, -13, -1.03)]
)
def test_the_examples_of_the_documentation(distance: float, code: int, decoded: float):
    codes = encode_distances(torch.tensor([distance]))
    assert codes.tolist() == [code]
    assert decode_distances(codes).item() == pytest.approx(decoded, rel=0.005)


def test_fractions():
    fractions = torch.cat([torch.linspace(0, 1, 4001), torch.tensor([1e-9])])
    codes = encode_fraction(fractions)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes == 0, fractions == 0)
    above = fractions > 1 / 255
    assert float((decode_fraction(codes) - fractions).abs()[above].max()) <= 0.5 / 255 + 1e-6
    assert decode_fraction(encode_fraction(torch.tensor([0.0, 1.0]))).tolist() == [0, 1]


def test_settings_of_a_store():
    labels = Labels(scores=coding_of(0.3, 15, 4), min_iou=0.2, min_score=0.4)
    settings = labels.soft_settings()
    assert settings == SoftSettings(scores=coding_of(0.3, 15, 4), min_iou=0.2, min_score=0.4)
    # What a fingerprint keeps of them.
    scores = {"cut": 0.3, "levels": 15, "power": 4.0}
    plain = {"scores": scores, "min_iou": 0.2, "min_score": 0.4}
    assert settings.model_dump() == plain
    assert SoftSettings.model_validate(plain) == settings
    usual = Labels()
    assert usual.soft_settings() == SoftSettings(
        scores=Coding(), min_iou=usual.min_iou, min_score=usual.min_score
    )
    assert Labels(soft=False).soft_settings() is None
