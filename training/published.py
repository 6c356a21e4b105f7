"""Save a checkpoint with the published names of weights and configuration."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def save_checkpoint(model: Any, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors of a Hugging Face model."""
    model.save_pretrained(folder, max_shard_size="100GB")
    weights = folder / "model.safetensors"  # transformers 5 drops a level of the published names
    named = {
        key if "vision_model." in key else key.replace("vision_tower.", "vision_tower.vision_model.", 1): value
        for key, value in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})
    written = folder / "config.json"
    config = json.loads(written.read_text())
    config["torch_dtype"] = config.pop("dtype")  # older releases and other programs expect both names
    config["text_config"]["rope_theta"] = config["text_config"].pop("rope_parameters")["rope_theta"]
    written.write_text(json.dumps(config, indent=2) + "\n")
