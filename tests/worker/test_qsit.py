"""Scores and loading, compared with the results of the model README's procedure for the golden images."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.image_processing_utils import select_best_resolution

from qsit.errors import CheckpointError
from qsit.rating import ANSWER, PROMPT, Score
from tests.support.paths import GOLDEN
from tests.support.varlen import varlen_attn
from worker.inference import attention
from worker.inference.forward import LanguageModel
from worker.inference.image_encoder import ImageEncoder
from worker.inference.loading import load
from worker.inference.prompts import Prompts
from worker.inference.tiles import Prepared
from worker.qsit import QSit

CHECKPOINT = GOLDEN / "checkpoint"
EXPECTED = json.loads((GOLDEN / "golden.json").read_text())
IMAGES = EXPECTED["images"]
COUNT = len(IMAGES)

Json = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> QSit:
    return QSit.load(str(CHECKPOINT))


@pytest.fixture(scope="module")
def prepared(model: QSit) -> list[Prepared]:
    """The golden images, in their order in golden.json."""
    return [model.prepare(picture(expected["image"])) for expected in IMAGES]


@pytest.fixture(scope="module")
def packing() -> Any:
    """Transformers' model, whose features it packs itself."""
    return LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT).model


@pytest.fixture(scope="module")
def encoder(model: QSit) -> ImageEncoder:
    return ImageEncoder(LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT).model, model.tiling)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint for the test to change."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    return folder


def picture(name: str) -> Image.Image:
    with Image.open(GOLDEN / "images" / name) as file:
        return file.convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def assert_golden(score: Score, expected: Json) -> None:
    np.testing.assert_allclose(score.logits, list(expected["logits"].values()), rtol=0, atol=1e-4)
    assert math.isclose(score.value, expected["score"], rel_tol=0, abs_tol=1e-5)
    assert math.isclose(sum(score.probabilities), 1, abs_tol=1e-9)


def change(file: Path, action: Callable[[Json], object]) -> None:
    content = json.loads(file.read_text())
    action(content)
    file.write_text(json.dumps(content))


def change_weights(folder: Path, action: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    action(weights)
    save_file(weights, file, metadata={"format": "pt"})


def rating_prompt(folder: Path) -> tuple[list[int], list[int]]:
    _, prompts, _ = load(str(folder), device="cpu", dtype="float32", revision=None)
    return prompts.encode_turn(PROMPT, ANSWER)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        QSit.load(str(folder))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_golden_images_have_their_tiles_and_tokens(model: QSit, prepared: list[Prepared]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = tokenizer(EXPECTED["prompt"], add_special_tokens=False).input_ids
    prompt_tokens = len(text) - 1 + len(EXPECTED["prefix_token_ids"])

    for image, expected in zip(prepared, IMAGES, strict=True):
        assert (image.width, image.height) == (expected["width"], expected["height"])
        assert len(image.tiles) == expected["tiles"]
        assert image.tokens + prompt_tokens == expected["tokens"]


def test_the_prompt_is_the_golden_one_to_the_last_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = tokenizer(EXPECTED["prompt"], add_special_tokens=False).input_ids
    image = json.loads((CHECKPOINT / "config.json").read_text())["image_token_index"]

    before, after = Prompts(CHECKPOINT, tokenizer, image, ()).encode_turn(PROMPT, ANSWER)

    assert [*before, image, *after] == text + EXPECTED["prefix_token_ids"]


def test_one_mixed_batch_scores_as_published(model: QSit, prepared: list[Prepared]) -> None:
    scores = model.score(prepared)

    for score, expected in zip(scores, IMAGES, strict=True):
        assert_golden(score, expected)


@pytest.mark.parametrize("size", [1, 2])
def test_small_batches_score_as_published(model: QSit, prepared: list[Prepared], size: int) -> None:
    scores = [score for start in range(0, COUNT, size) for score in model.score(prepared[start : start + size])]

    for score, expected in zip(scores, IMAGES, strict=True):
        assert_golden(score, expected)


@given(order=st.permutations(range(COUNT)), count=st.integers(2, COUNT))
@example(order=list(range(COUNT))[::-1], count=COUNT)
@settings(deadline=None, max_examples=6)
def test_any_order_scores_as_published(model: QSit, prepared: list[Prepared], order: Sequence[int], count: int) -> None:
    chosen = order[:count]

    scores = model.score([prepared[index] for index in chosen])

    for score, index in zip(scores, chosen, strict=True):
        assert_golden(score, IMAGES[index])


def test_the_same_image_twice_has_the_same_score(model: QSit, prepared: list[Prepared]) -> None:
    first, _, second = model.score([prepared[2], prepared[4], prepared[2]])

    assert_golden(first, IMAGES[2])
    assert_golden(second, IMAGES[2])


@pytest.mark.parametrize("large", [(400, 380), (2300, 2300), (3000, 40)])
def test_a_score_does_not_depend_on_other_images_of_the_batch(model: QSit, large: tuple[int, int]) -> None:
    small_image, large_image = model.prepare(noise(384, 384)), model.prepare(noise(*large))
    [alone] = model.score([small_image])

    batched, _ = model.score([small_image, large_image])

    assert math.isclose(batched.value, alone.value, rel_tol=0, abs_tol=1e-5)
    np.testing.assert_allclose(batched.logits, alone.logits, rtol=0, atol=1e-4)


def test_variable_length_attention_scores_as_published(
    model: QSit, prepared: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's code path without its kernel."""
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "supports_varlen", lambda queries: True)

    for score, expected in zip(model.score(prepared), IMAGES, strict=True):
        assert_golden(score, expected)


def test_several_vision_passes_score_as_published(model: QSit, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [model.prepare(picture(IMAGES[index]["image"])) for index in (1, 2, 3)]
    monkeypatch.setattr(model, "tiles_per_pass", 2)

    for score, expected in zip(model.score(images), IMAGES[1:4], strict=True):
        assert_golden(score, expected)


@given(width=st.integers(1, 8000), height=st.integers(1, 8000))
@example(width=1, height=1)
@example(width=1, height=8000)
@example(width=8000, height=1)
@example(width=385, height=383)
@example(width=3969, height=3136)  # a whole number of patches, were it not for rounding
@settings(deadline=None, max_examples=60)
def test_image_tokens_are_packed_as_in_transformers(
    model: QSit, encoder: ImageEncoder, packing: Any, width: int, height: int
) -> None:
    pinpoint = select_best_resolution((height, width), [list(pair) for pair in model.tiling.pinpoints])
    tiles = 1 + math.prod(pinpoint) // model.tiling.size**2
    generator = torch.Generator().manual_seed(width)
    features = torch.randn(tiles, model.tiling.patches**2, len(packing.image_newline), generator=generator)
    image = Prepared(np.zeros((tiles, 0, 0, 3), np.uint8), width, height, model.tiling.tokens(width, height))

    [packed], _ = packing.pack_image_features([features], [(height, width)], image_newline=packing.image_newline)
    tokens = encoder.arrange(features, image)

    assert image.tokens == len(packed)
    torch.testing.assert_close(tokens, packed, rtol=0, atol=1e-6)


def test_extreme_shapes_are_scored(model: QSit) -> None:
    images = [model.prepare(noise(*size)) for size in ((1, 1), (1, 3000), (3000, 1))]

    for score in model.score(images):
        assert 0 <= score.value <= 1


def test_preparing_is_safe_in_many_threads(model: QSit, prepared: list[Prepared]) -> None:
    pictures = [picture(expected["image"]) for expected in IMAGES]

    with ThreadPoolExecutor(8) as pool:
        rounds = list(pool.map(model.prepare, pictures * 6))

    for index, image in enumerate(rounds):
        expected = prepared[index % COUNT]
        np.testing.assert_array_equal(image.tiles, expected.tiles)
        assert image.tokens == expected.tokens


def test_images_of_other_modes_are_prepared_as_rgb(model: QSit) -> None:
    grey = picture("astronaut_gray_300x400.png").convert("L")

    np.testing.assert_array_equal(model.prepare(grey).tiles, model.prepare(grey.convert("RGB")).tiles)


def test_bfloat16_scores_nearly_the_same(prepared: list[Prepared]) -> None:
    model = QSit.load(str(CHECKPOINT), dtype="bfloat16")

    scores = model.score(prepared)

    assert model.dtype is torch.bfloat16
    for score, expected in zip(scores, IMAGES, strict=True):
        assert math.isclose(score.value, expected["score"], rel_tol=0, abs_tol=0.05)


def test_a_rating_that_is_not_finite_is_an_error(checkpoint: Path, prepared: list[Prepared]) -> None:
    change_weights(checkpoint, lambda weights: weights["language_model.model.norm.weight"].fill_(math.nan))
    model = QSit.load(str(checkpoint))

    with pytest.raises(ValueError, match="no finite rating"):
        model.score(prepared[2:3])


def test_an_empty_batch_has_no_scores(model: QSit) -> None:
    assert model.score([]) == []


def test_a_full_device_raises_memory_error_in_one_line(
    model: QSit, prepared: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has a total capacity of 139 GiB")

    monkeypatch.setattr(LanguageModel, "__call__", run_out_of_memory)

    with pytest.raises(MemoryError, match=r"^CUDA out of memory\.$"):
        model.score(prepared[2:3])


def test_a_copy_of_the_checkpoint_scores_the_same(checkpoint: Path, prepared: list[Prepared]) -> None:
    [score] = QSit.load(str(checkpoint)).score(prepared[2:3])

    assert_golden(score, IMAGES[2])


def test_a_checkpoint_saved_by_transformers_5_scores_the_same(tmp_path: Path, prepared: list[Prepared]) -> None:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.chat_template = json.loads((CHECKPOINT / "chat_template.json").read_text())["chat_template"]
    tokenizer.save_pretrained(tmp_path)
    LlavaOnevisionImageProcessorPil.from_pretrained(CHECKPOINT).save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()

    assert rating_prompt(tmp_path) == rating_prompt(CHECKPOINT)
    assert_golden(QSit.load(str(tmp_path)).score(prepared[2:3])[0], IMAGES[2])


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "language_model", "image_newline"])
def test_a_missing_weight_is_refused(checkpoint: Path, part: str) -> None:
    change_weights(checkpoint, lambda weights: weights.pop(next(key for key in weights if part in key)))

    assert "missing or of another shape" in refused(checkpoint)


def test_a_weight_of_another_shape_is_refused(checkpoint: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["image_newline"] = weights["image_newline"][:-1].clone()

    change_weights(checkpoint, cut)

    assert "image_newline" in refused(checkpoint)


@pytest.mark.parametrize("kept", [0, 7, 100, 200_000])
def test_a_truncated_weights_file_is_refused(checkpoint: Path, kept: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])

    assert str(checkpoint) in refused(checkpoint)


def test_a_checkpoint_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()

    assert str(checkpoint) in refused(checkpoint)


def test_weights_outside_safetensors_are_not_loaded(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()

    assert str(checkpoint) in refused(checkpoint)


def test_a_checkpoint_without_a_chat_template_is_refused(checkpoint: Path) -> None:
    (checkpoint / "chat_template.json").unlink()

    assert refused(checkpoint) == f"{checkpoint} has no chat template"


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()

    assert str(checkpoint) in refused(checkpoint)


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.json"]
)
@pytest.mark.parametrize("content", ["{", ""], ids=["broken", "empty"])
def test_broken_json_is_refused(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / name).write_text(content)

    assert str(checkpoint) in refused(checkpoint)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['role'] }}", "puts 0 image tokens into a prompt, not one"),
        ("<image><image>{{ messages[0]['role'] }}", "puts 2 image tokens into a prompt, not one"),
        ("{% for %}", ""),
        ("{{ nothing.like.that }}", ""),
    ],
    ids=["no image", "two images", "syntax", "unknown name"],
)
def test_an_unusable_chat_template_is_refused(checkpoint: Path, template: str, message: str) -> None:
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template}))

    assert message in refused(checkpoint)


def test_a_chat_template_file_without_a_template_is_refused(checkpoint: Path) -> None:
    (checkpoint / "chat_template.json").write_text("{}")

    assert "chat_template" in refused(checkpoint)


def test_both_chat_templates_in_circulation_are_taken_from_the_checkpoint(checkpoint: Path) -> None:
    change(
        checkpoint / "chat_template.json",
        lambda content: content.update(
            chat_template=content["chat_template"].replace("['role'] + ' '", "['role'] + '\\n'")
        ),
    )

    before, after = rating_prompt(checkpoint)

    assert before != rating_prompt(CHECKPOINT)[0]
    assert after == rating_prompt(CHECKPOINT)[1]


@pytest.mark.parametrize(
    "config", [{"vision_feature_layer": -2}, {"vision_feature_select_strategy": "default"}], ids=str
)
def test_other_vision_features_are_refused(checkpoint: Path, config: Json) -> None:
    change(checkpoint / "config.json", lambda content: content.update(config))

    assert "only all features of the vision tower's last layer are supported" in refused(checkpoint)


def test_weights_that_contradict_the_configuration_are_refused(checkpoint: Path) -> None:
    change(checkpoint / "config.json", lambda content: content["vision_config"].update(hidden_size=64))

    assert str(checkpoint) in refused(checkpoint)


def test_a_revision_that_differs_from_the_files_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="have changed"):
        QSit.load(str(checkpoint), revision="sha256-0")


def test_torchvision_is_not_imported() -> None:
    program = (
        f"import sys; from worker.qsit import QSit; QSit.load({str(CHECKPOINT)!r}); print('torchvision' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert done.stdout == "False\n"
