"""Content of synthetic databases: two engines agree, influence goes where it may and nowhere else, columns are valid and varied, same seed same bytes."""
import hashlib, subprocess, sys, time
from dataclasses import replace
import numpy as np, pytest, torch
from rdbpfn.columns import LAST, NUMBERS, SHAPES, ColumnConfig, cuts, draw_heads
from rdbpfn.content import ContentConfig, Network, draw_network, messages, refine, refine_dgl, sample_content
from rdbpfn.core import InputError, from_dict, generator, to_dict
from rdbpfn.structure import Rows, sample_structure
from rdbpfn.topology import LARGE, SMALL, Blueprint, TopologyConfig, sample_topology

MIXED = Blueprint(((), (0, 0), (0, 1), (), (2,)), (9, 40, 70, 5, 30), (('number', 'nominal'), ('flag',), tuple(SHAPES), (), ('date',)*2), (False, True, True, False, False))
TINY = TopologyConfig(rows=(2, 60), total_rows=320)


def database(seed, config=SMALL): return sample_structure(generator(seed, 1), sample_topology(generator(seed, 0), config))


def with_nulls(rows, seed, share):
    "The same rows, a share of all references empty, and those of the last foreign key all of them"
    links = [l.masked_fill(torch.rand(l.shape, generator=generator(seed, t)) < share, -1) for t, l in enumerate(rows.links)]
    links[-1] = torch.cat([links[-1][:-1], torch.full_like(links[-1][-1:], -1)])
    return replace(rows, links=tuple(links))


def put(values, t, index, new):
    changed = values[t].clone(); changed[index] = new
    return (*values[:t], changed, *values[t+1:])


# the two engines

def agree(rows, seed, K):
    net = draw_network(generator(seed, 2), rows.blueprint, rows.states[0].shape[1], ContentConfig(n_rounds=(K, K)))
    a, b = refine(net, rows), refine_dgl(net, rows)
    assert len(a) == len(b) == rows.blueprint.n_tables
    for x, y, n in zip(a, b, rows.blueprint.n_rows):
        assert x.shape == y.shape == (n, rows.states[0].shape[1]) and x.isfinite().all()
        assert (x - y).abs().max() < 1e-5


@pytest.mark.parametrize('seed', range(8))
def test_engines_agree_on_random_databases(seed):
    rows = database(seed, TINY)
    agree(rows, seed, 1 + seed % 3)
    agree(with_nulls(rows, seed, .3), seed, 1 + seed % 3)


def test_engines_agree_on_parallel_keys_lonely_tables_and_no_links_at_all():
    for seed, K in ((0, 0), (1, 1), (2, 3)):
        agree(with_nulls(sample_structure(generator(seed), MIXED), seed, .2), seed, K)
        agree(sample_structure(generator(seed), Blueprint(((),), (6,), (('number',),), (False,))), seed, K)


def by_hand(rows, power):
    "`messages` with networks that pass on what they get, row by row"
    same = [(torch.eye(2), torch.zeros(2))]
    E = len(rows.blueprint.edges)
    m = [torch.zeros_like(z) for z in rows.states]
    for i, (c, s, p) in enumerate(rows.blueprint.edges):
        link = rows.links[c][s].tolist()
        for child, parent in enumerate(link):
            if parent < 0: continue
            m[c][child] += rows.states[p][parent]
            m[p][parent] += rows.states[c][child]/link.count(parent)**power[i]
    return m, messages(Network(1, [], [same]*E, [same]*E, power, [], []), rows, rows.states)


def test_messages_are_the_sums_that_the_equation_names():
    rows = with_nulls(sample_structure(generator(3), MIXED), 3, .3)
    rows = replace(rows, states=tuple(z[:, :2].contiguous() for z in rows.states))
    want, got = by_hand(rows, [.5, 1., .7, .6, 1.])
    for a, b in zip(want, got): assert torch.allclose(a, b, atol=1e-4)


def test_order_of_children_does_not_matter():
    rows = sample_structure(generator(4), MIXED)
    net, order = draw_network(generator(5), MIXED, 16, ContentConfig(n_rounds=(3, 3))), torch.randperm(30, generator=generator(6))
    mixed = replace(rows, states=put(rows.states, 4, slice(None), rows.states[4][order]), links=put(rows.links, 4, slice(None), rows.links[4][:, order]))
    a, b = refine(net, rows), refine(net, mixed)
    for t in range(4): assert (a[t] - b[t]).abs().max() < 1e-5
    assert (a[4][order] - b[4]).abs().max() < 1e-5


@pytest.mark.parametrize('n', [1, 50, 5000, 100_000])
def test_hubs_stay_bounded_and_alive(n):
    bp = Blueprint(((), (0,)), (2, n), ((), ()), (False, False))
    rows = Rows(bp, (torch.empty(0, 2, dtype=torch.int64), torch.zeros(1, n, dtype=torch.int64)), (None, None), (torch.ones(2, 16), torch.randn(n, 16, generator=generator(n))))
    for seed in range(5):
        net = draw_network(generator(7, seed), bp, 16)
        hub, alone = refine(net, rows)[0]
        assert hub.isfinite().all() and hub.abs().max() < 20
        assert (hub - alone).abs().max() > 1e-3
        twin = refine(net, replace(rows, states=(rows.states[0]*torch.tensor([[2.], [1.]]), rows.states[1])))[0][0]
        assert (hub - twin).abs().max() > 1e-4, 'a hub still has a state of its own'


# interventions: same law, same random numbers, one change

def law_of(rows, seed, K):
    "Values of all tables as a function of rows, everything else fixed"
    net = draw_network(generator(seed, 2), rows.blueprint, 16, ContentConfig(n_rounds=(K, K)))
    heads = [draw_heads(generator(seed, 3, t), k, h, when) for t, (k, h, when) in enumerate(zip(rows.blueprint.columns, refine(net, rows), rows.times))]
    return lambda rows: [law.columns(generator(seed, 4, t), h, when) for t, (law, h, when) in enumerate(zip(heads, refine(net, rows), rows.times))]


def within(worlds, seeds, K):
    "Masks of the rows at most K links away from the seeds, in any of the worlds"
    near = [torch.zeros(n, dtype=torch.bool) for n in worlds[0].blueprint.n_rows]
    for t, i in seeds: near[t][i] = True
    for _ in range(K):
        old = [m.clone() for m in near]
        for rows in worlds:
            for c, s, p in rows.blueprint.edges:
                for child, parent in enumerate(rows.links[c][s].tolist()):
                    if parent >= 0 and old[p][parent]: near[c][child] = True
                    if parent >= 0 and old[c][child]: near[p][parent] = True
    return near


def changed(a, b):
    "Mask of the rows of each table with any different bit"
    return [torch.stack([x.values.view(torch.int64) != y.values.view(torch.int64) for x, y in zip(s, t)]).any(0) if s else torch.zeros(0, dtype=torch.bool) for s, t in zip(a, b)]


SHOP = Blueprint(((), (0,), (1, 0)), (25, 60, 140), (('number',)*3, ('number', 'date', 'integer', 'number', 'nominal'), ('number',)*3), (False, True, True))


@pytest.mark.parametrize('K', [0, 1, 2, 3])
def test_influence_goes_k_steps_and_not_one_bit_farther(K):
    spread = np.zeros(5)
    for seed in range(6):
        rows = sample_structure(generator(seed, 5), SHOP)
        emit = law_of(rows, seed, K)
        before, z = emit(rows), torch.randn(16, generator=generator(seed, 6))
        child = int((rows.links[2][0] >= 0).nonzero()[0]); o = int(rows.links[2][0, child]); c = max(0, int(rows.links[1][0, o]))
        new = (int(rows.links[1][0, o]) + 1) % 25
        for i, (after, seeds, steps) in enumerate((
                (replace(rows, states=put(rows.states, 1, o, z)), [(1, o)], K),
                (replace(rows, states=put(rows.states, 0, c, z)), [(0, c)], K),
                (replace(rows, states=put(rows.states, 2, child, z)), [(2, child)], K),
                (replace(rows, links=put(rows.links, 1, (0, o), new)), [(1, o), (0, c), (0, new)]*(K > 0), K - 1),
                (replace(rows, times=put(rows.times, 1, o, .01)), [(1, o)], 0))):
            may, does = within((rows, after), seeds, max(0, steps)), changed(before, emit(after))
            for m, d in zip(may, does): assert not (d & ~m).any(), (seed, i)
            spread[i] += sum(int(d.sum()) for d in does)
    if K: assert (spread[:4] > 6).all() and spread[4] >= 6, spread
    else: assert spread[3] == 0 and spread[4] >= 6 and (6 >= spread[:3]).all() and (spread[:3] > 2).all(), spread


def test_content_depends_on_parents_and_children_through_the_network_only():
    "Ablation: without rounds of messages, values of a table are the same whatever its relatives are"
    for K, same in ((0, True), (1, False)):
        rows = sample_structure(generator(8), SHOP)
        emit = law_of(rows, 8, K)
        other = replace(rows, states=(-rows.states[0], rows.states[1], -rows.states[2]))
        assert (not changed(emit(rows), emit(other))[1].any()) == same


# columns

def test_thousand_columns_are_valid():
    "No infinite value, none all null, codes and dates in range, whole numbers whole, nothing constant on a table of some size but rare flags"
    kinds, constant = {k: 0 for k in SHAPES}, 0
    for seed in range(80):
        rows = database(seed, (SMALL, TINY, LARGE)[seed % 3])
        content = sample_content(generator(seed, 2), rows)
        assert [tuple(c.kind for c in table) for table in content] == [tuple(k) for k in rows.blueprint.columns]
        for table, n in zip(content, rows.blueprint.n_rows):
            for c in table:
                v = c.values[~c.values.isnan()]
                assert c.values.dtype == torch.float64 and c.values.shape == (n,) and len(v) and v.isfinite().all() and v.abs().max() < 1e12
                if c.kind in ('ordinal', 'nominal', 'flag'): assert c.n_categories >= 2 and 0 <= v.min() and v.max() < c.n_categories
                else: assert c.n_categories == 0
                if c.kind == 'date': assert 0 <= v.min() and v.max() <= LAST
                if c.kind in ('integer', 'ordinal', 'nominal', 'flag'): assert (v == v.round()).all()
                kinds[c.kind] += 1
                if n >= 200 and v.min() == v.max(): constant += 1; assert c.kind in ('flag', 'nominal', 'integer'), c.kind
    assert min(kinds.values()) > 20 and constant < .02*sum(kinds.values()), (kinds, constant)


@pytest.mark.parametrize('n', [1, 2, 3, 17])
def test_tables_of_few_rows_and_constant_states(n):
    for z in (torch.zeros(n, 16), torch.ones(n, 16), torch.randn(n, 16, generator=generator(n))):
        for times in (None, torch.zeros(n).double(), torch.ones(n).double()):
            for i in range(5):
                law = draw_heads(generator(9, i), tuple(SHAPES)*2, z, times)
                for c in law.columns(generator(10, i), z, times):
                    assert not c.values.isinf().any() and not c.values.isnan().all()
    assert draw_heads(generator(9), (), z, None).columns(generator(10), z, None) == []


def test_a_third_of_the_databases_has_holes():
    some = rows = database(0, TINY)
    holes = [any(c.values.isnan().any() for table in sample_content(generator(11, i), rows) for c in table) for i in range(300)]
    assert .22 < np.mean(holes) < .38
    sealed = ContentConfig(columns=ColumnConfig(missing_share=0.))
    assert not any(c.values.isnan().any() for i in range(60) for table in sample_content(generator(11, i), some, sealed) for c in table)


def test_scale_of_the_states_does_not_matter():
    "Columns of tables whose states are a thousand times smaller or larger are as varied"
    z, kinds = torch.randn(600, 16, generator=generator(12)), ('number', 'ordinal', 'flag', 'nominal')*10
    for size in (1e-2, 1., 1e3):
        law = draw_heads(generator(13), kinds, z*size, None, holes=False)
        x, _ = law.signals(generator(14), z*size, None)
        assert (x.std(1) - 1).abs().median() < .15 and x.abs().max() <= 8
        assert np.mean([len(c.values.unique()) > 1 for c in law.columns(generator(14), z*size, None)]) > .95


def test_every_bend_is_centred_and_rows_far_outside_stay_bounded():
    z, kinds = torch.randn(2000, 16, generator=generator(12)), ('number',)*200
    law = draw_heads(generator(13), kinds, z, None, ColumnConfig(noise=(.5, 1.), copy_share=0.))
    assert law.signals(generator(14), z, None)[0].mean(1).abs().max() < .4                 # measured on 286 of the 2,000 rows
    x, _ = law.signals(generator(14), z*1e4, None)
    assert 4 < x.abs().max() <= 8
    assert all(c.values[~c.values.isnan()].isfinite().all() for c in law.columns(generator(14), z*1e4, None))


def test_noise_copies_and_time_do_as_they_are_told():
    z, t = torch.randn(2000, 16, generator=generator(15)), torch.linspace(0, 1, 2000).double()
    rank = lambda x: x.argsort(1).argsort(1).double()
    kinds = ('number',)*60
    still = lambda **kw: ColumnConfig(**(dict(noise=(.01, .01), timed_share=0., copy_share=0., noise_share=0.) | kw))
    two = lambda law: torch.stack([law.signals(generator(i), z, t)[0] for i in (16, 17)], 1)                       # the same law, other noise
    again = lambda law: torch.tensor([torch.corrcoef(rank(x))[0, 1] for x in two(law)])
    assert again(draw_heads(generator(18), kinds, z, t, still())).min() > .95
    assert again(draw_heads(generator(18), kinds, z, t, still(noise_share=1.))).abs().max() < .1
    assert .45 < again(draw_heads(generator(18), kinds, z, t, still(noise=(1., 1.)))).median() < .55               # half the variance is noise
    for kw in (dict(noise=(1., 1.)), dict(timed_share=1.), dict(noise_share=1.)):
        assert (draw_heads(generator(18), kinds, z, t, still(**kw)).signals(generator(16), z, t)[0].std(1) - 1).abs().median() < .12, kw
    copied = draw_heads(generator(18), kinds, z, t, still(copy_share=1., noise=(1., 1.)))
    assert copied.source[0] == 0 and all(i < j for j, i in enumerate(copied.source) if j)
    assert torch.corrcoef(rank(copied.signals(generator(16), z, t)[0])).min() > .9
    assert (draw_heads(generator(18), kinds, z, None, still(timed_share=1.)).wave[:, 0] == 0).all()
    drift = lambda **kw: (lambda x: x[:, :1000].mean(1) - x[:, 1000:].mean(1))(draw_heads(generator(18), kinds, z, t, still(**kw)).signals(generator(16), z, t)[0])
    assert drift().abs().max() < .3 < drift(timed_share=1.).abs().max()


def test_many_categories_follow_the_signal_and_zipf():
    z = torch.randn(20_000, 4, generator=generator(19))
    law = draw_heads(generator(20), ('nominal',)*40, z, None, ColumnConfig(n_categories=(200, 1000), noise=(.01, .01), noise_share=0., copy_share=0.), holes=False)
    x, _ = law.signals(generator(21), z, None)
    tops = []
    for c, s in zip(law.columns(generator(21), z, None), x):
        codes, n = c.values.long(), c.n_categories
        assert 200 <= n <= 1000 and len(codes.unique()) > 20
        sums, counts = (torch.bincount(codes, w, minlength=n) for w in (s, None))
        means = (sums/counts.clamp(min=1))[counts > 20]
        within = (s - (sums/counts.clamp(min=1))[codes]).var()
        assert within < .5*s.var() and means.std() > .3                                    # a category says where the signal is ...
        seen = counts.nonzero()[:, 0]
        assert abs(np.corrcoef(seen, (sums/counts.clamp(min=1))[seen])[0, 1]) < .5          # ... and its number does not
        tops.append(float(counts.max()/counts.sum()))
    assert min(tops) < .02 and max(tops) > .15


def test_cuts_give_the_shares():
    for n, shares in ((1, [.5, .5]), (2, [.1, .9]), (1000, [.1, .2, .7])):
        ref = torch.randn(n, generator=generator(n)).sort().values
        at = cuts(ref, torch.tensor(shares))
        assert len(at) == len(shares) - 1 and (at.diff() >= 0).all() and at.isfinite().all()
        if n == 1000: assert torch.bucketize(ref, at).bincount().tolist() == [100, 200, 700]


def test_pareto_tail_is_a_power_law():
    x = torch.randn(200_000, generator=generator(22)).double()
    for alpha in (1., 2.5, 4.):
        v = NUMBERS['pareto'](x, [(alpha - 1)/3, 0, 0], 1.).sort(descending=True).values
        hill = 1/(v[:2000]/v[2000]).log().mean()
        assert abs(float(hill) - alpha) < 4*alpha/2000**.5


# randomness, configs, cost

def digest(seed):
    rows = database(seed)
    return hashlib.sha256(b''.join(c.values.numpy().tobytes() for table in sample_content(generator(seed, 2), rows) for c in table)).hexdigest()


def test_same_bytes_in_another_process_with_more_threads_and_no_global_randomness():
    torch.manual_seed(1); want = [digest(7), digest(2)]; state = torch.get_rng_state()
    torch.manual_seed(2); assert digest(7) == want[0]
    torch.manual_seed(1); digest(7); digest(2); assert torch.equal(torch.get_rng_state(), state)
    code = 'import sys, torch; torch.set_num_threads({}); sys.path.insert(0, {!r}); from test_content import digest; print(digest(2), digest(7))'
    for threads in (1, 2):
        out = subprocess.run([sys.executable, '-c', code.format(threads, str(__file__).rsplit('/', 1)[0])], capture_output=True, text=True, check=True).stdout.split()
        assert out == want[::-1]


def test_seeds_differ(): assert len({digest(s) for s in range(12)}) == 12


def test_rounds_are_drawn_from_the_range():
    drawn = [draw_network(generator(23, i), MIXED, 16).n_rounds for i in range(150)]
    assert set(drawn) == {1, 2, 3} and min(np.bincount(drawn)[1:]) > 25
    assert {draw_network(generator(23, i), MIXED, 16, ContentConfig(n_rounds=(0, 0))).n_rounds for i in range(9)} == {0}


@pytest.mark.parametrize('bad', [dict(n_rounds=(-1, 2)), dict(n_rounds=(3, 1)), dict(focus=(0., 1.5)), dict(spike=(2., 1.)), dict(hidden=0), dict(strength=(-1., 1.))])
def test_impossible_content_configs_are_refused(bad):
    with pytest.raises(InputError, match=f'ContentConfig.{next(iter(bad))} must'): ContentConfig(**bad)


@pytest.mark.parametrize('bad', [dict(noise=(0., 1.)), dict(timed_share=-.1), dict(copy_share=2.), dict(missing_share=1.1), dict(n_categories=(1, 5))])
def test_impossible_column_configs_are_refused(bad):
    with pytest.raises(InputError, match=f'ColumnConfig.{next(iter(bad))} must'): ColumnConfig(**bad)


def test_config_survives_json():
    config = ContentConfig(n_rounds=(2, 2), columns=ColumnConfig(copy_share=.5))
    assert from_dict(ContentConfig, to_dict(config)) == config


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match="no column kind 'text'"): draw_heads(generator(0), ('text',), torch.randn(5, 4), None)


def test_speed_and_linear_cost():
    "Five tables, 5,000 rows and 12 columns took 8 ms on an idle core; ten times the rows cost at most ten times the time"
    torch.set_num_threads(1)
    def cost(scale):
        bp = Blueprint(((), (), (0,), (0, 1, 1), (2, 3)), tuple(n*scale for n in (20, 40, 140, 300, 500)), (('number', 'flag'), ('nominal', 'integer'), ('date', 'number'), ('ordinal', 'number', 'nominal'), ('number',)*3), (False, False, True, True, True))
        links = tuple(torch.stack([torch.randint(0, bp.n_rows[p], (n,), generator=generator(24)) for p in ps]) if ps else torch.empty(0, n, dtype=torch.int64) for ps, n in zip(bp.parents, bp.n_rows))
        rows = Rows(bp, links, tuple(torch.linspace(0, 1, n).double() if timed else None for n, timed in zip(bp.n_rows, bp.timed)), tuple(torch.randn(n, 16, generator=generator(25)) for n in bp.n_rows))
        def one():
            begin = time.process_time(); sample_content(generator(26), rows, ContentConfig(n_rounds=(2, 2)))
            return time.process_time() - begin
        return min(one() for _ in range(6))
    small, middle, large = cost(5), cost(20), cost(200)
    assert small < .05 and large < 20*middle, (small, middle, large)
