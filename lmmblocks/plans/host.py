"""The splice plan: everything about a packed batch that can be known on the host, computed there once.

Every length is known before a tensor reaches the device: how many rows each image becomes, where each conversation starts, which rows are
supervised. The device then only copies rows. Truncation is decided here too, sample by sample, and never silently: it raises, or
it is counted in ``plan.truncated`` and ``plan.kept``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..spec import IGNORE_LABEL, IMAGE_TOKEN, ImageSpan, LmmError, SplicePlan, boundaries, closest
from ..spec.fields import is_whole
from ..spec.words import TRUNCATE

_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Rows:
    """One sample expanded to rows: image tokens replaced by one row per image feature.

    ``source`` holds token ids, or ``-(row + 1)`` counting image rows within the sample. ``images`` holds the rows of each of its images;
    ``keep`` says how many leading rows stay after truncation, None: the sample is dropped.
    """

    source: np.ndarray
    labels: np.ndarray
    kv_end: np.ndarray | None
    images: tuple[int, ...]
    keep: int | None = None

    def shown(self) -> list[int]:
        """Return which of its images have a row left."""
        places, first, found = np.flatnonzero(self.source < 0), 0, []
        for image, length in enumerate(self.images):
            if length and places[first] < (self.keep or 0):
                found.append(image)
            first += length
        return found


@dataclass(frozen=True, slots=True)
class ExpandedSamples:
    """Samples expanded to rows and cut to length: all that plans need of them, before it is settled which samples go together.

    Made by :func:`expand_samples`. A micro-batch is planned from a run of them, so nothing has to be cut out of a larger plan.
    """

    samples: tuple[_Rows, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the samples that become segments."""
        return tuple(index for index, sample in enumerate(self.samples) if sample.keep is not None)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each segment."""
        return tuple(self.samples[index].keep or 0 for index in self.kept)

    def images(self, first: int, last: int) -> list[int]:
        """Return the numbers, counted over all samples, of the images of which segments ``first`` to ``last - 1`` show a row."""
        starts = np.cumsum([0, *(len(sample.images) for sample in self.samples)])
        return [int(starts[index]) + image for index in self.kept[first:last] for image in self.samples[index].shown()]

    def plan(self) -> SplicePlan:
        """Plan one batch of all samples; images of which no row is left count too.

        Raises:
            LmmError: every sample was dropped as too long.
        """
        kept = self.kept
        if self.samples and not kept:
            raise LmmError(f"all {len(self.samples)} samples of the batch were dropped as too long: raise max_length")
        return _plan(self.samples, kept)

    def plan_of(self, first: int, last: int) -> SplicePlan:
        """Plan a batch of segments ``first`` to ``last - 1`` alone, with the images that :meth:`images` names; ``kept`` counts all samples."""
        indices = self.kept[first:last]
        alone = [self.samples[index] for index in indices]
        return _plan([replace(sample, images=tuple(sample.images[image] for image in sample.shown())) for sample in alone], indices)


def plan_splice(
    token_ids: Sequence[Sequence[int]],
    image_lengths: Sequence[Sequence[int]],
    *,
    labels: Sequence[Sequence[int]] | None = None,
    image_token: int = IMAGE_TOKEN,
    max_length: int | None = None,
    truncate: str = "error",
    bidirectional_images: bool = False,
    names: Sequence[object] | None = None,
) -> SplicePlan:
    """Plan one packed batch from tokenised samples.

    Args:
        token_ids: one list per sample; ``image_token`` stands for one image each.
        image_lengths: one list per sample: the number of rows of each of its images, in order.
        labels: one list per sample, as long as its ids; -100 = not supervised. None = nothing is supervised.
        image_token: the id that marks an image (a sentinel such as -200, or a real id such as 32000).
        max_length: most rows a segment may have.
        truncate: for longer samples: ``error``; ``drop`` the sample; ``turn``: keep the turns that fit (cut after a supervised answer,
            never inside an image; a sample whose first turn doesn't fit is dropped); ``right``: cut at ``max_length`` wherever that is,
            as LLaVA does.
        bidirectional_images: each image row sees its whole image.
        names: what to call the samples in messages (default: their index).

    Returns:
        The plan, on the CPU.

    Raises:
        LmmError: marks and images don't match, an id is negative or no whole number, a sample is too long, or nothing is left.

    >>> plan = plan_splice([[1, -200, 5]], [[2]], labels=[[-100, -100, 5]])
    >>> plan.source.tolist(), plan.target_rows.tolist(), plan.targets.tolist()
    ([1, -1, -2, 5], [2], [5])
    """
    return expand_samples(
        token_ids,
        image_lengths,
        labels=labels,
        image_token=image_token,
        max_length=max_length,
        truncate=truncate,
        bidirectional_images=bidirectional_images,
        names=names,
    ).plan()


def expand_samples(
    token_ids: Sequence[Sequence[int]],
    image_lengths: Sequence[Sequence[int]],
    *,
    labels: Sequence[Sequence[int]] | None = None,
    image_token: int = IMAGE_TOKEN,
    max_length: int | None = None,
    truncate: str = "error",
    bidirectional_images: bool = False,
    names: Sequence[object] | None = None,
) -> ExpandedSamples:
    """Check samples, replace their image marks by rows, and settle how many rows of each stay; arguments and errors of :func:`plan_splice`."""
    _check_arguments(token_ids, image_lengths, labels, truncate, max_length, names)
    names = range(len(token_ids)) if names is None else names
    expanded = [
        _expand(ids, counts, None if labels is None else labels[index], image_token, bidirectional_images, names[index])
        for index, (ids, counts) in enumerate(zip(token_ids, image_lengths))
    ]
    return ExpandedSamples(
        tuple(replace(rows, keep=fitting_rows(rows.labels, rows.source < 0, max_length, truncate, name)) for rows, name in zip(expanded, names))
    )


def _check_arguments(
    token_ids: Sequence, image_lengths: Sequence, labels: Sequence | None, truncate: str, max_length: int | None, names: Sequence | None
) -> None:
    if truncate not in TRUNCATE:
        raise LmmError(f"truncate={truncate!r} is none of {TRUNCATE}{closest(truncate, TRUNCATE)}")
    counts = {"token_ids": len(token_ids), "image_lengths": len(image_lengths)}
    counts |= {} if labels is None else {"labels": len(labels)}
    counts |= {} if names is None else {"names": len(names)}
    if len(set(counts.values())) > 1:
        raise LmmError(f"plan_splice needs one entry per sample in each list, found {counts}")
    if truncate == "turn" and labels is None and max_length is not None:
        raise LmmError("truncate='turn' cuts after supervised answers and needs labels: pass labels or choose 'error' or 'drop'")
    if max_length is not None and not is_whole(max_length):
        raise LmmError(f"max_length must be a whole number or None, found {max_length!r}")
    if max_length is not None and max_length < 1:
        raise LmmError(f"max_length must be at least 1, found {max_length}")


def _expand(
    ids: Sequence[int], image_lengths: Sequence[int], labels: Sequence[int] | None, image_token: int, bidirectional: bool, name: object
) -> _Rows:
    tokens = _whole(ids, "id", name)
    given = None if labels is None else _whole(labels, "label", name)
    is_image = tokens == image_token
    _check_sample(tokens, is_image, _whole(image_lengths, "image length", name), given, name)
    repeats = np.ones(len(tokens), dtype=np.int64)
    repeats[is_image] = image_lengths
    source = np.repeat(tokens, repeats)
    image_row = np.repeat(is_image, repeats)
    source[image_row] = -1 - np.arange(int(image_row.sum()))
    expanded = np.full(len(source), IGNORE_LABEL, dtype=np.int64)
    if given is not None:
        expanded = np.where(image_row, IGNORE_LABEL, np.repeat(given, repeats))
    kv_end = None
    if bidirectional:
        ends = np.cumsum(repeats)
        kv_end = np.where(image_row, np.repeat(ends, repeats), np.arange(1, len(source) + 1))
    return _Rows(source, expanded, kv_end, tuple(int(length) for length in image_lengths))


def _whole(values: Sequence[int], what: str, name: object) -> np.ndarray:
    """Return whole numbers that 32 bits hold, as the device has them; a cast would make others of what is neither."""
    numbers = np.asarray(values).reshape(-1)
    if numbers.size and (numbers.dtype.kind not in "iu" or bool in map(type, values)):
        wrong = next((value for value in values if not is_whole(value)), numbers[0])
        raise LmmError(f"sample {name!r} has the {what} {wrong!r}, expected whole numbers")
    if (large := numbers[numbers > _MOST]).size:
        raise LmmError(f"sample {name!r} has the {what} {large[0]}, more than 32 bits hold")
    return numbers.astype(np.int64)


def _check_sample(tokens: np.ndarray, is_image: np.ndarray, image_lengths: np.ndarray, labels: np.ndarray | None, name: object) -> None:
    marks = int(is_image.sum())
    if marks != len(image_lengths):
        raise LmmError(f"sample {name!r} marks {marks} images in its text but has {len(image_lengths)} images: write one <image> per image, in order")
    if labels is not None and len(labels) != len(tokens):
        raise LmmError(f"sample {name!r} has {len(tokens)} token ids but {len(labels)} labels")
    if len(image_lengths) and image_lengths.min() < 0:
        raise LmmError(f"sample {name!r}: an image can't have {image_lengths.min()} rows")
    negative = tokens[~is_image & (tokens < 0)]
    if negative.size:
        raise LmmError(f"sample {name!r} holds the id {negative[0]}, which is neither a token nor the image mark")
    if labels is not None:
        given = labels[~is_image]
        wrong = given[(given < 0) & (given != IGNORE_LABEL)]
        if wrong.size:
            raise LmmError(f"sample {name!r} has the label {wrong[0]}, which is neither a token nor {IGNORE_LABEL} (not supervised)")


def fitting_rows(labels: np.ndarray, is_image: np.ndarray, max_length: int | None, truncate: str, name: object = None) -> int | None:
    """Return how many leading rows of a sample stay, or None when the sample is dropped.

    Args:
        labels: label of each row, -100 = not supervised.
        is_image: whether each row belongs to an image.
        max_length: most rows allowed; None = no limit.
        truncate: the policy, see :func:`plan_splice`.
        name: for the message.

    Raises:
        LmmError: the sample is too long and the policy is ``error``.
    """
    total = len(labels)
    if max_length is None or total <= max_length:
        return total
    if truncate == "right":
        return max_length
    if truncate == "drop":
        return None
    if truncate == "turn":
        supervised = labels != IGNORE_LABEL
        turn_ends = np.flatnonzero(supervised & ~np.append(supervised[1:], False)) + 1
        fitting = turn_ends[turn_ends <= max_length]
        return int(fitting[-1]) if fitting.size else None
    images = int(is_image.sum())
    raise LmmError(
        f"sample {name!r} has {total} rows ({images} of images), max_length is {max_length}: "
        f"raise max_length, or set truncate to 'turn' (keep the turns that fit) or 'drop'"
    )


def _plan(samples: Sequence[_Rows], kept: tuple[int, ...]) -> SplicePlan:
    """Lay samples end to end.

    Args:
        samples: those that were dropped hold images too.
        kept: what the plan calls the samples that stay, in their order.
    """
    # 1. Where segments begin in the packed batch, and where each sample's images begin among all image rows.
    stay = [sample for sample in samples if sample.keep is not None]
    lengths = tuple(sample.keep or 0 for sample in stay)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    image_starts = np.cumsum([0, *(sum(sample.images) for sample in samples)], dtype=np.int64)
    own_images = [int(start) for sample, start in zip(samples, image_starts) if sample.keep is not None]
    # 2. Copy each sample's rows; numbers that count within the sample (image rows, visible keys) now count in the batch.
    source, labels = np.empty(int(starts[-1]), dtype=np.int64), np.empty(int(starts[-1]), dtype=np.int64)
    kv_end = np.empty_like(source) if any(sample.kv_end is not None for sample in samples) else None
    image_rows = np.full(int(image_starts[-1]), -1, dtype=np.int64)
    for sample, rows, begin, first_image in zip(stay, lengths, starts, own_images):
        at, own = slice(int(begin), int(begin) + rows), sample.source[:rows]
        source[at] = np.where(own < 0, own - first_image, own)  # -(row + 1) of the sample: subtracting counts further
        labels[at] = sample.labels[:rows]
        # 3. The way back, for the gradient: which packed row an image row went to; those cut away keep -1.
        placed = np.flatnonzero(own < 0)
        image_rows[first_image + np.arange(len(placed))] = begin + placed
        if kv_end is not None and sample.kv_end is not None:
            kv_end[at] = begin + np.minimum(sample.kv_end[:rows], rows)  # an image that was cut ends where its sample does
    truncated = tuple(len(sample.source) - rows for sample, rows in zip(stay, lengths))
    return _tensors(source, labels, kv_end, image_rows, lengths, starts, truncated, kept, _spans(samples))


def _spans(samples: Sequence[_Rows]) -> tuple[ImageSpan, ...]:
    """Return where each image lies of which a row is left."""
    spans: list[ImageSpan] = []
    image = segment = 0
    for sample in samples:
        places, first = np.flatnonzero(sample.source < 0), 0
        for length in sample.images:
            start = int(places[first]) if length else 0
            left = min(length, (sample.keep or 0) - start)
            if left > 0:
                spans.append(ImageSpan(image, segment, start, left))
            image, first = image + 1, first + length
        segment += sample.keep is not None
    return tuple(spans)


def _tensors(
    source: np.ndarray,
    labels: np.ndarray,
    kv_end: np.ndarray | None,
    image_rows: np.ndarray,
    lengths: tuple[int, ...],
    starts: np.ndarray,
    truncated: tuple[int, ...],
    kept: tuple[int, ...],
    image_spans: tuple[ImageSpan, ...],
) -> SplicePlan:
    total = len(source)
    supervised = labels != IGNORE_LABEL
    supervised[starts[:-1][np.asarray(lengths, dtype=np.int64) > 0]] = False  # the first row of a segment has no row that predicts it
    text_rows = np.flatnonzero(source >= 0)
    target_at = np.flatnonzero(supervised)
    counts = np.diff(np.searchsorted(target_at, starts))
    return SplicePlan(
        source=int32(source),
        positions=int32(np.arange(total) - np.repeat(starts[:-1], lengths)),
        cu_seqlens=boundaries(lengths),
        max_seqlen=max(lengths, default=0),
        total_rows=total,
        target_rows=int32(target_at - 1),
        targets=torch.from_numpy(labels[target_at]),
        kv_end=None if kv_end is None else int32(kv_end),
        image_rows=int32(image_rows),
        token_order=int32(text_rows[np.argsort(source[text_rows], kind="stable")]),
        lengths=lengths,
        target_counts=tuple(int(n) for n in counts),
        truncated=truncated,
        kept=kept,
        image_spans=image_spans,
        largest_id=int(source.max(initial=-1)),
    )


def int32(values: np.ndarray) -> torch.Tensor:
    """Return indices as the kernels read them."""
    return torch.from_numpy(values.astype(np.int32))
