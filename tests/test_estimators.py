"""Contexts, storage, regression, explanations and memory: laws and faults that a notebook has no room for."""
import io, json, pickle, subprocess, sys, zipfile
import numpy as np, pandas as pd, pytest, torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from rdbpfn import kernel, storage
from rdbpfn.classifier import RDBPFNClassifier, RDBPFNRegressor, as_probabilities
from rdbpfn.core import InputError
from rdbpfn.encoding import View, distinct_columns
from rdbpfn.ensemble import POLICIES, draw_contexts, flip_of, log_odds_of, memory_of
from rdbpfn.model import ModelConfig, RDBPFN
from rdbpfn.regression import masses, quantile, thresholds_of


@parametrize_with_checks([RDBPFNRegressor(device='cpu', n_estimators=1, n_context=64)])
def test_scikit_learns_own_checks(estimator, check): check(estimator)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return RDBPFN(ModelConfig(n_layers=2, width=16, n_heads=2, hidden=32)).eval()


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6))
    d = pd.DataFrame(x, columns=list('abcdef')).assign(town=np.where(x[:, 1] > 0, 'Ulm "x"; --', None))
    return d, (x[:, 0] > 0).astype(int), x[:, 0] + rng.normal(size=120)


# ---- contexts

@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('size', [10, 60, 500])
def test_contexts_are_reproducible_subsets_of_one_length(policy, size):
    codes, times = np.arange(300) % 3 // 2, np.datetime64('2024-01-01') + np.random.default_rng(0).integers(0, 90, 300)*np.timedelta64(1, 'D')
    draw = lambda: draw_contexts(policy, codes, times, size, 4, np.random.RandomState(1))
    a, b = draw(), draw()
    assert len({len(c) for c in a}) == 1 and len(a[0]) <= size and all(np.array_equal(x, y) for x, y in zip(a, b))
    for c in a: assert len(np.unique(c)) == len(c) and (np.diff(c) > 0).all()
    assert len(a[0]) == min(size, 300)
    if policy == 'balanced' and size <= 60: assert np.ptp(np.bincount(codes[a[0]])) == 0


def test_recency_prefers_late_rows_and_recent_takes_only_those():
    times = np.datetime64('2024-01-01') + np.arange(1000)*np.timedelta64(1, 'h')
    codes = np.arange(1000) % 2
    mean = {p: np.mean(draw_contexts(p, codes, times, 100, 20, np.random.RandomState(0))) for p in ('random', 'recency', 'recent')}
    assert abs(mean['random'] - 499.5) < 20 and 560 < mean['recency'] < 800 and mean['recent'] == 949.5


@pytest.mark.parametrize('counts, size, want', [((80, 19, 1), 20, (10, 9, 1)), ((5, 500), 100, (5, 95)), ((40, 60), 100, (40, 60)), ((300, 20, 300), 90, (35, 20, 35)), ((3, 3, 3), 4, (1, 1, 2))])
def test_balanced_contexts_are_full_and_as_equal_as_they_can_be(counts, size, want):
    codes = np.repeat(np.arange(len(counts)), counts)
    rows, = draw_contexts('balanced', codes, None, size, 1, np.random.RandomState(0))
    assert sorted(np.bincount(codes[rows])) == sorted(want) and len(rows) == size


def test_balanced_contexts_with_corrected_odds_keep_the_base_rate(net):
    "With columns that tell nothing the honest answer is the base rate, whatever the context looks like"
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 2)), (np.arange(2000) % 20 == 0).astype(int)
    m = RDBPFNClassifier(n_estimators=1, context='balanced', n_context=200, device='cpu').fit(x, y)
    assert np.bincount(y[m.ensemble_.members[0].rows]).tolist() == [100, 100]
    assert abs(m.predict_proba(x[:200])[:, 1].mean() - .05) < .02
    m.ensemble_.members[0].shift[:] = 0
    assert m.predict_proba(x[:200])[:, 1].mean() > .4


def test_a_class_that_no_context_row_shows_stays_unlikely(net):
    "Fewer rows than classes: what was not read is not made likely by the correction of odds"
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 2)), np.arange(400) % 8
    m = RDBPFNClassifier(net, context='balanced', n_context=5, n_estimators=1, device='cpu').fit(x, y)
    shown = np.isin(np.arange(8), y[m.ensemble_.members[0].rows])
    assert 0 < shown.sum() < 8 and (m.ensemble_.members[0].shift[~shown] == 0).all() and np.isfinite(m.predict_proba(x[:9])).all()


@pytest.mark.parametrize('v', [1, 2, 3])
def test_every_view_is_shown_plain_and_flipped(v): assert len({(i % v, flip_of(i, v)) for i in range(2*v)}) == 2*v and not flip_of(0, v)


# ---- views and columns

def test_views_learn_from_the_context_only_and_keep_holes():
    rng = np.random.default_rng(0)
    c, q = rng.normal(size=(50, 3)), rng.normal(size=(9, 3))
    q[2, 1] = np.nan
    for name in ('raw', 'squashed', 'ranks'):
        v = View(name, c)
        assert np.isnan(v(q)).sum() == 1 and np.isnan(v(q)[2, 1]) and np.array_equal(v(q)[:4], v(q[:4]), equal_nan=True)
        assert (np.diff(v(np.sort(q, 0)), axis=0)[:, [0, 2]] >= 0).all(), 'order is kept'


def test_distinct_columns_are_found_whatever_their_scale():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[5, 0] = np.nan
    wide = np.c_[x, 1e9*x, -x, x[:, :1] + 7, np.ones(40), np.full(40, np.nan)]
    assert distinct_columns(wide).tolist() == [0, 1, 2]


# ---- numbers from yes and no

@pytest.mark.parametrize('k', [1, 5, 15])
def test_thresholds_split_and_masses_are_distributions(k):
    rng = np.random.default_rng(k)
    for y in (rng.normal(size=200), rng.integers(0, 5, 200).astype(float), np.exp(rng.normal(size=200)*3), np.r_[np.zeros(190), 1:11]):
        t = thresholds_of(y, k)
        assert 1 <= len(t.at) <= max(k, 1) and (np.diff(t.at) > 0).all() and all(0 < (y > a).mean() < 1 for a in t.at)
        p = rng.random((30, len(t.at)))
        m = masses(p)
        assert (m >= 0).all() and np.allclose(m.sum(1), 1)
        q = np.stack([quantile(t, p, v) for v in (.05, .3, .5, .9)], 1)
        assert (np.diff(q, axis=1) >= -1e-9).all() and (q >= t.low[0]).all() and (q <= t.high[-1]).all()
        assert ((m @ t.means >= t.low[0]) & (m @ t.means <= t.high[-1])).all()
        assert (t.low <= t.means).all() and (t.means <= t.high).all() and (t.high[:-1] < t.at).all() and (t.at <= t.low[1:]).all()


@pytest.mark.parametrize('name', ['spent', 'counts', 'normal'])
def test_intervals_hold_what_they_promise(name):
    "With the true probabilities, 80 % of new numbers lie between the quantiles, ties or not: zeros and counts are met exactly"
    rng = np.random.default_rng(0)
    draw = dict(spent=lambda n: np.where(rng.random(n) < .5, 0., np.exp(rng.normal(size=n))), counts=lambda n: rng.poisson(1., n)*1., normal=lambda n: rng.normal(size=n))[name]
    known, new = draw(4000), draw(4000)
    t = thresholds_of(known)
    p = (known[:, None] > t.at).mean(0)[None]
    low, high = (float(quantile(t, p, q)[0]) for q in (.1, .9))
    covered, least = ((low <= new) & (new <= high)).mean(), ((np.quantile(known, .1) <= new) & (new <= np.quantile(known, .9))).mean()
    assert covered >= .78 and abs(covered - least) < .04
    if name != 'normal': assert low == 0 and (name == 'spent' or high == np.quantile(known, .9))


def test_files_of_regressors_from_before_are_read(net, data):
    d, _, _ = data
    m = RDBPFNRegressor(net).fit(d, np.arange(120.))
    about, parts = m.parts()
    about['thresholds'][2:] = [0., 119.]                                            # the smallest and the largest number only
    t = RDBPFNRegressor.from_parts(about, parts).thresholds_
    assert t.low.tolist() == [0., *m.thresholds_.at] and t.high.tolist() == [*m.thresholds_.at, 119.]


def test_regressor_with_few_values_and_constant_ones(net, data):
    d, _, _ = data
    assert (RDBPFNRegressor(net).fit(d, np.full(120, 3.)).predict(d) == 3).all()
    m = RDBPFNRegressor(net).fit(d, np.arange(120) % 3)
    assert m.thresholds_.at.tolist() == [.5, 1.5] and m.predict_quantiles(d, (.1, .9)).shape == (120, 2)
    for y, says in (([1, np.nan]*60, '60 of the 120'), (['a']*120, 'could not convert'), ([1]*119, '119 numbers'), (None, 'y is None')):
        with pytest.raises(InputError, match=says): RDBPFNRegressor(net).fit(d, y)
    with pytest.raises(InputError, match='between 0 and 1'): m.predict_quantiles(d, (2,))


# ---- storage

@pytest.mark.parametrize('kind', [RDBPFNClassifier, RDBPFNRegressor])
@pytest.mark.parametrize('rows', [True, False])
@pytest.mark.parametrize('options', [{}, dict(n_estimators=4, context='balanced', views=('ranks',), n_columns=3, columns='drawn')], ids=['plain', 'all'])
def test_round_trip(net, data, tmp_path, kind, rows, options):
    d, y, z = data
    m = kind(net, **options).fit(d[:80], (y if kind is RDBPFNClassifier else z)[:80])
    answer = (lambda e: e.predict_proba(d)) if kind is RDBPFNClassifier else (lambda e: e.predict_quantiles(d))
    back = kind.load(m.save(tmp_path/'m.rdbpfn', training_rows=rows), 'cpu')
    np.testing.assert_allclose(answer(back), answer(m), atol=1e-4)
    np.testing.assert_allclose(answer(pickle.loads(pickle.dumps(back))), answer(m), atol=1e-4)
    assert {k: v for k, v in back.get_params().items() if k not in ('model', 'device')} == {k: v for k, v in m.get_params().items() if k not in ('model', 'device')}
    with zipfile.ZipFile(tmp_path/'m.rdbpfn') as f: names, text = f.namelist(), f.read('estimator.json')
    assert ('context.parquet' in names) == rows and ('cache.safetensors' in names) != rows and json.loads(text)['format'] == storage.FORMAT
    np.testing.assert_allclose(answer(clone(back).fit(d[:80], (y if kind is RDBPFNClassifier else z)[:80])), answer(m), atol=1e-4)


def test_parameters_of_numpy_are_saved_as_numbers(net, data, tmp_path):
    d, y, _ = data
    m = RDBPFNClassifier(net, n_context=np.int64(50), n_columns=np.int32(9), random_state=np.int64(3)).fit(d[:80], y[:80])
    back = RDBPFNClassifier.load(m.save(tmp_path/'m.rdbpfn'), 'cpu')
    assert (back.n_context, back.n_columns, back.random_state) == (50, 9, 3)


def test_memory_is_estimated_for_the_attention_that_is_used(monkeypatch):
    cost = lambda dtype: memory_of(ModelConfig(ridge=False), 1024, 30, dtype)['passing']
    monkeypatch.setenv('RDBPFN_KERNEL', '0')
    assert cost(torch.bfloat16) > cost(torch.float32), 'attention is written out'
    monkeypatch.delenv('RDBPFN_KERNEL')
    if kernel.available(torch.empty(1, 1, 1, 24, dtype=torch.bfloat16)): assert cost(torch.bfloat16)*2 == cost(torch.float32)


def test_mean_and_quantiles_come_from_one_reading(net, data, monkeypatch):
    d, _, z = data
    m = RDBPFNRegressor(net).fit(d[:80], z[:80])
    mean, quantiles = m.predict_with_quantiles(d, (.2, .5))
    assert np.array_equal(mean, m.predict(d)) and np.array_equal(quantiles, m.predict_quantiles(d, (.2, .5))) and m.predict_quantiles(d, .5).shape == (len(d), 1)
    with pytest.raises(InputError, match='between 0 and 1'): m.predict_quantiles(d, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('rows', [True, False])
@pytest.mark.parametrize('one, other', [('cpu', 'cuda'), ('cuda', 'cpu')])
def test_a_file_travels_between_cpu_and_gpu(data, tmp_path, rows, one, other):
    d, y, _ = data
    m = RDBPFNClassifier(device=one).fit(d[:80], y[:80])
    back = RDBPFNClassifier.load(m.save(tmp_path/'m.rdbpfn', training_rows=rows), other)
    assert next(back.ensemble_.network.parameters()).device.type == other
    np.testing.assert_allclose(back.predict_proba(d), m.predict_proba(d), atol=1e-3)


@pytest.mark.parametrize('y', [['no', 'yes'], [False, True], [3, 8], [1., 2.]])
def test_classes_come_back_as_they_were(net, data, tmp_path, y):
    d, codes, _ = data
    m = RDBPFNClassifier(net, n_estimators=1).fit(d, np.array(y)[codes])
    back = RDBPFNClassifier.load(m.save(tmp_path/'m'))
    assert back.classes_.dtype == m.classes_.dtype and (back.predict(d) == m.predict(d)).all()


def test_broken_and_foreign_files(net, data, tmp_path, monkeypatch):
    d, y, _ = data
    m, path = RDBPFNClassifier(net, n_estimators=1).fit(d, y), tmp_path/'m'
    m.save(path)
    whole = path.read_bytes()
    for cut in (0, 10, 1000, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError): RDBPFNClassifier.load(path)
    path.write_bytes(pickle.dumps(m))
    with pytest.raises(InputError, match='is no saved estimator'): RDBPFNClassifier.load(path)
    monkeypatch.setattr(storage, 'FORMAT', 99); m.save(path); monkeypatch.undo()
    with pytest.raises(InputError, match='update rdbpfn'): RDBPFNClassifier.load(path)
    with pytest.raises(InputError, match='is a folder'): m.save(tmp_path)
    monkeypatch.setattr(storage.zipfile.ZipFile, 'writestr', lambda *a: 1/0)
    path.write_bytes(whole)
    with pytest.raises(ZeroDivisionError): m.save(path)
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1, 'the old file stays, and no other'


def test_no_training_row_is_in_a_file_without_them(net, data, tmp_path):
    d, y, _ = data
    m = RDBPFNClassifier(net, n_estimators=1, views=('raw',)).fit(d, y)
    def numbers(training_rows):
        _, parts = storage.read_parts(m.save(tmp_path/'m', training_rows=training_rows), ('RDBPFNClassifier',))
        found = [t.flatten().double().numpy() for n in parts if n.endswith('.safetensors') for t in storage.unpack(parts, n).values() if t.is_floating_point()]
        return np.concatenate(found + [storage.unpack_frame(parts, n).to_numpy(float).ravel() for n in parts if n.endswith('.parquet')])
    cells = np.sort(m.ensemble_.x[:, 0])[1:-1]                        # but for the ends of a column, which its scale tells
    assert np.isin(cells, numbers(True)).all() and not np.isin(cells.astype('float32'), numbers(False).astype('float32')).any()


# ---- explanations

def test_effects_are_what_hiding_does(net, data):
    d, y, _ = data
    m = RDBPFNClassifier(net, n_estimators=1).fit(d[:80], y[:80])
    told = m.explain(d[80:90], {'ab': ['a', 'b'], 'nothing': []})
    full = m.predict_proba(d[80:90])
    best = full.argmax(1)
    def score(frame): p = np.take_along_axis(m.predict_proba(frame), best[:, None], 1)[:, 0]; return np.log(p/(1 - p))
    np.testing.assert_allclose(told.score, score(d[80:90]), atol=1e-4)
    np.testing.assert_allclose(told.groups['ab'], score(d[80:90]) - score(d[80:90].assign(a=np.nan, b=np.nan)), atol=1e-4)
    np.testing.assert_allclose(told.features['c'], score(d[80:90]) - score(d[80:90].assign(c=np.nan)), atol=1e-4)
    assert (told.groups['nothing'] == 0).all() and list(told.features) == list(d)
    with pytest.raises(InputError, match="names a column 'zzz'"): m.explain(d, {'g': ['zzz']})


def test_explanations_of_several_classes_numbers_and_nothing(net, data):
    d, _, z = data
    three = RDBPFNClassifier(net, n_estimators=1).fit(d, np.digitize(z, [-.5, .5])).explain(d[:5])
    number = RDBPFNRegressor(net, n_estimators=1).fit(d, z).explain(d[:5])
    flat = RDBPFNClassifier(net).fit(d.assign(**{c: 1 for c in d}), np.arange(120) % 2).explain(d[:5].assign(**{c: 1 for c in d}))
    assert three.features.shape == number.features.shape == flat.features.shape == (5, 7) and (flat.features == 0).all(axis=None)
    assert number.what == 'predicted number' and np.isfinite(three.features).all(axis=None)


# ---- memory, type, cache

def test_cached_answers_equal_reading_again(net, data):
    d, y, _ = data
    m = RDBPFNClassifier(net, n_estimators=4).fit(d[:80], y[:80])
    first = m.predict_proba(d[80:])
    assert m.ensemble_.cache
    m.ensemble_.cache, m.ensemble_.keep = {}, False
    np.testing.assert_allclose(m.predict_proba(d[80:]), first, atol=1e-4)
    assert not m.ensemble_.cache


def test_bfloat16_is_close_and_half_as_large(net, data):
    d, y, _ = data
    a, b = (RDBPFNClassifier(net, dtype=t).fit(d[:80], y[:80]) for t in ('float32', 'bfloat16'))
    assert np.abs(a.predict_proba(d) - b.predict_proba(d)).max() < .05 and a.ensemble_.bytes['kept'] == 2*b.ensemble_.bytes['kept']
    assert b.ensemble_.cache[0].kv[0][0].dtype == torch.bfloat16


def test_kept_bytes_are_those_of_the_tensors(net, data):
    d, y, _ = data
    m = RDBPFNClassifier(net).fit(d, y)
    assert m.ensemble_.bytes['kept'] == sum(t.numel()*t.element_size() for c in m.ensemble_.cache.values() for pair in c.kv for t in pair)


def test_memory_of_many_queries_is_bounded():
    "1,000 queries against 512 x 20: the process grows by no more than twice the estimate"
    code = 'import torch, json; torch.set_num_threads(1); from rdbpfn.latency import memory_of_prediction as m; print(json.dumps(m(512, 20, 1000)))'
    r = json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
    assert .2*r['estimated_mb'] < r['measured_mb'] < 2*r['estimated_mb'], r


def test_probabilities_at_the_edge():
    p = as_probabilities(np.array([[1e6], [-1e6]]))
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1)
    assert np.isfinite(as_probabilities(np.full((1, 3), -1e6))).all() and np.isfinite(log_odds_of(np.array([0, 1]))).all()


def test_cross_val_score(net, data):
    d, y, z = data
    assert np.isfinite(cross_val_score(RDBPFNClassifier(net), d, y, cv=2)).all() and np.isfinite(cross_val_score(RDBPFNRegressor(net), d, z, cv=2)).all()
