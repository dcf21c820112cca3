"""Temporal signatures over many seeds: bounds, times after a given moment, goodness of fit of drawn times, determinism, faults."""
import numpy as np, pytest, torch
from rdbpfn.core import InputError, generator
from rdbpfn.temporal import FAMILIES, GRID, MOMENTS, Signature, TemporalConfig, between, draw_times, sample_signature, standardise

SIGNATURES = [sample_signature(generator(20, i)) for i in range(200)]


def distance(times, cdf):
    F, n = cdf(times), len(times)
    return float(torch.maximum(torch.arange(1, n + 1)/n - F, F - torch.arange(n)/n).max())


def test_a_signature_is_positive_bounded_and_standardised():
    for s in SIGNATURES:
        assert s.rate.shape == (GRID,) and s.rate.min() > 0 and s.rate.max()/s.rate.min() <= np.exp(8.001)
        assert s.channels.shape == (GRID, 4) and s.channels.dtype == torch.float32 and s.channels.isfinite().all()
        assert s.channels.mean(0).abs().max() < 1e-4
        deviation = s.channels.square().mean(0).sqrt()
        assert ((deviation - 1).abs() < 1e-3).logical_or(deviation < 1e-3).all()
    assert {f for s in SIGNATURES for f in s.forms} == {(family, form) for family, forms in FAMILIES.items() for form in forms}    # all are used


def test_every_form_is_finite_on_extreme_numbers():
    for forms in FAMILIES.values():
        for form in forms.values():
            for u in ([0.]*32, [.5]*32, [1 - 2**-24]*32):
                assert standardise(form(MOMENTS, u)).isfinite().all()


@pytest.mark.parametrize('n', [1, 2, 1000])
@pytest.mark.parametrize('after', [0., .5, .999, 1 - 1e-12, float(np.nextafter(1, 0))])
def test_times_ascend_after_the_given_moment(n, after):
    for i, s in enumerate(SIGNATURES[:20]):
        t = draw_times(generator(21, i), s, n, after)
        assert t.shape == (n,) and t.dtype == torch.float64
        assert (t.diff() >= 0).all() and t.min() > after and t.max() <= 1


def test_drawn_times_follow_the_intensity():
    "200 signatures, 1 % level: 2 rejections expected, 8 would be a 1 in 1,000 event; after a moment, the law is the conditional one"
    D = [distance(draw_times(generator(22, i), s, 1000), s.cdf) for i, s in enumerate(SIGNATURES)]
    assert sum(d > 1.63/1000**.5 for d in D) < 8
    for i, s in enumerate(SIGNATURES[:50]):
        start = s.cdf(torch.tensor([.4], dtype=torch.float64))
        D[i] = distance(draw_times(generator(23, i), s, 1000, .4), lambda t: (s.cdf(t) - start)/(1 - start))
    assert sum(d > 1.63/1000**.5 for d in D[:50]) < 4
    assert np.median([distance(draw_times(generator(22, i), s, 1000), lambda t: t) for i, s in enumerate(SIGNATURES)]) > 1.63/1000**.5


def test_intensity_is_the_slope_of_the_cdf():
    t = (MOMENTS[1:] + MOMENTS[:-1])/2                                       # inside a grid cell the CDF is straight
    for s in SIGNATURES[:20]:
        slope = (s.cdf(t + 2e-4) - s.cdf(t - 2e-4))/4e-4
        assert torch.allclose(slope, s.intensity(t)/s.intensity(t).mean(), rtol=1e-6)


def test_drawn_times_are_as_irregular_as_chance():
    "Kolmogorov: the mean of sqrt(n) D is sqrt(pi/2) log 2 = 0.869, standard deviation 0.26; times at regular gaps would fall below"
    D = [1000**.5*distance(draw_times(generator(29, i), s, 1000), s.cdf) for i, s in enumerate(SIGNATURES)]
    assert abs(np.mean(D) - .86) < .07


def test_strength_is_the_spread_of_the_log_intensity():
    for strength in (0., .3, .8):
        spread = [sample_signature(generator(24, i), TemporalConfig(strength=(strength, strength))).rate.log().std() for i in range(30)]
        assert max(spread) < strength + 1e-3 and np.median(spread) > .8*strength - 1e-9
    spread = [float(sample_signature(generator(24, i), TemporalConfig(strength=(.2, 1.))).rate.log().std()) for i in range(100)]
    assert min(spread) < .3 and max(spread) > .8 and abs(np.mean(spread) - .58) < .08


def test_families_can_be_chosen():
    for j, family in enumerate(FAMILIES):
        config = TemporalConfig(families=tuple(float(i == j) for i in range(3)), n_forms=(3, 3), channels=2)
        s = sample_signature(generator(25, j), config)
        assert [f for f, _ in s.forms] == [family]*3 and s.channels.shape == (GRID, 2)


def test_same_generator_same_signature_and_no_global_randomness():
    before = torch.get_rng_state()
    a, b = (sample_signature(generator(26, 5)) for _ in range(2))
    assert a.forms == b.forms and torch.equal(a.rate, b.rate) and torch.equal(a.channels, b.channels)
    assert torch.equal(*(draw_times(generator(26, 6), a, 100) for _ in range(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a.rate, sample_signature(generator(26, 7)).rate)


def test_a_million_rows():
    t = draw_times(generator(27), SIGNATURES[0], 1_000_000)
    assert distance(t, SIGNATURES[0].cdf) < 1.63/1000
    assert SIGNATURES[0].level(t).shape == (1_000_000, 4)


def test_interpolation_is_linear_between_grid_points_and_exact_on_them():
    values = torch.randn(11, 3, generator=generator(28), dtype=torch.float64)
    assert torch.allclose(between(values, torch.linspace(0, 1, 11, dtype=torch.float64)), values)
    assert torch.allclose(between(values, torch.tensor([.05], dtype=torch.float64))[0], values[:2].mean(0))


@pytest.mark.parametrize('field, value', [('n_forms', (0, 2)), ('n_forms', (3, 1)), ('families', (.5, .6, .2)), ('families', (1.2, -.1, -.1)), ('families', (1.,)),
                                          ('strength', (-.1, 1.)), ('strength', (1., .5)), ('channels', 0)])
def test_impossible_configs_are_refused(field, value):
    with pytest.raises(InputError, match=f'TemporalConfig.{field}'): TemporalConfig(**{field: value})


@pytest.mark.parametrize('after', [1., -.1, 2., float('nan')])
def test_no_rows_after_the_end_of_time(after):
    with pytest.raises(InputError, match=r'must lie in \[0, 1\)'): draw_times(generator(0), SIGNATURES[0], 3, after)
