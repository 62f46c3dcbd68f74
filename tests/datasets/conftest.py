from pathlib import Path

import pytest

from hescribe.datasets.synthetic import make_synthetic

TINY = {"n_patients": 2, "n_sections": 2, "side_um": 900.0, "mpp": 1.0, "n_genes": 150, "depth": 3000.0}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small cohort: two patients, two consecutive sections each."""
    return make_synthetic(tmp_path_factory.mktemp("synthetic"), **TINY).parent
