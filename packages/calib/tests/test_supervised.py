"""Training on the source: it learns, the same seed gives the same weights, and a stopped training goes on."""

import signal

import pytest
import torch
from calib.supervised import train_classifier
from shared_core.data.arrays import ArrayImages
from shared_core.testing import assert_same_state
from torch import nn


def halves(n=24):
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    for label in (0, 1):
        images[labels == label, :, :, 4 * label : 4 * label + 4] = 255
    return ArrayImages(images, labels)


def untrained():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 2)).train()


def trained(seed, epochs=10.0, batch_size=8, **where):
    net = untrained()
    before = torch.get_rng_state()
    train_classifier(net, halves(), epochs, batch_size, 1e-2, 0.0, seed, torch.device("cpu"), **where)
    assert torch.equal(torch.get_rng_state(), before)
    return net


def test_it_learns_and_ends_in_eval_mode():
    net, data = trained(0), halves()
    assert not net.training
    assert torch.equal(net(data.images.float() / 255).argmax(1), data.labels)


def test_the_same_seed_gives_the_same_net_and_another_another():
    assert_same_state(trained(1).state_dict(), trained(1).state_dict())
    with pytest.raises(AssertionError):
        assert_same_state(trained(1).state_dict(), trained(2).state_dict())


def test_auxiliary_logits_are_left_out():
    class Auxiliary(nn.Module):
        """As GoogLeNet: its own logits first, and others after them while it trains."""

        def __init__(self):
            super().__init__()
            self.own, self.other = nn.Linear(64, 2), nn.Linear(64, 2)

        def forward(self, images):
            x = images.flatten(1)
            return (self.own(x), self.other(x)) if self.training else self.own(x)

    net, data = Auxiliary(), halves()
    train_classifier(net, data, 10.0, 8, 1e-2, 0.0, 0, torch.device("cpu"))
    assert torch.equal(net(data.images.float() / 255).argmax(1), data.labels)


def test_a_batch_larger_than_the_data_is_the_data():
    whole, larger = (trained(0, epochs=1.0, batch_size=size) for size in (500, 900))
    assert_same_state(whole.state_dict(), larger.state_dict())


def test_a_training_that_was_told_to_stop_goes_on_bit_for_bit(tmp_path):
    whole, net, seen = trained(3), untrained(), []

    def stop_at_the_seventh(module, _inputs):
        seen.append(module)
        if len(seen) == 7:
            signal.raise_signal(signal.SIGTERM)

    net.register_forward_pre_hook(stop_at_the_seventh)
    with pytest.raises(SystemExit) as stopped:
        train_classifier(
            net, halves(), 10.0, 8, 1e-2, 0.0, 3, torch.device("cpu"), checkpoints=tmp_path / "halfway"
        )
    assert stopped.value.code == 143
    assert len(seen) == 7
    assert_same_state(whole.state_dict(), trained(3, checkpoints=tmp_path / "halfway").state_dict())


def test_a_training_that_was_killed_goes_on_at_its_newest_checkpoint(tmp_path):
    where = {"checkpoints": tmp_path / "halfway", "checkpoint_every": 4}
    net, seen = untrained(), []

    def die_at_the_eleventh(module, _inputs):
        seen.append(module)
        if len(seen) == 11:
            raise MemoryError

    net.register_forward_pre_hook(die_at_the_eleventh)
    with pytest.raises(MemoryError):
        train_classifier(net, halves(), 10.0, 8, 1e-2, 0.0, 3, torch.device("cpu"), **where)
    assert (tmp_path / "halfway" / "latest").resolve().name == "step-000008"
    assert_same_state(trained(3).state_dict(), trained(3, **where).state_dict())
