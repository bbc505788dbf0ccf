"""Stage 1's losses in training: mixing, the discriminator's part, checkpoints, and decoders that finish alone."""

import io
import json
import math
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from test_tokenizer_losses import Tiny, tiny_extractor
from test_tokenizer_signals import sound_tokenizer
from tiny import tiny_pipeline, tiny_tokenizer

from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.image_tokenizer_losses import PHOTOGRAPH_WEIGHT
from pipelines.training import adversary as adversary_module
from pipelines.training import image_tokenizer_losses
from pipelines.training.adversary import Adversary
from pipelines.training.drawn_codes import DrawnCodes
from pipelines.training.image_tokenizer import detect_photographs
from pipelines.training.image_tokenizer_losses import (
    ADVERSARIAL_WEIGHT,
    MATCHING_WEIGHT,
    StageOneLoss,
    build_loss,
    keep_weights,
)
from pipelines.training.loop import Loop
from scripts import train_tokenizer
from tokenizer_image import VQVAE, VQVAEConfig, load_tokenizer
from tokenizer_image.configuration import preset
from tokenizer_image.losses import extractors
from tokenizer_image.losses.extractors import Extractor
from tokenizer_image.losses.perceptual import PerceptualLoss
from tokenizer_image.losses.reconstruction import ReconstructionLoss
from tokenizer_image.pictures.photographs import are_photographs, flat_shares
from tokenizer_image.sprites import scenes
from tokenizer_image.vqvae import VQVAEOutput

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"image_size": 16, "patch_size": 4, "hidden_sizes": [8, 16], "codebook_sizes": [16], "num_res_blocks": 1}

CONFIG = VQVAEConfig(image_size=16)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(autouse=True)
def _tiny_extractor(monkeypatch) -> None:
    """A tiny extractor under the default's name, so that these tests need no package, and a discriminator whose word
    counts at once."""
    torch.manual_seed(0)
    monkeypatch.setattr(adversary_module, "FIRST_ACCURACY", 0.6)
    monkeypatch.setitem(extractors._BUILDERS, "efficientnet_lite0", lambda name: tiny_extractor())
    monkeypatch.setattr(extractors, "missing_package", lambda name: None)
    monkeypatch.setattr("pipelines.training.image_tokenizer_losses.missing_package", lambda name: None)


def an_adversary(accelerator: Accelerator, **settings: float) -> Adversary:
    return Adversary(3, accelerator, **{"learning_rate": 1e-3, "lecam_weight": 0.01, "seed": 0, **settings})


def a_loss(accelerator: Accelerator, adversary: Adversary | None = None, **settings: object) -> StageOneLoss:
    weights = {"perceptual": 1.0, "adversarial": 0.5 if adversary else 0.0}
    return StageOneLoss(
        accelerator, ReconstructionLoss(), weights, perceptual=PerceptualLoss(tiny_extractor()), adversary=adversary,
        **settings,
    )  # fmt: skip


def pictures(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


# ---- mixing


def test_squared_error_alone_is_the_models_own_loss(accelerator):
    loss = StageOneLoss(accelerator, ReconstructionLoss(), {"perceptual": 0.0})
    output = tiny_tokenizer().train()(batch := pictures())
    assert loss(batch, output, share=0.5, step=0)[0] is output.loss


def test_the_gradient_at_the_reconstruction_is_the_mixture(accelerator):
    loss, batch = a_loss(accelerator), pictures()
    leaf = pictures().requires_grad_()
    output = VQVAEOutput(loss=torch.zeros(()), reconstruction=leaf, commitment_loss=torch.zeros(()))
    value, figures = loss(batch, output, share=0.5, step=0)
    value.backward()
    terms = loss.pixels(batch, leaf), loss.perceptual(batch, leaf)
    gradients = [torch.autograd.grad(term, leaf)[0] for term in terms]
    norms = [gradient.flatten(1).norm(dim=1).sum() for gradient in gradients]
    wanted = norms[0] * (0.5 * gradients[0] / norms[0] + 0.5 * gradients[1] / norms[1])
    assert torch.allclose(leaf.grad, wanted, rtol=1e-4, atol=1e-8)
    assert (figures["share_pixels"], figures["share_perceptual"]) == pytest.approx((0.5, 0.5))
    assert figures["pixels"] == pytest.approx((leaf - batch).square().mean().item(), rel=1e-5)


def test_the_discriminator_comes_in_at_its_share_of_the_budget(accelerator):
    loss = a_loss(accelerator, an_adversary(accelerator), adversarial_start=0.3)
    output = tiny_tokenizer().train()(batch := pictures())
    assert "adversarial" not in loss(batch, output, share=0.29, step=0)[1]
    assert loss.learn(batch, output, share=0.29, step=0) == {}
    assert "adversarial" in loss(batch, output, share=0.3, step=0)[1]
    assert "accuracy_real" in loss.learn(batch, output, share=0.3, step=0)


@pytest.mark.parametrize(
    ("accuracies", "confidence"), (((0.5, 0.5), 0.0), ((0.2, 0.7), 0.0), ((0.55, 0.55), 0.5), ((0.9, 0.6), 1.0))
)
def test_a_discriminator_counts_for_as_much_as_it_can_tell(accelerator, accuracies, confidence):
    one = an_adversary(accelerator)
    one.accuracies.copy_(torch.tensor(accuracies))
    assert one.confidence == pytest.approx(confidence, abs=1e-6)
    output = tiny_tokenizer().train()(batch := pictures())
    figures = a_loss(accelerator, one)(batch, output, share=0.5, step=0)[1]
    if not confidence:
        assert "adversarial" not in figures
    else:
        assert figures["share_adversarial"] == pytest.approx(0.5 * confidence / (2 + 0.5 * confidence), rel=1e-4)


def test_the_decoders_step_leaves_the_discriminator_as_it_is(accelerator):
    one = an_adversary(accelerator)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    output = tiny_tokenizer().train()(batch := pictures())
    a_loss(accelerator, one)(batch, output, share=0.5, step=0)[0].backward()
    assert all(parameter.grad is None for parameter in one.parameters())
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_the_discriminator_learns_to_tell(accelerator):
    one = an_adversary(accelerator)
    sharp = torch.rand(8, 3, 32, 32) * 2 - 1
    soft = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    figures = [one.learn(sharp, soft, step) for step in range(80)]
    for side in ("real", "drawn"):  # single steps may forget one of them
        assert sum(one[f"accuracy_{side}"] for one in figures[-20:]) / 20 > 0.8
    assert figures[-1]["discriminator_loss"] < 0.5 < 0.8 < figures[0]["discriminator_loss"]


@pytest.mark.parametrize(
    ("accuracies", "updates", "words"),
    (
        ((0.99, 0.995), 5, "it has won"),
        ((0.5, 0.5), 500, "teaches nothing"),
        ((0.5, 0.5), 5, None),
        ((0.8, 0.7), 500, None),
    ),
)
def test_advice_about_a_discriminator(accelerator, accuracies, updates, words):
    one = an_adversary(accelerator)
    one.accuracies.copy_(torch.tensor(accuracies))
    one.updates.fill_(updates)
    advice = one.advice()
    assert advice is None if words is None else words in advice and "--discriminator_learning_rate" in advice


@pytest.mark.parametrize("where", ("decoder", "discriminator"))
def test_a_discriminator_that_diverges_is_stopped_and_training_goes_on(accelerator, capsys, where):
    one = an_adversary(accelerator)
    loss = a_loss(accelerator, one)
    output = tiny_tokenizer().train()(batch := pictures())
    if where == "decoder":
        with torch.no_grad():
            one.discriminator.head.bias.fill_(math.nan)
        value, figures = loss(batch, output, share=0.5, step=0)
        assert value.isfinite() and "share_adversarial" not in figures
    else:
        loss.learn(torch.full_like(batch, math.nan), output, share=0.5, step=0)
        assert all(parameter.isfinite().all() for parameter in one.parameters())
    assert one.is_stopped and "the run goes on without it" in capsys.readouterr().out
    assert loss.learn(batch, output, share=0.5, step=1) == {}
    assert "adversarial" not in loss(batch, output, share=0.5, step=1)[1]


# ---- what the pictures and the options choose


def test_photographs_are_told_from_drawings():
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    drawings = np.stack(
        [np.asarray(scenes.draw_scene(scenes.sample_scene(row))).transpose(2, 0, 1) for row in range(8)]
    )
    assert are_photographs(noise)[0] and not are_photographs(drawings)[0]
    files = [io.BytesIO() for _ in range(8)]
    for row, file in enumerate(files):
        scenes.draw_scene(scenes.sample_scene(row)).save(file, "JPEG", quality=75)
    drawings = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    assert not are_photographs(drawings)[0]
    flat = np.zeros((1, 3, 2, 4), dtype=np.uint8)
    flat[0, 0, :, 2:] = 3  # one of three neighbours differs by more than 2
    assert flat_shares(flat).tolist() == pytest.approx([2 / 3])


def options(**settings: object) -> ImageTokenizerOptions:
    return ImageTokenizerOptions(**{**SMALL, **settings})  # type: ignore[arg-type]


def test_the_pictures_decide_unless_the_options_do(accelerator, capsys):
    class Pictures:
        def __len__(self) -> int:
            return 4

        def batch(self, rows: object) -> np.ndarray:
            return np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)

    assert detect_photographs(Pictures(), options(), accelerator) is True
    assert "taken for photographs" in capsys.readouterr().out
    assert detect_photographs(Pictures(), options(photographs=False), accelerator) is False
    assert capsys.readouterr().out == ""


def test_photographs_get_networks_without_a_grid():
    for photographs, resampling in ((True, "overlapping"), (False, "patches")):
        assert ImageTokenizerOptions(image_size=64).configuration(photographs).resampling == resampling
        assert options().configuration(photographs).resampling == resampling
    assert options(resampling="patches").configuration(True).resampling == "patches"


@pytest.mark.parametrize("size", (64, 128, 256))
def test_configuration_files_are_the_presets(size):
    given = yaml.safe_load((ROOT / "configs" / f"photographs{size}.yaml").read_text())
    assert given.pop("perceptual_weight") == PHOTOGRAPH_WEIGHT and given.pop("photographs") is True
    assert given == {"image_size": size, **preset(size, photographs=True)}


def built(given: ImageTokenizerOptions, accelerator: Accelerator, photographs: bool) -> StageOneLoss:
    return build_loss(given, accelerator, photographs, CONFIG, lambda: "classifier=nowhere", seed=0)


def test_weights_follow_the_pictures_and_the_options(accelerator, capsys):
    drawn = built(options(), accelerator, False)
    assert drawn.is_plain and capsys.readouterr().out == ""
    found = built(options(), accelerator, True)
    assert found.weights == {"pixels": 1.0, "perceptual": PHOTOGRAPH_WEIGHT} and found.adversary is None
    assert "shares of the gradient" in (said := capsys.readouterr().out) and "discriminator" not in said
    assert built(options(adversarial_weight=0.5), accelerator, True).adversary is not None
    assert "discriminator from 20% on" in capsys.readouterr().out
    given = built(options(perceptual_weight=0.0, adversarial_weight=0.0), accelerator, True)
    assert given.is_plain
    assert built(options(adversarial_weight=0.2), accelerator, False).weights["adversarial"] == 0.2
    assert not built(options(absolute_share=0.5), accelerator, False).is_plain


def test_a_resumed_run_keeps_the_weights_that_it_began_with(accelerator, capsys):
    begun = {"parameters": 1, "loss_weights": {"pixels": 1.0, "adversarial": 0.25}}
    resumed = options(feature_matching_weight=2.0)
    keep_weights(resumed, begun, accelerator)
    loss = built(resumed, accelerator, True)
    assert loss.weights == {"pixels": 1.0, "adversarial": 0.25, "matching": 2.0}
    capsys.readouterr()
    new, older = options(), options()
    keep_weights(new, {}, accelerator)
    assert new == options() and capsys.readouterr().out == ""
    keep_weights(older, {"parameters": 1}, accelerator)
    assert older == options() and "earlier version" in capsys.readouterr().out


def test_a_resumed_run_needs_the_extractor_that_it_began_with(accelerator, monkeypatch):
    monkeypatch.setattr(extractors, "missing_package", lambda name: "some_package")
    with pytest.raises(ValueError, match="--extractor .* needs the package some-package"):
        keep_weights(options(), {"loss_weights": {"pixels": 1.0, "perceptual": 20.0}}, accelerator)


def test_a_noise_is_not_learned_as_silence(accelerator):
    """Beside tones that are reconstructed at 30 dB, a noise of unknown samples comes out too quiet: at the end of
    training, descent makes it louder; squared error alone would make it quieter still."""
    generator = torch.Generator().manual_seed(1)
    tones = 0.5 * torch.sin(torch.arange(8000) * torch.linspace(0.1, 0.4, 6)[:, None])[:, None]
    noises = 0.1 * torch.randn(2, 1, 8000, generator=generator)
    target = torch.cat([tones, noises])
    rough = tones + 0.011 * torch.randn(tones.shape, generator=generator)
    quiet = 0.06 * torch.randn(noises.shape, generator=generator)

    def change_of_loudness(share: float) -> float:
        """Of the noises, by a step of descent: positive where they become louder."""
        audio = ImageTokenizerOptions(signal="audio")
        loss = build_loss(audio, accelerator, False, sound_tokenizer().config, str, seed=0)
        reconstruction = torch.cat([rough, quiet]).requires_grad_()
        output = SimpleNamespace(loss=torch.zeros(()), bottleneck_loss=torch.zeros(()), reconstruction=reconstruction)
        loss(target, output, share=share, step=0)[0].backward()
        return -float((reconstruction.grad[-2:] * quiet).sum())

    assert change_of_loudness(0.0) < 0 < change_of_loudness(1.0)


def test_what_small_pictures_are_enlarged_to_is_told(accelerator, capsys, monkeypatch):
    monkeypatch.setitem(extractors._BUILDERS, "efficientnet_lite0", lambda name: Extractor("large", Tiny()))
    loss = built(options(), accelerator, True)
    assert "efficientnet_lite0 reads pictures of 16 pixels enlarged to 128" in capsys.readouterr().out
    assert loss.perceptual is not None and loss.perceptual.size == 128
    loss = built(options(perceptual_size=0), accelerator, True)
    assert "efficientnet_lite0 reads pictures of 16 pixels enlarged to 64" in capsys.readouterr().out
    assert loss.perceptual is not None and loss.perceptual.size is None


def test_an_extractor_that_resizes_by_itself_is_left_to_it(accelerator, capsys, monkeypatch):
    own = Extractor("own", Tiny(), size=32, resize=lambda pixels, size: pixels)
    monkeypatch.setitem(extractors._BUILDERS, "efficientnet_lite0", lambda name: own)
    loss = built(options(), accelerator, True)
    assert loss.perceptual is not None and loss.perceptual.size is None


def test_without_an_extractor_the_discriminators_features_take_its_place(accelerator, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.training.image_tokenizer_losses.missing_package", lambda name: "the_package")
    loss = built(options(), accelerator, True)
    assert loss.weights == {
        "pixels": 1.0, "adversarial": ADVERSARIAL_WEIGHT, "matching": MATCHING_WEIGHT
    }  # fmt: skip
    assert "the-package is not installed" in capsys.readouterr().out
    output = tiny_tokenizer().train()(batch := pictures())
    assert {"adversarial", "matching"} <= loss(batch, output, share=0.9, step=0)[1].keys()


# ---- a classifier of the data set's own captions


def striped(folder: Path, pictures: int = 60) -> Path:
    """Noisy pictures with stripes across or down, as their captions say, and one with a caption of its own."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for number in range(pictures):
        pixels = chance.integers(0, 80, (16, 16, 3), dtype=np.uint8)
        stripes = slice(None, None, 2)
        pixels[(stripes,) if number % 2 else (slice(None), stripes)] += 150
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("alone" if number == 7 else ("down", "across")[number % 2])
    return folder


def test_a_classifier_of_captions_is_learned_first_and_used_again(tmp_path, capsys):
    folder = striped(tmp_path / "stripes")
    settings = {"extractor": "captions", "adversarial_weight": 0.0}
    lines = run(
        tmp_path / "run", folder, max_steps=400, validate_every=0, checkpoint_every=0, log_every=100, **settings
    )
    said = capsys.readouterr().out
    assert "classifier of 2 captions: 100% of held-out pictures right, chance 50.0%" in said
    term = f"perceptual {PHOTOGRAPH_WEIGHT:g}"
    assert term in said and "perceptual" in lines[0], "--extractor asks for its term"
    saved = json.loads((tmp_path / "run" / "classifier" / "classifier.json").read_text())
    assert sorted(saved["captions"]) == ["across", "down"], "one with a caption of its own is no class"
    extractor = extractors.load_extractor(f"classifier={tmp_path / 'run' / 'classifier'}")
    found = extractor(torch.rand(2, 1, 16, 16) * 2 - 1)
    assert found.logits.shape == (2, 2) and len(found.maps) == 4
    before = (tmp_path / "run" / "classifier" / "classifier.safetensors").stat().st_mtime_ns
    run(tmp_path / "run", folder, max_steps=402, resume=True, allow_changes=True, **settings)
    assert (tmp_path / "run" / "classifier" / "classifier.safetensors").stat().st_mtime_ns == before
    run(tmp_path / "other", folder, extractor=f"classifier={tmp_path / 'run' / 'classifier'}", max_steps=2)
    assert not (tmp_path / "other" / "classifier").exists()


def test_captions_that_are_no_classes_are_refused(photographs, tmp_path):
    with pytest.raises(ValueError, match="--extractor captions needs captions that sort pictures .*'picture 0' 1"):
        run(tmp_path / "run", photographs, extractor="captions")
    with pytest.raises(ValueError, match="no classifier could be read .* OUTPUT_DIR/classifier"):
        extractors.load_extractor(f"classifier={tmp_path}")


# ---- whole runs


def run(folder: Path, pictures_folder: Path, **settings: object) -> list[dict]:
    chosen = {
        "dataset": str(pictures_folder), "output_dir": str(folder), "max_steps": 6, "batch_size": 4, "log_every": 1,
        "validate_every": 3, "checkpoint_every": 2, "sample_every": 0, "mixed_precision": "no", "cpu_threads": 1,
        "num_workers": 0, **settings,
    }  # fmt: skip
    if "init_from" not in settings:
        chosen = {**SMALL, **chosen}
    train_tokenizer.main(ImageTokenizerOptions(**chosen))  # type: ignore[arg-type]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    chance = np.random.default_rng(0)
    for number in range(24):
        pixels = chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}")
    return folder


def test_a_run_with_a_discriminator_resumes_to_the_last_bit(photographs, tmp_path, capsys):
    whole = run(tmp_path / "whole", photographs, adversarial_weight=0.5, adversarial_start=0.3, decoder_share=0.0)
    assert "taken for photographs" in capsys.readouterr().out
    lines = [line for line in whole if "loss" in line]
    assert "adversarial" not in lines[1] and {"adversarial", "share_adversarial", "accuracy_drawn"} <= lines[2].keys()
    run(tmp_path / "cut", photographs, adversarial_weight=0.5, adversarial_start=0.3, decoder_share=0.0, max_steps=6)
    for newest in ("checkpoint-6", "checkpoint-4"):  # as if it had been killed after step 5, or before it
        target = tmp_path / "again"
        shutil.copytree(tmp_path / "cut", target)
        info = json.loads((target / "run.json").read_text())
        (target / "run.json").write_text(json.dumps({**info, "finished": False}))
        if newest == "checkpoint-4":
            shutil.rmtree(target / "checkpoints" / "checkpoint-6")
        run(target, photographs, adversarial_weight=0.5, adversarial_start=0.3, decoder_share=0.0, resume=True)
        for name in ("model.safetensors", "checkpoints/checkpoint-6/state.safetensors"):
            assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        shutil.rmtree(target)


def test_a_discriminator_may_join_a_run_where_changes_are_allowed(photographs, tmp_path):
    run(tmp_path / "run", photographs, max_steps=4, adversarial_weight=0.0)
    with pytest.raises(ValueError, match="--adversarial_weight was 0.0, now 0.5"):
        run(tmp_path / "run", photographs, max_steps=6, adversarial_weight=0.5, resume=True)
    lines = run(
        tmp_path / "run", photographs, max_steps=6, adversarial_weight=0.5, adversarial_start=0.0, resume=True,
        allow_changes=True,
    )  # fmt: skip
    assert "adversarial" not in lines[0] and "adversarial" in [line for line in lines if "loss" in line][-1]


def on_two_processes(rank: int, port: int, pictures_folder: Path, folder: Path, share: float) -> None:
    """A whole run, one that stops on its way, and its continuation, on each of two processes."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
    extractors._BUILDERS["efficientnet_lite0"] = lambda name: tiny_extractor(seed=0)
    image_tokenizer_losses.missing_package = lambda name: None
    adversary_module.FIRST_ACCURACY = 0.6
    folder = folder / f"share_{share}"
    run(folder / "whole", pictures_folder, adversarial_weight=0.5, adversarial_start=0.3, decoder_share=share)
    finish_step = Loop.finish_step
    stop = 1 if share else 4  # the second part has two steps of six

    def stop_after_some(self: Loop, *args: Any, **values: Any) -> None:
        finish_step(self, *args, **values)
        if self.progress.step == stop:
            raise KeyError("stopped")

    Loop.finish_step = stop_after_some  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        run(folder / "cut", pictures_folder, adversarial_weight=0.5, adversarial_start=0.3, decoder_share=share)
    Loop.finish_step = finish_step  # type: ignore[method-assign]
    run(
        folder / "cut", pictures_folder, adversarial_weight=0.5, adversarial_start=0.3, decoder_share=share, resume=True
    )


@pytest.mark.parametrize(("share", "steps"), ((0.0, 6), (0.3, 2)))
def test_two_processes_share_a_discriminator_and_resume(photographs, tmp_path, share, steps):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_two_processes, (port, photographs, tmp_path, share), nprocs=2)
    whole, cut = (
        load_file(tmp_path / f"share_{share}" / name / f"checkpoints/checkpoint-{steps}/state.safetensors")
        for name in ("whole", "cut")
    )
    assert any(name.startswith("companion/adversary.discriminator") for name in whole)
    for name, value in whole.items():
        assert torch.allclose(value.float(), cut[name].float(), rtol=1e-4, atol=1e-6), name


# ---- two parts


def test_terms_that_compare_features_come_with_a_second_part(photographs, tmp_path, capsys):
    second = run(tmp_path / "run", photographs, max_steps=10, patience=0.0)
    said = capsys.readouterr().out
    assert "part 1 of 2: the whole network by the error of the pixels, for 70% of the budget" in said
    assert said.count("next: ") == 1 and f"train_lm.py --image_tokenizer {tmp_path / 'run'} " in said
    first_folder = tmp_path / "run" / "first_part"
    first = [json.loads(line) for line in (first_folder / "metrics.jsonl").read_text().splitlines()]
    steps = [[line["step"] for line in lines if "loss" in line] for lines in (first, second)]
    assert [len(each) for each in steps] == [7, 3]
    assert "perceptual" not in first[0] and "perceptual" in second[0]
    before, after = (load_tokenizer(folder) for folder in (first_folder, tmp_path / "run"))
    assert before.fingerprint == after.fingerprint
    states = before.state_dict(), after.state_dict()
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["finished"] and info["steps"] == 10 and info["pictures_seen"] == 40
    assert info["options"]["train"] == "all" and info["first_part"]["steps"] == 7
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path / "run", photographs, max_steps=10)
    run(tmp_path / "run", photographs, max_steps=10, patience=0.0, resume=True)
    assert "is finished already" in capsys.readouterr().out
    run(tmp_path / "run", photographs, max_steps=12, patience=0.0, resume=True)
    assert load_tokenizer(tmp_path / "run").fingerprint == before.fingerprint, "more steps are the decoder's"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 12
    run(tmp_path / "run", photographs, max_steps=3, perceptual_weight=0.0, overwrite=True)
    assert not first_folder.exists()


@pytest.mark.parametrize("stop", range(1, 11))
def test_a_run_of_two_parts_resumes_to_the_last_bit(photographs, tmp_path, monkeypatch, stop):
    settings = {"adversarial_weight": 0.5, "adversarial_start": 0.0, "max_steps": 10}
    run(tmp_path / "whole", photographs, **settings)
    finish_step, count = Loop.finish_step, [0]

    def stop_after_some(self: Loop, *args: Any, **values: Any) -> None:
        finish_step(self, *args, **values)
        count[0] += 1
        if count[0] == stop:
            raise KeyError("stopped")

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Loop, "finish_step", stop_after_some)
        run(tmp_path / "cut", photographs, **settings)
    run(tmp_path / "cut", photographs, resume=True, **settings)
    names = ("model.safetensors", "first_part/model.safetensors", "checkpoints/checkpoint-4/state.safetensors")
    for name in names:  # the first part stops early, after 6 of 7 steps: the decoder has 4
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_stop_between_the_parts_goes_on_with_the_second(photographs, tmp_path, monkeypatch):
    run(tmp_path / "whole", photographs, max_steps=10)
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("pipelines.training.two_parts._decoder_options", lambda *values: {}["stopped"])
        run(tmp_path / "cut", photographs, max_steps=10)
    run(tmp_path / "cut", photographs, max_steps=10, resume=True)
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_a_run_that_began_in_one_part_stays_so(photographs, tmp_path):
    run(tmp_path / "run", photographs, max_steps=4, decoder_share=0.0)
    info = tmp_path / "run" / "run.json"
    values = json.loads(info.read_text())
    del values["options"]["decoder_share"]  # as an earlier version left it
    info.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"--decoder_share 0.5: the run in .* began in one part"):
        run(tmp_path / "run", photographs, max_steps=6, resume=True, decoder_share=0.5)
    lines = run(tmp_path / "run", photographs, max_steps=6, resume=True)
    assert lines[-1]["step"] == 6 and not (tmp_path / "run" / "first_part").exists()


def test_codebooks_of_fixed_points_keep_the_sizes_that_there_are(photographs, tmp_path):
    run(tmp_path / "run", photographs, quantizer="finite_scalar", codebook_sizes=[20])
    assert load_tokenizer(tmp_path / "run").config.codebook_sizes != [20]


def test_what_would_stop_the_second_part_stops_the_first(photographs, tmp_path):
    with pytest.raises(ValueError, match="no classifier could be read"):
        run(tmp_path / "run", photographs, extractor=f"classifier={tmp_path}")
    assert not (tmp_path / "run").exists()


def test_trackers_keep_the_parts_apart(photographs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "run", photographs, tracker="tensorboard")
    tags = []
    for folder in ("tensorboard/first_part", "tensorboard"):
        events = EventAccumulator(str(tmp_path / "run" / folder))
        events.Reload()
        tags.append(set(events.Tags()["scalars"]))
    assert "perceptual" not in tags[0] and "perceptual" in tags[1]


def test_overwriting_does_not_delete_what_the_run_starts_from(photographs, tmp_path):
    run(tmp_path / "run", photographs)
    source = tmp_path / "run" / "first_part"
    with pytest.raises(ValueError, match="--overwrite would delete --init_from .*first_part: copy that elsewhere"):
        run(tmp_path / "run", photographs, init_from=str(source), train="decoder", overwrite=True)
    assert (source / "model.safetensors").exists()


def test_a_first_part_that_is_gone_is_named(photographs, tmp_path):
    run(tmp_path / "run", photographs, patience=0.0)
    with pytest.raises(ValueError, match="--decoder_share 0: the run in .* began in two parts"):
        run(tmp_path / "run", photographs, max_steps=8, resume=True, decoder_share=0.0, allow_changes=True)
    shutil.rmtree(tmp_path / "run" / "first_part")
    with pytest.raises(ValueError, match="first_part is gone, from whose model the second part starts"):
        run(tmp_path / "run", photographs, max_steps=8, resume=True)


def test_a_decoder_that_diverges_begins_anew_from_the_first_part(photographs, tmp_path, monkeypatch):
    def broken(self: StageOneLoss, *values: Any, **named: Any) -> Any:
        loss, figures = forward(self, *values, **named)
        return (loss * float("nan") if figures else loss), figures

    forward = StageOneLoss.forward
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="--resume: the decoder begins anew"):
        patch.setattr(StageOneLoss, "forward", broken)
        run(tmp_path / "run", photographs)
    run(tmp_path / "run", photographs, resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_components_and_frozen_codes_have_one_part(photographs, tmp_path):
    settings = {"network": "components", "patch_size": None, "hidden_sizes": [8], "num_res_blocks": 2}
    run(tmp_path / "run", photographs, **settings)
    assert not (tmp_path / "run" / "first_part").exists()
    with pytest.raises(ValueError, match="--decoder_share 0.5: its codes stay as they are"):
        run(tmp_path / "other", photographs, decoder_share=0.5, **settings)


def test_the_decoders_share_is_as_asked_and_drawings_have_one_part(photographs, tmp_path, capsys):
    lines = run(tmp_path / "asked", photographs, decoder_share=0.5, perceptual_weight=0.0, codebook_decay=0.9)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3], "without terms beside the pixels, too"
    run(tmp_path / "drawings", photographs, photographs=False, random_flip=True)
    assert capsys.readouterr().out.rstrip().endswith(f"--dataset {photographs} --random_flip"), "so does stage 2"
    assert not (tmp_path / "drawings" / "first_part").exists()


def test_a_decoder_that_finishes_alone_keeps_codes(photographs, tmp_path):
    run(tmp_path / "first", photographs)
    run(
        tmp_path / "second",
        photographs,
        init_from=str(tmp_path / "first"),
        train="decoder",
        adversarial_weight=0.5,
        adversarial_start=0.0,
    )
    first, second = (load_tokenizer(tmp_path / name) for name in ("first", "second"))
    assert isinstance(first, VQVAE) and isinstance(second, VQVAE)
    assert first.fingerprint == second.fingerprint
    before, after = first.state_dict(), second.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_codes_from_a_model_are_decoded_and_judged(photographs, tmp_path, capsys):
    pipe = tiny_pipeline(tokenizer=tiny_tokenizer(patch_size=4))
    pipe.save_pretrained(tmp_path / "model")
    lines = run(
        tmp_path / "sharper", photographs, init_from=str(tmp_path / "model" / "image_tokenizer"), train="decoder",
        codes_from=str(tmp_path / "model"), drawn_pictures=5, adversarial_start=0.0,
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "drawing 5 pictures" in told
    assert f"sharper/model.safetensors {tmp_path / 'model' / 'image_tokenizer'}" in told
    assert load_tokenizer(tmp_path / "sharper").fingerprint == pipe.image_tokenizer.fingerprint
    assert "adversarial" in lines[0]


def test_codes_from_a_model_need_a_discriminator(photographs, tmp_path):
    pipe = tiny_pipeline(tokenizer=tiny_tokenizer(patch_size=4))
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"--codes_from .*only a discriminator .* leave --adversarial_weight out"):
        run(
            tmp_path / "run", photographs, init_from=str(tmp_path / "model" / "image_tokenizer"), train="decoder",
            codes_from=str(tmp_path / "model"), adversarial_weight=0.0,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_drawn_codes_are_keyed_by_step():
    codes = DrawnCodes(torch.arange(10)[:, None].expand(10, 3), seed=0)
    assert torch.equal(codes.part(3, 16), codes.part(3, 16)) and codes.part(3, 16).shape == (4, 3)
    assert codes.part(0, 2).shape == (1, 3)
    assert not torch.equal(codes.part(3, 16), codes.part(4, 16))


def test_codes_of_another_tokenizer_are_refused(photographs, tmp_path):
    tiny_pipeline(seed=1).save_pretrained(tmp_path / "model")
    tiny_tokenizer(seed=2).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"--codes_from .*model draws codes of another image tokenizer .* give --init_f"
    ):
        run(
            tmp_path / "run", photographs, init_from=str(tmp_path / "other"), train="decoder",
            codes_from=str(tmp_path / "model"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    (
        ({"train": "decoder"}, "--train decoder needs --init_from"),
        ({"codes_from": "model"}, "--codes_from model needs --train decoder"),
        ({"train": "decoder", "init_from": ".", "codebook_decay": 0.5}, "leave out --codebook_decay"),
        ({"train": "decoder", "init_from": ".", "decoder_share": 0.5}, "--decoder_share 0.5 is of a run that trains"),
        ({"decoder_share": 1.0}, "--decoder_share 1.0 must be at least zero and below 1"),
        ({"bottleneck": "none", "decoder_share": 0.5}, "has no codes: leave out --codebook_sizes, --decoder_share"),
        ({"perceptual_weight": -1.0}, "--perceptual_weight -1.0 must be at least zero"),
        ({"adversarial_weight": -0.1}, "--adversarial_weight -0.1 must be at least zero"),
        ({"extractor": "vgg"}, "--extractor: unknown extractor 'vgg'"),
    ),
)
def test_options_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        options(**settings)


def test_the_modules_constants_leave_room_between_won_and_lost():
    assert 0.5 < adversary_module.LOST < adversary_module.WON < 1
