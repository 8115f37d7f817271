"""What the machine did is told as such: no sound record is called damaged or dropped for it, the check goes on, and handlers raise nothing else."""

import builtins
import errno
import io
import os

import pytest
from PIL import Image, ImageFile

from lmmblocks.data.check import check_file
from lmmblocks.data.records import load_records
from lmmblocks.images import ImageError, load_image
from lmmblocks.spec import LmmError, MachineError, Sample
from lmmblocks.train import Stage
from lmmblocks.train.micro_batches import step_input

ERRORS = {
    "no free handle": OSError(errno.EMFILE, "Too many open files"),
    "no free handle in the system": OSError(errno.ENFILE, "Too many open files in system"),
    "no permission": PermissionError(errno.EACCES, "Permission denied"),
    "failing disk": OSError(errno.EIO, "Input/output error"),
    "stale mount": OSError(errno.ESTALE, "Stale file handle"),
    "network gone": OSError(errno.ETIMEDOUT, "Connection timed out"),
    "no memory of the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "no memory": MemoryError(),
}
BROKEN_READ = {
    **ERRORS,
    "decoder without memory": OSError("out of memory error when reading image file"),
    "no codec": OSError("decoder jpeg not available"),
}


class FailingFile(io.BytesIO):
    """A file that opens and can't be read."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def read(self, *_):
        raise self.error


@pytest.fixture(params=["stat", "open", "read", "decode"])
def fail(request, monkeypatch):
    """Let a path fail with an error: when it is looked at, opened, read or decoded."""

    def fail(path, error):
        path, real_open, real_stat, real_load = str(path), builtins.open, os.stat, ImageFile.ImageFile.load

        def opened(name, *args, **kwargs):
            if str(name) == path and request.param == "open":
                raise error
            return FailingFile(error) if str(name) == path and request.param == "read" else real_open(name, *args, **kwargs)

        def stat(name, *args, **kwargs):
            if str(name) == path and request.param == "stat":
                raise error
            return real_stat(name, *args, **kwargs)

        def load(image):
            if request.param == "decode" and image.size == (11, 7):
                raise error
            return real_load(image)

        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(os, "stat", stat)
        monkeypatch.setattr(ImageFile.ImageFile, "load", load)

    fail.at = request.param
    return fail


@pytest.fixture
def bad(images):
    """A sound picture that the machine won't read."""
    Image.new("RGB", (11, 7), "red").save(images / "bad.png")
    return images / "bad.png"


def errors_for(where):
    return BROKEN_READ if where == "decode" else {k: e for k, e in ERRORS.items() if isinstance(e, OSError) or where == "read"}


def test_no_picture_is_called_damaged_for_what_the_machine_did(bad, fail):
    for name, error in errors_for(fail.at).items():
        fail(bad, error)
        with pytest.raises(MachineError, match="bad.png cannot be (read|opened): ") as caught:
            load_image(bad)
        assert not isinstance(caught.value, ImageError), name
        assert "replace" not in str(caught.value) and "fetch" not in str(caught.value), "nothing to do to the file"


def test_the_check_goes_on_and_lists_them_as_their_own_kind(bad, fail, write, images):
    path = write([write.record("bad", "bad.png"), write.record("good"), write.record("gone", "gone.png")])
    for error in errors_for(fail.at).values():
        fail(bad, error)
        assert check_file(path, images).counts == {"unreadable_image": 1, "missing_image": 1}


def test_skip_drops_no_record_for_it(bad, fail, write, images):
    path = write([write.record("bad", "bad.png"), write.record("good"), write.record("gone", "gone.png")])
    for error in errors_for(fail.at).values():
        fail(bad, error)
        for policy in ("skip", "error"):
            with pytest.raises(LmmError, match="bad.png cannot be"):
                load_records(path, images, policy=policy, images="decode")
        with pytest.raises(MachineError, match="record 0: .*no record is left out"):
            load_records(path, images, policy="skip", images="decode")


def test_training_with_skip_stops_and_names_the_sample(bad, fail, images, tiny_model):
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Red"}]
    samples = [
        Sample(turns, [images / "ok.png"], "good"),
        Sample(turns, [bad], "bad"),
        Sample(turns, [images / "gone.png"], "gone"),
    ]
    stage = Stage(name="s", train={"projector": 1e-3}, batch_size=3, bad_samples="skip")
    made = step_input(0, samples, tiny_model.input_spec, stage)
    assert made.sample_ids == ("good", "bad") and [name for name, _ in made.skipped] == ["gone"]
    fail(bad, errors_for(fail.at)["no free handle"])
    with pytest.raises(
        MachineError,
        match="sample 'bad': image .*bad.png cannot be (read|opened): Too many open files: .*ulimit -n",
    ):
        step_input(0, samples, tiny_model.input_spec, stage)


def test_with_no_handle_left_at_all_the_handlers_raise_nothing_else(images, write):
    """Real ones: the limit is lowered until nothing more can be opened."""
    resource = pytest.importorskip("resource")
    (images / "page.png").write_text("<html>404</html>")
    path = write([write.record("a"), write.record("b", "page.png")])
    Image.init()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for name in ("ok.png", "page.png"):
            with pytest.raises(MachineError, match="Too many open files"):
                load_image(images / name)
        with pytest.raises(MachineError, match="data.json cannot be read: Too many open files"):
            load_records(path, images, policy="skip")
        os.close(held.pop())
        with pytest.raises(ImageError, match="not an image"):
            load_image(images / "page.png")
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("error", ["no permission", "stale mount", "no free handle"])
def test_an_images_folder_that_cannot_be_looked_at_is_not_called_missing(write, images, monkeypatch, error):
    real = os.stat
    path = write([write.record("a")])

    def stat(name, *args, **kwargs):
        if str(name) == str(images):
            raise ERRORS[error]
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(MachineError, match="images folder .* cannot be read"):
        load_records(path, images, policy="skip")


def test_what_a_user_stops_is_stopped(bad, monkeypatch, images, write):
    def interrupted(image):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_image(bad)
