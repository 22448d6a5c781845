"""Hostile input: images that are none, bombs, links, modes and formats; weights from elsewhere."""

import http.server
import json
import os
import resource
import shutil
import ssl
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Job, error_of, launch, load, rest, run, smallest_model
from data.decode import decode_image
from data.sources import open_source
from data.sources.folder import FolderSource
from utils.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def images(digits, tmp_path):
    """A copy of the digits to do harm to."""
    shutil.copytree(digits, tmp_path / "images")
    return tmp_path / "images"


def corrupt(path, kind):
    """Replaces an image by what is none; returns the path, which may have another name."""
    whole = path.read_bytes()
    path.unlink()
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "HTML":
        path = path.with_suffix(".jpg")
        path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    elif kind == "AppleDouble":
        path = path.with_name("copy_" + path.name)  # `._` before the name, as macOS has it, leaves it out
        path.write_bytes(bytes.fromhex("00051607000200004d6163204f532058") + bytes(100))
    elif kind == "dangling link":
        path.symlink_to(path.with_name("gone.png"))
    elif kind == "no permission":
        path.write_bytes(whole)
        path.chmod(0)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "EPS":  # Pillow would start Ghostscript for it
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    return path


KINDS = ["zero bytes", "truncated", "HTML", "AppleDouble", "dangling link", "no permission", "pipe", "EPS"]


def victim(images, split):
    return sorted((images / split / "1").iterdir())[3]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_cannot_be_read_ends_the_run_and_is_named(write_config, images, kind):
    if kind == "no permission" and os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    path = corrupt(victim(images, "train"), kind)
    error = error_of("--cfg", write_config(DATA={"DATA_PATH": str(images)}))
    assert isinstance(error, DataError) and error.status == 2
    assert str(error).startswith(f"{path}: cannot be read as an image (") and "DATA.ON_ERROR skip" in str(error)


@pytest.mark.parametrize("workers, world_size", [rest(0, 1), (2, 1), (0, 2)])
def test_skip_trains_without_them_and_lists_them(write_config, tmp_path, images, workers, world_size):
    kinds = [kind for kind in KINDS if kind != "no permission"]
    folder = sorted((images / "train/1").iterdir())
    bad = {str(corrupt(path, kind)) for path, kind in zip(folder, kinds)}
    path = write_config(
        DATA={"DATA_PATH": str(images), "ON_ERROR": "skip", "NUM_WORKERS": workers, "BATCH_SIZE": 12 // world_size},
        TRAIN={"EPOCHS": 2},
    )
    job = Job("--cfg", path, world_size=world_size)
    assert job.wait() == [0] * world_size, job.text()
    run_folder = tmp_path / "output/fat_tiny/default"
    lines = (run_folder / "unreadable.txt").read_text().splitlines()
    assert {line.split(": cannot be read as an image (")[0] for line in lines} == bad and len(lines) == len(bad)
    assert f"{len(bad)} in all" in job.text()
    first = load(run_folder / "last.pth")
    Job("--cfg", path, "--tag", "again", world_size=world_size).wait()
    again = load(run_folder.with_name("again") / "last.pth")
    assert all(torch.equal(v, again["model"][k]) for k, v in first["model"].items())  # what takes their place is seeded


def test_a_left_out_image_is_replaced_by_another_one_never_by_grey(images):
    from data.dataset import ImageDataset, SeededIndex

    path = corrupt(victim(images, "train"), "truncated")
    source = open_source("folder", "train", str(images))
    index = next(i for i in range(len(source)) if source.name(i) == str(path))
    dataset = ImageDataset(source, lambda sample: sample._replace(image=np.asarray(sample.image)), "skip")
    for seed in range(5):
        (image, label, _), failures = dataset[SeededIndex(index, seed)]
        matches = [i for i in range(len(source)) if i != index and np.array_equal(np.asarray(source.load(i)[0]), image)]
        assert label in {source.load(i)[1] for i in matches} and len(failures) == 1
        assert np.array_equal(dataset[SeededIndex(index, seed)].sample[0], image)
    assert dataset[index].sample is None  # in evaluation nothing takes its place


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_of_fewer_images_says_so(write_config, tmp_path, images, capfd, world_size):
    torch.save(smallest_model(num_classes=3).state_dict(), tmp_path / "w.pth")
    names = [victim(images, "val"), sorted((images / "val/2").iterdir())[0]]
    for name in names:
        corrupt(name, "truncated")
    flags = ["--eval", "--pretrained", tmp_path / "w.pth", "--cfg"]
    error = error_of(*flags, write_config(DATA={"DATA_PATH": str(images)}))
    assert error.status == 2 and "cannot be read as an image" in str(error)
    assert not (tmp_path / "output/fat_tiny/default/eval.json").exists()
    launch(world_size, *flags, write_config(DATA={"DATA_PATH": str(images), "ON_ERROR": "skip"}))
    out = capfd.readouterr().out
    assert "warning: 2 of 29 images could not be read: these metrics are of the other 27, not of the full set" in out
    found = json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())
    assert (found["num_images"], found["unreadable"], found["complete"]) == (27, 2, False)
    listed = (tmp_path / "output/fat_tiny/default/unreadable.txt").read_text()
    assert all(str(name) in listed for name in names)
    for name in names:
        name.unlink()  # the same images without the damaged ones: the same metrics
    run(*flags, write_config(DATA={"DATA_PATH": str(images)}), "--tag", "rest")
    rest = json.loads((tmp_path / "output/fat_tiny/rest/eval.json").read_text())
    assert rest["complete"] and rest["raw"] == {k: v for k, v in found["raw"].items() if k != "unreadable"}


def test_a_set_without_one_readable_image(write_config, tmp_path, images):
    for path in (images / "val").rglob("*.png"):
        corrupt(path, "zero bytes")
    torch.save(smallest_model(num_classes=3).state_dict(), tmp_path / "w.pth")
    config = write_config(DATA={"DATA_PATH": str(images), "ON_ERROR": "skip"})
    error = error_of("--eval", "--pretrained", tmp_path / "w.pth", "--cfg", config)
    assert "none of the 29 images could be read" in str(error)


# Modes


def decoded(tmp_path, image, name="x.png", upright=True, **options):
    image.save(tmp_path / name, **options)
    with open(tmp_path / name, "rb") as file:
        return np.asarray(decode_image(file, upright)).astype(int)


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tif"):
        assert decoded(tmp_path, Image.fromarray(values), name)[0, :, 0].tolist() == [0, 1, 100, 255]
    with pytest.raises(ValueError, match="no known range"):
        decoded(tmp_path, Image.fromarray(np.array([[70000, -1]], dtype=np.int32)), "y.tif")
    with pytest.raises(ValueError, match="no known range"):
        decoded(tmp_path, Image.fromarray(np.array([[0.5]], dtype=np.float32)), "z.tif")


def test_transparency_is_laid_over_white(tmp_path):
    rgba = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    rgba.putpixel((1, 0), (10, 20, 30, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 51))
    assert decoded(tmp_path, rgba)[0].tolist() == [[200, 100, 0], [255, 255, 255], [204, 204, 204]]
    grey = Image.new("LA", (2, 1), (40, 255))
    grey.putpixel((1, 0), (40, 0))
    assert decoded(tmp_path, grey)[0].tolist() == [[40] * 3, [255] * 3]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    assert decoded(tmp_path, palette)[0].tolist() == [[200, 0, 0], [0, 0, 200]]
    assert decoded(tmp_path, palette, transparency=1)[0].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert decoded(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))[0].tolist() == [[255] * 3]


def test_cmyk_and_grey(tmp_path):
    assert decoded(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg")[4, 4] == pytest.approx(
        [255, 0, 0], abs=4
    )
    assert decoded(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "x.tif")[4, 4].tolist() == [0, 0, 0]
    assert decoded(tmp_path, Image.new("L", (1, 1), 77))[0, 0].tolist() == [77] * 3
    assert decoded(tmp_path, Image.new("1", (1, 1), 1))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Eight ways to store one picture: left half red, a blue top left corner."""
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 32, 32))
    upright.paste("blue", (0, 0, 16, 16))
    inverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.jpg", "x.png"):
        seen = decoded(tmp_path, stored, name, True, exif=exif, quality=95)
        assert seen.shape == (32, 64, 3)
        assert seen[4, 4] == pytest.approx([0, 0, 254], abs=30) and seen[28, 4] == pytest.approx([254, 0, 0], abs=30)
        assert seen[4, 60] == pytest.approx([255] * 3, abs=30)
        ignored = decoded(tmp_path, stored, name, False, exif=exif, quality=95)
        assert ignored.shape[:2] == stored.size[::-1]


def test_damaged_exif_is_no_reason_to_lose_an_image(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    with open(tmp_path / "x.jpg", "rb") as file:
        assert decode_image(file).size == (8, 8)


# Bombs


def bomb(path, side=20_000):
    """A PNG of 400 million pixels in 400 kB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_a_decompression_bomb_is_refused_before_it_grows(images):
    """In a process of its own, whose largest memory is looked at."""
    path = victim(images, "train")
    bomb(path)
    source = FolderSource(images / "train")
    index = next(i for i in range(len(source)) if source.name(i) == str(path))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            source.load(index)
        except DataError as error:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(writing, json.dumps([str(error), before, grown]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    message, before, grown = json.loads(os.read(reading, 10_000))
    assert message.startswith(f"{path}: cannot be read as an image (DecompressionBombError")
    assert grown < 50_000 and before + grown < 1_000_000 + max(0, before - 600_000)  # KiB


def test_the_limit_is_pillow_s_warning(tmp_path):
    with pytest.raises(Image.DecompressionBombError, match="10000 x 9000 pixels"):
        decoded(tmp_path, Image.new("1", (10_000, 9_000)))


def test_thin_images_would_grow_when_resized(tmp_path):
    with pytest.raises(Image.DecompressionBombError, match="1 x 20000 pixels"):
        decoded(tmp_path, Image.new("RGB", (1, 20_000)))
    assert decoded(tmp_path, Image.new("RGB", (1, 100))).shape == (100, 1, 3)


# Links


def test_links_out_of_the_folder_are_refused(write_config, tmp_path, images):
    secret = tmp_path / "secret.png"
    path = victim(images, "train")
    shutil.move(path, secret)
    path.symlink_to(secret)
    config = write_config(DATA={"DATA_PATH": str(images)})
    error = error_of("--cfg", config)
    assert error.status == 2 and f"{path}: is a link out of its folder, to '{secret}'" in str(error)
    run("--cfg", config, "--opts", "DATA.OUTSIDE_LINKS", "True", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)

    shutil.move(images / "train/2", tmp_path / "two")
    (images / "train/2").symlink_to(tmp_path / "two")
    assert "train/2: is a link out of its folder" in str(error_of("--cfg", config))
    run(
        "--cfg",
        config,
        "--tag",
        "b",
        "--opts",
        "DATA.OUTSIDE_LINKS",
        "True",
        "TRAIN.EPOCHS",
        1,
        "TRAIN.WARMUP_EPOCHS",
        0,
    )


def test_links_inside_are_followed_and_circles_are_not(images):
    name = victim(images, "train")
    name.with_name("again.png").symlink_to(name)
    assert len(FolderSource(images / "train")) == 61
    (images / "train/0/more").mkdir()
    (images / "train/0/more/circle").symlink_to("..")
    with pytest.raises(DataError, match="is by a link the same folder as"):
        FolderSource(images / "train")


def test_the_folder_itself_may_be_a_link(tmp_path, images):
    (tmp_path / "linked").symlink_to(images)
    source = open_source("folder", "train", str(tmp_path / "linked"))
    assert source.load(0)[1] == 0


# Weights by URL


@pytest.fixture(scope="session")
def https(tmp_path_factory):
    """A server on this machine with a certificate that this process trusts; yields (its address, its folder)."""
    import trustme

    folder = tmp_path_factory.mktemp("https")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            if self.path.startswith("/redirect"):
                self.send_response(302)
                self.send_header("Location", "http://localhost:9/w.pth")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        patch.setenv("TORCH_HOME", str(folder / "home"))
        yield f"https://localhost:{server.server_port}", folder
    server.shutdown()


def sha256(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_by_url(write_config, https, tmp_path, capsys):
    address, folder = https
    torch.save(smallest_model(num_classes=3).state_dict(), folder / "w.pth")
    checksum = sha256(folder / "w.pth")
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path, "--pretrained", f"{address}/w.pth#sha256={checksum}")
    assert "started from" in capsys.readouterr().out
    shutil.copy(folder / "w.pth", folder / f"w-{checksum[:8]}.pth")  # as torch.hub names files
    run("--cfg", path, "--eval", "--pretrained", f"{address}/w-{checksum[:8]}.pth")
    kept = folder / f"home/hub/checkpoints/{checksum[:16]}-w.pth"
    kept.write_bytes(b"changed since")
    run("--cfg", path, "--tag", "b", "--pretrained", f"{address}/w.pth#sha256={checksum}")
    assert sha256(kept) == checksum


@pytest.mark.parametrize("url, error, part", [
    ("http://localhost/w.pth#sha256=" + "0" * 64, ConfigError, "is no https URL"),
    ("file:///etc/passwd", ConfigError, "is no https URL"),
    ("https://localhost:port/w.pth#sha256=" + "0" * 64, ConfigError, "is no URL"),
    ("https://[::1/w.pth#sha256=" + "0" * 64, ConfigError, "is no URL"),
    ("{}/a b.pth#sha256=" + "0" * 64, CheckpointError, "cannot be downloaded"),
    ("{}/w.pth", ConfigError, "has no checksum"),
    ("{}/w.pth#sha256=12", ConfigError, "has no checksum"),
    ("{}/other.pth#sha256=" + "0" * 64, CheckpointError, "cannot be downloaded"),
    ("{}/redirect#sha256=" + "0" * 64, CheckpointError, "which is not https"),
    ("{}/bad.pth#sha256=" + "0" * 64, CheckpointError, "it is another file or damaged"),
])  # fmt: skip
def test_refused_urls(write_config, https, tmp_path, url, error, part):
    address, folder = https
    (folder / "bad.pth").write_bytes(b"x" * 100)
    before = set((folder / "home").rglob("*"))
    found = error_of("--cfg", write_config(), "--pretrained", url.format(address))
    assert type(found) is error and part in str(found)
    assert set((folder / "home").rglob("*")) - before <= {folder / "home/hub", folder / "home/hub/checkpoints"}
    assert not (tmp_path / "output").exists()


def test_a_certificate_that_nobody_vouches_for(write_config, https, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    error = error_of("--cfg", write_config(), "--pretrained", f"{https[0]}/w.pth#sha256={'0' * 64}")
    assert error.status == 3 and "certificate" in str(error).lower()


def test_code_behind_a_url_is_refused_and_not_run(write_config, https, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address, folder = https

    class Malicious:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save({"model": Malicious()}, folder / "evil.pth")
    error = error_of(
        "--cfg", write_config(), "--pretrained", f"{address}/evil.pth#sha256={sha256(folder / 'evil.pth')}"
    )
    assert error.status == 3 and "refused" in str(error) and not (tmp_path / "executed").exists()


# Archives


def test_names_that_lead_out_of_an_archive_write_nothing(write_config, tmp_path, monkeypatch):
    """A checkpoint is a zip file, read in place; the quickstart's emoji come in a tar file, read in place too."""
    import io
    import subprocess
    import tarfile
    import zipfile

    import make_quickstart_data

    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr("../../escaped.txt", "x")
    error_of("--cfg", write_config(), "--pretrained", tmp_path / "w.pth")

    def pack(command, cwd, **_):
        entry = {"image": "../../escaped.png", "category": "Flags", "has_img_google": True}
        picture = io.BytesIO()
        Image.new("RGBA", (64, 64)).save(picture, "PNG")
        with tarfile.open(os.path.join(cwd, "x.tgz"), "w:gz") as archive:
            for name, content in (
                ("package/emoji.json", json.dumps([entry]).encode()),
                ("package/img/google/64/../../escaped.png", picture.getvalue()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return subprocess.CompletedProcess(command, 0, "x.tgz\n", "")

    monkeypatch.setattr(make_quickstart_data.shutil, "which", lambda name: name)
    monkeypatch.setattr(make_quickstart_data.subprocess, "run", pack)
    with pytest.raises(DataError, match="names a file outside of its folder"):
        list(make_quickstart_data.emoji())
    assert not list(tmp_path.parent.rglob("escaped*"))
