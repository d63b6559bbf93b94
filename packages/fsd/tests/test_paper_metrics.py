"""CLIP and Inception as the paper uses them, with networks of random weights, against the plain formulas."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fsd.cli import main
from fsd.evaluate import as_text
from fsd.metrics import frechet_distance, inception_score
from fsd.paper_metrics import PAPER_COLUMNS, inception_features, load_clip, load_inception, paper_metrics
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import clip_tokenizer

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of three views."""
    folder = tmp_path_factory.mktemp("runs") / "mug"
    for seed, views in enumerate(PICTURES):
        path = folder / "objects" / f"a-mug-fsd-seed{seed}"
        path.mkdir(parents=True)
        Image.fromarray(np.concatenate(list(views), 1)).save(path / "views.png")
        unknown = ("label", "labels", "view_consistency", "quality", "peak_memory_gb")
        about = {
            "prompt": "a mug",
            "guidance": "fsd",
            "seed": seed,
            "prior": "",
            "network_calls": 1,
            "seconds": 1.0,
        }
        (path / "object.json").write_text(json.dumps({**about, **dict.fromkeys(unknown)}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    text = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **small}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={"image_size": 16, "patch_size": 8, **small}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(inception_v3(weights=None, init_weights=False).state_dict(), path)
    return path


def test_the_clip_score_is_the_cosine_of_prompt_and_views(run: Path, clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    (row,) = paper_metrics(run, clip=clip)["methods"]
    assert row["inception_v3_score"] is row["inception_v3_cross_fid"] is None
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    cosines = []
    for view in PICTURES.reshape(6, 20, 20, 3):
        with torch.no_grad():
            out = model(**processor(text=["a mug"], images=[Image.fromarray(view)], return_tensors="pt"))
        a, b = out.image_embeds[0].double(), out.text_embeds[0].double()
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    assert row["clip_score"] == pytest.approx(100 * sum(cosines) / 6, abs=1e-3)
    assert max(cosines) - min(cosines) > 1e-4


def test_inceptions_numbers_are_those_of_its_features(run: Path, inception: Path) -> None:
    (row,) = paper_metrics(run, inception=inception)["methods"]
    net = load_inception(inception)
    features, classes = inception_features(net, PICTURES.reshape(6, 20, 20, 3), batch=4)
    assert features.shape == (6, 2048)
    torch.testing.assert_close(classes.sum(1), torch.ones(6))
    torch.testing.assert_close(net.fc(features).softmax(1), classes)
    assert row["clip_score"] is None
    assert row["inception_v3_score"] == pytest.approx(inception_score(classes.double().numpy()), rel=1e-4)
    halves = features.double().numpy()
    assert row["inception_v3_cross_fid"] == pytest.approx(frechet_distance(halves[:3], halves[3:]), rel=1e-3)
    text = as_text({"methods": [row], "failed": []}, PAPER_COLUMNS).splitlines()
    assert text[0].split() == ["guidance", "seeds", "inception", "score", "CROSS-FID"]
    assert text[1] == "a mug"


def test_what_is_no_network_is_refused(run: Path, inception: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name at least one"):
        paper_metrics(run)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_clip(tmp_path)
    (tmp_path / "text.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_inception(tmp_path / "text.safetensors")
    state = load_file(inception)
    save_file(state | {"fc.weight": torch.zeros(10, 2048)}, tmp_path / "ten.safetensors")
    with pytest.raises(ValueError, match=r"10 classes and the net of 1000: fc\.weight"):
        load_inception(tmp_path / "ten.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="no folder of a CLIPModel"):
        load_clip(tmp_path)


def test_a_clip_that_lacks_weights_is_refused(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path, dirs_exist_ok=True)
    state = load_file(clip / "model.safetensors")
    state.pop("text_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no folder of a CLIPModel .*lack text_projection\.weight"):
        load_clip(tmp_path)


def test_the_command_line_measures_them_where_the_weights_are_named(
    run: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--clip", str(clip)]) == 0
    assert "CLIP score" in capsys.readouterr().out
    stored = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert stored["paper"]["methods"][0]["clip_score"] == pytest.approx(
        paper_metrics(run, clip)["methods"][0]["clip_score"]
    )
    assert main(["evaluate", str(run), "--inception", str(run / "no.safetensors")]) == 2
    assert "no.safetensors" in capsys.readouterr().err
