"""What is trained beside the calibrator is trained where it is: segmenter, surrogate, translation."""

import calib.blackbox
import torch
from calib.blackbox import distil_surrogate
from calib.cyclegan import generator
from calib.segmentation import SegmenterSettings, tiny_segmenter, train_segmenter
from calib.translations import Translation, label_flips, load_translation
from shared_core.data.arrays import ArrayImages
from shared_core.run.weights import save_weights
from shared_core.testing import pretend_device
from torch import nn

META = torch.device("meta")
MEANING = "are answers logits or probabilities?"


def test_a_segmenter_is_trained_on_its_device_and_read_once_a_step():
    net = tiny_segmenter(2, width=4).to(META)
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    masks = torch.arange(2).repeat_interleave(8).expand(4, 16, 16)
    with pretend_device() as reasons:
        losses = train_segmenter(
            net, images, masks, SegmenterSettings(epochs=1, batch_size=2, crop=(8, 8)), 0
        )
    assert reasons == [MEANING, *["is the step finite?"] * 2, "the mean loss of an epoch"]
    assert losses == [0.0]


def test_a_surrogate_is_taught_on_its_device(monkeypatch):
    monkeypatch.setattr(calib.blackbox, "freeze", lambda net: None)
    monkeypatch.setattr(calib.blackbox, "_agreement", lambda *_: 0.0)  # between steps, on the host
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).to(META)
    answers = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    images = torch.rand(6, 3, 4, 4)
    with pretend_device() as reasons:
        distil_surrogate(answers, images, images, student, steps=2, batch_size=4, held_out=0.3)
    assert reasons == [MEANING]


def test_translated_images_are_judged_where_the_generator_is():
    def predict(images):
        return torch.zeros(len(images), 2)

    net = nn.Conv2d(1, 1, 1)
    source = ArrayImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    assert label_flips(predict, source, Translation(net, 8, 1)) == {"before": 50.0, "after": 50.0}


def test_a_translation_is_loaded_onto_the_device_asked_for(tmp_path):
    net = generator(1, 2, 1)
    save_weights(net, tmp_path / "generator.safetensors")
    (tmp_path / "config.yaml").write_text("{channels: 1, width: 2, blocks: 1, size: 8}")
    for device in ("cpu", META):
        loaded = load_translation(tmp_path, device=device).generator
        assert {p.device for p in loaded.parameters()} == {torch.device(device)}
