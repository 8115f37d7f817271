"""A batch of unequal prompts gives token for token what each prompt gives alone."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WORDS = "What colour is the cat? Is it asleep? There are 3 red squares, and one blue circle. 一只猫".split()


def questions(picture, seed):
    """Unequal prompts with 0, 1 and 2 images."""
    return [
        ("What colour is the cat?", None),
        ("Is it asleep?", [picture(seed)]),
        ("A cat and " * 10 + "what?", [picture(seed + 1), picture(seed + 2, size=(30, 50))]),
        ("It?", []),
        ("The first <image> and the second<image>: are they red?", [picture(seed + 2), picture(seed)]),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.2, "top_p": 0.9, "seed": 7}, {"temperature": 0.7, "top_k": 20, "seed": 3}],
)
def test_batched_equals_single(make_model, picture, seed, options):
    model = make_model(seed=seed)
    prompts, images = zip(*questions(picture, seed))
    alone = [model.generate(p, i, max_new_tokens=20, **options) for p, i in zip(prompts, images)]
    assert len(set(alone)) == len(alone)
    assert model.generate(list(prompts), list(images), max_new_tokens=20, **options) == alone


def test_batched_equals_single_when_answers_end_at_different_times(make_model, make_tokenizer, picture, greedy_ids):
    prompts, images = zip(*questions(picture, 0))
    free = make_model()
    whole = [free.generate(p, i, max_new_tokens=20) for p, i in zip(prompts, images)]
    stop = [whole[0][2:5], whole[2][12:16], whole[3]]
    ended = [free.generate(p, i, max_new_tokens=20, stop=stop) for p, i in zip(prompts, images)]
    assert len({len(text) for text in ended}) >= 3 and ended[3] == ""
    assert free.generate(list(prompts), list(images), max_new_tokens=20, stop=stop) == ended

    last = greedy_ids(free, [{"role": "user", "content": prompts[0]}], count=6)[-1]
    ending = make_model(tokenizer=make_tokenizer(eos=free.tokenizer.convert_ids_to_tokens(last)))
    alone = [ending.generate(p, i, max_new_tokens=20) for p, i in zip(prompts, images)]
    assert len(alone[0]) < len(whole[0]) and alone[1:] != [""] * 4
    assert ending.generate(list(prompts), list(images), max_new_tokens=20) == alone


def test_equal_prompts_get_equal_answers_with_a_seed_and_their_own_without(model):
    same = model.generate(["Is it?"] * 3, temperature=1.5, seed=1, max_new_tokens=12)
    assert len(set(same)) == 1
    assert len(set(model.generate(["Is it?"] * 3, temperature=1.5, max_new_tokens=12))) == 3


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), st.integers(0, 2)),
        min_size=2,
        max_size=6,
    )
)
def test_any_batch_equals_its_prompts_alone(model, picture, batch):
    prompts = [" ".join(words) for words, _ in batch]
    images = [[picture(n) for n in range(count)] for _, count in batch]
    alone = [model.generate(p, i, max_new_tokens=6) for p, i in zip(prompts, images)]
    assert model.generate(prompts, images, max_new_tokens=6) == alone


def test_the_template_of_the_model_is_used(make_model):
    model = make_model()
    before = model.generate("Is it asleep?", max_new_tokens=8)
    model.template = dataclasses.replace(model.template, roles=("Human", "Cat"))
    assert model.generate("Is it asleep?", max_new_tokens=8) != before
