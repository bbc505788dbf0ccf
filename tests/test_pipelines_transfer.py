"""A model of one data set as the start for another: new words, new codes, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline, tiny_tokenizer

from lm.data.shards import Document, Shard
from lm.data.token_cache import TokenCache, code_dtype, write_manifest, write_shard
from lm.transfer import extend_text_tokenizer, learn_merges, text_sources
from lm.vocabulary import train_text_tokenizer
from pipelines import TextToImagePipeline
from pipelines.options.language_model import LanguageModelOptions
from pipelines.training.language_model import build_parts, check_parts
from pipelines.training.transfer import code_sources
from tokenizer_image import VQVAE
from tokenizer_image.extension import with_more_codes
from tokenizer_image.quantizers.vector import VectorQuantizer

NEW_TEXTS = ["a violet xylophone", "a red xylophone", "two violet dogs", "a violet dog"] * 3


def pictures(count: int, seed: int = 0, side: int = 16) -> torch.Tensor:
    """Smooth pictures (count, 3, side, side) in [-1, 1], so that codes repeat."""
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)


def write_cache(folder: Path, tokenizer: VQVAE, texts=NEW_TEXTS) -> TokenCache:
    pixels = pictures(len(texts), side=tokenizer.config.image_size)
    size, rows = (tokenizer.config.image_size,) * 2, tokenizer.encode(pixels).numpy()
    documents = [Document(codes, [size], [text]) for codes, text in zip(rows, texts, strict=True)]
    write_shard(folder / "shard-00000", documents, code_dtype(tokenizer.num_codes))
    values = {"image_tokenizer_fingerprint": tokenizer.fingerprint, "image_sizes": [list(size)]}
    write_manifest(folder, {**values, "shards": [Shard(folder / "shard-00000").entry()]})
    return TokenCache(folder)


@pytest.fixture(scope="module")
def trained() -> VQVAE:
    """A tokenizer that reconstructs pictures somewhat, so that it finds the codes of what it decodes again."""
    tokenizer = tiny_tokenizer().train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for step in range(300):
        tokenizer(pictures(64, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tokenizer.eval()


@pytest.fixture
def earlier(tmp_path, trained) -> Path:
    """The folder of an earlier model."""
    tiny_pipeline(tokenizer=trained).save_pretrained(tmp_path / "earlier")
    return tmp_path / "earlier"


def built(folder: Path, tokenizer: VQVAE, cache: TokenCache, **changes):
    told: list[str] = []
    options = LanguageModelOptions(init_from=str(folder), **changes)
    check_parts(options, tokenizer)
    model, vocabulary = build_parts(options, tokenizer, cache, tell=told.append)
    return model, vocabulary, told


def rows_of(pipe: TextToImagePipeline):
    return [layer.weight.detach() for layer in (pipe.model.get_input_embeddings(), pipe.model.get_output_embeddings())]


# ---- text


def test_merges_are_those_that_a_bpe_would_learn():
    """Against tokenizers' own trainer, which starts from bytes as this does here."""
    texts = ["low lower lowest", "new newer newest wide wider", "low new wide"] * 2
    reference = train_text_tokenizer(texts, 400)
    alphabet = train_text_tokenizer(["\0"], 256)
    extended, count = extend_text_tokenizer(alphabet, texts, 400)
    assert count == len(reference) - 256
    for text in texts:
        assert extended.tokenize(text) == reference.tokenize(text)


def test_known_words_keep_their_tokens_and_new_ones_get_fewer():
    before = train_text_tokenizer(["a red dog and a blue dog"] * 3, 300)
    after, count = extend_text_tokenizer(before, NEW_TEXTS, 400)
    assert count > 0 and len(after) == len(before) + count
    assert after.tokenize("a red dog and a blue dog") == before.tokenize("a red dog and a blue dog")
    assert len(after.tokenize("violet xylophone")) == 2 < len(before.tokenize("violet xylophone"))
    assert {token: after.get_vocab()[token] for token in before.get_vocab()} == before.get_vocab()
    assert after.decode(after.encode("Violet xylophone, très bien")) == " violet xylophone, très bien"
    again, none = extend_text_tokenizer(after, NEW_TEXTS, 4096)
    assert none == 0 and again.get_vocab() == after.get_vocab()
    assert extend_text_tokenizer(before, NEW_TEXTS, len(before) + 2)[1] == 2, "no more than there is room for"


def test_pairs_that_occur_once_or_are_known_are_not_merged():
    assert learn_merges({("a", "b"): 1}, {"a", "b"}, 5) == []
    assert learn_merges({("a", "b"): 2, ("b", "c"): 3}, {"a", "b", "c", "ab"}, 5) == [("b", "c")]
    assert learn_merges({("a", "a", "a", "a"): 2}, {"a"}, 5) == [("a", "a"), ("aa", "aa")]


def test_new_captions_are_added_and_everything_else_computes_as_before(earlier, trained, tmp_path):
    before = TextToImagePipeline.from_pretrained(earlier)
    model, vocabulary, told = built(earlier, trained, write_cache(tmp_path / "cache", trained))
    assert len(told) == 1 and "text tokens are new" in told[0]
    assert vocabulary.num_codes == before.vocabulary.num_codes
    assert vocabulary.image_offset > before.vocabulary.image_offset
    after = TextToImagePipeline(trained, model.eval(), vocabulary)
    known = before("a red dog", temperature=0.0, guidance_scale=1.0, output_type="np")
    assert (after("a red dog", temperature=0.0, guidance_scale=1.0, output_type="np").codes == known.codes).all()
    after.save_pretrained(tmp_path / "after")
    loaded = TextToImagePipeline.from_pretrained(tmp_path / "after")
    assert loaded.vocabulary.encode_text("violet xylophone") == vocabulary.encode_text("violet xylophone")
    (new,) = set(vocabulary.encode_text("violet")) - set(range(before.vocabulary.image_offset - 5))
    parts = before.vocabulary.encode_text("violet")
    for old_rows, rows in zip(rows_of(before), rows_of(after), strict=True):
        assert torch.allclose(rows[new], old_rows[parts].mean(0), atol=1e-6), "starts as what it used to be"


def test_captions_that_the_model_knows_change_nothing(earlier, trained, tmp_path):
    cache = write_cache(tmp_path / "cache", trained, ["a red dog", "a blue cat on grass"] * 6)
    model, vocabulary, told = built(earlier, trained, cache)
    before = TextToImagePipeline.from_pretrained(earlier)
    assert not told and vocabulary.size == before.vocabulary.size
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), before.model.parameters(), strict=True)
    )


def test_sources_of_tokens(earlier, trained, tmp_path):
    before = TextToImagePipeline.from_pretrained(earlier).vocabulary
    _, after, _ = built(earlier, trained, write_cache(tmp_path / "cache", trained))
    sources = text_sources(before, after)
    for role in ("bos_id", "eos_id", "pad_id", "boi_id", "eoi_id"):
        assert sources[getattr(after, role)] == [getattr(before, role)]
    assert all(source for source in sources)


# ---- codes


def permuted(tokenizer: VQVAE, seed: int = 1) -> tuple[VQVAE, list[torch.Tensor]]:
    """The same tokenizer with the codes of each codebook in another order; new code i is old code order[i]."""
    other = tiny_tokenizer()
    other.load_state_dict(tokenizer.state_dict())
    orders = []
    for number, quantizer in enumerate(one for one in other.modules() if isinstance(one, VectorQuantizer)):
        order = torch.randperm(quantizer.size, generator=torch.Generator().manual_seed(seed + number))
        for name in ("codebook", "ema_sums", "ema_counts"):
            buffer = getattr(quantizer, name)
            buffer.copy_(buffer[order])
        orders.append(order)
    return other.eval(), orders


def test_codes_of_a_tokenizer_that_numbers_them_otherwise_are_found_again(earlier, trained, tmp_path):
    other, orders = permuted(trained)
    cache = write_cache(tmp_path / "cache", other, ["a red dog"] * 60)
    model, vocabulary, told = built(earlier, other, cache)
    assert "from those that the earlier one gives the same pictures" in told[0]
    before = TextToImagePipeline.from_pretrained(earlier)
    after = TextToImagePipeline(other, model.eval(), vocabulary)
    used = np.unique(np.concatenate([cache.codes(row) for row in range(len(cache))]))
    wanted = np.concatenate([order.numpy() + 16 * number for number, order in enumerate(orders)])
    found = code_sources(earlier, before.vocabulary, other, vocabulary, cache)
    weights = np.zeros((vocabulary.num_codes, before.vocabulary.num_codes))
    weights[found.codes, found.earlier] = found.weights
    assert weights.sum(1) == pytest.approx(np.ones(vocabulary.num_codes))
    assert len(used) > 8 and (weights.argmax(1) == wanted)[used].mean() > 0.7
    for old_rows, rows in zip(rows_of(before), rows_of(after), strict=True):
        expected = torch.from_numpy(weights).float() @ old_rows[before.vocabulary.image_offset :]
        assert torch.allclose(rows[vocabulary.image_offset :], expected, atol=1e-5)
    assert after("a red dog", temperature=0.0, guidance_scale=1.0).images[0].size == (16, 16)


def test_codes_that_no_picture_has_start_as_the_nearest_one(earlier, trained, tmp_path):
    other, _ = permuted(trained)
    cache = write_cache(tmp_path / "cache", other, ["a red dog"] * 3)
    model, vocabulary, _ = built(earlier, other, cache)
    used = np.unique(np.concatenate([cache.codes(row) for row in range(3)]))
    rows, vectors = model.get_input_embeddings().weight, other.code_vectors()
    for low, high in vocabulary.id_ranges[1:]:
        numbers = np.arange(low, high) - vocabulary.image_offset
        seen = numbers[np.isin(numbers, used)]
        for code in numbers[~np.isin(numbers, used)]:
            nearest = seen[int(torch.cdist(vectors[[code]], vectors[seen]).argmin())]
            assert torch.equal(rows[vocabulary.image_offset + code], rows[vocabulary.image_offset + nearest])


def test_another_layout_of_codes_starts_codes_anew_and_keeps_the_layers(earlier, tmp_path):
    torch.manual_seed(5)
    other = tiny_tokenizer(hidden_sizes=[8, 16], codebook_sizes=[32])
    other.train()(pictures(64))
    model, vocabulary, told = built(earlier, other.eval(), write_cache(tmp_path / "cache", other))
    assert "start anew" in told[0] and vocabulary.num_codes == 32
    before = TextToImagePipeline.from_pretrained(earlier).model.state_dict()
    same = [
        name for name, weight in model.state_dict().items() if "layers." in name and torch.equal(weight, before[name])
    ]
    assert len(same) == sum("layers." in name for name in before)
    rows = model.get_output_embeddings().weight[vocabulary.image_offset :]
    assert rows.std(0).min() > 0, "not all alike"


def test_sizes_that_the_earlier_model_did_not_draw(earlier, trained, tmp_path):
    cache = write_cache(tmp_path / "cache", trained)
    model, vocabulary, _ = built(earlier, trained, cache, image_sizes=["16x16", "8x32"])
    assert list(vocabulary.layouts) == [(16, 16), (8, 32)]
    longest = max(len(vocabulary.picture(size)) for size in vocabulary.layouts)
    assert model.config.max_position_embeddings > longest and model.config.vocab_size == vocabulary.size
    before = TextToImagePipeline.from_pretrained(earlier)
    for old_rows, rows in zip(rows_of(before), rows_of(TextToImagePipeline(trained, model, vocabulary)), strict=True):
        assert torch.equal(rows[vocabulary.image_offset :], old_rows[before.vocabulary.image_offset :])


# ---- more codes in stage 1


def test_a_tokenizer_gets_more_codes_and_keeps_its_own(trained):
    extended = with_more_codes(trained, [24, 8])
    assert extended.config.codebook_sizes == [24, 8] and trained.config.codebook_sizes == [16, 8]
    pixels = pictures(20, seed=3)
    codes, more = trained.encode(pixels), extended.encode(pixels)
    is_second = torch.tensor(trained.layout().low) > 0
    assert torch.equal(more, codes + 8 * is_second), "the second codebook comes behind the larger first one"
    assert torch.equal(extended.decode(more), trained.decode(codes))
    extended.train()(pictures(64, seed=4))
    vectors = extended.code_vectors()
    assert torch.cdist(vectors[16:24], vectors[:16]).min() > 0, "revived, no longer copies"


@pytest.mark.parametrize(
    ("sizes", "settings", "words"),
    [
        ([8, 8], {}, "keeps its \\[16, 8\\] or gets more"),
        ([16], {}, "keeps its \\[16, 8\\] or gets more"),
        ([32], {"quantizer": "lookup_free", "codebook_sizes": [16]}, "are not rows of a codebook"),
    ],
)
def test_what_cannot_be_extended(sizes, settings, words):
    with pytest.raises(ValueError, match=words):
        with_more_codes(tiny_tokenizer(**settings), sizes)
