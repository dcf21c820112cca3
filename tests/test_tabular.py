"""The single-table prior over many seeds: shapes, determinism across processes, class balance, variety, speed."""
import hashlib, os, subprocess, sys, time
import numpy as np, pytest, torch
from rdbpfn.core import InputError, generator
from rdbpfn.tabular import TabularConfig, between, law, sample_batch
from rdbpfn.worlds import clusters, effects, groups, grow, near_layer

SHAPES = [(1, 4, 1), (3, 17, 2), (8, 60, 5), (5, 128, 8), (2, 300, 40), (1, 1400, 60)]


@pytest.mark.parametrize('shape', SHAPES)
def test_every_batch_is_a_valid_task(shape):
    B, R, C = shape
    for index in range(12):
        x, y = sample_batch(3, index, B, R, C)
        assert x.shape == (B, R, C) and y.shape == (B, R) and x.dtype == torch.float32
        assert not x.isinf().any() and set(y.unique().tolist()) <= {0., 1.}
        minority = torch.minimum(y.sum(1), R - y.sum(1))
        assert (minority >= max(1, .05*R - 1)).all()


def digest(seed, index): return hashlib.sha256(b''.join(t.numpy().tobytes() for t in sample_batch(seed, index, 16, 96, 7))).hexdigest()


def test_same_bytes_in_another_process_and_out_of_order():
    code = 'import torch, hashlib; torch.set_num_threads({}); from rdbpfn.tabular import sample_batch as s\n' \
           'for i in (7, 2): print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in s(11, i, 16, 96, 7))).hexdigest())'
    for threads in (1, 2):
        out = subprocess.run([sys.executable, '-c', code.format(threads)], capture_output=True, text=True, check=True).stdout.split()
        assert out == [digest(11, 7), digest(11, 2)]


def test_batches_and_seeds_differ():
    assert len({digest(s, i) for s in range(5) for i in range(10)}) == 50


def test_no_global_randomness():
    torch.manual_seed(1); a = digest(0, 0); before = torch.get_rng_state()
    torch.manual_seed(2); assert digest(0, 0) == a
    torch.manual_seed(1); digest(0, 0); assert torch.equal(torch.get_rng_state(), before)


def test_the_prior_holds_what_real_tables_hold():
    "Categories, counts, heavy tails, holes, constants within reason, all three arrows of dependence"
    columns, holes = [], []
    for i in range(40):
        x, _ = sample_batch(5, i, 16, 200, 8)
        holes.append(x.isnan().float().mean((1, 2)))
        columns += [c[~c.isnan()] for t in x for c in t.T]
    columns = [c for c in columns if len(c) > 50]
    few = np.mean([len(c.unique()) <= 12 for c in columns]); binary = np.mean([len(c.unique()) == 2 for c in columns])
    whole = np.mean([bool((c == c.round()).all()) for c in columns])
    heavy = np.mean([float(((c - c.mean())/(c.std() + 1e-9)).pow(4).mean()) > 10 for c in columns])
    assert .1 < few < .6 and .02 < binary < .3 and .15 < whole < .7 and .05 < heavy < .4, (few, binary, whole, heavy)
    holes = torch.cat(holes)
    assert .2 < (holes > 0).float().mean() < .6 and holes.max() < .7


def test_easing_makes_tables_whole_and_balanced():
    x, y = sample_batch(0, 0, 64, 100, 6, TabularConfig().eased(0.))
    assert not x.isnan().any() and ((y.mean(1) - .5).abs() < .01).all()
    for d, want in ((1., TabularConfig()), (0., TabularConfig(n_layers=(1, 1), noise=(.01, .01), minority=(.5, .5), near_share=0., panel_share=0., category_share=0., missing_share=0., irrelevant_share=0., duplicate_share=0.))):
        got = TabularConfig().eased(d)
        for f in vars(want): assert np.allclose(getattr(got, f), getattr(want, f), atol=1e-12), f


def test_columns_carry_signal():
    "The strongest column of a table correlates with the label far more often than chance allows"
    x, y = sample_batch(9, 0, 64, 400, 6, TabularConfig(missing_share=0., irrelevant_share=0.))
    z = (x - x.mean(1, keepdim=True))/(x.std(1, keepdim=True) + 1e-6)
    c = (z*(y - y.mean(1, keepdim=True))[..., None]).mean(1)/y.std(1, keepdim=True)
    assert (c.abs().max(1).values > .2).float().mean() > .5


@pytest.mark.parametrize('B', [1, 2, 16])
def test_shares_hold_whatever_the_number_of_tables(B):
    "A large table comes alone in its batch, and is a tree or a panel as often as a small one"
    config = TabularConfig(tree_share=.4, near_share=0., panel_share=0., noise=(1e-8, 1e-7))
    last = torch.cat([grow(generator(4, i), B, 600, 8, config)[0][:, -1] for i in range(160//B)])
    trees = np.mean([len(c.mul(1e4).round().unique()) < 400 for c in last])          # a tree has few values; sums of continuous causes have many
    numbers = torch.cat([grow(generator(5, i), B, 600, 8, TabularConfig(panel_share=.5))[0][:, 0] for i in range(160//B)])
    panels = np.mean([len(c.unique()) <= 301 for c in numbers])
    assert .3 < trees < .75 and .4 < panels < .8, (trees, panels)


def test_groups_are_between_four_and_half_the_rows_and_their_effects_are_theirs():
    for R in (4, 9, 40, 1000):
        g = groups(generator(1, R), 64, R)
        assert g.min() == 0 and g.max() <= max(R/2, 5)
        e = effects(generator(2, R), g, 3)
        assert e.isfinite().all() and all(len(t[0][k == v].unique()) == 1 for k, t in zip(g[:8, 0], e[:8]) for v in k.unique())


def test_a_likeness_depends_on_what_is_near():
    "Rows that agree in all variables agree in the value; a mean stays in the range of the prototypes' values"
    z = torch.randn(4, 5, 300, generator=generator(3))
    z[:, :, 1] = z[:, :, 0]
    for s in range(20):
        out = near_layer(generator(s), z, 7)
        assert out.shape == (4, 7, 300) and out.isfinite().all() and torch.allclose(out[..., 0], out[..., 1], atol=1e-5)


def test_a_panel_is_learned_by_looking_up_its_number():
    "Where rows of a group share their label, a forest finds most of it in the number of the group"
    from sklearn.ensemble import RandomForestClassifier
    g = groups(generator(6), 1, 800)
    y = (effects(generator(7), g, 1)[0, 0] > 0).numpy()
    x = g[0].T.float().numpy()
    assert RandomForestClassifier(50, random_state=0).fit(x[:600], y[:600]).score(x[600:], y[600:]) > max(y.mean(), 1 - y.mean()) + .1


def test_shares_of_kinds_must_fit_together():
    with pytest.raises(InputError, match='must not sum to more than 1'): TabularConfig(tree_share=.9, near_share=.2)


@pytest.mark.parametrize('bad', [dict(noise=(0., 1.)), dict(minority=(.1, .6)), dict(tree_share=1.1), dict(n_layers=(0, 2))])
def test_impossible_configs_are_refused_at_construction(bad):
    with pytest.raises(InputError, match=f'TabularConfig.{next(iter(bad))} must lie in'): TabularConfig(**bad)


def test_speed():
    "The issue asks for 1,000 tables of 128 x 8 per second and core; seven times that was measured on an idle core"
    torch.set_num_threads(1)
    sample_batch(0, 0, 64, 128, 8)
    begin = time.process_time()
    for i in range(10): sample_batch(0, i, 64, 128, 8)
    assert 640/(time.process_time() - begin) > 1000


KINDS = [dict(law_share=1.), dict(cluster_share=1.), dict(law_share=.5, cluster_share=.5)]


@pytest.mark.parametrize('kinds', KINDS)
@pytest.mark.parametrize('shape', SHAPES)
def test_tables_of_laws_and_clusters_are_valid_tasks(shape, kinds):
    B, R, C = shape
    for index in range(12):
        x, y = sample_batch(3, index, B, R, C, TabularConfig(**kinds))
        assert x.shape == (B, R, C) and y.shape == (B, R) and not x.isinf().any()
        assert set(y.unique().tolist()) <= {0., 1.} and (y.sum(1) > 0).all() and (y.sum(1) < R).all()
        assert torch.equal(sample_batch(3, index, B, R, C, TabularConfig(**kinds))[1], y)


def test_a_law_is_a_function_of_the_columns():
    "Rows that are twins in all columns have the same target, and most laws need more than one column"
    g, together = generator(8, 8), 0
    for i in range(30):
        x = torch.randn(4, 5, 200, generator=g)
        x[..., 100:] = x[..., :100]
        t = law(generator(9, i), x)
        assert ((t[:, :100] - t[:, 100:]).abs() > 1e-3).float().mean() < .01          # rounding decides on the edge of a step
        alone = x.clone(); alone[:, 1:] = alone[:, 1:].roll(1, 2)                    # only the first column stays in its row
        together += int(((law(generator(9, i), x) - law(generator(9, i), alone)).abs().amax(1) > 1e-3).sum())
    assert together > 60


def test_clusters_lie_together_and_decide_the_label():
    nodes, number = clusters(generator(1, 1), 40, 6, 500)
    tight = []
    for t, n in zip(nodes, number):
        inside = torch.stack([t[:, n == v].var(1, unbiased=False)*(n == v).sum() for v in n.unique()]).sum(0)/500
        tight.append(float((inside/t.var(1, unbiased=False)).mean()))
    assert min(tight) < .1 and .2 < np.median(tight) < .9                           # from clear to blurred
    clean = TabularConfig(cluster_share=1., noise=(.001, .01), missing_share=0., category_share=0., irrelevant_share=0., n_layers=(1, 1))
    from sklearn.neighbors import KNeighborsClassifier
    areas = []
    for x, y in zip(*sample_batch(2, 2, 24, 500, 8, clean)):
        if 10 < y[:350].sum() < 340: areas.append(KNeighborsClassifier(5).fit(x[:350], y[:350]).score(x[350:], y[350:]))
    assert np.median(areas) > .85, areas


@pytest.mark.parametrize('seed', range(5))
def test_no_cluster_is_cut_in_two(seed):
    g = generator(seed, 3)
    t = torch.randn(9, 12, generator=g).gather(1, torch.randint(0, 12, (9, 80), generator=g))
    y = (t.argsort(1).argsort(1) < torch.randint(4, 76, (9, 1), generator=g)).float()
    y[::2] = 1 - y[::2]
    new = between(t, y)
    for a, b, old in zip(t, new, y):
        assert all(len(b[a == v].unique()) == 1 for v in a.unique()) and 0 < b.sum() < 80
        assert (b != old).sum() <= max(int((a == v).sum()) for v in a.unique())     # at most one cluster has moved
