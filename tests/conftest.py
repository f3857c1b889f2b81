"""What every test gets: a fixed seed, and a skip where the marked hardware is missing."""

from __future__ import annotations

import random

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    random.seed(0)
    torch.manual_seed(0)
