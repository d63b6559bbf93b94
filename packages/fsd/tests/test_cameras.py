"""Cameras: where they stand, what they look at, and their files."""

import json
import math

import fsd
import pytest
import torch
from fsd.cameras import Cameras, from_json, orbit, place, rays, to_json, turntable
from hypothesis import given
from hypothesis import strategies as st

angles = st.floats(0, 359.5), st.floats(-89, 89)


@given(*angles, st.floats(0.5, 10))
def test_angles_and_distance_come_back(azimuth, elevation, distance):
    camera = place(torch.tensor([azimuth], dtype=torch.float64), elevation, distance)
    turn = (camera.azimuth_deg.item() - azimuth + 180) % 360 - 180
    assert abs(turn) < 1e-6
    assert camera.elevation_deg.item() == pytest.approx(elevation, abs=1e-6)
    assert camera.distance.item() == pytest.approx(distance)


@given(*angles)
def test_axes_are_right_handed_orthonormal_and_look_at_the_origin(azimuth, elevation):
    camera = place(torch.tensor([azimuth], dtype=torch.float64), elevation, 3.0)
    rotation = camera.c2w[0, :3, :3]
    assert torch.allclose(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(rotation).item() == pytest.approx(1)
    assert torch.allclose(
        camera.position[0] - 3 * rotation[:, 2], torch.zeros(3, dtype=torch.float64), atol=1e-12
    )
    assert rotation[2, 1] >= 0  # up is up


def test_azimuth_zero_stands_in_front_and_grows_to_the_cameras_right():
    front, a_little_on = place([0.0, 10.0], 0.0, 2.0).position
    assert torch.allclose(front, torch.tensor([0.0, 2.0, 0.0]), atol=1e-6)
    right = place([0.0], 0.0, 2.0).c2w[0, :3, 0]
    assert (a_little_on - front) @ right > 0


def test_azimuth_of_a_camera_straight_above():
    assert place([30.0, 200.0], 90.0).azimuth_deg.tolist() == pytest.approx([30, 200], abs=1e-3)


def test_azimuth_never_is_360():
    tiny = Cameras(place([0.0]).c2w.clone(), torch.tensor([40.0]))
    tiny.c2w[0, 0, 3] = 1e-9
    assert 0 <= tiny.azimuth_deg.item() < 360


def test_rays_start_at_the_camera_and_the_middle_one_meets_the_origin():
    camera = place(torch.tensor([33.0], dtype=torch.float64), 20.0, 2.5)
    origins, directions = rays(camera, 5, 5)
    assert torch.allclose(
        origins[0, 2, 2] + 2.5 * directions[0, 2, 2], torch.zeros(3, dtype=torch.float64), atol=1e-12
    )
    assert torch.allclose(directions.norm(dim=-1), torch.ones(1, dtype=torch.float64))


def test_rays_of_a_wide_image_against_a_plain_loop():
    camera = place([77.0], 12.0, 2.0, 50.0)
    _, directions = rays(camera, 4, 6)
    half = math.tan(math.radians(25))
    for row in range(4):
        for column in range(6):
            x = ((column + 0.5) / 6 * 2 - 1) * half * 6 / 4
            y = (1 - (row + 0.5) / 4 * 2) * half
            wanted = camera.c2w[0, :3, :3] @ torch.tensor([x, y, -1.0])
            assert torch.allclose(directions[0, row, column], wanted / wanted.norm(), atol=1e-6)


def test_orbit_keeps_to_its_ranges_and_repeats_with_its_seed():
    def draw():
        return orbit(
            64,
            torch.Generator().manual_seed(5),
            elevation_deg=(-10.0, 45.0),
            distance=(1.0, 2.0),
            fov_deg=(30.0, 60.0),
        )

    cameras = draw()
    assert torch.equal(cameras.c2w, draw().c2w)
    assert -10.01 <= cameras.elevation_deg.min() <= cameras.elevation_deg.max() <= 45.01
    assert 1 <= cameras.distance.min() <= cameras.distance.max() <= 2
    assert 30 <= cameras.fov_deg.min() <= cameras.fov_deg.max() <= 60
    # Stratified: one in each 64th of the circle.
    assert (cameras.azimuth_deg / (360 / 64)).floor().sort().values.tolist() == list(range(64))


def test_views_of_one_object_stand_in_equal_steps_and_are_alike_in_all_else():
    cameras = orbit(
        8, torch.Generator().manual_seed(1), views=4, elevation_deg=(0.0, 40.0), distance=(2.0, 3.0)
    )
    for group in (cameras[:4], cameras[4:]):
        turns = (group.azimuth_deg - group.azimuth_deg[0]) % 360
        assert turns.tolist() == pytest.approx([0, 90, 180, 270], abs=1e-2)
        assert group.elevation_deg.std() < 1e-4
        assert group.distance.std() < 1e-5


def test_turntable_goes_once_around():
    assert turntable(4).azimuth_deg.tolist() == pytest.approx([0, 90, 180, 270], abs=1e-3)


def test_json_comes_back(tmp_path):
    cameras = orbit(3, torch.Generator().manual_seed(2), fov_deg=(30.0, 60.0))
    to_json(cameras, tmp_path / "cameras.json", 80, 60)
    read = from_json(tmp_path / "cameras.json")
    assert torch.equal(read.c2w, cameras.c2w)
    assert read.fov_deg.tolist() == pytest.approx(cameras.fov_deg.tolist(), rel=1e-6)


def test_json_of_one_angle_has_it_where_other_programs_look(tmp_path):
    to_json(turntable(2), tmp_path / "cameras.json", 32, 32)
    content = json.loads((tmp_path / "cameras.json").read_text())
    assert content["camera_angle_x"] == pytest.approx(math.radians(40))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"frames": [{"transform_matrix": [[1]]}], "camera_angle_x": 1}', "no json"]
)
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json"):
        from_json(path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"elevation_deg": 91.0}, "elevation_deg holds 91"),
        ({"distance": 0.0}, "distance holds 0"),
        ({"fov_deg": 180.0}, "fov_deg holds 180"),
    ],
)
def test_numbers_out_of_range_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        place([0.0], **settings)


def test_views_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch=6 with views=4"):
        fsd.cameras.orbit(6, torch.Generator(), views=4)


def test_azimuths_are_one_per_camera():
    with pytest.raises(ValueError, match="one number per camera"):
        place(torch.zeros(2, 2))
