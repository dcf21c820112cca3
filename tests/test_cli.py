"""The command line as a user meets it: right answers from several kinds of databases, one sentence for every kind of bad input."""
import os, sqlite3, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from typer.testing import CliRunner
from rdbpfn.ask import PARAMETERS, Answered, Asked, estimator, open_database
from rdbpfn.classifier import RDBPFNClassifier
from rdbpfn.cli import app
from rdbpfn.database import Database
from rdbpfn.ensemble import POLICIES
from rdbpfn.relational import RelationalClassifier, RelationalRegressor
from rdbpfn.storage import read_parts


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr.strip().splitlines(), done.stdout


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    "A busy machine must not add lines of progress to what is compared"
    monkeypatch.setattr('rdbpfn.ask.PATIENCE', 1e4)


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A small database with text keys that look like numbers, as SQLite, with context and query files"
    d, rng = tmp_path_factory.mktemp('shop'), np.random.default_rng(0)
    ids = [f'{i:03d}' for i in range(40)]
    with sqlite3.connect(d/'shop.db') as con:
        con.execute('create table customers (id text primary key, age real, active boolean)')
        con.execute('create table "order" (oid integer primary key, customer text references customers(id), amount real, day timestamp)')
        con.executemany('insert into customers values (?, ?, ?)', [(i, float(rng.integers(18, 80)), int(i) % 3 == 0) for i in ids])
        con.executemany('insert into "order" values (?, ?, ?, ?)', [(k, ids[k % 40], float(rng.gamma(2)), f'2024-{1 + k % 6:02d}-10') for k in range(300)])
    con.close()
    rows = pd.DataFrame(dict(id=ids, when='2024-05-01', label=[int(i) % 2 for i in ids]))
    rows[:30].to_csv(d/'known.csv', index=False); rows[30:].drop(columns='label').to_csv(d/'asked.csv', index=False)
    return d


def options(d, **new):
    o = dict(db=f'sqlite:///{d}/shop.db', entity='customers.id', context=d/'known.csv', query=d/'asked.csv', target='label', time='when', out=d/'out.csv') | new
    return [a for k, v in o.items() if v is not None for a in ((f"--{k.replace('_', '-')}",) if v is True else (f"--{k.replace('_', '-')}", v))]


def read(path): return pd.read_parquet(path) if path.suffix == '.parquet' else pd.read_csv(path, dtype={'id': str})

def fitted(d, kind=RelationalClassifier, **more):
    known = read(d/'known.csv')
    return kind(f'sqlite:///{d}/shop.db', 'customers', 'id', 'when', **more).fit(known, known.label)

def told(out): return dict(line.rsplit(None, 1) for line in out.splitlines() if not line.startswith(' '))


@pytest.fixture(scope='module')
def saved(shop, tmp_path_factory):
    "An estimator that predict has fitted and saved, with options off their defaults"
    path = tmp_path_factory.mktemp('saved')/'shop.rdbpfn'
    code, err, _ = run('predict', *options(shop, save=path, out=path.with_name('out.csv'), estimators=2, depth=1, features='recent', context_policy='recency', label_delay='7D', mask=' age,active ', regime='frozen'))
    assert code == 0, err
    return path


def test_predict_from_sqlite_equals_the_estimator(shop):
    code, err, out = run('predict', *options(shop))
    assert code == 0 and not err, err
    got, asked, model = read(shop/'out.csv'), read(shop/'asked.csv'), fitted(shop)
    assert got.id.tolist() == asked.id.tolist() and got.when.tolist() == asked.when.tolist()
    assert np.allclose(got.probability_1, model.predict_proba(asked)[:, 1], atol=1e-5) and np.allclose(got.probability_0 + got.probability_1, 1)
    assert (got.prediction == (got.probability_1 > .5)).all()
    said = told(out)
    assert said.pop('always visible:') == 'customers'                  # the only table without a time
    assert said.pop('predictions') == str(shop/'out.csv') and float(said.pop('seconds')) > 0
    assert said == {'questions': '10'} | {k.replace('_', ' '): str(v) for k, v in model.used_.items()}


def test_regression_gives_mean_median_and_interval(shop, tmp_path):
    code, err, _ = run('predict', *options(shop, regression=True, out=tmp_path/'out.parquet', context='select id, date \'2024-05-01\' as "when", age as label from customers', mask='age'))
    assert code == 0, err
    got, asked = read(tmp_path/'out.parquet'), read(shop/'asked.csv')
    known = pd.DataFrame(dict(id=[f'{i:03d}' for i in range(40)], when='2024-05-01', label=open_database(f'sqlite:///{shop}/shop.db').table_dict['customers'].age))
    model = RelationalRegressor(f'sqlite:///{shop}/shop.db', 'customers', 'id', 'when', mask=('age',)).fit(known, known.label)
    assert np.allclose(got.prediction, model.predict(asked)) and np.allclose(got[['low', 'median', 'high']], model.predict_quantiles(asked, (.1, .5, .9)))
    assert (got.low < got.high).all() and got['median'].between(got.low, got.high).all() and len(got) == 10


SQL = """select id, timestamp '2024-05-01' as "when" from customers where id >= '030' order by id"""

def test_a_query_and_every_kind_of_file_mean_the_same(shop, tmp_path):
    (tmp_path/'asked.sql').write_text(f'-- ten customers\n{SQL};')
    read(shop/'asked.csv').to_parquet(tmp_path/'asked.parquet')
    got = {}
    for source in (shop/'asked.csv', SQL, '\n ' + SQL.replace('select', 'Select'), f'WITH rows AS ({SQL}) SELECT * FROM rows', f"from ({SQL})", tmp_path/'asked.sql', tmp_path/'asked.parquet'):
        code, err, _ = run('predict', *options(shop, query=source, out=tmp_path/'out.csv'))
        assert code == 0, (source, err)
        got[str(source)] = read(tmp_path/'out.csv')
    first = got[str(shop/'asked.csv')]
    assert all(g.id.equals(first.id) and np.allclose(g.probability_1, first.probability_1, atol=1e-6) for g in got.values())


def test_a_label_named_like_a_column_is_kept_out_of_the_features(shop, tmp_path):
    known = read(shop/'known.csv').rename(columns=dict(label='active'))
    known.to_csv(tmp_path/'known.csv', index=False)
    code, err, _ = run('predict', *options(shop, context=tmp_path/'known.csv', target='active', save=tmp_path/'m.rdbpfn', out=tmp_path/'out.csv'))
    assert code == 0, err
    assert 'active' not in RelationalClassifier.load(tmp_path/'m.rdbpfn').plan_.names and 'active' in fitted(shop).plan_.names


def test_options_reach_the_estimator_and_defaults_are_its_own(shop, saved, tmp_path):
    model = RelationalClassifier.load(saved)
    got = {k: getattr(model, k) for k in ('n_estimators', 'max_depth', 'context', 'mask', 'entity_table', 'entity_col', 'time_col')}
    assert got == dict(n_estimators=2, max_depth=1, context='recency', mask=('age', 'active'), entity_table='customers', entity_col='id', time_col='when')
    assert pd.Timedelta(model.label_delay) == pd.Timedelta('7D') and model.frozen_at_ == np.datetime64('2024-05-01') and any('LAST' in n for n in model.plan_.names)
    plain = estimator(Asked(query='', out=shop/'x.csv'), open_database(f'sqlite:///{shop}/shop.db'), 'customers', 'id')
    said = dict(time='when', cache=Path('kept'), depth=3, features='full', regime='frozen', label_delay='7D', estimators=5, context_policy='recent', weights=Path('w.safetensors'), device='cpu')
    params = estimator(Answered(query='', out=shop/'x.csv', **said), plain.database, 'customers', 'id').get_params()
    assert list(said) == list(PARAMETERS) and all(params[PARAMETERS[o]] == v for o, v in said.items())
    theirs = RelationalClassifier(None, None).get_params()
    assert {k for k, v in plain.get_params().items() if v != theirs[k]} == {'database', 'entity_table', 'entity_col'}


def test_a_saved_estimator_answers_without_its_rows(shop, saved, tmp_path):
    code, err, out = run('predict', *options(shop, db=None, entity=None, context=None, target=None, time=None, load=saved, out=tmp_path/'again.csv'))
    assert code == 0 and told(out)['questions read'] == '30', err
    assert np.allclose(read(tmp_path/'again.csv').probability_1, read(saved.with_name('out.csv')).probability_1, atol=1e-4)
    with sqlite3.connect(shop/'shop.db') as a, sqlite3.connect(tmp_path/'other.db') as b: a.backup(b); b.execute('delete from "order"')
    a.close(); b.close()
    code, err, _ = run('predict', '--load', saved, '--db', tmp_path/'other.db', '--query', SQL, '--out', tmp_path/'other.csv')
    assert code == 0 and not np.allclose(read(tmp_path/'other.csv').probability_1, read(tmp_path/'again.csv').probability_1, atol=1e-4), err


@pytest.mark.parametrize('preset, cores, gpus, processes, workers', [('tiny', 1, 0, 1, 0), ('tiny', 5, 0, 2, 0), ('gpu', 6, 0, 4, 0), ('gpu', 16, 3, 2, 7), ('gpu', 16, 8, 8, 1), ('paper', 16, 1, 1, 15)])
def test_pretrain_starts_as_many_processes_as_share_a_step(tmp_path, monkeypatch, preset, cores, gpus, processes, workers):
    import torch
    started = []
    for name in ('RANK', 'LOCAL_WORLD_SIZE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('os.sched_getaffinity', lambda _: range(cores))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr('rdbpfn.workshop.relaunch', lambda n, arguments: started.append((n, int(arguments[arguments.index('--workers') + 1]))))
    code, err, _ = run('pretrain', '--preset', preset, '--out', tmp_path/'run')
    assert code == 0 and started == [(processes, workers)], err


def test_columns_that_nobody_asks_about_are_passed_on_as_written(shop, tmp_path):
    asked = ['id,when,zip,note', '031,2024-05-01,00501,NA', '032,2024-05-01,10001,', '033,2024-05-01,1.50,x']
    (tmp_path/'asked.csv').write_text('\n'.join(asked) + '\n')
    code, err, _ = run('predict', *options(shop, query=tmp_path/'asked.csv', out=tmp_path/'out.csv'))
    assert code == 0, err
    assert [line.split(',')[:4] for line in (tmp_path/'out.csv').read_text().splitlines()[1:]] == [line.split(',') for line in asked[1:]]


def test_two_options_may_not_name_one_file(shop, tmp_path):
    code, err, _ = run('features', *options(shop, context=None, target=None, out=tmp_path/'x.csv', describe=tmp_path/'x.csv'))
    assert code == 2 and len(err) == 1 and "--out and --describe both name" in err[0] and not (tmp_path/'x.csv').exists(), err


def test_explain_does_not_write_over_a_key(tmp_path):
    from rdbpfn.database import Database
    countries = pd.DataFrame(dict(name=[f'c{i}' for i in range(40)], size=range(40)))
    Database.from_frames({'countries': countries}, pkey_col={'countries': 'name'}).to_folder(tmp_path/'db')
    countries[['name']].assign(label=[0, 1]*20).to_csv(tmp_path/'known.csv', index=False)
    code, err, _ = run('explain', '--db', tmp_path/'db', '--entity', 'countries.name', '--context', tmp_path/'known.csv', '--query', tmp_path/'known.csv', '--target', 'label', '--out', tmp_path/'why.csv')
    assert code == 2 and "both called 'name'" in err[-1] and not (tmp_path/'why.csv').exists(), err


def test_a_password_is_not_saved(shop, tmp_path):
    here = Path().resolve()
    for url, kept in (('postgresql://me:secret@host/db', False), ('snowflake://host/db?password=secret', False), ('databricks://h?access_token=secret', False), ('md:x?motherduck_token=secret', False), ('mssql+pyodbc:///?odbc_connect=PWD%3Dsecret', False), ('duckdb:///shop.db', f'duckdb:///{here}/shop.db'), ('sqlite:////x/shop.db', 'sqlite:////x/shop.db'), ('a@b.db', f'{here}/a@b.db'), ('md:x', None)):
        about, _ = read_parts(fitted(shop).set_params(database=url).save(tmp_path/'m.rdbpfn'), ('RelationalClassifier',))
        assert about['relational']['database'] == (kept or None) and b'secret' not in (tmp_path/'m.rdbpfn').read_bytes()


def test_in_place_and_kept_features_give_the_same_answers(shop, tmp_path):
    "By queries, from a cache, and with a query that the place itself runs: what memory says"
    given = dict(estimators=1, depth=1)
    sql = "select id, '2024-05-01 00:00:00' as \"when\" from customers where id >= '030' order by id"
    for name, more in dict(memory={}, place=dict(in_place=True), kept=dict(cache=tmp_path/'kept'), again=dict(cache=tmp_path/'kept'), asked=dict(in_place=True, query=sql)).items():
        code, err, _ = run('predict', *options(shop, out=tmp_path/f'{name}.csv', save=tmp_path/f'{name}.rdbpfn', **given | more))
        assert code == 0, err
        assert np.allclose(read(tmp_path/f'{name}.csv').probability_1, read(tmp_path/'memory.csv').probability_1, atol=1e-4), name
    assert len(list((tmp_path/'kept').iterdir())) == 2
    code, err, _ = run('predict', '--load', tmp_path/'place.rdbpfn', '--in-place', '--query', shop/'asked.csv', '--out', tmp_path/'loaded.csv')
    assert code == 0 and np.allclose(read(tmp_path/'loaded.csv').probability_1, read(tmp_path/'memory.csv').probability_1, atol=1e-4), err
    for command in ('features', 'explain'):
        code, err, _ = run(command, *options(shop, in_place=True, depth=1, out=tmp_path/'x.csv', **dict(context=None, target=None) if command == 'features' else {}))
        assert code == 0, err


def test_features_are_those_of_the_estimator(shop, tmp_path):
    model, asked = fitted(shop, max_depth=1, features='recent', mask=('age',)), read(shop/'asked.csv')
    asked.assign(extra=1).to_csv(tmp_path/'asked.csv', index=False)
    for out in (tmp_path/'x.csv', tmp_path/'x.parquet'):
        code, err, said = run('features', *options(shop, query=tmp_path/'asked.csv', context=None, target=None, depth=1, features='recent', mask='age', out=out, describe=tmp_path/'about.csv'))
        assert code == 0, err
        x, about, want = read(out), pd.read_csv(tmp_path/'about.csv'), model.feature_frame(asked)
        assert list(x) == ['id', 'when', *want] and x[['id', 'when']].equals(asked) and np.allclose(x[want.columns].astype(float), want.astype(float), equal_nan=True)
    assert about.feature.tolist() == list(want) and about[['meaning', 'path']].equals(model.describe_features()[['meaning', 'path']]) and about.sql.str.startswith('SELECT').all()
    said = told(said)
    assert {k: said[k] for k in ('questions', 'tables', 'paths', 'features')} == {'questions': '10'} | {k: str(model.used_[k]) for k in ('tables', 'paths', 'features')}


def test_explanations_are_those_of_the_estimator(shop, tmp_path):
    model, asked = fitted(shop), read(shop/'asked.csv')
    for by, out in (('path', tmp_path/'why.csv'), ('table', tmp_path/'why.parquet')):
        code, err, said = run('explain', *options(shop, by=by, out=out, plot=tmp_path/f'{by}.png'))
        assert code == 0, err
        got, want = read(out), model.explain(asked, by)
        assert list(got) == ['id', 'when', 'prediction', 'score', 'kind', 'name', 'value', 'effect'] and len(got) == 10*(want.groups.shape[1] + want.features.shape[1])
        for kind, table in (('group', want.groups), ('feature', want.features)):
            part = got[got.kind == kind]
            assert np.allclose(part.pivot(index='id', columns='name', values='effect')[list(table)], table, atol=1e-4)
        values = part.pivot(index='id', columns='name', values='value')
        assert np.allclose(values.age.astype(float), want.values.age.astype(float)) and got[got.kind == 'group'].value.isna().all()
        assert np.allclose(got.drop_duplicates('id').score, want.score, atol=1e-4) and got.drop_duplicates('id').prediction.tolist() == model.predict(asked).tolist()
        assert want.top(n=1).feature[0] in said and want.groups.abs().mean().idxmax() in said and want.what in said
        assert (tmp_path/f'{by}.png').read_bytes()[:4] == b'\x89PNG'


def test_long_work_speaks_on_stderr_only(shop, monkeypatch):
    monkeypatch.setattr('rdbpfn.ask.PATIENCE', 0)
    code, err, out = run('predict', *options(shop))
    assert code == 0 and 'Reading 30 labelled rows ...' in err and 'Answering 10 questions ...' in err and '...' not in out


def test_what_the_database_warns_of_is_a_line(tmp_path, shop):
    with sqlite3.connect(tmp_path/'dates.db') as con:
        con.execute('create table customers (id text primary key, born timestamp, joined timestamp)'); con.executemany('insert into customers values (?, ?, ?)', [(f'{i:03d}', '1990-01-01', '2020-01-01') for i in range(40)])
    con.close()
    code, err, _ = run('features', *options(shop, db=tmp_path/'dates.db', context=None, target=None, time=None, out=tmp_path/'x.csv'))
    assert code == 0 and len(err) == 1 and err[0].startswith("note: Table 'customers' has several columns of dates"), err


@pytest.fixture
def visits(tmp_path, shop):
    "40 customers with a visit in January and one in March, as SQLite files and folders in which times are told well and badly"
    def make(declared, *days, end='.db'):
        path = tmp_path/f'visits{len(list(tmp_path.iterdir()))}{end}'
        ids, names = [f'{i:03d}' for i in range(40)], [d.split()[0] for d in declared.split(', ')]
        if end == '':
            (path/'db').mkdir(parents=True)
            pd.DataFrame(dict(id=ids, age=range(40))).to_parquet(path/'db'/'customers.parquet')
            pd.DataFrame([(f'{i}{k}', i, *day) for i in ids for k, day in enumerate(days)], columns=['vid', 'customer', *names]).to_parquet(path/'db'/'visits.parquet')
            (path/'schema.json').write_text('{"customers": {"pk": "id"}, "visits": {"pk": "vid", "fk": {"customer": ["customers", "id"]}}}')
            return path
        with sqlite3.connect(path) as con:
            con.execute('create table customers (id text primary key, age real)'); con.executemany('insert into customers values (?, ?)', [(i, int(i)) for i in ids])
            con.execute(f'create table visits (vid integer primary key, customer text references customers(id), {declared})')
            con.executemany(f"insert into visits (customer, {', '.join(names)}) values (?{', ?'*len(names)})", [(i, *day) for i in ids for day in days])
        con.close()
        return path
    return make

def counted(shop, path, out, **new):
    "What `features` says, and how many visits it counts as of 1 February"
    asked = """select id, timestamp '2024-02-01' as "when" from customers"""
    code, err, said = run('features', *options(shop, db=path, query=asked, context=None, target=None, features='paper', out=out, **new))
    return code, err, said, read(out)['COUNT(visits)'].unique().tolist() if out.exists() else None

@pytest.mark.parametrize('declared', ['text', 'varchar(20)', '', 'date', 'timestamptz'])
def test_later_rows_are_not_counted_whatever_dates_are_declared_as(visits, shop, tmp_path, declared):
    code, err, said, n = counted(shop, visits(f'day {declared}', ('2024-01-01',), ('2024-03-01',)), tmp_path/'x.csv')
    assert (code, err, n) == (0, [], [1.]) and said.splitlines()[-1] == 'always visible: customers'

def test_times_that_are_none_end_in_a_sentence(visits, shop, tmp_path):
    for days, words in (((('2024-01-01 10:00:00',), ('2024-03-01 10:00:00+02:00',)), 'visits.day has a time zone on 40 of its 80 times'), ((('2024-01-01',), ('soon',)), "such as 'soon'"), ((('01/01/2024',), ('03/01/2024',)), "such as '01/01/2024'")):
        path = visits('day timestamp', *days)
        code, err, said, n = counted(shop, path, tmp_path/'x.csv')
        assert (code, len(err), said, n) == (2, 1, '', None) and words in err[0] and '--times' in err[0], err
        code, err, said, n = counted(shop, path, tmp_path/'y.csv', times='visits.')
        assert (code, err, n) == (0, [], [2.]) and said.splitlines()[-1] == 'always visible: customers, visits'
        (tmp_path/'y.csv').unlink()

@pytest.mark.parametrize('end', ['.db', ''])
def test_an_unclear_time_is_named_or_refused(visits, shop, tmp_path, end):
    path = visits('day text, paid text', ('2024-01-01', '2024-02-03'), ('2024-03-01', '2024-03-03'), end=end)
    code, err, _, n = counted(shop, path, tmp_path/'x.csv')
    assert (code, len(err), n) == (2, 2, None) and err[0].startswith("note: Table 'visits' has several columns of dates (day, paid)") and err[1].startswith("rdbpfn: Table 'visits' has several columns of dates (day, paid), and nothing says which one is its time") and '--times visits.day' in err[1]
    for times, want, always in (('visits.day', 1, 'customers'), (' visits.paid ', 0, 'customers'), ('customers.,visits.', 2, 'customers, visits')):
        code, err, said, n = counted(shop, path, tmp_path/'x.csv', times=times)
        assert (code, err, n) == (0, [], [want]) and said.splitlines()[-1] == f'always visible: {always}', err
    code, err, said, n = counted(shop, path, tmp_path/'x.csv', time=None)
    assert code == 0 and n == [2] and said.splitlines()[-1] == 'always visible: all tables, since the questions have no time (--time)'

def test_rows_that_are_seen_before_what_they_refer_to_are_told_of(visits, shop, tmp_path):
    path = visits('day text', ('2024-01-01',), ('2024-03-01',))
    with sqlite3.connect(path) as con:
        con.execute('create table tests (id integer primary key, visit integer references visits, patient text references customers)')
        con.execute('insert into tests select vid, vid, customer from visits')
    con.close()
    asked, n = """select id, '2024-02-01' as "when" from customers""", lambda out: read(out)['COUNT(tests)'].unique().tolist()
    code, err, _ = run('features', *options(shop, db=path, query=asked, context=None, target=None, time='when', out=tmp_path/'a.csv'))
    assert code == 0 and n(tmp_path/'a.csv') == [2.] and err == ["note: Table 'tests' has no time, so its rows are seen before the rows of 'visits' that they refer to: if that is not meant, give it theirs, time_col={'tests': 'visit/day'} or --times tests.visit/day."], err
    for where in ((), ('--in-place',)):
        code, err, said = run('features', *options(shop, db=path, query=asked, context=None, target=None, time='when', times='tests.visit/day', out=tmp_path/'b.csv'), *where)
        assert code == 0 and not err and n(tmp_path/'b.csv') == [1.] and said.splitlines()[-1] == 'always visible: customers', err

def test_labels_are_read_as_they_are_written(shop, tmp_path):
    for labels, want in ((('001', '1', '002'), ['001', '002', '1']), (('1', '2', '2'), ['1', '2']), (('True', 'False', 'True'), ['False', 'True'])):
        read(shop/'known.csv').assign(label=[labels[i % 3] for i in range(30)]).to_csv(tmp_path/'known.csv', index=False)
        code, err, _ = run('predict', *options(shop, context=tmp_path/'known.csv', out=tmp_path/'out.csv'))
        assert code == 0 and [c.removeprefix('probability_') for c in read(tmp_path/'out.csv') if c.startswith('probability_')] == want, (err, want)

def test_kinds_are_told(visits, shop, tmp_path):
    path = visits('day text, code integer', ('2024-01-01', 7), ('2024-01-02', 8))
    given = dict(db=path, query="select id, '2024-02-01' as \"when\" from customers", context=None, target=None, time='when')
    for where in ((), ('--in-place',)):
        for kinds, there in ((None, 'MEAN(visits.code)'), ('visits.code=category', 'MODE(visits.code)'), ('customers.age=text, visits.code=category', 'MODE(visits.code)')):
            code, err, _ = run('features', *options(shop, **given, kinds=kinds, out=tmp_path/'x.csv'), *where)
            found = [*read(tmp_path/'x.csv')]
            assert code == 0 and not err and there in found and (kinds is None) == ('MEAN(visits.code)' in found) and ('age' in found) == (kinds is None or 'age' not in kinds), (err, found)
    for kinds, words in (('visits.code', 'must read TABLE.COLUMN=KIND'), ('visits.cod=text', "did you mean 'code'"), ('visits.code=txt', "kind 'txt'"), ('visit.code=text', "did you mean 'visits'")):
        code, err, _ = run('features', *options(shop, **given, kinds=kinds, out=tmp_path/'y.csv'))
        assert code == 2 and words in err[-1] and not (tmp_path/'y.csv').exists(), err

def test_a_cache_has_no_use_in_place(shop, tmp_path):
    code, err, _ = run('features', *options(shop, in_place=True, cache=tmp_path/'kept', context=None, target=None, out=tmp_path/'x.csv'))
    assert code == 2 and '--cache would be ignored with --in-place' in err[-1] and not (tmp_path/'kept').exists(), err

@pytest.mark.parametrize('taken', ['prediction', 'low'])
def test_a_column_of_the_query_is_not_overwritten_by_numbers(shop, tmp_path, taken, monkeypatch):
    read(shop/'asked.csv').assign(**{taken: 'mine'}).to_csv(tmp_path/'asked.csv', index=False)
    monkeypatch.setattr('rdbpfn.cli.answers', lambda *a: pytest.fail('it is said before anything is computed'))
    code, err, _ = run('predict', *options(shop, regression=True, query=tmp_path/'asked.csv', out=tmp_path/'out.csv'))
    assert code == 2 and f"both called '{taken}'" in err[-1] and not (tmp_path/'out.csv').exists()

def test_a_column_of_the_query_is_not_overwritten(shop, tmp_path):
    read(shop/'asked.csv').assign(prediction='mine').to_csv(tmp_path/'asked.csv', index=False)
    code, err, _ = run('predict', *options(shop, query=tmp_path/'asked.csv', out=tmp_path/'out.csv'))
    assert code == 2 and "both called 'prediction'" in err[-1] and not (tmp_path/'out.csv').exists()

def test_a_table_may_have_a_dot_in_its_name(shop, tmp_path):
    with sqlite3.connect(tmp_path/'dots.db') as con:
        con.execute('create table "sales.cust" (id text primary key, age real)'); con.executemany('insert into "sales.cust" values (?, ?)', [(f'{i:03d}', i % 2) for i in range(40)])
    con.close()
    code, err, _ = run('predict', *options(shop, db=tmp_path/'dots.db', entity='sales.cust.id', times='sales.cust.', out=tmp_path/'out.csv'))
    assert code == 0 and not err

def test_the_entitys_own_table_may_not_have_an_unclear_time(tmp_path, shop):
    "A date of the entity's own row is a feature, so it has to be known when that row came into being"
    with sqlite3.connect(tmp_path/'own.db') as con:
        con.execute('create table customers (id text primary key, joined text, gone text, age real)')
        con.executemany('insert into customers values (?, ?, ?, ?)', [(f'{i:03d}', '2024-01-01', '2024-06-01', i) for i in range(40)])
    con.close()
    code, err, _ = run('features', *options(shop, db=tmp_path/'own.db', query=SQL, context=None, target=None, out=tmp_path/'x.csv'))
    assert code == 2 and "Table 'customers' has several columns of dates (joined, gone)" in err[-1] and not (tmp_path/'x.csv').exists(), err

def test_predict_explain_and_a_saved_estimator_keep_the_times_told(visits, shop, tmp_path):
    path = visits('day timestamp, paid timestamp', ('2024-01-01', '2024-02-03'), ('2024-03-01', 'soon'))
    with sqlite3.connect(path) as con: con.execute("insert into visits (customer, day) select id, case when id % 2 then '2024-01-05' else '2024-03-05' end from customers")
    con.close()
    known = read(shop/'known.csv').assign(when='2024-02-01'); known.to_csv(tmp_path/'known.csv', index=False)
    read(shop/'asked.csv').assign(when='2024-02-01').to_csv(tmp_path/'asked.csv', index=False)
    shared = dict(db=path, context=tmp_path/'known.csv', query=tmp_path/'asked.csv', times='visits.day', estimators=1, label_delay='1D')
    code, err, said = run('predict', *options(shop, **shared, out=tmp_path/'a.csv', save=tmp_path/'m.rdbpfn'))
    assert code == 0 and not err and said.splitlines()[-1] == 'always visible: customers', err
    code, err, said = run('predict', '--load', tmp_path/'m.rdbpfn', '--query', tmp_path/'asked.csv', '--out', tmp_path/'b.csv')
    assert code == 0 and not err and said.splitlines()[-1] == 'always visible: customers', err
    assert np.allclose(read(tmp_path/'a.csv').probability_1, read(tmp_path/'b.csv').probability_1, atol=1e-4)
    code, err, said = run('explain', *options(shop, **shared, out=tmp_path/'why.csv'))
    assert code == 0 and not err and said.splitlines()[-1] == 'always visible: customers', err
    why = read(tmp_path/'why.csv').set_index('name').value
    assert why['COUNT(visits)'].astype(float).tolist() == [2. if int(i) % 2 else 1. for i in range(30, 40)]

def test_a_saved_estimator_needs_only_its_own_tables(visits, shop, tmp_path):
    path = visits('day text, paid text', ('2024-01-01', '2024-02-03'))
    with sqlite3.connect(path) as con: con.execute("create table idle (id integer primary key, x date, y date)")
    con.close()
    code, err, _ = run('predict', *options(shop, db=path, times='visits.paid,idle.x', estimators=1, save=tmp_path/'m.rdbpfn', out=tmp_path/'a.csv'))
    assert code == 0 and not err, err
    with sqlite3.connect(path) as con: con.execute('drop table idle')
    con.close()
    code, err, _ = run('predict', '--load', tmp_path/'m.rdbpfn', '--query', shop/'asked.csv', '--out', tmp_path/'b.csv')
    assert code == 0 and not err and np.allclose(read(tmp_path/'a.csv').probability_1, read(tmp_path/'b.csv').probability_1, atol=1e-4), err


BAD = [
    (dict(times='order'), '--times must read TABLE.COLUMN, or TABLE. for a table that is visible at all times'),
    (dict(times='.day'), '--times must read TABLE.COLUMN'),
    (dict(times='order.day,order.'), "--times speaks of table 'order' twice"),
    (dict(times='ordre.day'), "no table 'ordre'"),
    (dict(times='order.dya'), "no column 'dya' in table 'order'"),
    (dict(times='order.amount'), 'order.amount should hold times but holds numbers'),
    (dict(times='customers.id'), 'customers.id should hold times, but 40 values are none'),
    (dict(entity=None, time=None, context=None, target=None, load='none.rdbpfn', times='order.'), '--times would be ignored, since --load brings its own: leave it out'),
    (dict(entity='customers'), 'TABLE.COLUMN'),
    (dict(entity='customer.id'), "customer"),
    (dict(entity='customers.key'), "key"),
    (dict(time='day'), "no column 'day'"),
    (dict(target='answer'), "no column 'answer'"),
    (dict(context='no.csv'), "no file 'no.csv'"),
    (dict(db='nowhere/at/all'), 'nowhere'),
    (dict(db='postgresql://me:secret@127.0.0.1:1/db'), ''),
    (dict(out='no/such/folder/out.csv'), 'Cannot write'),
    (dict(mask='shoe_size'), 'shoe_size'),
    (dict(weights='none.safetensors'), 'no weights file'),
    (dict(entity='customers.age'), "is 'id', not 'age'"),
    (dict(query='select id from nowhere'), '--query: The query cannot be answered'),
    (dict(query='select id from customers'), "no column 'when'"),
    (dict(query=SQL + ' limit 0'), 'no rows'),
    (dict(query=SQL.replace('id,', "'x' as id,")), "not in table 'customers'"),
    (dict(query=SQL.replace('id,', '7 as id,')), 'holds whole numbers where customers.id holds text'),
    (dict(query='('*5000), 'There is no file'),
    (dict(query=''), 'There is no file'),
    (dict(out='out.xls'), '.csv or .parquet'),
    (dict(save='no/such/folder/m.rdbpfn'), 'Cannot write'),
    (dict(save='m.csv'), '.rdbpfn'),
    (dict(context_policy='best'), 'choose from random'),
    (dict(features='all'), 'paper'),
    (dict(regime='cold'), "'frozen'"),
    (dict(depth=-1), 'hops'),
    (dict(estimators=0), '1 or more'),
    (dict(label_delay='7'), 'a number and a unit'),
    (dict(label_delay='a week'), 'a number and a unit'),
    (dict(device='gpu'), 'not a device'),
    (dict(target=None), '--target must be given'),
    (dict(context='select id, date \'2024-05-01\' as "when", \'yes\' as label from customers', regression=True), "--regression needs numbers, but column 'label' of --context holds 'yes'"),
    (dict(load='none.rdbpfn'), '--entity and --time and --context and --target would be ignored'),
    (dict(entity=None, time=None, context=None, target=None, load='none.rdbpfn', depth=0), '--depth would be ignored, since --load brings its own: leave it out'),
    (dict(entity=None, time=None, context=None, target=None, load='none.rdbpfn'), "no file 'none.rdbpfn'"),
]

@pytest.mark.parametrize('new, words', BAD, ids=[str(list(b[0])[0]) + str(i) for i, b in enumerate(BAD)])
def test_bad_input_is_one_sentence_and_writes_nothing(shop, tmp_path, monkeypatch, new, words):
    monkeypatch.chdir(tmp_path)
    code, err, out = run('predict', *options(shop, **dict(out='out.csv', save='m.rdbpfn') | new))
    assert code == 2 and len(err) == 1 and err[0].startswith('rdbpfn: ') and words in err[0] and 'secret' not in err[0], (code, err)
    assert not out and not list(tmp_path.iterdir())


def test_bad_questions_and_files_are_told_before_the_work(shop, tmp_path, monkeypatch):
    "Nothing is read if the results cannot be written, and nothing is computed if a question cannot be answered"
    def never(*a, **k): raise AssertionError('too late')
    monkeypatch.setattr('rdbpfn.relational.features_as_of', never)
    for new, words in ((dict(query=SQL.replace('id,', "'x' as id,")), "not in table"), (dict(device='gpu'), 'not a device'), (dict(weights='nowhere.safetensors'), 'nowhere.safetensors'), (dict(context_policy='best'), 'choose from')):
        code, err, _ = run('predict', *options(shop, **dict(out=tmp_path/'out.csv') | new))
        assert code == 2 and words in err[-1], err
    monkeypatch.setattr('rdbpfn.database.Database.open', never)
    for command, new in (('predict', dict(save='no/m.rdbpfn')), ('predict', dict(out='no/x.csv')), ('explain', dict(plot='no/x.png')), ('explain', dict(plot=tmp_path/'x.bmp')), ('explain', dict(out='x.txt')), ('explain', dict(by='foot')),
                         ('features', dict(describe='no/x.csv')), ('features', dict(out='no/x.csv'))):
        shared = options(shop, **dict(out=tmp_path/'out.csv') | new | (dict(context=None, target=None) if command == 'features' else {}))
        code, err, _ = run(command, *shared)
        assert code == 2 and len(err) == 1 and ("not by 'foot'" if 'by' in new else 'Cannot write') in err[0], (command, new, err)
    assert not list(tmp_path.iterdir())


def test_load_takes_only_relational_estimators(shop, tmp_path):
    x = pd.DataFrame(dict(a=np.arange(20.), b=np.arange(20.)[::-1]))
    RDBPFNClassifier(n_estimators=1).fit(x, np.arange(20) % 2).save(tmp_path/'flat.rdbpfn')
    db = open_database(f'sqlite:///{shop}/shop.db')
    known = read(shop/'known.csv')
    RelationalClassifier(db, 'customers', 'id', 'when', n_estimators=1).fit(known, known.label).save(tmp_path/'homeless.rdbpfn')
    for file, words in ((tmp_path/'flat.rdbpfn', 'holds a RDBPFNClassifier'), (shop/'known.csv', 'no saved estimator'), (tmp_path/'homeless.rdbpfn', 'name it with --db')):
        code, err, _ = run('predict', '--load', file, '--query', SQL, '--out', tmp_path/'out.csv')
        assert code == 2 and len(err) == 1 and words in err[0] and not (tmp_path/'out.csv').exists(), err


def test_explain_and_features_refuse_in_a_sentence(shop, tmp_path):
    for command, arguments, words in (('explain', options(shop, by='foot', out=tmp_path/'x.csv'), "not by 'foot'"), ('features', ['--query', SQL, '--out', tmp_path/'x.csv'], '--db and --entity must be given.'),
                                      ('features', options(shop, context=None, target=None, depth=0, mask='age,active', out=tmp_path/'x.csv'), 'offers no features')):
        code, err, _ = run(command, *arguments)
        assert code == 2 and len(err) == 1 and words in err[0] and not list(tmp_path.iterdir()), err


@pytest.mark.parametrize('edit, words', [
    (lambda f: f.assign(label=1), 'class'), (lambda f: f[:0], 'no rows'), (lambda f: f.assign(id='x'), "not in table 'customers'"),
    (lambda f: f.assign(when=5), 'holds numbers'), (lambda f: f.assign(when='soon'), 'ISO 8601'), (lambda f: f.assign(label=[None]*3 + [1]*27), '3 rows without a label')])
def test_bad_contexts(shop, tmp_path, edit, words):
    edit(pd.read_csv(shop/'known.csv', dtype={'id': str})).to_csv(tmp_path/'bad.csv', index=False)
    (shop/'out.csv').unlink(missing_ok=True)
    code, err, _ = run('predict', *options(shop, context=tmp_path/'bad.csv'))
    assert code == 2 and len(err) == 1 and words in err[0], (code, err)
    assert not (shop/'out.csv').exists()


def test_a_key_that_is_not_unique(tmp_path, shop):
    with sqlite3.connect(tmp_path/'twice.db') as con:
        con.execute('create table customers (id text, age real)'); con.executemany('insert into customers values (?, 1)', [('000',), ('000',), ('001',)])
    con.close()
    code, err, _ = run('predict', *options(shop, db=f'sqlite:///{tmp_path}/twice.db', out=tmp_path/'out.csv'))
    assert code == 2 and len(err) == 1 and 'customers' in err[0], err


def test_pretrain_refuses_before_it_starts(tmp_path):
    for arguments, words in ((('--preset', 'huge'), "no preset 'huge'"), (('--preset', 'tiny', '--resume'), 'no checkpoint'), (('--preset', 'tiny', '--minutes', -1), '--minutes'),
                             (('--preset', 'tiny', '--processes', 3), '--processes must divide the 2 micro-batches of a step'), (('--preset', 'tiny', '--processes', -2), '--processes must divide'),
                             (('--preset', 'tiny', '--validate-on', 'nowhere'), 'nowhere'), (('--preset', 'tiny', '--data', tmp_path), '--validate-on')):
        code, err, _ = run('pretrain', '--out', tmp_path/'run', *arguments)
        assert code == 2 and words in err[-1] and not (tmp_path/'run').exists()


def test_the_demo_as_a_program(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'rdbpfn.cli', 'demo'], cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(NO_COLOR='1'))
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr[-2000:]
    for name in ('flight-late15', 'plane-no-flight-7d'):
        block = done.stdout.split(f'\n{name}:')[1].split('\n\n')[0]
        forest, ours = (float(line.split('AUC')[1].split()[0]) for line in block.splitlines() if ' AUC ' in line)
        assert ours > .55 and ours >= forest - .01, (name, forest, ours)
        rows = pd.read_csv(tmp_path/'rdbpfn_demo'/f'{name}.csv')
        assert len(rows) == 2000 and rows.rdbpfn.between(0, 1).all()
    assert (tmp_path/'rdbpfn_demo'/'demo.png').stat().st_size > 5000


def test_info_names_version_and_weights():
    code, _, out = run('info')
    assert code == 0 and 'rdbpfn 0.' in out and 'parameters' in out


def test_help_lists_commands_and_policies():
    env = os.environ | dict(COLUMNS='200', NO_COLOR='1')
    done = subprocess.run([sys.executable, '-m', 'rdbpfn.cli', '--help'], capture_output=True, text=True, env=env)
    assert all(c in done.stdout for c in ('demo', 'predict', 'features', 'explain', 'pretrain', 'info', 'sample', 'schemas', 'evaluate', 'report', 'bench'))
    said = CliRunner().invoke(app, ['predict', '--help'], env=dict(COLUMNS='200', NO_COLOR='1')).output
    assert all(p in said for p in POLICIES) and all(f'--{o}' in said for o in ('save', 'load', 'label-delay', 'context-policy', 'estimators', 'regression', 'device'))


def test_a_lookup_table_may_grow_between_two_months(shop, tmp_path):
    "A column of 20 names is a category, one of 21 is text: a saved estimator knows what it was"
    for n in (20, 21):
        with sqlite3.connect(tmp_path/f'{n}.db') as con:
            con.executescript('create table customers (id text primary key); create table agents (id integer primary key, name text); create table tickets (customer text references customers, agent integer references agents, opened text);')
            con.executemany('insert into customers values (?)', [(f'{i:03d}',) for i in range(40)])
            con.executemany('insert into agents values (?, ?)', [(i, f'name{i}') for i in range(n)])
            con.executemany('insert into tickets values (?, ?, ?)', [(f'{i % 40:03d}', i % 20, f'2024-0{1 + i % 2}-1{i % 10}') for i in range(200)])
        con.close()
    kind = lambda n: Database.open(tmp_path/f'{n}.db').schema['agents']['name'].kind
    assert (kind(20), kind(21)) == ('category', 'text')
    code, err, _ = run('predict', *options(shop, db=tmp_path/'20.db', out=tmp_path/'a.csv', save=tmp_path/'m.rdbpfn', depth=2, estimators=1))
    assert code == 0 and not err, err
    code, err, _ = run('predict', '--load', tmp_path/'m.rdbpfn', '--db', tmp_path/'21.db', '--query', shop/'asked.csv', '--out', tmp_path/'b.csv')
    assert code == 0 and not err, err
    assert np.allclose(read(tmp_path/'a.csv').probability_1, read(tmp_path/'b.csv').probability_1, atol=1e-4)


def test_a_file_in_another_encoding_is_told_so(shop, tmp_path):
    (tmp_path/'asked.csv').write_bytes('id,when\n001,2024-05-01\nM\u00fcller,2024-05-01\n'.encode('latin-1'))
    code, err, _ = run('predict', *options(shop, query=tmp_path/'asked.csv', out=tmp_path/'out.csv'))
    assert code == 2 and 'is not in UTF-8: save it again in that encoding' in err[-1], err
