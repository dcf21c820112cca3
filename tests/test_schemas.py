"""Real schemas: reading, cleaning, telling graphs apart and measuring collections, against brute force."""
import itertools, json, sqlite3
import numpy as np, pytest
from scipy.stats import wasserstein_distance
from rdbpfn.core import InputError
from rdbpfn.schemas import clean_graph, distances, fingerprint, is_valid, layers_of, read_graphs, statistics, wasserstein


def random_edges(rng, n, m): return [tuple(map(int, e)) for e in rng.integers(0, n, (m, 2))]


def test_cleaning_random_graphs():
    rng = np.random.default_rng(0)
    for _ in range(400):
        n = int(rng.integers(1, 9)); edges = random_edges(rng, n, int(rng.integers(0, 12)))
        parents, kept = clean_graph(n, edges)
        assert len(set(kept)) == len(parents) == len(kept) and set(kept) <= set(range(n))
        assert is_valid(parents) == (len(parents) > 1) and layers_of(parents) == sorted(layers_of(parents))
        found = [(kept[t], kept[p]) for t, ps in enumerate(parents) for p in ps]
        assert all(found.count(e) <= edges.count(e) for e in found)                     # nothing is invented
        again = clean_graph(len(parents), [(t, p) for t, ps in enumerate(parents) for p in ps])
        assert again == (parents, tuple(range(len(parents))))                           # cleaning twice changes nothing
        down = [e for e in edges if e[0] > e[1]]                                        # acyclic already: all of its largest part stays
        parents, kept = clean_graph(n, down)
        assert sorted((kept[t], kept[p]) for t, ps in enumerate(parents) for p in ps) == sorted(e for e in down if e[0] in kept)


def test_largest_part_and_order():
    assert clean_graph(6, [(0, 1), (2, 3), (4, 3), (4, 5)]) == (((), (), (0,), (0, 1)), (3, 5, 2, 4))
    assert clean_graph(4, [(0, 1), (2, 3)])[1] == (1, 0)                                # a tie: the part of the first table
    assert clean_graph(3, []) == (((),), (0,)) and not is_valid(((),))


def same_by_permutation(a, b):
    edges = lambda g, f: sorted((f[t], f[p]) for t, ps in enumerate(g) for p in ps)
    return len(a) == len(b) and any(edges(a, f) == edges(b, range(len(b))) for f in itertools.permutations(range(len(a))))


def test_fingerprint_is_isomorphism_on_all_small_graphs():
    pairs = [(t, p) for t in range(4) for p in range(t)]
    graphs = [tuple(tuple(p for c, p in chosen if c == t) for t in range(4)) for k in range(7) for chosen in itertools.combinations(pairs, k)]
    marks = [fingerprint(g) for g in graphs]
    for i, j in itertools.combinations(range(len(graphs)), 2): assert (marks[i] == marks[j]) == same_by_permutation(graphs[i], graphs[j]), (graphs[i], graphs[j])


def test_fingerprint_looks_down_as_well_as_up():
    "Two branches with two leaves each; two more leaves hang below one branch, or below both"
    tree = ((), (0,), (0,), (1,), (1,), (2,), (2,))
    assert fingerprint(tree + ((3,), (4,))) != fingerprint(tree + ((3,), (5,))) == fingerprint(tree + ((4,), (6,)))


def test_fingerprint_counts_parallel_keys(): assert len({fingerprint(g) for g in (((), (0,)), ((), (0, 0)), ((), (0, 0, 0)))}) == 3


@pytest.mark.parametrize('bad', [((),), ((), ()), ((0,), ()), ((), (1,)), ((), (-1,)), ((), (0,), ()), ((), (0,), (), (2,))])
def test_invalid_graphs(bad): assert not is_valid(bad)


def test_wasserstein_is_scipys():
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = (rng.integers(-3, 9, rng.integers(1, 20)).tolist() for _ in range(2))
        assert abs(wasserstein(a, b) - wasserstein_distance(a, b)) < 1e-12
    assert wasserstein([4], [4]) == 0.


def test_statistics_by_hand():
    star, twice = ((), (), (0, 1)), ((), (0, 0), (1,))
    assert statistics([(star, 'ignored')]) == dict(tables=[3], fkeys=[2], out_degree=[0, 0, 2], in_degree=[1, 1, 0], path=[1])
    assert statistics([(twice,)]) == dict(tables=[3], fkeys=[2], out_degree=[0, 1, 1], in_degree=[1, 1, 0], path=[2])
    assert distances([(star,)], [(twice,)]) == pytest.approx(dict(tables=0., fkeys=0., out_degree=2/3, in_degree=0., path=1.))


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data)); return path


def test_spider_format(tmp_path):
    names = [[-1, '*'], [0, 'id'], [1, 'id'], [1, 'home'], [1, 'away'], [1, 'boss'], [2, 'x']]
    record = dict(table_names_original=['team', 'match', 'log'], column_names_original=names, foreign_keys=[[3, 1], [4, 1], [5, 2]])
    plain = dict(table_names=['team', 'match', 'log'], column_names=names, foreign_keys=[])
    assert read_graphs(write(tmp_path/'tables.json', [record, plain])) == [(((), (0, 0)), (1, 4))]
    assert read_graphs(str(write(tmp_path/'ours.json', [dict(n_cols=[2, 3], edges=[[0, 1]])]))) == [(((), (0,)), (3, 2))]


def test_a_database(tmp_path):
    con = sqlite3.connect(tmp_path/'x.db')
    con.executescript('create table b (id integer primary key, boss int references b(id)); create table a (id integer primary key, b1 int references b(id), b2 int references b(id)); create table alone (x int);')
    con.close()
    want = [(((), (0, 0)), (2, 3))]
    assert read_graphs(f"sqlite:///{tmp_path/'x.db'}") == want and read_graphs(tmp_path/'x.db') == want


@pytest.mark.parametrize('data,why', [('{', 'is not JSON'), ({}, 'holds a dict: it must be a list'), ([dict(n_cols=[1])], 'Record 0 of .* is no schema'), ([3], 'Record 0 of .* is no schema'),
                                      ([dict(n_cols=[1, 1], edges=[]), dict(n_cols=[1, 1], edges=[[0, 2]])], r'Record 1 of .* has the edge \[0, 2\], but its tables are 0 to 1'),
                                      ([dict(n_cols=[1, 1], edges=[[0, 1, 1]])], 'edges are'), ([dict(table_names=['a'], column_names=[[0, 'x']], foreign_keys=[[0, 9]])], 'IndexError'),
                                      ([dict(n_cols=[1, 1], edges=[5])], 'Record 0 of .* has the edge 5')])
def test_bad_files_are_named(tmp_path, data, why):
    with pytest.raises(InputError, match=why): read_graphs(write(tmp_path/'bad.json', data))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="There is no file '.*none.json'"): read_graphs(tmp_path/'none.json')
