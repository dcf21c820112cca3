"""The learned schema prior: nothing leaks from later layers, numbering does not matter, samples are valid whatever the weights, files are safe, the package's prior is what its records say."""
import hashlib, json, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from torch.nn import functional as F
from rdbpfn.core import InputError, generator
from rdbpfn.diffusion import alpha_bar, draw, noised, posterior, reverse
from rdbpfn.layerdag import Batch, LayerDAG, LayerDAGConfig, _links, _next_layer, default_layerdag, fit, fit_schemas, judge, load_layerdag, loss, sample_graphs, save_layerdag, to_batch, with_parallel
from rdbpfn.schemas import fingerprint, is_valid, layers_of
from rdbpfn.topology import FAMILIES, MAX_PARALLEL, SMALL, dress, roles_of

ROOT = Path(__file__).parent.parent
RECORDS = [json.loads(r) for r in (ROOT/'nbs/results/layerdag.jsonl').read_text().splitlines()]
SMALLEST = LayerDAGConfig(width=8, rounds=1, steps=2)
GRAPHS = [(FAMILIES[f](np.random.default_rng(n), n, 4), tuple(range(2, n+2))) for f in FAMILIES for n in (2, 4, 7)]


def untrained(seed=0, config=SMALLEST):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LayerDAG(config).eval()


# ---- diffusion
def test_reverse_recovers_independent_marginals():
    "If the guess is the truth and entries are independent, the samples have exactly the wanted distribution"
    p, m = torch.tensor([.1, .6, .3]), torch.tensor([.5, .25, .25])
    def guess(x, t):
        a = alpha_bar(torch.tensor(float(t)), 5)
        q = a*torch.eye(3)[:, x[0]].permute(1, 0) + (1 - a)*m[x[0]][:, None]            # (N, K): likelihood of what is seen under k
        return [(q*p).log()]
    (x,), _ = reverse(generator(0), [m.expand(60_000, -1)], guess, 5)
    assert (x.bincount(minlength=3)/60_000 - p).abs().max() < .01


def test_posterior_is_a_distribution_and_never_leaves_the_support():
    gen, m = generator(1), torch.tensor([.5, .5, 0.])
    for t in range(1, 9):
        a_t, a_s = (alpha_bar(torch.tensor(float(s)), 8) for s in (t, t-1))
        p0 = torch.rand(100, 3, generator=gen)*torch.tensor([1., 1., 0.]); p0 /= p0.sum(-1, keepdim=True)
        q = posterior(draw(gen, m.expand(100, -1)), p0, m.expand(100, -1), a_t, a_s)
        assert (q.sum(-1) - 1).abs().max() < 1e-5 and (q[:, 2] == 0).all() and (q >= 0).all()
    assert (noised(gen, torch.zeros(5000, dtype=torch.int64), m.expand(5000, -1), torch.tensor(0.)) < 2).all()


# ---- tensors and network
def test_to_batch_round_trip():
    g = to_batch(GRAPHS)
    for b, (parents, n_cols) in enumerate(GRAPHS):
        n = len(parents)
        assert g.layer[b].tolist() == layers_of(parents) + [-1]*(7 - n) and g.role[b, :n].tolist() == roles_of(parents)
        assert [[p for p in range(7) for _ in range(int(g.A[b, t, p]))] for t in range(n)] == [sorted(ps) for ps in parents]
    bins = LayerDAGConfig().bins
    wide = to_batch([(((), (0,)), (c, 1)) for c in range(1, 200)]).cols[:, 0].tolist()
    assert all(bins[k] <= c < bins[k+1] or (k == len(bins)-2 and c >= bins[-1]) for c, k in zip(range(1, 200), wide))


def test_large_graphs_are_left_out():
    c = LayerDAGConfig(max_tables=4, max_new=2)
    kept = to_batch([(((), (0,)), (1, 1)), (((),) + ((0,),)*4, (1,)*5), (((), (), (), (0, 1, 2)), (1,)*4)], c)
    assert len(kept.cols) == 1
    with pytest.raises(InputError, match='None of the 1 graphs'): to_batch([(((),) + ((0,),)*4, (1,)*5)], c)


def test_parallel_keys_are_capped():
    A = torch.full((1000, 1, 1), 3)
    assert (with_parallel(generator(0), A, 1.) == MAX_PARALLEL).all() and (with_parallel(generator(0), A - 2, 0.) == 1).all()
    more = with_parallel(generator(0), A - 2, 1.) - 1
    assert ((more == 1) | (more == 2)).all() and .08 < (more == 2).float().mean() < .21


def test_later_layers_are_not_seen():
    "Whatever stands below the frontier, the encoder's answer is the same"
    g, net, gen = to_batch(GRAPHS), untrained(), generator(3)
    l = torch.randint(-1, 3, (len(GRAPHS),), generator=gen)
    hidden = (g.layer > l[:, None])
    other = g._replace(cols=torch.where(hidden, draw(gen, torch.ones(8).expand(*g.cols.shape, -1)), g.cols), role=torch.where(hidden, 0, g.role), A=torch.where(hidden[:, :, None], 1, g.A))
    for a, b in zip(net.encode(g, l), net.encode(other, l)): assert torch.equal(a, b)
    assert (net.encode(g, l)[0][hidden] == 0).all()


def test_numbering_does_not_matter():
    g, net, gen = to_batch(GRAPHS), untrained(config=LayerDAGConfig(width=16)), generator(4)
    order = torch.randperm(7, generator=gen)
    turned = Batch(*(x[:, order] for x in g[:3]), g.A[:, order][:, :, order])
    for l in (0, 1, 2):
        says = []
        for x in (g, turned):
            L, new, near = torch.full((len(x.cols),), l), x.layer == l+1, x.layer == l
            h, whole = net.encode(x, L)
            at = (new[:, :, None] & ((x.layer >= 0) & (x.layer <= l))[:, None]).nonzero(as_tuple=True)
            e = torch.zeros(*x.A.shape, 4).index_put(at, net.edges(h, x, new, near, at, x.A[at], L+1))
            says.append((net.size(whole), *net.nodes(whole, torch.zeros_like(L), new, x.cols, x.role, L+1), e))
        (s, c, r, e), (s2, c2, r2, e2) = says
        for a, b in ((s, s2), (c[:, order], c2), (r[:, order], r2), (e[:, order][:, :, order], e2)): assert torch.allclose(a, b, atol=1e-4)


def test_padding_does_not_matter():
    net, l = untrained(), torch.tensor([0])
    a = to_batch([(((), (0,)), (3, 3))]); b = Batch(*(x[:1] for x in to_batch([(((), (0,)), (3, 3)), GRAPHS[2]])))
    assert b.cols.shape[1] == 7 and torch.allclose(net.encode(a, l)[1], net.encode(b, l)[1], atol=1e-6)


# ---- sampling
def test_every_sample_is_valid_whatever_the_weights():
    for seed in range(6):
        net = untrained(seed)
        for g in sample_graphs(seed, 0, 64, net):
            assert is_valid(g[0]) and 2 <= len(g[0]) <= 16 and len(g[0]) == len(g[1]) == len(g[2])
            assert all(1 <= c < 61 for c in g[1]) and all(0 <= s < 5 for s in g[2]) and max(ps.count(p) for ps in g[0] for p in ps) <= MAX_PARALLEL


def test_layers_are_exact():
    "A new table lies exactly one below the last layer, though the untrained network often gives it no key there"
    net, gen = untrained(1), generator(5)
    g = Batch(*torch.zeros(2, 32, 16, dtype=torch.int64), torch.full((32, 16), -1), torch.zeros(32, 16, 16, dtype=torch.int64))
    for l in range(-1, 4):
        on, g = _next_layer(net, gen, g, l, 16)
        if not len(g.layer): break
        free = 16 - g.layer.shape[1]
        g = Batch(*(F.pad(x, (0, free), value=v) for x, v in zip(g[:3], (0, 0, -1))), F.pad(g.A, (0, free, 0, free)))
        for b in range(len(g.layer)):
            n = int((g.layer[b] >= 0).sum())
            assert (g.layer[b, :n] >= 0).all() and (g.layer[b] == l+1).any()
            assert layers_of([[p for p in range(16) if g.A[b, t, p]] for t in range(n)]) == g.layer[b, :n].tolist()
            assert (g.A[b, n:] == 0).all() and (g.A[b, :, n:] == 0).all()


@pytest.mark.parametrize('most', [2, 3, 5, 8])
def test_max_tables(most):
    for net in (None, untrained(2)):
        got = [g[0] for i in range(3) for g in sample_graphs(0, i, max_tables=most, network=net)]
        assert max(map(len, got)) == most and all(map(is_valid, got))


def digest(seed, index, n=64): return hashlib.sha256(repr(sample_graphs(seed, index, n)).encode()).hexdigest()


def test_same_graphs_in_another_process_and_order():
    code = 'from tests.test_layerdag import digest; print(digest(7, 3), digest(7, 1, 5))'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert out == [digest(7, 3), digest(7, 1, 5)][:2] and len({digest(s, i) for s in range(2) for i in range(3)}) == 6


def test_no_global_randomness():
    torch.manual_seed(1); np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    fit(GRAPHS, SMALLEST, steps=2); sample_graphs(0, 0, 4)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


def test_samples_can_be_dressed():
    for i, (parents, n_cols, sizes) in enumerate(sample_graphs(2, 0, 64)):
        b = dress(generator(2, i), parents, SMALL, n_cols, sizes)
        assert b.parents == parents and b.total_rows <= SMALL.total_rows and 8 <= b.n_columns <= 12


@pytest.mark.parametrize('bad', [dict(n=0), dict(max_tables=1), dict(max_tables=0)])
def test_bad_requests(bad):
    with pytest.raises(InputError, match='Sampling needs n >= 1 and max_tables >= 2'): sample_graphs(0, 0, **bad)


# ---- fitting
def test_fit_is_a_function_of_its_seed():
    a, b, c = (fit(GRAPHS, SMALLEST, seed=s, steps=4).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)
    start = [fit(GRAPHS, SMALLEST, seed=s, steps=1, lr=1e-12).pair.weight for s in (0, 1)]
    assert (start[0] - start[1]).abs().max() > .01                      # another seed, another beginning


def test_fit_learns_dependence_between_layers():
    "After two roots come two children with a key each; after three roots, one child with three: marginals alone would mix these"
    two, three = ((), (), (0,), (1,)), ((), (), (), (0, 1, 2))
    net = fit([(two, (3,)*4), (three, (9,)*4)]*8, LayerDAGConfig(width=24, dropout=0.), steps=200, lr=5e-3)
    got = sample_graphs(0, 0, 200, net)
    star = [g for g in got if fingerprint(g[0]) == fingerprint(three)]
    pairs = [g for g in got if g[0] == ((), (0,))]                      # `two` is in two parts; one of them is kept
    assert len(star) > 60 and len(pairs) > 50 and len(star) + len(pairs) > 140
    assert np.mean([min(g[1]) >= 8 for g in star]) > .9 and np.mean([max(g[1]) <= 3 for g in pairs]) > .9      # and so with columns


@pytest.mark.parametrize('bad', [dict(steps=0), dict(batch=0), dict(parallel=1.5)])
def test_bad_fits(bad):
    with pytest.raises(InputError, match='Fitting needs'): fit(GRAPHS, SMALLEST, **bad)


@pytest.mark.parametrize('bad', [dict(width=0), dict(steps=0), dict(max_tables=1), dict(dropout=1.), dict(bins=(3, 1))])
def test_bad_configs(bad):
    with pytest.raises(InputError, match=f'LayerDAGConfig.{next(iter(bad))} must'): LayerDAGConfig(**bad)


def test_fit_schemas(tmp_path):
    (tmp_path/'a.json').write_text(json.dumps([dict(n_cols=[2, 2], edges=[[1, 0]])]))
    (tmp_path/'b.json').write_text(json.dumps([dict(n_cols=[2, 2], edges=[])]))
    net = fit_schemas([tmp_path/'a.json', tmp_path/'b.json'], tmp_path/'out.safetensors', SMALLEST, progress_bar=False, steps=2, seed=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'b.json', 'out.json', 'out.safetensors']
    assert sample_graphs(0, 0, 9, load_layerdag(tmp_path/'out.safetensors')) == sample_graphs(0, 0, 9, net)
    with pytest.raises(InputError, match='No foreign key between two tables was found in .*b.json'): fit_schemas([tmp_path/'b.json'], tmp_path/'no.safetensors')
    with pytest.raises(InputError, match='found in no source'): fit_schemas([], tmp_path/'no.safetensors')
    assert not (tmp_path/'no.safetensors').exists()


def test_bad_files(tmp_path):
    path = save_layerdag(untrained(), tmp_path/'x.safetensors')
    with pytest.raises(InputError, match="There is no file '.*y.safetensors'"): load_layerdag(tmp_path/'y.safetensors')
    good, config = path.read_bytes(), path.with_suffix('.json').read_text()
    path.with_suffix('.json').write_text(config.replace('"width": 8', '"width": 9'))
    with pytest.raises(InputError, match='does not fit its configuration: size mismatch'): load_layerdag(path)
    path.with_suffix('.json').write_text(config.replace('width', 'girth'))
    with pytest.raises(InputError, match="no field 'girth'"): load_layerdag(path)
    path.with_suffix('.json').write_text(config); path.write_bytes(good[:-40])
    with pytest.raises(InputError, match='cannot be read'): load_layerdag(path)
    path.with_suffix('.json').unlink(); path.write_bytes(good)
    with pytest.raises(InputError, match="There is no file '.*x.json'"): load_layerdag(path)


def test_judge_on_a_known_world():
    world = [(((), (0,)), (3, 3)), (((), (), (0, 1)), (3, 3, 3)), (((), (0,), (1,)), (3, 3, 3))]*5
    records = judge(world, 1, n=64, config=SMALLEST, steps=2)
    by = {r['generator']: r for r in records}
    assert list(by) == ['LayerDAG', 'hand-designed', 'random DAG', 'training set', 'held out']
    assert all(by['held out'][k] == 0 for k in ('tables', 'fkeys', 'out_degree', 'in_degree', 'path')) and by['training set']['novel'] == 0
    assert by['LayerDAG']['valid'] == by['hand-designed']['valid'] == 1. and abs(sum(by['hand-designed']['shares']) - 1) < 1e-3
    chains = [(((),) + tuple((t,) for t in range(n - 1)), (3,)*n) for n in range(2, 12)]
    assert judge(chains, 1, n=64, config=SMALLEST, steps=1)[-1]['novel'] == 1.                              # no graph is on both sides
    assert judge(world, 1, n=64, config=SMALLEST, steps=2) == records and {r['tables'] for r in judge(world, 2, n=64, config=SMALLEST, steps=2)} != {r['tables'] for r in records}


# ---- the prior of the package
def test_package_prior_is_small_and_like_its_collection():
    files = ROOT/'rdbpfn/weights/layerdag.safetensors'
    assert files.stat().st_size < 1_000_000 and default_layerdag() is default_layerdag()
    got = [g for i in range(8) for g in sample_graphs(11, i)]
    assert all(is_valid(g[0]) for g in got)
    real = np.mean([r['shares'] for r in RECORDS if r.get('generator') == 'held out'], 0)                      # of schemas with 2, 3, ... tables
    ours = np.bincount([len(g[0]) for g in got], minlength=17)[2:17]/len(got)
    assert np.abs(ours - real).sum()/2 < .25, (ours, real)
    assert np.median([max(layers_of(g[0])) for g in got]) == RECORDS[0]['path'][2]
    parallel = np.mean([any(len(set(ps)) < len(ps) for ps in g[0]) for g in got])
    assert .06 < parallel < .3, parallel
    small = [g for g in got if len(g[0]) == 3]
    assert len({fingerprint(g[0]) for g in small}) >= 4                  # star, fan, chain, ...
    agree = np.mean([a == b for g in got for a, b in zip(g[2], roles_of(g[0]))])
    assert agree > .7, agree


def test_records():
    ours = [r for r in RECORDS if r.get('generator') == 'LayerDAG']
    assert [r['fold'] for r in ours] == [0, 1, 2, 3, 4] and all(r['valid'] == 1. for r in ours)
    package = RECORDS[-1]
    assert package['parameters'] == sum(p.numel() for p in default_layerdag().parameters()) and package['bytes'] == (ROOT/'rdbpfn/weights/layerdag.safetensors').stat().st_size


def test_speed():
    "Under 3 ms a graph; 1.4 were measured"
    sample_graphs(0, 0)
    begin = time.process_time()
    for i in range(3): sample_graphs(1, i)
    assert (time.process_time() - begin)/192 < 3e-3
