"""Killed at any moment and started again, a run gives bit for bit the losses it would have given."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmmblocks.train import train
from lmmblocks.train.log import rows_from_csv
from lmmblocks.train.stage import Stage

HERE = Path(__file__).resolve()

CHILD = """
import json, os, runpy, sys, time
for name in ("torch.utils.tensorboard", "matplotlib.figure"):
    sys.modules[name] = None  # optional, and slow to import
conftest, settings, out, syncs = sys.argv[1:]
made = runpy.run_path(conftest)
from lmmblocks.train import Stage, train

real, count = os.fsync, 0

def fsync(handle):
    global count
    count += 1
    if count == int(syncs):
        print("writing", flush=True)
        time.sleep(600)
    real(handle)

os.fsync = fsync
model = made["random_model"](made["make_tokenizer"]())
train(model, Stage.from_dict(json.loads(settings)), made["make_samples"](), out, on_step=lambda row: print("step", row.step, flush=True))
print("finished", flush=True)
"""


@pytest.fixture(autouse=True)
def without_slow_extras(monkeypatch):
    for name in ("torch.utils.tensorboard", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def resumable():
    return Stage(
        name="test",
        train={"encoder": 1e-3, "projector": 1e-2, "decoder": 1e-3},
        batch_size=4,
        epochs=6,
        micro_batch_rows=80,
        checkpoint_every_steps=3,
        clip_norm=1.0,
        weight_decay=0.1,
    )


def start_and_kill(stage, out, *, at, syncs=0):
    """Train in a process of its own and kill -9 it when it prints a line."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[2]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    words = [
        sys.executable,
        "-c",
        CHILD,
        str(HERE.with_name("conftest.py")),
        json.dumps(stage.to_dict()),
        str(out),
        str(syncs),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as child:
        seen = []
        for line in child.stdout:
            seen.append(line.strip())
            if seen[-1] == at:
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.read()
    assert child.returncode == -signal.SIGKILL, seen


def test_killed_in_a_step_and_in_writing_it_goes_on_bit_for_bit(resumable, model, samples, tokenizer, make_model, tmp_path):
    chance = random.Random()
    step = chance.randrange(2, 9)
    syncs = chance.randrange(1, 13)  # six per checkpoint: four files, the folder, the folder it lies in
    print(f"killed at step {step}, then at flush {syncs}")
    whole = train(model, resumable, samples, tmp_path / "whole")

    out = tmp_path / "killed"
    start_and_kill(resumable, out, at=f"step {step}")
    start_and_kill(resumable, out, at="writing", syncs=syncs)
    survivor = make_model(tokenizer)
    resumed = train(survivor, resumable, samples, out)

    assert resumed.losses == whole.losses
    assert all(torch.equal(p, q) for p, q in zip(survivor.parameters(), model.parameters()))
    rows = rows_from_csv((out / "losses.csv").read_text())
    assert [row.step for row in rows] == list(range(1, 19))
    assert [row.loss for row in rows] == whole.losses
    assert [row.grad_norm for row in rows] == [row.grad_norm for row in rows_from_csv((tmp_path / "whole" / "losses.csv").read_text())]
    counts = [dataclasses.replace(result.totals, seconds=0, waited_s=0) for result in (resumed, whole)]
    assert counts[0] == counts[1]
    assert not [path for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]


class Stopped(Exception):
    pass


@pytest.fixture
def run(resumable, tokenizer, make_model, samples):
    """Train 12 steps, or until one of them; return what was drawn after each step, and the losses."""

    def run(out, until=None):
        drawn = {}

        def on_step(row):
            drawn[row.step] = (random.random(), np.random.rand(), torch.rand(()).item())
            if row.step == until:
                raise Stopped

        try:
            stage = dataclasses.replace(resumable, max_steps=12)
            return drawn, train(make_model(tokenizer), stage, samples, out, on_step=on_step).losses
        except Stopped:
            return drawn, None

    return run


def test_random_generators_and_order_go_on_where_they_were(run, tmp_path):
    drawn, losses = run(tmp_path / "whole")
    for stop, first_again in ((1, 1), (5, 4), (11, 10)):
        run(tmp_path / str(stop), until=stop)
        drawn_again, losses_again = run(tmp_path / str(stop))
        assert min(drawn_again) == first_again
        assert losses_again == losses
        assert drawn_again == {step: values for step, values in drawn.items() if step >= first_again}
