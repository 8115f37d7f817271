"""Kinds of files by their first bytes: what a file is that isn't what it was taken for, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 256
"""How much of a file's beginning ``kind_of_bytes`` wants to see."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: such as ``"HEIC"``, with its article where it is no proper name.
        advice: how to get at its content.
    """

    name: str
    advice: str


_CONVERT = "convert it to PNG or JPEG"
_FRAMES = "save its frames as pictures and list those"
_HEIC = FileKind("HEIC", f"{_CONVERT}, or install pillow-heif and call pillow_heif.register_heif_opener() first")
_AVIF = FileKind("AVIF", f"{_CONVERT}, or install Pillow 11.3 or newer, which reads it")
_JXL = FileKind("JPEG XL", f"{_CONVERT}, or install pillow-jxl-plugin and import pillow_jxl first")
_VIDEO = FileKind("a video", _FRAMES)

_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"jxl ": _JXL,
    b"crx ": FileKind("a camera's raw file", f"{_CONVERT}, such as with rawpy"),
}
_STARTS = {
    b"\xff\x0a": _JXL,
    b"\0\0\0\x0cJXL ": _JXL,
    b"%PDF-": FileKind("PDF", f"{_CONVERT}, such as with pdftoppm"),
    b"\x1a\x45\xdf\xa3": _VIDEO,
    b"\0\0\x01\xba": _VIDEO,
    b"\0\0\x01\xb3": _VIDEO,
    b"FLV": _VIDEO,
    b"\x1f\x8b": FileKind("gzip", "unpack it with gunzip"),
    b"PK\x03\x04": FileKind("a zip archive", "unpack it with unzip"),
    b"BZh": FileKind("bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ\0": FileKind("xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": FileKind("zstandard", "unpack it with unzstd"),
    b"PAR1": FileKind(
        "parquet",
        "write its rows as JSON, such as with pandas.read_parquet(FILE).to_json(..., orient='records')",
    ),
    b"ARROW1": FileKind("arrow", "write its rows as JSON, such as with datasets.Dataset.from_file(FILE).to_json(...)"),
    b"SQLite format 3": FileKind("an SQLite database", "write its rows as JSON"),
    b"\x93NUMPY": FileKind("a numpy array", "numpy.load reads it, and PIL.Image.fromarray(...).save(...) makes a picture of it"),
    b"\x89HDF": FileKind("HDF5", "h5py reads it; save its pictures as PNG"),
    b"v/1\x01": FileKind("OpenEXR", "map its range to 8 bits and save it as PNG"),
    b"#?RADIANCE": FileKind("Radiance HDR", "map its range to 8 bits and save it as PNG"),
    b"PF\n": FileKind("PFM of three channels", "map its range to 8 bits and save it as PNG"),
    b"8BPS\0\1": FileKind("a PSD of more than 8 bits a channel, or of rare channels", _CONVERT),
    b"version https://git-lfs": FileKind("a git-lfs pointer", "fetch the file itself with git lfs pull"),
}


def kind_of_bytes(head: bytes) -> FileKind | None:
    """Return what a file is by its first ``HEAD_BYTES`` bytes, None if they say nothing.

    >>> kind_of_bytes(b"\\0\\0\\0\\x18ftypheic").name
    'HEIC'
    """
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], _VIDEO)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _VIDEO
    if head[128:132] == b"DICM":
        return FileKind("DICOM", "pydicom reads it; choose a window and save it as PNG")
    if b"<svg" in head.lower():
        return FileKind("SVG", f"{_CONVERT}, such as with cairosvg")
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)
