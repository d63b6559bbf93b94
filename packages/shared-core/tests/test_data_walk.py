"""One walk over folders of images: links end, nothing is read twice, hidden names are left out and counted."""

import os

import numpy as np
import pytest
from PIL import Image
from shared_core.data.folder import FolderImages, class_folders
from shared_core.data.images import check_images, find_images, list_images
from shared_core.data.open import open_dataset
from shared_core.data.walk import left_out, walk, walk_all

SUFFIXES = (".png",)


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for name in (
        "train/cat/0.png",
        "train/cat/deep/1.png",
        "train/dog/0.png",
        "test/cat/0.png",
        "test/dog/0.png",
    ):
        write(tmp_path / name)
    return tmp_path


def names(paths, root):
    return [os.path.relpath(path, root) for path in paths]


HIDDEN = ("train/cat/.ipynb_checkpoints/0.png", "train/cat/._0.png", "train/dog/__MACOSX/0.png", "train/.git/0.png",
          "train/__MACOSX/0.png", "train/dog/@eaDir/0.png")  # fmt: skip


def test_hidden_names_are_left_out_everywhere_and_counted(root):
    for name in HIDDEN:
        write(root / name)
    (root / "train/cat/.DS_Store").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"train is read without 6 hidden files or folders \(\._0\.png"):
        data = FolderImages(root / "train")
    assert names(data.files, root / "train") == ["cat/0.png", "cat/deep/1.png", "dog/0.png"]
    assert data.class_names == ["cat", "dog"]
    for read in (list_images, lambda folder: find_images([folder])):
        with pytest.warns(UserWarning, match="6 hidden"):
            assert names(read(root / "train"), root / "train") == ["cat/0.png", "cat/deep/1.png", "dog/0.png"]
    (root / "train/cat/.ipynb_checkpoints/0.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="6 hidden"):
        assert check_images(root / "train") == []


def test_a_hidden_name_above_the_folder_hides_nothing(tmp_path):
    write(tmp_path / ".cache/cat/0.png")
    assert len(FolderImages(tmp_path / ".cache")) == 1
    assert find_images([tmp_path / ".cache/cat/0.png"])


@pytest.mark.parametrize("target", ["..", "../..", ".", "../../../", "absolute"])
def test_links_to_a_folder_above_end(root, target):
    for name in ("cat", "dog", "cat/deep"):
        os.symlink(root / "train" if target == "absolute" else target, root / "train" / name / "up")
    with pytest.warns(UserWarning, match=r"3 links to folders that are read already or lie above"):
        data = open_dataset(f"imagefolder:{root}")
    assert names(data.files, root / "train") == ["cat/0.png", "cat/deep/1.png", "dog/0.png"]
    assert data.labels.tolist() == [0, 0, 1]


def test_a_link_to_another_class_does_not_mix_them(root):
    os.symlink("../dog", root / "train/cat/friends")
    with pytest.warns(UserWarning, match="1 link to a folder"):
        data = FolderImages(root / "train")
    assert data.labels.tolist() == [0, 0, 1]


def test_a_class_that_is_a_link_to_a_folder_elsewhere(root):
    write(root / "elsewhere/owls/0.png")
    os.symlink("..", root / "elsewhere/owls/up")
    os.symlink("../elsewhere/owls", root / "train/owl")
    with pytest.warns(UserWarning, match="1 link"):
        data = FolderImages(root / "train")
    assert data.class_names == ["cat", "dog", "owl"]
    assert names(data.files, root / "train")[-1] == "owl/0.png"


def test_a_class_that_is_a_link_to_the_folder_itself_is_none(root):
    os.symlink(".", root / "train/all")
    os.symlink("..", root / "train/more")
    assert class_folders(root / "train") == ["cat", "dog"]
    with pytest.warns(UserWarning, match="2 links"):
        assert len(FolderImages(root / "train")) == 3


def test_one_folder_under_two_class_names_is_refused(root):
    os.symlink("cat", root / "train/feline")
    with pytest.raises(
        ValueError, match=r"the classes cat and feline are one folder.*cannot have two labels"
    ):
        FolderImages(root / "train")


def test_two_links_to_one_folder_are_read_once(root):
    write(root / "elsewhere/0.png")
    for name in ("a", "b"):
        os.symlink("../../elsewhere", root / "train/cat" / name)
    with pytest.warns(UserWarning, match="1 link"):
        data = FolderImages(root / "train")
    assert names(data.files, root / "train") == ["cat/0.png", "cat/a/0.png", "cat/deep/1.png", "dog/0.png"]


def test_a_folder_belongs_to_its_own_path_before_any_link(root):
    write(root / "train/dog/sub/0.png")
    os.symlink("../dog/sub", root / "train/cat/a")
    with pytest.warns(UserWarning, match="1 link"):
        data = FolderImages(root / "train")
    assert names(data.files, root / "train")[-1] == "dog/sub/0.png"


def test_links_in_a_ring_end(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / "far" / name / "0.png")
    os.symlink("../two", tmp_path / "far/one/next")
    os.symlink("../one", tmp_path / "far/two/next")
    write(tmp_path / "set/0.png")
    os.symlink("../far/one", tmp_path / "set/start")
    found = walk(tmp_path / "set", SUFFIXES)
    assert names(found.files, tmp_path / "set") == ["0.png", "start/0.png", "start/next/0.png"]
    assert len(found.repeated) == 1


def test_images_beside_the_class_folders_are_counted(root):
    write(root / "train/stray.png")
    with pytest.warns(UserWarning, match="1 image beside the class folders"):
        assert len(FolderImages(root / "train")) == 3


def test_dangling_links_and_files_that_are_links(root):
    os.symlink("nowhere.png", root / "train/cat/gone.png")
    os.symlink("nowhere", root / "train/cat/gone")
    os.symlink("../dog/0.png", root / "train/cat/linked.png")
    # A class on a disk that is not mounted, too.
    os.symlink("/nowhere/fox", root / "train/fox")
    with pytest.warns(
        UserWarning, match=r"train is read without 3 links that lead nowhere \(.*fox, \.\.\.\)"
    ):
        data = FolderImages(root / "train")
    assert names(data.files, root / "train")[:3] == ["cat/0.png", "cat/deep/1.png", "cat/linked.png"]
    assert data.class_names == ["cat", "dog"]
    with pytest.warns(UserWarning, match="3 links that lead nowhere"):
        assert len(list_images(root / "train")) == 4


def test_plain_folders_are_read_as_by_a_slow_loop(root):
    expected = sorted(
        (os.path.join(at, name) for at, _, files in os.walk(root) for name in files), key=os.fsencode
    )
    found = walk_all([root], SUFFIXES)
    assert found[0].files == expected
    assert left_out(found) == ""


def test_the_home_folder(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert len(open_dataset("imagefolder:~/", "test")) == 2
    assert len(find_images(["~/test", "~/train/cat/0.png"])) == 3
    assert class_folders("~/train") == ["cat", "dog"]
    np.savez(root / "a.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=np.arange(2))
    assert len(open_dataset("npz:~/a.npz")) == 2
    with pytest.raises(FileNotFoundError, match=f"mnist is not in {root}/data"):
        open_dataset("mnist", root="~/data")
