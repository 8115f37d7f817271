"""Adapters as people train them: tables as targets or saved whole, a vocabulary that has grown, biases, a config of transformers beside."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lmmblocks as lb
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.spec import LmmError
from lmmblocks.weights.inspect import inspect

TABLE, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
QUERY = "language_model.model.layers.0.self_attn.q_proj"
WRAPPER = "base_model.model.model."
RANK, ALPHA = 4, 6


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def write(folder, tensors, **values):
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **values}))
    return folder


def base_of(kind, model, tmp_path, original):
    """A base of each layout; all hold the same model."""
    if kind == "original":
        return original.full(model, tmp_path / "base", vision=True)
    model.save(tmp_path / "base", format=kind)
    return tmp_path / "base"


BASES = ("original", "hf", "native")


@pytest.mark.parametrize("kind", BASES)
def test_table_and_head_are_changed_as_an_embedding_and_a_linear_layer(make_model, tmp_path, original, kind):
    model = make_model()
    state = model.state_dict()
    a, b = noise(RANK, 20), noise(24, RANK, seed=1)  # of an embedding: A (r, vocabulary), B (width, r)
    c, d = noise(RANK, 24, seed=2), noise(20, RANK, seed=3)
    names = {f"{WRAPPER}embed_tokens.lora_embedding_A": a, f"{WRAPPER}embed_tokens.lora_embedding_B": b}
    names |= {"base_model.model.lm_head.lora_A.weight": c, "base_model.model.lm_head.lora_B.weight": d}
    again = lb.load(write(tmp_path / "lora", names), base=base_of(kind, model, tmp_path, original)).state_dict()
    scale = ALPHA / RANK
    torch.testing.assert_close(again[TABLE], state[TABLE] + scale * (b @ a).T)
    torch.testing.assert_close(again[HEAD], state[HEAD] + scale * (d @ c))


def most_error(values):
    """How far one rounding to bf16 may lie from float64 values: half a step of 8 bits, and what sums of a few products in fp32 may lose."""
    return np.ldexp(0.5, np.frexp(values)[1] - 8) + 2.0**-20 * np.abs(values).max()


@pytest.mark.parametrize("kind", BASES)
def test_a_bf16_adapter_is_added_to_a_bf16_base_in_full_precision_and_rounded_once(make_model, tmp_path, original, kind):
    """Against NumPy in float64. Factors are large beside the base, so that a product rounded by itself moves half of the sums."""
    model = make_model().bfloat16()
    base = base_of(kind, model, tmp_path, original)
    factors = {
        (QUERY, f"{WRAPPER}layers.0.self_attn.q_proj.lora_"): ((RANK, 24), (24, RANK)),
        (HEAD.removesuffix(".weight"), "base_model.model.lm_head.lora_"): ((RANK, 24), (20, RANK)),
        (TABLE.removesuffix(".weight"), f"{WRAPPER}embed_tokens.lora_embedding_"): ((RANK, 20), (24, RANK)),
    }
    stored, expected = {}, {}
    for seed, ((name, prefix), shapes) in enumerate(factors.items()):
        a, b = (10 * noise(*shape, seed=2 * seed + index).bfloat16() for index, shape in enumerate(shapes))
        ending = "" if "embedding" in prefix else ".weight"
        stored |= {f"{prefix}A{ending}": a, f"{prefix}B{ending}": b}
        product = b.double().numpy() @ a.double().numpy() * (ALPHA / RANK)
        before = model.state_dict()[f"{name}.weight"].double().numpy()
        expected[f"{name}.weight"] = before + (product.T if "embedding" in prefix else product)
    again = lb.load(write(tmp_path / "lora", stored), base=base).state_dict()
    for name, values in expected.items():
        assert again[name].dtype == torch.bfloat16
        error = np.abs(again[name].double().numpy() - values)
        assert (error <= most_error(values)).all(), (name, (error / most_error(values)).max())


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("names", ["modules_to_save", "plain"])
def test_a_grown_vocabulary_is_read_with_its_tables_and_tokenizer(make_model, tmp_path, original, kind, names):
    model = make_model()
    table, head = noise(23, 24), noise(23, 24, seed=1)
    infix = ".modules_to_save.default" if names == "modules_to_save" else ""
    tensors = {f"{WRAPPER}embed_tokens{infix}.weight": table, f"base_model.model.lm_head{infix}.weight": head}
    folder = write(tmp_path / "lora", tensors, modules_to_save=["embed_tokens", "lm_head"])
    grown = lb.load(base_of(kind, model, tmp_path, original)).tokenizer
    grown.add_tokens([f"<loc{index}>" for index in range(23 - len(grown))])
    grown.save_pretrained(folder)
    again = lb.load(folder, base=tmp_path / "base")
    assert again.config.decoder.vocab == again.decoder.table.shape[0] == 23
    assert (len(again.tokenizer), torch.equal(again.state_dict()[TABLE], table), torch.equal(again.state_dict()[HEAD], head)) == (23, True, True)
    again.save(tmp_path / "merged", format="native")
    assert torch.equal(lb.load(tmp_path / "merged").decoder.table, again.decoder.table)


def test_a_table_that_grew_and_is_a_target_gets_its_saved_rows_and_its_factors(make_model, tmp_path, original):
    model = make_model()
    table, a, b, head = noise(23, 24), noise(RANK, 23, seed=1), noise(24, RANK, seed=2), noise(23, 24, seed=3)
    names = {f"{WRAPPER}embed_tokens.lora_embedding_A": a, f"{WRAPPER}embed_tokens.lora_embedding_B": b}
    names |= {f"{WRAPPER}embed_tokens.base_layer.weight": table, "base_model.model.lm_head.base_layer.weight": head}
    again = lb.load(write(tmp_path / "lora", names), base=base_of("original", model, tmp_path, original)).state_dict()
    torch.testing.assert_close(again[TABLE], table + ALPHA / RANK * (b @ a).T)
    assert torch.equal(again[HEAD], head)


def test_a_lora_run_keeps_grown_tables_beside_the_adapter(make_model, tmp_path, original):
    model = make_model()
    folder = write(tmp_path / "lora", {f"{WRAPPER}layers.0.self_attn.q_proj.lora_{k}.weight": noise(*s) for k, s in (("A", (4, 24)), ("B", (24, 4)))})
    table, head = noise(22, 24), noise(22, 24, seed=1)
    beside = {f"{WRAPPER}embed_tokens.weight": table, "base_model.model.lm_head.weight": head}
    torch.save(beside, folder / "non_lora_trainables.bin")
    again = lb.load(folder, base=base_of("original", model, tmp_path, original)).state_dict()
    assert torch.equal(again[TABLE], table) and torch.equal(again[HEAD], head)


def test_a_vocabulary_that_grew_without_its_rows_is_refused_in_words(make_model, tmp_path, original):
    names = {"base_model.model.lm_head.lora_A.weight": noise(RANK, 24), "base_model.model.lm_head.lora_B.weight": noise(23, RANK)}
    folder = write(tmp_path / "lora", names)
    with pytest.raises(LmmError, match="its vocabulary grew by 3, and the new rows are not in the adapter: save it with save_embedding_layers=True"):
        lb.load(folder, base=base_of("original", make_model(), tmp_path, original))
    both = {f"{WRAPPER}embed_tokens.weight": noise(23, 24), "base_model.model.lm_head.weight": noise(22, 24)}
    with pytest.raises(LmmError, match="table and head have rows for 22 and 23 tokens"):
        lb.load(write(tmp_path / "both", both), base=tmp_path / "base")


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("infix", ["", ".base_layer"])
def test_trained_biases_take_the_place_of_the_bases(make_model, tmp_path, bias, infix):
    model = make_model(decoder=TransformerConfig(dim=24, layers=2, heads=2, kv_heads=1, ffn_dim=32, vocab=20, max_positions=64, qkv_bias=True))
    model.save(tmp_path / "base", format="native")
    a, b, trained = noise(RANK, 24), noise(24, RANK, seed=1), noise(24, seed=2)
    module = f"{WRAPPER}layers.0.self_attn.q_proj"
    names = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, f"{module}{infix}.bias": trained}
    again = lb.load(write(tmp_path / "lora", names, bias=bias), base=tmp_path / "base").state_dict()
    assert torch.equal(again[f"{QUERY}.bias"], trained)
    torch.testing.assert_close(again[f"{QUERY}.weight"], model.state_dict()[f"{QUERY}.weight"] + ALPHA / RANK * (b @ a))


def test_a_config_of_transformers_beside_an_adapter_is_that_of_its_base(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "base")
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"  # as transformers 5 calls it
    a, b = noise(RANK, 24), noise(24, RANK, seed=1)
    folder = write(tmp_path / "lora", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, base_model_name_or_path=str(tmp_path / "base"))
    (folder / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    again = lb.load(folder).state_dict()[f"{QUERY}.weight"]
    torch.testing.assert_close(again, model.state_dict()[f"{QUERY}.weight"] + ALPHA / RANK * (b @ a))


def table_and_head(model):
    state = model.state_dict()
    return state[TABLE], state[HEAD]


TABLE_FACTORS = {f"{WRAPPER}embed_tokens.lora_embedding_A": noise(RANK, 20), f"{WRAPPER}embed_tokens.lora_embedding_B": noise(24, RANK, seed=1)}
HEAD_FACTORS = {"base_model.model.lm_head.lora_A.weight": noise(RANK, 24, seed=2), "base_model.model.lm_head.lora_B.weight": noise(20, RANK, seed=3)}
CHANGE = {
    "table": ALPHA / RANK * (noise(24, RANK, seed=1) @ noise(RANK, 20)).T,
    "head": ALPHA / RANK * noise(20, RANK, seed=3) @ noise(RANK, 24, seed=2),
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("trained", ["table", "head", "both"])
def test_of_a_tied_base_the_end_that_was_trained_is_changed_and_the_other_is_not(make_model, tmp_path, original, kind, trained):
    """Against PEFT's unmerged model, which is what was trained: its merge writes both changes into the one tensor that the ends share."""
    model = make_model(tied=True)
    before = model.state_dict()[TABLE]
    tensors = {**(TABLE_FACTORS if trained != "head" else {}), **(HEAD_FACTORS if trained != "table" else {})}
    again = lb.load(write(tmp_path / "lora", tensors), base=base_of(kind, model, tmp_path, original))
    table, head = table_and_head(again)
    torch.testing.assert_close(table, before + CHANGE["table"] if trained != "head" else before)
    torch.testing.assert_close(head, before + CHANGE["head"] if trained != "table" else before)
    assert not again.config.decoder.tied and again.decoder.lm_head.weight is not again.decoder.model.embed_tokens.weight
    again.save(tmp_path / "merged", format="native")
    assert all(map(torch.equal, table_and_head(lb.load(tmp_path / "merged")), (table, head)))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_of_a_tied_base_the_end_that_is_saved_whole_is_replaced_alone(make_model, tmp_path, name):
    model = make_model(tied=True)
    model.save(tmp_path / "base", format="native")
    whole = noise(20, 24, seed=5)
    place = f"{WRAPPER}{name}.weight" if name == "embed_tokens" else f"base_model.model.{name}.weight"
    again = lb.load(write(tmp_path / "lora", {place: whole}, modules_to_save=[name]), base=tmp_path / "base")
    expected = [model.state_dict()[TABLE]] * 2
    expected[name == "lm_head"] = whole
    assert all(map(torch.equal, table_and_head(again), expected))


def test_of_a_tied_base_both_ends_stay_one_where_they_were_trained_as_one_or_only_grew(make_model, tmp_path):
    model = make_model(tied=True)
    model.save(tmp_path / "base", format="native")
    whole = noise(20, 24, seed=5)
    both = {f"{WRAPPER}embed_tokens.weight": whole, "base_model.model.lm_head.weight": whole.clone()}
    together = write(tmp_path / "together", both, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    grown = write(tmp_path / "grown", {f"{WRAPPER}embed_tokens.weight": noise(23, 24)})
    for folder, table in ((together, whole), (grown, noise(23, 24))):
        again = lb.load(folder, base=tmp_path / "base")
        assert again.config.decoder.tied and all(torch.equal(each, table) for each in table_and_head(again))


def test_a_key_that_nobody_here_knows_is_refused_and_one_that_says_nothing_is_not(make_model, tmp_path):
    make_model().save(tmp_path / "base")
    off = write(tmp_path / "off", HEAD_FACTORS, new_maths=None, use_dora=False, kasa_config={}, lora_dropout=0.1, target_modules=["lm_head"])
    lb.load(off, base=tmp_path / "base")
    for index, (setting, said) in enumerate(
        [
            ({"new_maths": 2}, "found new_maths=2"),
            ({"kasa_config": {"beta": 1.0}}, "found kasa_config={'beta': 1.0}"),
            ({"use_bdlora": {"nblocks": 2}}, "found use_bdlora="),
            ({"init_lora_weights": "lora_ga"}, "found init_lora_weights='lora_ga', which changes the base"),
            ({"init_lora_weights": "pissa_niter_4"}, "found init_lora_weights='pissa_niter_4', which changes the base"),
            ({"peft_type": "ADALORA"}, "found peft_type='ADALORA'"),
        ]
    ):
        folder = write(tmp_path / str(index), HEAD_FACTORS, **setting)
        with pytest.raises(LmmError, match=f"only plain LoRA is merged, {said}"):
            lb.load(folder, base=tmp_path / "base")
        assert any(said in problem for problem in inspect(folder, base=tmp_path / "base").problems)


def test_the_scale_is_alpha_over_the_rank_of_each_module(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "base")
    modules = [f"{WRAPPER}layers.{index}.self_attn.q_proj" for index in (0, 1)]
    tensors = {}
    for module, rank in zip(modules, (RANK, 2)):
        tensors |= {f"{module}.lora_A.weight": noise(rank, 24), f"{module}.lora_B.weight": noise(24, rank, seed=1)}
    patterns = dict(rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={r".*1\.self_attn\.q_proj": 10})
    folders = (write(tmp_path / name, tensors, **patterns, use_rslora=name == "root") for name in ("plain", "root"))
    plain, root = (lb.load(folder, base=tmp_path / "base").state_dict() for folder in folders)
    for index, (rank, alpha) in enumerate(((RANK, ALPHA), (2, 10))):
        name = f"language_model.model.layers.{index}.self_attn.q_proj.weight"
        product = noise(24, rank, seed=1) @ noise(rank, 24)
        torch.testing.assert_close(plain[name], model.state_dict()[name] + product * alpha / rank)
        torch.testing.assert_close(root[name], model.state_dict()[name] + product * alpha / rank**0.5)


def test_a_base_of_the_hub_in_a_certain_revision_is_asked_for(make_model, tmp_path):
    make_model().save(tmp_path / "base")
    folder = write(tmp_path / "lora", HEAD_FACTORS, base_model_name_or_path="owner/name", revision="v1")
    with pytest.raises(LmmError, match=r"names the base 'owner/name' in its revision 'v1': download that one .* load\(..., base=...\)"):
        lb.load(folder)
    lb.load(folder, base=tmp_path / "base")


@pytest.mark.parametrize("setting", [{"trainable_token_indices": [1, 2]}, {"lora_bias": True}, {"use_dora": True}])
def test_what_is_more_than_factors_and_whole_tensors_is_refused_by_name(make_model, tmp_path, setting):
    make_model().save(tmp_path / "base")
    folder = write(tmp_path / "lora", {"base_model.model.lm_head.lora_A.weight": noise(4, 24)}, **setting)
    with pytest.raises(LmmError, match=f"only plain LoRA is merged, found {next(iter(setting))}="):
        lb.load(folder, base=tmp_path / "base")


def test_an_adapter_beside_whole_weights_is_refused_as_one_of_them_would_be_left_out(make_model, tmp_path):
    make_model().save(tmp_path / "base")
    folder = write(tmp_path / "lora", {"base_model.model.lm_head.lora_A.weight": noise(4, 24)})
    for path in (tmp_path / "base").iterdir():
        path.rename(folder / path.name)
    with pytest.raises(LmmError, match="holds a whole model and a LoRA adapter beside it, expected one of them"):
        lb.load(folder)


def test_inspect_describes_an_adapter_with_a_grown_vocabulary_and_a_config_of_transformers_beside(make_model, tmp_path):
    make_model().save(tmp_path / "base")
    tables = {f"{WRAPPER}embed_tokens.weight": noise(23, 24), "base_model.model.lm_head.weight": noise(23, 24)}
    folder = write(tmp_path / "lora", tables, base_model_name_or_path=str(tmp_path / "base"))
    (folder / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    found = inspect(folder)
    assert found.problems == []
    assert "23 token ids" in found.part("decoder").what
    assert found.settings["adapter"] == "LoRA of rank 0 on 0 weights, and 2 whole ones"
