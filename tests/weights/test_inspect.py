"""A folder is described from configs and headers: what it is, its blocks, what is missing, and no weight is read."""

import json

import pytest
import torch

from lmmblocks.cli import commands as cli
from lmmblocks.spec import LmmError
from lmmblocks.weights.files import tensors as weight_files
from lmmblocks.weights.inspect import inspect


@pytest.fixture(autouse=True)
def weights_stay_unread(monkeypatch):
    """Reading a tensor fails."""

    def refuse(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(weight_files._Safetensors, "read", refuse)
    monkeypatch.setattr(weight_files.BinFile, "read", refuse)


def counts(model):
    return {name: sum(p.numel() for p in part.parameters()) for name, part in list(model.parts.items())[:3]}


@pytest.mark.parametrize("format", ["hf", "native", "llava"])
def test_a_saved_model_is_described_whole(make_model, tmp_path, format):
    model = make_model(template="llava_v1")
    model.save(tmp_path / "out", format=format, dtype=torch.bfloat16)
    found = inspect(tmp_path / "out")
    assert {part.name: part.parameters for part in found.parts} == counts(model)
    assert {part.dtypes for part in found.parts} == {("bfloat16",)}
    assert found.image_tokens == {"336x336": 4, "640x480": 4, "1000x300": 4}
    assert found.settings["template"] == "llava_v1 (lmmblocks.json)"
    assert found.settings["answers end with"] == "</s> (id 2), said in template and tokenizer"
    assert found.settings["tokenizer"] == "inside"
    assert found.settings["preprocessing"].startswith("pad to a square with (122, 116, 104), bicubic to 28x28 px")
    assert (found.missing, found.problems) == ([], [])
    assert found.weight_bytes > 2 * sum(counts(model).values())


def test_an_original_checkpoint_says_where_its_tower_comes_from(make_model, tmp_path, original):
    model = make_model()
    inside = inspect(original.full(model, tmp_path / "inside", vision=True))
    assert (inside.layout, inside.missing) == ("original LLaVA", [])
    assert inside.settings["template"] == "vicuna_v1 (LLaVA-1.5's; the files don't say)"
    beside = inspect(original.full(model, tmp_path / "beside"))
    assert beside.missing == [f"vision tower: not inside; taken from {tmp_path / 'beside' / 'clip'}"]
    assert {part.name: part.parameters for part in beside.parts} == counts(model)
    assert beside.part("encoder").dtypes == ()
    unknown = inspect(original.full(model, tmp_path / "unknown", tower=False, mm_vision_tower="somebody/clip"))
    assert unknown.problems == []
    assert unknown.missing[0] == "the vision tower 'somebody/clip' is not on this machine, so its shape is unknown"
    assert "load() takes it from the hub, somebody/clip, or from vision_tower=..." in unknown.missing[1]
    assert unknown.part("decoder").what.startswith("transformer, 2 layers, width 24")
    assert unknown.part("projector").what == "mlp, depth 2"


def test_what_lies_over_a_base_names_the_base(make_model, tmp_path, original):
    model = make_model()
    base = original.base(model, tmp_path / "vicuna")
    stage1 = inspect(original.projector(model, tmp_path / "stage1", _name_or_path=str(base)))
    assert stage1.layout == "original LLaVA, a projector over a base"
    assert stage1.missing[-1] == f"base: not inside; taken from {base}"
    assert (stage1.part("projector").dtypes, stage1.part("decoder").dtypes) == (("float32",), ())
    original.lora(model, tmp_path / "lora", base_model_name_or_path="lmsys/vicuna-7b-v1.5")
    original.trainables(model, tmp_path / "lora")
    original.tower(model, tmp_path / "lora" / "clip")
    lora = inspect(tmp_path / "lora")
    assert lora.settings["adapter"] == "LoRA of rank 4 on 14 weights"
    assert lora.missing[-1] == "base: not inside; load() takes it from the hub, lmsys/vicuna-7b-v1.5, or from base=..."
    assert lora.problems == []


def test_parts_alone_are_described(make_model, tmp_path, original):
    model = make_model()
    decoder, tower = inspect(original.base(model, tmp_path / "vicuna")), inspect(original.tower(model, tmp_path / "clip"))
    assert (decoder.layout, decoder.parts[0].parameters) == ("language model (llama)", counts(model)["decoder"])
    assert (tower.layout, tower.parts[0].parameters) == ("vision tower (clip_vision_model)", counts(model)["encoder"])
    assert tower.image_tokens == {"336x336": 4, "640x480": 4, "1000x300": 4}
    assert decoder.problems == tower.problems == []


def test_weights_that_do_not_fit_the_config_are_listed(saved):
    _, folder = saved
    values = json.loads((folder / "lmmblocks.json").read_text())
    values["decoder"]["layers"] = 3
    (folder / "lmmblocks.json").write_text(json.dumps(values))
    assert [problem[:45] for problem in inspect(folder).problems] == ["9 missing: language_model.model.layers.2.inpu"]


def test_the_command_prints_a_table_or_json(saved, capsys):
    _, folder = saved
    assert cli.main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    for text in ("lmmblocks, written so that transformers reads it too", "decoder", "4 for 336x336 px, 4 for 640x480 px", "float32"):
        assert text in shown
    assert max(map(len, shown.splitlines()[1:])) <= 110
    assert cli.main(["inspect", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in values["parts"]] == ["encoder", "projector", "decoder"]
    (folder / "model.safetensors").unlink()
    assert cli.main(["inspect", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder} holds no weights: expected one of model.safetensors")


def test_a_base_for_what_needs_none_is_refused_by_the_command(saved, capsys):
    _, folder = saved
    assert cli.main(["inspect", str(folder), "--base", "no/such/base"]) == 2
    said = capsys.readouterr()
    assert "leave --base 'no/such/base' out" in said.err and str(folder) in said.err and not said.out


def test_a_model_that_cannot_be_loaded_exits_with_one(make_model, tmp_path, capsys, original):
    folder = original.full(make_model(), tmp_path / "llava", mm_vision_select_feature="cls_patch")
    assert cli.main(["inspect", str(folder)]) == 1
    assert "mm_vision_select_feature='cls_patch': expected 'patch'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [(None, "it holds neither"), ('{"model_type": "t5"}', "model_type 't5', expected"), ("{", "is not JSON: line 1")],
)
def test_a_folder_of_something_else_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(LmmError, match=message):
        inspect(tmp_path)
