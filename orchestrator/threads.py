"""PyTorch's threads, for work whose result must not depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: the tensors are small, more threads wait for each other and for the workers' cores,
    and the order of a sum, and with it the proposal, would depend on how many there are."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
