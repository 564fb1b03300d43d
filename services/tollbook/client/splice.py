"""One stream out of the streams of several tries.

A repeat gives the answer from its beginning, in other pieces than before; its caller gets each
token and character once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tollbook.client.shapes import Delta, Finished, Piece, Started


class Changed(Exception):
    """The repeat is not a repeat of what was read: the two cannot be one answer."""


@dataclass
class _Progress:
    """Of one choice: what the caller has, and how far this try has come."""

    token_ids: list[int] = field(default_factory=list)
    characters: int = 0
    at_token: int = 0
    at_character: int = 0
    finished: bool = False


class Splice:
    """Holds the token ids that were read, to compare: as much as the answer itself."""

    def __init__(self) -> None:
        self._choices: dict[int, _Progress] = {}
        self._started = False

    def begin_try(self) -> None:
        """What comes now comes from the beginning again."""
        for progress in self._choices.values():
            progress.at_token = progress.at_character = 0

    def take(self, piece: Piece) -> Piece | None:
        """What of a piece is new to the caller; None when nothing is. Errors: Changed."""
        match piece:
            case Started():
                if self._started:
                    return None
                self._started = True
                return piece
            case Delta():
                return self._delta(piece)
            case Finished():
                progress = self._progress(piece.choice)
                if progress.at_token < len(progress.token_ids):
                    raise Changed
                if progress.finished:
                    return None
                progress.finished = True
                return piece
            case _:
                return piece

    def _progress(self, choice: int) -> _Progress:
        return self._choices.setdefault(choice, _Progress())

    def _delta(self, delta: Delta) -> Delta | None:
        progress = self._progress(delta.choice)
        end = progress.at_token + len(delta.token_ids)
        known = progress.token_ids[progress.at_token : end]
        if list(delta.token_ids[: len(known)]) != known:
            raise Changed
        token_ids = delta.token_ids[len(known) :]
        if progress.finished and token_ids:
            raise Changed
        text = delta.text[max(progress.characters - progress.at_character, 0) :]
        progress.token_ids.extend(token_ids)
        progress.characters += len(text)
        progress.at_token = end
        progress.at_character += len(delta.text)
        if not (token_ids or text):
            return None
        return Delta(delta.choice, text, token_ids, delta.cumulative_tokens)
