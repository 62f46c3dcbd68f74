"""A bundle on disk, and a cluster whose workers are threads of this process: nothing has to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distributed import LocalCluster

from hescribe.encoders import load_encoder
from tests.inference.slides.made import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(encoder=load_encoder("stain")).save(tmp_path_factory.mktemp("bundle") / "ridge")


@pytest.fixture(scope="module")
def here() -> Iterator[str]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0", memory_limit=0
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
