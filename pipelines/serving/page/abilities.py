"""What a model has learned, in the words of a page: for each thing that it could do, why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from lm.sequences import DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS
from lm.vocabulary import MultimodalVocabulary

DRAW_AND_DESCRIBE = "--formats caption_to_image image_and_caption"


@dataclass(frozen=True)
class Abilities:
    """For each use, None where the model has learned it, else why it is not there.

    Attributes:
        draws: pictures, with a prompt or without one; completing and varying need it too.
        reads_prompts: draws from a prompt.
        draws_alone: draws without a prompt.
        guides: can be led by a guidance scale, for which it must draw with a prompt and without.
        describes: writes a caption of a picture.
        ranks: chooses among pictures by how well it describes them as the prompt, and among captions by how likely the
            picture is after each.
        remedy: what the model was trained on, and what would teach the rest.
    """

    draws: str | None
    reads_prompts: str | None
    draws_alone: str | None
    guides: str | None
    describes: str | None
    ranks: str | None
    remedy: str

    @classmethod
    def of(cls, vocabulary: MultimodalVocabulary) -> Abilities:
        """The abilities that the sequence formats of a model's training give it."""
        learned = set(vocabulary.formats)
        prompts, alone, describes = (
            bool(learned & set(formats)) for formats in (DRAWING_CAPTIONS, DRAWING_ALONE, DESCRIBING)
        )

        def unless(has_learned: bool, missing: str) -> str | None:
            return None if has_learned else missing

        return cls(
            draws=unless(prompts or alone, "this model has not learned to draw"),
            reads_prompts=unless(prompts, "this model draws without a prompt"),
            draws_alone=unless(alone, "this model draws only from a prompt"),
            guides=unless(prompts and alone, "guidance needs a model that draws with and without a prompt"),
            describes=unless(describes, "this model has not learned to describe pictures"),
            ranks=unless(prompts and describes, "the best are chosen by a model that both draws and describes"),
            remedy=(
                f"It has learned {', '.join(vocabulary.formats) or 'nothing'}; a model that is trained with "
                f"{DRAW_AND_DESCRIBE} does all of this."
            ),
        )
