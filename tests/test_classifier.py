"""The classifier is a scikit-learn estimator, takes any frame, answers as the network does, and never sees a query twice differently."""
import copy, datetime as dt, decimal, pickle, warnings
import numpy as np, pandas as pd, pytest, torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from rdbpfn import ensemble as E
from rdbpfn.classifier import RDBPFNClassifier, RDBPFNRegressor
from rdbpfn.core import InputError
from rdbpfn.encoding import FrameEncoder, as_numbers, code_book, rank_eta, select_columns
from rdbpfn.model import ModelConfig, RDBPFN, save_model


@parametrize_with_checks([RDBPFNClassifier(device='cpu')])
def test_scikit_learns_own_checks(estimator, check): check(estimator)


@pytest.fixture(scope='module')
def net():
    "A small untrained network: what is tested here does not depend on what the weights know"
    torch.manual_seed(0)
    return RDBPFN(ModelConfig(n_layers=2, width=16, n_heads=2, hidden=32)).eval()


def table(n=60, n_cols=5, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_cols))
    return x, (x[:, 0]*n_classes).astype(int) % n_classes, rng


# ---- what the network is asked

def test_one_member_is_the_forward_pass(net):
    x, y, _ = table()
    x[3, 2] = np.nan
    p = RDBPFNClassifier(net, n_estimators=1).fit(x[:40], y[:40]).predict_proba(x[40:])
    with torch.no_grad(): q = net(torch.tensor(x)[None].float(), torch.tensor(y[:40])[None])[0].softmax(-1).numpy()
    np.testing.assert_allclose(p, q, atol=1e-5)


@pytest.mark.parametrize('n_classes', [2, 3, 5])
@pytest.mark.parametrize('n_estimators', [1, 2, 3, 4])
def test_members_and_classes_written_out(net, n_estimators, n_classes):
    x, y, _ = table(n_classes=n_classes)
    x[3:30, 2] = np.nan
    p = RDBPFNClassifier(net, n_estimators=n_estimators).fit(x[:40], y[:40]).predict_proba(x[40:])
    z = (x - np.nanmean(x[:40], 0))/np.nanstd(x[:40], 0)
    asked, log_odds = ([1] if n_classes == 2 else range(n_classes)), []
    for view, flip in [('raw', 0), ('squashed', 1), ('raw', 1), ('squashed', 0)][:n_estimators]:
        v = torch.tensor(z if view == 'raw' else np.sign(z)*np.log1p(abs(z)))[None].float()
        for k in asked:
            with torch.no_grad(): l = net(v, torch.tensor((y[:40] == k)^bool(flip))[None])[0].double().numpy()
            log_odds.append((l[:, 1] - l[:, 0])*(-1)**flip)
    q = 1/(1 + np.exp(-np.stack(log_odds).reshape(n_estimators, len(asked), -1).mean(0).T))
    q = np.hstack([1-q, q]) if n_classes == 2 else q/q.sum(1, keepdims=True)
    np.testing.assert_allclose(p, q, atol=1e-5)


def test_label_flip_is_a_symmetry(net):
    x, y, _ = table()
    fit = lambda t: RDBPFNClassifier(net, n_estimators=4).fit(x[:40], t).predict_proba(x[40:])
    np.testing.assert_allclose(fit(y[:40]), fit(1-y[:40])[:, ::-1], atol=1e-6)


@pytest.mark.parametrize('n_classes', [2, 4])
def test_answers_do_not_depend_on_chunks_cache_or_company(net, n_classes, monkeypatch):
    x, y, _ = table(110, n_classes=n_classes)
    m = RDBPFNClassifier(net).fit(x[:40], y[:40])
    base = m.predict_proba(x[40:])
    assert m.ensemble_.cache and m.ensemble_.chunk > 70
    for k in (1, 7, 50): assert (np.vstack([m.predict_proba(x[i:i+k]) for i in range(40, 110, k)]) == base).all(), k
    monkeypatch.setattr(E, 'PASS_BYTES', 1); monkeypatch.setattr(E, 'CACHE_BYTES', 1)
    small = RDBPFNClassifier(net).fit(x[:40], y[:40])
    assert (small.ensemble_.step, small.ensemble_.chunk, small.ensemble_.cache) == (1, 16, {})
    np.testing.assert_allclose(small.predict_proba(x[40:]), base, atol=1e-6)
    assert not small.ensemble_.cache


def test_the_context_is_read_once(net, monkeypatch):
    x, y, _ = table()
    calls, read = [], RDBPFN.read
    monkeypatch.setattr(RDBPFN, 'read', lambda self, *a: calls.append(1) or read(self, *a))
    m = RDBPFNClassifier(net).fit(x, y)
    n = len(calls); m.predict_proba(x); m.predict(x)
    assert n == len(calls) >= 1


def test_query_rows_do_not_touch_the_encoding(net):
    x, y, _ = table()
    d = pd.DataFrame(x).assign(town=np.where(x[:, 1] > 0, 'a', 'b'))
    d.columns = d.columns.astype(str)
    m = RDBPFNClassifier(net).fit(d[:40], y[:40])
    other = d[40:].copy(); other.iloc[1:, :5] = 1e9; other.iloc[1:, 5] = 'zzz'
    assert (m.predict_proba(d[40:])[0] == m.predict_proba(other)[0]).all()


def test_pickle_copy_clone(net):
    x, y, _ = table()
    m = RDBPFNClassifier(net).fit(x, y)
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m), clone(m).fit(x, y)):
        assert (other.predict_proba(x) == m.predict_proba(x)).all()
    assert pickle.loads(pickle.dumps(m)).ensemble_.cache == {} and m.ensemble_.cache, 'the cache is left out of a pickle, and stays where it was'
    assert RDBPFNClassifier(net, device='cpu').fit(x, y).ensemble_.network is not net, 'a device of its own does not move the network of the user'


def test_model_may_be_a_path(net, tmp_path):
    x, y, _ = table()
    path = save_model(net, tmp_path/'w.safetensors')
    for p in (path, str(path)): np.testing.assert_allclose(RDBPFNClassifier(p, device='cpu').fit(x, y).predict_proba(x), RDBPFNClassifier(net).fit(x, y).predict_proba(x), atol=1e-6)
    with pytest.raises(InputError, match='no weights file'): RDBPFNClassifier(tmp_path/'none.safetensors').fit(x, y)


def test_threads_and_generators_are_left_alone(net):
    x, y, _ = table()
    threads, state, legacy = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1].copy()
    RDBPFNClassifier(net).fit(x, y).predict_proba(x)
    assert torch.get_num_threads() == threads and (torch.get_rng_state() == state).all() and (np.random.get_state()[1] == legacy).all()


# ---- frames

NUMBERS = [
    (pd.Series([1, 2], dtype='int8'), [1, 2]), (pd.Series([True, False]), [1, 0]), (pd.Series([1, None], dtype='Int64'), [1, np.nan]),
    (pd.Series([True, None], dtype='boolean'), [1, np.nan]), (pd.Series([True, None], dtype=object), [1, np.nan]), (pd.Series([1.5, pd.NA], dtype='Float32'), [1.5, np.nan]),
    (pd.Series([np.inf, -np.inf]), [np.nan, np.nan]), (pd.Series([10**30, 1], dtype=object), [1e30, 1]), (pd.Series([2**62, 1]), [2.**62, 1]),
    (pd.Series([decimal.Decimal('1.5'), None]), [1.5, np.nan]), (pd.Series(['1', '1e3']), [1, 1000]), (pd.Series(['1', None], dtype='string'), [1, np.nan]),
    (pd.Series(pd.to_datetime(['1970-01-02', None])), [1, np.nan]), (pd.Series([dt.date(1970, 1, 3), None]), [2, np.nan]), (pd.Series(['1970-01-03', None]), [2, np.nan]),
    (pd.Series(pd.to_datetime(['1970-01-02T01:00+01:00'])), [1]), (pd.Series(pd.to_timedelta(['12h', None])), [.5, np.nan]), (pd.Series(pd.period_range('1970-02', periods=1, freq='M')), [31]),
    (pd.Series([None, None], dtype=object), [np.nan, np.nan]), (pd.Series([0, 1], dtype=pd.SparseDtype(int)), [0, 1])]


@pytest.mark.parametrize('col, expected', NUMBERS, ids=lambda v: str(getattr(v, 'dtype', '')))
def test_columns_with_an_order_of_their_own(col, expected): np.testing.assert_array_equal(as_numbers(col), expected)


@pytest.mark.parametrize('col, expected', [
    (pd.Series(['b', 'a', 'b', None]), [0, 1, 0, np.nan]), (pd.Series(['b', 'a']), [1, 0]), (pd.Series(['b', 'a', 'b', pd.NA], dtype='string'), [0, 1, 0, np.nan]),
    (pd.Series(pd.Categorical(['b', 'a', 'b', None])), [0, 1, 0, np.nan]), (pd.Series(pd.Categorical(['b', 'a'], ['b', 'a'], ordered=True)), [0, 1]),
    (pd.Series(pd.Categorical([7, 9, 9])), [1, 0, 0]), (pd.Series(['x', 1, 1.0, {'a': 1}], dtype=object), [1, 0, 0, 2])], ids=str)
def test_categories(col, expected): np.testing.assert_array_equal(FrameEncoder().encode(col, code_book(col)), expected)


def test_encoder_learns_from_the_context_only():
    d = pd.DataFrame({'n': [1., 2, 3], 't': ['a', 'a', 'b'], 'flag': ['Y', None, None], 'const': [5, 5, 5], 'empty': [None]*3})
    e = FrameEncoder().fit(d)
    assert list(e.plan) == [0, 1, 2]
    q = pd.DataFrame({'n': ['4', 'x'], 't': ['new', 'b'], 'flag': ['N', None], 'const': [6, 7], 'empty': [1, 2]})
    np.testing.assert_array_equal(e.transform(q), [[4, np.nan, 1], [np.nan, 1, 0]])


@pytest.mark.parametrize('bad, dates', [(1, True), (4, False)])
def test_a_column_of_dates_may_have_a_few_values_that_are_none(bad, dates):
    "One in ten, as in a column of numbers"
    col = pd.Series([f'2024-01-{1 + i:02d}' for i in range(20 - bad)] + ['?']*bad)
    encoder = FrameEncoder().fit(col.to_frame())
    assert (encoder.plan[0] == 'date') == dates
    if dates: assert np.isnan(encoder.transform(col.to_frame())[-1, 0]) and np.diff(encoder.transform(col.to_frame())[:19, 0]).tolist() == [1.]*18


def test_a_class_without_a_row_does_not_hide_what_columns_tell():
    codes = np.repeat([0, 2], 30)
    x = np.c_[np.random.default_rng(0).normal(size=(60, 3)), codes + np.random.default_rng(1).normal(size=60)/10]
    assert np.array_equal(rank_eta(x, codes), rank_eta(x, codes//2)) and list(select_columns(x, codes, 1)) == [3]


@pytest.mark.parametrize('y', [['a', 1], ['a', True], [1, 'b', 2.5]], ids=str)
def test_labels_of_several_types_are_refused_in_a_sentence(net, y):
    with pytest.raises(InputError, match=r'of several types.*astype\(str\)'): RDBPFNClassifier(net).fit(table(30)[0], pd.Series((y*30)[:30], dtype=object))


def test_names_are_no_numbers_to_predict(net):
    with pytest.raises(InputError, match='could not convert.*Give numbers; names are for RDBPFNClassifier'): RDBPFNRegressor(net).fit(table(30)[0], ['a', 'b']*15)


def test_many_categories_have_codes_of_their_own():
    col = pd.Series([f'v{i:03}' for i in range(200)] + ['v199'])
    codes = FrameEncoder().encode(col, code_book(col))
    assert codes[-1] == codes[199] == 0 and len(np.unique(codes)) == 200 and codes.max() == 199


def test_frames_and_arrays_agree_and_are_not_changed(net):
    x, y, _ = table()
    d = pd.DataFrame(x, columns=list('abcde'), index=np.arange(60)[::-1])
    before = d.copy()
    p = RDBPFNClassifier(net).fit(d, pd.Series(y, index=d.index)).predict_proba(d)
    assert (p == RDBPFNClassifier(net).fit(x, y).predict_proba(x)).all()
    pd.testing.assert_frame_equal(d, before)


def test_scale_and_shift_of_a_column_do_not_matter(net):
    x, y, _ = table()
    moved = x*[1, 1e-12, 1e200, 1e6, 1] + [0, 0, 0, 1e9, 0]
    np.testing.assert_allclose(RDBPFNClassifier(net).fit(moved, y).predict_proba(moved), RDBPFNClassifier(net).fit(x, y).predict_proba(x), atol=1e-4)


@pytest.mark.parametrize('y', [['no', 'yes'], [False, True], [1., 2.], pd.Categorical(['no', 'yes']), pd.array([3, 8], dtype='Int64'), pd.array(['a', 'b'], dtype='string'),
                               pd.array([True, False], dtype='boolean'), np.array(['u', 'v'], dtype=object)], ids=lambda y: str(getattr(y, 'dtype', type(y[0]))))
def test_labels_come_back_as_given(net, y):
    x, _, _ = table(40)
    y = pd.Series(y).iloc[[0, 1]*20]
    m = RDBPFNClassifier(net).fit(x, y)
    assert list(m.classes_) == sorted(set(y)) and set(m.predict(x)) <= set(y) and m.classes_.dtype != object


def test_base_rate_where_no_column_varies():
    m = RDBPFNClassifier().fit(pd.DataFrame({'a': [1]*4, 'b': [None]*4}), list('aabc'))
    np.testing.assert_allclose(m.predict_proba(pd.DataFrame({'a': [2], 'b': [3]})), [[.5, .25, .25]])


# ---- limits

def test_more_rows_than_fit(net):
    x, y, _ = table(500)
    y[:] = 0; y[:10] = 1; y[10] = 2
    fit = lambda **o: RDBPFNClassifier(net, n_estimators=6, n_context=50, **o).fit(x, y)
    m = fit()
    rows = [set(e.rows) for e in m.ensemble_.members]
    assert len(rows) == 6 and {len(r) for r in rows} == {50} and len(set.union(*rows)) > 200
    assert all({0, 1, 2} == set(y[list(r)]) for r in rows), 'the rare class is in every context'
    p = m.predict_proba(x[:9])
    assert (fit().predict_proba(x[:9]) == p).all() and (fit(random_state=1).predict_proba(x[:9]) != p).any()


def test_a_column_constant_in_a_member_says_nothing(net):
    x, y, _ = table(500)
    x[:, 1] = 0; x[7, 1] = 1; x[:, 2] = np.nan; x[8:10, 2] = [1, 2]                   # in most subsets constant, or missing altogether
    m = RDBPFNClassifier(net, n_estimators=1, n_context=50).fit(x, y)
    assert not {7, 8, 9} & set(m.ensemble_.members[0].rows)
    q = x[:1].copy(); q[0, 1:3] = [1, 5]
    assert (m.predict_proba(q) == m.predict_proba(x[:1])).all()


def test_more_columns_than_fit(net):
    x, y, rng = table(200, 60, 3)
    y = np.digitize(x[:, 50], [-.5, .5])
    m = RDBPFNClassifier(net).fit(x, y)
    read = list(m.encoder_.plan)
    assert 50 in read and len(read) == 36
    x2 = x.copy(); x2[:, [c for c in range(60) if c not in read]] = rng.normal(size=(200, 24))
    assert (m.predict_proba(x2) == m.predict_proba(x)).all()


def test_copies_of_columns_change_nothing(net):
    x, y, _ = table()
    p = RDBPFNClassifier(net).fit(x, y).predict_proba(x)
    assert (RDBPFNClassifier(net).fit(np.c_[x, -3*x + 1, np.ones(60)], y).predict_proba(np.c_[x, x, x[:, :1]]) == p).all()


def test_members_that_draw_their_columns_see_others(net):
    x, y, _ = table(200, 60)
    m = RDBPFNClassifier(net, n_estimators=4, columns='drawn', n_columns=20).fit(x, y)
    sets = [tuple(e.cols) for e in m.ensemble_.members]
    assert len(set(sets)) == 4 and {len(c) for c in sets} == {20} and 20 < len(m.encoder_.plan) < 60


# ---- bad input: one sentence

@pytest.mark.parametrize('x, y, says', [
    (np.ones((3, 2)), ['a']*3, 'only one class'), (np.ones((0, 2)), [], '0 sample'), (pd.DataFrame({'a': []}), [], '0 rows'), (pd.DataFrame(index=range(3)), [0, 1, 0], '0 columns'),
    (np.ones((3, 2)), [0, 1], '3 rows but 2 labels'), (np.ones((3, 2)), ['a', None, 'b'], '1 of the 3 labels are missing'), (np.ones((3, 2)), [0., 1., np.nan], '1 of the 3 labels are missing'),
    (np.ones((3, 2)), None, 'y is None'), (np.ones((3, 2)), [.1, .2, .5], 'continuous'), (np.ones((3, 2)), [[0, 1]]*3, '1d array'),
    (np.ones(3), [0, 1, 0], '2D array'), (pd.DataFrame({'a': [1j, 2, 3]}), [0, 1, 0], "column 'a' holds complex"), (np.ones((3, 2)), pd.Series([0, 1, None], dtype='Int64'), '1 of the 3')])
def test_bad_input(x, y, says):
    with pytest.raises(InputError, match=says): RDBPFNClassifier(device='cpu').fit(x, y)


@pytest.mark.parametrize('change, says', [(lambda d: d.drop(columns='b'), 'yet now missing:\n- b'), (lambda d: d.assign(z=1), 'unseen at fit time:\n- z'),
                                          (lambda d: d[['b', 'a']], 'same order'), (lambda d: d.to_numpy()[:, :1], '1 features'), (lambda d: d[:0], '0 rows')])
def test_other_columns_in_the_query(net, change, says):
    d = pd.DataFrame({'a': [1., 2, 3, 4], 'b': [4., 3, 2, 2]})
    m = RDBPFNClassifier(net).fit(d, [0, 1, 0, 1])
    with pytest.raises(InputError, match=says), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m.predict_proba(change(d))


@pytest.mark.parametrize('params, says', [(dict(n_estimators=0), 'n_estimators'), (dict(n_estimators=1.5), 'n_estimators'), (dict(model=3), 'model must be'), (dict(device='abacus'), 'not a device'), (dict(n_context=0), 'n_context'), (dict(n_columns=.5), 'n_columns'), (dict(columns='all'), 'columns must be'),
                                          (dict(views=('log',)), 'no view'), (dict(views='raw'), 'views must be one or more names'), (dict(views=()), 'views must be one or more names'), (dict(dtype='int8'), 'dtype must be'), (dict(context='late'), 'no context policy'), (dict(context='recency'), 'needs to know when')])
def test_bad_parameters(params, says):
    x, y, _ = table()
    with pytest.raises(InputError, match=says): RDBPFNClassifier(**params).fit(x, y)


def test_a_fit_that_fails_leaves_the_one_before(net):
    x, y, _ = table()
    m = RDBPFNClassifier(net).fit(x, y)
    before = m.predict_proba(x)
    with pytest.raises(InputError, match='columns must be'): m.set_params(columns='tpo').fit(x, np.where(y, 'p', 'q'))
    assert np.array_equal(m.predict_proba(x), before) and set(m.predict(x)) <= {0, 1}


def test_names_of_other_frames_are_kept(net):
    import pyarrow as pa
    x, y, _ = table(n_cols=2)
    t = pa.table(dict(a=x[:, 0], b=x[:, 1]))
    m = RDBPFNClassifier(net).fit(t, y)
    assert list(m.feature_names_in_) == ['a', 'b'] and np.array_equal(m.predict_proba(t), RDBPFNClassifier(net).fit(x, y).predict_proba(x))
    with pytest.raises(InputError, match='same order'): m.predict_proba(t.select(['b', 'a']))


@pytest.mark.parametrize('policy', ['recent', 'recency', 'balanced'])
def test_times_are_one_for_each_row(net, policy):
    x, y, _ = table()
    days = pd.date_range('2024-01-01', periods=len(x))
    model = RDBPFNClassifier(net, n_context=20, context=policy)
    for bad, says in ((days[:5], f'{len(x)} rows but 5 times'), (days.where(days > days[0]), f'{len(x)} rows but {len(x) - 1} times'), (range(len(x)), 'holds numbers'), (['soon']*len(x), 'ISO 8601')):
        with pytest.raises(InputError, match=says): model.fit(x, y, times=bad)
    rows = [np.unique(np.concatenate([m.rows for m in model.fit(x, y, times=t).ensemble_.members])) for t in (days, list(days), days.astype(str), days.date, pd.Series(days, range(7, 7 + len(x))))]
    assert all(np.array_equal(r, rows[0]) for r in rows)
