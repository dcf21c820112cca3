"""Statistics against cases with known answers, folds that never split a database, records that survive, and real databases where they are there."""
import json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from rdbpfn import diagnose as d
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.examples import flights, load_task, shop
from rdbpfn.prior import sample_database
from rdbpfn.views import TaskConfig

REAL = Path(__file__).resolve().parents[2]/'shared'/'data'
RECORDS = Path(__file__).resolve().parents[1]/'nbs'/'results'/'diagnose.jsonl'


def tables(n, name, make, per=3, rows=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame([dict(source=f'{name} {i}', question='toy', **d.table_statistics(make(rng), rng.random(rows) < .5)) for i in range(n) for _ in range(per)])

def quick():
    from sklearn.ensemble import RandomForestClassifier
    return RandomForestClassifier(20, min_samples_leaf=3, random_state=0)

normal = lambda rng: rng.standard_normal((60, 4))
heavy = lambda rng: np.exp(rng.standard_normal((60, 4)))


@pytest.mark.parametrize('x, want', [
    ([1., 1, 1, 1], dict(missing=0, top=1, distinct=.25, zeros=0, whole=1, skew=0, tail=0)),
    ([.5, np.nan], dict(missing=.5, top=1, distinct=1, zeros=0, whole=0, skew=0, tail=0)),
    ([0., 0, 4, np.nan], dict(missing=.25, top=2/3, distinct=2/3, zeros=2/3)),
    ([np.nan, np.nan], dict(missing=1, top=1, distinct=0)),
    ([-1., 1], dict(missing=0, top=.5, distinct=1, skew=0, tail=0)),
    ([0., 0, 0, 4], dict(top=.75, zeros=.75, skew=np.log1p(2/np.sqrt(3)), tail=np.log(7/3)))])
def test_column_statistics(x, want):
    found = d.column_statistics(np.array(x))
    assert {k: pytest.approx(v) for k, v in want.items()} == {k: found[k] for k in want}

def test_column_statistics_ignore_units_and_order():
    x = np.random.default_rng(0).lognormal(size=200)
    a, b = d.column_statistics(x), d.column_statistics(1e-7*x[::-1])
    assert all(a[k] == pytest.approx(b[k]) for k in a)

def test_large_numbers_that_never_change_have_no_tail():
    assert d.column_statistics(np.full(100, 1e15) + np.arange(100) % 2*.125)['tail'] == 0

def test_gini_and_fans():
    assert d.gini([3, 3, 3, 3]) == pytest.approx(0) and d.gini([0, 0, 0, 5]) == pytest.approx(.75) and d.gini([0, 0]) == 0
    db = Database.from_frames(dict(a=pd.DataFrame(dict(id=range(4))), b=pd.DataFrame(dict(id=range(6), a=pd.array([0, 0, 0, 0, 1, None], 'Int64')))), dict(a='id', b='id'), dict(b={'a': 'a'}))
    f = d.fans_of(db).iloc[0]
    assert (f.parents, f['mean'], f.childless, f['empty']) == (4, 1.5, .5, pytest.approx(1/6))
    assert f.gini == pytest.approx(d.gini([4, 1, 0, 0])) and np.isnan(f.exponent)

def test_densities_count_moments_and_find_growth():
    days = pd.to_datetime('2020-01-01') + pd.to_timedelta(np.sort((np.sqrt(np.linspace(0, 1, 500))*100).astype(int)), 'D')
    db = Database.from_frames(dict(a=pd.DataFrame(dict(id=range(500), at=days))), dict(a='id'), {}, dict(a='at'))
    r = d.densities_of(db).iloc[0]
    assert r.moments == days.nunique()/500 and r.last_third == pytest.approx(5/9, abs=.03) and np.mean(r.density) == pytest.approx(1, abs=.01) and len(r.density) == d.BINS

def test_columns_leave_out_keys_and_row_times():
    found = d.columns_of(shop())
    schema = shop().schema
    assert not any(schema[t][c].kind == 'key' or schema[t].time_col == c for t, c in zip(found.table, found.column)) and len(found)

@pytest.mark.parametrize('holes', [0, .3])
def test_rank_correlations(holes):
    from scipy.stats import spearmanr
    rng = np.random.default_rng(1)
    x = np.c_[rng.random((80, 2)), rng.integers(0, 3, (80, 2))] @ np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1.]])
    x[:, 2] = x[:, 2].round()
    if not holes: assert np.allclose(d.rank_correlations(x), spearmanr(x).statistic)
    x[rng.random(x.shape) < holes] = np.nan
    rho = d.rank_correlations(np.c_[x, np.ones(80), np.full(80, np.nan)])
    assert np.allclose(rho, rho.T) and np.abs(rho).max() <= 1 + 1e-9 and (rho.diagonal() == 1).all() and not rho[4, :4].any() and not rho[5, :5].any()
    assert np.allclose(rho, d.rank_correlations(np.c_[x**3, np.ones(80), np.full(80, np.nan)]))

def test_table_statistics_of_rows_and_columns_in_any_order():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((100, 6)), rng.random(100) < .3
    x[:, 0] = x[:, 1]; x[5, 2] = np.nan; x[7] = x[8]
    a, b = d.table_statistics(x, y), d.table_statistics(x[:, ::-1], y)
    assert list(a) == list(b) and all(a[k] == pytest.approx(b[k], abs=1e-6) for k in a if k != 'tree')
    assert a['copies'] == pytest.approx(2/6) and a['holed_rows'] == .01 and a['twin_rows'] == pytest.approx(.01) and a['rarer'] == pytest.approx(y.mean()) and a['width'] == 6
    assert a['link high'] > .99 and a['load high'] < .35 and a['link high'] > a['load high']
    assert d.table_statistics(np.c_[x, y + 0.], y)['best'] == .5 and d.table_statistics(np.c_[x, y + 0.], y)['signal high'] > .4

def test_blocks():
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    assert d.block_score(blocks) == pytest.approx(1) and d.block_score(np.ones((6, 6))) == 0 and d.block_score(np.eye(6)) == 0 and d.block_score(np.eye(2)) == 0
    weak, strong = (d.block_score(np.where(np.eye(12), 1, np.where(blocks > 0, r, .1))) for r in (.3, .8))
    assert 0 < weak < strong < 1
    order = np.random.default_rng(0).permutation(12)
    assert d.block_score(blocks[order][:, order]) == pytest.approx(1)
    assert np.isnan(d.path_contrast(blocks, ['x']*12)) and d.path_contrast(blocks, [f'MEAN({p}.{i})' for p in 'abc' for i in range(4)]) == pytest.approx(1)
    assert d.path_contrast(np.where(np.eye(12), 1, np.where(blocks > 0, .5, .1)), [f'MEAN({p}.{i})' for p in 'abc' for i in range(4)]) == pytest.approx(.4)

def test_paths_of_real_names():
    want = {'distance': '', 'DAYS_SINCE(sched_dep)': '', 'planes.seats': 'planes', 'airports[dest].COUNT(weather)': 'airports[dest].(weather',
            'airports[dest].MAX(weather.DAYS_SINCE(observed))': 'airports[dest].(weather', 'weather.MEAN(flights.airports[dest].lat)': 'weather.(flights.airports[dest]'}
    assert {n: d.path_of(n) for n in want} == want


def test_a_database_stands_on_one_side_only():
    sources = np.array(['r1', 's1', 's2', 'r2', 's3', 's1', 'r1', 's4', 's5'])
    real = np.array([s[0] == 'r' for s in sources])
    fold = d.fold_of(sources, real)
    assert all(len(set(fold[sources == s])) == 1 for s in sources) and set(fold[real]) == set(fold[~real]) == {0, 1}
    with pytest.raises(InputError, match='at least 2 real'): d.fold_of(sources[:3], real[:3])
    with pytest.raises(InputError, match='at least as many synthetic'): d.fold_of(sources[[0, 1, 3]], real[[0, 1, 3]])

def test_the_opponent_is_right_where_it_can_be_and_only_there():
    a, b, c = tables(4, 'a', normal), tables(16, 'b', normal, seed=1), tables(16, 'c', heavy, seed=2)
    assert abs(d.tell_apart(a, b, quick).auc - .5) < .25
    v = d.tell_apart(a, c, quick)
    assert v.auc > .98 and list(v.by_source) == [f'a {i}' for i in range(4)] and v.auc == pytest.approx(np.mean(list(v.by_source.values())))
    assert max(v.importance.values()) == list(v.importance.values())[0] and {*list(v.importance)[:4]} & {'tail', 'skew'}

def test_what_is_said_about_a_table_is_not_shown_to_the_opponent():
    a, b = tables(4, 'a', normal), tables(8, 'b', normal, seed=1)
    v = d.tell_apart(a.assign(contrast=1.), b.assign(contrast=0.), quick)
    assert v == d.tell_apart(a, b, quick) and not {'contrast', 'question', 'source'} & {*v.importance}

def test_a_database_with_many_tables_counts_no_more_than_one_with_few():
    a, b = tables(4, 'a', normal), tables(8, 'b', normal, seed=1)
    class Spy:
        def fit(self, X, y, sample_weight): seen.append((len(y), sample_weight[y == 1].sum(), sample_weight[y == 0].sum(), sample_weight[y == 1].min())); return self
        def predict_proba(self, X): return np.c_[1 - X[:, 0], X[:, 0]]
    seen = []
    d.tell_apart(pd.concat([a, *[a[a.source == 'a 0']]*3], ignore_index=True), b, Spy)
    for n, real, synthetic, least in seen: assert real == pytest.approx(.75) and synthetic == pytest.approx(.75)
    assert min(s[3] for s in seen) == pytest.approx(1/4/12)


@pytest.fixture(scope='module')
def bundled(): return flights()

def test_drawn_and_asked_tables(bundled):
    drawn = d.drawn_tables(bundled, 'flights', range(1))
    assert len(drawn) and set(drawn.question) == {'drawn'} and (drawn.width <= d.COLUMNS).all() and np.isfinite(drawn.drop(columns=d.ABOUT).to_numpy()).all()
    task = load_task('plane-no-flight-7d')
    asked = pd.concat([d.asked_tables(bundled, 'flights', task, range(4))])
    assert len(asked) and set(asked.question) == {task.name} and list(asked) == list(drawn)
    assert asked.rarer.between(.05, .5).all() and asked.best.max() < .45

def test_the_target_row_does_not_show_what_the_task_masks(bundled, monkeypatch):
    shown = []
    monkeypatch.setattr(d, '_frame', lambda tables, *_: shown.extend(tables))
    task = load_task('flight-late15')
    d.asked_tables(bundled, 'flights', task, range(4), TaskConfig(noise_share=1.))
    names = [n for t in shown if t is not None for n in t.names]
    assert task.mask and names and not {*task.mask, task.target_col} & {*names}

def test_the_same_stream_gives_the_same_numbers():
    pd.testing.assert_frame_equal(d.synthetic_tables(2), d.synthetic_tables(2))

def test_records(tmp_path):
    path, db = tmp_path/'records.jsonl', sample_database(1)
    first = d.database_records([db], 'x')
    d.keep(path, first); d.keep(path, [dict(first[0], n=-1), dict(what='columns', source='y')])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r['what'], r['source']) for r in lines] == [('fans', 'x'), ('densities', 'x'), ('columns', 'x'), ('columns', 'y')][:len(lines)] and lines[-2]['n'] == -1
    assert json.loads(json.dumps(first)) == first

def test_no_folder_of_databases(tmp_path):
    with pytest.raises(InputError, match='no database'): d.real_folders(tmp_path)

def test_committed_records_hold_what_the_notebook_reads():
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    at = lambda **k: [r for r in records if all(r.get(f) == v for f, v in k.items())]
    for what in ('tables', 'columns', 'fans', 'densities'): assert {r['source'] for r in at(what=what)} >= {'before', 'after', 'cdnow', 'rel-f1', 'nycflights13', 'intl_football'}
    auc = {s: np.mean([r['auc'] for r in at(what='apart', source=s, model='forest')]) for s in ('before', 'after')}
    assert .5 < auc['after'] + .1 and auc['after'] < auc['before'] < 1 and RECORDS.stat().st_size < 200_000


@pytest.mark.skipif(not (REAL/'cdnow'/'schema.json').exists(), reason='the real databases are not here')
def test_real_tables():
    found = d.real_tables(REAL/'cdnow')
    assert set(found.question) >= {'drawn', 'customer-buys-60d'} and (found.source == 'cdnow').all() and len(found) >= 6
    assert d.densities_of(Database.from_folder(REAL/'cdnow')).moments.max() < .02
