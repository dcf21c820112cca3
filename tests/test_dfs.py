"Both engines of Deep Feature Synthesis: equal on databases with every nasty case, and blind to the future."
import datetime, decimal, time
import numpy as np, pandas as pd, pytest
import rdbpfn.dfs_tensor as dt
from rdbpfn.aggregates import AGGREGATES, AGGS, agg_parts, feature_set
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.dfs import featuretools_features, plan_features
from rdbpfn.dfs_tensor import compute_features
from rdbpfn.examples import flights, load_task, shop, shop_answers
from rdbpfn.history import as_span, cached_features, digest, with_history
from rdbpfn.schema import Column, ForeignKey, Schema, Table

pytestmark = pytest.mark.filterwarnings('error::RuntimeWarning')
DAYS = pd.date_range('2020-01-01', periods=12)
FULL = feature_set('full', (1, 3, 7))               # every aggregation there is

def same(a, b): pd.testing.assert_frame_equal(a, b, rtol=1e-6, atol=1e-9)
def identical(a, b): pd.testing.assert_frame_equal(a, b, check_exact=True)

def draw(rng, kind, n):
    "A column with few values (ties), nulls, and now and then nothing but nulls"
    values = dict(number=[-1., 0, 2, 2.5, 1e6], category=['a', 'b', 'B', 'c'], boolean=[True, False], datetime=DAYS, text=['x y', 'z'])[kind]
    gap = rng.random(n) < rng.choice([0, .3, 1], p=[.4, .5, .1])
    s = pd.Series([values[i] for i in rng.integers(len(values), size=n)], dtype='datetime64[ns]' if kind == 'datetime' else object)
    return s.mask(gap)

def random_database(seed):
    "2 to 4 tables; foreign keys between any two of them, so self-references, cycles and parallel keys abound; composite keys; dangling and null ones"
    rng = np.random.default_rng(seed)
    names, frames, tables, fkeys = ['abcd'[i] for i in range(rng.integers(2, 5))], {}, {}, []
    for t in names:
        n, pkey = int(rng.choice([0, 1, 8, 25], p=[.05, .1, .45, .4])), [('id',), ('id', 'no')][rng.random() < .3]
        f = pd.DataFrame({'id': np.arange(n)//2 if len(pkey) == 2 else rng.permutation(n)}, index=range(n))
        if len(pkey) == 2: f['no'] = np.arange(n) % 2
        elif rng.random() < .5: f['id'] = 'k' + f['id'].astype(str)
        kinds = {c: 'key' for c in pkey}
        for i, k in enumerate(rng.choice(['number', 'category', 'boolean', 'datetime', 'text'], rng.integers(1, 5), p=[.4, .25, .15, .1, .1])):
            f[f'{k}{i}'], kinds[f'{k}{i}'] = draw(rng, k, n), k
        timed = rng.random() < .65
        if timed: f['time'], kinds['time'] = pd.Series(DAYS[rng.integers(12, size=n)]).mask(rng.random(n) < .1), 'datetime'
        frames[t], tables[t] = f, (kinds, pkey, 'time' if timed else None)
    for k in range(rng.integers(1, 6)):
        child, parent = rng.choice(names), rng.choice(names)
        if k == 0: child, parent = names[1], names[0]
        pkey, n = tables[parent][1], len(frames[child])
        pick = rng.integers(max(1, len(frames[parent])), size=n)
        lost, null = rng.random(n) < .1, rng.random(n) < .15
        cols = tuple(f'{parent}_{c}{k}' for c in pkey)
        for c, p in zip(cols, pkey):
            key = frames[parent][p]
            values = key.to_numpy(object)[pick] if len(key) else np.full(n, None)
            frames[child][c] = pd.Series(np.where(lost, 'zz' if key.dtype == object else 99, values), dtype=object).mask(null)
            tables[child][0][c] = 'key'
        fkeys.append(ForeignKey(child, cols, parent, pkey))
    return Database(frames, Schema(tuple(Table(t, tuple(Column(*c) for c in k.items()), p, time) for t, (k, p, time) in tables.items()), tuple(fkeys)))

def request(db, seed, n=10, depth=2, n_features=120, aggs=AGGS):
    "A plan, rows and cutoffs: pairs repeat, cutoffs coincide with times of rows"
    rng = np.random.default_rng((seed, 1))
    table = rng.choice([t for t in db.schema.names if db.n_rows(t)])
    columns = [c.name for c in db.schema[table].columns if c.kind not in ('key', 'text') and c.name != 'time']
    rows = rng.integers(db.n_rows(table), size=n)
    cutoffs, mask, history = DAYS[rng.choice([2, 6, 11], n)].to_numpy(), tuple(rng.choice(columns, 1)) if columns else (), False
    if db.schema[table].time_col and rng.random() < .5:               # each row as of its own time, masked columns as history
        own = pd.Series(db.times(table)[rows])
        history, cutoffs = True, own.fillna(DAYS[6]).to_numpy()
    plan = plan_features(db.schema, table, depth, mask, history=history, aggs=aggs)
    keep = sorted(rng.choice(len(plan), min(len(plan), n_features), replace=False))
    return plan.select([plan.names[i] for i in keep]), rows, cutoffs

@pytest.mark.parametrize('seed', range(60))
def test_engines_agree(seed):
    db = random_database(seed)
    plan, rows, cutoffs = request(db, seed, depth=3 if seed % 5 == 0 else 2, n_features=80, aggs=FULL)
    same(compute_features(db, plan, rows, cutoffs), featuretools_features(db, plan, rows, cutoffs))
    paper = plan.select([f.name for f in plan if not set(f.aggs) - set(sum(AGGS.values(), ()))])
    if seed % 3 == 0 and not plan.reads_history_of_mask: same(compute_features(db, paper, rows), featuretools_features(db, paper, rows))

def test_the_sweep_meets_every_nasty_case():
    "A sweep proves nothing about cases that it never draws"
    seen = set()
    for seed in range(30):
        db = random_database(seed)
        plan, rows, cutoffs = request(db, seed, aggs=FULL)
        s, x = db.schema, compute_features(db, plan, rows, cutoffs)
        seen |= {'self-reference' for f in s.fkeys if f.child == f.parent} | {'composite' for f in s.fkeys if len(f.columns) > 1}
        seen |= {'parallel' for f in s.fkeys for g in s.fkeys if f != g and (f.child, f.parent) == (g.child, g.parent)}
        seen |= {'cycle'} if s.find_cycle() else set()
        seen |= {'null or dangling' for f in s.fkeys if (db.parent_rows(f) < 0).any()} | {'empty table' for t in s.names if not db.n_rows(t)}
        seen |= {'null time' for t in s.names if s[t].time_col and np.isnat(db.times(t)).any()}
        seen |= {'equal times' for t in s.names if s[t].time_col and len(np.unique(db.times(t))) < db.n_rows(t)}
        seen |= {'null column' for t, d in db.table_dict.items() for c in d if len(d) and d[c].isna().all()}
        seen |= {'empty set' for f in plan if f.kind == 'key' and (x[f.name] == 0).any()} | ({'history'} if plan.reads_history_of_mask else set())
        seen |= {'repeated pair'} if pd.DataFrame({'r': rows, 'c': cutoffs}).duplicated().any() else set()
        seen |= {f'{a}({b})' for f in plan for a, b in zip(f.aggs, f.aggs[1:])} | {f.aggs[0] for f in plan if f.aggs and x[f.name].notna().any()}
    wanted = {'self-reference', 'composite', 'parallel', 'cycle', 'null or dangling', 'empty table', 'null time', 'equal times', 'null column',
              'empty set', 'history', 'repeated pair', 'mean', 'sum', 'max', 'min', 'mode', 'count', 'mode(mode)', 'sum(sum)', 'max(count)', 'mean(max)',
              'last', 'since', 'nunique', 'share', 'count_3d', 'mean_3d', 'trend_3d', 'last(count)', 'last(mode)', 'last(last)'}
    assert wanted <= seen, wanted - seen

def disturb(db, t, keep, seed):
    "Everything at or after t is different: values, keys, times, new rows, dates that lie ahead; the rows `keep` = (table, rows, columns) stay"
    rng, frames = np.random.default_rng((seed, 2)), {}
    parents = {(f.parent, c) for f in db.schema.fkeys for c in f.parent_columns} | {(x.name, c) for x in db.schema.tables for c in x.pkey}
    for table in db.schema.tables:
        f, times = db.table_dict[table.name].copy(), db.times(table.name)
        late = np.zeros(len(f), bool) if times is None else ~(times < t)
        for c in table.columns:
            own = late.copy()
            if table.name == keep[0] and c.name in keep[2]: own[keep[1]] = False
            if c.kind == 'datetime' and c.name != table.time_col:
                ahead = ~(f[c.name].to_numpy('datetime64[ns]') < t)
                if table.name == keep[0]: ahead[keep[1]] = False
                own |= ahead
            if (table.name, c.name) in parents: continue              # what is pointed at stays where it is
            if c.name == table.time_col or c.kind == 'datetime': new = pd.Series(pd.Timestamp(t) + pd.to_timedelta(rng.integers(0, 99, len(f)), 'h'))
            elif c.kind == 'key': new = f[c.name].sample(frac=1, random_state=seed).reset_index(drop=True)
            elif c.kind == 'number': new = pd.Series(rng.normal(size=len(f))*1e3)
            elif c.kind == 'boolean': new = pd.Series(rng.random(len(f)) < .5)
            else: new = pd.Series(rng.choice(['Aa', 'b', 'zz'], len(f)), dtype=object)
            f[c.name] = f[c.name].astype(object).where(~own, new).astype(object if c.kind != 'datetime' else 'datetime64[ns]')
        frames[table.name] = f
        again = f[late]
        if len(again) and not any((table.name, c) in parents for c in f): frames[table.name] = pd.concat([f, again], ignore_index=True)
    return Database(frames, db.schema)

def past_and_future(seed, n_features):
    "A database, another one after another history from t on, and a request at t"
    db = random_database(seed)
    plan, rows, _ = request(db, seed, n_features=n_features, aggs=FULL)
    t, table = DAYS[6].to_numpy(), db.schema[plan.entity_table]
    if plan.reads_history_of_mask: rows = rows[~(db.times(table.name)[rows] < t)]
    if not len(rows): pytest.skip('no target row at or after the cutoff')
    return db, disturb(db, t, (table.name, rows, [c for c in table.names if c not in plan.mask]), seed), plan, rows, np.full(len(rows), t)

@pytest.mark.parametrize('seed, engine, n', [(s, compute_features, 400) for s in range(30)] + [(s, featuretools_features, 60) for s in range(5)])
def test_the_future_changes_nothing(seed, engine, n):
    db, other, plan, rows, cutoffs = past_and_future(seed, n)
    identical(engine(db, plan, rows, cutoffs), engine(other, plan, rows, cutoffs))

def test_the_disturbance_is_one():
    "Without cutoffs the disturbed databases do give other features"
    changed = 0
    for seed in range(30):
        db = random_database(seed)
        plan, rows, _ = request(db, seed, n_features=400)
        if plan.reads_history_of_mask: continue
        other = disturb(db, DAYS[6].to_numpy(), (plan.entity_table, rows, db.schema[plan.entity_table].names), seed)
        changed += not compute_features(db, plan, rows).equals(compute_features(other, plan, rows))
    assert changed >= 10

def test_future_of_the_flights():
    db, task = flights(), load_task('flight-late15')
    some = task.test.sample(300, random_state=0)
    rows, cutoffs = db.row_of(task.entity_table, some[task.entity_col]), some[task.time_col].to_numpy()
    plan = plan_features(db.schema, task.entity_table, mask=task.mask, aggs=feature_set('full', (7, 30)))
    t = cutoffs.max()
    other = disturb(db, t, ('flights', rows, [c for c in db.schema['flights'].names if c not in task.mask]), 0)
    identical(compute_features(db, plan, rows, cutoffs), compute_features(other, plan, rows, cutoffs))

@pytest.mark.parametrize('engine', [compute_features, featuretools_features])
def test_the_shop_by_hand(engine):
    db = shop()
    step = lambda h: h.fkey.name if h.forward else ' <- '.join(h.fkey.name.split(' -> ')[::-1])
    for q in shop_answers().itertuples():
        plan = plan_features(db.schema, q.table)
        f, = [f for f in plan if ([step(h) for h in f.path], f.column, list(f.aggs)) == (q.path, q.column, q.aggs)]
        x = engine(db, plan.select([f.name]), db.row_of(q.table, [q.key]), [q.cutoff]).iloc[0, 0]
        assert (pd.isna(x) and q.answer is None) or x == q.answer, (q.question, x)

def test_flights_against_featuretools():
    db, task = flights(), load_task('flight-late15')
    some = task.test.sample(2, random_state=1)
    rows, cutoffs = db.row_of(task.entity_table, some[task.entity_col]), some[task.time_col]
    plan = plan_features(db.schema, task.entity_table, mask=task.mask, aggs=feature_set('full', (7, 30)))
    same(compute_features(db, plan, rows, cutoffs), featuretools_features(db, plan, rows, cutoffs))

@pytest.mark.parametrize('seed', range(12))
def test_small_blocks_and_single_rows_change_nothing(seed, monkeypatch):
    db = random_database(seed)
    plan, rows, cutoffs = request(db, seed, n=12, depth=3, n_features=150, aggs=FULL)
    whole = compute_features(db, plan, rows, cutoffs)
    monkeypatch.setattr(dt, 'BLOCK', 16)
    same(compute_features(db, plan, rows, cutoffs), whole)
    for i in range(3):
        one = compute_features(db, plan, rows[i:i+1], cutoffs[i:i+1])
        same(one.astype({c: object for c in one if plan.features[plan.names.index(c)].is_category}),
             whole[i:i+1].reset_index(drop=True).astype({c: object for c in one if plan.features[plan.names.index(c)].is_category}))

def chain(n_children, seed=0):
    "One parent a day, children at any time"
    rng = np.random.default_rng(seed)
    frames = dict(shops=pd.DataFrame({'id': range(10)}), sales=pd.DataFrame({'id': range(n_children), 'shop': rng.integers(10, size=n_children), 'x': rng.normal(size=n_children),
                  'c': rng.integers(50, size=n_children).astype(str), 'time': pd.Timestamp('2020-01-01') + pd.to_timedelta(np.sort(rng.integers(10**7, size=n_children)), 's')}))
    return Database.from_frames(frames, {'shops': 'id', 'sales': 'id'}, {'sales': {'shop': 'shops'}}, {'sales': 'time'}, {'sales': {'c': 'category'}})

def test_rounding_stays_inside_a_parent():
    frames = dict(p=pd.DataFrame({'id': [0, 1]}), c=pd.DataFrame({'id': range(8), 'p': [0]*4 + [1]*4, 'x': [1e17]*4 + [.01]*4}))
    db = Database.from_frames(frames, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}})
    assert compute_features(db, plan_features(db.schema, 'p'), [0, 1])['SUM(c.x)'][1] == pytest.approx(.04, rel=1e-12)

def test_seconds_and_not_minutes():
    "3,000 pairs with as many cutoffs over 200,000 children: each child is read once, not once a pair"
    db = chain(200_000)
    plan, rng = plan_features(db.schema, 'sales', mask=('x',)), np.random.default_rng(0)
    rows = rng.integers(200_000, size=3000)
    compute_features(db, plan, rows[:1], db.times('sales')[rows[:1]])
    start = time.perf_counter()
    compute_features(db, plan, rows, db.times('sales')[rows])
    assert time.perf_counter() - start < 3
    full = plan_features(db.schema, 'sales', mask=('x',), aggs=feature_set('full', (1, 7)))         # windows are no exception
    start = time.perf_counter()
    compute_features(db, full, rows, db.times('sales')[rows])
    assert time.perf_counter() - start < 6

def test_windows_do_not_lose_small_beside_large():
    times = pd.to_datetime(['2020-01-01', '2020-01-02', '2020-02-01', '2020-02-02'])
    frames = dict(p=pd.DataFrame({'id': [0]}), c=pd.DataFrame({'id': range(4), 'p': 0, 'x': [1e17, 1e17, .01, .03], 'time': times}))
    db = Database.from_frames(frames, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'})
    x = compute_features(db, plan_features(db.schema, 'p', aggs={'number': ('mean_10d',)}), [0], pd.to_datetime(['2020-02-05']))
    assert x['MEAN_10D(c.x)'][0] == pytest.approx(.02, rel=1e-12)

def test_a_window_begins_with_its_first_instant():
    frames = dict(p=pd.DataFrame({'id': [0]}), c=pd.DataFrame({'id': [0], 'p': [0], 'time': pd.to_datetime(['2020-01-01'])}))
    db = Database.from_frames(frames, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'})
    plan, at = plan_features(db.schema, 'p', aggs={'key': ('count_1d',)}), pd.to_datetime(['2020-01-01', '2020-01-02', '2020-01-02']) + pd.to_timedelta([0, 0, 1], 'ns')
    for engine in (compute_features, featuretools_features): assert engine(db, plan, [0, 0, 0], at)['COUNT_1D(c)'].tolist() == [0, 1, 0]

def test_every_aggregation_is_described_and_typed():
    plan = plan_features(shop().schema, 'customers', aggs=feature_set('full', (7, 30)))
    assert {agg_parts(a)[0] for f in plan for a in f.aggs} == set(AGGREGATES)
    assert len({f.describe() for f in plan}) == len(plan) == len(set(plan.names))
    x = compute_features(shop(), plan, [0], pd.to_datetime(['2024-03-01']))
    assert all((f.is_category) == isinstance(x[f.name].dtype, pd.CategoricalDtype) for f in plan)

def test_recent_needs_time():
    "No recent rows in a table without a time, none without a cutoff, and the table's own time is told once"
    s = shop().schema
    assert not any(f.path[-1].target in ('items', 'products') and {'last', 'since'} & set(f.aggs[-1:]) for f in plan_features(s, 'customers', 3, aggs=FULL) if f.path and not f.path[-1].forward)
    with pytest.raises(InputError, match='looks back from a cutoff'): compute_features(shop(), plan_features(s, 'customers', aggs=feature_set('recent')), [0])
    names = plan_features(s, 'customers', 1, aggs=feature_set('recent')).names
    assert 'SINCE(orders[customer_id])' in names and not {'LAST(orders[customer_id].DAYS_SINCE(placed))', 'MIN(orders[customer_id].DAYS_SINCE(placed))'} & set(names)

def test_a_target_row_does_not_see_itself_early():
    db = chain(40)
    plan, own = plan_features(db.schema, 'sales', mask=('x',)), db.times('sales')[[30]]
    assert plan.reads_history_of_mask and 'x' not in plan.names
    for engine in (compute_features, featuretools_features):
        with pytest.raises(InputError, match='before their own cutoff'): engine(db, plan, [30], own + np.timedelta64(1, 'ns'))
        with pytest.raises(InputError, match='before their own cutoff'): engine(db, plan, [30])
    free = plan_features(db.schema, 'sales', mask=('x',), history=False)
    assert not free.reads_history_of_mask and not any('x' == f.column for f in free)
    compute_features(db, free, [30])

def test_target_is_nowhere():
    db = shop()
    for depth in (1, 2, 3): assert not any((f.table, f.column) == ('orders', 'paid') for f in plan_features(db.schema, 'orders', depth, target=('orders', 'paid')))
    assert any((f.table, f.column) == ('orders', 'paid') for f in plan_features(db.schema, 'orders', 2))

def test_a_string_is_one_name_or_told():
    plan = plan_features(shop().schema, 'orders')
    assert plan.select('paid').names == ['paid']
    for target in ('paid', ('orders',), ['orders', 'paid', 'x']):
        with pytest.raises(InputError, match='target must be a pair'): plan_features(shop().schema, 'orders', target=target)

def test_another_version_does_not_read_the_features_of_this_one(tmp_path, monkeypatch):
    "What an engine computes belongs to the code that computed it"
    plan = plan_features(shop().schema, 'customers', 1)
    for version in ('0.1', '0.1', '0.2'):
        monkeypatch.setattr('rdbpfn.history.__version__', version)
        cached_features(compute_features, shop(), plan, [0, 1], None, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2

@pytest.mark.parametrize('delay, seen', [('30D', 1), ('87000D', 0), ('100000D', 0), (pd.Timedelta.max, 0)])
def test_a_label_that_is_known_after_the_end_of_time_is_never_seen(delay, seen):
    "Its time would wrap around, and each question see its own label"
    asked = pd.DataFrame(dict(who=['ada'], at=pd.to_datetime(['2024-02-01']), left=[True]))
    db = with_history(shop(), 'customers', asked, 'who', 'at', 'left', delay)
    plan = plan_features(db.schema, 'customers', 1).select(['COUNT(customers_labels)'])
    assert compute_features(db, plan, [0, 0], pd.to_datetime(['2024-02-01', '2025-01-01'])).iloc[:, 0].tolist() == [0, seen]

@pytest.mark.parametrize('delay', ['106752D', '200000D', np.timedelta64(200_000, 'D'), datetime.timedelta(200_000)])
def test_a_span_that_nanoseconds_cannot_count_is_told(delay):
    with pytest.raises(InputError, match='label_delay must be less than 292 years'): as_span(delay, 'label_delay')
    assert as_span('106751D') == pd.Timedelta('106751D') and as_span(np.timedelta64(2, 's')).unit == 'ns'

VALUES = dict(interval=pd.interval_range(0, 3), times=pd.date_range('2020-01-01', periods=3), decimals=[decimal.Decimal(i)/4 for i in range(3)], clock=[datetime.time(i) for i in range(3)], mixed=[1, 'a', (1, 2)], tuples=[(1, 2), (3,), 'x'], texts=list('abc'), numbers=[1, 2, 3])

@pytest.mark.parametrize('name', VALUES)
def test_any_category_is_kept_and_a_damaged_file_is_made_anew(name, tmp_path):
    c = pd.Series([*VALUES[name], *VALUES[name]], dtype=object)
    db = Database.from_frames({'p': pd.DataFrame({'id': range(6), 'c': c.astype('category') if name != 'mixed' else c})}, {'p': 'id'}, kinds={'p': {'c': 'category'}})
    plan, rows = plan_features(db.schema, 'p', 0), [0, 1, 2, 5]
    kept = lambda: cached_features(compute_features, db, plan, rows, None, tmp_path)
    first, want = kept(), compute_features(db, plan, rows)
    identical(first, kept())
    assert first.c.map(str).tolist() == want.c.map(str).tolist()
    file, = tmp_path.iterdir()
    for damage in (b'', b'no Parquet', file.read_bytes()[:-9]):
        file.write_bytes(damage)
        identical(kept(), first)
        assert file.read_bytes() != damage

def test_one_and_the_text_of_one_are_not_the_same_content():
    a, b = (Database.from_frames({'p': pd.DataFrame({'c': values})}, kinds={'p': {'c': 'category'}}) for values in ([1, 'a'], ['1', 'a']))
    assert digest(a) != digest(b)

@pytest.mark.parametrize('folder', ['file', 'file/under', '/proc/rdbpfn'])
def test_a_cache_that_cannot_be_is_told(folder, tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(InputError, match='Features cannot be kept in .*let cache name a folder'): cached_features(compute_features, shop(), plan_features(shop().schema, 'customers', 1), [0], None, tmp_path/folder)

@pytest.mark.parametrize('given', [dict(max_depth=np.int64(1)), dict(max_depth=np.arange(3)[1], mask=None), dict(max_depth=1, mask=[]), dict(max_depth=1, mask=())])
def test_plans_take_numbers_of_numpy_and_no_mask(given):
    assert plan_features(shop().schema, 'customers', **given) == plan_features(shop().schema, 'customers', 1)
    for depth in (np.float64(1), 1.5, -1, np.int64(-1), 'x', None):
        with pytest.raises(InputError, match='max_depth must be a whole number'): plan_features(shop().schema, 'customers', depth)

def test_keys_are_no_features():
    for seed in range(30):
        s = random_database(seed).schema
        for t in s.names: assert not any(f.column and s[f.table][f.column].kind in ('key', 'text') for f in plan_features(s, t))

def test_keys_are_no_features_whatever_their_kind():
    number = lambda *names: tuple(Column(n, 'number') for n in names)
    s = Schema((Table('p', number('id', 'alias', 'x'), 'id'), Table('c', number('p', 'x'))), (ForeignKey('c', 'p', 'p', 'alias'),))
    assert {f.column for f in plan_features(s, 'c', 3)} == {'x', None} and {f.column for f in plan_features(s, 'p', 3)} == {'x', None}

def test_no_path_goes_back_and_forth():
    paths = {f.path for seed in range(10) for t in 'ab' for f in plan_features(random_database(seed).schema, t, 3)}
    turns = [(a, b) for p in paths for a, b in zip(p, p[1:]) if a.fkey == b.fkey]
    assert any(a.forward and not b.forward for a, b in turns) and not any(b.forward and not a.forward for a, b in turns)

def test_a_mask_without_times_hides_everywhere():
    s = shop().schema
    assert not any((f.table, f.column) == ('items', 'quantity') for f in plan_features(s, 'items', 3, mask='quantity'))
    assert any((f.table, f.column) == ('orders', 'paid') for f in plan_features(s, 'orders', 3, mask='paid'))

BAD = [(dict(rows=[99]), 'not in table'), (dict(rows=[-1]), 'not in table'), (dict(rows=[.5]), 'whole numbers'), (dict(cutoffs=['2024-01-01']), 'datetimes'), (dict(cutoffs=[pd.NaT]), 'missing'),
       (dict(cutoffs=[pd.Timestamp('2024-01-01', tz='UTC')]), 'time zone'), (dict(cutoffs=pd.to_datetime(['2024-01-01']*2)), '1 rows but 2')]

@pytest.mark.parametrize('bad, message', BAD)
@pytest.mark.parametrize('engine', [compute_features, featuretools_features])
def test_bad_requests_get_a_sentence(engine, bad, message):
    db = shop()
    with pytest.raises(InputError, match=message): engine(db, plan_features(db.schema, 'customers'), **{'rows': [0], **bad})

BAD_PLANS = [(dict(entity_table='order'), "did you mean 'orders'"), (dict(mask=('pay',)), "'pay'"), (dict(target=('orders', 'pay')), "'pay'"), (dict(max_depth=-1), 'max_depth'),
             (dict(aggs={'number': ('median',)}), 'median'), (dict(aggs={'datetime': ('sum',)}), 'sum'),
             (dict(aggs={'datetime': ('mean_3d',)}), 'mean_3d'), (dict(aggs={'number': ('trend',)}), 'trend_30d'), (dict(aggs={'number': ('last_3d',)}), 'last_3d')]

@pytest.mark.parametrize('bad, message', BAD_PLANS)
def test_bad_plans_get_a_sentence(bad, message):
    with pytest.raises(InputError, match=message): plan_features(shop().schema, **{'entity_table': 'orders', **bad})

@pytest.mark.parametrize('engine', [compute_features, featuretools_features])
def test_nothing_in_nothing_out(engine):
    db = shop()
    plan = plan_features(db.schema, 'customers')
    assert engine(db, plan, [], pd.to_datetime([])).shape == (0, len(plan))
    assert engine(db, plan.select([]), [0, 1]).shape == (2, 0)
