"""Templates by name, as fields, and from other packages; and a model saved with one that is not in the registry."""

import sys
import types
from dataclasses import dataclass, field, replace

import pytest

import lmmblocks as lb
from lmmblocks import registry
from lmmblocks.chat import (
    TEMPLATES,
    CaptionTemplate,
    Piece,
    get_template,
    template_from_dict,
    template_setting,
    template_to_dict,
)
from lmmblocks.config import LMMConfig
from lmmblocks.spec import LmmError

PIRATE = replace(TEMPLATES["vicuna_v1"], system="You are a pirate.")


@dataclass(frozen=True)
class Shouting:
    """A user's template."""

    name: str = "shouting"
    stop: tuple[str, ...] = ("!",)
    times: int = 2

    def render(self, messages, *, add_generation_prompt=False):
        return [Piece("text", messages[0]["content"].upper() + "!" * self.times), Piece("eos", train=True)]


@dataclass(frozen=True)
class Secret(Shouting):
    words: list = field(default_factory=list)
    key: object = None


class WithoutFields:
    name, stop = "mine", ()

    def render(self, messages, *, add_generation_prompt=False):
        return []


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry._BUILT_IN})


@pytest.fixture
def their_module(monkeypatch):
    module = types.ModuleType("their_templates")
    module.LINES, module.Shouting = CaptionTemplate("lines", end="."), Shouting
    monkeypatch.setitem(sys.modules, "their_templates", module)
    return module


@pytest.mark.parametrize(
    "template",
    [PIRATE, CaptionTemplate("lines", end="."), replace(TEMPLATES["gemma"], name="g"), Shouting(times=3)],
)
def test_a_template_is_made_again_from_its_fields(template):
    assert template_from_dict(template_to_dict(template)) == template == get_template(template_setting(template))


def test_registered_templates_are_found_by_name_and_saved_by_it():
    mine = lb.register("template", "mine")(PIRATE)
    assert mine is PIRATE and get_template("mine") is PIRATE
    assert template_setting(replace(PIRATE, name="mine"))["system"] == "You are a pirate.", "another value of that name"
    lb.register("template", "shouting")(Shouting)
    assert get_template("shouting") == Shouting() and template_setting(Shouting()) == "shouting"
    with pytest.raises(LmmError, match="template 'chatml' is registered already"):
        lb.register("template", "chatml")
    assert "mine" not in TEMPLATES and "chatml" in TEMPLATES


def test_templates_of_other_packages_are_found_by_path_and_saved_by_it(their_module):
    found = get_template("their_templates:LINES")
    assert found is their_module.LINES and get_template("their_templates:Shouting") == Shouting()
    assert template_setting(found, "their_templates:LINES") == "their_templates:LINES"
    assert template_setting(replace(found, end=";"), "their_templates:LINES") == {
        "type": "caption",
        "name": "lines",
        "end": ";",
        "ends": [],
        "stops": [],
    }


def test_a_librarys_template_is_saved_by_its_name_only_while_it_is_that():
    assert template_setting(TEMPLATES["chatml"]) == "chatml"
    assert template_setting(PIRATE)["type"] == "roles"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (WithoutFields(), "'mine' .*its class .*WithoutFields is no dataclass"),
        (Secret(key=object()), "'shouting' .*not JSON serializable"),
        (Secret(words=["a"]), "'shouting' .*made again from its fields it is another"),
    ],
)
def test_a_template_that_cannot_be_written_down_is_refused(template, says):
    with pytest.raises(LmmError, match=f"template {says}.*make it a dataclass of plain values"):
        template_to_dict(template)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "mine"}, "template is a dict without a 'type', expected one of marked, roles, caption"),
        ({"type": "markd"}, "unknown type of template 'markd'; did you mean 'marked'"),
        ({"type": "caption", "nam": "x"}, "unknown field 'nam'; did you mean 'name'.; no field 'name'"),
        ({"type": "lmmblocks.spec:LmmError"}, "is no dataclass"),
        ({"type": "no_such_module:T"}, "no module 'no_such_module'"),
        (
            {"type": "marked", "name": "m", "opening": "", "to_answer": "", "ending": "", "to_question": ""},
            "ending is empty",
        ),
    ],
)
def test_fields_that_make_no_template_are_refused(values, says):
    with pytest.raises(LmmError, match=says):
        get_template(values)
    with pytest.raises(LmmError, match="template 3 is a str|expected one of plain"):
        get_template(3)


@pytest.mark.parametrize("template", [PIRATE, replace(TEMPLATES["chatml"], tokens=("<s>", "</s>"), ending="</s>"), Shouting()])
@pytest.mark.parametrize("format", ["native", "hf"])
def test_a_model_is_saved_and_loaded_with_a_template_of_its_own(make_tiny_model, tmp_path, template, format):
    model = make_tiny_model(template=template)
    assert get_template(model.config.template) == template
    model.save(tmp_path / "model", format=format)
    assert lb.load(tmp_path / "model").template == template


def test_a_template_set_after_building_is_what_is_saved(make_tiny_model, tmp_path):
    model = make_tiny_model()
    model.template = PIRATE
    model.save(tmp_path / "model")
    assert lb.load(tmp_path / "model").template == PIRATE


def test_auto_is_saved_as_what_was_derived(make_tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", source)
    model = make_tiny_model(template="auto")
    assert model.template.ending == "</s>" and model.config.template["type"] == "marked"
    assert LMMConfig.from_json(model.config.to_json()) == model.config
    model.save(tmp_path / "model", format="native")
    for path in (tmp_path / "model").glob("chat_template*"):
        path.unlink()
    assert lb.load(tmp_path / "model").template == model.template


def test_auto_without_a_tokenizer_is_refused(tiny_config):
    with pytest.raises(
        LmmError,
        match="template='auto' is derived from the tokenizer's chat template, and there is no tokenizer",
    ):
        lb.build(tiny_config, template="auto", weights="random")


def test_a_template_whose_tokens_the_tokenizer_lacks_does_not_compose(make_tiny_model):
    with pytest.raises(LmmError, match=r"don't fit together:\n- template 'chatml': .*<\|im_start\|>"):
        make_tiny_model(template="chatml")
