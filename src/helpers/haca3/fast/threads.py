"""One thread for each slice, and slices side by side: the same bytes on any number of threads.

Libraries cut the sums of a large layer into as many parts as they have threads, and round accordingly; small
layers wait for their threads longer than they compute. A slice that one thread computes alone knows nothing
of the others.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def side_by_side(device: str = "cpu") -> Iterator[Callable]:
    """A `map` that runs its calls side by side, on as many threads as torch has, in each of which torch uses
    one.

    Within the context the calling thread, too, computes with one; afterwards it has its threads again. Calls
    inherit whether gradients are kept. On other devices than a CPU the built-in `map` does: there slices go
    through together.

    Parameters
    ----------
    device : str
        Where the calls compute, as torch names it.
    """
    if device != "cpu":
        yield map
        return
    # `torch.set_num_threads` holds for the calling thread, and for threads that use torch for the first time
    # later.
    threads, inference, gradients = (
        torch.get_num_threads(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )

    def call(function, *arguments):
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function(*arguments)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda function, *arguments: pool.map(functools.partial(call, function), *arguments)
    finally:
        torch.set_num_threads(threads)


def set_gradients(
    parameters: Iterable[nn.Parameter], gradients: Iterable[Sequence[Tensor | None]], count: int = 1
) -> None:
    """Give parameters the gradients of several losses, added in the order of the losses and divided by
    `count`.

    Were one graph of all losses gone through, the order would be that of the threads that made it, and so
    would be the rounding. A loss that does not depend on a parameter has None for it.
    """
    for parameter, *parts in zip(parameters, *gradients):
        known = [part for part in parts if part is not None]
        parameter.grad = sum(known) / count if known else None
