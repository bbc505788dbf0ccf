"""Options of `scripts/train_lm.py`."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.options.data import CacheOptions
from pipelines.options.option import option, with_option_names
from pipelines.options.sequences import SequenceOptions
from pipelines.options.training import TrainingOptions

# The names that `lm.model` knows, which imports torch; a test compares them.
ARCHITECTURES = ("llama", "qwen3", "gpt2")
SIZES = ("2M", "3M", "10M", "25M", "85M", "300M", "1B")
BATCH_SIZE = 64  # where neither the option nor the budget says otherwise
SHAPE = ("architecture", "num_layers", "hidden_size", "intermediate_size", "num_heads")


@dataclass
class LanguageModelOptions(SequenceOptions, CacheOptions, TrainingOptions):
    """Options of `scripts/train_lm.py`."""

    script: ClassVar[str | None] = "train_lm.py"
    output_dir: str = option("runs/model", "folder of the run and of the model")
    image_size: int | None = option(
        None,
        "side of the pictures in pixels, if given: the image tokenizer's, or one of --image_sizes",
        above_zero=True,
    )
    lm_name_or_path: str | None = option(None, "start from this causal LM of transformers, on disk or Hub")
    lora_rank: int | None = option(
        None,
        "of --lm_name_or_path or --init_from, train low-rank adapters of this rank and the rows of new tokens; all "
        "other weights stay as they are (needs peft)",
        above_zero=True,
    )
    text_check: str | None = option(
        None,
        "a text file that the earlier model was not trained on: how well it is predicted, before training and after "
        "(default: with --lm_name_or_path, the captions of the validation split)",
    )
    text_tokenizer: str | None = option(None, "a tokenizer of transformers, on disk or Hub (default: train a BPE)")
    text_vocab_size: int = option(4096, "most tokens of the BPE that is trained on the captions", above_zero=True)
    architecture: str = option(
        "llama", "'llama', 'qwen3' (normalised queries and keys, steadier at size) or 'gpt2'", choices=ARCHITECTURES
    )
    lm_size: str | None = option(None, f"{', '.join(SIZES)} (default: by codes per picture and budget)", choices=SIZES)
    num_layers: int | None = option(None, "overrides that of --lm_size", above_zero=True)
    hidden_size: int | None = option(None, "overrides that of --lm_size", above_zero=True)
    intermediate_size: int | None = option(None, "overrides that of --lm_size", above_zero=True)
    num_heads: int | None = option(None, "overrides that of --lm_size", above_zero=True)
    optimizer: str = option(
        "adamw",
        "'adamw'; 'adamw8bit', the same with states of 8 bits (needs bitsandbytes); or 'muon' for the inner matrices",
        choices=("adamw", "adamw8bit", "muon"),
    )
    muon_learning_rate: float = option(0.02, "peak learning rate of Muon, on AdamW's scale", above_zero=True)
    batch_size: int | None = option(  # type: ignore[assignment]  # `choose_batch_size` settles it before it is read
        None,
        "sequences a step, over all processes and accumulation steps (default: 64, or 32 or 16 where --max_minutes "
        "would leave few steps)",
        above_zero=True,
    )
    gradient_accumulation_steps: int = option(
        1, "parts in which a process works through its share of a batch", above_zero=True
    )
    z_loss_weight: float = option(
        0.0, "weight of the squared log-partition; 1e-5 keeps large models' logits in bounds", not_negative=True
    )
    weight_decay: float | None = option(  # type: ignore[assignment]  # stage 2 reads the recipe's
        None, "weight decay of matrices (default: by pictures and budget)", not_negative=True
    )
    dropout: float | None = option(
        None, "share of activations that training drops (default: by pictures and budget)", within="[0, 1)"
    )
    code_noise: float | None = option(
        None,
        "share of the codes read in training that are replaced by others (default: by pictures and budget)",
        within="[0, 1)",
    )
    gradient_checkpointing: bool = option(False, "compute layers again in the backward pass: less memory, more time")
    dry_run: bool = option(False, "print how much memory the run would take, before weights or pictures are read")
    compile: bool = option(False, "compile the layers first (torch.compile); needs a C++ compiler on a CPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from and self.lm_name_or_path:
            raise ValueError(
                f"--init_from {self.init_from} and --lm_name_or_path {self.lm_name_or_path} exclude each other: give "
                "the one to start from"
            )
        self._check_fine_tuning()
        if self.text_tokenizer and self.text_vocab_size != type(self).text_vocab_size:
            raise ValueError(
                f"--text_vocab_size {self.text_vocab_size} is of a BPE that is trained here: leave it out, or "
                f"--text_tokenizer {self.text_tokenizer}"
            )
        if (self.lm_size or self.hidden_size) and not (self.init_from or self.lm_name_or_path):
            from lm.model import model_sizes

            try:
                model_sizes(**self.sizes(tokens_per_image=1))
            except ValueError as error:
                raise ValueError(with_option_names(str(error), {name: name for name in SHAPE})) from error

    def _check_fine_tuning(self) -> None:
        starts = self.init_from or self.lm_name_or_path
        if self.lora_rank and not starts:
            raise ValueError(
                f"--lora_rank {self.lora_rank} adapts a model that is there: give --lm_name_or_path or --init_from, or "
                "leave it out"
            )
        if self.lora_rank and self.optimizer == "muon":
            raise ValueError(
                f"--lora_rank {self.lora_rank} and --optimizer muon exclude each other: Muon is for whole matrices, "
                "and adapters are factors of one; give --optimizer adamw"
            )
        needed = {"peft": f"--lora_rank {self.lora_rank}"} if self.lora_rank else {}
        needed |= {"bitsandbytes": f"--optimizer {self.optimizer}"} if self.optimizer == "adamw8bit" else {}
        for package, given in needed.items():
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"{given} needs {package}, which is not installed: pip install 'tessera[finetune]'")
        if self.text_check and not starts:
            raise ValueError(
                f"--text_check {self.text_check}: a new model has no text to keep; leave it out, or give "
                "--lm_name_or_path or --init_from"
            )
        if self.text_check and not os.path.isfile(self.text_check):
            raise ValueError(f"--text_check {self.text_check}: there is no such file")

    def sizes(self, tokens_per_image: int, size: str | None = None) -> dict[str, Any]:
        """The options that give the shape of the language model, under the names of `lm.model.build_configuration`.

        Args:
            size: what --lm_size is by default (default: by codes per picture alone).
        """
        from lm.model import default_size

        size = self.lm_size or size or default_size(tokens_per_image)
        return {"size": size, **{name: getattr(self, name) for name in SHAPE}}
