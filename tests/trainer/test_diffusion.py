"""The two processes, and sampling with a predictor that is right."""

import math

import pytest
import torch

from motet.trainer.objective.diffusion import MAX_BETA, Cosine, Flow, process

PROCESSES = [Cosine, Flow]


@pytest.mark.parametrize("steps", [10, 1000])
def test_cosine_is_the_schedule_of_the_paper(steps):
    kept = Cosine(steps).alpha.square()
    f = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    expected = torch.tensor([f[t + 1] / f[0] for t in range(steps - 1)], dtype=torch.float64)
    torch.testing.assert_close(kept[:-1], expected)
    assert float(kept[-1]) == pytest.approx(float(kept[-2]) * (1 - MAX_BETA))
    assert bool((kept.diff() < 0).all())
    torch.testing.assert_close(kept + Cosine(steps).sigma.square(), torch.ones(steps, dtype=torch.float64))


def test_flow_is_a_straight_line_that_ends_in_pure_noise():
    flow, random = Flow(8), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(8, 3, generator=random, dtype=torch.float64) for _ in range(2))
    for i, row in enumerate(flow.noisy(clean, noise, torch.arange(8))):
        torch.testing.assert_close(row, clean[i] + (i + 1) / 8 * flow.target(clean, noise)[i])
    torch.testing.assert_close(row, noise[7])


def test_cosine_keeps_the_variance():
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4000, 8, generator=random) for _ in range(2))
    noisy = Cosine(100).noisy(clean, noise, torch.randint(0, 100, (4000,), generator=random))
    assert float(noisy.var()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", PROCESSES)
def test_at_first_the_latents_are_almost_clean(kind):
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4000, 8, generator=random) for _ in range(2))
    noisy = kind(1000).noisy(clean, noise, torch.zeros(4000, dtype=torch.long))
    torch.testing.assert_close(noisy, clean, atol=0.04, rtol=0)


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_sampling_with_the_true_prediction_finds_the_clean_latents(kind, steps, eta):
    diffusion = kind(1000)
    random = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 5, 3, generator=random, dtype=torch.float64).clamp(-3, 3)
    times = []

    def predict(noisy, time):
        times.append(time)
        noise = (noisy - diffusion.alpha[time] * clean) / diffusion.sigma[time]
        return noise - clean if kind is Flow else noise

    start = torch.randn(clean.shape, generator=random, dtype=torch.float64)
    found = diffusion.sample(predict, start, steps, random, eta)
    torch.testing.assert_close(found, clean)
    assert len(times) == steps and times[0] == 999 and times == sorted(set(times), reverse=True)


def best(diffusion, mean, spread):
    """The best predictor for data N(mean, spread^2): what is expected of the noise and the data, given their mixture."""

    def predict(noisy, time):
        alpha, sigma = float(diffusion.alpha[time]), float(diffusion.sigma[time])
        surprise = (noisy - alpha * mean) / (alpha**2 * spread**2 + sigma**2)
        noise, clean = sigma * surprise, mean + alpha * spread**2 * surprise
        return noise - clean if isinstance(diffusion, Flow) else noise

    return predict


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize(("mean", "spread"), [(0.7, 0.4), (-0.3, 1.0), (0.0, 0.05)])
def test_gaussian_data_comes_out_with_its_mean_and_spread(kind, mean, spread):
    """Without added noise, samples are an affine function of the start: two starts give its mean and spread exactly."""
    diffusion, errors = kind(4000), []
    for steps in (25, 250, 4000):
        zero, one = diffusion.sample(best(diffusion, mean, spread), torch.tensor([0.0, 1.0]).double(), steps).tolist()
        errors.append(max(abs(zero - mean), abs(one - zero - spread)))
    assert errors[2] < 2e-3 and errors[1] < 0.03
    assert errors[2] <= errors[1] <= errors[0] or errors[0] < 1e-9, "more steps follow the process more closely"


@pytest.mark.parametrize("kind", PROCESSES)
def test_drawing_as_the_posterior_does_gives_the_same_mean_and_spread(kind):
    diffusion, random = kind(1000), torch.Generator().manual_seed(0)
    noise = torch.randn(20000, 1, generator=random, dtype=torch.float64)
    found = diffusion.sample(best(diffusion, 0.7, 0.4), noise, 200, random, eta=1.0)
    assert float(found.mean()) == pytest.approx(0.7, abs=0.01)
    assert float(found.std()) == pytest.approx(0.4, abs=0.01)


def test_flow_without_added_noise_is_eulers_method():
    flow, random = Flow(100), torch.Generator().manual_seed(0)
    turn = torch.randn(3, 3, generator=random, dtype=torch.float64)
    start = torch.randn(4, 3, generator=random, dtype=torch.float64)

    def direction(x, time):
        return (x @ turn).sin() * (time + 1) / 100

    x = start
    for i in range(20):
        x = x - direction(x, 99 - 5 * i) / 20
    torch.testing.assert_close(flow.sample(direction, start, 20), x, rtol=0, atol=1e-12)


def test_processes_have_the_names_of_the_configuration():
    assert isinstance(process("ddpm", 10), Cosine) and isinstance(process("flow", 10), Flow)
