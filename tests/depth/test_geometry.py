"""Points, normals and files of planes and spheres that are known exactly."""

import io
import math

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image

from dinoviz.depth import geometry
from dinoviz.depth.camera import Camera
from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid
from dinoviz.guided_filter import EdgeFilter

SIZES = [(320, 240), (203, 271)]
LENSES = [0.5, 1.6]  # focal length as a share of the long side: wide and long


def camera_of(size, lens=0.8) -> Camera:
    return Camera.of(size, lens * max(size))


def rays(size, camera) -> np.ndarray:
    """(H, W, 3) with z of 1, written down anew."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    return np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x)], axis=2)


def plane(size, camera, normal, distance=2.0) -> np.ndarray:
    """Depth (H, W) of the plane through (0, 0, distance) with this normal; NaN behind the camera."""
    along = rays(size, camera) @ normal
    with np.errstate(divide="ignore"):
        z = distance * normal[2] / along
    return np.where((z > 0) & (z < 50), z, np.nan).astype(np.float32)


def sphere(size, camera, centre=(0.1, -0.1, 3.0), radius=0.8) -> np.ndarray:
    """Depth (H, W) of a sphere; NaN beside it."""
    ray = rays(size, camera)
    a, b, c = (ray**2).sum(axis=2), -2 * ray @ centre, np.dot(centre, centre) - radius**2
    with np.errstate(invalid="ignore"):
        return ((-b - np.sqrt(b * b - 4 * a * c)) / (2 * a)).astype(np.float32)


def tilted(degrees, towards) -> np.ndarray:
    """The normal of a wall turned from facing the camera, down (0 degrees) or to a side (90)."""
    tilt, way = math.radians(degrees), math.radians(towards)
    return np.array([math.sin(tilt) * math.sin(way), math.sin(tilt) * math.cos(way), -math.cos(tilt)])


def degrees_between(a, b) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=-1), -1, 1)))


# Points and normals


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize(("tilt", "towards"), [(0, 0), (30, 0), (60, 90), (45, 200)])
@pytest.mark.parametrize("reach", [1, 5])
def test_a_plane_comes_back_with_its_normal(size, lens, tilt, towards, reach):
    camera, normal = camera_of(size, lens), tilted(tilt, towards)
    cloud = geometry.points(plane(size, camera, normal), camera)
    there = np.isfinite(cloud[..., 2])
    np.testing.assert_allclose((cloud @ normal)[there], 2 * normal[2], atol=1e-4)
    found = geometry.normals(cloud, reach)
    assert np.linalg.norm(found[there], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.median(degrees_between(found[there], normal)) < 0.1
    assert degrees_between(found[there], normal).max() < 3  # single precision, most at 50 m
    assert ((found * cloud)[there].sum(axis=1) <= 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lens", LENSES)
def test_a_sphere_comes_back_with_its_normals_and_its_size(size, lens):
    camera, centre = camera_of(size, lens), np.array([0.1, -0.1, 3.0])
    cloud = geometry.points(sphere(size, camera, centre), camera)
    there = np.isfinite(cloud[..., 2])
    radii = np.linalg.norm(cloud[there] - centre, axis=1)
    np.testing.assert_allclose(radii, 0.8, rtol=0.01)
    normal, truth = geometry.normals(cloud)[there], (cloud[there] - centre) / 0.8
    facing = -(truth * cloud[there]).sum(axis=1) / np.linalg.norm(cloud[there], axis=1) > 0.3  # not the very rim
    inner = cv2.erode(there.astype(np.uint8), np.ones((3, 3)))[there] > 0  # with a neighbour on either side
    assert np.percentile(degrees_between(normal, truth)[facing & inner], 99) < math.degrees(0.01)


@pytest.mark.parametrize("lens", LENSES)
def test_sizes_are_measured_between_two_points(lens):
    camera, normal = camera_of((640, 480), lens), tilted(50, 90)
    cloud = geometry.points(plane((640, 480), camera, normal), camera)
    # Two marks on the wall, 0.5 m apart, and where the camera sees them.
    along = np.cross(normal, (0, 1, 0))
    marks = np.array([(0, 0, 2.0)] * 2) + np.outer((-0.25, 0.25), along / np.linalg.norm(along))
    seen = [(camera.cx + camera.fx * x / z, camera.cy + camera.fy * y / z) for x, y, z in marks]
    assert geometry.between(cloud, *seen) == pytest.approx(0.5, rel=0.01)


def test_a_map_of_another_size_gives_the_same_points():
    size, small = (640, 480), (160, 96)
    camera, normal = camera_of(size), tilted(40, 120)
    scaled = camera.scaled(size, small)
    cloud = geometry.points(plane(small, scaled, normal), scaled)
    whole = geometry.points(plane(size, camera, normal), camera)
    np.testing.assert_allclose(cloud @ normal, 2 * normal[2], atol=1e-4)
    # The corners are where the picture's corners are, give or take half a pixel of the small one.
    np.testing.assert_allclose(cloud[0, 0], whole[2, 2], atol=0.02)
    np.testing.assert_allclose(cloud[-1, -1], whole[-3, -3], atol=0.02)


def test_unknown_depth_has_no_point_and_spoils_no_other():
    camera = camera_of((64, 48))
    metres = plane((64, 48), camera, tilted(30, 0))
    metres[10, 10], metres[20, 20], metres[30, 30] = np.nan, 0, np.inf
    cloud = geometry.points(metres, camera)
    found = geometry.normals(cloud)
    for i in (10, 20, 30):
        assert np.isnan(cloud[i, i]).all()
        assert np.isnan(found[i, i]).all()
        assert degrees_between(found[i, i + 1], tilted(30, 0)) < 0.1
    assert np.isfinite(cloud).all(axis=2).sum() == 64 * 48 - 3


def test_a_map_of_one_row_or_nothing_known_has_no_normals():
    camera = camera_of((8, 8))
    assert np.isnan(geometry.normals(np.ones((1, 5, 3), np.float32))).all()
    assert np.isnan(geometry.normals(geometry.points(np.zeros((8, 8)), camera))).all()


# Jumps


def box_before_a_wall(size, camera, tilt=50) -> tuple[np.ndarray, np.ndarray]:
    """A leaning box at 1.2 m before a wall at 4 m, and where the box is."""
    metres = np.full(size[::-1], 4, np.float32)
    box = np.zeros(size[::-1], bool)
    box[size[1] // 4 : 3 * size[1] // 4, size[0] // 4 : 3 * size[0] // 4] = True
    near = plane(size, camera, tilted(tilt, 90), 1.2)
    return np.where(box, near, metres), box


@pytest.mark.parametrize("reach", [1, 4])
def test_normals_do_not_bleed_over_a_jump(reach):
    size = (160, 120)
    camera = camera_of(size)
    metres, box = box_before_a_wall(size, camera)
    found = geometry.normals(geometry.points(metres, camera), reach)
    assert degrees_between(found[box], tilted(50, 90)).max() < 0.5
    assert degrees_between(found[~box], tilted(0, 0)).max() < 0.5


@pytest.mark.parametrize("size", SIZES)
def test_jumps_are_found_where_they_are_and_nowhere_else(size):
    camera = camera_of(size)
    metres, box = box_before_a_wall(size, camera)
    found = geometry.jumps(geometry.points(metres, camera))
    border = cv2.morphologyEx(box.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    np.testing.assert_array_equal(found, cv2.morphologyEx(box.astype(np.uint8), cv2.MORPH_GRADIENT, cross) > 0)
    assert not (found & ~border).any()
    floor = plane(size, camera, tilted(80, 180), 5)
    lines = rays(size, camera)
    seen = degrees_between(-lines / np.linalg.norm(lines, axis=2, keepdims=True), tilted(80, 180))
    floor[seen > 84] = np.nan  # farther off it is seen from the side, as what hangs in the air is
    assert np.isfinite(floor).mean() > 0.5
    assert not geometry.jumps(geometry.points(floor, camera)).any()


def test_interpolated_points_between_near_and_far_are_jumps_at_any_size():
    """As a probe tells it: a step from 1.5 m to 3 m from one cell to the next, drawn ever larger."""
    coarse = np.full((30, 40), 3, np.float32)
    coarse[:, :20] = 1.5
    for scale in (4, 14, 28):
        size = (40 * scale, 30 * scale)
        metres = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
        found = geometry.jumps(geometry.points(metres, camera_of(size)))
        hanging = (metres > 1.6) & (metres < 2.9)
        assert found[hanging].all()
        assert not found[:, : 19 * scale].any()
        assert not found[:, 21 * scale :].any()


# At a point, and thinner


def test_a_point_gives_the_value_of_its_pixel():
    metres = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert geometry.at(metres, (0, 0)) == 0
    assert geometry.at(metres, (1.99, 1.01)) == 5
    assert geometry.at(metres, (4, 3)) == 11  # the far corner belongs to the last pixel
    for outside in ((-0.1, 1), (4.1, 1), (1, 3.1), (math.nan, 1)):
        with pytest.raises(DinovizError, match="outside the picture of 4 x 3"):
            geometry.at(metres, outside)


def test_a_thinned_mask_is_even_and_keeps_within_the_limit():
    mask = np.ones((300, 400), bool)
    mask[:, :100] = False
    for limit in (90_000, 50_000, 30_000, 10_000, 1_000, 7):
        kept = geometry.thin(mask, limit)
        assert limit / 3 <= kept.sum() <= limit  # no chessboard is finer than the grid two steps before by more
        assert not kept[:, :100].any()
        np.testing.assert_array_equal(kept, geometry.thin(mask, limit))
        if limit >= 1_000:
            quarters = [part.sum() for half in np.split(kept[:, 100:], 2) for part in np.split(half, 2, axis=1)]
            assert max(quarters) < 1.15 * min(quarters)
    np.testing.assert_array_equal(geometry.thin(mask, 90_000), mask)
    assert not geometry.thin(mask, 0).any()


# The picture's edges


@pytest.fixture
def stepped() -> tuple[np.ndarray, Image.Image, PatchGrid]:
    """Depth of a step on the patch grid, and the picture of it, whose edge is at column 100, within a patch."""
    grid = PatchGrid.fit((224, 168), 168, 14)
    picture = np.full((168, 224, 3), 40, np.uint8)
    picture[:, 100:] = 200
    metres = np.full(grid.shape, 2, np.float32)
    metres[:, 7:] = 4
    metres[:, 7] = (98 + 14 - 100) / 14 * 2 + 2
    return metres, Image.fromarray(picture), grid


def test_sharpened_depth_steps_where_the_picture_does(stepped):
    metres, picture, grid = stepped
    truth = np.where(np.arange(224) < 100, 2, 4)
    plain, sharp = grid.resize(metres, "image"), geometry.sharpened(metres, picture, grid)
    assert sharp.shape == (168, 224)
    assert sharp.dtype == np.float32
    near = np.abs(np.arange(224) - 99.5) < 5
    assert np.abs(sharp - truth)[:, near].mean() < 0.75 * np.abs(plain - truth)[:, near].mean()
    assert sharp[:, 101].mean() - sharp[:, 98].mean() > 2 * (plain[:, 101].mean() - plain[:, 98].mean())


def test_sharpening_invents_no_depth(stepped):
    """A glint much brighter than the two things whose colours tell near from far would be far beyond both."""
    metres, _, grid = stepped
    picture = np.full((168, 224, 3), 100, np.uint8)
    picture[:, 100:] = 120
    picture[80, 103] = 255
    plain, sharp = grid.resize(metres, "image"), geometry.sharpened(metres, picture, grid)
    assert EdgeFilter(picture, grid).apply(plain)[80, 103] > 4.5
    assert sharp[80, 103] <= 4
    for y, x in np.ndindex(168, 224):
        around = plain[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15]
        assert around.min() <= sharp[y, x] <= around.max()
    flat = geometry.sharpened(np.full(grid.shape, 3, np.float32), picture, grid)
    np.testing.assert_allclose(flat, 3, rtol=1e-6)


# Files


def test_trimesh_opens_the_cloud():
    size = (120, 90)
    camera, normal = camera_of(size), tilted(35, 60)
    metres = plane(size, camera, normal)
    metres[:5, :7] = np.nan
    cloud = geometry.points(metres, camera)
    colours = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    data = geometry.to_ply(cloud, colours, geometry.normals(cloud))
    opened = trimesh.load(io.BytesIO(data), file_type="ply")
    assert isinstance(opened, trimesh.PointCloud)
    assert len(opened.vertices) == 120 * 90 - 35
    there = np.isfinite(metres)
    np.testing.assert_allclose(opened.vertices, cloud[there])
    np.testing.assert_array_equal(np.asarray(opened.colors)[:, :3], colours[there])
    # What the other library makes of the points themselves: the plane, its size and its tilt.
    centre, fitted = trimesh.points.plane_fit(opened.vertices)
    assert degrees_between(fitted * -np.sign(fitted @ centre), normal) < 0.1
    extent = np.linalg.norm(cloud[-1, -1] - cloud[-1, 0])
    assert np.linalg.norm(opened.vertices[-1] - opened.vertices[-120]) == pytest.approx(extent, rel=0.01)
    stored = opened.metadata["_ply_raw"]["vertex"]["data"]
    written = np.stack([stored[name] for name in ("nx", "ny", "nz")], axis=-1)
    assert degrees_between(written, normal).max() < 0.5


def test_trimesh_measures_the_sphere():
    size = (320, 240)
    camera, centre = camera_of(size), np.array([0.1, -0.1, 3.0])
    cloud = geometry.points(sphere(size, camera, centre), camera)
    data = geometry.to_ply(cloud, np.zeros((*size[::-1], 3), np.uint8))
    found, radius, _ = trimesh.nsphere.fit_nsphere(trimesh.load(io.BytesIO(data), file_type="ply").vertices)
    np.testing.assert_allclose(found, centre, atol=0.01)
    assert radius == pytest.approx(0.8, rel=0.01)


def test_the_depth_file_holds_millimetres(tmp_path):
    metres = np.array([[0.0004, 1.2345, 9.9996], [np.nan, 65.5349, 80], [0, -1, np.inf]], np.float32)
    (tmp_path / "depth.png").write_bytes(geometry.depth_png(metres))
    with Image.open(tmp_path / "depth.png") as opened:
        assert opened.mode == "I;16"
        stored = np.asarray(opened)
    np.testing.assert_array_equal(stored, [[1, 1234, 10000], [0, 65535, 65535], [0, 0, 0]])
    np.testing.assert_array_equal(np.load(io.BytesIO(geometry.depth_npy(metres))), metres)
