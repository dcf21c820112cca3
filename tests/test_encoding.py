"""What a query row is encoded to depends on the context and on itself alone."""
import datetime as dt, decimal
import numpy as np, pandas as pd, pytest
from rdbpfn.classifier import RDBPFNClassifier
from rdbpfn.encoding import FrameEncoder
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
    from rdbpfn.encoding import as_numbers
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
