"""The splice plan and the splice: against a naive loop, LLaVA's recorded output, and every edge case."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.plans.host import expand_samples, plan_splice
from lmmblocks.spec import IGNORE_LABEL, ImageSpan, LmmError

GOLDEN = Path(__file__).with_name("golden")
WIDTH, VOCABULARY = 3, 20


def naive(samples, tables, features, limit=None):
    """Concatenate piece by piece, as one would on paper: rows and labels per sample."""
    out, taken = [], 0
    for ids, counts, labels in samples:
        rows, row_labels, image = [], [], 0
        for token, label in zip(ids, labels):
            if token == -200:
                rows += list(features[taken : taken + counts[image]])
                row_labels += [IGNORE_LABEL] * counts[image]
                taken, image = taken + counts[image], image + 1
            else:
                rows.append(tables[token])
                row_labels.append(label)
        out.append((rows[:limit], row_labels[:limit]))
    return out


@st.composite
def samples(draw, max_samples=4):
    drawn = []
    for _ in range(draw(st.integers(1, max_samples))):
        ids = draw(st.lists(st.one_of(st.just(-200), st.integers(0, VOCABULARY - 1)), max_size=8))
        counts = [draw(st.integers(0, 4)) for token in ids if token == -200]
        labels = [token if token >= 0 and draw(st.booleans()) else IGNORE_LABEL for token in ids]
        drawn.append((ids, counts, labels))
    return drawn


def plan_of(drawn, **options):
    ids, counts, labels = (list(column) for column in zip(*drawn))
    return plan_splice(ids, counts, labels=labels, **options)


@settings(max_examples=150, deadline=None)
@given(drawn=samples(), limit=st.one_of(st.none(), st.integers(1, 10)), seed=st.integers(0, 99))
def test_splice_equals_naive_concatenation(drawn, limit, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    features = torch.randn(sum(sum(c) for _, c, _ in drawn), WIDTH, generator=generator, requires_grad=True)
    plan = plan_of(drawn, max_length=limit, truncate="right")
    expected = naive(drawn, table, features, limit)
    flat = [row for rows, _ in expected for row in rows]
    embeds = ops.splice(table, features, plan)
    assert plan.lengths == tuple(len(rows) for rows, _ in expected)
    weight = torch.randn(embeds.shape, generator=generator)
    (embeds * weight).sum().backward()
    ours = table.grad, features.grad
    table.grad = features.grad = None
    if flat:
        torch.testing.assert_close(embeds.detach(), torch.stack(flat).detach())
        (torch.stack(flat) * weight).sum().backward()
        torch.testing.assert_close(ours[0], torch.zeros_like(table) if table.grad is None else table.grad)
        torch.testing.assert_close(ours[1], torch.zeros_like(features) if features.grad is None else features.grad)


@settings(max_examples=100, deadline=None)
@given(drawn=samples())
def test_plan_facts_hold_for_any_samples(drawn):
    plan = plan_of(drawn)
    expected_rows = [row for ids, counts, _ in drawn for row in [len(ids) - len(counts) + sum(counts)]]
    assert plan.lengths == tuple(expected_rows) and plan.total_rows == sum(expected_rows)
    assert plan.cu_seqlens.tolist() == np.concatenate([[0], np.cumsum(expected_rows)]).tolist()
    assert plan.positions.tolist() == [p for n in expected_rows for p in range(n)]
    labels = [label for _, row_labels in naive(drawn, [None] * VOCABULARY, [None] * 999) for label in row_labels]
    firsts = set(plan.cu_seqlens.tolist())
    targets = [(row - 1, label) for row, label in enumerate(labels) if label != IGNORE_LABEL and row not in firsts]
    assert list(zip(plan.target_rows.tolist(), plan.targets.tolist())) == targets
    assert sum(plan.target_counts) == len(targets)
    source = plan.source.numpy()
    assert (source[plan.image_rows.numpy()] == -1 - np.arange(len(plan.image_rows))).all()
    order = plan.token_order.numpy()
    keys = list(zip(source[order].tolist(), order.tolist()))
    assert keys == sorted(keys) and len(order) == (source >= 0).sum()


@settings(max_examples=150, deadline=None)
@given(drawn=samples(), limit=st.one_of(st.none(), st.integers(1, 10)), truncate=st.sampled_from(["right", "drop"]), data=st.data())
def test_a_run_of_segments_planned_alone_is_its_part_of_the_whole_and_asks_for_the_images_it_shows(drawn, limit, truncate, data):
    ids, counts, _ = (list(column) for column in zip(*drawn))
    expanded = expand_samples(ids, counts, max_length=limit, truncate=truncate)
    if not expanded.kept:
        return
    whole = expanded.plan()
    first = data.draw(st.integers(0, len(expanded.kept) - 1))
    last = data.draw(st.integers(first + 1, len(expanded.kept)))
    shown = expanded.images(first, last)
    assert shown == [span.image for span in whole.image_spans if first <= span.segment < last]
    table = torch.arange(VOCABULARY).float()[:, None].repeat(1, WIDTH)
    lengths = [length for sample in counts for length in sample]
    features = -torch.arange(1.0, sum(lengths) + 1)[:, None].repeat(1, WIDTH)
    images = features.split(lengths)
    alone = expanded.plan_of(first, last)
    assert alone.image_rows.shape[0] == sum(lengths[image] for image in shown)
    embeds = ops.splice(table, torch.cat([features[:0], *(images[image] for image in shown)]), alone)
    assert torch.equal(embeds, ops.splice(table, features, whole)[whole.cu_seqlens[first] : whole.cu_seqlens[last]])
    assert (alone.lengths, alone.kept) == (whole.lengths[first:last], whole.kept[first:last])


@settings(max_examples=60, deadline=None)
@given(drawn=samples())
def test_packing_equals_planning_one_by_one(drawn):
    together, image_at = plan_of(drawn), 0
    for index, one in enumerate(drawn):
        alone = plan_of([one])
        start, stop = together.cu_seqlens[index : index + 2].tolist()
        part = together.source[start:stop].clone()
        part[part < 0] += image_at
        assert torch.equal(part, alone.source)
        assert torch.equal(together.positions[start:stop], alone.positions)
        image_at += len(alone.image_rows)


@settings(max_examples=100, deadline=None)
@given(drawn=samples(), limit=st.integers(1, 12))
def test_turn_truncation_never_cuts_an_image_or_an_answer(drawn, limit):
    fits = [sum(c) + len(ids) - len(c) <= limit for ids, c, _ in drawn]
    try:
        plan = plan_of(drawn, max_length=limit, truncate="turn")
    except LmmError as error:
        assert "dropped" in str(error) and not any(fits)
        return
    assert {i for i, fit in enumerate(fits) if fit} <= set(plan.kept)
    whole = naive(drawn, list(range(VOCABULARY)), [None] * 999)
    for place, index in enumerate(plan.kept):
        rows, labels = whole[index]
        kept = plan.lengths[place]
        assert kept <= limit and plan.truncated[place] == len(rows) - kept
        if kept < len(rows):
            assert labels[kept - 1] != IGNORE_LABEL and (kept == len(labels) or labels[kept] == IGNORE_LABEL)
            assert rows[kept - 1] is not None  # an answer's token, so no image is open here


def test_a_turn_that_just_fits_stays():
    plan = plan_splice([[1, 2, 3, 4, 5]], [[]], labels=[[-100, 2, -100, 4, 5]], max_length=2, truncate="turn")
    assert plan.lengths == (2,) and plan.truncated == (3,)


def test_spans_of_images_end_where_the_sample_is_cut_and_count_the_samples_that_stay():
    assert plan_splice([[1, -200]], [[4]], max_length=3, truncate="right").image_spans == (ImageSpan(0, 0, 1, 2),)
    assert plan_splice([[-200, 1], [2, -200]], [[5], [2]], max_length=4, truncate="drop").image_spans == (ImageSpan(1, 0, 1, 2),)


def test_the_label_of_an_image_mark_is_nobodys_target():
    plan = plan_splice([[1, -200, 5]], [[2]], labels=[[IGNORE_LABEL, 7, 5]])
    assert plan.targets.tolist() == [5] and plan.target_rows.tolist() == [2]


def test_a_cut_image_sees_no_row_behind_the_cut():
    plan = plan_splice([[1, -200], [2]], [[4], []], max_length=3, truncate="right", bidirectional_images=True)
    assert plan.kv_end.tolist() == [1, 3, 3, 4]


def test_drop_leaves_out_only_what_is_too_long():
    plan = plan_splice([[1, 2, 3], [4], [-200, 5]], [[], [], [2]], max_length=2, truncate="drop")
    assert plan.kept == (1,) and plan.source.tolist() == [4] and plan.image_rows.tolist() == [-1, -1]


def test_truncated_image_rows_get_zero_gradient():
    plan = plan_splice([[1, -200, -200]], [[2, 2]], max_length=4, truncate="right")
    features = torch.randn(4, WIDTH, requires_grad=True)
    ops.splice(torch.randn(VOCABULARY, WIDTH), features, plan).sum().backward()
    assert features.grad.tolist() == [[1.0] * WIDTH] * 3 + [[0.0] * WIDTH]


def test_bidirectional_images_see_their_own_image_only():
    plan = plan_splice([[1, -200, -200, 2], [3, -200]], [[2, 1], [2]], bidirectional_images=True)
    assert plan.kv_end.tolist() == [1, 3, 3, 4, 5, 6, 8, 8]


def test_image_mark_may_be_a_real_id():
    plan = plan_splice([[7, 5, 7]], [[2, 1]], image_token=7)
    assert plan.source.tolist() == [-1, -2, 5, -3]


def test_strided_features_need_no_copy():
    features = torch.randn(2, 5, WIDTH)[:, 1:].flatten(0, 1)
    plan = plan_splice([[-200, 1, -200]], [[4, 4]])
    embeds = ops.splice(torch.randn(VOCABULARY, WIDTH), features, plan)
    assert torch.equal(embeds[:4], features[:4]) and torch.equal(embeds[5:], features[4:])


def test_empty_sample_and_text_only_batch_are_planned():
    plan = plan_splice([[], [3, 4]], [[], []], labels=[[], [IGNORE_LABEL, 4]])
    assert plan.cu_seqlens.tolist() == [0, 0, 2] and plan.target_counts == (0, 1)
    embeds = ops.splice(torch.randn(VOCABULARY, WIDTH), torch.zeros(0, WIDTH), plan)
    assert embeds.shape == (2, WIDTH)


def test_frozen_table_gets_no_gradient():
    table, features = torch.randn(VOCABULARY, WIDTH), torch.randn(2, WIDTH, requires_grad=True)
    ops.splice(table, features, plan_splice([[1, -200]], [[2]])).sum().backward()
    assert table.grad is None and features.grad is not None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1, -200]], [[]]), {}, "marks 1 images in its text but has 0"),
        (([[1]], [[4]]), {}, "marks 0 images in its text but has 1"),
        (([[1, -5]], [[]]), {}, "holds the id -5"),
        (([[1]], [[]]), {"labels": [[1, 2]]}, "1 token ids but 2 labels"),
        (([[1, 2]], [[]]), {"labels": [[-100, -1]]}, "has the label -1"),
        (([[1]], [[], []]), {}, "one entry per sample"),
        (([[1, 2, 3]], [[]]), {"max_length": 2}, "has 3 rows"),
        (([[1, 2, 3]], [[]]), {"max_length": 2, "truncate": "drop"}, "all 1 samples"),
        (([[1]], [[]]), {"truncate": "rigth"}, "did you mean 'right'"),
        (([[1]], [[]]), {"truncate": "turn", "max_length": 4}, "needs labels"),
        (([[-200]], [[-1]]), {}, "can't have -1 rows"),
    ],
)
def test_bad_samples_are_refused(arguments, options, message):
    with pytest.raises(LmmError, match=message):
        plan_splice(*arguments, **options)


def test_error_names_the_sample():
    with pytest.raises(LmmError, match="sample 'cat-7'"):
        plan_splice([[1], [-200]], [[], []], names=["dog-1", "cat-7"])


def test_splice_equals_what_llava_recorded():
    from safetensors.torch import load_file

    tensors = load_file(GOLDEN / "splice.safetensors")
    cases = json.loads((GOLDEN / "splice.json").read_text())
    for number, case in enumerate(cases):
        get = lambda name, number=number: tensors[f"{number}.{name}"]  # noqa: E731
        ids, mask, labels = get("ids"), get("mask").bool(), get("labels")
        features, slot, samples = get("feat"), 0, []
        kept_features = []
        for row in range(ids.shape[0]):
            tokens = ids[row][mask[row]].tolist()
            images = tokens.count(-200)
            kept_features.append(features[slot : slot + images].flatten(0, 1))
            slot += max(images, 1)  # LLaVA: a sample without an image still owns a slot
            samples.append((tokens, [case["P"]] * images, labels[row][mask[row]].tolist()))
        plan = plan_of(samples, max_length=case["maxlen"], truncate="right")
        embeds = ops.splice(get("table"), torch.cat(kept_features), plan)
        real = get("out_mask").bool()
        assert torch.equal(embeds, get("out")[real])
        assert torch.equal(plan.positions.long(), get("out_pos")[real].long())
        flat_labels = get("out_labels")[real]
        supervised = flat_labels != IGNORE_LABEL
        supervised[plan.cu_seqlens[:-1].long()] = False
        assert plan.target_rows.tolist() == (supervised.nonzero()[:, 0] - 1).tolist()
        assert plan.targets.tolist() == flat_labels[supervised].tolist()


@pytest.mark.parametrize(
    ("ids", "counts", "labels", "message"),
    [
        ([1.5, 2], [], None, "the id 1.5, expected whole numbers"),
        ([5, True], [], None, "the id True, expected whole numbers"),
        (["a"], [], None, "the id 'a', expected whole numbers"),
        ([2**40], [], None, "the id 1099511627776, more than 32 bits hold"),
        ([1, -100], [], None, "the id -100, which is neither a token nor the image mark"),
        ([1, -200], [1.5], None, "the image length 1.5, expected whole numbers"),
        ([1, 2], [], [-100, 2.5], "the label 2.5, expected whole numbers"),
        ([1, 2], [], [-100, -200], "the label -200, which is neither a token nor -100"),
        ([1, 2], [], [-100, 2**31], "the label 2147483648, more than 32 bits hold"),
    ],
)
def test_numbers_that_are_no_ids_are_refused_and_never_cast(ids, counts, labels, message):
    with pytest.raises(LmmError, match=message):
        plan_splice([ids], [counts], labels=None if labels is None else [labels])


def test_arrays_and_tensors_are_ids_too():
    expected = plan_splice([[1, -200, 5]], [[2]], labels=[[-100, -100, 5]])
    for kind in (lambda values: np.array(values, dtype=np.int32), torch.tensor, tuple):
        found = plan_splice([kind([1, -200, 5])], [kind([2])], labels=[kind([-100, -100, 5])])
        assert torch.equal(found.source, expected.source) and torch.equal(found.targets, expected.targets)


def test_a_run_of_segments_is_planned_without_images_that_lost_all_rows():
    expanded = expand_samples([[1, -200, 5, -200], [7, -200], [-200]], [[2, 3], [4], [1]], max_length=4, truncate="right")
    assert expanded.lengths == (4, 4, 1) and expanded.images(0, 1) == [0] and expanded.images(1, 3) == [2, 3]
    plan, alone = expanded.plan_of(0, 1), plan_splice([[1, -200, 5]], [[2]])
    assert plan.source.tolist() == alone.source.tolist() and plan.image_rows.tolist() == alone.image_rows.tolist() == [1, 2]
    assert expanded.plan_of(1, 3).image_rows.tolist() == [1, 2, 3, -1, 4] and expanded.plan().image_rows.tolist()[:5] == [1, 2, -1, -1, -1]
    assert expanded.plan_of(1, 3).kept == (1, 2)
