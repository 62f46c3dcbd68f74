"""What ``import hescribe`` gives, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import hescribe as hs


@pytest.mark.parametrize("name", hs.__all__)
def test_every_public_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(hs, name)
    assert name in dir(hs) or name == "__version__"
    if name != "__version__":
        assert inspect.getdoc(value)


def test_the_figures_have_two_names() -> None:
    import hescribe.plots

    assert hs.pl.gene_map is hescribe.plots.gene_map


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="magic"):
        _ = hs.magic


@pytest.mark.parametrize("statement", ["import hescribe", "import hescribe.cli.main"])
def test_importing_is_light(statement: str) -> None:
    """The help must not wait for torch, nor for anything else that takes a second."""
    code = f"import sys; {statement}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "lightning", "timm", "lazyslide", "anndata", "pandas", "scipy", "matplotlib"} & set(loaded)
