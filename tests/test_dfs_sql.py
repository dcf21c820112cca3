"Features computed in databases: the same as in memory, in whatever holds the tables, blind to the future, and nothing is written."
import hashlib, os, shutil, subprocess
from pathlib import Path
import ibis, numpy as np, pandas as pd, pyarrow as pa, pytest
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.aggregates import feature_set
from rdbpfn.dfs import featuretools_features, plan_features
from rdbpfn.dfs_sql import sql_features
from rdbpfn.dfs_tensor import compute_features
from rdbpfn.examples import flights, load_task, shop
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
        else: con.create_table(t, stored(db, t))
    return con

def fill_sqlite(con, name, table, info):
    "SQLite has no times and no truth values: text and 0 or 1, with the types that people declare"
    def declared(c, x): return dict(datetime='TIMESTAMP', number='REAL', boolean='BOOLEAN').get(c.kind) or ('INTEGER' if pa.types.is_integer(x.type) else 'REAL' if pa.types.is_floating(x.type) else 'TEXT')
    def value(v): return int(v) if isinstance(v, bool) else str(v) if hasattr(v, 'isoformat') else v
    con.execute(f"create table {quoted(name)} ({', '.join(f'{quoted(c.name)} {declared(c, table[c.name])}' for c in info.columns)})")
    con.executemany(f"insert into {quoted(name)} values ({', '.join('?'*len(info.columns))})", [[value(v) for v in r.values()] for r in table.to_pylist()])
    con.commit()

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

def test_spark_in_place(tmp_path):
    sql = pytest.importorskip('pyspark.sql', reason="needs pyspark: pip install 'rdbpfn[spark]'")
    if not shutil.which('java'): pytest.skip('Spark needs Java')
    kinds = dict(number=sql.types.DoubleType(), boolean=sql.types.BooleanType(), datetime=sql.types.TimestampType())
    options = {'spark.ui.enabled': 'false', 'spark.sql.warehouse.dir': str(tmp_path), 'spark.sql.session.timeZone': 'UTC', 'spark.sql.shuffle.partitions': '1'}
    builder = sql.SparkSession.builder.master('local[1]')
    for k, v in options.items(): builder = builder.config(k, v)
    session, db = builder.getOrCreate(), by_key(shop())
    for t in db.schema.names:
        table = stored(db, t)
        fields = [sql.types.StructField(c.name, kinds.get(c.kind) or (sql.types.LongType() if pa.types.is_integer(table[c.name].type) else sql.types.StringType())) for c in db.schema[t].columns]
        session.createDataFrame([tuple(r.values()) for r in table.to_pylist()], sql.types.StructType(fields)).createOrReplaceTempView(t)
    plan = plan_features(db.schema, 'customers', 1, aggs=feature_set('full', (30,)))
    plan = plan.select([n for n in plan.names if 'recipient' not in n and 'referred' not in n])
    rows, cutoffs = np.arange(5), MARCH.repeat(5)
    same(sql_features(ibis.pyspark.connect(session), plan, keys_of(db, plan, rows), cutoffs), compute_features(db, plan, rows, cutoffs))
    session.stop()

def test_flights_in_sql():
    db, task = flights(), load_task('flight-late15')
    some = task.test.sample(40, random_state=1)
    rows, cutoffs = db.row_of(task.entity_table, some[task.entity_col]), some[task.time_col]
    plan = plan_features(db.schema, task.entity_table, mask=task.mask, aggs=feature_set('full', (7, 30)))
    same(sql_features(db, plan, rows, cutoffs), compute_features(db, plan, rows, cutoffs))

# the future

@pytest.mark.parametrize('seed', range(6))
def test_the_future_changes_nothing_in_sql(seed):
    db, other, plan, rows, cutoffs = past_and_future(seed, 60)
    identical(sql_features(db, plan, rows, cutoffs), sql_features(other, plan, rows, cutoffs))

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

def test_times_of_every_kind():
    "The same moments as timestamps of three precisions, with a zone, as dates and as text; what is out of range is no time"
    con, want = ibis.duckdb.connect(), [0, 1, 1]
    for kind in ('timestamp', 'timestamp_ns', 'timestamp_s', 'timestamptz', 'date', 'varchar'):
        con.raw_sql('create or replace table p as select 1 as id')
        con.raw_sql("create or replace table c as select * from (values (1, 1, '2020-01-02'::{0}), (2, 1, null)) t(id, p, time)".format(kind))
        db = Database.from_frames({'p': pd.DataFrame({'id': [1]}), 'c': pd.DataFrame({'id': [1], 'p': [1], 'time': DAYS[:1]})}, {'p': 'id', 'c': 'id'}, {'c': {'p': 'p'}}, {'c': 'time'})
        at = pd.to_datetime(['2020-01-02', '2020-01-02', '2020-01-03']) + pd.to_timedelta([0, 1, 0], 'ns')
        assert sql_features(con, plan_features(db.schema, 'p').select(['COUNT(c)']), [1, 1, 1], at)['COUNT(c)'].tolist() == want, kind
    con.raw_sql("create or replace table c as select 1 as id, 1 as p, timestamp '3020-01-01' as time")
    assert sql_features(con, plan_features(db.schema, 'p').select(['COUNT(c)']), [1], at[:1])['COUNT(c)'].tolist() == [0]

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
    ("alter table orders alter paid type varchar using 'much'", 'could not compute the features')])
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

@pytest.mark.parametrize('source', ['postgresql://anna:s3cret@127.0.0.1:1/shop', 'nosuch://anna:s3cret@host/shop', 'no/such/file.db'])
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

def test_the_sql_of_a_feature_runs_as_it_stands(shop_in_duckdb):
    "Paste it into a console with a table `rows`: the same number"
    db = shop()
    plan = plan_features(db.schema, 'customers', aggs=feature_set('full', (30,)))
    shop_in_duckdb.create_table('rows', pd.DataFrame({'pid': [0], 'cut': MARCH.astype('int64'), 'key0': ['ada']}))
    want = compute_features(db, plan, [0], MARCH)
    for name in ('COUNT(orders[customer_id])', 'LAST(orders[customer_id].channel)', 'SHARE(orders[customer_id].channel)', 'MEAN(orders[customer_id].COUNT(items))', 'customers[referred_by].age', 'COUNT_30D(orders[customer_id])'):
        got = shop_in_duckdb.raw_sql(plan.sql(name)).fetchall()[0][1]
        assert got == want[name][0] or pd.isna(want[name][0]) and got is None, name

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
