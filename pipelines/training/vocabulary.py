"""From the options of stage 2 to the joint vocabulary of text and image codes."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lm.data.token_cache import TokenCache
from lm.pretrained import load_own_tokenizer
from lm.vocabulary import MultimodalVocabulary, train_text_tokenizer
from pipelines.options.language_model import LanguageModelOptions
from tokenizer_image.layout import ImageTokenizer, example_size

BPE_ROWS = 50_000  # whose captions a BPE is trained on; more change it little, and take longer


def build_vocabulary(
    options: LanguageModelOptions, tokenizer: ImageTokenizer, cache: TokenCache
) -> MultimodalVocabulary:
    """The joint vocabulary: a BPE trained on the captions (or a given tokenizer) and the image codes."""
    if options.text_tokenizer or options.lm_name_or_path:
        text = given_tokenizer(options)
    else:
        text = train_text_tokenizer(cache.some_texts(BPE_ROWS), options.text_vocab_size)
    return joint_vocabulary(text, options, tokenizer)


def joint_vocabulary(
    text: PreTrainedTokenizerBase, options: LanguageModelOptions, tokenizer: ImageTokenizer
) -> MultimodalVocabulary:
    """A text tokenizer, extended by the image codes."""
    first, *others = options.picture_sizes() or [example_size(tokenizer.config)]
    return MultimodalVocabulary.build(
        text, num_codes=tokenizer.num_codes, layout=tokenizer.layout(first).to_dict(), image_size=list(first),
        image_tokenizer_fingerprint=tokenizer.fingerprint,
        other_layouts={size: tokenizer.layout(size).to_dict() for size in others},
    )  # fmt: skip


def given_tokenizer(options: LanguageModelOptions) -> PreTrainedTokenizerBase:
    """That of --text_tokenizer, else the one of --lm_name_or_path."""
    if options.text_tokenizer:
        return load_text_tokenizer(options.text_tokenizer)
    return load_own_tokenizer(str(options.lm_name_or_path))


def load_text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer of transformers."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--text_tokenizer {name} is no tokenizer of transformers, here or on the Hub: {reason}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"--text_tokenizer {name} has no fast version (tokenizer.json): choose one that has")
    return tokenizer
