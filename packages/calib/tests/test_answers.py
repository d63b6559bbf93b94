"""What answers mean: the part that names classes, logits or probabilities, one column; classifiers of all makes."""

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from calib.adaptation import adapt
from calib.answers import as_logits, decide
from calib.attachment import attach
from calib.blackbox import gives_gradient
from calib.calibrator import Calibrator
from calib.step import Weights
from calib.views import Views
from shared_core.ops.freeze import checksums
from torch import nn
from torch.utils.checkpoint import checkpoint

Pair = namedtuple("Pair", ["logits", "aux"])
SHORT = {"steps": 2, "batch_size": 8, "validation_images": 16, "device": "cpu"}


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor


class Answering(nn.Module):
    """A linear classifier of 3 classes whose answer is `wrap` of its logits."""

    def __init__(self, wrap, classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head, self.wrap = nn.Linear(192, classes), wrap
        self.head.weight.data.copy_(torch.randn(classes, 192, generator=generator) / 4)

    def plain(self, x):
        return self.head(x.flatten(1))

    def forward(self, x):
        return self.wrap(self.plain(x))


def images(n=8, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def calibrator():
    torch.manual_seed(0)
    return Calibrator(3, 0.2, 2, 1)


FORMS = {
    "dict": lambda z: {"loss": z.sum(), "logits": z},
    "namedtuple": lambda z: Pair(z, 2 * z),
    "dataclass": lambda z: Output(None, z, z.sum(1)),
    "list": lambda z: [z],
    "tuple": lambda z: (z, None),
    "out": lambda z: {"aux": 2 * z, "out": z},
}


@pytest.mark.parametrize("form", FORMS)
def test_obvious_logits_are_found_and_adapted_through(form):
    net = Answering(FORMS[form])
    model = attach(net, calibrator())
    assert torch.equal(model(images(), alpha=0.0), net.plain(images()))
    assert torch.equal(model.ask(images()), net.plain(images()))
    report = adapt(model, [images()], [images(seed=1)], **SHORT)
    assert report.classifier_unchanged
    assert report.outputs == "logits"


def test_what_is_not_obvious_is_said_and_otherwise_listed():
    net = Answering(lambda z: {"first": z, "second": 2 * z})
    listed = (
        r"classifier returns a dict of 'first': a tensor .* shape \(8, 3\), 'second': .*: say which part the"
    )
    with pytest.raises(ValueError, match=listed):
        attach(net, calibrator())(images())
    for output in ("second", 1, lambda answer: answer["second"]):
        assert torch.equal(attach(net, calibrator(), output=output)(images(), 0.0), 2 * net.plain(images()))
    with pytest.raises(ValueError, match=r"output='third' is not in what the classifier returns"):
        adapt(attach(net, calibrator(), output="third"), [images()], [images()], **SHORT)


def test_class_numbers_pass_as_an_answer_and_are_refused_as_logits():
    net = Answering(lambda z: {"logits": z.argmax(1)})
    model = attach(net, calibrator())
    assert torch.equal(model(images(), 0.0), net.plain(images()).argmax(1))
    with pytest.raises(ValueError, match=r"torch.int64, which are class numbers"):
        model.logits(images())


@pytest.mark.parametrize("last", [lambda z: z.softmax(1), lambda z: (256 * z.softmax(1)).round() / 256])
def test_probabilities_are_not_softmaxed_again(last):
    net = Answering(last)
    model = attach(net, calibrator())
    assert torch.equal(model(images(), 0.0), net(images()))
    wanted = net(images())
    assert torch.allclose(model.ask(images()).softmax(1), wanted / wanted.sum(1, keepdim=True), atol=1e-5)
    assert model.outputs == "probabilities"
    if not gives_gradient(net, images()):
        return
    plain, again = attach(Answering(lambda z: z), calibrator()), attach(net, calibrator())
    reports = [adapt(one, [images()], [images(seed=1)], **SHORT) for one in (plain, again)]
    assert [report.outputs for report in reports] == ["logits", "probabilities"]
    gap = reports[0].validators["information"] - reports[1].validators["information"]
    assert abs(gap) < 0.01


@pytest.mark.parametrize("form", [lambda z: z, lambda z: z[:, 0], lambda z: z.sigmoid()])
def test_one_column_is_a_binary_classifier(form):
    net = Answering(form, classes=1)
    model = attach(net, calibrator())
    wanted = net.plain(images())[:, 0].sigmoid()
    assert torch.allclose(model.ask(images()).softmax(1)[:, 1], wanted, atol=1e-5)
    assert len(set(model.ask(images(64)).argmax(1).tolist())) == 2
    alone = torch.cat([model.ask(image[None]) for image in images()])
    assert torch.allclose(alone, model.ask(images()), atol=1e-6)
    weights = Weights(views=1.0, hold=1.0)
    adapt(model, [images()], [images(seed=1)], weights=weights, views=Views(count=2), **SHORT)


def test_the_decision_does_not_hang_on_the_batch_at_hand():
    """One image's logits that happen to sum to 1 are no probabilities."""
    net = Answering(lambda z: z)
    lucky = torch.tensor([[0.2, 0.3, 0.5]])
    net.forward = lambda x: lucky if len(x) == 1 else net.plain(x)
    model = attach(net, calibrator())
    assert torch.equal(model.ask(images(1)), lucky)
    assert model.outputs == "logits"


def test_what_is_said_is_believed_or_contradicted():
    z = Answering(lambda z: z).plain(images())
    assert decide(z.softmax(1), "logits") == "logits"
    assert torch.equal(as_logits(z, "logits"), z)
    with pytest.raises(ValueError, match="outputs is 'probabilities', but the classifier's run from"):
        decide(z, "probabilities")
    with pytest.raises(ValueError, match=r"torch.int64, which are class numbers"):
        decide(z.argmax(1))
    with pytest.raises(ValueError, match=r"one column, here from 0.3 to 0.5"):
        decide(torch.tensor([[0.3], [0.5]]))
    with pytest.raises(ValueError, match="outputs is 'odds'; choose auto, logits, probabilities"):
        attach(Answering(lambda z: z), calibrator(), outputs="odds")


class InPlace(Answering):
    def forward(self, x):
        x -= 0.5
        return self.plain(x)


def test_a_classifier_that_normalises_in_place_gets_a_copy():
    model = attach(InPlace(None), calibrator())
    x = images()
    model(x, alpha=0.0)
    assert torch.equal(x, images())
    weights = Weights(views=1.0, hold=1.0)
    ours = adapt(model, [images()], [images(seed=1)], weights=weights, **SHORT)
    plain = attach(Answering(lambda z: z), calibrator())
    plain.classifier.forward = lambda x: plain.classifier.plain(x - 0.5)
    theirs = adapt(plain, [images()], [images(seed=1)], weights=weights, **SHORT)
    assert ours.validators == theirs.validators


def test_a_used_model_is_copied_and_pickled():
    model = attach(Answering(torch.nn.Identity()), calibrator())
    adapt(model, [images()], [images(seed=1)], feature="layer:head", **SHORT)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(again(images()), model(images()))
        again.verify()
        assert again.classifier is not model.classifier
        adapt(again, [images()], [images(seed=1)], **SHORT)


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript_attaches_adapts_and_is_refused_where_it_cannot_be_exported(frozen, tmp_path):
    from calib.export import export

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Dropout(0.5)).eval()
    script = torch.jit.script(net)
    script = torch.jit.freeze(script) if frozen else script
    model = attach(script, calibrator())
    assert torch.allclose(model(images(), 0.0), net(images()), atol=1e-6)
    assert adapt(model, [images()], [images(seed=1)], **SHORT).classifier_unchanged
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))
    with pytest.raises(ValueError, match=r"TorchScript .* what='calibrator'"):
        export(model, tmp_path / "fused.pt2", "torch_export", what="fused")
    export(model, tmp_path / "alone.safetensors")
    assert model.detach() is script


class Merging(nn.Linear):
    """Acts in train(), as LoRA does that merges for evaluation."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_modes_come_back_through_each_layer_s_own_train():
    net = nn.Sequential(nn.Flatten(), Merging(192, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    net[2].eval()
    model = attach(net, calibrator())
    assert net[1].merged
    model.train()
    assert net[1].merged
    model.detach()
    assert [module.training for module in net.modules()] == [True, True, True, False, True]
    assert not net[1].merged


class Checkpointed(Answering):
    def __init__(self, reentrant):
        super().__init__(None)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.plain, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_give_the_same_calibrator(reentrant):
    ends = []
    for net in (Answering(lambda z: z), Checkpointed(reentrant)):
        model = attach(net, calibrator())
        adapt(model, [images()], [images(seed=1)], **SHORT)
        ends.append(torch.cat([p.detach().flatten() for p in model.calibrator.parameters()]))
        assert all(p.grad is None for p in net.parameters())
    assert torch.equal(*ends)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_classifiers_attach(in_place):
    net = Answering(lambda z: z)
    compiled = net if in_place else torch.compile(net, backend="eager")
    if in_place:
        net.compile(backend="eager")
    model = attach(compiled, calibrator())
    for feature in ("softmax", "layer:head"):
        assert adapt(model, [images()], [images(seed=1)], feature=feature, **SHORT).classifier_unchanged
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))


def test_the_net_inside_data_parallel_answers():
    net = Answering(lambda z: z)
    wrapped = nn.DataParallel(net, device_ids=None)
    model = attach(wrapped, calibrator())
    assert model.classifier is net
    assert adapt(model, [images()], [images(seed=1)], **SHORT).classifier_unchanged
    assert model.detach() is wrapped


def test_a_layer_that_is_called_twice_and_mixed_types_stay_what_they_are():
    class Twice(Answering):
        def __init__(self):
            super().__init__(None)
            self.same = nn.Linear(3, 3).double()
            self.other = self.same
            self.register_buffer("table", torch.zeros(2, dtype=torch.float16))

        def forward(self, x):
            return self.other(self.same(self.plain(x).double())).float()

    net = Twice()
    types = {name: value.dtype for name, value in net.state_dict().items()}
    model, before = attach(net, calibrator()), checksums(net)
    adapt(model, [images()], [images(seed=1)], **SHORT)
    assert checksums(net) == before
    assert {name: value.dtype for name, value in net.state_dict().items()} == types
