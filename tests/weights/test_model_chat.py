"""How the model of a folder is talked to is what its files say, wherever they say it, or what its caller says."""

import json
import warnings
from dataclasses import replace

import pytest

import lmmblocks as lb
from lmmblocks.chat import TEMPLATES, MarkedTemplate, answer_ends, encode_chat, stop_texts, written
from lmmblocks.chat.idefics import END as IDEFICS_END
from lmmblocks.cli import commands as cli
from lmmblocks.spec import LmmError
from lmmblocks.weights.inspect import inspect

_IMAGES = "{% for c in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
_TEXTS = "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text END }}{% endfor %}"
PARTS = _IMAGES + _TEXTS.replace("END ", "")
LLAVA15 = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': '}}{% endif %}"
    + _IMAGES
    + _TEXTS.replace("END", "+ ' '")
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    + PARTS
    + "{{ ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content[0].text + '<\\\\s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    + PARTS
    + "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    + PARTS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LINES = (
    "{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + '##\n' }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
PUBLISHED = {
    "vicuna_v1": (LLAVA15, ()),
    "mistral": (MISTRAL, ()),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
}
"""As LLaVA's of the hub come with it: contents are parts, pictures lead them. The name is that of the library's template."""


def change(path, **values):
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **values}))


PLACES = {
    "processor_config.json": lambda folder, source: change(folder / "processor_config.json", chat_template=source),
    "chat_template.json": lambda folder, source: change(folder / "chat_template.json", chat_template=source),
    "chat_template.jinja": lambda folder, source: (folder / "chat_template.jinja").write_text(source),
    "additional_chat_templates/default.jinja": lambda folder, source: [
        (folder / "additional_chat_templates").mkdir(),
        (folder / "additional_chat_templates" / "default.jinja").write_text(source),
        (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ 1 }}"),
    ],
    "tokenizer_config.json": lambda folder, source: change(folder / "tokenizer_config.json", chat_template=source),
    "tokenizer_config.json, named": lambda folder, source: change(
        folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "{{ 1 }}"}, {"name": "default", "template": source}]
    ),
}
LAYOUTS = ("hf", "next", "instructblip", "idefics", "original", "projector", "lora", "adapter over hf")
WITH_SECTIONS = ("hf", "next", "instructblip")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_chat_template_is_believed_wherever_it_stands(folder_of, layout, place):
    folder = folder_of(layout)
    PLACES[place](folder, LINES)
    model, told = lb.load(folder), inspect(folder).settings["template"]
    turns = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Why?"}]
    shown = written(model.template.render(turns, add_generation_prompt=True))
    assert shown == "Q: <image>\nWhat?##\nA: A cat.##\nQ: Why?##\nA:"
    assert told.startswith(f"its own ({place.removesuffix(', named')})")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_chat_template_is_the_librarys_and_its_prompts_have_the_ids_of_the_file(folder_of, layout, name):
    source, tokens = PUBLISHED[name]
    folder = folder_of(layout, *tokens, bos=name != "chatml")
    (folder / "chat_template.jinja").write_text(source)
    model = lb.load(folder)
    assert model.template.name in (name, "chat_template.jinja")
    parts = [{"type": "text", "text": "What is it?"}]
    text = rendered(model.tokenizer, source, parts)
    found = encode_chat([{"role": "user", "content": "What is it?"}], model.template, model.tokenizer, add_generation_prompt=True).ids
    assert found == model.tokenizer(text).input_ids
    text = rendered(model.tokenizer, source, [{"type": "image"}, *parts])
    assert written(model.template.render([{"role": "user", "content": "<image>\nWhat is it?"}], add_generation_prompt=True)) == text
    whole = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Q"}]
    ids, expected = (encode_chat(whole, way, model.tokenizer, add_generation_prompt=True).ids for way in (model.template, _without_system(name)))
    added = [1] if (name, layout) == ("chatml", "instructblip") else []  # this tokenizer begins every text, which ChatML doesn't know
    assert ids == [*added, *expected]


def rendered(tokenizer, source, content):
    """What transformers makes of one question."""
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)


def _without_system(name):
    return replace(TEMPLATES[name], system="")


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_template_of_the_library_is_found_again_by_its_name(folder_of, name):
    source, tokens = PUBLISHED[name]
    folder = folder_of("hf", *tokens, bos=name != "chatml")
    (folder / "chat_template.jinja").write_text(source)
    assert lb.load(folder).template == TEMPLATES[name]
    assert inspect(folder).settings["template"] == f"{name} (chat_template.jinja)"


def test_llavas_own_template_stays_vicunas_without_the_system_prompt_that_its_file_leaves_out(folder_of):
    folder = folder_of("hf")
    (folder / "chat_template.jinja").write_text(LLAVA15)
    assert lb.load(folder).template == _without_system("vicuna_v1")
    told = inspect(folder).settings["template"]
    assert told.startswith("vicuna_v1 (chat_template.jinja); no system prompt of its own; earlier answers end with the tokenizer's own token")


def test_what_a_chat_template_trims_is_kept_and_told(folder_of):
    folder = folder_of("hf", "<|im_start|>", "<|im_end|>", bos=False)
    (folder / "chat_template.jinja").write_text(CHATML.replace("c.text", "c.text | trim"))
    assert lb.load(folder).template == TEMPLATES["chatml"]
    assert "whitespace around contents is kept, which it takes off" in inspect(folder).settings["template"]


def test_of_files_that_differ_the_one_that_is_not_used_is_told(folder_of):
    folder = folder_of("hf")
    change(folder / "chat_template.json", chat_template=LINES)
    (folder / "chat_template.jinja").write_text(LLAVA15)
    assert inspect(folder).settings["template"] == "its own (chat_template.json); chat_template.jinja holds another chat template, which is not used"


MARKED_IMAGES = CHATML.replace("'<image>\n'", "'<v><image></v>'")


def test_markup_around_pictures_is_written_and_a_missing_line_break_told(folder_of):
    folder = folder_of("hf", "<|im_start|>", "<|im_end|>")
    (folder / "chat_template.jinja").write_text(MARKED_IMAGES)
    shown = written(lb.load(folder).template.render([{"role": "user", "content": "<image>What?"}], add_generation_prompt=True))
    assert shown == "<|im_start|>user\n<v><image></v>What?<|im_end|>\n<|im_start|>assistant\n"
    assert "ask it as '<image>question'" in inspect(folder).settings["template"]


@pytest.mark.parametrize("key", ["image_token_index", "image_token_id"])
def test_what_a_chat_template_writes_for_a_picture_is_the_token_of_the_id_that_config_json_says(folder_of, key):
    folder = folder_of("hf", "<|im_start|>", "<|im_end|>", "<|picture|>")
    (folder / "chat_template.jinja").write_text(CHATML.replace("<image>", "<|picture|>"))
    with pytest.raises(LmmError, match="it writes no '<image>' where a picture is"):
        lb.load(folder)
    values = json.loads((folder / "config.json").read_text())
    del values["image_token_index"]
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    number = next(token["id"] for token in tokens if token["content"] == "<|picture|>")
    (folder / "config.json").write_text(json.dumps({**values, key: number}))
    shown = written(lb.load(folder).template.render([{"role": "user", "content": "<image>\nWhat?"}], add_generation_prompt=True))
    assert shown == "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


BREAKS_FIRST = CHATML.replace("'<image>\n'", "'<image>'").replace("{{ c.text }}", "{{ '\n' + c.text }}")


def test_a_line_break_in_front_of_every_text_is_the_one_behind_a_picture(folder_of):
    folder = folder_of("hf", "<|im_start|>", "<|im_end|>", bos=False)
    (folder / "chat_template.jinja").write_text(BREAKS_FIRST)
    model = lb.load(folder)
    assert model.template == TEMPLATES["chatml"]
    text = rendered(model.tokenizer, BREAKS_FIRST, [{"type": "image"}, {"type": "text", "text": "What?"}])
    assert written(model.template.render([{"role": "user", "content": "<image>\nWhat?"}], add_generation_prompt=True)) == text
    assert "a question without a picture begins with its words" in inspect(folder).settings["template"]


UNFIT = {
    "date": ("{{ strftime_now('%d') }}" + CHATML, "depends on today's date"),
    "no picture": (CHATML.replace("'<image>\n'", "''"), "it writes no '<image>' where a picture is"),
    "syntax": ("{% if %}", "TemplateSyntaxError"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_chat_template_that_is_more_than_markup_is_refused_and_one_that_is_given_is_the_way_out(folder_of, case):
    source, says = UNFIT[case]
    folder = folder_of("hf", "<|im_start|>", "<|im_end|>")
    (folder / "chat_template.jinja").write_text(source)
    with pytest.raises(LmmError, match=f"chat_template.jinja can't be taken apart .*{says}.*load\\(..., template=...\\)"):
        lb.load(folder)
    assert says in inspect(folder).problems[0]
    assert lb.load(folder, template="chatml").template == TEMPLATES["chatml"]


def test_files_that_say_it_wrongly_are_refused(folder_of):
    folder = folder_of("hf")
    (folder / "chat_template.json").write_text('{"template": "x"}')
    with pytest.raises(LmmError, match="chat_template.json has no 'chat_template', found 'template'"):
        lb.load(folder)
    (folder / "chat_template.json").unlink()
    change(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(LmmError, match="holds the chat templates 'rag', expected one called 'default'"):
        lb.load(folder)
    change(folder / "tokenizer_config.json", chat_template=None)
    change(folder / "generation_config.json", eos_token_id="</s>")
    with pytest.raises(LmmError, match="eos_token_id must be a token id or a list of them, found '</s>'"):
        lb.load(folder)
    change(folder / "generation_config.json", eos_token_id=[5, 9999])
    with pytest.raises(LmmError, match=r"generation_config.json ends answers with \[9999\], which are no ids of the tokenizer"):
        lb.load(folder)


ENDS = {
    "generation_config.json": lambda folder, ids: change(folder / "generation_config.json", eos_token_id=ids),
    "config.json": lambda folder, ids: change(folder / "config.json", eos_token_id=ids),
    "config.json, text_config": lambda folder, ids: change(folder / "config.json", eos_token_id=None, text_config=_with_ends(folder, ids)),
}


def _with_ends(folder, ids):
    return {**json.loads((folder / "config.json").read_text()).get("text_config", {}), "eos_token_id": ids}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ENDS)
@pytest.mark.parametrize("several", [False, True])
def test_the_ids_that_end_an_answer_are_believed_wherever_they_stand(folder_of, tmp_path, layout, place, several):
    if layout not in WITH_SECTIONS and "text_config" in place:
        place = "config.json"  # the original's and IDEFICS' have no sections
    folder = folder_of(layout, "<a>", "<b>")
    plain = lb.load(folder)
    tokenizer, own = plain.tokenizer, {plain.tokenizer.convert_tokens_to_ids(IDEFICS_END)} if layout == "idefics" else set()
    assert answer_ends(plain.template, tokenizer) == {tokenizer.eos_token_id, *own}
    wanted = [tokenizer.convert_tokens_to_ids(token) for token in (("<a>", "<b>") if several else ("<a>",))]
    ENDS[place](folder, wanted if several else wanted[0])
    model = lb.load(folder)
    written = own or {tokenizer.eos_token_id}
    assert answer_ends(model.template, model.tokenizer) == {*wanted, *written}, "what is stated, and what the template writes after an answer"
    assert inspect(folder).settings["answers end with"].endswith(place)
    model.save(tmp_path / "again", format="native")
    again = lb.load(tmp_path / "again")
    assert again.template == model.template
    other = lb.load(tmp_path / "again", template="llava_v1")
    assert (other.template.name, answer_ends(other.template, other.tokenizer)) == ("llava_v1", {*wanted, tokenizer.eos_token_id})


def test_an_id_of_config_json_that_is_no_special_token_is_another_models(folder_of):
    folder = folder_of("hf")
    change(folder / "config.json", eos_token_id=40)
    model = lb.load(folder)
    assert answer_ends(model.template, model.tokenizer) == {model.tokenizer.eos_token_id}


def test_generation_stops_at_what_the_files_list(folder_of):
    folder = folder_of("hf")
    plain = lb.load(folder)
    whole = plain.generate("What is it?", max_new_tokens=12)
    prompt = encode_chat([{"role": "user", "content": "What is it?"}], plain.template, plain.tokenizer, mode="llava15", add_generation_prompt=True)
    first = _first_id(plain, prompt.ids)
    change(folder / "generation_config.json", eos_token_id=[first])
    assert whole and lb.load(folder).generate("What is it?", max_new_tokens=12) == ""


def _first_id(model, ids):
    import torch

    from lmmblocks.spec import Segments

    with torch.inference_mode():
        hidden_TD = model.decode(model.decoder.table[ids], torch.arange(len(ids)), Segments.of([len(ids)]))
        return int(model.decoder.head(hidden_TD)[-1].argmax())


def test_what_a_file_says_about_sampling_is_told(folder_of):
    folder = folder_of("hf")
    change(folder / "generation_config.json", do_sample=False)
    assert "decoding" not in inspect(folder).settings, "as is done here"
    change(folder / "generation_config.json", temperature=0.6, top_p=0.9)
    assert inspect(folder).settings["decoding"].startswith("generation_config.json says temperature 0.6, top_p 0.9: not followed")


def test_a_template_that_is_given_may_be_a_name_an_object_or_the_tokenizers_own(folder_of):
    folder = folder_of("hf")
    change(folder / "tokenizer_config.json", chat_template=LINES)
    mine = MarkedTemplate("mine", opening="{bos}", to_answer="\n", ending="{eos}", to_question="\n")
    assert lb.load(folder, template=mine).template == mine
    assert lb.load(folder, template="llava_v1").template is TEMPLATES["llava_v1"]
    assert lb.load(folder, template="auto").template.opening == "Q: "
    with pytest.raises(LmmError, match="lava_v1"):
        lb.load(folder, template="lava_v1")


def test_the_commands_take_a_template(folder_of, capsys, tmp_path):
    folder = folder_of("hf")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d') }}" + LINES)
    ask = ["chat", "--model", str(folder), "--prompt", "What is it?", "--max-new-tokens", "2"]
    assert cli.main(ask) == 2
    assert "depends on today's date" in (said := capsys.readouterr().err) and "--template" in said
    assert cli.main([*ask, "--template", "vicuna_v1"]) == 0
    (tmp_path / "questions.json").write_text(
        json.dumps([{"id": "1", "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat"}]}])
    )
    asked = ["eval", str(tmp_path / "questions.json"), "--images", str(tmp_path), "--model", str(folder), "--max-new-tokens", "2"]
    assert cli.main(asked) == 2
    assert cli.main([*asked, "--template", "vicuna_v1"]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_strings_that_end_an_answer_are_believed_and_kept(folder_of, tmp_path, layout):
    folder = folder_of(layout)
    change(folder / "generation_config.json", stop_strings=["picture", "##"])
    model = lb.load(folder)
    assert set(stop_texts(model.template, model.tokenizer)) >= {"picture", "##"}
    for format in ("native", "hf") if layout == "hf" else ("native",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that servers have to be told of the strings
            model.save(tmp_path / format, format=format)
        assert stop_texts(lb.load(tmp_path / format).template, model.tokenizer) == stop_texts(model.template, model.tokenizer)
    asked = lb.load(tmp_path / "native", template="llava_v1")
    assert asked.template.name == "llava_v1" and set(asked.template.stops) == {"picture", "##"}


def test_an_answer_is_cut_in_front_of_a_stop_string_of_the_files(folder_of):
    folder = folder_of("hf")
    whole = lb.load(folder).generate("What is it?", max_new_tokens=12)
    word = whole.split()[1]
    change(folder / "generation_config.json", stop_strings=word)
    assert lb.load(folder).generate("What is it?", max_new_tokens=12) == whole[: whole.index(word)]


@pytest.mark.parametrize("said", [[""], [3], {"a": 1}])
def test_stop_strings_that_are_none_are_refused(folder_of, said):
    folder = folder_of("hf")
    change(folder / "generation_config.json", stop_strings=said)
    with pytest.raises(LmmError, match="stop_strings must be a string or a list of them"):
        lb.load(folder)


SETTINGS = {
    "repetition_penalty": (1.05, 1.0),
    "no_repeat_ngram_size": (3, 0),
    "suppress_tokens": ([3, 4], []),
    "begin_suppress_tokens": ([3], None),
    "bad_words_ids": ([[3]], []),
    "forced_bos_token_id": (0, None),
    "sequence_bias": ([[[3], -1.0]], []),
    "min_new_tokens": (5, 0),
    "num_beams": (4, 1),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_would_give_another_answer_is_told_on_loading(folder_of, recwarn, key):
    """``generate`` of transformers follows these files, also where nothing is drawn."""
    folder = folder_of("hf")
    told, untold = SETTINGS[key]
    change(folder / "generation_config.json", **{key: untold}, temperature=0.7, top_p=0.9, do_sample=True)
    lb.load(folder)
    assert not [one for one in recwarn if "generation_config" in str(one.message)]
    change(folder / "generation_config.json", **{key: told})
    with pytest.warns(UserWarning, match=f"says {key} .*, which is not computed here"):
        lb.load(folder)
    assert key in inspect(folder).settings["decoding"]
