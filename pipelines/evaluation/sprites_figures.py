"""What samples and captions of sprites show and say: a probe and a grammar read them, as the options ask."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.drawing_comparison import best_of_report, completion_report
from pipelines.evaluation.metrics.reconstruction import device_of
from pipelines.evaluation.probes.alignment import AlignmentSet, alignment_report
from pipelines.evaluation.probes.captions import caption_report
from pipelines.evaluation.probes.edits import EditSet, edit_report
from pipelines.evaluation.probes.probe_training import load_probe
from pipelines.evaluation.subject import EvaluatedModel
from pipelines.options.evaluation import EvaluationOptions

CAPTION_CANDIDATES = 16  # captions a picture, of which the best is chosen, for models that also draw from captions


def alignment_figures(options: EvaluationOptions, model: EvaluatedModel, sets: list[AlignmentSet]) -> dict[str, Any]:
    """What the probe reads in pictures of sprites; `best_of` and `completion` where the options ask for them."""
    probe = load_probe(device=device_of(model.image_tokenizer))
    pipeline, batch_size, seed, sampling = (
        model.drawing_from_captions, options.batch_size, options.seed, options.sampling(),
    )  # fmt: skip
    report = alignment_report(
        pipeline, model.image_tokenizer, probe, sets=sets, batch_size=batch_size, seed=seed, sampling=sampling
    )
    if pipeline is not None and options.best_of > 1:
        report["best_of"] = best_of_report(
            pipeline, probe, options.best_of, num_captions=options.best_of_captions, batch_size=batch_size, seed=seed,
            sampling=sampling,
        )  # fmt: skip
    if pipeline is not None and options.completion_captions:
        report["completion"] = completion_report(
            pipeline, probe, num_captions=options.completion_captions, batch_size=batch_size, seed=seed,
            sampling=sampling,
        )  # fmt: skip
    return report


def edit_figures(options: EvaluationOptions, model: EvaluatedModel, sets: list[EditSet]) -> dict[str, Any]:
    """What the probe reads in results of edits."""
    assert model.pipeline is not None
    sampling = options.sampling()
    if options.image_guidance_scale is not None:
        sampling["image_guidance_scale"] = options.image_guidance_scale
    return edit_report(
        model.pipeline, model.image_tokenizer, load_probe(device=device_of(model.image_tokenizer)), sets,
        batch_size=options.batch_size, seed=options.seed, sampling=sampling,
    )  # fmt: skip


def caption_figures(options: EvaluationOptions, model: EvaluatedModel, sets: list[AlignmentSet]) -> dict[str, Any]:
    """What the model's captions of sprites state rightly."""
    assert model.pipeline is not None
    default = 1 if model.drawing_from_captions is None else CAPTION_CANDIDATES
    return caption_report(
        model.pipeline,
        sets,
        best_of=options.describe_best_of or default,
        batch_size=options.batch_size,
        seed=options.seed,
    )
