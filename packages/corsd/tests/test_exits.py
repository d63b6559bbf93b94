"""Early exit: stops where it is sure, goes to the end where it is not, and averages probabilities."""

import pytest
import torch
from corsd import Distiller, EarlyExit, Exits
from corsd.exits import ensemble, exit_losses
from corsd.maps import as_map
from corsd.nets import small_resnet


def _distiller():
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 8, 4)
    return Distiller(net, num_classes=4, example=torch.zeros(2, 3, 16, 16), exits="joint").eval()


def test_threshold_above_one_never_exits_and_gives_the_nets_own_logits():
    d, x = _distiller(), torch.rand(3, 3, 16, 16)
    logits, depth = EarlyExit(d.net, d.stages[:-1], d.exits, threshold=1.1)(x)
    assert depth == 3
    assert torch.equal(logits, d.net(x))


def test_tiny_threshold_exits_first_and_runs_nothing_deeper():
    d, x = _distiller(), torch.rand(3, 3, 16, 16)
    ran = []
    hook = d.net.layer2.register_forward_hook(lambda *_: ran.append("layer2"))
    logits, depth = EarlyExit(d.net, d.stages[:-1], d.exits, threshold=1e-6)(x)
    hook.remove()
    assert depth == 0
    assert ran == []
    with d.capture:
        d.net(x)
    maps = [as_map(m, "map") for m in d.capture.pop().values()]
    torch.testing.assert_close(logits, d.exits(maps[:-1])[0])
    assert not any(m._forward_hooks for m in d.net.modules())


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    d = _distiller()
    with pytest.raises(ValueError, match=r"3 exits need as many stages"):
        EarlyExit(d.net, d.stages, d.exits)
    with pytest.raises(ValueError, match=r"threshold=0; give a probability"):
        EarlyExit(d.net, d.stages[:-1], d.exits, threshold=0)


def test_ensemble_is_the_mean_probability():
    a, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(ensemble([a, b]).exp(), (a.softmax(1) + b.softmax(1)) / 2)


def test_exit_losses_equal_a_loop():
    torch.manual_seed(0)
    z, deep, labels = torch.randn(2, 3, 4).double(), torch.randn(3, 4).double(), torch.tensor([0, 1, 3])
    parts = exit_losses(list(z), labels, deep)
    ce = sum(-z[i].log_softmax(1)[j, labels[j]] for i in range(2) for j in range(3)) / 3
    target = (deep / 3).softmax(1)
    kl = sum(-(target[j] * (z[i, j] / 3).log_softmax(0)).sum() for i in range(2) for j in range(3)) / 3
    torch.testing.assert_close(parts["exit_ce"], 0.7 * ce)
    torch.testing.assert_close(parts["exit_kl"], 0.3 * kl)


def test_exits_fit_any_widths():
    exits = Exits([5, 12, 24], 40, 3)
    maps = [torch.rand(2, c, s, s) for c, s in [(5, 8), (12, 4), (24, 2)]]
    assert [z.shape for z in exits(maps)] == [(2, 3)] * 3
    assert [f.shape for f in exits.features(maps)] == [(2, 40)] * 3
