"""file.py:function: neighbours, dataclasses, files of one name, and errors that name file and line."""

import pickle
import sys

import pytest
import torch
from shared_core.from_file import function_in
from shared_core.nets import open_net

LINEAR = "from torch import nn\ndef build(num_classes): return nn.Linear(width, num_classes)\n"


@pytest.fixture(autouse=True)
def same_path():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_neighbours_are_found_at_once_and_later(tmp_path):
    folder = write(
        tmp_path / "a",
        layers="from torch.nn import Linear as head\n",
        late="width = 3\n",
        net="from layers import head\n"
        "def build(num_classes):\n"
        "    from late import width\n"
        "    return head(width, num_classes)\n",
    )
    before = list(sys.path)
    assert open_net(f"{folder / 'net.py'}:build", 2).weight.shape == (2, 3)
    # Nothing of the user's comes before what is installed from here on.
    assert sys.path[: len(before)] == before


def test_neighbours_of_two_folders_do_not_mix(tmp_path):
    text = f"from layers import width\n{LINEAR}"
    a = write(tmp_path / "a", layers="width = 3\n", net=text)
    b = write(tmp_path / "b", layers="width = 5\n", net=text)
    widths = [open_net(f"{folder / 'net.py'}:build", 2).in_features for folder in (a, b, a)]
    assert widths == [3, 5, 3]


def test_a_folder_that_is_a_package_has_relative_imports(tmp_path):
    folder = write(
        tmp_path / "mine" / "nets",
        __init__="",
        layers="from ..sizes import width\n",
        net=f"from .layers import width\n{LINEAR}",
    )
    write(tmp_path / "mine", __init__="", sizes="width = 7\n")
    assert open_net(f"{folder / 'net.py'}:build", 2).in_features == 7


def test_dataclasses_and_pickles(tmp_path):
    folder = write(
        tmp_path,
        net="from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Sizes:\n    width: int = 3\n"
        "class Net(nn.Linear):\n    pass\n"
        "def build(num_classes): return Net(Sizes().width, num_classes)\n",
    )
    net = open_net(f"{folder / 'net.py'}:build", 2)
    again = pickle.loads(pickle.dumps(net))  # noqa: S301
    assert torch.equal(again.weight, net.weight)
    assert isinstance(open_net(f"{folder / 'net.py'}:build", 2), type(net))


def test_an_edited_file_runs_again(tmp_path):
    folder = write(tmp_path, net="def build(): return 1\n")
    first = function_in(folder / "net.py", "build")
    assert function_in(folder / "net.py", "build") is first
    write(tmp_path, net="def build(): return 'another'\n")
    assert function_in(folder / "net.py", "build")() == "another"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nimport nowhere\n", r"net.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("def build(:\n", r"net.py, line 1: SyntaxError: "),
        ("\n\nraise RuntimeError('a\\nb')\n", r"net.py, line 3: RuntimeError: a b"),
        ("import sys\nsys.exit(0)\n", r"net.py, line 2: it ends the process"),
        (
            "import torch\ndef build(num_classes):\n    x = 1\n    return torch.nn.Linear(num_classes, 'two')\n",
            r"net.py, line 4: TypeError: ",
        ),
        ("def build(num_classes, depth): pass\n", r"net.py:build is called with num_classes=.*'depth'"),
        ("def other(): pass\nfrom torch import nn\n", r"net.py has no function 'build'; it has other$"),
    ],
)
def test_what_goes_wrong_names_file_and_line(tmp_path, text, message):
    folder = write(tmp_path, net=text)
    with pytest.raises(ValueError, match=message):
        open_net(f"{folder / 'net.py'}:build", 2)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "nets", net="from torch import nn\ndef build(): return nn.Linear(3, 2)\n")
    assert open_net("~/nets/net.py:build", 2).in_features == 3
