"""What a reader of the figures finds in them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text

from oddity.app import plots
from oddity.app.comparisons import Clustering, clusters, densities, walks
from oddity.app.comparisons import Path as Walk
from oddity.app.plots import Plane, interpolations, latent_map, save, sheet, variance

CODES = np.random.default_rng(0).normal(size=(30, 2))
PLANE = Plane.around(CODES, size=12)
VALUES = PLANE.points.sum(1)
CURVES = np.array([[[0.0, 0.0], [1.0, 0.2], [1.0, 1.0]], [[0.0, 1.0], [0.1, 0.1], [1.0, 0.0]]])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def words_in(figure: Figure) -> list[Text]:
    words = [text for box in figure.legends for text in box.get_texts()]
    for axes in [*figure.axes, *(child for parent in figure.axes for child in parent.child_axes)]:
        words += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            words += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
    return [text for text in words if text.get_text() and text.get_visible()]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Words that lie over each other, and words beyond the edge."""
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in words_in(figure)]
    beyond = [(word, "edge") for word, box in boxes if not (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)]
    beyond += [(word, "edge") for word, box in boxes if not (figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1)]
    return beyond + [(s, t) for i, (s, a) in enumerate(boxes) for t, b in boxes[:i] if a.overlaps(b)]


def test_the_plane_surrounds_the_codes_and_orders_its_points_as_an_image() -> None:
    left, right, bottom, top = PLANE.extent
    assert left < CODES[:, 0].min() < CODES[:, 0].max() < right
    assert bottom < CODES[:, 1].min() < CODES[:, 1].max() < top
    assert right - left == pytest.approx(top - bottom)
    image = PLANE.image(PLANE.points[:, 1])
    assert (np.diff(image, axis=0) > 0).all()
    assert np.ptp(image, axis=1).max() == 0


def test_a_plane_around_one_place() -> None:
    left, right, _, _ = Plane.around(np.zeros((3, 2))).extent
    assert left < 0 < right


def test_the_map_names_everything_that_it_draws() -> None:
    labels = np.arange(30) % 3
    figure = latent_map(PLANE, VALUES, CODES, labels, geodesics=CURVES, class_names={1: "one"})
    assert legend(figure) == ["class 0", "one", "class 2", "geodesic", "straight line"]
    axes, bar = figure.axes[0], figure.axes[0].child_axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")
    assert "magnification factor" in bar.get_ylabel()
    assert axes.get_aspect() == 1
    assert overlaps(figure) == []


def test_the_map_draws_each_straight_line_between_the_ends_of_its_geodesic() -> None:
    axes = latent_map(PLANE, VALUES, CODES, geodesics=CURVES).axes[0]
    dashed = [line.get_xydata() for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashed, CURVES[:, [0, -1]])
    colours = {line.get_color() for line in axes.lines if line.get_linestyle() == "-"}
    assert colours == {plots.GEODESIC_COLOUR}


def test_the_map_of_codes_without_labels_and_without_geodesics() -> None:
    assert legend(latent_map(PLANE, VALUES, CODES)) == ["codes"]


def test_many_classes_differ_by_colour_or_marker() -> None:
    handles = latent_map(PLANE, VALUES, CODES, np.arange(30)).legends[0].legend_handles
    assert len({(h.get_markerfacecolor(), h.get_marker()) for h in handles}) == 30


def test_a_magnification_factor_that_vanishes_off_the_data_does_not_flatten_the_map() -> None:
    values = VALUES.copy()
    values[0] = -np.inf
    values[1] = -1e4
    image = latent_map(PLANE, values, CODES).axes[0].images[0]
    assert image.norm.vmin > -10
    assert np.isfinite(image.get_array()).all()


@pytest.mark.parametrize("codes", [np.zeros((4, 3)), np.zeros(4)])
def test_other_dimensions_have_no_map(codes: np.ndarray) -> None:
    for draw in (lambda: latent_map(PLANE, VALUES, codes), lambda: variance(PLANE, {"a": VALUES}, codes)):
        with pytest.raises(ValueError, match=r"a map needs codes of shape \(n, 2\), not \(4"):
            draw()


def test_the_variances_share_one_logarithmic_scale() -> None:
    figure = variance(PLANE, {"narrow": np.full(144, 0.1), "wide": np.linspace(0.2, 10, 144)}, CODES)
    left, right = (axes.images[0] for axes in figure.axes)
    assert left.norm is right.norm
    assert (left.norm.vmin, left.norm.vmax) == (0.1, 10)
    assert [axes.get_title() for axes in figure.axes] == ["narrow", "wide"]
    assert legend(figure) == ["codes"]
    assert "standard deviation" in figure.axes[1].child_axes[0].get_ylabel()
    assert overlaps(figure) == []


def test_the_variances_show_the_classes_and_titles_of_two_lines() -> None:
    images = {"narrow:\nand what it means": np.full(144, 0.1), "wide:\nand what it means": np.linspace(0.2, 10, 144)}
    figure = variance(PLANE, images, CODES, np.arange(30) % 3, class_names={1: "one"})
    assert legend(figure) == ["class 0", "one", "class 2"]
    assert all(len(axes.collections) == 3 for axes in figure.axes)
    FigureCanvasAgg(figure).draw()
    assert overlaps(figure) == []
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)


def test_a_wall_does_not_take_the_contrast_from_the_codes() -> None:
    near = np.abs(PLANE.points).max(1) < np.abs(CODES).max()
    values = np.where(near, 0.01 * PLANE.points[:, 0], 0.0)
    values[~near] = 50.0
    figure = latent_map(PLANE, values, 0.5 * CODES)
    image, bar = figure.axes[0].images[0], figure.axes[0].child_axes[0]
    assert image.norm.vmax == pytest.approx(25, abs=0.1)
    assert image.norm.vmin > -0.05
    assert bar._colorbar.extend == "both"


@pytest.mark.parametrize("image_shape", [(4, 6), (2, 4, 3), None])
@pytest.mark.parametrize("pairs", [1, 3])
def test_interpolations_put_the_geodesic_over_the_line(pairs: int, image_shape) -> None:
    frames = np.random.default_rng(0).random((pairs, 5, 24))
    titles = [f"{i} to {i + 1}" for i in range(pairs)]
    figure = interpolations(frames, 1 - frames, titles, image_shape=image_shape)
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_yticklabels()] == ["geodesic", "straight line"]
    drawn = figure.axes[0].images[0].get_array()
    first, last = drawn[0, 0], drawn[-1, -1]
    expected = (frames[0, 0], 1 - frames[0, -1])
    width = 3 if image_shape == (2, 4, 3) else 1
    np.testing.assert_allclose(first, expected[0][:width].squeeze())
    np.testing.assert_allclose(last, expected[1][-width:].squeeze())
    assert overlaps(figure) == []


@pytest.mark.parametrize("image_shape", [(2, 3), None])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_clusters_side_by_side(k: int, image_shape) -> None:
    labels, images = np.arange(30) % k, np.random.default_rng(0).random((k, 6))
    left, right = Clustering(labels, CODES[:k], images), Clustering(labels[::-1], CODES[-k:], images)
    figure = clusters(PLANE, VALUES, CODES, {"a": left, "b": right}, image_shape=image_shape)
    assert legend(figure) == [*(f"cluster {i}" for i in range(k)), "centre"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert len(figure.axes) == 2 + (2 * k if image_shape else 0)
    drawn = [[line.get_xydata()[0] for line in axes.lines] for axes in figure.axes[:2]]
    np.testing.assert_array_equal(drawn, [CODES[:k], CODES[-k:]])
    if image_shape:
        np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), images[0].reshape(image_shape))
    assert overlaps(figure) == []


def test_the_regions_of_a_normal_density_hold_their_shares() -> None:
    plane = Plane.around(np.array([[-4.0, -4.0], [4.0, 4.0]]), size=160)
    normal = -np.square(plane.points).sum(1) / 2
    figure = densities(plane, plane.points.sum(1), CODES, np.arange(30) % 10, {"a": normal, "b": normal}, [CODES] * 2)
    for axes in figure.axes[:2]:
        contours = [found for found in axes.collections if isinstance(found, ContourSet)]
        radii = [np.linalg.norm(found.get_paths()[0].vertices, axis=1).mean() for found in contours]
        np.testing.assert_allclose(radii, np.sqrt(-2 * np.log(1 - np.array([0.5, 0.8, 0.95]))), rtol=0.02)
    assert legend(figure)[-4:] == ["mean", "50 % of the mass", "80 %", "95 %"]
    assert overlaps(figure) == []


@pytest.mark.parametrize("image_shape", [(2, 3), None])
def test_walks_side_by_side(image_shape) -> None:
    frames, at = np.random.default_rng(0).random((7, 6)), [0, 5, 10, 15, 20, 25, 29]
    paths = {"Riemannian": Walk(CODES, frames, at), "Euclidean": Walk(9 * CODES, 1 - frames, at)}
    figure = walks(PLANE, VALUES, CODES, paths, 290.0, image_shape=image_shape)
    assert legend(figure) == ["codes", "start", "end"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["Riemannian", "Euclidean"]
    left, right, bottom, top = PLANE.extent
    for axes in figure.axes[:2]:
        np.testing.assert_allclose([*axes.get_xlim(), *axes.get_ylim()], [left, right, bottom, top])
    assert [axes.get_xlabel() for axes in figure.axes[2:9]] == ["0", "50", "100", "150", "200", "250", "290"]
    np.testing.assert_array_equal(figure.axes[9].images[0].get_array().ravel(), 1 - frames[0])
    assert overlaps(figure) == []


def test_a_sheet_holds_every_image() -> None:
    images = np.random.default_rng(0).random((5, 12))
    drawn = sheet(images, (3, 4), "five").axes[0].images[0].get_array()
    assert drawn.shape == (2 * 3 + 1, 3 * 4 + 2)
    np.testing.assert_array_equal(drawn[:3, :4], images[0].reshape(3, 4))
    np.testing.assert_array_equal(drawn[4:, 5:9], images[4].reshape(3, 4))
    assert np.isnan(drawn[4:, 10:].filled(np.nan)).all()


def test_values_carried_from_a_coarse_plane() -> None:
    fine = Plane.around(CODES, size=40)
    values = fine.interpolated(PLANE, VALUES)
    np.testing.assert_allclose(values, fine.points.sum(1), atol=1e-9)  # linear values are exact
    hole = VALUES.copy()
    hole[0] = -np.inf
    known = np.isfinite(carried := fine.interpolated(PLANE, hole))
    assert 0 < (~known).sum() < len(known) / 4
    np.testing.assert_allclose(carried[known], values[known], atol=0.2)
    assert (fine.interpolated(PLANE, np.full_like(VALUES, -np.inf)) == -np.inf).all()


def test_a_density_carried_over_is_smooth_and_does_not_ring() -> None:
    coarse, fine = (Plane((low := np.linspace(-3, 3, n)), low) for n in (17, 121))
    normal = lambda z: -0.5 * np.square(z / [1.0, 0.5]).sum(1)  # noqa: E731
    smooth = fine.interpolated(coarse, normal(coarse.points))
    np.testing.assert_allclose(smooth, normal(fine.points), atol=1e-9)  # quadratic values are exact, as linear ones
    cliff = np.where(coarse.points[:, 0] > 1, -1e6, normal(coarse.points))
    assert fine.interpolated(coarse, cliff).max() < 1


def test_a_saved_figure_is_what_its_name_says(tmp_path: Path) -> None:
    figure = latent_map(PLANE, VALUES, CODES)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        path = tmp_path / f"map{suffix}"
        save(figure, path)
        assert path.read_bytes().startswith(magic)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_figure_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"let its name end in \.png or \.pdf or \.svg"):
        save(Figure(), tmp_path / "map.bmp")


def test_no_global_state_of_matplotlib_is_loaded() -> None:
    code = "import sys, oddity.app.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_of_either_order_of_axes_are_the_same() -> None:
    images = np.random.default_rng(0).random((2, 6, 5, 3))
    first, last = np.moveaxis(images, -1, 1).reshape(2, 90), images.reshape(2, 90)
    np.testing.assert_array_equal(plots.pictures(first, (3, 6, 5)), images)
    np.testing.assert_array_equal(plots.pictures(last, (6, 5, 3)), images)
    assert plots.pictures(first[:, :60], (2, 6, 5)).shape == (2, 6, 5)
    assert plots.sheet(first, (3, 6, 5), "two").axes[0].images[0].get_array().shape == (6, 11, 3)
