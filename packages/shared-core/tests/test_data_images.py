import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_core.data.folder import FolderImages
from shared_core.data.images import (
    BadImageError,
    check_images,
    find_images,
    image_bytes,
    list_images,
    printable,
    read_image,
    read_mask,
)
from shared_core.data.loader import KeyedDataset
from torch.utils.data import DataLoader


def picture(seed=0, size=(9, 7)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png_with_huge_header(path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_bad_corpus(folder):
    """Files that must all fail; returns their names."""
    Image.fromarray(picture(size=(64, 64))).save(folder / "cut.jpg", quality=95)
    Image.fromarray(picture(size=(64, 64))).save(folder / "cut.png")
    for name in ("cut.jpg", "cut.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "zeros.png").write_bytes(bytes(500))
    (folder / "text.jpg").write_text("this is not an image")
    png_with_huge_header(folder / "huge.png")
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(folder / "float.tiff")
    (folder / "folder.jpg").mkdir()
    return [
        "cut.jpg",
        "cut.png",
        "empty.jpg",
        "float.tiff",
        "folder.jpg",
        "huge.png",
        "text.jpg",
        "zeros.png",
    ]


def write_good_corpus(folder):
    Image.fromarray(picture()).save(folder / "plain.png")
    Image.fromarray(picture()).save(folder / "png-in-fact.jpg", format="PNG")
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(picture()).save(os.fsencode(folder) + b"/caf\xe9.png", format="PNG")


def test_every_bad_file_is_an_error_that_names_it(tmp_path):
    for name in write_bad_corpus(tmp_path):
        with pytest.raises(BadImageError, match=rf"cannot read the image .*{name}: "):
            read_image(tmp_path / name)
    with pytest.raises(BadImageError, match=r"missing\.png: FileNotFoundError"):
        read_image(tmp_path / "missing.png")


def test_check_lists_the_bad_and_only_the_bad(tmp_path):
    write_good_corpus(tmp_path)
    names = write_bad_corpus(tmp_path)
    found = check_images(tmp_path)
    assert [os.path.basename(bad.path) for bad in found] == names
    reasons = {os.path.basename(bad.path): bad.reason for bad in found}
    assert reasons["folder.jpg"] == "is a folder, not a file"
    assert reasons["huge.png"].startswith("DecompressionBomb")
    assert "floating point" in reasons["float.tiff"]
    assert len(list_images(tmp_path)) == 4 + len(names) - 1


def test_check_of_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        check_images(tmp_path / "nowhere")


def test_good_files_give_their_pixels(tmp_path):
    write_good_corpus(tmp_path)
    expected = torch.from_numpy(picture()).permute(2, 0, 1)
    for path in list_images(tmp_path):
        image = read_image(path)
        assert image.dtype == torch.uint8
        if not path.endswith(".gif"):
            assert torch.equal(image, expected), printable(path)
    assert read_image(tmp_path / "moving.gif").shape == expected.shape
    assert read_image(tmp_path / "plain.png", mode="L").shape == (1, 9, 7)


def test_a_name_that_is_not_utf8_is_printable(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    with pytest.raises(BadImageError, match=r"caf\\xe9.png"):
        read_image(path)
    assert printable(path).encode()


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_modes_are_converted_on_purpose(tmp_path):
    grey16 = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert read_image(saved(tmp_path, grey16), "L").flatten().tolist() == [0, 1, 255]
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], dtype=np.uint8), mode="RGBA")
    assert read_image(saved(tmp_path, clear))[0].flatten().tolist() == [255, 9]
    palette = Image.fromarray(picture()).convert("P")
    expected = np.array(palette.convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path, palette)).permute(1, 2, 0).numpy(), expected)
    bit = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert read_image(saved(tmp_path, bit), "L").flatten().tolist() == [0, 255]
    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert read_image(saved(tmp_path, cmyk, "x.jpg")).shape == (3, 9, 7)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(picture()), exif=exif)
    assert torch.equal(read_image(path), torch.from_numpy(np.rot90(picture(), -1).copy()).permute(2, 0, 1))


def test_wrong_mode():
    with pytest.raises(ValueError, match="mode is 'CMYK'; it must be 'RGB' or 'L'"):
        read_image("x.png", mode="CMYK")


@given(st.sampled_from(["png", "jpg", "gif", "bmp"]), st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_give_an_image_or_the_one_error(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    Image.fromarray(picture()).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        image = read_image(path)
    except BadImageError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


def folder_of_classes(root, bad=()):
    for label, name in enumerate(["cat", "dog"]):
        (root / name).mkdir(parents=True)
        for number in range(5):
            path = root / name / f"{number}.png"
            if (name, number) in bad:
                path.write_bytes(b"broken")
            else:
                Image.fromarray(picture(10 * label + number)).save(path)
    return root


def test_folder_reads_classes_in_order(tmp_path):
    data = FolderImages(folder_of_classes(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0] * 5 + [1] * 5
    image, label = data[7]
    assert label == 1
    assert torch.equal(image, torch.from_numpy(picture(12)).permute(2, 0, 1))


def test_raise_names_the_file(tmp_path):
    data = FolderImages(folder_of_classes(tmp_path, bad=[("dog", 1)]))
    with pytest.raises(BadImageError, match=r"dog.1\.png"):
        data[6]


def test_skip_takes_the_next_of_the_class_whatever_the_order_of_access(tmp_path):
    folder = folder_of_classes(tmp_path, bad=[("cat", 4), ("dog", 1), ("dog", 2)])
    expected = {0: 0, 4: 0, 6: 13, 7: 13, 8: 13}
    for order in (range(10), reversed(range(10))):
        data = FolderImages(folder, on_bad="skip", max_bad_share=0.5)
        for index in order:
            image, label = data[index]
            seed = expected.get(index, index if index < 5 else index + 5)
            assert label == int(data.labels[index])
            assert torch.equal(image, torch.from_numpy(picture(seed)).permute(2, 0, 1))
        assert [os.path.relpath(path, folder) for path in data.bad_files] == [
            "cat/4.png",
            "dog/1.png",
            "dog/2.png",
        ]


def test_what_workers_skip_is_counted_in_the_main_process(tmp_path):
    folder = folder_of_classes(tmp_path, bad=[("cat", 4), ("dog", 1)])
    data = FolderImages(folder, on_bad="skip", max_bad_share=0.5)
    list(DataLoader(data, batch_size=2, num_workers=1, generator=torch.Generator()))
    assert len(data.bad_files) == 2


def test_too_many_bad_files_are_an_error(tmp_path):
    data = FolderImages(
        folder_of_classes(tmp_path, bad=[("cat", 0), ("cat", 1)]), on_bad="skip", max_bad_share=0.1
    )
    with pytest.raises(
        BadImageError, match=r"2 of 10 images cannot be read, more than the share of 0.1 .*cat.0"
    ):
        data[0]


def test_a_class_without_a_readable_image_is_an_error(tmp_path):
    folder = folder_of_classes(tmp_path, bad=[("cat", i) for i in range(5)])
    data = FolderImages(folder, on_bad="skip", max_bad_share=1.0)
    with pytest.raises(BadImageError, match="no image of class 'cat' can be read"):
        data[2]


def test_images_of_different_size_need_a_transform(tmp_path):
    folder = folder_of_classes(tmp_path)
    Image.fromarray(picture(size=(3, 3))).save(folder / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"differ in shape .*give a transform that brings them to one size"):
        next(iter(KeyedLoader(FolderImages(folder))))


def KeyedLoader(data):
    from shared_core.data.loader import test_loader as plain_loader

    return plain_loader(KeyedDataset(data, seed=0), batch_size=4)


def test_folder_error_texts(tmp_path):
    with pytest.raises(ValueError, match="on_bad is 'ignore'; it must be 'raise' or 'skip'"):
        FolderImages(tmp_path, on_bad="ignore")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        FolderImages(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no sub-folder: images must lie in one folder per class"):
        FolderImages(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="no image lies below the class folders"):
        FolderImages(tmp_path)
    with pytest.raises(ValueError, match="has classes that the training set lacks: cat"):
        FolderImages(tmp_path, class_names=["dog"])


def test_find_images_takes_files_as_named_and_folders_whole(tmp_path):
    for name in ("b/two.png", "b/c/three.png", "one.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    missing = tmp_path / "missing.png"
    found = find_images([tmp_path / "one.png", tmp_path / "b", missing])
    assert found == [
        str(tmp_path / name) for name in ("one.png", "b/c/three.png", "b/two.png", "missing.png")
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no image in .*empty"):
        find_images([tmp_path / "empty"])


def test_a_label_map_keeps_its_numbers_also_behind_a_palette(tmp_path):
    numbers = np.arange(35, dtype=np.uint8).reshape(5, 7)
    grey, palette = Image.fromarray(numbers), Image.fromarray(numbers).convert("P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    for name, image in (("grey.png", grey), ("palette.png", palette)):
        image.save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path / name).numpy(), numbers)
    # What a reader of images makes of a palette are its colours.
    assert not np.array_equal(read_image(tmp_path / "palette.png", "L")[0].numpy(), numbers)


def test_a_label_map_of_colours_or_of_half_a_file_is_refused(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "colours.png")
    with pytest.raises(BadImageError, match=r"colours\.png: .*a label map is a grey or palette image.* RGB"):
        read_mask(tmp_path / "colours.png")
    write_bad_corpus(tmp_path)
    with pytest.raises(BadImageError, match=r"cut\.png"):
        read_mask(tmp_path / "cut.png")


def png(depth, colours, rows, transparent=None):
    """The bytes of a PNG, also of kinds that Pillow does not write; one row of two pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, colours, 0, 0, 0)
    clear = b"" if transparent is None else chunk(b"tRNS", transparent)
    body = chunk(b"IHDR", header) + clear + chunk(b"IDAT", zlib.compress(b"\0" + rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


TWO_BYTES = struct.Struct(">H").pack
KINDS = {
    "grey of 16 bits": (png(16, 0, struct.pack(">2H", 0x1234, 0x1235), TWO_BYTES(0x1234)), [255, 0x12]),
    "grey of 8 bits": (png(8, 0, bytes([7, 9]), TWO_BYTES(7)), [255, 9]),
    "grey of 4 bits": (png(4, 0, bytes([0x25]), TWO_BYTES(2)), [255, 85]),
    "grey of 2 bits": (png(2, 0, bytes([0b01100000]), TWO_BYTES(1)), [255, 170]),
    "one bit": (png(1, 0, bytes([0b10000000]), TWO_BYTES(1)), [255, 0]),
    "colour of 16 bits": (
        png(16, 2, struct.pack(">6H", *[0x1234] * 3, *[0x5000] * 3), TWO_BYTES(0x1234) * 3), [255, 80],
    ),
    "dark colour of 16 bits": (png(16, 2, struct.pack(">6H", *[10] * 3, *[0x5000] * 3), TWO_BYTES(10) * 3), [255, 80]),
    "grey of 16 bits with alpha": (png(16, 4, struct.pack(">4H", 0x1000, 0, 0x3000, 0xFFFF)), [255, 0x30]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_transparent_colour_is_white_at_every_depth(tmp_path, kind):
    data, expected = KINDS[kind]
    (tmp_path / "x.png").write_bytes(data)
    assert read_image(tmp_path / "x.png")[1].flatten().tolist() == expected
    assert read_image(tmp_path / "x.png", "L").flatten().tolist() == expected


@pytest.mark.parametrize(
    "kind", ["grey of 16 bits", "grey of 8 bits", "colour of 16 bits", "grey of 16 bits with alpha"]
)
def test_images_that_pillow_opened_are_converted_as_files_are(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(KINDS[kind][0])
    with Image.open(tmp_path / "x.png") as image:
        image.load()
        before = dict(image.info)
        assert torch.equal(image_bytes(image), read_image(tmp_path / "x.png"))
        assert image.info == before
    with pytest.raises(BadImageError, match="row 3: ValueError: it holds floating point"):
        image_bytes(Image.fromarray(np.zeros((2, 2), np.float32)), name="row 3")
