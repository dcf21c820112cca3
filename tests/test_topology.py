"""Blueprints over many seeds: every promise of `Blueprint` and `TopologyConfig`, the families' shapes, determinism, refusals, speed."""
import hashlib, itertools, subprocess, sys, time
from collections import Counter
from dataclasses import replace
import numpy as np, pytest, torch
from rdbpfn.core import InputError, generator
from rdbpfn.topology import FAMILIES, KINDS_OF_VALUES, LARGE, MAX_PARALLEL, ROLES, SMALL, Blueprint, TopologyConfig, dress, draw_dag, fit_rows, layers_of, roles_of, sample_topology

CONFIGS = dict(small=SMALL, large=LARGE, wide=TopologyConfig(columns=(60, 60)), many=TopologyConfig(tables=(20, 30), total_rows=30_000), pair=TopologyConfig(tables=(2, 2), max_fkeys=2),
               tiny=TopologyConfig(rows=(1, 3), total_rows=320), flat=TopologyConfig(fan_out=(1., 1.)), big=TopologyConfig(rows=(5000, 50_000), total_rows=1_000_000))


def connected(parents):
    group = list(range(len(parents)))
    for t, ps in enumerate(parents):
        for p in ps: group = [group[p] if g == group[t] else g for g in group]
    return len(set(group)) == 1


def fan(b, t): return b.n_rows[t]/max(b.n_rows[p] for p in b.parents[t])


@pytest.mark.parametrize('name', CONFIGS)
def test_every_blueprint_keeps_its_promises(name):
    c = CONFIGS[name]
    for i in range(300):
        b = sample_topology(generator(1, i), c)
        assert c.tables[0] <= b.n_tables <= c.tables[1] and connected(b.parents)
        assert all(len(ps) <= c.max_fkeys and max(Counter(ps).values(), default=0) <= MAX_PARALLEL and all(0 <= p < t for p in ps) for t, ps in enumerate(b.parents))
        assert c.columns[0] <= b.n_columns <= c.columns[1] and max(map(len, b.columns)) >= 3
        assert b.total_rows <= c.total_rows and all(type(n) is int and n >= 1 for n in b.n_rows)
        for t, ps in enumerate(b.parents):
            if ps: assert min(c.fan_out[0], 1.) <= fan(b, t) <= c.fan_out[1] + 1e-9, (b.n_rows, b.parents)
            else: assert min(20, c.rows[0]) <= b.n_rows[t] <= c.rows[1]
        assert all(type(t) is bool for t in b.timed) and all(k in KINDS_OF_VALUES for ks in b.columns for k in ks)
        hash(b)                                                     # plain tuples all the way down


@pytest.mark.parametrize('family', FAMILIES)
def test_families(family):
    for n, most, k in itertools.product(range(2, 14), (2, 3, 4), range(8)):
        ps = FAMILIES[family](np.random.default_rng([n, most, k]), n, most)
        assert len(ps) == n and connected(ps) and max(map(len, ps)) <= most
        many = [t for t, q in enumerate(ps) if len(q) > 1]
        if family == 'star': assert max(layers_of(ps)) == 1 and max(len(q) for q in ps) == min(n-1, most)
        if family == 'snowflake' and n > 4: assert max(layers_of(ps)) >= 2 and sum(not any(t in q for q in ps) for t in range(n)) == 1
        if family == 'chain': assert layers_of(ps) == list(range(n))
        if family in ('chain', 'tree'): assert not many
        if family == 'hub': assert all(0 in q for q in ps[1:])
        if family == 'bridge': assert max(layers_of(ps)) == 1 and all(len(q) in (0, 2) for q in ps)
        if family == 'parallel': assert many and all(len(set(q)) == 1 for q in ps[1:])
        if family == 'layered': assert len(set(layers_of(ps))) == max(layers_of(ps)) + 1


def test_every_family_is_drawn_by_its_weight():
    one = lambda f: replace(SMALL, tables=(5, 5), families=tuple(float(f == g) for g in FAMILIES))
    assert all(len(set(ps)) == len(ps) == 2 for ps in sample_topology(generator(0), one('bridge')).parents if ps)
    assert sample_topology(generator(0), one('chain')).parents == ((), (0,), (1,), (2,), (3,))
    half = replace(SMALL, tables=(6, 6), families=(0, 0, 3, 0, 0, 1, 0, 0))
    chains = np.mean([sample_topology(generator(2, i), half).parents[-1] == (4,) for i in range(800)])
    assert abs(chains - .75) < .05


def test_schema_of_a_blueprint():
    for i in range(60):
        b = sample_topology(generator(3, i), LARGE)
        s = b.schema()
        assert s.names == tuple(f't{t}' for t in range(b.n_tables)) and s.find_cycle() is None
        assert [(f.child, f.columns, f.parent, f.parent_columns) for f in s.fkeys] == [(f't{t}', (f'fk{k}',), f't{p}', ('id',)) for t, k, p in b.edges]
        for t, table in enumerate(s.tables):
            assert table.pkey == ('id',) and table.time_col == ('time' if b.timed[t] else None)
            kinds = [c.kind for c in table.columns if c.name.startswith('c')]
            assert kinds == [dict(nominal='category', flag='boolean', date='datetime').get(k, 'number') for k in b.columns[t]]


def test_rows_shrink_roots_first():
    star = ((), (), (0, 1))
    assert fit_rows(star, [100, 50, 0], [0, 0, 10], [20, 20, 0], 2000) == [100, 50, 1000]
    a = fit_rows(star, [1000, 500, 0], [0, 0, 10], [20, 20, 0], 2000)
    assert abs(a[2]/a[0] - 10) < .1 and abs(a[0]/a[1] - 2) < .1 and 1800 < sum(a) <= 2000      # fan-out and proportions stay
    b = fit_rows(star, [1000, 500, 0], [0, 0, 100], [50, 30, 0], 2000)
    assert b[:2] == [50, 30] and b[2] <= 1920 and 15 < b[2]/50 < 100                            # now the fan-out gives way
    c = fit_rows(((), (0,), (0,)), [100, 0, 0], [0, .6, 500], [40, 0, 0], 1000)
    assert c[:2] == [40, 24] and 5*40 < c[2] <= 936                                             # but not one below 1


def test_roles():
    assert [ROLES[r] for r in roles_of(((), (0,)))] == ['entity', 'event']
    assert [ROLES[r] for r in roles_of(((), (), (0, 1)))] == ['lookup', 'lookup', 'link']
    assert [ROLES[r] for r in roles_of(((), (0, 0)))] == ['entity', 'link']
    assert [ROLES[r] for r in roles_of(((), (), (0,), (1, 2), (0, 1)))] == ['entity', 'entity', 'middle', 'link', 'link']


def test_dress_obeys_wishes():
    parents = ((), (0,), (0,), (0,))
    wide = np.array([[len(c) for c in dress(generator(4, i), parents, n_cols=(2, 20, 2, 2), sizes=None).columns] for i in range(200)])
    assert wide[:, 1].mean() > 6 and wide[:, 2:].mean() < 1.5                                    # width goes where it is wished
    rows = lambda sizes: np.median([dress(generator(5, i), parents, replace(SMALL, total_rows=10**7), sizes=sizes).n_rows[0] for i in range(300)])
    assert rows((1, 3, 3, 3)) > 2*rows((0, 3, 3, 3))                                           # an entity is larger than a lookup
    with pytest.raises(InputError, match='4 tables but 2 sizes'): dress(generator(0), parents, sizes=(1, 2))
    with pytest.raises(InputError, match='4 tables but 1 column counts'): dress(generator(0), parents, n_cols=(1,))
    with pytest.raises(InputError, match='301 tables need total_rows of at least 12040'): dress(generator(0), ((),) + ((0,),)*300)


def test_the_first_columns_go_where_neighbours_are():
    "With three columns in all, one table has them: of a chain of large tables, an inner one twice as often as an end"
    three, chain = TopologyConfig(columns=(3, 3), rows=(200, 5000), fan_out=(1., 2.), total_rows=10**6), ((), (0,), (1,), (2,))
    widths = np.array([[len(c) for c in dress(generator(7, i), chain, three).columns] for i in range(1200)])
    assert set(widths.flatten()) == {0, 3} and np.abs((widths == 3).mean(0) - [1/6, 1/3, 1/3, 1/6]).max() < .04


def digest(seed, n=40): return hashlib.sha256(repr([sample_topology(generator(seed, i), LARGE) for i in range(n)]).encode()).hexdigest()


def test_same_bytes_in_another_process():
    code = 'from tests.test_topology import digest; print(digest(8))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == digest(8)
    assert digest(9) != digest(8)


def test_no_global_randomness():
    torch.manual_seed(1); np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    digest(3, 5)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


BAD = [(dict(rows=(0, 10)), r'rows must lie in \[1, 1e\+07\]'), (dict(tables=(1, 3)), r'tables must lie in \[2, 64\]'), (dict(tables=(5, 3)), r'tables must be \(smallest, largest\) in whole numbers'), (dict(tables=(2.5, 3)), r'tables must be \(smallest, largest\) in whole numbers'), (dict(total_rows=1e4), 'total_rows must be a whole number'),
       (dict(columns=(2, 5)), r'columns must lie in \[3, 1000\]'), (dict(fan_out=(0., 3.)), r'fan_out must lie in \[0.1, 1000\]'), (dict(fan_out=(.1, .5)), 'fan_out must allow a fan-out of 1'),
       (dict(total_rows=100), r'total_rows must lie in \[320, 1e\+09\]'), (dict(tables=(2, 2), max_fkeys=4), r'max_fkeys must lie in \[2, 3\]'), (dict(max_fkeys=1), r'max_fkeys must lie in \[2, 21\]'),
       (dict(timed=(.5, 1.5)), r'timed must lie in \[0, 1\]'), (dict(families=(0,)*8), 'families must be 8 weights'), (dict(families=(1, 2)), 'families must be 8 weights'),
       (dict(kinds=(-1, 1, 1, 1, 1, 1)), 'kinds must lie in'), (dict(kinds=(1,)), 'kinds must be 6 weights')]

@pytest.mark.parametrize('bad,why', BAD)
def test_impossible_configs_are_refused_at_construction(bad, why):
    with pytest.raises(InputError, match=f'TopologyConfig.{why}'): TopologyConfig(**bad)


GOOD = dict(parents=((), (0,)), n_rows=(3, 4), columns=(('number',), ()), timed=(False, True))
@pytest.mark.parametrize('bad,why', [(dict(parents=((), (1,))), 'table 1 refers to table 1'), (dict(parents=((), (-1,))), 'table 1 refers to table -1'), (dict(n_rows=(3, 0)), 'table 1 has 0 rows'),
                                     (dict(n_rows=(3,)), 'Blueprint.n_rows has 1 entries for 2 tables'), (dict(columns=(('text',), ())), "table 0 has kind 'text'"), (dict(timed=(True,)), 'Blueprint.timed has 1')])
def test_impossible_blueprints_are_refused(bad, why):
    Blueprint(**GOOD)
    with pytest.raises(InputError, match=why): Blueprint(**{**GOOD, **bad})


def test_drawing_has_one_arrow_a_foreign_key():
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    draw_dag(ax, ((), (0, 0), (0, 1)), (10, 100, 1000))
    assert len(ax.texts) == 4 and len(ax.collections[0].get_offsets()) == 3
    plt.close(fig)


def test_speed():
    "Under a millisecond each; an eighth of one was measured on an idle core"
    gens = [generator(6, i) for i in range(200)]
    begin = time.process_time()
    for g in gens: sample_topology(g)
    assert (time.process_time() - begin)/200 < 1e-3
