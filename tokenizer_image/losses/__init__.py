"""What stage 1 learns from: reconstruction, perceptual and adversarial terms, and how they are balanced."""

from tokenizer_image.losses import inception, own_classifier, torchvision_networks  # noqa: F401  # register extractors
