"""Gene–gene structure, variance, Moran's I and maps."""

import numpy as np
import pytest
from scipy import sparse
from skimage.metrics import structural_similarity

from hescribe.errors import InputError
from hescribe.metrics.autocorrelation import morans_agreement, morans_i_per_gene, neighbour_weights
from hescribe.metrics.maps import array_pixels, nearest_pixels, ssim_per_gene
from hescribe.metrics.structure import gene_correlations, gene_gene_preservation, relative_variance_deviation


def square(side=9):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)


def hexagonal(rows=8, columns=8):
    """Array rows and columns of Visium: columns in steps of two, odd rows set off by one."""
    row, col = np.divmod(np.arange(rows * columns), columns)
    return row, 2 * col + row % 2


def test_gene_correlations_are_numpys():
    x = np.random.default_rng(0).normal(size=(40, 6))
    np.testing.assert_allclose(gene_correlations(x), np.corrcoef(x.T), atol=1e-12)
    x[:, 2] = 3.0
    assert (gene_correlations(sparse.csr_matrix(x))[2] == 0).all()


def test_gene_gene_preservation():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8)) + 0.3 * rng.normal(size=(50, 8))
    assert gene_gene_preservation(truth * 0.2 + 1, truth) == pytest.approx((1.0, 0.0), abs=1e-12)
    upper = np.triu_indices(8, 1)
    predicted = truth + rng.normal(size=truth.shape)
    a, b = (np.corrcoef(m.T)[upper] for m in (predicted, truth))
    expected = np.corrcoef(a, b)[0, 1], np.sqrt(np.mean((a - b) ** 2))
    assert gene_gene_preservation(predicted, sparse.csr_matrix(truth)) == pytest.approx(expected)
    with_constant = np.column_stack([truth, np.ones(50)])
    assert gene_gene_preservation(np.column_stack([predicted, truth[:, 0]]), with_constant) == pytest.approx(expected)
    assert gene_gene_preservation(np.ones_like(truth), truth)[0] == 0
    assert np.isnan(gene_gene_preservation(truth[:, :1], truth[:, :1])).all()
    assert np.isnan(gene_gene_preservation(truth[:, :0], truth[:, :0])).all()


def test_relative_variance_deviation():
    assert relative_variance_deviation(np.zeros(3), np.array([1.0, 2.0, 0.0])) == 1
    assert relative_variance_deviation(np.array([2.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx((1 + 4) / 2)
    assert np.isnan(relative_variance_deviation(np.ones(2), np.zeros(2)))


def test_neighbours_on_grids():
    centre = 4 * 9 + 4
    assert len(neighbour_weights(square())[centre].indices) == 8
    row, col = hexagonal()
    weights = neighbour_weights(np.column_stack([col * 0.5, row * np.sqrt(0.75)]))
    assert len(weights[3 * 8 + 3].indices) == 6
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert weights.diagonal().sum() == 0
    assert neighbour_weights(np.zeros((1, 2))).nnz == 0
    # Two spots in one place are each other's neighbours, not their own
    np.testing.assert_allclose(neighbour_weights(np.array([[0, 0], [0, 0.0]])).toarray(), [[0, 1], [1, 0]])


def test_neighbours_on_a_grid_that_lies_askew_and_on_whole_pixels():
    centres = square(9)
    inside = ((centres > 0) & (centres < 8)).all(axis=1)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    for placed in (centres @ turn.T / 3, np.rint(centres @ turn.T * 57)):
        assert (np.diff(neighbour_weights(placed).indptr)[inside] == 8).all()


def test_morans_i_against_a_loop_and_scanpy():
    scanpy = pytest.importorskip("scanpy")
    rng = np.random.default_rng(0)
    centres = square(7)
    x = np.column_stack([centres[:, 0], rng.normal(size=49), (centres.sum(1) % 2), np.full(49, 2.0)])
    weights = neighbour_weights(centres)
    found = morans_i_per_gene(sparse.csr_matrix(x), weights)
    w, slow = weights.toarray(), []
    for gene in range(3):
        z = x[:, gene] - x[:, gene].mean()
        total = sum(w[i, j] * z[i] * z[j] for i in range(49) for j in range(49))
        slow.append(49 / w.sum() * total / (z**2).sum())
    np.testing.assert_allclose(found[:3], slow, rtol=1e-10)
    np.testing.assert_allclose(found[:3], scanpy.metrics.morans_i(weights, x[:, :3].T.copy()), rtol=1e-8)
    assert np.isnan(found[3])
    assert found[0] > 0.6
    assert abs(found[1]) < 0.2
    assert np.isnan(morans_i_per_gene(np.ones((1, 2)), neighbour_weights(np.zeros((1, 2))))).all()
    with pytest.raises(InputError):
        morans_i_per_gene(x[:5], weights)


def test_morans_agreement():
    measured = np.array([0.1, 0.5, np.nan, 0.3])
    assert morans_agreement(measured + 0.2, measured) == pytest.approx((1.0, 0.2))
    # A flat prediction has no pattern: it must not drop out and leave a better figure behind
    assert morans_agreement(np.full(4, np.nan), measured) == pytest.approx((0.0, 0.3))
    assert np.isnan(morans_agreement(np.full(2, 0.1), np.full(2, np.nan))).all()


def test_pixels():
    row, col = hexagonal(4, 5)
    pixels = array_pixels(row + 10, col + 30)
    assert len(np.unique(pixels, axis=0)) == 20
    assert pixels.max(axis=0).tolist() == [3, 4]
    centres = square(5) * 123.4 + 7
    np.testing.assert_array_equal(nearest_pixels(centres), square(5)[:, ::-1])
    np.testing.assert_array_equal(array_pixels(square(5)[:, 1], square(5)[:, 0]), square(5)[:, ::-1])
    assert nearest_pixels(np.zeros((1, 2))).tolist() == [[0, 0]]
    assert nearest_pixels(np.zeros((3, 2))).tolist() == [[0, 0]] * 3
    with pytest.raises(InputError):
        array_pixels([0.5, 1], [0, 1])


def test_ssim_is_scikit_images_on_a_full_raster():
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(81, 2)) * [1, 5]
    predicted = truth + 0.2 * rng.normal(size=truth.shape)
    pixels = nearest_pixels(square())
    expected = [
        structural_similarity(p.reshape(9, 9), t.reshape(9, 9), data_range=np.ptp(t), full=True)[1].mean()
        for p, t in zip(predicted.T, truth.T, strict=True)
    ]
    np.testing.assert_allclose(ssim_per_gene(predicted, truth, pixels), expected, rtol=1e-6)


def test_ssim_does_not_hang_on_background_or_order():
    rng = np.random.default_rng(1)
    centres = square(15)
    tissue = np.hypot(*(centres - 7).T) < 5
    inside = centres[tissue]
    truth = rng.uniform(size=(len(inside), 3))
    predicted = truth + 0.3 * rng.normal(size=truth.shape)
    pixels = nearest_pixels(inside)
    found = ssim_per_gene(predicted, truth, pixels)
    order = rng.permutation(len(inside))
    np.testing.assert_allclose(ssim_per_gene(predicted[order], truth[order], pixels[order]), found)
    np.testing.assert_allclose(ssim_per_gene(truth, truth, pixels), 1)
    assert (ssim_per_gene(np.ones_like(truth), truth, pixels) < found).all()
    truth[:, 1] = 4
    assert np.isnan(ssim_per_gene(predicted, truth, pixels)[1])


def test_in_ssim_glass_has_the_measured_mean_in_both_maps():
    rng = np.random.default_rng(2)
    centres = square(15)
    tissue = np.hypot(*(centres - 7).T) < 5
    truth = rng.uniform(2, 4, size=(tissue.sum(), 1))
    predicted = 0.5 * truth + 1 + 0.3 * rng.normal(size=truth.shape)
    maps = np.full((2, 15 * 15), truth.mean())
    maps[:, tissue] = predicted[:, 0], truth[:, 0]
    p, t = maps.reshape(2, 15, 15)[:, 3:12, 3:12]  # from the first tissue to the last
    local = structural_similarity(p, t, data_range=np.ptp(truth), full=True)[1]
    expected = local[tissue.reshape(15, 15)[3:12, 3:12]].mean()
    assert ssim_per_gene(predicted, truth, nearest_pixels(centres[tissue])) == pytest.approx(expected, rel=1e-6)


def test_ssim_of_too_small_a_section_is_unknown():
    for pixels in (np.zeros((0, 2), dtype=int), np.zeros((1, 2), dtype=int), np.array([[0, 0], [0, 1], [0, 2]])):
        assert np.isnan(ssim_per_gene(np.ones((len(pixels), 2)), np.ones((len(pixels), 2)), pixels)).all()
    small = nearest_pixels(square(4))
    x = np.random.default_rng(0).normal(size=(16, 1))
    assert ssim_per_gene(x, x, small) == pytest.approx(1)
