"""Multi-resolution STFT loss: sounds compared by the magnitudes of their spectra."""

from __future__ import annotations

import torch
from torch import nn

WINDOWS = (1024, 256, 64)  # samples; a hop is a quarter of the window
FLOOR = 1e-3  # magnitude below which a sound counts as silent; the loss adds it, and so has a gradient there, too


def stft_magnitude(samples: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Sound (N, time) float32 to the magnitudes (N, frequencies, frames) of its short-time Fourier transform, scaled so
    that a sine of amplitude 1 has about 1."""
    size = len(window)
    spectrum = torch.stft(
        samples, size, hop_length=size // 4, window=window, return_complex=True, pad_mode="constant"
    )  # fmt: skip
    power = spectrum.real.square() + spectrum.imag.square()
    return (power + 1e-10).sqrt() * (2 / window.sum())


class SpectralLoss(nn.Module):
    """Mean over resolutions of spectral convergence and log magnitude distance (Yamamoto et al. 2020, Parallel WaveGAN,
    equations 5 to 7):

        |S(x) - S(y)|_F / |S(x)|_F + mean |log(S(x) + f) - log(S(y) + f)|

    with S the STFT magnitude, x the sound, y its reconstruction and f `FLOOR`.

    Args:
        windows: sizes of the STFT windows, in samples.
    """

    def __init__(self, windows: tuple[int, ...] = WINDOWS) -> None:
        super().__init__()
        self.windows = windows
        for size in windows:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def distances(self, sound: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Two (B, C, time), in [-1, 1] about, to the distance of each pair, (B,) float32: 0 if they are equal."""
        total = sound.new_zeros(len(sound), dtype=torch.float32)
        for size in self.windows:
            window = getattr(self, f"window_{size}")
            first, second = (
                stft_magnitude(one.float().flatten(0, 1), window).unflatten(0, one.shape[:2])
                for one in (sound, reconstruction)
            )
            axes = (1, 2, 3)
            difference = (first - second).square().sum(axes).clamp(min=1e-12).sqrt()
            convergence = difference / first.square().sum(axes).sqrt().clamp(min=FLOOR)
            logs = ((first + FLOOR).log() - (second + FLOOR).log()).abs().mean(axes)
            total = total + convergence + logs
        return total / len(self.windows)

    def forward(self, sound: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """The mean of `distances`, a scalar."""
        return self.distances(sound, reconstruction).mean()
