import pytest
import torch
from fsd.fields import DenseGrid, HashGrid, blob
from fsd.trilinear import corners, hashed, in_order, slopes, weighted_rows


def points(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_linear_function_is_met_exactly() -> None:
    size, x = 5, points(50)
    axis = torch.arange(size, dtype=torch.float64) / (size - 1)
    a, b, c = torch.meshgrid(axis, axis, axis, indexing="ij")
    table = (2 * a - 3 * b + 0.5 * c + 1).reshape(-1, 1)
    lower, weights = corners(x, size)
    rows = in_order(lower, size)
    expected = 2 * x[:, 0] - 3 * x[:, 1] + 0.5 * x[:, 2] + 1
    torch.testing.assert_close(weighted_rows(table, rows, weights)[:, 0], expected)
    slope = [weighted_rows(table, rows, weights)[:, 0] for weights in slopes(x, size)]
    expected = torch.tensor([2.0, -3.0, 0.5], dtype=torch.float64).expand(50, 3)
    torch.testing.assert_close(torch.stack(slope, 1), expected)


def test_the_outer_lattice_points_are_reached() -> None:
    lower, weights = corners(torch.tensor([[0.0, 0.5, 1.0]]), 3)
    assert lower.tolist() == [[0, 1, 1]]
    assert in_order(lower, 3).tolist() == [[4, 5, 7, 8, 13, 14, 16, 17]]
    # All the weight is on the point (0, 1, 2) of the lattice.
    assert weights.tolist() == [[0.0, 1.0] + [0.0] * 6]


def plain_hash_encoding(field: HashGrid, point: list[float]) -> list[float]:
    """Instant-NGP, one point at a time with Python's own integers."""
    out = []
    for table, size in zip(field.tables, field.resolutions, strict=True):
        at = [(value / field.radius + 1) / 2 * (size - 1) for value in point]
        low = [min(int(value), size - 2) for value in at]
        total = [0.0] * table.shape[1]
        for number in range(8):
            bits = [number >> 2 & 1, number >> 1 & 1, number & 1]
            x, y, z = (k + bit for k, bit in zip(low, bits, strict=True))
            row = (
                (x * size + y) * size + z
                if size**3 <= len(table)
                else (x ^ y * 2654435761 ^ z * 805459861) % len(table)
            )
            weight = 1.0
            for value, k, bit in zip(at, low, bits, strict=True):
                weight *= value - k if bit else 1 - (value - k)
            total = [t + weight * v for t, v in zip(total, table[row].tolist(), strict=True)]
        out += total
    return out


def test_the_hash_grid_is_that_of_plain_loops() -> None:
    torch.manual_seed(0)
    field = HashGrid(radius=1.5, levels=4, log2_size=8, base=4, finest=64).double()
    assert field.resolutions == [4, 10, 25, 64]
    assert [len(table) for table in field.tables] == [64, 256, 256, 256]
    x = (points(20) * 2 - 1) * 1.5
    expected = torch.tensor([plain_hash_encoding(field, point) for point in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(field.encode(x), expected, rtol=1e-12, atol=1e-18)


def test_the_last_level_is_the_finest() -> None:
    assert HashGrid(log2_size=4).resolutions[-1] == 2048


def test_hashes_stay_within_the_table() -> None:
    lower = torch.randint(0, 4095, (1000, 3), generator=torch.Generator().manual_seed(0))
    rows = hashed(lower, 2**14)
    assert rows.min() >= 0
    assert rows.max() < 2**14
    assert rows.unique().numel() > 5000


def fields() -> list:
    torch.manual_seed(0)
    grid = DenseGrid(6, radius=1.2).double()
    torch.nn.init.normal_(grid.values)
    coarse = HashGrid(radius=1.2, levels=2, log2_size=8, base=4, finest=8, width=8).double()
    for table in coarse.tables:
        torch.nn.init.normal_(table)
    return [grid, coarse]


@pytest.mark.parametrize("field", fields(), ids=["dense", "hash"])
def test_both_ways_to_a_value_agree(field) -> None:
    x = points(40) * 2 - 1
    density, color = field(x)
    other_density, other_color = field(x.clone().requires_grad_())
    torch.testing.assert_close(density, other_density)
    torch.testing.assert_close(color, other_color)
    torch.testing.assert_close(field.density(x), density)
    assert density.min() >= 0
    assert color.min() >= 0
    assert color.max() <= 1


def test_the_blob_is_magic3ds() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.4], [0.0, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        blob(x), torch.tensor([10.0, 0.0, -10.0], dtype=torch.float64), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(DenseGrid(4).double().density(x), torch.nn.functional.softplus(blob(x)))


def test_the_blobs_centre_has_a_gradient() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    blob(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_a_resized_grid_is_the_same_field_where_it_can_be() -> None:
    grid = fields()[0]
    x = points(100) * 2 - 1
    # every lattice point of 6 is one of 11
    finer = grid.resized(11)
    torch.testing.assert_close(finer.density(x), grid.density(x))
    torch.testing.assert_close(finer(x)[1], grid(x)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseGrid(1), "at least 2"),
        (lambda: DenseGrid(8, radius=0.0), "radius=0.0"),
        (lambda: HashGrid(levels=0), "levels=0"),
        (lambda: HashGrid(base=16, finest=8), "finest at least base"),
    ],
)
def test_sizes_that_make_no_field_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
