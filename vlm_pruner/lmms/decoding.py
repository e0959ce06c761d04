"""A task's `generation_kwargs`: how to decode an answer, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_UNUSED = ("image_aspect_ratio",)  # tasks pass it for LLaVA, whose checkpoints already define it
_KNOWN = ("do_sample", "max_new_tokens", "num_beams", "repetition_penalty", "temperature", "top_k", "top_p", "until")


@dataclass(frozen=True)
class Decoding:
    """until: texts that end an answer and are not part of it. temperature: 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    repetition_penalty: float | None = None
    until: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        return self.temperature > 0

    @classmethod
    def read(cls, settings: Mapping[str, Any], default_length: int) -> Decoding:
        """Reads a task's settings. Raises ValueError for an unknown one that would change answers."""
        unknown = [name for name in settings if name not in (*_KNOWN, *_UNUSED)]
        if unknown:
            raise ValueError(
                f"generation_kwargs {', '.join(unknown)} would be ignored; known ones: {', '.join((*_KNOWN, *_UNUSED))}"
            )
        until = settings.get("until") or ()
        greedy = settings.get("do_sample") is False
        return cls(
            max_new_tokens=int(settings.get("max_new_tokens") or default_length),
            temperature=0.0 if greedy else float(settings.get("temperature") or 0),
            top_p=settings.get("top_p"),
            top_k=settings.get("top_k"),
            num_beams=int(settings.get("num_beams") or 1),
            repetition_penalty=settings.get("repetition_penalty"),
            until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        )

    def options(self) -> dict[str, Any]:
        """Arguments for `generate`. If decoding is greedy, None overrides the checkpoint's sampling settings."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.samples,
            "temperature": self.temperature if self.samples else None,
            "top_p": self.top_p if self.samples else None,
            "top_k": self.top_k if self.samples else None,
            **({} if self.repetition_penalty is None else {"repetition_penalty": self.repetition_penalty}),
        }

    def cut(self, text: str) -> str:
        """Cuts the answer at the first text that ends it."""
        ends = [place for end in self.until if (place := text.find(end)) >= 0]
        return text[: min(ends)].strip() if ends else text.strip()
