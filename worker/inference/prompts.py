"""What a checkpoint's tokenizer and chat template make of a question, and of what the model says to it."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsit.errors import CheckpointError
from qsit.rating import WORDS


class Prompts:
    """
    Token ids, as a checkpoint has them.

    ends: the tokens with which an answer ends; the first of them is the one the model is taught.
    """

    def __init__(self, folder: Path, tokenizer: Any, image_token_id: int, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids_of = lru_cache(maxsize=4096)(self._tokenized)  # the same few texts come with every batch
        self._template = chat_template(folder, tokenizer)
        self._image_token_id = image_token_id
        self.ends = tuple(ends)

    def ids(self, question: str, reply: str = "") -> tuple[list[int], list[int]]:
        """
        Before and after the image, of one turn that asks a question, and of what the reply is made to begin with.

        Raises:
            CheckpointError: when the template does not put one image into it.
        """
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        try:
            prompt = self._tokenizer.apply_chat_template(
                [turn], chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # of Jinja or of the template itself
            raise CheckpointError(f"the chat template cannot be used: {type(error).__name__}: {error}") from error
        ids = self.of(prompt)
        if (count := ids.count(self._image_token_id)) != 1:
            raise CheckpointError(f"the chat template puts {count} image tokens into a prompt, not one")
        place = ids.index(self._image_token_id)
        return ids[:place], ids[place + 1 :] + self.of(reply)

    def of(self, text: str) -> list[int]:
        """The ids of a text by itself."""
        return list(self._ids_of(text))

    def _tokenized(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids) if text else ()

    def text_of(self, ids: Sequence[int]) -> str:
        """What the model said, without white space around it."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def rating_ids(self) -> list[int]:
        """The first token of each rating word."""
        ids = [self.of(word)[0] for word in WORDS]
        if len(set(ids)) != len(WORDS):
            raise CheckpointError("the tokenizer does not tell the five rating words apart")
        return ids


def chat_template(folder: Path, tokenizer: Any) -> str:
    """The checkpoint's own chat template, wherever it has it. Raises CheckpointError when it has none."""
    try:
        if (own := folder / "chat_template.jinja").exists():
            return own.read_text()
        if (own := folder / "chat_template.json").exists():
            return str(json.loads(own.read_text())["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{own} holds no chat template: {type(error).__name__}: {error}") from error
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    raise CheckpointError(f"{folder} has no chat template")
