"""Conversations as ids: the model's own chat template writes them, and only the assistant's turns are trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

Message = dict[str, Any]
Span = tuple[int, int]  # characters from and up to
# Templates of Llama 3, SmolLM3 and Mistral Small write today's date. They get this one, Llama 3's own default, so that
# a job that is resumed tomorrow trains the same rows.
_TODAY = date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatError(ValueError):
    """A conversation that cannot be trained on; `code` is one of fusion_core.problems."""

    def __init__(self, message: str, *, code: str = "chat_not_supported") -> None:
        super().__init__(message)
        self.code = code


class ChatTemplate:
    """Encodes conversations with the tokenizer's own template.

    A template with generation markers says itself which ids the assistant wrote. For one without, a turn is what the
    template adds when the turn is added to the conversation before it: the difference of two prefixes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(ids, whether the assistant wrote them), both of shape (n,). Raises ChatError."""
        if not any(message.get("role") == "assistant" for message in messages):
            detail = "the conversation has no turn of the assistant, so there is nothing to learn from it"
            raise ChatError(detail, code="chat_without_assistant")
        if not self._tokenizer.chat_template:
            raise ChatError("the base model's tokenizer has no chat template", code="no_chat_template")
        template = _DATE_CALL.sub(_fixed_date, self._tokenizer.get_chat_template(tools=tools))
        conversation = _Conversation(self._tokenizer, template, messages, tools)
        if _GENERATION_MARKER.search(template):
            found = conversation.write(
                len(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            return np.asarray(found["input_ids"], np.int32), np.asarray(found["assistant_masks"], np.bool_)
        text = conversation.write(len(messages), tokenize=False)
        return encode_spans(self._tokenizer, text, conversation.assistant_spans(text), add_special_tokens=False)


def _fixed_date(call: re.Match[str]) -> str:
    return repr(_TODAY.strftime(call[2]))


@dataclass(frozen=True)
class _Conversation:
    """One conversation, and the template that writes it."""

    tokenizer: Any
    template: str
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None

    def write(self, count: int, **settings: Any) -> Any:
        """The first `count` messages as the template writes them. Raises ChatError."""
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(self.messages[:count]), tools=self.tools, chat_template=self.template, **settings
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # what templates raise on roles they refuse
            raise ChatError(f"the chat template refuses it: {error}") from error

    def assistant_spans(self, text: str) -> list[Span]:
        """Where in `text`, the whole conversation, the assistant's turns lie."""
        spans: list[Span] = []
        for number, message in enumerate(self.messages):
            if message.get("role") != "assistant":
                continue
            start = self._start_of_turn(text, number)
            through = self.write(number + 1, tokenize=False)
            spans.append((start, _end_of_turn(text, start, through, str(message.get("content") or "").strip())))
        return spans

    def _start_of_turn(self, text: str, before: int) -> int:
        if before == 0:
            return 0
        for generation_prompt in (True, False):  # the prompt may open a thought that this turn does not have
            prefix = self.write(before, tokenize=False, add_generation_prompt=generation_prompt)
            if text.startswith(prefix):
                return len(prefix)
        raise ChatError("the chat template rewrites earlier messages when later ones follow, so turns cannot be told")


def _end_of_turn(text: str, start: int, through: str, content: str) -> int:
    """Where a turn ends in `text`, when the conversation up to and with it is written as `through`.

    Templates that drop the thoughts of earlier turns write a turn otherwise when it is the last; its content and what
    closes it are the same.
    """
    if text.startswith(through):
        return len(through)
    closing = through[through.rfind(content) + len(content) :]
    end = text.find(content, start) + len(content)
    if content and end >= start + len(content) and content in through and text.startswith(closing, end):
        return end + len(closing)
    raise ChatError("the chat template rewrites a turn of the assistant when others follow, so it cannot be told")


def encode_spans(
    tokenizer: Any, text: str, spans: Sequence[Span], *, add_special_tokens: bool
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """(ids of the whole text, whether a character of a span is in them), both of shape (n,)."""
    found = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
    inside = np.zeros(len(offsets), np.bool_)
    for start, end in spans:
        inside |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
    return np.asarray(found["input_ids"], np.int32), inside
