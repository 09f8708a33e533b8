"""Views that are too small for a network's normalisation, as a user's error."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pipeline.project.errors import UserError


@contextmanager
def large_enough(network: nn.Module, batch_size: str) -> Iterator[None]:
    """Turn what torch says of a map of one value into a user's error.

    Args:
        network: whose layers normalise.
        batch_size: the name of the setting that says how many views they normalise over.

    Raises:
        UserError: a batch's coarsest map is a single value.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        strides = [
            stride
            for module in network.modules()
            for pair in getattr(getattr(module, "prior_generator", None), "strides", ())
            for stride in pair
        ]
        side = f"over {max(strides)} pixels" if strides else "larger"
        raise UserError(
            "the views are too small for the network: a batch of one of them leaves a single value "
            f"in its coarsest map, which can't be normalised; expected views with a side {side} "
            f"(views.scales), or a {batch_size} above 1"
        ) from None
