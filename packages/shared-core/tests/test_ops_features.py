import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from shared_core.ops.features import FeatureCapture
from shared_core.testing import assert_same_state, run_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Three stages, dropout, a module that runs twice and one that never runs."""

    def __init__(self, graph_break: bool = False):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(1, 1)
        self.pair = Pair()
        self.graph_break = graph_break

    def forward(self, x):
        x = self.first(x)
        if self.graph_break:
            torch._dynamo.graph_break()
        x = self.second(self.second(x))
        x = self.drop(x)
        return self.head(self.pair(x)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def images():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def new_net(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


def by_hook(net, names, x):
    """The slow oracle: plain forward hooks on the eager net."""
    found = {}
    handles = [
        net.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: found.update({name: out}))
        for name in names
    ]
    net(x)
    for handle in handles:
        handle.remove()
    return found


def assert_untouched(net):
    for name, module in net.named_modules():
        assert "forward" not in vars(module), name
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name


def test_gives_what_hooks_give_in_the_order_of_names():
    net, names = new_net(), ["head", "first.1", "second"]
    capture = FeatureCapture(net, names)
    with capture:
        net(images())
    features = capture.pop()
    assert list(features) == names
    assert_same_state(features, {name: by_hook(net, names, images())[name] for name in names})


def test_output_of_the_net_and_its_state_are_untouched():
    net = new_net()
    keys, expected = list(net.state_dict()), net(images())
    capture = FeatureCapture(net, ["first"])
    with capture:
        assert torch.equal(net(images()), expected)
    assert list(net.state_dict()) == keys
    assert_untouched(net)


def test_gradient_flows_through_the_features():
    net = new_net()
    capture = FeatureCapture(net, ["first"])
    with capture:
        net(images())
    capture.pop()["first"].sum().backward()
    assert net.first[0].weight.grad.abs().sum() > 0
    assert net.second.weight.grad is None


def test_second_call_wins_and_outside_calls_are_not_seen():
    net = new_net()
    capture = FeatureCapture(net, ["first"])
    with capture:
        net(images())
        net(images() + 1)
    net(images() + 2)
    assert torch.equal(capture.pop()["first"], net.first(images() + 1))


def test_nothing_is_left_after_an_error_inside():
    net = new_net()
    capture = FeatureCapture(net, ["first"])
    with pytest.raises(RuntimeError, match="channels"), capture:
        net(torch.zeros(1, 9, 8, 8))
    assert_untouched(net)
    with pytest.raises(RuntimeError, match="no output of first was captured"):
        capture.pop()


def test_features_and_net_are_freed_without_the_garbage_collector():
    net = new_net()
    capture = FeatureCapture(net, ["first"])
    gc.disable()
    try:
        with capture:
            net(images())
        features = capture.pop()
        feature, module = weakref.ref(features["first"]), weakref.ref(net)
        del features
        assert feature() is None
        del net, capture
        assert module() is None
    finally:
        gc.enable()


def test_pop_twice_is_an_error():
    net = new_net()
    capture = FeatureCapture(net, ["first"])
    with capture:
        net(images())
    capture.pop()
    with pytest.raises(RuntimeError, match="no output of first was captured: call the net inside"):
        capture.pop()


def test_a_module_that_never_runs_is_named():
    net = new_net()
    capture = FeatureCapture(net, ["first", "unused"])
    with capture:
        net(images())
    with pytest.raises(RuntimeError, match="no output of unused was captured"):
        capture.pop()


def test_a_module_that_returns_a_tuple_is_named():
    net = new_net()
    capture = FeatureCapture(net, ["pair"])
    with pytest.raises(TypeError, match="module 'pair' returns a tuple, not one tensor"), capture:
        net(images())
    assert_untouched(net)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["frst"],
            r"net has no submodule 'frst': did you mean first or .*\? the names are first, first.0, .*pair",
        ),
        (["zzz"], r"net has no submodule 'zzz': the names are first"),
        ([], "names is empty"),
        (["first", "first"], "has an entry twice"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(ValueError, match=message):
        FeatureCapture(new_net(), names)


def test_one_module_under_two_names_is_refused():
    net = new_net()
    net.same = net.second
    with pytest.raises(ValueError, match="two names of one shared module"):
        FeatureCapture(net, ["second", "same"])
    assert FeatureCapture(net, ["same"]).names == ["same"]


def test_entering_twice_is_an_error_and_two_captures_nest():
    net = new_net()
    one, other = FeatureCapture(net, ["first"]), FeatureCapture(net, ["first", "second"])
    with one, pytest.raises(RuntimeError, match="already active"), one:
        pass
    with one, other:
        net(images())
    assert torch.equal(one.pop()["first"], other.pop()["first"])
    assert_untouched(net)


def test_a_forward_of_the_modules_own_is_kept():
    net = new_net()
    double = lambda x: 2 * nn.Conv2d.forward(net.second, x)  # noqa: E731
    net.second.forward = double
    capture = FeatureCapture(net, ["second"])
    with capture:
        net(images())
    x = net.first(images())
    assert torch.equal(capture.pop()["second"], double(double(x)))
    assert net.second.forward is double


def test_under_autocast_features_have_its_type():
    net = new_net()
    capture = FeatureCapture(net, ["second"])
    with torch.autocast("cpu", dtype=torch.bfloat16), capture:
        net(images())
    assert capture.pop()["second"].dtype == torch.bfloat16


@pytest.mark.compile
# Dynamo itself looks at the gradient of what crosses a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("graph_break", [False, True])
@pytest.mark.parametrize("first_call", ["plain", "captured"])
def test_compiled_in_place(graph_break, first_call):
    torch._dynamo.reset()
    compiled = 0

    def backend(graph, inputs):
        nonlocal compiled
        compiled += 1
        return graph.forward

    names = ["first", "second"]
    expected = by_hook(new_net(), names, images())
    logits = new_net()(images())
    net = new_net(graph_break=graph_break)
    net.compile(backend=backend)
    capture = FeatureCapture(net, names)
    if first_call == "plain":
        net(images())
    for _ in range(3):
        with capture:
            assert torch.equal(net(images()), logits)
        assert_same_state(capture.pop(), expected)
        before = compiled
        assert torch.equal(net(images()), logits)
        with pytest.raises(RuntimeError, match="no output of first, second"):
            capture.pop()
        if _ > 0:
            assert compiled == before, "compiled anew for the same situation"
    assert_untouched(net)


@pytest.mark.compile
def test_compiled_gradients_equal_eager_ones_in_training():
    torch._dynamo.reset()
    grads = []
    for compiled in (False, True):
        net = new_net()
        if compiled:
            net.compile(backend="aot_eager")
            net(images())
        net.train()
        net.drop.p = 0.0
        capture = FeatureCapture(net, ["first"])
        with capture:
            logits = net(images())
        (logits.sum() + capture.pop()["first"].square().mean()).backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert list(grads[0]) == list(grads[1])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.compile
def test_the_wrapper_of_torch_compile_gives_the_plain_nets_features():
    """It was refused before; users have it in hand, and what it wraps runs all the same."""
    torch._dynamo.reset()
    net = new_net()
    expected = by_hook(new_net(), ["first"], images())
    compiled = torch.compile(net, backend="eager")
    capture = FeatureCapture(compiled, ["first"])
    for _ in range(2):
        with capture:
            compiled(images())
        assert_same_state(capture.pop(), expected)


class InPlace(nn.Module):
    """Layers that write into what the layer before returned: always, and only in training."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.drop = (
            nn.Conv2d(1, 4, 3),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5, inplace=True),
        )
        self.late, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.late(self.relu(self.conv(x)))
        return self.head(self.drop(x).mean((2, 3)).mul_(2))


@pytest.mark.parametrize("training", [False, True])
def test_an_in_place_layer_behind_does_not_change_what_was_captured(training):
    torch.manual_seed(0)
    net = InPlace().train(training)
    capture = FeatureCapture(net, ["conv", "late"])
    for _ in range(3):
        with capture:
            net(images())
        features = capture.pop()
        conv = net.conv(images())
        assert torch.equal(features["conv"], conv)
        assert torch.equal(features["late"], net.late(conv.relu()))
        assert features["conv"].min() < 0
    features["conv"].square().mean().backward()
    gradient = net.conv.weight.grad.clone()
    net.zero_grad()
    net.conv(images()).square().mean().backward()
    torch.testing.assert_close(net.conv.weight.grad, gradient)
    assert net.late.weight.grad is None


def test_what_nothing_overwrites_is_the_very_tensor_and_copied_once_at_most():
    net = new_net()
    capture = FeatureCapture(net, ["first"])
    with capture:
        net(images())
    first = capture.pop()["first"]
    assert first.grad_fn.name() != "CloneBackward0"
    with capture:
        net(images())
        assert capture._store["first"].values is None
    net.train()
    with capture:
        net(images())
        assert capture._store["first"].values is not None


def test_a_write_that_begins_later_is_an_error_and_the_next_pass_is_right():
    net = InPlace().eval()
    capture = FeatureCapture(net, ["late"])
    with capture:
        net(images())
    capture.pop()
    net.drop.train()
    with capture:
        net(images())
    with pytest.raises(
        RuntimeError, match=r"wrote into the output of 'late' in this pass .* call the net again"
    ):
        capture.pop()
    with capture:
        net(images())
    assert torch.equal(capture.pop()["late"], net.late(net.conv(images()).relu()))


def test_under_inference_mode():
    net = InPlace().eval()
    capture = FeatureCapture(net, ["conv"])
    with torch.inference_mode(), capture:
        net(images())
    assert torch.equal(capture.pop()["conv"], net.conv(images()))


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_with_its_net_captures_the_copy(way):
    net = new_net()
    capture = FeatureCapture(net, ["first", "second"])
    with capture:
        net(images())
    both = (net, capture)
    other, theirs = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))  # noqa: S301
    with torch.no_grad():
        other.first[0].weight.zero_()
    with theirs:
        other(images())
    with capture:
        net(images())
    assert torch.equal(theirs.pop()["first"], other.first(images()))
    assert torch.equal(capture.pop()["first"], net.first(images()))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x):
        x = checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_module_gives_features_with_gradient(reentrant):
    torch.manual_seed(0)
    net = Checkpointed(reentrant)
    capture = FeatureCapture(net, ["block"])
    for _ in range(2):
        net.zero_grad()
        with capture:
            net(images())
        capture.pop()["block"].square().mean().backward()
        got = [p.grad.clone() for p in (net.stem.weight, net.block[0].weight)]
        net.zero_grad()
        net.block(net.stem(images())).square().mean().backward()
        for one, p in zip(got, (net.stem.weight, net.block[0].weight), strict=True):
            torch.testing.assert_close(one, p.grad)


def test_inside_of_a_checkpoint_one_form_works_and_the_other_is_refused():
    for reentrant in (False, True):
        net = Checkpointed(reentrant)
        capture = FeatureCapture(net, ["block.0"])
        with capture:
            net(images())
        if not reentrant:
            capture.pop()["block.0"].mean().backward()
            assert net.stem.weight.grad.abs().sum() > 0
        else:
            with pytest.raises(RuntimeError, match=r"'block.0' runs inside of an activation checkpoint"):
                capture.pop()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_the_remedy():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
    with pytest.raises(TypeError, match=r"net is TorchScript.* give the nn.Module it was made from"):
        FeatureCapture(scripted, ["0"])
    with pytest.raises(TypeError, match=r"submodule '0' is TorchScript"):
        FeatureCapture(nn.Sequential(scripted, nn.Flatten()), ["0"])


def captured_under_ddp():
    net = new_net()
    net.unused = net.pair
    wrapped = nn.parallel.DistributedDataParallel(net)
    capture = FeatureCapture(net, ["first"])
    x = images() + dist.get_rank()
    with capture:
        logits = wrapped(x)
    feature = capture.pop()["first"]
    (logits.sum() + feature.sum()).backward()
    assert_untouched(net)
    return torch.equal(feature, net.first(x)), net.first[0].weight.grad


def test_inside_ddp():
    (same, grad), (same_too, other_grad) = run_ranks(captured_under_ddp)
    assert same
    assert same_too
    assert torch.equal(grad, other_grad)
