"""What isn't a model that can be read is named for what it is, with what to do about it."""

import gzip
import json
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import lmmblocks as lb
from lmmblocks.files.foreign import file_kind, folder_kind
from lmmblocks.spec import LmmError
from lmmblocks.weights.inspect import inspect
from lmmblocks.weights.sources import load_decoder
from lmmblocks.weights.systems.all import RELEASED

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def bare(folder, *files):
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


FOLDERS = {
    "DeepSpeed": (("global_step500/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"), r"DeepSpeed's parts .*'python zero_to_fp32.py \. "),
    "DeepSpeed inside": (("mp_rank_00_model_states.pt",), "DeepSpeed's parts .*zero_to_fp32.py"),
    "FSDP": (("pytorch_model_fsdp_0/__0_0.distcp",), "FSDP's parts .*accelerate merge-weights"),
    "Meta": (("consolidated.00.pth", "params.json", "tokenizer.model"), "own layout .*convert_llama_weights_to_hf.py"),
    "GGUF": (("model-Q4_K_M.gguf",), "GGUF files, .*give the folder of the model they were made from"),
    "archive": (("llava.tar.gz",), "archives: unpack them"),
    "shards without index": (("model-00001-of-00002.safetensors",), "model.safetensors.index.json, which says what each holds, is not"),
    "half a download": (("model.safetensors.incomplete",), "half a download"),
    "checkpoints": (("checkpoint-500/config.json", "checkpoint-1000/config.json"), "give one of these, checkpoint-1000, checkpoint-500"),
    "hub cache": (("snapshots/abc/config.json",), "repository in the hub's cache: give a snapshot inside, such as .*snapshots/abc"),
    "optimizer": (("optimizer.pt", "trainer_state.json"), "what a Trainer goes on with is there .* the model is not"),
    "flax": (("flax_model.msgpack",), "not transformers' safetensors or .bin"),
}


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.parametrize("config", [False, True], ids=["no config", "config"])
@pytest.mark.parametrize("door", [lb.load, inspect])
def test_a_folder_without_weights_is_named_for_what_it_is(saved, tmp_path, case, config, door):
    files, says = FOLDERS[case]
    folder = bare(tmp_path / "other", *files)
    if config:
        (folder / "config.json").write_bytes((saved[1] / "config.json").read_bytes())
    with pytest.raises(LmmError, match=f"(?s)holds (no weights: expected|neither lmmblocks.json).*{says}"):
        door(folder)


def test_a_snapshot_whose_links_lead_nowhere_says_so(saved, tmp_path):
    _, model = saved
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path if path.name in ("config.json", "lmmblocks.json") else tmp_path / "blobs" / path.name)
    with pytest.raises(LmmError, match="links that lead nowhere .*model.safetensors.*cp -rL"):
        lb.load(folder)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(LmmError, match="link is a link to .*gone, where nothing is"):
        lb.load(tmp_path / "link")


def test_shards_that_are_links_to_nothing_are_told_apart_from_shards_that_are_not_there(make_model, tmp_path):
    make_model().save(tmp_path / "model", shard_bytes=12000)
    shard = next((tmp_path / "model").glob("model-00002*"))
    shard.unlink()
    with pytest.raises(LmmError, match=rf"lacks 1 of \d+ shards: {shard.name}: download them$"):
        lb.load(tmp_path / "model")
    shard.symlink_to(tmp_path / "blobs" / "1")
    with pytest.raises(LmmError, match=f"lacks 1 of .*{shard.name}: download them; 1 of its files are links that lead nowhere"):
        lb.load(tmp_path / "model")


def _tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "x")


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llava/config.json", "{}")


FILES = {
    "model.gguf": (lambda path: path.write_bytes(b"GGUF\x03\x00"), "is a GGUF file"),
    "model.zip": (_zip, "is a zip archive: unpack it"),
    "model.tar": (_tar, "is a tar archive: unpack it"),
    "model.tar.gz": (lambda path: path.write_bytes(gzip.compress(b"x")), "is a gzip archive: unpack it"),
    "pointer": (lambda path: path.write_bytes(LFS), "is a Git LFS pointer"),
    "page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "is a web page"),
    "pytorch_model.bin": (lambda path: torch.save({"x": torch.zeros(1)}, path), "is a file, expected the folder that holds it"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_given_for_a_folder_is_named_for_what_it_is(tmp_path, name):
    write, says = FILES[name]
    write(tmp_path / name)
    with pytest.raises(LmmError, match=says):
        lb.load(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "lmmblocks.json", "model.safetensors", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [LFS, b"<html><body>404"], ids=["pointer", "page"])
def test_a_file_of_a_folder_that_is_something_else_is_named_for_what_it_is(saved, name, content):
    _, folder = saved
    if name == "generation_config.json":
        (folder / "lmmblocks.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(LmmError, match=f"{name}.* is a {'Git LFS pointer' if content == LFS else 'web page'}"):
        lb.load(folder)


def test_nothing_is_said_about_what_is_not_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert (folder_kind(tmp_path), file_kind(tmp_path / "notes.txt"), file_kind(tmp_path / "gone")) == ("", None, None)


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
PACKED = {
    "bitsandbytes, 4 bits": ({"quantization_config": BNB}, "uint8", ".weight", r"bitsandbytes \(4 bits\)"),
    "no word in the config": ({}, "uint8", ".weight.absmax", r"bitsandbytes \(4 bits\)"),
    "bitsandbytes, 8 bits": ({}, "int8", ".SCB", r"bitsandbytes \(8 bits\)"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "int32", ".qweight", r"gptq \(4 bits\)"),
    "awq in the text": ({"text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}}, "int32", ".qzeros", r"awq \(4 bits\)"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "float8_e4m3fn", ".weight", "fp8"),
    "int8": ({}, "int8", ".weight", "somebody: they are stored as (I8|int8)"),
}


@pytest.mark.parametrize("case", PACKED)
@pytest.mark.parametrize("door", [lb.load, inspect, load_decoder])
def test_packed_weights_are_refused_by_what_packed_them(saved, case, door):
    values, dtype, ending, says = PACKED[case]
    _, folder = saved
    (folder / "lmmblocks.json").unlink()
    known = json.loads((folder / "config.json").read_text())
    text = {**known["text_config"], **values.get("text_config", {})}
    (folder / "config.json").write_text(json.dumps({**known, **values, "text_config": text}))
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight") and "language" in name)
    tensors[name.removesuffix(".weight") + ending if ending != ".weight.absmax" else name + ".absmax"] = torch.zeros(2, 2).to(getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LmmError, match=f"the weights are quantised by {says}.*which is not read: take the folder of the unquantised"):
        door(folder)


TYPES = {
    "qwen2_vl": "give a folder of such a model, or build one of parts",
    "paligemma": "give a folder of such a model, or build one of parts",
    "llama": r"a language model alone is taken with build\(..., decoder=...\)",
    "siglip_vision_model": r"a vision tower is taken with build\(..., encoder=...\)",
    "clip": r"a vision tower is taken with build\(..., encoder=...\)",
    None: "give the config.json that was saved with the model",
}


@pytest.mark.parametrize("kind", TYPES)
def test_another_type_of_model_gets_the_list_of_all_that_are_read(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} if kind else {"hidden_size": 8}))
    listed = ", ".join(repr(system.model_type) for system in RELEASED if system.model_type)
    says = f"has model_type .*, expected one of {listed} of transformers, or of 'llava'.*'llava_qwen' with 'mm_vision_tower' beside"
    with pytest.raises(LmmError, match=f"{says}, the original LLaVA's, or of 'qwen' with a section 'visual', the original Qwen-VL's: {TYPES[kind]}"):
        lb.load(tmp_path)
    if kind in ("qwen2_vl", None):
        with pytest.raises(LmmError, match=says):
            inspect(tmp_path)


def test_a_projector_beside_a_config_of_transformers_has_its_own_words(make_model, tmp_path, original):
    folder = original.projector(make_model(), tmp_path / "stage1")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LmmError, match="has no 'mm_vision_tower', expected the config that LLaVA's training writes beside mm_projector.bin"):
        lb.load(folder, base=tmp_path)


def test_a_trainers_checkpoint_loads_and_says_where_its_tokenizer_is(make_model, tmp_path, original):
    model = make_model()
    folder = original.full(model, tmp_path / "run" / "checkpoint-500", vision=True)
    for path in folder.glob("*token*"):
        path.rename(tmp_path / "run" / path.name)
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin"):
        (folder / name).write_bytes(b"x")
    assert lb.load(folder).tokenizer is None
    assert any(entry.endswith("the folder above holds one") for entry in inspect(folder).missing)
