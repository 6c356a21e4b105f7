"""Tiles and token counts, compared with transformers' image processor and the published numbers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from qsit.errors import CheckpointError
from tests.support.paths import GOLDEN
from worker.inference.tiles import Prepared, Tiling

CHECKPOINT = GOLDEN / "checkpoint"
EXPECTED = json.loads((GOLDEN / "golden.json").read_text())["images"]
TEXT_TOKENS = 65
"""Tokens of the golden prompts without the image."""

BIG_PIXELS = 500_000
"""The limit for generated sizes; larger images are explicit examples."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def tiling() -> Tiling:
    return Tiling.of_checkpoint(CHECKPOINT)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The configuration of the golden checkpoint, for the test to change."""
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(CHECKPOINT / name, tmp_path)
    return tmp_path


def change(file: Path, action: Callable[[Json], object]) -> None:
    content = json.loads(file.read_text())
    action(content)
    file.write_text(json.dumps(content))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def stock_tiles(image: Image.Image, **steps: Any) -> NDArray[np.uint8]:
    """Return the tiles of transformers before scaling and normalising, (tiles, height, width, 3)."""
    processor = LlavaOnevisionImageProcessorPil(**steps)
    output = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    cut: NDArray[np.uint8] = output["pixel_values"][0]
    assert cut.dtype == np.uint8
    return cut.transpose(0, 2, 3, 1)


def assert_like_stock(prepared: Prepared, image: Image.Image, **steps: Any) -> None:
    assert prepared.tiles.dtype == np.uint8
    assert (prepared.width, prepared.height) == image.size
    np.testing.assert_array_equal(prepared.tiles, stock_tiles(image, **steps), strict=True)


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected["image"])
def test_golden_images_have_the_tiles_of_transformers(tiling: Tiling, expected: Json) -> None:
    with Image.open(GOLDEN / "images" / expected["image"]) as file:
        image = file.convert("RGB")

    prepared = tiling.prepare(image)

    assert_like_stock(prepared, image)
    assert len(prepared.tiles) == expected["tiles"]
    assert prepared.tokens + TEXT_TOKENS == expected["tokens"]


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    long = draw(st.integers(1, 6000))
    short = draw(st.integers(1, max(1, min(4000, long, BIG_PIXELS // long))))
    return (long, short) if draw(st.booleans()) else (short, long)


@given(size=sizes())
@example(size=(1, 1))
@example(size=(1, 6000))
@example(size=(6000, 1))
@example(size=(6000, 4000))
@example(size=(4000, 6000))
@example(size=(385, 383))
@example(size=(383, 385))
@example(size=(2305, 2303))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_images_of_any_size_have_the_tiles_of_transformers(tiling: Tiling, size: tuple[int, int]) -> None:
    image = noise(*size)

    prepared = tiling.prepare(image)

    assert_like_stock(prepared, image)


@pytest.mark.parametrize(
    ("width", "height", "tiles", "tokens"),
    [
        (384, 384, 2, 1485),
        (512, 384, 3, 1728),
        (640, 480, 5, 2929),
        (1024, 768, 7, 4725),
        (768, 1024, 7, 4744),
        (1920, 1080, 16, 7269),
        (4000, 3000, 31, 7309),
        (6000, 4000, 25, 7329),
    ],
)
def test_counts_of_tiles_and_tokens_are_the_published_ones(
    tiling: Tiling, width: int, height: int, tiles: int, tokens: int
) -> None:
    prepared = tiling.prepare(Image.new("RGB", (width, height)))

    assert len(prepared.tiles) == tiles
    assert prepared.tokens == tiling.tokens(width, height) == tokens


def test_the_configuration_is_read_from_the_checkpoint(tiling: Tiling) -> None:
    assert tiling.size == 384
    assert tiling.patches == 27
    assert tiling.max_tiles == 9
    assert tiling.mean == tiling.std == (0.5, 0.5, 0.5)
    assert tiling.scale == pytest.approx(1 / 255, rel=1e-12)
    assert tiling.resample is Image.Resampling.BICUBIC


SMALL: Json = {
    "size": {"height": 64, "width": 64},
    "image_grid_pinpoints": [[64, 192], [192, 64], [64, 128], [128, 64]],
    "resample": 2,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tiling:
    """The tiling of a checkpoint with other sizes and bilinear resampling."""
    folder = tmp_path_factory.mktemp("small")
    vision = {"image_size": 64, "patch_size": 16}
    config = {"vision_config": vision, "image_grid_pinpoints": SMALL["image_grid_pinpoints"]}
    steps = {**SMALL, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 0.5}
    (folder / "config.json").write_text(json.dumps({**config, "vision_aspect_ratio": "anyres_max_4"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    return Tiling.of_checkpoint(folder)


def test_other_sizes_are_read_from_the_checkpoint(small: Tiling) -> None:
    assert (small.size, small.patches, small.max_tiles) == (64, 4, 4)
    assert small.pinpoints == ((64, 192), (192, 64), (64, 128), (128, 64))
    assert (small.scale, small.mean, small.std) == (0.5, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert small.resample is Image.Resampling.BILINEAR


@given(width=st.integers(1, 400), height=st.integers(1, 400))
@example(width=63, height=65)
@example(width=127, height=301)
@example(width=1, height=400)
@example(width=100, height=100)  # two pinpoints fit equally well
@settings(deadline=None, max_examples=50)
def test_tiles_of_another_size_equal_those_of_transformers(small: Tiling, width: int, height: int) -> None:
    image = noise(width, height)

    prepared = small.prepare(image)

    assert_like_stock(prepared, image, **SMALL)


@pytest.mark.parametrize("pinpoint", [[64, 320], [320, 64]], ids=["wide", "tall"])
@given(width=st.integers(1, 400), height=st.integers(1, 400))
@example(width=96, height=64)
@example(width=64, height=96)
@example(width=63, height=65)
@settings(deadline=None, max_examples=25)
def test_tiles_of_padding_alone_equal_those_of_transformers(
    small: Tiling, pinpoint: list[int], width: int, height: int
) -> None:
    image = noise(width, height)

    prepared = replace(small, pinpoints=((pinpoint[0], pinpoint[1]),)).prepare(image)

    assert_like_stock(prepared, image, **{**SMALL, "image_grid_pinpoints": [pinpoint]})


def test_preparing_does_not_change_the_image(tiling: Tiling) -> None:
    image = noise(500, 300)
    before = image.tobytes()

    tiling.prepare(image)

    assert image.tobytes() == before


def test_nested_configuration_of_transformers_5_is_read(checkpoint: Path, tiling: Tiling) -> None:
    own = checkpoint / "preprocessor_config.json"
    nested = {"processor_class": "LlavaOnevisionProcessor", "image_processor": json.loads(own.read_text())}
    (checkpoint / "processor_config.json").write_text(json.dumps(nested))
    own.unlink()

    assert Tiling.of_checkpoint(checkpoint) == tiling


def test_configuration_saved_by_transformers_5_is_read(checkpoint: Path, tiling: Tiling) -> None:
    LlavaOnevisionImageProcessorPil.from_pretrained(CHECKPOINT).save_pretrained(checkpoint)

    assert Tiling.of_checkpoint(checkpoint) == tiling


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_missing_file_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()

    with pytest.raises(CheckpointError, match=r"not a Q-SiT checkpoint.*No such file"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe"])
def test_a_file_without_a_json_object_is_refused(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)

    with pytest.raises(CheckpointError, match="not a Q-SiT checkpoint"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "vision_config"),
        ("config.json", "image_grid_pinpoints"),
        ("preprocessor_config.json", "size"),
        ("preprocessor_config.json", "image_grid_pinpoints"),
        ("preprocessor_config.json", "image_mean"),
        ("preprocessor_config.json", "image_std"),
    ],
)
def test_a_missing_value_is_refused_by_its_name(checkpoint: Path, name: str, key: str) -> None:
    change(checkpoint / name, lambda content: content.pop(key))

    with pytest.raises(CheckpointError, match=f"no value for '{key}'"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize("key", ["image_size", "patch_size"])
def test_a_missing_value_of_the_vision_tower_is_refused_by_its_name(checkpoint: Path, key: str) -> None:
    change(checkpoint / "config.json", lambda content: content["vision_config"].pop(key))

    with pytest.raises(CheckpointError, match=f"no value for '{key}'"):
        Tiling.of_checkpoint(checkpoint)


def test_tiles_that_are_not_square_are_refused(checkpoint: Path) -> None:
    change(checkpoint / "preprocessor_config.json", lambda steps: steps.update(size={"height": 384, "width": 768}))

    with pytest.raises(CheckpointError, match="384 x 768 px are not square"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize("step", ["do_resize", "do_rescale", "do_normalize"])
def test_a_required_step_that_is_off_is_refused(checkpoint: Path, step: str) -> None:
    change(checkpoint / "preprocessor_config.json", lambda steps: steps.update({step: False}))

    with pytest.raises(CheckpointError, match=f"{step} off is unsupported"):
        Tiling.of_checkpoint(checkpoint)


def test_center_cropping_is_refused(checkpoint: Path) -> None:
    change(checkpoint / "preprocessor_config.json", lambda steps: steps.update(do_center_crop=True))

    with pytest.raises(CheckpointError, match="do_center_crop"):
        Tiling.of_checkpoint(checkpoint)


def test_a_tile_size_other_than_the_vision_towers_is_refused(checkpoint: Path) -> None:
    change(checkpoint / "config.json", lambda config: config["vision_config"].update(image_size=448))

    with pytest.raises(CheckpointError, match="tiles of 384 px for a vision tower of 448 px"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_pinpoints_that_differ_between_the_files_are_refused(checkpoint: Path, name: str) -> None:
    change(checkpoint / name, lambda content: content["image_grid_pinpoints"].pop())

    with pytest.raises(CheckpointError, match="pinpoints of model and preprocessor differ"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize("pinpoints", [[[384, 500]], [[384, 384, 384]], [384], [], "384x384"])
def test_pinpoints_that_are_not_multiples_of_the_tile_size_are_refused(checkpoint: Path, pinpoints: object) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        change(checkpoint / name, lambda content: content.update(image_grid_pinpoints=pinpoints))

    with pytest.raises(CheckpointError):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize("ratio", ["pad", "anyres", None, 9])
def test_an_unsupported_aspect_ratio_is_refused(checkpoint: Path, ratio: object) -> None:
    change(checkpoint / "config.json", lambda config: config.update(vision_aspect_ratio=ratio))

    with pytest.raises(CheckpointError, match="not a Q-SiT checkpoint"):
        Tiling.of_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "steps",
    [
        {"image_mean": [0.5]},
        {"image_std": [0.5, 0.5]},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_mean": 0.5},
        {"image_mean": ["a", "b", "c"]},
        {"resample": 99},
        {"size": {"shortest_edge": 384}},
        {"size": 384},
        {"rescale_factor": "small"},
    ],
    ids=str,
)
def test_an_unusable_value_is_refused(checkpoint: Path, steps: Json) -> None:
    change(checkpoint / "preprocessor_config.json", lambda content: content.update(steps))

    with pytest.raises(CheckpointError):
        Tiling.of_checkpoint(checkpoint)


def test_a_patch_size_of_zero_is_refused(checkpoint: Path) -> None:
    change(checkpoint / "config.json", lambda config: config["vision_config"].update(patch_size=0))

    with pytest.raises(CheckpointError):
        Tiling.of_checkpoint(checkpoint)
