"""Batches in the background, in order: while the device computes a step, the next ones are read, decoded and planned.

One item is one whole step, so the result doesn't depend on how many workers there are or which is faster. ``workers=0`` uses a
thread of this process: image decoding and tokenising release Python's lock, and nothing is copied between processes. More
workers are processes.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, Dataset

from ..compose.input_spec import InputSpec
from ..images.fit import CHOICES, with_choices
from ..spec import LmmError, Sample
from .micro_batches import StepInput, step_input
from .order import StepOrder
from .stage import Stage


class StepDataset(Dataset["StepInput | LmmError"]):
    """Step number to step input; picklable, without the model's weights.

    An ``LmmError`` is returned instead of raised, so that it leaves a worker process as it is.

    Args:
        samples: the training data.
        order: which samples make up which step.
        spec: of the model, which has what the stage chooses.
        stage: limits, truncation, policy for bad samples.
    """

    def __init__(self, samples: Sequence[Sample], order: StepOrder, spec: InputSpec, stage: Stage) -> None:
        self.samples, self.order, self.stage = samples, order, stage
        self.spec = stage_inputs(spec, stage)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> StepInput | LmmError:
        try:
            return step_input(step, self.samples_of(step), self.spec, self.stage)
        except LmmError as error:
            return error

    def samples_of(self, step: int) -> list[Sample]:
        """Return the samples of a step, each with an id: its own, or its index in the data."""
        return [self._named(index) for index in self.order[step]]

    def _named(self, index: int) -> Sample:
        sample = self.samples[index]
        return dataclasses.replace(sample, id=index) if sample.id is None else sample


def stage_inputs(spec: InputSpec, stage: Stage) -> InputSpec:
    """Return how the batches of a stage are made: as the model says, which has what the stage chooses by now.

    Raises:
        LmmError: the stage names others than the model has (``set_stage_inputs`` sets them).
    """
    from ..chat import get_template

    template = spec.template if stage.template is None else get_template(stage.template, spec.tokenizer)
    named = {"template": template == spec.template}
    for name in CHOICES:
        named[name] = with_choices(spec.preprocess, **{name: getattr(stage, name)}) == spec.preprocess
    for name, same in named.items():
        if not same:
            asked = getattr(stage, name)
            raise LmmError(f"stage {stage.name!r} names {name}={asked!r}, the model has another: set it with model.set_inputs({name}={asked!r})")
    return spec


class StepLoader:
    """Yields the input of every step from ``start`` on, and measures how long the consumer waited for it.

    Args:
        dataset: step number to step input.
        start: first step.
        pin: put tensors into pinned memory, for copies to a GPU that don't block.

    Attributes:
        waited_s: seconds the consumer has waited so far.
    """

    def __init__(self, dataset: StepDataset, start: int = 0, *, pin: bool = False) -> None:
        self.dataset, self.start, self.pin = dataset, start, pin
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[StepInput]:
        steps = range(self.start, len(self.dataset))
        source = self._processes(steps) if self.dataset.stage.workers else self._thread(steps)
        for _ in steps:
            begin = time.perf_counter()
            inputs = next(source)
            self.waited_s += time.perf_counter() - begin
            if isinstance(inputs, LmmError):
                raise inputs
            yield inputs

    def _processes(self, steps: range) -> Iterator[StepInput | LmmError]:
        stage = self.dataset.stage
        return iter(
            DataLoader(
                self.dataset,
                batch_size=None,
                sampler=steps,
                num_workers=min(stage.workers, max(1, len(steps))),
                prefetch_factor=stage.prefetch_steps,
                pin_memory=self.pin,
                worker_init_fn=_one_thread,
            )
        )

    def _thread(self, steps: range) -> Iterator[StepInput | LmmError]:
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lmmblocks-loader")
        ahead: deque[Future[StepInput | LmmError]] = deque()
        try:
            for step in steps:
                ahead.append(pool.submit(self._read, step))
                if len(ahead) > self.dataset.stage.prefetch_steps:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, step: int) -> StepInput | LmmError:
        inputs = self.dataset[step]
        return inputs.pin_memory() if self.pin and isinstance(inputs, StepInput) else inputs


def _one_thread(worker: int) -> None:
    """Workers are the parallelism: torch threads inside them would only get in each other's way."""
    torch.set_num_threads(1)
