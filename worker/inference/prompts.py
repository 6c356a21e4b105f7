"""Token ids of prompts and replies, from a checkpoint's tokenizer and chat template."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsit.errors import CheckpointError
from qsit.rating import WORDS


class Prompts:
    """The prompts of one checkpoint. eos_token_ids: the tokens that end an answer; training teaches the first."""

    def __init__(self, folder: Path, tokenizer: Any, image_token_id: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokenize = lru_cache(maxsize=4096)(tokenizer.encode)  # every batch has the same few texts
        self._template = read_chat_template(folder, tokenizer)
        self._image_token_id = image_token_id
        self.eos_token_ids = tuple(eos_token_ids)

    def encode_turn(self, question: str, reply: str = "") -> tuple[list[int], list[int]]:
        """
        Return the ids before and after the image of a user's turn that asks a question.

        reply: what the model's reply begins with, tokenised apart.

        Raises CheckpointError when the template does not put exactly one image into the turn.
        """
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        try:
            prompt = self._tokenizer.apply_chat_template(
                [turn], chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # of Jinja or of the template itself
            raise CheckpointError(f"the chat template cannot be used: {type(error).__name__}: {error}") from error
        ids = self.encode(prompt)
        if (count := ids.count(self._image_token_id)) != 1:
            raise CheckpointError(f"the chat template puts {count} image tokens into a prompt, not one")
        index = ids.index(self._image_token_id)
        return ids[:index], ids[index + 1 :] + self.encode(reply)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens around it."""
        return list(self._tokenize(text, add_special_tokens=False)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a reply, without surrounding white space."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def rating_token_ids(self) -> list[int]:
        """Return the first token of each rating word."""
        ids = [self.encode(word)[0] for word in WORDS]
        if len(set(ids)) != len(WORDS):
            raise CheckpointError("two of the rating words begin with the same token")
        return ids


def read_chat_template(folder: Path, tokenizer: Any) -> str:
    """Return the checkpoint's chat template from its own file or its tokenizer; CheckpointError when it has none."""
    try:
        if (file := folder / "chat_template.jinja").exists():
            return file.read_text()
        if (file := folder / "chat_template.json").exists():
            return str(json.loads(file.read_text())["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} contains no chat template: {type(error).__name__}: {error}") from error
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    raise CheckpointError(f"{folder} has no chat template")
