"""What stage 1 learns from: reconstruction, perceptual and adversarial terms, and how they are balanced."""

from tokenizer_image.losses import own_classifier  # noqa: F401  # registers its extractors
