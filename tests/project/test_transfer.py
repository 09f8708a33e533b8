import numpy as np
import pytest
import torch

from pipeline.project.transfer import fetch, send
from tests.conftest import DEVICES

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(6).view(2, 3).T,
    torch.zeros(0, 4),
    torch.from_numpy(np.zeros(0, np.int64)),
    torch.tensor([[1.5, -2.0]], dtype=torch.float16),
    torch.tensor([-3], dtype=torch.int8),
    torch.tensor(2.5, dtype=torch.float64),
    torch.tensor([7, 8, 9], dtype=torch.int16),
]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_sent_arrives(device: str) -> None:
    sent = send(TENSORS, torch.device(device))
    assert len(sent) == len(TENSORS)
    for arrived, tensor in zip(sent, TENSORS, strict=True):
        assert arrived.device.type == device
        assert arrived.dtype == tensor.dtype
        assert torch.equal(arrived.cpu(), tensor)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_sent_is_a_copy(device: str) -> None:
    source = torch.ones(3)
    (arrived,) = send([source], torch.device(device))
    source.zero_()
    assert arrived.tolist() == [1, 1, 1]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_fetched_is_what_was_computed(device: str) -> None:
    large = torch.ones(1000, 1000, device=device) / 1000
    found = fetch({"product": large @ large, "codes": torch.arange(3, device=device)})
    np.testing.assert_allclose(found["product"], 1e-3, rtol=1e-3)
    np.testing.assert_array_equal(found["codes"], [0, 1, 2])
