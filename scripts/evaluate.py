"""Measure a trained model, an image tokenizer alone, or an autoencoder without codes.

    python scripts/evaluate.py --model runs/model --output report.json --report runs/model/report
    python scripts/evaluate.py --image_tokenizer runs/tokenizer --dataset path/to/pictures
    python scripts/evaluate.py --autoencoder runs/vae --report runs/vae/report

Writes the figures as JSON, prints a table, and with --report makes a page to look at. On sprites it also
counts how many samples show what their captions say, and how many captions say what their pictures show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.machine.destinations import make_folder
from pipelines.machine.processors import usable_cores
from pipelines.options.evaluation import EvaluationOptions
from pipelines.options.parser import run_command


def main(options: EvaluationOptions) -> dict[str, Any]:
    """Measure; write the figures, print a table, make the page; return the figures."""
    import torch
    import transformers

    from pipelines.evaluation.autoencoders import evaluate_autoencoder
    from pipelines.evaluation.evaluation import evaluate
    from pipelines.evaluation.report.autoencoder_page import write_autoencoder_page
    from pipelines.evaluation.report.contents import write_page
    from pipelines.evaluation.report.signal_page import signals_table, write_signal_page
    from pipelines.evaluation.report.tables import figures_table
    from pipelines.evaluation.signals import evaluate_signals
    from pipelines.evaluation.subject import check_has_codes, load_model
    from tokenizer_image.signals.settings import signal_settings_of

    transformers.logging.disable_progress_bar()  # models load in seconds
    torch.set_num_threads(options.cpu_threads or usable_cores())
    output = Path(options.output)
    make_folder(output.parent, "--output")
    check_has_codes(options)
    if options.report is not None:
        make_folder(options.report, "--report")
    evaluation: Any
    table, write = figures_table, write_page
    if options.autoencoder is not None:
        evaluation, write = evaluate_autoencoder(options), write_autoencoder_page
    elif signal_settings_of((model := load_model(options)).image_tokenizer) is None:
        evaluation = evaluate(options, model)
    else:
        evaluation, table, write = evaluate_signals(options, model), signals_table, write_signal_page
    # The figures come first: drawing samples or plotting may fail after everything has been measured.
    output.write_text(json.dumps(evaluation.report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(evaluation.report)}\n\nall figures: {output}")
    if options.report is not None:
        print(f"page:        {write(options, evaluation, options.report)}")
    return evaluation.report


if __name__ == "__main__":
    run_command(main, EvaluationOptions, __doc__)
