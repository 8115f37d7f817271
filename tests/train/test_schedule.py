"""The learning rate is transformers' cosine with warm-up, at every step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.train.schedule import lr_factor


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]))
def test_cosine_equals_transformers(total, ratio):
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(total * ratio), total)
    for step in range(total):
        assert lr_factor(step, total, warmup_ratio=ratio) == schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


def test_the_released_run_had_this_learning_rate():
    """LLaVA issue 601 logs 2.8205e-6 at step 22 of 5198 of stage 2."""
    assert 2e-5 * lr_factor(22, 5198) == pytest.approx(2.8205e-6, rel=1e-4)


def test_constant_stays_after_the_warm_up():
    assert [lr_factor(step, 10, warmup_ratio=0.15, schedule="constant") for step in range(4)] == [
        0,
        0.5,
        1,
        1,
    ]
