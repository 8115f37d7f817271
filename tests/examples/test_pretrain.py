"""The scripts that make the tiny preset's pretrained parts, and the parts that are shipped."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from examples.llava15.pretrain.__main__ import WEIGHTS, main
from examples.llava15.pretrain.contrastive import ContrastiveTask, draw_scenes, rich_scene
from examples.llava15.pretrain.documents import heldout_questions, sample_document
from examples.llava15.pretrain.drills import scene_facts
from examples.llava15.pretrain.export import export_language, export_vision
from examples.llava15.pretrain.feature_scale import with_unit_features
from examples.llava15.pretrain.language import LanguageTask, answer_weights, document_rows, plan_documents
from examples.llava15.pretrain.optimizer import make_optimizers, orthogonal
from examples.llava15.pretrain.phrases import box_weights, scene_regions
from examples.llava15.pretrain.renaming import Renaming
from examples.llava15.pretrain.timed import TimedRun, lr_factor
from examples.llava15.pretrain.tokenizer import corpus, save_tokenizer, train_tokenizer
from examples.llava15.pretrain.word_rows import embed_rows, word_rows
from examples.llava15.scenes.describe import item_phrase, position
from examples.llava15.scenes.scene import sample_scene, split_of
from examples.llava15.scenes.turns import named_once
from examples.llava15.scenes.vocabulary import COLORS, HELDOUT_SHAPE_PAIRS, SHAPES, WORDS
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Segments
from lmmblocks.weights.sources import load_encoder

TINY_VISION = CLIPConfig(dim=32, layers=3, heads=2, mlp_dim=64, image_size=112, patch=14)
TINY_LANGUAGE = TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=48, vocab=7, max_positions=512)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain") / "tokenizer"
    save_tokenizer(train_tokenizer(corpus(600)), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)


@pytest.mark.parametrize(
    "text",
    [
        "There is a red circle at the top left.",
        " [0.12, 0.34, 0.56, 0.78]",
        '[{"color": "pink", "shape": "star"}, {"digit": 7}]',
        "红色的是什么形状？\n请用一个词回答。",
        "naïve wörds, 😀 and  two  spaces\n\n</s> in text",
    ],
)
def test_tokenizer_decodes_to_the_same_text(tokenizer, text: str) -> None:
    encoder = text_encoder(tokenizer)
    assert encoder.decode(encoder.encode(text)) == text
    assert 0 not in encoder.encode(text), "bytes stand in for unknown characters, <unk> never does"


def test_tokenizer_has_llamas_special_ids_and_bytes(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]) == [0, 1, 2, 3, 258]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer("a").input_ids[0] == 1
    assert text_encoder(tokenizer).prefix == "first"


def test_words_of_the_scenes_are_one_token_and_boxes_sixteen(tokenizer) -> None:
    encode = text_encoder(tokenizer).encode
    split = [word for word in (*COLORS, *SHAPES, *WORDS) if len(encode(f" {word}")) != 1]
    assert split == []
    assert len(encode(" [0.12, 0.34, 0.56, 0.78]")) == 16
    assert len(encode(" 1234")) == 5, "digits are split"


def test_box_weights_are_the_covered_share_of_each_patch() -> None:
    box = torch.tensor([[0.25, 0.0, 0.625, 0.5]])  # patches 2..4 (and none of 5) of the 8 columns, rows 0..3
    covered = torch.zeros(8, 8)
    covered[:4, 2:5] = 1
    assert torch.allclose(box_weights(box, 8)[0], covered.flatten())
    assert torch.allclose(box_weights(torch.tensor([[0.0, 0.0, 1 / 16, 1 / 16]]), 8)[0, 0], torch.tensor(0.25))


def test_no_heldout_combination_is_drawn_for_pretraining(tokenizer) -> None:
    rng = random.Random(0)
    scenes = draw_scenes(rng, "train", 400) + [rich_scene(rng) for _ in range(200)]
    assert {split_of(scene) for scene in scenes} == {"train"}
    phrases = {region.phrases.get("item") for scene in scenes for region in scene_regions(scene, 0)}
    heldout = {f"{color} {shape}" for color, shape in HELDOUT_SHAPE_PAIRS}
    assert len(phrases) > 80 and not phrases & heldout
    encoder = text_encoder(tokenizer)
    documents = [sample_document(rng, tokenizer) for _ in range(150)]
    texts = [encoder.decode([i for i in document.tokens.ids if i != IMAGE_TOKEN]) for document in documents]
    assert not [text for text in texts for pair in heldout if f" {pair}" in text]
    bags = {encoder.decode(list(bag)) for document in documents for rows in document.scenes for bag in rows}
    assert len(bags) > 100
    assert not [bag for bag in bags for pair in heldout if set(pair.split()) <= set(bag.split()) and "word" not in bag]


def test_contrastive_steps_lower_the_loss_of_their_batch() -> None:
    torch.manual_seed(0)
    task = ContrastiveTask(TINY_VISION, batch_images=6)
    optimizers = make_optimizers(task.modules, 1e-3, 0.0, muon=True)
    values = []
    for _ in range(4):
        torch.manual_seed(1)  # the same random mix of patches every time
        total = sum(task.losses(0).values())
        task.modules.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
        values.append(total.item())
    assert values == sorted(values, reverse=True), values
    assert all(p.grad is not None for n, p in task.encoder.named_parameters()), "every layer of the tower learns"


def test_answers_are_told_apart_from_other_text(tokenizer) -> None:
    documents = [sample_document(random.Random(seed), tokenizer) for seed in range(12)]
    plan, weights_R = plan_documents(documents)
    text = [i for document in documents for i in document.tokens.ids[1:] if i != IMAGE_TOKEN]
    assert plan.targets.tolist() == text
    assert plan.total_rows == sum(document_rows(document) for document in documents)
    supervised = [label for document in documents for label in document.tokens.labels if label != IGNORE_LABEL]
    assert plan.targets[weights_R > 0].tolist() == supervised
    answers, _ = plan_documents(documents, answers_only=True)
    assert answers.targets.tolist() == supervised


def test_an_answer_weighs_the_root_of_its_length() -> None:
    ignore = IGNORE_LABEL
    weights = answer_weights([ignore, 5, 6, 7, 8, ignore, 9, 2])
    assert weights == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0, 2**-0.5, 2**-0.5])


def test_a_scenes_rows_name_its_items_where_they_are(tokenizer) -> None:
    encoder = text_encoder(tokenizer)
    for seed in range(40):
        rng = random.Random(seed)
        scene = sample_scene(rng, "train")
        rows = word_rows(scene, rng, tokenizer)
        said = [set(encoder.decode(list(bag)).split()) for bag in rows]
        allowed = [{*item_phrase(item).split(), *position(item).split()} for item in scene.items]
        signs = [{item.color, "sign"} if item.kind == "word" else set() for item in scene.items]
        assert len(rows) in (16, 25, 36, 64)
        assert all(any(bag <= words | sign for words, sign in zip(allowed, signs)) for bag in said)
        assert all(any(words <= bag for bag in said) for words in allowed), "one row says all of an item"


def test_a_renamed_document_says_the_same_in_other_words(tokenizer) -> None:
    renaming = Renaming.of(tokenizer)
    assert len(renaming.names) == len(COLORS) + len(SHAPES) and len(renaming.others) > 30
    renamed = 0
    for seed in range(80):
        document = sample_document(random.Random(seed), tokenizer)
        if not renaming.applies_to(document) or not set(renaming.names) & set(document.tokens.ids):
            continue
        other = renaming.renamed(document, random.Random(seed))
        renamed += 1
        assert not set(renaming.names) & set(other.tokens.ids)
        pairs = set(zip(document.tokens.ids, other.tokens.ids))
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}), "one word for one word"
        bags = [zip(*each) for rows in zip(document.scenes, other.scenes) for each in zip(*rows)]
        assert {pair for bag in bags for pair in bag if pair[0] in dict(pairs)} <= pairs
        hidden = [label == IGNORE_LABEL for label in document.tokens.labels]
        assert [label == IGNORE_LABEL for label in other.tokens.labels] == hidden
        assert [i for i, h in zip(other.tokens.ids, hidden) if not h] == [x for x in other.tokens.labels if x >= 0]
    assert renamed > 10


def test_rows_are_sums_of_embeddings(tokenizer_folder: Path) -> None:
    table = LanguageTask(tokenizer_folder, TINY_LANGUAGE).decoder.table.detach()
    torch.manual_seed(0)
    scenes = [((5, 9), (), (7,)) * 100] * 300
    rows = embed_rows(scenes, table).view(300, 100, 3, -1)
    wanted = torch.stack([table[5] + table[9], table[0] * 0, table[7]])
    lengths = (rows.mean(1)[:, 0] @ wanted[0]) / wanted[0].square().sum()
    assert 0.9 < lengths.min() < 1.2 and 7 < lengths.max() < 8.5
    rest = rows / lengths[:, None, None, None] - wanted
    noise = rest.std(1).mean(-1) / table.std()
    assert 0.2 < noise.min() < 0.4 and 1.1 < noise.max() < 1.4
    shared = rest.mean(1).norm(dim=-1) / table.std() / table.shape[1] ** 0.5
    assert shared[:, [0, 2]].max() < 0.35 and shared[:, 1].max() > 1.5
    assert embed_rows([], table).shape == (0, 32)


def test_facts_of_a_scene_are_true() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        scene = sample_scene(rng, "train")
        facts: dict[str, set[str]] = {}
        for key, answer in scene_facts(scene, rng):
            facts.setdefault(key, set()).add(answer)
        assert all(len(answers) == 1 for key, answers in facts.items() if "\n" not in key), facts
        assert facts["objects"] == {str(len(scene.items))}
        for item in named_once(scene):
            assert facts[item_phrase(item)] == {position(item)}


def test_language_steps_lower_the_loss_of_their_batch(tokenizer_folder: Path) -> None:
    torch.manual_seed(0)
    task = LanguageTask(tokenizer_folder, TINY_LANGUAGE, batch_tokens=300)
    optimizers = make_optimizers(task.modules, 2e-3, 0.0, muon=False)
    values = []
    for _ in range(4):
        total = sum(task.losses(0).values())
        task.modules.zero_grad()
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
        values.append(total.item())
    assert values == sorted(values, reverse=True), values


def test_validation_asks_every_task_about_heldout_scenes(tokenizer) -> None:
    questions = list(heldout_questions(random.Random(0), 2, tokenizer))
    names = [name for name, _ in questions]
    assert all(names.count(name) == 2 for name in names) and len(set(names)) > 10
    assert sum(bool(document.scenes) for _, document in questions) == len(set(names)) - 2  # all but text and box


def test_exported_vision_tower_equals_transformers(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, CLIPVisionModel

    torch.manual_seed(0)
    ours = TINY_VISION.build()
    export_vision(ours, tmp_path / "vision", {}, torch.float32)
    theirs, report = CLIPVisionModel.from_pretrained(str(tmp_path / "vision"), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    pixels = torch.randn(2, 3, 112, 112)
    states = theirs(pixels, output_hidden_states=True).hidden_states
    found = ours.vision_model.hidden_states(pixels, frozenset({2, 3}))
    for layer in (2, 3):
        torch.testing.assert_close(found[layer], states[layer], rtol=1e-5, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(str(tmp_path / "vision"), local_files_only=True)
    assert processor.crop_size["height"] == 112


def test_exported_features_have_the_size_of_one_and_the_tower_computes_the_same() -> None:
    torch.manual_seed(0)
    ours, pixels = TINY_VISION.build(), torch.randn(4, 3, 112, 112)
    for name, parameter in ours.named_parameters():
        if ".fc2." in name:
            parameter.data *= 200
    scaled = with_unit_features(ours, pixels)
    before, after = (tower(pixels).patches for tower in (ours, scaled))
    assert before.std() > 2 and 0.7 < after.std() < 1.42
    factor = 2.0 ** torch.log2(after.std() / before.std()).round()
    torch.testing.assert_close(after, before * factor)
    last = [tower.vision_model.post_layernorm(tower.vision_model.hidden_states(pixels, frozenset({3}))[3]) for tower in (ours, scaled)]
    torch.testing.assert_close(*last)


def test_exported_language_model_equals_transformers(tokenizer_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    task = LanguageTask(tokenizer_folder, TINY_LANGUAGE)
    export_language(task.decoder, tokenizer_folder, tmp_path / "language", {}, torch.float32)
    theirs, report = AutoModelForCausalLM.from_pretrained(str(tmp_path / "language"), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    ids = AutoTokenizer.from_pretrained(str(tmp_path / "language"), local_files_only=True)("A red star.").input_ids
    assert ids[0] == 1
    plan = plan_splice([ids], [[]])
    logits = task.decoder.head(task.hidden(plan, []))
    torch.testing.assert_close(logits, theirs(torch.tensor([ids])).logits[0], rtol=1e-5, atol=1e-5)


def test_resumed_run_goes_on_where_it_stopped(tokenizer_folder: Path, tmp_path: Path) -> None:
    def run(minutes: float) -> TimedRun:
        return TimedRun(
            minutes,
            tmp_path / "run",
            tmp_path / "weights",
            lr=1e-3,
            weight_decay=0.0,
            muon=False,
            log_steps=1,
        )

    task = LanguageTask(tokenizer_folder, TINY_LANGUAGE, batch_tokens=100)
    task.evaluate = lambda: {}  # type: ignore[method-assign]
    first = run(0.01)
    first.train(task)
    with pytest.raises(FileExistsError, match="--resume"):
        run(0.02).train(task)
    again = LanguageTask(tokenizer_folder, TINY_LANGUAGE, batch_tokens=100)
    again.evaluate = lambda: {}  # type: ignore[method-assign]
    second = run(0.0)  # no time left: it loads, and exports what it loaded
    second.train(again, resume=True)
    assert (second.step, second.elapsed_s) == (first.step, first.elapsed_s)
    for name, value in task.decoder.state_dict().items():
        assert torch.equal(value, again.decoder.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps[: first.step] == list(range(1, first.step + 1))


def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values() -> None:
    torch.manual_seed(0)
    for shape in ((2, 24, 64), (2, 64, 24)):
        matrices = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        levelled = u.mT @ orthogonal(matrices) @ v.mT
        diagonal = levelled.diagonal(dim1=1, dim2=2)
        assert diagonal.min() > 0.6 and diagonal.max() < 1.3, diagonal
        torch.testing.assert_close(levelled, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


def test_every_parameter_has_exactly_one_optimizer() -> None:
    task = ContrastiveTask(TINY_VISION)
    muon, adamw = make_optimizers(task.modules, 1e-3, 0.1, muon=True)
    owned = [p for o in (muon, adamw) for group in o.param_groups for p in group["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(task.modules.parameters()))
    assert len(muon.param_groups[0]["params"]) == TINY_VISION.layers * 6 + 2 * 3, "six a tower layer, three a text layer"


def test_learning_rate_warms_up_and_falls_with_the_clock() -> None:
    assert lr_factor(0, 100, 0.0) == pytest.approx(0.01)
    assert lr_factor(99, 100, 0.0) == pytest.approx(1.0)
    assert lr_factor(500, 100, 1.0) == pytest.approx(0.01)
    assert lr_factor(500, 100, 0.5) == pytest.approx(0.505)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vision", "--minutes", "0", "--resume"], "nothing to resume"),
        (["language", "--minutes", "0"], "no tokenizer in"),
        (["vision", "--minutes", "-1"], "--minutes -1.0"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--out", str(tmp_path / "none"), "--export", str(tmp_path / "w")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "w").exists()


def test_shipped_weights_are_whole_and_small() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

    total_bytes = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert 0 < total_bytes <= 10_000_000, total_bytes
    for load, name in ((CLIPVisionModel, "vision"), (AutoModelForCausalLM, "language")):
        model, report = load.from_pretrained(str(WEIGHTS / name), dtype=torch.float32, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    tokenizer = AutoTokenizer.from_pretrained(str(WEIGHTS / "language"), local_files_only=True)
    assert len(tokenizer) < model.config.vocab_size == 960, "a spare row for <image>"


def test_shipped_vision_tower_computes_what_transformers_computes() -> None:
    from transformers import CLIPVisionModel

    config, state, _ = load_encoder(WEIGHTS / "vision")
    ours = config.build().eval()
    ours.load_state_dict({name: value.float() for name, value in state.items()})
    theirs = CLIPVisionModel.from_pretrained(str(WEIGHTS / "vision"), dtype=torch.float32)
    pixels = torch.randn(1, 3, 112, 112)
    states = theirs(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours(pixels).patches, states[-2][0, 1:], rtol=1e-5, atol=1e-5)


def test_shipped_language_model_computes_what_transformers_computes() -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from examples.llava15.pretrain.language import LANGUAGE

    state = load_file(str(WEIGHTS / "language" / "model.safetensors"))
    vocabulary = state["lm_head.weight"].shape[0]
    ours = TransformerConfig(**{**vars(LANGUAGE), "vocab": vocabulary}).build()
    ours.load_state_dict({name: value.float() for name, value in state.items()})
    theirs = AutoModelForCausalLM.from_pretrained(str(WEIGHTS / "language"), dtype=torch.float32)
    ids = torch.randint(3, vocabulary, (40,))
    hidden = ours(ours.embed(ids), positions=torch.arange(40), segments=Segments.of([40]))
    torch.testing.assert_close(ours.head(hidden), theirs(ids[None]).logits[0], rtol=1e-5, atol=1e-5)
