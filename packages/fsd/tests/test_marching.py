import pytest
import torch
from fsd.cameras import place, rays
from fsd.marching import march_rays, obstacle
from fsd.occupancy import OccupancyGrid
from fsd.scene import grid_scene


def test_without_a_gpu_the_reason_is_given_and_nothing_compiles(monkeypatch, capsys) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", None)  # importing it would be an error
    assert obstacle(torch.zeros(1, 3)) == "marching needs rays on a CUDA device and these are on cpu"
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="render_rays works anywhere"):
        march_rays(grid_scene(4).field, torch.zeros(1, 3), torch.ones(1, 3), OccupancyGrid(4), 0.1)


def test_a_scene_on_a_cpu_falls_back_and_says_so_once(capsys) -> None:
    camera = place([0.0])
    scene, plain = (grid_scene(8, occupancy=8, marching=marching) for marching in (True, False))
    assert torch.equal(scene.render(camera, 8).image, plain.render(camera, 8).image)
    scene.render(camera, 8)
    said = capsys.readouterr().err
    assert said.count("marching needs rays on a CUDA device") == 1
    assert "dense samples" in said


def test_marching_wants_an_occupancy_grid() -> None:
    with pytest.raises(ValueError, match="occupancy=32"):
        grid_scene(8, marching=True)


@pytest.mark.gpu
@pytest.mark.timeout(1200)
def test_marching_agrees_with_dense_samples() -> None:
    torch.manual_seed(0)
    field = grid_scene(24, blob_scale=30.0).field.cuda()
    torch.nn.init.normal_(field.values)
    occupancy = OccupancyGrid(32).cuda()
    origins, directions = (x.reshape(-1, 3).cuda() for x in rays(place([0.0, 70.0]), 48, 48))
    from fsd.render import render_rays

    reason = obstacle(origins)
    if reason is not None:
        pytest.skip(reason)
    occupancy.update(field, 0, 2 / 512)
    dense = render_rays(field, origins, directions, 512, normals="finite")
    marched = march_rays(field, origins, directions, occupancy, 2 / 512, normals="finite")
    for one, other in zip(dense, marched, strict=True):
        assert (one - other).square().mean() < 1e-4
    marched.color.sum().backward()
    through = field.values.grad.clone()
    field.zero_grad()
    dense.color.sum().backward()
    assert (through - field.values.grad).norm() < 0.05 * through.norm()
