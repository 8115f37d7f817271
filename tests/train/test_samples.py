"""What training takes as data: anything with a length that takes an index; everything else is refused in words, and nothing hangs."""

import dataclasses
import sys
from collections import UserList, namedtuple

import numpy as np
import pytest
import torch

from lmmblocks.spec import LmmError
from lmmblocks.train import train


@pytest.fixture(autouse=True)
def without_slow_extras(monkeypatch):
    for name in ("torch.utils.tensorboard", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


class Endless(torch.utils.data.Dataset):
    """As torch's own tutorials write one: it has a length, and no index is too large."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index % len(self.samples)]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


def of_their_own(samples):
    """Samples of a class that isn't the library's."""
    Theirs = namedtuple("Theirs", "messages images id")
    return [Theirs(tuple(sample.messages), tuple(sample.images), sample.id) for sample in samples]


def objects(samples):
    array = np.empty(len(samples), dtype=object)
    array[:] = samples
    return array


@pytest.mark.parametrize("sampler", ["packed", "modality_length_grouped"])
@pytest.mark.parametrize("made", [tuple, UserList, Endless, objects, of_their_own, lambda s: torch.utils.data.Subset(Endless(s), range(len(s)))])
def test_whatever_has_a_length_and_an_index_trains_as_a_list_does(make_model, tokenizer, samples, stage, tmp_path, made, sampler):
    stage = dataclasses.replace(stage, sampler=sampler, micro_batch_samples=2, max_steps=2)
    wanted = train(make_model(tokenizer), stage, samples, tmp_path / "list")
    found = train(make_model(tokenizer), stage, made(samples), tmp_path / "other")
    assert found.losses == wanted.losses
    resumed = train(make_model(tokenizer), stage, samples, tmp_path / "other")
    assert resumed.losses == wanted.losses  # the data has the same hash


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (iter, "found list_iterator, which can't be: .*list\\(...\\) of it"),
        (lambda samples: map(lambda s: s, samples), "found map, which can't be"),
        (lambda samples: (s for s in samples), "found generator, which can't be"),
        (lambda samples: {s.id: s for s in samples}, "found a dict"),
        (lambda samples: {s.id for s in samples}, "found set, which can't be"),
        (lambda samples: "data.json", "found a str"),
        (lambda samples: None, "found NoneType, which can't be"),
        (lambda samples: samples[0], "found Sample, which can't be"),
        (lambda samples: Stream(), "Stream"),
        (lambda samples: torch.utils.data.DataLoader(Endless(samples)), "found DataLoader, which can't be"),
        (
            lambda samples: [dataclasses.asdict(s) for s in samples],
            "records\\[0\\] is dict, expected lmmblocks.Sample.*: lmmblocks.Sample\\(record\\['messages'\\]",
        ),
        (lambda samples: [*samples[:3], {"id": 1}], "records\\[3\\] is dict, expected lmmblocks.Sample"),
        (lambda samples: [*samples[:3], None], "records\\[3\\] is NoneType"),
        (lambda samples: [], "the data is empty"),
    ],
)
def test_other_data_is_refused_in_words_and_nothing_is_left(model, samples, stage, tmp_path, made, message):
    with pytest.raises(LmmError, match=message):
        train(model, stage, made(samples), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_shorter_than_it_says_is_refused(model, samples, stage, tmp_path):
    class Short(Endless):
        def __getitem__(self, index):
            return self.samples[:5][index]

    with pytest.raises(LmmError, match="records\\[5\\] of 12: IndexError"):
        train(model, stage, Short(samples), tmp_path)


def test_ids_of_numpy_are_taken(make_model, tokenizer, samples, stage, tmp_path):
    numbered = [dataclasses.replace(sample, id=np.int64(index)) for index, sample in enumerate(samples)]
    result = train(make_model(tokenizer), dataclasses.replace(stage, max_steps=1), numbered, tmp_path)
    assert result.steps == 1
