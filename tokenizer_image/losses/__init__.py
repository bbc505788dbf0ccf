"""What stage 1 learns from: reconstruction, perceptual and adversarial terms, and how they are balanced."""
