"""What a query row is encoded to depends on the context and on itself alone."""
import datetime as dt, decimal
import numpy as np, pandas as pd, pyarrow as pa, pytest
from rdbpfn.classifier import RDBPFNClassifier
from rdbpfn.encoding import FrameEncoder, as_numbers, holds_dates
from rdbpfn.model import ModelConfig, RDBPFN

DAYS = pd.date_range('2020-01-01', periods=40, freq='3D')
CONTEXTS = dict(text=DAYS.strftime('%Y-%m-%d'), times=DAYS.strftime('%Y-%m-%dT%H:%M:%S+01:00'), stamps=DAYS, zoned=DAYS.tz_localize('UTC'), dates=[d.date() for d in DAYS], months=pd.period_range('2020-01', periods=40, freq='M'),
                numbers=np.arange(40.), digits=[f'{i}.5' for i in range(40)], truth=np.arange(40) % 2 == 0, spans=pd.to_timedelta(np.arange(40), 'h'), mixed=[*range(20), *'abcdefghij'*2], towns=['Ulm', 'Rom']*20)
QUERIES = ['2021-03-04', '2021-03-04 12:00', '2021-13-45', 'unknown', '?', '', '7', ' 7 ', '1e3', 'inf', 7, 7., True, np.float32(2.5), np.int64(3), decimal.Decimal('1.5'), None, np.nan, pd.NaT, pd.NA, pd.Timestamp('2021-03-04'),
           pd.Timestamp('2021-03-04', tz='UTC'), dt.date(2021, 3, 4), dt.datetime(2021, 3, 4, 6), np.datetime64('2021-03-04'), pd.Timedelta('12h'), dt.timedelta(days=2), pd.Period('2021-03', 'M'), 'Ulm', 'b', [1], '9999-12-31', '2021-03-04T00:00Z']


@pytest.mark.parametrize('context', CONTEXTS)
def test_a_query_is_encoded_as_if_it_were_alone(context):
    "Any mix of good dates, bad dates, numbers and holes: a value's code is its own"
    e = FrameEncoder().fit(pd.DataFrame({'c': CONTEXTS[context]}))
    ask = lambda values: e.transform(pd.DataFrame({'c': pd.Series(values, dtype=object)}))[:, 0]
    alone = np.array([ask([v])[0] for v in QUERIES])
    rng = np.random.default_rng(0)
    for _ in range(60):
        some = rng.integers(0, len(QUERIES), rng.integers(2, 9))
        np.testing.assert_array_equal(ask([QUERIES[i] for i in some]), alone[some], err_msg=str([QUERIES[i] for i in some]))
    if e.plan[0] == 'date': assert np.isnan(alone[[QUERIES.index(v) for v in ('unknown', '?', '7', 7, '2021-13-45')]]).all() and (alone[[0, 20, 22, 24]] == 18690).all()


@pytest.mark.parametrize('context', CONTEXTS)
def test_rows_of_the_context_are_encoded_as_they_were_learnt(context):
    frame = pd.DataFrame({'c': CONTEXTS[context]})
    e, whole = FrameEncoder().fit(frame), as_numbers(frame['c'])
    if whole is not None: np.testing.assert_array_equal(e.transform(frame)[:, 0], whole)
    for cut in (slice(5), slice(7, 8)): np.testing.assert_array_equal(e.transform(frame[cut]), e.transform(frame)[cut])


def test_files_of_an_older_plan_know_dates_as_numbers():
    frame = pd.DataFrame({'c': CONTEXTS['text']})
    new, old = FrameEncoder().fit(frame), FrameEncoder()
    old.plan = {0: 'number'}
    assert new.plan == {0: 'date'}
    asked = pd.DataFrame({'c': ['2021-03-04', 'unknown', None, '2019-01-01T06:00']})
    for rows in (frame, asked): np.testing.assert_array_equal(old.transform(rows), new.transform(rows))


def test_one_bad_date_costs_no_other_answer():
    net = RDBPFN(ModelConfig(n_layers=1, width=8, n_heads=2, hidden=8))
    m = RDBPFNClassifier(net, device='cpu').fit(pd.DataFrame({'born': CONTEXTS['text']}), np.arange(40) > 19)
    good = pd.DataFrame({'born': ['2020-01-02', '2020-04-20']})
    bad = pd.concat([good, pd.DataFrame({'born': ['unknown']})], ignore_index=True)
    np.testing.assert_allclose(m.predict_proba(bad)[:2], m.predict_proba(good), atol=1e-6)


DAY, OTHER = dt.date(2020, 1, 1), dt.date(2021, 1, 2)
ARROW = dict(string=['Ulm', 'Rom'], large_string=['Ulm', 'Rom'], binary=[b'a', b'b'], date32=[DAY, OTHER], time64=[dt.time(1), dt.time(2)], timestamp=[dt.datetime(2020, 1, 1), dt.datetime(2021, 1, 2)], duration=[dt.timedelta(1), dt.timedelta(10**6)],
             list_=[[1, 2], [3]], struct=[{'a': 1}, {'a': 2}], int64=[1, 2], float64=[1.5, 2.], bool_=[True, False], decimal128=[decimal.Decimal('1.5'), decimal.Decimal(2)], dictionary=['Ulm', 'Rom'], digits=['1', '2.5'], days=['2020-01-01', '2021-01-02'])
TYPES = dict(time64=pa.time64('us'), timestamp=pa.timestamp('us', 'Asia/Tokyo'), duration=pa.duration('s'), list_=pa.list_(pa.int64()), struct=pa.struct([('a', pa.int64())]), decimal128=pa.decimal128(5, 2), dictionary=pa.dictionary(pa.int32(), pa.string()), digits=pa.string(), days=pa.string())


@pytest.mark.parametrize('name', ARROW)
def test_columns_of_arrow_are_those_of_python(name):
    values = [*ARROW[name]*2, None]
    plain, arrow = pd.Series(values, dtype=object), pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, TYPES.get(name) or getattr(pa, name)())))
    a, b = as_numbers(plain), as_numbers(arrow)
    assert (a is None) == (b is None) == (name in ('string', 'large_string', 'binary', 'time64', 'list_', 'struct', 'dictionary'))
    if a is not None: np.testing.assert_array_equal(a, b)
    e, f = (FrameEncoder().fit(c.to_frame()) for c in (plain, arrow))
    assert e.plan == f.plan != {} and holds_dates(plain) == holds_dates(arrow)
    for m in (e, f): np.testing.assert_array_equal(m.transform(arrow.to_frame()), e.transform(plain.to_frame()))


@pytest.mark.parametrize('far', [np.array(['9999-12-31', '2020-01-01'], 'datetime64[s]'), np.array(['9999-12-31', '2020-01-01'], 'datetime64[us]'), [dt.date(9999, 12, 31), DAY], ['9999-12-31', '2020-01-01'], pd.PeriodIndex(['9999-12-31', '2020-01-01'], freq='D')])
def test_days_beyond_the_range_are_missing(far):
    np.testing.assert_array_equal(as_numbers(pd.Series(far)), [np.nan, 18262])
    assert holds_dates(pd.Series(far))


@pytest.mark.parametrize('spans', [np.array([86_400*10**8, 86_400, 'NaT'], 'timedelta64[s]'), np.array([10**8, 1, 'NaT'], 'timedelta64[D]').astype('timedelta64[ms]'), np.array([dt.timedelta(10**8), dt.timedelta(1), None], object), np.array([np.timedelta64(10**8, 'D'), pd.Timedelta('1D'), pd.NaT], object)])
def test_long_durations_do_not_wrap(spans):
    np.testing.assert_array_equal(as_numbers(pd.Series(spans)), [1e8, 1, np.nan])


@pytest.mark.parametrize('ids', [['1234-56-78', '4321-99-01'], ['2020-01-01 A', '2020-01-01 B'], ['2020-13-01', '2020-01-02', '2020-02-30']])
def test_text_in_the_form_of_dates_that_names_no_days_is_a_category(ids):
    frame = pd.DataFrame({'c': ids*10})
    e = FrameEncoder().fit(frame)
    assert not holds_dates(frame.c) and as_numbers(frame.c) is None and set(e.plan[0]) == set(ids) and len(np.unique(e.transform(frame))) == len(ids)
    typo = pd.DataFrame({'c': [*CONTEXTS['text'], '2020-02-31']})                      # one in forty
    assert FrameEncoder().fit(typo).plan == {0: 'date'} and np.isnan(as_numbers(typo.c)).tolist() == [False]*40 + [True]


@pytest.mark.parametrize('odd', ['?', 'n/a', '-', '1,5', ' '])
@pytest.mark.parametrize('text', [False, True])
def test_one_odd_value_does_not_make_names_of_numbers(odd, text):
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    col = pd.Series(values).map(str).astype(object) if text else pd.Series(values, dtype=object)
    col[3] = odd
    e = FrameEncoder().fit(pd.DataFrame(dict(c=col)))
    assert e.plan == {0: 'number'}
    np.testing.assert_allclose(e.transform(pd.DataFrame(dict(c=col)))[:, 0], np.where(np.arange(40) == 3, np.nan, values), 1e-12)
    few = pd.DataFrame(dict(c=['1', '2', '3', odd, '1', '2', '3', odd]))
    assert isinstance(FrameEncoder().fit(few).plan[0], dict)                                  # one in four is a name among others


def test_numbers_that_differ_by_rounding_are_equal():
    "A context of 64 bits and queries of 32, or computed another way: the same cells, so the same answers"
    rng = np.random.default_rng(0)
    X = pd.DataFrame(dict(a=rng.integers(0, 20, 300)/10 + .1, b=rng.normal(size=300), year=rng.integers(1990, 2020, 300), huge=rng.normal(size=300)*1e30))
    e = FrameEncoder().fit(X[:200])
    x = e.keep(e.transform(X[:200]), np.arange(4))
    assert set(e.plan.values()) == {'short'} and np.array_equal(e.transform(X[:200]), x)
    there = e.transform(X[200:])
    for other in (X[200:].astype('float32'), X[200:]*(1 + 1e-15), X[200:].astype(str)): assert np.array_equal(e.transform(other), there)
    assert np.abs(there/X[200:].to_numpy() - 1).max() < 1e-7 and len(np.unique(x[:, 0])) == 20
    y = (X.a + rng.normal(size=300) > 1.1).astype(int)
    m = RDBPFNClassifier(device='cpu').fit(X[:200], y[:200])
    assert np.array_equal(m.predict_proba(X[200:]), m.predict_proba(X[200:].astype('float32')))


@pytest.mark.parametrize('values', [20_000_000 + np.arange(400.), 1.7e9 + np.arange(400.), np.r_[1e300, np.arange(399.)], 1e16 + 2*np.arange(400.)])
def test_numbers_that_need_their_bits_keep_them(values):
    frame = pd.DataFrame(dict(x=values))
    e = FrameEncoder().fit(frame)
    assert np.array_equal(e.keep(e.transform(frame), [0])[:, 0], values) and e.plan == {0: 'number'} and np.array_equal(e.transform(frame)[:, 0], values)
    few = pd.DataFrame(dict(x=np.arange(9.)))
    short = FrameEncoder().fit(few)
    short.keep(short.transform(few), [0])
    assert short.plan == {0: 'short'} and np.isfinite(short.transform(frame)).all()
