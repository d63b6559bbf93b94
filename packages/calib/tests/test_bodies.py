"""The bodies: the paper's parameter counts, shapes, and a start at zero."""

import pytest
import torch
from calib.bodies import BODIES, padded_size, residual_body


@pytest.mark.parametrize(
    ("width", "blocks", "parameters"), [(8, 9, 180_419), (4, 9, 45_859), (8, 8, 161_923), (5, 6, 49_463)]
)
def test_parameters_of_the_papers_calibrators(width, blocks, parameters):
    assert sum(p.numel() for p in residual_body(3, width, blocks).parameters()) == parameters


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", [(8, 8), (9, 31), (17, 10), (32, 32)])
def test_a_padded_image_comes_out_in_its_size_and_starts_at_zero(body, size):
    padded = [padded_size(body, side) for side in size]
    assert all(p >= side for p, side in zip(padded, size, strict=True))
    raw = BODIES[body](2, 4, 1)(torch.rand(3, 2, *padded))
    assert raw.shape == (3, 2, *padded)
    assert not raw.any()


@pytest.mark.parametrize("body", BODIES)
def test_the_head_learns_from_the_first_step_and_the_rest_from_the_second(body):
    torch.manual_seed(0)
    net, images = BODIES[body](1, 4, 1), torch.rand(2, 1, 16, 16)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(images) - images).square().mean().backward()
        optimizer.step()
    weights = [p for name, p in net.named_parameters() if name.endswith(("weight", "map"))]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch():
    torch.manual_seed(0)
    net = residual_body(1, 4, 2).double()
    torch.nn.init.normal_(net[-1].weight)
    images = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    alone = torch.cat([net(image[None]) for image in images])
    assert torch.allclose(net(images), alone, atol=1e-12)


def test_four_numbers_of_the_folded_body_become_two_by_two_pixels():
    net = BODIES["folded"](1, 4, 1)
    with torch.no_grad():
        net.inner[-1].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(8, 8)
    assert torch.equal(net(torch.rand(2, 1, 16, 16)), expected.expand(2, 1, 16, 16))


def test_depthwise_has_fewer_parameters_than_half_of_the_residual_body():
    counts = {name: sum(p.numel() for p in BODIES[name](3, 8, 9).parameters()) for name in BODIES}
    assert 2 * counts["depthwise"] < counts["residual"]
