"""What the machine did, told apart from what the data is: no record may be dropped or blamed for it."""

from __future__ import annotations

import errno

from .errors import LmmError

_OF_THE_PATH = (
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
)
_ADVICE = {
    errno.EMFILE: "close files, or raise the limit with `ulimit -n`",
    errno.ENFILE: "close files, or raise the system's limit",
    errno.EACCES: "give yourself the permission to read it",
    errno.EPERM: "give yourself the permission to read it",
    errno.ENOMEM: "free memory, or use fewer workers",
}
_MOUNT = "check the disk or the network mount, and try again"

# What Pillow says, without a number, when the machine lacks something.
_SAID = {
    "not available": "install a Pillow that has it, such as the wheels of PyPI",
    "out of memory": "free memory, or use fewer workers",
    "ghostscript": "install Ghostscript, or convert the file to PNG",
}


class MachineError(LmmError):
    """The machine could not do it: no permission, no file handle free, no memory, a disk or mount that fails, a codec that is missing.

    The data may be sound, so policies that leave bad data out don't catch it.
    """


def machine_failure(what: str, error: BaseException) -> MachineError | None:
    """Return the error to raise if the machine is to blame, None if what was read is.

    Args:
        what: what could not be done, such as ``"image a.png cannot be read"``.
        error: as Python or Pillow raised it. Paths that don't exist or name a folder are not the machine's.

    >>> print(machine_failure("a.png cannot be read", OSError(errno.EMFILE, "Too many open files")))
    a.png cannot be read: Too many open files: close files, or raise the limit with `ulimit -n`
    >>> machine_failure("a.png cannot be read", FileNotFoundError(errno.ENOENT, "No such file"))
    """
    if isinstance(error, MemoryError):
        return MachineError(f"{what}: no memory is left: {_ADVICE[errno.ENOMEM]}")
    if not isinstance(error, OSError):
        return None
    if error.errno not in _OF_THE_PATH:
        return MachineError(f"{what}: {error.strerror or error}: {_ADVICE.get(error.errno or 0, _MOUNT)}")
    said = str(error).lower()
    advice = next((text for words, text in _SAID.items() if words in said), None) if error.errno is None else None
    return None if advice is None else MachineError(f"{what}: {error}: {advice}")
