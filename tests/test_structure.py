"""Rows and links over many seeds: the loop in double precision against the fast version, in numbers and in distribution; invariants; degree laws; faults."""
import hashlib, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from rdbpfn.core import InputError, generator
from rdbpfn.degrees import survival, tail_law
from rdbpfn.structure import FLOATS, Pool, Rows, StructureConfig, attach, draw_law, draw_numbers, initial_states, mini_batches, sample_structure
from rdbpfn.temporal import TemporalConfig, sample_signature
from rdbpfn.topology import Blueprint, TopologyConfig, sample_topology


# ---- Algorithm 1 once more, by row, in numpy and double precision; only cuts of mini-batches are taken from the package

def rms_rows(x): return np.sqrt((x**2).sum(1).mean())


class Numbers:
    "The random numbers of `attach`, in its order"
    def __init__(self, gen): self.gen = gen
    def __call__(self, b, F, M): return [x.numpy() for x in draw_numbers(self.gen, b, F, M)]


class Fresh:
    "Random numbers from another source, in another order"
    def __init__(self, seed): self.rng = np.random.default_rng(seed)
    def __call__(self, b, F, M): return self.rng.random((b, 1)), self.rng.random((F, b)), self.rng.random((F, b, M))


def loop(numbers, law, z0, states, shared=(), times=None, born=None):
    "Links (F, N), child states, parent states; states: list of (N_p, d), shared: pairs of slots with one parent, born: list of moments or None"
    W = {k: np.asarray(getattr(law, k), float) for k in ('query', 'key', 'taste', 'own', 'heir', 'embed', 'child', 'parent')}
    z0, (N, d), F, M = np.asarray(z0, float), z0.shape, len(states), law.n_candidates
    Z = [np.vstack([np.asarray(s, float), np.zeros(d)]) for s in states]
    for a, b in shared: Z[b] = Z[a]
    order = [np.arange(len(z) - 1) if born is None or born[f] is None else np.argsort(born[f], kind='stable') for f, z in enumerate(Z)]
    wish = (np.sqrt(1 - law.consensus)*z0 @ W['query'] + np.sqrt(law.consensus)*W['taste']) @ W['key'].T/np.sqrt(d)/law.temperature
    pull = [wish @ A.T/rms_rows(wish @ A.T) for A in W['embed']]
    felt, links, out = [np.zeros(len(z)) for z in Z], np.zeros((F, N), int), np.zeros((N, d))
    lam = law.influence
    for lo, hi, feedback in mini_batches(law, N):
        pick, empty, u = numbers(hi - lo, F, M)
        for i in range(lo, hi):
            tuples, e = np.zeros((M, F), int), np.zeros((M, d))
            for m in range(M):
                for f in range(F):
                    n = len(Z[f]) - 1
                    if times is not None and born is not None and born[f] is not None: n = int((born[f] < times[i]).sum())
                    tuples[m, f] = len(Z[f]) - 1 if empty[f, i-lo] < law.null_rates[f] else order[f][min(int(u[f, i-lo, m]*n), n - 1)]
                h = sum(Z[f][tuples[m, f]] @ W['embed'][f] for f in range(F))
                e[m] = np.where(h > 0, h, .3*h)
            chance = np.exp(e @ wish[i] - (e @ wish[i]).max()); chance /= chance.sum()
            m = min(int((chance.cumsum() < pick[i-lo, 0]).sum()), M - 1)
            links[:, i] = tuples[m]
            out[i] = ((1 - lam)*z0[i] + 1.6*lam*np.tanh(z0[i] @ W['own'] + e[m] @ W['heir']))/np.sqrt((1 - lam)**2 + lam**2)
        if not feedback: continue
        for f in range(F):
            old = Z[f].copy()
            for p in set(links[f, lo:hi].tolist()) - {len(Z[f]) - 1}:
                c = lo + np.flatnonzero(links[f, lo:hi] == p)
                g = np.mean([pull[f][i] + np.tanh(out[i] @ W['child'][f] + old[p] @ W['parent'][f])/np.sqrt(d) for i in c], 0)
                Z[f][p] = old[p] + law.strength*np.log((1 + felt[f][p] + len(c))/(1 + felt[f][p]))*g
                felt[f][p] += len(c)
    return links, out, [z[:-1] for z in Z]


def scene(seed, n_fkeys, config, n=60, sizes=(9, 14, 5, 7, 11)):
    gen = generator(40, seed)
    law, start = draw_law(gen, n_fkeys, config), draw_law(gen, 0, config)
    parents = [initial_states(gen, start, sizes[f]) for f in range(n_fkeys)]
    return law, initial_states(gen, law, n), parents


@pytest.mark.parametrize('mixing', [0., .5, 1.])
@pytest.mark.parametrize('n_fkeys', [1, 2, 5])
@pytest.mark.parametrize('timed', [False, True])
def test_fast_equals_loop_number_by_number(mixing, n_fkeys, timed):
    for seed in range(4):
        config = StructureConfig(mixing=(mixing, mixing), nullable=.5, strength=(0., 3.), batches=(3, 9))
        law, z0, parents = scene(seed, n_fkeys, config)
        times = born = None
        if timed:
            rng = np.random.default_rng(seed)
            born = [None if f == 2 else rng.random(len(p))*.5 for f, p in enumerate(parents)]
            if seed % 2: born = [None if b is None else b.round(1) for b in born]          # ties: a parent born at .5 comes too late for a child at .5
            times = np.sort(.5 + .5*rng.random(60)).round(1) if seed % 2 else np.sort(max(b.min() for b in born if b is not None) + 1e-9 + .3*rng.random(60))
        pools = [Pool(p, None if not timed or born[f] is None else torch.from_numpy(born[f])) for f, p in enumerate(parents)]
        links, z = attach(generator(41, seed), law, z0, pools, None if times is None else torch.from_numpy(times))
        wanted, y, Z = loop(Numbers(generator(41, seed)), law, z0, parents, (), times, born)
        assert np.array_equal(links.numpy(), wanted)
        assert np.abs(z.numpy() - y).max() < 1e-4
        for p, w in zip(pools, Z): assert np.abs(p.z[:-1].numpy() - w).max() < 1e-4 and (p.z[-1] == 0).all()


def test_fast_equals_loop_with_parallel_keys():
    for seed in range(6):
        law, z0, parents = scene(seed, 3, StructureConfig(mixing=(.7, .7), nullable=.5, strength=(2., 2.)))
        pool = Pool(parents[0])
        links, z = attach(generator(42, seed), law, z0, [pool, Pool(parents[1]), pool])
        wanted, y, Z = loop(Numbers(generator(42, seed)), law, z0, [parents[0], parents[1], parents[0]], [(0, 2)])
        assert np.array_equal(links.numpy(), wanted) and np.abs(z.numpy() - y).max() < 1e-4 and np.abs(pool.z[:-1].numpy() - Z[0]).max() < 1e-4
        assert (links[0] != links[2]).any()


@pytest.mark.parametrize('mixing', [0., 1.])
def test_fast_equals_loop_in_distribution(mixing):
    "Another source of chance, 700 runs each: chi-square of every row's choice, and a two-sample z of mean states, at levels of 1 in 1,000 after Bonferroni"
    config = StructureConfig(mixing=(mixing, mixing), candidates=(3, 3), temperature=(.7, .7), strength=(2., 2.), batches=(4, 4), nullable=0.)
    law, z0, parents = scene(1, 1, config, n=12)
    runs = 700
    fast = [(lambda p: (*attach(generator(43, i), law, z0, [p]), p.z[:-1]))(Pool(parents[0].clone())) for i in range(runs)]
    slow = [loop(Fresh(i), law, z0, [parents[0]]) for i in range(runs)]
    count = lambda rs, row: np.bincount([int(r[0][0][row]) for r in rs], minlength=9)
    for row in range(12):
        a, b = count(fast, row), count(slow, row)
        ok = a + b > 0
        assert ((a - b)[ok]**2/(a + b)[ok]).sum() < 31                      # 8 degrees of freedom, 1 in 12,000 is 30.9
    for index in (1, 2):                                                    # states of children, of parents
        a, b = (np.stack([np.asarray(r[index], float).reshape(-1, 16) for r in rs]) for rs in (fast, slow))
        spread = np.sqrt((a.var(0) + b.var(0))/runs) + 1e-5
        assert (np.abs(a.mean(0) - b.mean(0))/spread).max() < 5.2


# ---- Invariants of whole databases

def check(rows, config):
    bp = rows.blueprint
    born = []
    for t, (parents, n) in enumerate(zip(bp.parents, bp.n_rows)):
        link, when, z = rows.links[t], rows.times[t], rows.states[t]
        assert link.shape == (len(parents), n) and link.dtype == torch.int64 and z.shape == (n, config.width) and z.dtype == torch.float32 and z.isfinite().all()
        assert (when is not None) == bp.timed[t]
        known = [torch.where(i >= 0, born[p][i.clamp(min=0)], 0.) for p, i in zip(parents, link)]
        if when is not None:
            assert when.dtype == torch.float64 and when.shape == (n,) and (when.diff() >= 0).all() and 0 < when.min() and when.max() <= 1
            assert all((k < when).all() for k in known)
        for p, i in zip(parents, link): assert -1 <= i.min() and i.max() < bp.n_rows[p]
        born.append(when if when is not None else torch.stack(known).amax(0) if known else torch.zeros(n, dtype=torch.float64))
        for s, p in enumerate(parents): assert rows.in_degree(t, s).shape == (bp.n_rows[p],) and rows.in_degree(t, s).sum() == (link[s] >= 0).sum()


def test_every_database_obeys_the_rules():
    for seed in range(120):
        config = StructureConfig(nullable=.5) if seed % 2 else StructureConfig(width=8, candidates=(1, 9), temperature=(.01, .1), strength=(0., 4.))
        check(sample_structure(generator(44, seed), sample_topology(generator(45, seed), TopologyConfig(rows=(1, 400), total_rows=1500, timed=(.6, .8))), config), config)


ODD = {'all of one row': Blueprint(((), (0,), (0, 1), (2, 2, 2)), (1,)*4, ((),)*4, (True, True, False, True)),
       'long timed chain': Blueprint(((), *((t,) for t in range(14))), (1, 2, 3)*5, ((),)*15, (True,)*15),
       'untimed between timed': Blueprint(((), (0,), (1,), (2,)), (5, 300, 20, 300), ((),)*4, (True, False, False, True)),
       'seven keys': Blueprint(((),)*3 + ((0, 1, 2, 0, 1, 2, 0),), (3, 40, 2, 500), ((),)*4, (True, False, True, True)),
       'more parents than children': Blueprint(((), (0,)), (2000, 3), ((),)*2, (False, True)),
       'no links at all': Blueprint(((), ()), (10, 1), ((),)*2, (False, True))}


@pytest.mark.parametrize('name', ODD)
def test_odd_blueprints(name):
    for i, config in enumerate([StructureConfig(), StructureConfig(nullable=1., null_rate=(1., 1.)), StructureConfig(width=1, candidates=(1, 1)),
                                StructureConfig(batches=(500, 500), mixing=(1., 1.), strength=(4., 4.), candidates=(64, 64), clustered=1.)]):
        rows = sample_structure(generator(46, i), ODD[name], config)
        check(rows, config)
        if config.null_rate == (1., 1.): assert all((l == -1).all() for l in rows.links)
    assert any((l == -1).any() for l in sample_structure(generator(47), ODD[name], StructureConfig(nullable=1., null_rate=(.9, 1.))).links) or name == 'no links at all'


def test_empty_references_have_their_rate_and_only_where_allowed():
    bp = Blueprint(((), (0, 0)), (20, 20_000), ((),)*2, (False, True))
    link = sample_structure(generator(48), bp, StructureConfig(nullable=1., null_rate=(.3, .3), mixing=(.5, .5))).links[1]
    share = (link == -1).float().mean(1)
    assert ((share - .3).abs() < .02).all() and abs(float(((link == -1).sum(0) == 2).float().mean()) - .09) < .012      # and independently
    assert not (sample_structure(generator(48), bp, StructureConfig(nullable=0.)).links[1] == -1).any()


def test_times_start_soon_after_parents_open():
    for seed in range(40):
        rows = sample_structure(generator(49, seed), Blueprint(((), (0,)), (200, 400), ((),)*2, (True, True)), StructureConfig(temporal=TemporalConfig(strength=(0., 0.))))
        opening = rows.times[0].sort().values[10]
        assert opening < rows.times[1].min() < opening + .05


# ---- Candidates

def test_candidates_are_uniform_among_the_born():
    born = torch.rand(50, generator=generator(50), dtype=torch.float64)
    pool, s = Pool(torch.zeros(50, 4), born), torch.tensor([.6], dtype=torch.float64)
    c = pool.candidates(torch.rand(1, 100_000, generator=generator(51)), pool.visible(s, 1))[0]
    count = torch.bincount(c, minlength=50)
    assert (count[born >= .6] == 0).all()
    alive = count[born < .6].double()
    assert ((alive - alive.mean()).square()/alive.mean()).sum() < len(alive) + 4*(2*len(alive))**.5


def test_one_minus_epsilon_is_still_a_row():
    for n in (1, 2, 3, 1000, 2**20 - 1, 10**6, 2**22):
        pool = Pool(torch.zeros(3, 1)); pool.n = n
        assert int(pool.candidates(torch.tensor([[1 - 2**-24]]), torch.tensor([float(n)]))) == n - 1


def test_parallel_keys_choose_independently():
    link = sample_structure(generator(52), Blueprint(((), (0, 0)), (50, 20_000), ((),)*2, (False, False)), StructureConfig(candidates=(1, 1), nullable=0.)).links[1]
    assert abs(float((link[0] == link[1]).double().mean()) - .02) < .004


def test_mini_batches_cover_all_rows_once_and_fit_in_memory():
    for mixing in (0., .3, 1.):
        for n in (1, 2, 7, 500, 100_000):
            for M in (1, 64):
                law = draw_law(generator(53), 1, StructureConfig(candidates=(M, M), mixing=(mixing, mixing), strength=(1., 1.)))
                cuts = mini_batches(law, n)
                assert [lo for lo, *_ in cuts] + [n] == [0] + [hi for _, hi, _ in cuts] and all(lo < hi and (hi - lo)*M*16 <= FLOATS for lo, hi, _ in cuts)
                assert sum(hi - lo for lo, hi, fb in cuts if fb) == round(mixing*n) and [fb for *_, fb in cuts] == sorted(fb for *_, fb in cuts)
                assert n > 500 or mixing < 1 or len(cuts) <= law.n_batches
    assert not any(fb for *_, fb in mini_batches(replace(law, strength=0.), 100))


# ---- What acts on what

def test_mode_a_leaves_parents_alone_and_mode_b_moves_the_chosen_only():
    for mixing in (0., 1.):
        law, z0, (parent,) = scene(2, 1, StructureConfig(mixing=(mixing, mixing), strength=(1., 1.), nullable=0., candidates=(2, 2)), n=6)
        pool = Pool(parent)
        links, _ = attach(generator(54), law, z0, [pool])
        moved = (pool.z[:-1] != parent).any(1)
        assert not moved.any() if mixing == 0 else moved.nonzero()[:, 0].tolist() == sorted(set(links[0].tolist()))


def test_a_child_takes_after_its_parents_and_its_time():
    law, z0, (parent,) = scene(3, 1, StructureConfig(candidates=(1, 1), nullable=0., influence=(.6, .6), mixing=(0., 0.)))
    (a, y), (b, z) = (attach(generator(55), law, z0, [Pool(p)]) for p in (parent, parent + 1))
    assert torch.equal(a, b) and (y - z).abs().mean() > .1
    fits = []
    for seed in range(20):
        law = draw_law(generator(56, seed), 0, StructureConfig(clustered=0.))
        level = sample_signature(generator(57, seed)).level(torch.linspace(0, 1, 500))
        z, X = initial_states(generator(58, seed), law, 500, level), torch.cat([level, torch.ones(500, 1)], 1)
        r = lambda X: float(1 - (z - X @ torch.linalg.pinv(X) @ z).square().sum()/(z - z.mean(0)).square().sum())
        fits.append((r(X), r(X.flip(0))))
    assert np.mean(fits, 0)[0] > .1 > 3*np.mean([r(torch.randn(500, 5, generator=generator(59)))])


def test_states_stay_bounded():
    for seed in range(5):
        law, z0, (parent,) = scene(seed, 1, StructureConfig(mixing=(1., 1.), strength=(4., 4.), candidates=(2, 2), nullable=0.), n=20_000, sizes=(1,))
        pool = Pool(parent)
        attach(generator(60), law, z0, [pool])
        reach = (pool.z[0] - parent[0]).norm()
        assert 3 < reach < 4*np.log(20_001)*2                       # rho log(1 + N) times a mean of feedback, whose norm is below 2


# ---- The dial

def degrees(seed, mixing, strength, alike):
    config = StructureConfig(candidates=(64, 64), temperature=(2., 2.), consensus=(.7, .7), mixing=(mixing, mixing), strength=(strength, strength), batches=(24, 24), nullable=0., clustered=0.)
    gen = generator(3, seed)
    law, start = draw_law(gen, 1, config), initial_states(gen, draw_law(gen, 0, config), 1000)
    return np.bincount(attach(gen, law, initial_states(gen, law, 10_000), [Pool(start[:1].repeat(1000, 1) if alike else start)])[0][0], minlength=1000)


def test_degrees_move_from_poisson_to_power_law():
    ks = {d: [degrees(s, d, 3*d, False) for s in range(4)] for d in (0., .5, 1.)}
    tail = {d: tail_law(np.concatenate(k), least=300) for d, k in ks.items()}
    assert tail[0.].z < 1 and tail[0.].exponent > 4 and tail[1.].z > 4 and 1.8 < tail[1.].exponent < 3.2
    spread = [np.mean([k.var()/k.mean() for k in v]) for v in ks.values()]
    assert spread[0] < 4 and spread[0] < spread[1] < spread[2] and spread[2] > 20
    for s in range(4):
        assert abs(degrees(s, 0., 3., True).var()/10 - 1) < .2          # equal parents, frozen: Poisson
        assert degrees(s, 1., 3., True).var()/10 > 3                    # equal parents, feedback: hubs out of nothing


@pytest.mark.parametrize('alpha', [1.8, 2.5, 3.5])
def test_tail_law_finds_the_exponent_within_its_error(alpha):
    off = []
    for seed in range(40):
        k = np.floor(7.5*(1 - np.random.default_rng(seed).random(2000))**(-1/(alpha - 1)) + .5)
        t = tail_law(k, least=1500)
        off.append((t.exponent - alpha)/t.error)
        assert t.k_min >= 8 and t.n >= 1500
    assert abs(np.mean(off)) < .6 and .6 < np.std(off) < 1.5


def test_survival_by_hand(): assert np.allclose(survival(np.array([8, 9, 30]), 8, 3.), [1, (7.5/8.5)**2, (7.5/29.5)**2])


def test_tail_law_does_not_call_thin_tails_heavy():
    z = [tail_law(law(np.random.default_rng(s)), least=300).z for s in range(20) for law in (lambda r: r.geometric(.1, 3000), lambda r: r.poisson(10, 3000))]
    assert np.mean(np.array(z) < 0) > .8 and max(z) < 2.5
    with pytest.raises(InputError, match='at least 100 counts'): tail_law([0]*1000)


# ---- Determinism and faults

def digest(rows): return hashlib.sha256(b''.join(x.numpy().tobytes() for part in (rows.links, rows.states, [t for t in rows.times if t is not None]) for x in part)).hexdigest()


def test_same_bytes_in_another_process():
    code = 'import torch; from rdbpfn.core import generator as g; from rdbpfn.structure import sample_structure as s; from rdbpfn.topology import sample_topology as t; import sys; sys.path.insert(0, "tests")\n' \
           'from test_structure import digest\n' \
           'for threads in (1, 2):\n torch.set_num_threads(threads); print(*[digest(s(g(61, i), t(g(62, i)))) for i in (3, 1)])'
    before = torch.get_rng_state()
    mine = [digest(sample_structure(generator(61, i), sample_topology(generator(62, i)))) for i in (3, 1)]
    assert torch.equal(torch.get_rng_state(), before) and mine[0] != mine[1]
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent).stdout
    assert out.split() == mine*2


@pytest.mark.parametrize('field, value', [('width', 0), ('candidates', (0, 4)), ('candidates', (8, 4)), ('candidates', (1, 2, 3)), ('temperature', (0., 1.)), ('consensus', (0., 1.1)), ('influence', (-.1, .5)),
                                          ('mixing', (0., 2.)), ('mixing', (.9, .1)), ('strength', (-1., 0.)), ('strength', (0., 9.)), ('batches', (0, 3)), ('nullable', -.1), ('nullable', 1.1),
                                          ('null_rate', (0., 1.5)), ('clustered', 2.)])
def test_impossible_configs_are_refused(field, value):
    with pytest.raises(InputError, match=f'StructureConfig.{field} must'): StructureConfig(**{field: value})
