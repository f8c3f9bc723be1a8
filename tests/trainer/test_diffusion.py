"""The noise schedule, and sampling with a predictor that is right."""

import math

import pytest
import torch

from motet.trainer.diffusion import MAX_BETA, Schedule


@pytest.mark.parametrize("steps", [10, 1000])
def test_schedule_is_the_cosine_of_the_paper(steps):
    kept = Schedule(steps).kept
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    expected = torch.tensor([f[t + 1] / f[0] for t in range(steps - 1)], dtype=torch.float64)
    torch.testing.assert_close(kept[:-1], expected)
    assert float(kept[-1]) == pytest.approx(float(kept[-2]) * (1 - MAX_BETA))
    assert bool((kept.diff() < 0).all())


def test_noisy_latents_keep_their_variance():
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4000, 8, generator=random) for _ in range(2))
    noisy = Schedule(100).noisy(clean, noise, torch.randint(0, 100, (4000,), generator=random))
    assert float(noisy.var()) == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(
        Schedule(1000).noisy(clean, noise, torch.zeros(4000, dtype=torch.long)), clean, atol=0.04, rtol=0
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_sampling_with_the_true_noise_finds_the_clean_latents(steps, eta):
    schedule = Schedule(1000)
    random = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 5, 3, generator=random, dtype=torch.float64).clamp(-3, 3)
    times = []

    def predict(noisy, time):
        times.append(time)
        kept = schedule.kept[time]
        return (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()

    start = torch.randn(clean.shape, generator=random, dtype=torch.float64)
    found = schedule.sample(predict, start, steps, random, eta)
    torch.testing.assert_close(found, clean)
    assert len(times) == steps and times[0] == 999 and times == sorted(times, reverse=True)


def test_sampling_gaussian_data_gives_its_mean_and_spread():
    """For data N(m, s^2) the best predictor is known in closed form."""
    schedule, mean, spread = Schedule(1000), 0.7, 0.4

    def predict(noisy, time):
        kept = float(schedule.kept[time])
        return (1 - kept) ** 0.5 * (noisy - kept**0.5 * mean) / (kept * spread**2 + 1 - kept)

    random = torch.Generator().manual_seed(0)
    for eta in (0.0, 1.0):
        found = schedule.sample(predict, torch.randn(20000, 1, generator=random), 100, random, eta)
        assert float(found.mean()) == pytest.approx(mean, abs=0.02)
        assert float(found.std()) == pytest.approx(spread, abs=0.03)
