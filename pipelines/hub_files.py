"""What a model folder on the Hub has besides, so that diffusers and transformers load it by its name alone.

The files are `pipeline.py`, a pipeline of diffusers around ours; `image_tokenizer/modeling_tessera.py`, the tokenizer
for AutoModel and AutoImageProcessor (`auto_map`), with its `preprocessor_config.json`; and `vocabulary/`, a copy of
lm's tokenizer and vocabulary.json: of a folder with weights, diffusers fetches the weights and config.json alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lm.vocabulary import MultimodalVocabulary
from pipelines.model_folder import INDEX_FILE
from tokenizer_image.auto_classes import PROCESSOR_FILE, PictureProcessor
from tokenizer_image.signals.settings import signal_settings_of
from tokenizer_image.vqvae import VQVAE

SOURCES = Path(__file__).parent / "hub"
PIPELINE_FILE, MODELING_FILE = "pipeline.py", "modeling_tessera.py"
AUTO_CLASSES = {"AutoConfig": "TesseraTokenizerConfig", "AutoModel": "TesseraTokenizer"}
PROCESSOR_CLASS = "TesseraProcessor"


def write_hub_files(folder: Path, image_tokenizer: Any, model: Any, vocabulary: MultimodalVocabulary) -> bool:
    """Write them into a model folder. A tokenizer of another class than ours gets none, and False is returned: only who
    has registered it can load the model. Nor does one of signals, for which diffusers has no such pipeline."""
    if type(image_tokenizer) is not VQVAE or signal_settings_of(image_tokenizer) is not None:
        return False
    module = Path(MODELING_FILE).stem
    tokenizer_folder = folder / "image_tokenizer"
    shutil.copy(SOURCES / PIPELINE_FILE, folder)
    for place in (folder, tokenizer_folder):  # transformers looks beside the name, diffusers beside the weights
        shutil.copy(SOURCES / MODELING_FILE, place)
    auto_map = {auto: f"{module}.{name}" for auto, name in AUTO_CLASSES.items()}
    _add(tokenizer_folder / "config.json", auto_map=auto_map)
    PictureProcessor.of(image_tokenizer).save_pretrained(tokenizer_folder)
    _add(tokenizer_folder / PROCESSOR_FILE, auto_map={"AutoImageProcessor": f"{module}.{PROCESSOR_CLASS}"})
    vocabulary.save_pretrained(folder / "vocabulary")
    _add(
        folder / INDEX_FILE,
        image_tokenizer=[module, AUTO_CLASSES["AutoModel"]],
        lm=["transformers", type(model).__name__],
        vocabulary=["transformers", "PreTrainedTokenizerFast"],
    )
    return True


def _add(file: Path, **values: Any) -> None:
    """Add entries to a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
