"""Figures on disk, as PNG and SVG, and the same figures inside the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from hescribe import keys, plots
from hescribe.plots.style import DPI, EXPRESSION_COLOURS, INK, MUTED, NOVELTY_COLOURS, signed
from hescribe.report.contents import Content, choose_genes

_EMBEDDED_PX = 1400  #: width of a picture in the page: twice the place it has, for sharp screens
_OTHERS = 96  #: of a map's 256 colours, for all that is not the map itself
_SHADES = 12  #: of these, for each colour of letters
_SVG_LIMIT = 250_000  #: bytes; a larger SVG goes into the page as PNG


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes
    ----------
    data
        ``data:`` address.
    alt
        What it shows, for those who do not see it.
    caption
        Text below.
    width, height
        In CSS pixels, so that the page does not jump while loading.
    """

    data: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Album:
    """Writes figures into a folder and hands them back for the page."""

    folder: Path
    _used: set[str] = field(default_factory=set)

    def add(
        self,
        figure: Figure,
        name: str,
        *,
        alt: str,
        caption: str = "",
        colours: str | None = None,
        vector: bool = False,
    ) -> Picture:
        """Save ``name.png`` and ``name.svg``.

        ``vector`` puts the SVG into the page, if it is not too large; ``colours`` is the colour map of a map.
        """
        stem = self._stem(name)
        png = plots.save_figure(figure, self.folder / f"{stem}.png")
        figure.set_layout_engine("none")  # the first drawing has found every place
        svg = plots.save_figure(figure, self.folder / f"{stem}.svg")
        width, height = _css_size(png)
        if vector and svg.stat().st_size <= _SVG_LIMIT:
            data = _address("svg+xml", svg.read_bytes())
        else:
            data = _address("png", _smaller(png, colours))
        return Picture(data, alt, caption, width, height)

    def _stem(self, name: str) -> str:
        """A file name that any system takes and that is not yet used: genes may hold slashes, or differ by case."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or "figure"
        number, unique = 1, stem
        while unique.casefold() in self._used:
            number += 1
            unique = f"{stem}-{number}"
        self._used.add(unique.casefold())
        return unique


def _css_size(png: Path) -> tuple[int, int]:
    with Image.open(png) as image:
        return round(image.width * 96 / DPI), round(image.height * 96 / DPI)


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _smaller(path: Path, colours: str | None) -> bytes:
    """A PNG of at most 256 colours, a fraction of the size.

    For a map most of these are the levels of its colour map: were all chosen by frequency, they would go to the tissue,
    and different values would look the same.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > _EMBEDDED_PX:
        image = image.resize((_EMBEDDED_PX, round(image.height * _EMBEDDED_PX / image.width)), Image.Resampling.LANCZOS)
    if colours is None:
        few = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    else:
        few = _on_palette(image, _palette(colours, image))
    buffer = io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _palette(colours: str, image: Image.Image) -> npt.NDArray[np.uint8]:
    """Colours of an indexed map, (256, 3) or fewer: levels of its colour map, and what else is seen most."""
    levels = mpl.colormaps[colours](np.linspace(0, 1, 256 - _OTHERS), bytes=True)[:, :3]
    # Letters on paper, whose blurred edges would otherwise take on the map's dark end
    shades = [np.linspace(np.multiply(mpl.colors.to_rgb(c), 255), 255, _SHADES) for c in (INK, MUTED)]
    letters = np.concatenate(shades).round().astype(np.uint8)
    others = _OTHERS - len(letters)
    most = image.quantize(others, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    return np.concatenate([letters, np.array(most[: 3 * others], dtype=np.uint8).reshape(-1, 3), levels])


def _on_palette(image: Image.Image, palette: npt.NDArray[np.uint8]) -> Image.Image:
    """Each pixel as its nearest colour; Pillow's own search is coarse and turns white into light grey."""
    pixels = np.asarray(image, dtype=np.uint32)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    colours, inverse = np.unique(packed, return_inverse=True)
    unpacked = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], axis=1)
    nearest = cKDTree(palette).query(unpacked)[1].astype(np.uint8)
    indexed = Image.fromarray(nearest[inverse].reshape(packed.shape))
    indexed.putpalette(palette.tobytes())
    return indexed


def slide_picture(album: Album, content: Content) -> Picture | None:
    """The slide itself."""
    if content.thumbnail is None:
        return None
    figure = plots.slide_map(content.thumbnail, mpp=content.mpp)
    return album.add(figure, f"{content.name}_slide", alt=f"The H&E slide {content.name}.")


def gene_pictures(album: Album, content: Content, named: Collection[str]) -> dict[str, list[Picture]]:
    """Maps of the genes worth showing: heading → pictures."""
    groups = choose_genes(content, named)
    drawn = {g: _gene(album, content, g) for g in dict.fromkeys(g for genes in groups.values() for g in genes)}
    return {heading: [drawn[g] for g in genes] for heading, genes in groups.items()}


def _gene(album: Album, content: Content, gene: str) -> Picture:
    name = f"{content.name}_map_{gene}"
    if content.measured is None or gene not in content.measured.var_names:
        figure = plots.gene_map(content.predicted, gene, thumbnail=content.thumbnail)
        expected = _known(content.per_gene, gene, keys.EXPECTED_PCC)
        caption = f"{gene}: predicted" + (f", expected PCC {expected:.2f}" if expected is not None else "")
        return album.add(
            figure, name, alt=f"Map of predicted {gene} on {content.name}.", caption=caption, colours=EXPRESSION_COLOURS
        )
    pcc = _known(content.per_gene, gene, "pcc")
    figure = plots.measured_and_predicted(
        content.measured, content.predicted, gene, thumbnail=content.thumbnail, pcc=pcc if pcc is not None else np.nan
    )
    stated = f"PCC {signed(pcc)}" if pcc is not None else "PCC not defined"
    ceiling = _known(content.per_gene, gene, "ceiling")
    if pcc is not None and ceiling is not None:
        stated += f", ceiling {ceiling:.2f}"
    alt = f"Maps of {gene} on {content.name}, measured and predicted side by side; {stated}."
    return album.add(figure, name, alt=alt, caption=f"{gene}: {stated}", colours=EXPRESSION_COLOURS)


def _known(table: pd.DataFrame, gene: str, column: str) -> float | None:
    if column not in table or gene not in table.index:
        return None
    value = float(table[column].to_numpy(dtype=np.float64)[table.index.get_loc(gene)])
    return value if np.isfinite(value) else None


def gene_figures(album: Album, content: Content) -> list[tuple[str, Picture]]:
    """Heading and figure of everything about all genes at once."""
    table, measured, out = content.per_gene, content.measured, []
    value = "pcc" if "pcc" in table else keys.EXPECTED_PCC
    if value in table and table[value].notna().any():
        figure = plots.pcc_distribution(table)
        beside = " beside their ceilings" if "ceiling" in table and table["ceiling"].notna().any() else ""
        kind = "Correlations" if value == "pcc" else "Expected correlations"
        out.append(_whole(album, content, figure, "pcc", title=f"{kind} of all genes{beside}"))
    if measured is not None and measured.n_vars > 2:
        figure = plots.mean_and_variance(measured, content.predicted)
        out.append(_whole(album, content, figure, "moments", title="Mean and variance, predicted and measured"))
        figure = plots.gene_gene_correlation(measured, content.predicted)
        out.append(_whole(album, content, figure, "gene_gene", title="Which genes go together"))
    return out


_CAPTIONS = {
    "pcc": "Lines mark the medians.",
    "moments": "A dot a gene. A prediction leaves out the noise of counting, so its variance lies below the line; far "
    "below, the map hardly varies.",
    "gene_gene": "The 50 genes of highest mean, both panels in the order that clusters the measured one.",
}


def _whole(album: Album, content: Content, figure: Figure, kind: str, *, title: str) -> tuple[str, Picture]:
    alt = f"{title}, {content.name}."
    picture = album.add(figure, f"{content.name}_{kind}", alt=alt, caption=_CAPTIONS[kind], vector=True)
    return title, picture


def novelty_picture(album: Album, content: Content) -> Picture | None:
    """How unlike the training tiles each tile looks."""
    if keys.NOVELTY not in content.predicted.obs:
        return None
    figure = plots.obs_map(
        content.predicted,
        keys.NOVELTY,
        thumbnail=content.thumbnail,
        limits=(0.0, 100.0),
        colours=NOVELTY_COLOURS,
        label="Percentile of the training tiles' own distances",
        title="",
    )
    far = float((content.predicted.obs[keys.NOVELTY] > 95).mean())
    caption = (
        f"{far:.0%} of the tiles look less familiar than 95% of the training tiles. Pale is familiar, dark is new."
    )
    return album.add(
        figure,
        f"{content.name}_novelty",
        alt=f"Map of novelty on {content.name}. {caption}",
        caption=caption,
        colours=NOVELTY_COLOURS,
    )


def training_picture(album: Album, history: pd.DataFrame | None) -> Picture | None:
    """Training curves, where there are any."""
    if history is None or history.empty:
        return None
    figure = plots.training_curves(history)
    text = "Loss by epoch on training spots and on spots held out. Thin lines are the folds, thick ones their mean."
    return album.add(figure, "training_curves", alt=f"Training curves. {text}", caption=text, vector=True)
