"""generate and generate_stream: the right tokens, the right end, nothing computed in vain, clear refusals."""

import dataclasses

import pytest
import torch
from PIL import Image

from lmmblocks.generate import Options, generate, generate_stream
from lmmblocks.generate.decode import Answer
from lmmblocks.spec import LmmError, Segments

QUESTION = "What colour is the cat?"
CONTENTS = {
    0: QUESTION,
    1: "<image>\nIs it asleep?",
    2: "The first <image> and the second<image>: are they red?",
}


def user(content):
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("mode", ["pieces", "llava15"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_greedy_equals_running_the_whole_sequence_for_every_token(make_model, picture, greedy_ids, text_of, images, mode):
    model = make_model(tokenize_mode=mode, seed=images)
    pictures = [picture(n) for n in range(images)]
    expected = greedy_ids(model, user(CONTENTS[images]), pictures)
    assert model.generate(CONTENTS[images], pictures, max_new_tokens=24) == text_of(model, expected)


def test_earlier_turns_and_a_system_message_are_read(model, picture, greedy_ids, text_of):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Is it asleep?"},
    ]
    expected = text_of(model, greedy_ids(model, messages, [picture(1)]))
    assert generate(model, messages, [picture(1)], max_new_tokens=24) == expected
    assert generate(model, [messages, messages[:1] + messages[3:]], [picture(1), None], max_new_tokens=24)[0] == expected


def test_one_prompt_gives_a_text_and_a_list_gives_a_list(model):
    answer = model.generate(QUESTION, max_new_tokens=5)
    assert isinstance(answer, str)
    assert model.generate([QUESTION], max_new_tokens=5) == [answer] == model.generate((user(QUESTION),), max_new_tokens=5)
    assert model.generate([]) == []


def test_every_way_to_give_an_image_is_the_same(model, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture(1).save(path)
    expected = model.generate(f"<image>\n{QUESTION}", images=[picture(1)], max_new_tokens=8)
    ways = [path, str(path), [path], (picture(1),), picture(1)]
    assert [model.generate(QUESTION, images=way, max_new_tokens=8) for way in ways] == [expected] * len(ways)
    assert model.generate([QUESTION] * len(ways), images=ways, max_new_tokens=8) == [expected] * len(ways)
    assert expected != model.generate(QUESTION, images=[picture(2)], max_new_tokens=8)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.8, "top_p": 0.9, "seed": 1}])
@pytest.mark.parametrize("stop", [(), ("a", "or "), ("wak",)])
def test_the_stream_joined_is_the_answer(model, picture, options, stop):
    options = {**options, "stop": stop, "max_new_tokens": 40}
    expected = generate(model, QUESTION, [picture(1)], **options)
    pieces = list(generate_stream(model, QUESTION, [picture(1)], **options))
    assert "".join(pieces) == expected and all(pieces)
    called = []
    assert generate(model, QUESTION, [picture(1)], stream=called.append, **options) == expected
    assert called == pieces


def test_a_stream_shows_text_before_the_answer_is_complete(model, counted):
    steps = []
    with counted(model.decoder, steps):
        next(generate_stream(model, QUESTION, max_new_tokens=30))
    assert len(steps) < 5, steps


def test_an_answer_ends_with_the_end_of_sequence_token(make_model, make_tokenizer, model, greedy_ids, text_of):
    ids = greedy_ids(model, user(QUESTION))
    at = next(n for n in range(4, 24) if ids[n] not in ids[:n])
    ends = make_model(tokenizer=make_tokenizer(eos=model.tokenizer.convert_ids_to_tokens(ids[at])))
    assert ends.tokenizer.eos_token_id == ids[at]
    assert ends.generate(QUESTION, max_new_tokens=24) == text_of(model, ids[:at])


def test_a_stop_string_ends_the_answer_in_front_of_it(model):
    whole = model.generate(QUESTION, max_new_tokens=24)
    stop = whole[7:12]
    assert model.generate(QUESTION, max_new_tokens=24, stop=stop) == whole[: whole.index(stop)]
    assert model.generate(QUESTION, max_new_tokens=24, stop=["not in there", stop]) == whole[: whole.index(stop)]


def test_the_templates_stop_strings_end_the_answer(model, make_model):
    whole = model.generate(QUESTION, max_new_tokens=24)
    stopping = make_model()
    stopping.template = dataclasses.replace(stopping.template, stop=(whole[5:9],))
    assert stopping.generate(QUESTION, max_new_tokens=24) == whole[: whole.index(whole[5:9])]


def test_a_stop_string_that_is_a_special_token_ends_the_answer_at_that_token(model):
    word = model.tokenizer.convert_tokens_to_ids("a")
    answer = Answer(model, Options(stop="<s>"))
    assert [answer.push(word), answer.push(model.tokenizer.bos_token_id), answer.done] == ["a", "", True]
    answer = Answer(model, Options())
    assert [answer.push(word), answer.push(model.tokenizer.bos_token_id), answer.done] == ["a", "", False]


def test_bytes_cut_off_by_the_end_are_shown_once(model):
    half = model.tokenizer.convert_tokens_to_ids("<0xF0>")
    answer = Answer(model, Options(max_new_tokens=2))
    assert [answer.push(half), answer.push(half), answer.done] == ["", "\ufffd\ufffd", True]


def test_the_answer_has_at_most_max_new_tokens(model, counted):
    steps = []
    with counted(model.decoder, steps):
        model.generate(QUESTION, max_new_tokens=6)
    assert steps[1:] == [1] * 5, "the prompt gives the first token, each step one more, and the last token is not run"


def test_only_the_last_row_of_each_sequence_reaches_the_head_and_finished_answers_cost_nothing(model, picture, counted):
    whole = model.generate(QUESTION, max_new_tokens=12)
    decoder_rows, head_rows = [], []
    with counted(model.decoder, decoder_rows), counted(model.decoder.lm_head, head_rows):
        model.generate(
            [QUESTION, "Is it asleep?", QUESTION],
            [None, picture(1), None],
            max_new_tokens=12,
            stop=whole[3:6],
        )
    assert head_rows[0] == 3 and head_rows[-1] == 1 and head_rows[1:] == decoder_rows[1:]
    assert head_rows == sorted(head_rows, reverse=True)


def test_a_seed_repeats_the_answer_and_none_does_not(model):
    def sampled(**options):
        return model.generate(QUESTION, temperature=1.5, max_new_tokens=20, **options)

    assert sampled(seed=1) == sampled(seed=1) != sampled(seed=2)
    torch.manual_seed(0)
    first, second = sampled(), sampled()
    torch.manual_seed(0)
    assert first == sampled() != second


def test_greedy_answers_leave_the_global_random_state_alone(model):
    before = torch.get_rng_state()
    model.generate(QUESTION, max_new_tokens=3)
    assert torch.equal(before, torch.get_rng_state())


def test_generating_in_the_middle_of_training_is_in_evaluation_mode_and_changes_no_mode(make_model):
    model = make_model()
    model.decoder.dropout = torch.nn.Dropout(0.9)
    model.decoder.model.norm.register_forward_hook(lambda module, args, out: model.decoder.dropout(out))
    expected = model.generate(QUESTION, max_new_tokens=10)
    model.train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    assert model.generate(QUESTION, max_new_tokens=10) == expected
    stream = generate_stream(model, QUESTION, max_new_tokens=10)
    next(stream)
    assert modes == [module.training for module in model.modules()]
    embeds = model.decoder.embed(torch.tensor([1]))
    model.decoder(embeds, positions=torch.arange(1), segments=Segments.of([1])).sum().backward()


def test_the_prompt_and_its_answer_must_fit_the_positions(make_model, picture, counted):
    model = make_model(max_positions=128)
    steps = []
    with counted(model.decoder, steps):
        model.generate(QUESTION, max_new_tokens=1)
    room = 128 - steps[0]
    model.generate(QUESTION, max_new_tokens=room)
    with pytest.raises(LmmError, match=rf"the prompt has {128 - room} rows .* 128 positions.*max_new_tokens to {room}$"):
        model.generate(QUESTION, max_new_tokens=room + 1)
    with pytest.raises(LmmError, match=r"prompt 1 has .*: shorten the conversation$"):
        model.generate([QUESTION, QUESTION * 30], max_new_tokens=1)


@pytest.mark.parametrize(
    ("prompts", "images", "message"),
    [
        ("", None, "the prompt is empty"),
        (" \n", None, "the prompt is empty"),
        (["a", ""], None, "prompt 1 is empty"),
        (None, None, "prompts is a NoneType"),
        (3, None, "prompts is a int"),
        ({"role": "user", "content": "a"}, None, "prompts is a dict"),
        (["a", 3], None, "prompt 1 is 3"),
        (["a", user("b")[0]], None, "prompt 1 is {'role'"),
        ([[]], None, r"prompt 0 is \[\]"),
        ([{"role": "human", "content": "a"}], None, "the prompt: message 0 has the role 'human'"),
        ([{"role": "user"}], None, "the prompt: message 0"),
        ([*user("a"), {"role": "assistant", "content": "b"}], None, "the prompt: .*nothing to answer"),
        ("<image> and <image>?", 1, "the prompt has 2 <image> in its text and 1 images"),
        ("<image>?", None, "the prompt has 1 <image> in its text and 0 images"),
        (user("no marker"), 1, "the prompt has 0 <image> in its text and 1 images"),
        (["a", "b"], [None], "found 2 prompts and 1 entries of images"),
        (["a", "b"], "cat.png", "images is one picture for a list of 2 prompts"),
        ("a", {"image": 1}, "the prompt has dict as images: give a list of pictures"),
        ("a", [torch.zeros(3, 4, 4)], r"the prompt: an image is .* found a torch tensor of shape \(3, 4, 4\): give tensor.permute"),
        (["a"], [[None]], "prompt 0: an image is .* found None: leave it out"),
        ("a", "nowhere.png", "image nowhere.png cannot be opened"),
        ("half a pair \ud800", None, "the prompt: .*surrogate"),
    ],
)
def test_prompts_and_images_that_make_no_sense_are_refused(model, picture, prompts, images, message):
    images = [picture(n) for n in range(images)] if isinstance(images, int) else images
    with pytest.raises(LmmError, match=message):
        model.generate(prompts, images)
    if isinstance(prompts, (str, dict)):
        with pytest.raises(LmmError, match=message):
            generate_stream(model, prompts, images)


def test_a_corrupt_image_is_refused_by_name(model, tmp_path):
    path = tmp_path / "broken.png"
    Image.new("RGB", (40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(LmmError, match=r"broken\.png"):
        model.generate(QUESTION, images=[path])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": 3}, "did you mean 'max_new_tokens'"), ({"top_p": 2}, "top_p must be .* found 2")],
)
def test_options_that_make_no_sense_are_refused(model, options, message):
    for run in (model.generate, lambda *a, **k: generate_stream(model, *a, **k)):
        with pytest.raises(LmmError, match=message):
            run(QUESTION, **options)


def test_a_list_can_not_be_streamed(model):
    with pytest.raises(LmmError, match="one prompt"):
        model.generate([QUESTION], stream=print)
    with pytest.raises(LmmError, match="one prompt"):
        generate_stream(model, [QUESTION])


def test_a_model_without_a_tokenizer_or_a_cache_says_so(make_model, monkeypatch):
    model = make_model()
    monkeypatch.delattr(type(model.decoder), "new_cache")
    with pytest.raises(LmmError, match=r"'Transformer' can't generate: it has no new_cache"):
        model.generate(QUESTION)
    model.tokenizer = None
    with pytest.raises(LmmError, match="no tokenizer"):
        model.generate(QUESTION)


def test_weights_that_are_not_finite_are_reported(make_model):
    model = make_model()
    model.decoder.model.norm.weight.data[0] = float("nan")
    with pytest.raises(LmmError, match="not finite"):
        model.generate(QUESTION)


def test_captions_are_generated_from_images_alone(make_model, picture, greedy_ids, text_of):
    model = make_model(template="plain")
    expected = text_of(model, greedy_ids(model, user("<image>"), [picture(3)]))
    assert "\n" not in expected
    assert model.generate("", images=[picture(3)], max_new_tokens=24) == expected
