"Features computed in databases: the same as in memory, in whatever holds the tables, blind to the future, and nothing is written."
import hashlib, os, re, shutil, sqlite3, subprocess
from pathlib import Path
import ibis, numpy as np, pandas as pd, pyarrow as pa, pytest
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.aggregates import feature_set
from rdbpfn.dfs import featuretools_features, plan_features
from rdbpfn.dfs_sql import DIALECTS, open_store, sql_features
from rdbpfn.dfs_tensor import compute_features
from rdbpfn.examples import flights, load_task, shop
from rdbpfn.in_place import InPlace
from rdbpfn.questions import ask_sql
from rdbpfn.schema import Column, Schema, Table
from test_dfs import DAYS, FULL, chain, identical, past_and_future, random_database, request, same

LONG = 'RDBPFN_LONG' in os.environ                     # RDBPFN_LONG=1: 200 random databases in each engine
MARCH = pd.to_datetime(['2024-03-01 08:00'])

def seeds(n): return range(200 if LONG else n)

def by_key(db):
    "The rows in the order of their primary key, which is the only order that a table in a database has"
    return Database({t.name: db.table_dict[t.name].sort_values(list(t.pkey), kind='stable').reset_index(drop=True) for t in db.schema.tables}, db.schema)

def key_type(db, table, column):
    "The type of a key column without values: that of a column which it is compared with, whole numbers if all are empty"
    seen, to_see = set(), [(table, column)]
    for t, c in to_see:
        x = pa.array(db.table_dict[t][c].astype(object), from_pandas=True).type
        if not pa.types.is_null(x): return x
        seen.add((t, c))
        ends = [((f.child, a), (f.parent, b)) for f in db.schema.fkeys for a, b in zip(f.columns, f.parent_columns)]
        to_see += [b for pair in ends for a, b in (pair, pair[::-1]) if a == (t, c) and b not in seen]
    return pa.int64()

def stored(db, table):
    "A table as people store it: keys, text, doubles, truth values and timestamps"
    out = {}
    for c in db.schema[table].columns:
        s = db.table_dict[table][c.name]
        if c.kind == 'datetime': x = pa.array(s.to_numpy('datetime64[us]'))
        elif c.kind == 'number': x = pa.array(s.to_numpy('float64', na_value=np.nan), from_pandas=True)
        elif c.kind == 'boolean': x = pa.array(s.astype('boolean'), type=pa.bool_())
        else: x = pa.array(s.astype(object), from_pandas=True)
        out[c.name] = x.cast(key_type(db, table, c.name) if c.kind == 'key' else pa.string()) if pa.types.is_null(x.type) else x
    return pa.table(out)

def quoted(name): return '"' + name.replace('"', '""') + '"'

def fill(con, db):
    "Write all tables of a database into a connection"
    for t in db.schema.names:
        if con.name == 'sqlite': fill_sqlite(con.con, t, stored(db, t), db.schema[t])
        elif con.name == 'pyspark': fill_spark(con._session, t, stored(db, t), db.schema[t])
        else: con.create_table(t, stored(db, t))
    if con.name == 'postgres': con.con.execute('analyze')
    return con

def fill_sqlite(con, name, table, info):
    "SQLite has no times and no truth values: text and 0 or 1, with the types that people declare"
    def declared(c, x): return dict(datetime='TIMESTAMP', number='REAL', boolean='BOOLEAN').get(c.kind) or ('INTEGER' if pa.types.is_integer(x.type) else 'REAL' if pa.types.is_floating(x.type) else 'TEXT')
    def value(v): return int(v) if isinstance(v, bool) else str(v) if hasattr(v, 'isoformat') else v
    con.execute(f"create table {quoted(name)} ({', '.join(f'{quoted(c.name)} {declared(c, table[c.name])}' for c in info.columns)})")
    con.executemany(f"insert into {quoted(name)} values ({', '.join('?'*len(info.columns))})", [[value(v) for v in r.values()] for r in table.to_pylist()])
    con.commit()

def fill_spark(session, name, table, info):
    "Views of rows, with the types that people declare"
    from pyspark.sql import types
    kinds = dict(number=types.DoubleType(), boolean=types.BooleanType(), datetime=types.TimestampType())
    fields = [types.StructField(c.name, kinds.get(c.kind) or (types.LongType() if pa.types.is_integer(table[c.name].type) else types.StringType())) for c in info.columns]
    session.createDataFrame([tuple(r.values()) for r in table.to_pylist()], types.StructType(fields)).createOrReplaceTempView(name)

def put(con, table, columns, rows=''):
    "A small table from SQL: its columns with types, and its rows"
    if con.name == 'pyspark': return con._session.sql(f"create or replace temp view {table} as select * from values {rows} as t({', '.join(c.split()[0] for c in columns.split(', '))})")
    for query in (f'drop table if exists {table}', f'create table {table} ({columns})', *([f'insert into {table} values {rows}'] if rows else [])): con.con.execute(query)

def keys_of(db, plan, rows): return db.table_dict[plan.entity_table].iloc[rows][list(db.schema[plan.entity_table].pkey)]

def in_place(con, db, seed, n_features=40):
    plan, rows, cutoffs = request(db, seed, depth=3 if seed % 7 == 0 else 2, n_features=n_features, aggs=FULL)
    same(sql_features(fill(con, db), plan, keys_of(db, plan, rows), cutoffs), compute_features(db, plan, rows, cutoffs))

# the same features

@pytest.mark.parametrize('seed', seeds(12))
def test_sql_agrees(seed):
    db = random_database(seed)
    plan, rows, cutoffs = request(db, seed, depth=3 if seed % 5 == 0 else 2, n_features=40, aggs=FULL)
    same(sql_features(db, plan, rows, cutoffs), featuretools_features(db, plan, rows, cutoffs))
    if seed % 4 == 0:
        paper, rows, _ = request(db, seed, n_features=20)
        if not paper.reads_history_of_mask: same(sql_features(db, paper, rows), featuretools_features(db, paper, rows))

@pytest.mark.parametrize('seed', seeds(8))
def test_duckdb_in_place(seed): in_place(ibis.duckdb.connect(), by_key(random_database(seed)), seed)

@pytest.mark.parametrize('seed', seeds(8))
def test_sqlite_in_place(seed): in_place(ibis.sqlite.connect(), by_key(random_database(seed)), seed)

@pytest.fixture(scope='module')
def postgres(tmp_path_factory):
    "A server of its own on a socket of its own, whose text is sorted as in English"
    pytest.importorskip('psycopg', reason='needs the Python package psycopg')
    homes = [Path(p) for p in sorted(map(str, Path('/usr/lib/postgresql').glob('*/bin')))[::-1]] + [Path(shutil.which('initdb') or '/nowhere/initdb').parent]
    home = next((p for p in homes if (p/'initdb').exists()), None)
    if home is None: pytest.skip("there is no PostgreSQL server here (Debian's package postgresql)")
    folder, user = Path('/tmp')/f'rdbpfn_pg_{os.getpid()}', 'postgres' if os.getuid() == 0 else None
    folder.mkdir(mode=0o777)
    if user: shutil.chown(folder, user)
    def run(*args): subprocess.run([str(a) for a in args], user=user, check=True, capture_output=True, cwd=folder, env={'PATH': os.environ['PATH'], 'LC_ALL': 'C'})
    try:
        run(home/'initdb', '-D', folder/'data', '-U', 'tester', '-A', 'trust', '-E', 'UTF8', '--locale-provider=icu', '--icu-locale=en-US')
        run(home/'pg_ctl', '-D', folder/'data', '-w', '-l', folder/'log', '-o', f'-k {folder} -c listen_addresses= -c fsync=off', 'start')
        yield lambda: ibis.postgres.connect(host=str(folder), user='tester', database='postgres')
        run(home/'pg_ctl', '-D', folder/'data', '-m', 'immediate', 'stop')
    except subprocess.CalledProcessError as e: pytest.skip(f'PostgreSQL does not start here: {e.stderr.decode()[:200]}')
    finally: shutil.rmtree(folder, ignore_errors=True)

@pytest.mark.parametrize('seed', seeds(8))
def test_postgres_in_place(seed, postgres):
    con = postgres()
    for t in con.list_tables(): con.drop_table(t)
    in_place(con, by_key(random_database(seed)), seed)
    con.disconnect()

@pytest.fixture(scope='module')
def spark(tmp_path_factory):
    "A session that lives in New York and compiles nothing, which is faster for a few rows"
    sql = pytest.importorskip('pyspark.sql', reason="needs pyspark: pip install 'rdbpfn[spark]'")
    if not shutil.which('java'): pytest.skip('Spark needs Java')
    options = {'spark.ui.enabled': 'false', 'spark.sql.warehouse.dir': str(tmp_path_factory.mktemp('spark')), 'spark.sql.session.timeZone': 'America/New_York', 'spark.sql.shuffle.partitions': '1', 'spark.default.parallelism': '1',
               'spark.sql.codegen.wholeStage': 'false', 'spark.sql.codegen.factoryMode': 'NO_CODEGEN', 'spark.sql.adaptive.enabled': 'false'}
    builder = sql.SparkSession.builder.master('local[1]')
    for k, v in options.items(): builder = builder.config(k, v)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel('ERROR')
    yield session
    session.stop()

ENGINES = ['duckdb', 'sqlite', 'postgres', 'spark']

@pytest.fixture
def empty(request, tmp_path):
    "Function: the name of an engine -> a connection that sees no tables, in a session that lives in New York"
    made = []
    def connect(engine):
        if engine == 'sqlite': return ibis.sqlite.connect()
        if engine == 'spark':
            session = request.getfixturevalue('spark')
            con = ibis.pyspark.connect(session)
            for t in con.list_tables(): session.catalog.dropTempView(t)
            return con
        con = ibis.duckdb.connect(tmp_path/f'{len(made)}.duckdb') if engine == 'duckdb' else request.getfixturevalue('postgres')()
        made.append(con)
        if engine == 'postgres':
            for t in con.list_tables(): con.drop_table(t)
        con.con.execute("set time zone 'America/New_York'")
        return con
    yield connect
    for con in made: con.disconnect()

@pytest.mark.parametrize('seed', range(int(os.environ.get('RDBPFN_SPARK', 40))) if LONG else [10, 14])
def test_spark_in_place(seed, empty): in_place(empty('spark'), by_key(random_database(seed)), seed, 40 if LONG else 6)

@pytest.mark.parametrize('engine', ENGINES)
def test_parallel_paths_in_place(engine, empty):
    "The shop, whose orders meet a customer on several paths"
    db = by_key(shop())
    plan = plan_features(db.schema, 'customers', aggs=feature_set('full', (30,)))
    if engine == 'spark': plan = plan.select(plan.names[::40])
    rows, cutoffs = np.arange(5), MARCH.repeat(5)
    same(sql_features(fill(empty(engine), db), plan, keys_of(db, plan, rows), cutoffs), compute_features(db, plan, rows, cutoffs))

@pytest.mark.parametrize('engine', ['memory', 'duckdb', 'sqlite', 'postgres'])
def test_flights_in_sql(engine, empty):
    db, task = by_key(flights()), load_task('flight-late15')
    some = task.test.sample(40 if engine == 'memory' else 10, random_state=1)
    rows, cutoffs = db.row_of(task.entity_table, some[task.entity_col]), some[task.time_col]
    plan = plan_features(db.schema, task.entity_table, mask=task.mask, aggs=feature_set('full', (7, 30)))
    if engine != 'memory': plan = plan.select(plan.names[::12])
    source, asked = (db, rows) if engine == 'memory' else (fill(empty(engine), db), keys_of(db, plan, rows))
    same(sql_features(source, plan, asked, cutoffs), compute_features(db, plan, rows, cutoffs))

# the future

@pytest.mark.parametrize('seed', range(6))
def test_the_future_changes_nothing_in_sql(seed):
    db, other, plan, rows, cutoffs = past_and_future(seed, 60)
    identical(sql_features(db, plan, rows, cutoffs), sql_features(other, plan, rows, cutoffs))

FUTURES = {'duckdb': (range(6), 60), 'sqlite': (range(6), 60), 'postgres': (range(6), 60), 'spark': ([4], 5)}

@pytest.mark.parametrize('engine, seed, n', [(e, s, n) for e, (some, n) in FUTURES.items() for s in (range(30) if LONG and e != 'spark' else some)])
def test_the_future_changes_nothing_in_place(engine, seed, n, empty):
    "The same keys before and after another history from the cutoff on, bit by bit"
    db, other, plan, rows, cutoffs = past_and_future(seed, n)
    keys = keys_of(db, plan, rows)
    assert keys.equals(keys_of(other, plan, rows))
    identical(*(sql_features(fill(empty(engine), d), plan, keys, cutoffs) for d in (db, other)))

BEFORE = np.datetime64('2020-01-07T00:00:00', 'ns')

@pytest.mark.parametrize('engine, seed', [(e, s) for e in ('memory', 'duckdb', 'sqlite') for s in range(20 if LONG else 5)] + [('postgres', 0), ('postgres', 1)])
def test_nothing_exists_from_a_moment_on(engine, seed, empty):
    "`before` is `Database.upto` in place, with and without cutoffs"
    db = by_key(random_database(seed))
    plan, rows, cutoffs = request(db, seed, n_features=25, aggs=FULL)
    times = db.times(plan.entity_table)
    if times is not None: rows, cutoffs = (x[times[rows] < BEFORE] for x in (rows, cutoffs))
    if not len(rows): return
    past, keys = db.upto(BEFORE), keys_of(db, plan, rows)
    then = past.row_of(plan.entity_table, keys.iloc[:, 0] if keys.shape[1] == 1 else keys)
    source, asked = (db, rows) if engine == 'memory' else (fill(empty(engine), db), keys)
    if not plan.reads_history_of_mask or not (times[rows] < cutoffs).any(): same(sql_features(source, plan, asked, cutoffs, before=BEFORE), compute_features(past, plan, then, cutoffs))
    paper = request(db, seed, n_features=15)[0]
    if not paper.reads_history_of_mask: same(sql_features(source, paper, asked, before=BEFORE), compute_features(past, paper, then))

def test_before_hides_rows_and_needs_a_moment():
    "A row of the entity's own table that is cut is not there; neither is a row without a time"
    db = Database.from_frames({'p': pd.DataFrame({'id': [1, 2]}), 'c': pd.DataFrame({'id': [1, 2, 3], 'p': [1, 1, 1], 'time': [DAYS[0], DAYS[5], None]})}, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'})
    plan, own = plan_features(db.schema, 'p').select(['COUNT(c)']), plan_features(db.schema, 'c').select(['p.COUNT(c)'])
    for source in (db, fill(ibis.duckdb.connect(), db)):
        keys = [0, 1] if source is db else [1, 2]
        for before, n in ((None, 3), (DAYS[5], 1), (DAYS[5].tz_localize('UTC').tz_convert('Asia/Tokyo'), 1), ('2020-01-07', 2), (DAYS[0], 0), ('9999-01-01', 2)):
            assert sql_features(source, plan, keys, before=before)['COUNT(c)'].tolist() == [n, 0], before
        with pytest.raises(InputError, match="1 of 2 keys are not in table 'c' before 2020-01-06"): sql_features(source, own, keys, before=DAYS[5])
        for bad in (5, 'soon', pd.NaT):
            with pytest.raises(InputError, match='is not a moment in time'): sql_features(source, plan, keys, before=bad)

# where tables are

def test_every_place_of_the_shop(tmp_path):
    "Parquet, a DuckDB file, a SQLite file, their URLs; not one byte of them changes"
    db = by_key(shop())
    db.to_folder(tmp_path/'folder')
    fill(ibis.duckdb.connect(tmp_path/'shop.duckdb'), db).disconnect()
    fill(ibis.sqlite.connect(tmp_path/'shop.sqlite'), db).disconnect()
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.rglob('*.*')}
    plan, rows = plan_features(db.schema, 'items', aggs=feature_set('recent')), np.arange(db.n_rows('items'))   # a key of two columns
    want = compute_features(db, plan, rows, MARCH.repeat(len(rows)))
    for place in ('folder', 'shop.duckdb', 'shop.sqlite'):
        for source in (tmp_path/place, *([f"{place.split('.')[1]}:///{tmp_path/place}"] if '.' in place else [])):
            same(sql_features(source, plan, keys_of(db, plan, rows), MARCH.repeat(len(rows))), want)
    assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.rglob('*.*')}

def test_bigger_than_memory(tmp_path):
    "DuckDB is given 100 MB for 400,000 rows and their text"
    db = chain(400_000)
    con = ibis.duckdb.connect(tmp_path/'big.duckdb', memory_limit='100MB', threads=1, temp_directory=tmp_path/'spill')
    fill(con, db)
    plan, rows = plan_features(db.schema, 'shops'), np.arange(10)
    cutoffs = pd.Timestamp('2020-03-01') + pd.to_timedelta(rows, 'D')
    same(sql_features(con, plan, rows, cutoffs), compute_features(db, plan, rows, cutoffs))

KINDS_OF_TIME = dict(duckdb=['timestamp', 'timestamp_ns', 'timestamp_s', 'timestamptz', 'date', 'varchar'], postgres=['timestamp', 'timestamp(3)', 'timestamptz', 'date', 'text', 'varchar(30)'], spark=['timestamp', 'timestamp_ntz', 'date', 'string'], sqlite=['timestamp', 'datetime', 'date', 'text'])

def parents_and_children(*times):
    "One parent; a child at each time"
    frames = {'p': pd.DataFrame({'id': [1]}), 'c': pd.DataFrame({'id': range(1, len(times) + 1), 'p': 1, 'time': pd.Series(times, dtype=object)})}
    return Database.from_frames(frames, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'})

def count_children(con, at, *times, kind='varchar(40)'):
    "How many of the children at `times`, literals in SQL, are seen"
    put(con, 'p', 'id integer', '(1)')
    put(con, 'c', f'id integer, p integer, time {kind}', ', '.join(f'({i}, 1, {t})' for i, t in enumerate(times, 1)))
    return sql_features(con, plan_features(parents_and_children(DAYS[0]).schema, 'p').select(['COUNT(c)']), [1]*len(at), at)['COUNT(c)'].tolist()

@pytest.mark.parametrize('engine', ENGINES)
def test_times_of_every_kind(engine, empty):
    "The same moments as timestamps of every precision, with a zone, as dates and as text, in a session that lives in New York; what is out of range is no time"
    con, at = empty(engine), pd.to_datetime(['2020-01-02', '2020-01-02', '2020-01-03']) + pd.to_timedelta([0, 1, 0], 'ns')
    for kind in KINDS_OF_TIME[engine]:
        text = "'2020-01-02 00:00:00+00'" if kind == 'timestamptz' else "'2020-01-02'"
        time, null = (f'cast({x} as {kind})' if engine == 'spark' else x for x in (text, 'null'))
        assert count_children(con, at, time, null, kind=kind) == [0, 1, 1], kind
    far = "timestamp '3020-01-01'" if engine == 'spark' else "'3020-01-01'"
    assert count_children(con, at[:1], far, kind='timestamp') == [0]

@pytest.mark.parametrize('engine', [*ENGINES, 'folder'])
def test_times_in_text_keep_their_offset(engine, empty, tmp_path):
    "04:00 in Greenwich on 1 February, told in many ways, is not seen at its start, here as in memory"
    con, moment = None if engine == 'folder' else empty(engine), pd.Timestamp('2024-02-01 04:00')
    at = pd.DatetimeIndex(['2024-02-01', moment, moment + pd.Timedelta(1, 'ns')])
    for text in ('2024-01-31 23:00:00-05:00', '2024-01-31T23:00:00-05:00', '2024-01-31 23:00:00-05', '2024-02-01T04:00:00Z', '2024-02-01T09:30:00.000000+05:30', '2024-02-01 04:00:00', '2024/02/01 04:00:00')[::2 if engine == 'spark' else 1]:
        db = parents_and_children(text, text)
        plan = plan_features(db.schema, 'p').select(['COUNT(c)'])
        assert compute_features(db, plan, [0, 0, 0], at)['COUNT(c)'].tolist() == [0, 0, 2]
        if con is not None: assert count_children(con, at, f"'{text}'", f"'{text}'") == [0, 0, 2], text
        else:
            (tmp_path/'db').mkdir(exist_ok=True)
            for name, f in (('p', pd.DataFrame({'id': [1]})), ('c', pd.DataFrame({'id': [1, 2], 'p': 1, 'time': text}))): f.to_parquet(tmp_path/'db'/f'{name}.parquet')
            assert sql_features(str(tmp_path), plan, [1]*3, at)['COUNT(c)'].tolist() == [0, 0, 2], text

@pytest.mark.parametrize('engine', ENGINES)
def test_text_that_is_no_time_or_half_zoned_is_refused(engine, empty):
    con = empty(engine)
    for times, message in ((('2024-01-31 23:00:00-05:00', '2024-01-31 23:00:00'), 'Column c.time has a time zone on 1 of its 2 times'), (('2024-01-31 23:00:00Z', '2024-01-31'), 'has a time zone on 1 of its 2'),
                           (('2024-01-31 23:00:00+01', '2024-01-31 23:00:00'), 'has a time zone on 1 of its 2'), (('2024-01-31', 'soon'), 'Column c.time should hold times, but 1 values are none in ISO 8601 .such as .soon.'), (('2024-01-31', 'now'), 'such as .now.')):
        with pytest.raises(InputError, match=message): count_children(con, MARCH, *(f"'{t}'" for t in times))
        if message.startswith('Column'):
            with pytest.raises(InputError, match=message): parents_and_children(*times)

def test_columns_that_lost_their_type(tmp_path):
    "An empty object frame has columns of type null in Parquet, and DuckDB calls them integers"
    frames = {'p': pd.DataFrame({'id': ['a', 'b'], 'x': [1., 2.]}), 'c': pd.DataFrame({c: [] for c in ('id', 'p', 'v', 'k', 'time')}, dtype=object)}
    db = Database.from_frames(frames, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'}, {'c': {'v': 'number', 'time': 'datetime'}})
    (tmp_path/'db').mkdir()
    for name, f in frames.items(): f.to_parquet(tmp_path/'db'/f'{name}.parquet')
    for table, keys in (('p', ['a', 'b']), ('c', [])):
        plan, at = plan_features(db.schema, table, aggs=FULL), DAYS[:len(keys)]
        same(sql_features(tmp_path, plan, keys, at), compute_features(db, plan, range(len(keys)), at))
    con = fill(ibis.duckdb.connect(), Database.from_frames({'p': frames['p'], 'c': pd.DataFrame({'id': [1], 'p': ['a'], 'v': [1.], 'k': ['x'], 'time': DAYS[:1]})}, {'p': 'id', 'c': 'id'}))
    con.raw_sql('update c set p = null; alter table c alter time type integer using null; alter table c alter p type integer using null')
    assert sql_features(con, plan_features(db.schema, 'p').select(['COUNT(c)']), ['a'], DAYS[:1])['COUNT(c)'].tolist() == [0]

@pytest.mark.parametrize('engine, rule', [('sqlite', 'text collate nocase'), ('duckdb', 'varchar collate nocase'), ('postgres', 'text collate loose'), ('postgres', 'citext')])
@pytest.mark.parametrize('view', [False, True])
def test_text_is_compared_byte_by_byte(engine, rule, view, empty):
    "Keys and values that the database takes for equal are not"
    con = empty(engine)
    if engine == 'postgres': con.con.execute('drop view if exists p, c')
    if rule == 'citext':
        try: con.con.execute('create extension if not exists citext')
        except Exception: pytest.skip("needs PostgreSQL's extension citext (Debian's package postgresql brings it)")
    if engine == 'postgres': con.con.execute("create collation if not exists loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    put(con, 'p', f'id {rule}, x integer', "('A', 1), ('b', 2)")
    put(con, 'c', f'id integer, p {rule}, k {rule}', "(1, 'A', 'x'), (2, 'a', 'X'), (3, 'A', 'y'), (4, 'A', 'Y'), (5, 'A', 'y'), (6, 'b', 'q'), (7, 'b', 'Q'), (8, 'b', 'Q')")
    if view:
        for t in 'pc':
            con.con.execute(f'alter table {t} rename to {t}0')
            con.con.execute(f'create view {t} as select * from {t}0')
    children = pd.DataFrame({'id': range(1, 9), 'p': ['A', 'a', 'A', 'A', 'A', 'b', 'b', 'b'], 'k': ['x', 'X', 'y', 'Y', 'y', 'q', 'Q', 'Q']})
    db = Database.from_frames({'p': pd.DataFrame({'id': ['A', 'b'], 'x': [1, 2]}), 'c': children}, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {}, {'c': {'k': 'category'}})
    plan = plan_features(db.schema, 'p', aggs=feature_set('full'))
    same(sql_features(con, plan, ['A', 'b']), compute_features(db, plan, [0, 1]))
    with pytest.raises(InputError, match='1 of 2 keys are not in'): sql_features(con, plan, ['a', 'b'])
    if view:
        for t in 'pc': con.con.execute(f'drop view {t}')
        for t in 'pc': con.con.execute(f'drop table {t}0')

def test_odd_values_of_duckdb():
    "NaN is null, and infinity is not"
    con = ibis.duckdb.connect()
    con.raw_sql('create table p as select 1 as id')
    con.raw_sql("create table c as select * from (values (1, 1, 'nan'::double), (2, 1, 3.), (3, 1, null)) t(id, p, x)")
    db = Database.from_frames({'p': pd.DataFrame({'id': [1]}), 'c': pd.DataFrame({'id': [1], 'p': [1], 'x': [1.]})}, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}})
    x = sql_features(con, plan_features(db.schema, 'p'), [1])
    assert x[['COUNT(c)', 'MEAN(c.x)', 'SUM(c.x)', 'MAX(c.x)', 'MIN(c.x)']].iloc[0].tolist() == [3, 3, 3, 3, 3]

def test_sqlite_text_among_numbers_is_null():
    con, db = ibis.sqlite.connect(), Database.from_frames({'p': pd.DataFrame({'id': [1]}), 'c': pd.DataFrame({'id': [1], 'p': [1], 'x': [1.]})}, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}})
    con.con.executescript("create table p (id integer); insert into p values (1); create table c (id integer, p integer, x real); insert into c values (1, 1, ''), (2, 1, 4)")
    assert sql_features(con, plan_features(db.schema, 'p'), [1])['MEAN(c.x)'].tolist() == [4]

# what is refused

@pytest.fixture
def shop_in_duckdb(): return fill(ibis.duckdb.connect(), shop())

def test_bad_requests_get_a_sentence_in_sql(shop_in_duckdb):
    plan = plan_features(shop().schema, 'customers')
    for keys, cutoffs, message in ((['ada', 'zoe'], MARCH.repeat(2), "1 of 2 keys are not in table 'customers'"), ([3], MARCH, 'holds whole numbers where customers'),
                                   (['ada'], ['2024-01-01'], 'datetimes'), (['ada'], MARCH.tz_localize('UTC'), 'time zone'), (['ada'], MARCH.repeat(2), '1 rows but 2'), ([('ada', 1)], MARCH, 'has 1 columns')):
        with pytest.raises(InputError, match=message): sql_features(shop_in_duckdb, plan, pd.DataFrame(keys) if message.startswith('has 1') else keys, cutoffs)
    with pytest.raises(InputError, match='looks back from a cutoff'): sql_features(shop_in_duckdb, plan_features(shop().schema, 'customers', aggs=feature_set('recent')), ['ada'])
    masked = plan_features(shop().schema, 'orders', mask='paid')
    with pytest.raises(InputError, match='1 rows of .orders. come before their own cutoff'): sql_features(shop_in_duckdb, masked, [1], MARCH)

@pytest.mark.parametrize('change, message', [('drop table items', "no table 'items'"), ('alter table orders drop column customer_id', "no column 'customer_id'"),
    ('insert into customers select * from customers', 'is not unique'), ('alter table orders alter customer_id type integer using 1', 'holds whole numbers where customers'),
    ('alter table orders alter placed type integer using 1', 'should hold times but holds numbers'), ('alter table orders drop column paid', "no column 'paid'"),
    ("alter table orders alter paid type varchar using 'much'", "orders.paid is said to hold numbers but does not .such as 'much'")])
def test_a_database_that_is_not_what_was_planned(shop_in_duckdb, change, message):
    "A wrong number is never the answer"
    shop_in_duckdb.raw_sql(change)
    with pytest.raises(InputError, match=message): sql_features(shop_in_duckdb, plan_features(shop().schema, 'customers'), ['ada'], MARCH)

def test_a_parent_that_two_rows_claim_to_be(shop_in_duckdb):
    "It would double every order of Ada's"
    shop_in_duckdb.raw_sql("insert into customers select * from customers where customer_id = 'ada'")
    with pytest.raises(InputError, match='customers.customer_id is not unique: 1 rows repeat'): sql_features(shop_in_duckdb, plan_features(shop().schema, 'orders'), [1], MARCH)

def test_a_lost_connection_gets_a_sentence(shop_in_duckdb, monkeypatch):
    "The connection breaks after the second query"
    plan, left, ask = plan_features(shop().schema, 'customers'), [3], shop_in_duckdb.to_pyarrow
    def breaking(query):
        left[0] -= 1
        if left[0] < 0: raise OSError('server closed the connection unexpectedly')
        return ask(query)
    monkeypatch.setattr(shop_in_duckdb, 'to_pyarrow', breaking)
    with pytest.raises(InputError, match='could not compute the features .server closed the connection'): sql_features(shop_in_duckdb, plan, ['ada'], MARCH)

class Dead:
    "A connection that answers so many times, and then no more"
    def __init__(self, con, left): self.con, self.left = con, left
    def __call__(self, *args, **options):
        self.left -= 1
        if self.left < 0: raise OSError('server closed the connection unexpectedly')
        return self.con(*args, **options)

@pytest.mark.parametrize('engine', ['duckdb', 'sqlite'])
def test_a_connection_that_breaks_anywhere_gets_a_sentence(engine, empty, monkeypatch):
    "After each number of answers, in the checks, the temporary tables and the features"
    con = fill(empty(engine), shop())
    plan = plan_features(shop().schema, 'customers').select(['COUNT(orders[customer_id])', 'MEAN(orders[customer_id].paid)'])
    sql_features(con, plan, ['ada'], MARCH)
    for name in ('to_pyarrow', 'list_tables', 'table', 'create_table'):
        for left in range(20):
            with monkeypatch.context() as m:
                dying = Dead(getattr(con, name), left)
                m.setattr(con, name, dying)
                try: sql_features(con, plan, ['ada'], MARCH)
                except InputError as e: assert 'could not compute the features (server closed' in str(e)
            if dying.left >= 0: break
        assert dying.left >= 0

@pytest.mark.parametrize('engine', ['duckdb', 'sqlite'])
def test_a_closed_connection_gets_a_sentence(engine, empty):
    con = fill(ibis.duckdb.connect() if engine == 'duckdb' else empty(engine), shop())
    con.con.close()
    with pytest.raises(InputError, match=f'{engine} could not compute the features'): open_store(con, plan_features(shop().schema, 'customers'))
    with pytest.raises(InputError, match=f'{engine} could not compute the features'): sql_features(con, plan_features(shop().schema, 'customers'), ['ada'], MARCH)

def test_files_that_are_no_database_get_a_sentence(tmp_path):
    plan = plan_features(shop().schema, 'customers')
    for name, content, message in (('notes.db', b'hello world, no database at all '*9, "notes.db' is neither a DuckDB nor a SQLite file"), ('empty.db', b'', "empty.db' is neither a DuckDB nor a SQLite file"),
                                   ('torn.db', b'SQLite format 3\0' + b'x'*99, 'torn.db could not compute the features'), ('torn.duckdb', b'12345678DUCK' + b'x'*99, 'torn.duckdb could not compute the features')):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(InputError, match=message): sql_features(tmp_path/name, plan, ['ada'], MARCH)
    (tmp_path/'folder'/'db').mkdir(parents=True)
    for t in shop().schema.names: (tmp_path/'folder'/'db'/f'{t}.parquet').write_text('no Parquet')
    with pytest.raises(InputError, match='folder could not compute the features'): sql_features(tmp_path/'folder', plan, ['ada'], MARCH)

def test_no_sentence_repeats_a_password(monkeypatch):
    "Whatever the driver puts into its own message, in whatever form"
    def leaking(url): raise OSError(f'cannot reach {url} as anna with s3cret&more')
    for url in ('postgresql://anna:s3cret%26more@host/shop', 'snowflake://anna@host/shop?password=s3cret%26more&role=x', 'postgresql://anna:s3cret&more@[host/shop'):
        monkeypatch.setattr('rdbpfn.store._connect', leaking)
        with pytest.raises(InputError, match='could not compute the features .cannot reach') as e: sql_features(url, plan_features(shop().schema, 'customers'), ['ada'], MARCH)
        assert 's3cret' not in str(e.value) and e.value.__cause__ is None and e.value.__suppress_context__

@pytest.mark.parametrize('source', ['postgresql://anna:s3cret@127.0.0.1:1/shop', 'nosuch://anna:s3cret@host/shop', 'no/such/file.db', None, 5])
def test_a_source_that_is_not_there_gets_a_sentence_without_secrets(source):
    with pytest.raises(InputError) as e: sql_features(source, plan_features(shop().schema, 'customers'), ['ada'], MARCH)
    assert 's3cret' not in str(e.value) and e.value.__cause__ is None

def test_values_are_bound_and_names_quoted():
    odd = """x'; drop table "group by"; --"""
    frames = {'select': pd.DataFrame({'order': [odd, 'b'], 'from': [1., 2.]}), 'group by': pd.DataFrame({'where"': [0, 1], 'select': [odd, odd], 'join': ["it's", 'x'], 'limit': DAYS[:2]})}
    db = Database.from_frames(frames, {'select': 'order', 'group by': 'where"'}, {'group by': {'select': 'select'}}, {'group by': 'limit'}, {'group by': {'join': 'category'}})
    plan = plan_features(db.schema, 'select', aggs=FULL)
    want = compute_features(db, plan, [0, 1], DAYS[[5, 5]])
    for con in (ibis.duckdb.connect(), ibis.sqlite.connect()): same(sql_features(fill(con, db), plan, [odd, 'b'], DAYS[[5, 5]]), want)
    for dialect in ('duckdb', 'postgres', 'sqlite', 'pyspark'): assert odd not in plan.sql('MODE(group by.join)', dialect)

@pytest.mark.parametrize('dialect', DIALECTS)
def test_every_feature_is_written_in_every_dialect(dialect):
    plan = plan_features(shop().schema, 'customers', aggs=feature_set('full', (30,)))
    for name in plan.names[::7]: assert plan.sql(name, dialect).count('SELECT') > 1 or not plan.select(name).features[0].path

def test_other_dialects_are_told_from_these():
    plan = plan_features(shop().schema, 'customers')
    for dialect in ('mssql', 'oracle', 'foo', None):
        with pytest.raises(InputError, match='choose from duckdb, sqlite, postgres, pyspark'): plan.sql(plan.names[0], dialect)

def test_queries_of_a_place_get_a_sentence_of_their_own(tmp_path):
    "A slip in the query is not blamed on features, a file that went is no error of DuckDB, and a cut is not passed over"
    shop().to_folder(tmp_path)
    there = InPlace.open(tmp_path)
    assert there.ask('select count(*) as n from orders').n[0] == 8
    with pytest.raises(InputError, match=r'could not answer the query .*it may read the tables customers, '): there.ask('select placedd from orders')
    with pytest.raises(InputError, match='this place is cut before 2024-02-10'): there.upto('2024-02-10').ask('select count(*) from orders')
    (tmp_path/'db'/'orders.parquet').unlink()
    with pytest.raises(InputError, match='could not answer the query'): there.ask('select count(*) from customers')

WRITES = {'select 1; drop table items': 'SELECT and DROP', 'drop table items': 'DROP', 'delete from items returning *': 'DELETE', 'with gone as (delete from items returning *) select * from gone': 'DELETE', 'with x as (update items set price = 0 returning *) select 1': 'UPDATE',
          'select * into copied from items': 'INTO', 'create table copied as select * from items': 'CREATE', 'insert into items select * from items': 'INSERT', 'vacuum': 'VACUUM', '': 'nothing', '-- select 1': 'nothing'}

@pytest.mark.parametrize('engine', ['duckdb', 'sqlite'])
@pytest.mark.parametrize('query', WRITES)
def test_a_place_is_only_read(engine, query, empty):
    "Through the caller's own connection, which may write"
    con = fill(empty(engine), shop())
    there, tables = InPlace.open(con), sorted(con.list_tables())
    with pytest.raises(InputError, match=f'A task is one query that reads, not {WRITES[query]}: begin with SELECT'): ask_sql(there, query)
    assert sorted(con.list_tables()) == tables and con.table('items').count().execute() == shop().n_rows('items')
    for reads in ('select count(*) as n from orders;', 'with o as (select * from orders) select count(*) as n from o -- all of them'): assert ask_sql(there, reads).n[0] == 8
    with pytest.raises(InputError, match=f'{engine} could not answer the query'): ask_sql(there, 'selec 1')

def test_a_slip_beside_a_table_of_odd_times_is_not_one_of_features():
    con = ibis.sqlite.connect()
    con.con.executescript("create table a (id integer primary key, placed text); insert into a values (1, 'soon')")
    there = InPlace(con, Schema((Table('a', (Column('id', 'key'), Column('placed', 'datetime')), ('id',), 'placed'),), ()), {})
    assert there.ask('select placed from a').placed[0] == 'soon'
    with pytest.raises(InputError, match='sqlite could not answer the query'): there.ask('select nothing from a')

@pytest.mark.parametrize('kind', ['sqlite', 'duckdb'])
def test_the_path_of_a_url_is_relative_to_the_current_folder(kind, tmp_path, monkeypatch):
    "In place as in memory; with four slashes it is absolute"
    fill(getattr(ibis, kind).connect(tmp_path/f'shop.{kind}'), shop()).disconnect()
    monkeypatch.chdir(tmp_path)
    plan = plan_features(shop().schema, 'customers')
    want = sql_features(tmp_path/f'shop.{kind}', plan, ['ada'])
    for url in (f'{kind}:///shop.{kind}', f'{kind}:///{tmp_path}/shop.{kind}', f'{kind}://{tmp_path}/shop.{kind}'):
        there = InPlace.open(url, pkey_col={'customers': 'customer_id'})
        identical(sql_features(url, plan, ['ada']), want)
        assert there.ask('select count(*) as n from orders').n[0] == 8 and there.row_of('customers', ['ada']).tolist() == ['ada']
    with pytest.raises(InputError, match="There is no file 'gone.db'"): sql_features(f'{kind}:///gone.db', plan, ['ada'])

MIXED = dict(numeric=['x', '', 'y', None], integer=['x', 3, '', None], real=['1.5', '', 2, 'x'], boolean=[0, 1, '', 't'], text=['a', 1, 2.5, ''], date=['2020-01-01', '', None, '  '], timestamp=['2020-01-01 10:00', '', None, '2021-03-04'], none=[1, 1.5, '1', 1e20])

@pytest.mark.parametrize('declared', MIXED)
def test_sqlite_columns_of_several_types_are_as_in_memory(declared, tmp_path):
    "Text among numbers makes all of them text, and an empty text where a number or a time is declared is missing"
    values = MIXED[declared]
    with sqlite3.connect(tmp_path/'mixed.db') as con:
        for t, more in (('p', ''), ('c', ', p integer references p(id)')): con.execute(f"create table {t} (id integer primary key, x {declared.replace('none', '')}{more})")
        con.executemany('insert into p values (?, ?)', [(i, values[i % 4]) for i in range(8)])
        con.executemany('insert into c values (?, ?, ?)', [(i, values[i//2 % 4], i % 8) for i in range(16)])
    con.close()
    db = Database.open(tmp_path/'mixed.db', time_col={'p': None, 'c': None}, kinds={t: {'x': 'category'} for t in 'pc'} if declared == 'none' else {})
    plan = plan_features(db.schema, 'p')
    assert plan.names[0] in ('x', 'DAYS_SINCE(x)')
    same(sql_features(tmp_path/'mixed.db', plan, range(8)), compute_features(db, plan, range(8)))

@pytest.mark.parametrize('engine, of', [('duckdb', 'integer[]'), ('duckdb', 'struct(a integer)'), ('duckdb', 'map(text, integer)'), ('duckdb', 'blob'), ('sqlite', 'blob')])
def test_values_that_have_no_name_get_a_sentence(engine, of, empty):
    con, value = empty(engine), {'integer[]': '[1]', 'struct(a integer)': "{'a': 1}", 'map(text, integer)': "map {'a': 1}", 'blob': "x'61'" if engine == 'sqlite' else "'a'::blob"}[of]
    put(con, 'p', f'id integer, x {of}', f'(1, {value})')
    db = Database.from_frames({'p': pd.DataFrame({'id': [1], 'x': ['a']})}, {'p': 'id'}, kinds={'p': {'x': 'category'}})
    with pytest.raises(InputError, match="Column p.x holds .*, which no category can be in place: cast it to text in a view, or leave it out with kinds={'p': {'x': 'text'}}"): sql_features(con, plan_features(db.schema, 'p'), [1])

def test_empty_text_is_no_time():
    con = ibis.duckdb.connect()
    put(con, 'p', 'id integer', '(1)')
    put(con, 'c', 'id integer, p integer, time varchar', "(1, 1, '2020-01-02'), (2, 1, ''), (3, 1, null)")
    plan = plan_features(parents_and_children(DAYS[0]).schema, 'p').select(['COUNT(c)'])
    assert sql_features(con, plan, [1, 1], DAYS[[1, 2]])['COUNT(c)'].tolist() == [0, 1]

def test_the_sql_of_a_feature_runs_as_it_stands(shop_in_duckdb):
    "Paste it into a console with a table `rows`: the same number"
    db = shop()
    plan = plan_features(db.schema, 'customers', aggs=feature_set('full', (30,)))
    shop_in_duckdb.create_table('rows', pd.DataFrame({'pid': [0], 'cut': MARCH.astype('int64'), 'key0': ['ada']}))
    want = compute_features(db, plan, [0], MARCH)
    for name in ('COUNT(orders[customer_id])', 'LAST(orders[customer_id].channel)', 'SHARE(orders[customer_id].channel)', 'MEAN(orders[customer_id].COUNT(items))', 'customers[referred_by].age', 'COUNT_30D(orders[customer_id])'):
        got = shop_in_duckdb.raw_sql(plan.sql(name)).fetchall()[0][1]
        assert got == want[name][0] or pd.isna(want[name][0]) and got is None, name

def test_a_table_called_rows_is_not_the_request():
    "The request takes another name, whatever the case of the table's"
    for name, request_name in (('rows', 'rows_'), ('Rows', 'rows_'), ('lines', 'rows')):
        db = Database.from_frames({'p': pd.DataFrame({'id': [1, 2]}), name: pd.DataFrame({'rid': [1, 2], 'p': [1, 1]})}, {'p': 'id', name: 'rid'}, {name: {'p': 'p'}})
        con, plan = fill(ibis.duckdb.connect(), db), plan_features(db.schema, 'p').select([f'COUNT({name})'])
        con.create_table(request_name, pd.DataFrame({'pid': [0, 1], 'cut': 0, 'key0': [1, 2]}))
        assert sorted(con.raw_sql(plan.sql(plan.names[0], timed=False)).fetchall()) == [(0, 2), (1, 0)]
        assert sql_features(con, plan, [1, 2])[plan.names[0]].tolist() == [2, 0]

def test_a_table_without_key_has_no_last_row_of_equal_times():
    db = Database.from_frames({'p': pd.DataFrame({'id': [1]}), 'c': pd.DataFrame({'p': [1, 1], 'x': [1., 2.], 'time': DAYS[[0, 0]]})}, {'p': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'})
    plan, con = plan_features(db.schema, 'p', aggs=feature_set('recent')), fill(ibis.duckdb.connect(), db)
    assert sql_features(db, plan, [0], DAYS[[3]])['LAST(c.x)'].tolist() == [2]                    # a frame has an order
    with pytest.raises(InputError, match="'c' has no primary key, so nothing tells"): sql_features(con, plan, [1], DAYS[[3]])
    assert sql_features(con, plan.select(['MEAN(c.x)', 'SINCE(c)']), [1], DAYS[[3]]).iloc[0].tolist() == [1.5, 3]
    with pytest.raises(InputError, match="'c' has no primary key, so its rows"): sql_features(con, plan_features(db.schema, 'c'), [1])

@pytest.mark.parametrize('seed', [0])
def test_nothing_in_nothing_out_in_sql(seed, shop_in_duckdb):
    plan = plan_features(shop().schema, 'customers')
    assert sql_features(shop(), plan, [], pd.to_datetime([])).shape == sql_features(shop_in_duckdb, plan, [], pd.to_datetime([])).shape == (0, len(plan))
    assert sql_features(shop(), plan.select([]), [0, 1]).shape == (2, 0)


def test_an_estimator_asks_a_server_by_its_url(postgres):
    "Keys and times from the catalogue, features by queries, answers as from memory; nothing is left behind"
    from rdbpfn.relational import RelationalClassifier
    con, rng = postgres(), np.random.default_rng(0)
    for t in con.list_tables(): con.drop_table(t, force=True)
    con.con.execute('create table customers (id text primary key, age double precision)')
    con.con.execute('create table "order" (id integer primary key, who text references customers(id), amount double precision, placed timestamp)')
    with con.con.cursor() as c:
        c.executemany('insert into customers values (%s, %s)', [(f'c{i}', float(rng.integers(18, 80))) for i in range(40)])
        c.executemany('insert into "order" values (%s, %s, %s, %s)', [(k, f'c{k % 37}', float(rng.gamma(2)), pd.Timestamp(2024, 1 + k % 6, 10, k % 24).to_pydatetime()) for k in range(300)])
    con.con.commit()
    url, before = f'postgresql://tester@/postgres?host={con.con.info.host}', sorted(con.list_tables())
    X = pd.DataFrame(dict(id=[f'c{i}' for i in range(40)], when='2024-05-01'))
    y = np.arange(40) % 2
    here, there = Database.open(url), InPlace.open(url)
    assert there.schema == here.schema and there.schema['order'].time_col == 'placed' and len(there.schema.fkeys) == 1
    a, b = (RelationalClassifier(d, 'customers', 'id', 'when', n_estimators=1).fit(X[:30], y[:30]) for d in (here, there))
    pd.testing.assert_frame_equal(*(m.feature_frame(X[30:]).astype(object) for m in (a, b)), rtol=1e-9)
    assert np.allclose(a.predict_proba(X[30:]), b.predict_proba(X[30:]), atol=1e-4) and sorted(con.list_tables()) == before
    assert there.ask('select count(*) as n from "order"').n[0] == 300
    for bad in ('drop table "order"', 'delete from "order" returning *', 'select 1; drop table "order"', 'with gone as (delete from "order" returning *) select * from gone', 'select * into copied from "order"'):
        with pytest.raises(InputError, match='A task is one query that reads, not '): there.ask(bad)
    assert sorted(con.list_tables()) == before
    assert con.table('order').count().execute() == 300
    con.disconnect()


def test_the_null_date_of_mysql_is_null_in_place(tmp_path):
    with sqlite3.connect(tmp_path/'t.db') as con:
        con.executescript('create table c (id integer primary key); create table v (cid integer references c, day text);')
        con.executemany('insert into c values (?)', [(i,) for i in range(4)])
        con.executemany('insert into v values (?, ?)', [(i % 4, f'2023-01-{1 + i:02}') for i in range(20)] + [(1, '0000-00-00'), (2, '0000-00-00 00:00:00')])
    con.close()
    db = Database.open(tmp_path/'t.db', time_col={'v': 'day'})
    plan = plan_features(db.schema, 'c', 1)
    at = [pd.Timestamp('2024-01-01')]*4
    there = sql_features(str(tmp_path/'t.db'), plan, np.arange(4), at)
    pd.testing.assert_frame_equal(there, compute_features(db, plan, np.arange(4), at))
    assert there['COUNT(v)'].tolist() == [5., 5., 5., 5.]


def _order_lines(path, kind):
    "An SQLite or DuckDB file of products, orders with a time and order lines without one"
    rng = np.random.default_rng(0)
    script = """create table products (sku varchar primary key, weight varchar); create table orders (oid integer primary key, placed varchar);
                create table items (iid integer primary key, oid integer references orders, sku varchar references products, price double);"""
    con = sqlite3.connect(path) if kind == 'sqlite' else pytest.importorskip('duckdb').connect(path)      # which would not let an order be missing
    for s in script.split(';')[:-1]: con.execute(s if kind == 'sqlite' else re.sub(r' references \w+', '', s))
    con.executemany('insert into products values (?, ?)', [(f'p{i}', f' {i}.{i}' if i % 11 else 'N/A') for i in range(1, 41)])
    con.executemany('insert into orders values (?, ?)', [(i, str(pd.Timestamp('2024-01-01') + pd.Timedelta(days=i))) for i in range(80)])
    con.executemany('insert into items values (?, ?, ?, ?)', [(i, None if i % 13 == 0 else int(rng.integers(90)), f'p{rng.integers(1, 41)}', float(rng.normal())) for i in range(300)])
    if kind == 'sqlite': con.commit()
    con.close()
    return str(path)


@pytest.mark.parametrize('kind', ['sqlite', 'duckdb'])
def test_lines_have_the_time_of_their_order_in_place_too(tmp_path, kind):
    path = _order_lines(tmp_path/'shop', kind)
    if kind == 'duckdb': keys = dict(fkey_col_to_pkey_table=dict(items={'oid': 'orders', 'sku': 'products'}))
    else: keys = {}
    times = dict(orders='placed', items='oid/placed', products=None)
    db, place = Database.open(path, time_col=times, **keys), InPlace.open(path, time_col=times, **keys)
    assert place.schema == db.schema and db.schema['items'].time_col == 'oid/placed'
    at, skus = pd.Timestamp('2024-02-01'), [f'p{i}' for i in range(1, 41)]
    for entity, rows in (('products', skus), ('items', [*range(0, 300, 7)])):
        plan, cutoffs = plan_features(db.schema, entity, 2), [at]*len(rows)
        here = compute_features(db, plan, db.row_of(entity, rows), cutoffs)
        pd.testing.assert_frame_equal(sql_features(path, plan, rows, cutoffs), here)
        if entity == 'products': pd.testing.assert_frame_equal(sql_features(path, plan, rows, cutoffs, before='2024-01-20'), compute_features(db.upto('2024-01-20'), plan, db.row_of(entity, rows), cutoffs))
    count = compute_features(db, plan_features(db.schema, 'products', 1), db.row_of('products', skus), [at]*40)['COUNT(items)']
    frame, placed = db.table_dict['items'], db.table_dict['orders'].set_index('oid').placed
    assert count.tolist() == frame[frame.oid.map(placed) < at].groupby('sku').size().reindex(skus, fill_value=0).tolist()
    assert place.time_span('items') is not None


@pytest.mark.parametrize('kind', ['sqlite', 'duckdb'])
def test_numbers_written_as_text_are_numbers_in_place_too(tmp_path, kind):
    path = _order_lines(tmp_path/'shop', kind)
    db, place = Database.open(path), InPlace.open(path)
    assert db.schema['products']['weight'].kind == place.schema['products']['weight'].kind == 'number'
    plan, skus = plan_features(db.schema, 'products', 0), [f'p{i}' for i in range(1, 41)]
    here, there = compute_features(db, plan, db.row_of('products', skus)), sql_features(path, plan, skus)
    pd.testing.assert_frame_equal(there, here)
    assert here.weight.isna().sum() == 3 and here.weight.iloc[0] == 1.1


@pytest.mark.parametrize('kind', ['sqlite', 'duckdb'])
@pytest.mark.parametrize('form', ['%Y%m%d', '%Y%m%d %H:%M', '%Y/%m/%d'])
def test_iso_without_hyphens_is_the_same_time_in_place(tmp_path, kind, form):
    path = tmp_path/'a.db'
    with (sqlite3.connect(path) if kind == 'sqlite' else pytest.importorskip('duckdb').connect(path)) as con:
        con.execute('create table c (id integer primary key)'); con.execute('create table v (id integer primary key, c integer, day varchar)')
        con.executemany('insert into c values (?)', [(i,) for i in range(3)])
        con.executemany('insert into v values (?, ?, ?)', [(i, i % 3, (pd.Timestamp('2024-01-01') + pd.Timedelta(days=i)).strftime(form)) for i in range(30)])
    con.close()
    db = Database.open(path, fkey_col_to_pkey_table=dict(v={'c': 'c'}), pkey_col=dict(c='id', v='id'))
    assert db.schema['v'].time_col == 'day'
    plan, cutoffs = plan_features(db.schema, 'c', 1), [pd.Timestamp('2024-01-11')]*3
    here = compute_features(db, plan, np.arange(3), cutoffs)
    pd.testing.assert_frame_equal(sql_features(str(path), plan, np.arange(3), cutoffs), here)
    assert here['COUNT(v)'].tolist() == [4., 3., 3.]


@pytest.mark.parametrize('kind', ['sqlite', 'duckdb'])
def test_times_that_are_lent_in_a_circle_or_by_oneself(tmp_path, kind):
    path = tmp_path/'a.db'
    with (sqlite3.connect(path) if kind == 'sqlite' else pytest.importorskip('duckdb').connect(path)) as con:
        con.execute('create table a (id integer primary key, b integer, placed varchar)'); con.execute('create table b (id integer primary key, a integer)')
        con.execute('create table emp (id integer primary key, boss integer, hired varchar)')
        con.executemany('insert into a values (?, ?, ?)', [(i, i % 4, f'2024-01-1{i}') for i in range(6)])
        con.executemany('insert into b values (?, ?)', [(i, i + 1) for i in range(4)])
        con.execute("insert into emp values (1, null, '2024-01-01'), (2, 1, '2024-02-01')")
    con.close()
    keys = dict(pkey_col=dict(a='id', b='id', emp='id'), fkey_col_to_pkey_table=dict(a={'b': 'b'}, b={'a': 'a'}, emp={'boss': 'emp'}))
    times = dict(a='b/a/placed', b='a/placed', emp=None)
    db, place = Database.open(path, time_col=times, **keys), InPlace.open(path, time_col=times, **keys)
    plan, cutoffs = plan_features(db.schema, 'a', 2), [pd.Timestamp('2024-01-13')]*6
    pd.testing.assert_frame_equal(sql_features(str(path), plan, np.arange(6), cutoffs), compute_features(db, plan, np.arange(6), cutoffs))
    for source in (Database, InPlace):
        with pytest.raises(InputError, match="no column 'boss/hired' in table 'emp'"): source.open(path, time_col=dict(times, emp='boss/hired'), **keys)


def test_a_copy_of_a_hidden_time_is_hidden_too():
    frames = dict(orders=pd.DataFrame(dict(oid=[1, 2], placed=['2024-01-01', '2024-02-01'], shipped=['2024-01-05', '2024-03-01'])), items=pd.DataFrame(dict(oid=[1, 2], v=[1., 2.])), notes=pd.DataFrame(dict(oid=[1, 2])))
    keys = dict(pkey_col=dict(orders='oid'), fkey_col_to_pkey_table=dict(items={'oid': 'orders'}, notes={'oid': 'orders'}))
    db = Database.open(frames, **keys, time_col=dict(orders='placed', items='oid/shipped', notes='oid/placed'))
    told = lambda **hide: [n for n in plan_features(db.schema, 'orders', 2, **hide).names if 'shipped' in n]
    assert told() and told(target=('orders', 'shipped')) == told(mask=('shipped',)) == [] and any('oid/placed' in n for n in plan_features(db.schema, 'orders', 2, mask='shipped').names)


def test_the_sql_of_a_lent_time_runs_where_the_table_has_no_such_column(tmp_path):
    path = _order_lines(tmp_path/'shop', 'duckdb')
    with pytest.importorskip('duckdb').connect(path) as con: con.execute('alter table orders alter placed type timestamp')
    place = InPlace.open(path, time_col=dict(orders='placed', items='oid/placed', products=None), pkey_col=dict(products='sku', orders='oid', items='iid'), fkey_col_to_pkey_table=dict(items={'oid': 'orders', 'sku': 'products'}))
    plan = plan_features(place.schema, 'products', 1).select(['COUNT(items)'])
    at = pd.Timestamp('2024-02-01')
    with pytest.importorskip('duckdb').connect(path) as con:
        con.execute('create temp table rows as select row_number() over () - 1 as pid, ?::bigint as cut, sku as key0 from products', [at.value])
        found = con.execute(plan.sql('COUNT(items)')).df().sort_values('pid')
        skus = [s for s, in con.execute('select key0 from rows order by pid').fetchall()]
    assert found['COUNT(items)'].tolist() == sql_features(path, plan, skus, [at]*40)['COUNT(items)'].tolist()
