"""The command line as a user meets it: right answers from several kinds of databases, one sentence for every kind of bad input."""
import os, sqlite3, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from typer.testing import CliRunner
from rdbpfn.cli import app
from rdbpfn.examples import DATA, load_task
from rdbpfn.relational import RelationalClassifier


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr.strip().splitlines(), done.stdout


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A small database with text keys that look like numbers, as SQLite, with context and query files"
    d, rng = tmp_path_factory.mktemp('shop'), np.random.default_rng(0)
    ids = [f'{i:03d}' for i in range(40)]
    with sqlite3.connect(d/'shop.db') as con:
        con.execute('create table customers (id text primary key, age real)')
        con.execute('create table "order" (oid integer primary key, customer text references customers(id), amount real, day timestamp)')
        con.executemany('insert into customers values (?, ?)', [(i, float(rng.integers(18, 80))) for i in ids])
        con.executemany('insert into "order" values (?, ?, ?, ?)', [(k, ids[k % 40], float(rng.gamma(2)), f'2024-{1 + k % 6:02d}-10') for k in range(300)])
    con.close()
    rows = pd.DataFrame(dict(id=ids, when='2024-05-01', label=[int(i) % 2 for i in ids]))
    rows[:30].to_csv(d/'known.csv', index=False); rows[30:].drop(columns='label').to_csv(d/'asked.csv', index=False)
    return d


def options(d, **new):
    o = dict(db=f'sqlite:///{d}/shop.db', entity='customers.id', context=d/'known.csv', query=d/'asked.csv', target='label', time='when', out=d/'out.csv') | new
    return [a for k, v in o.items() for a in (f'--{k}', v)]


def test_predict_from_sqlite_equals_the_estimator(shop):
    code, err, out = run('predict', *options(shop))
    assert code == 0, err
    got = pd.read_csv(shop/'out.csv', dtype={'id': str})
    known, asked = (pd.read_csv(shop/f, dtype={'id': str}) for f in ('known.csv', 'asked.csv'))
    model = RelationalClassifier(f'sqlite:///{shop}/shop.db', 'customers', 'id', 'when').fit(known, known.label)
    assert got.id.tolist() == asked.id.tolist()
    assert np.allclose(got.probability_1, model.predict_proba(asked)[:, 1], atol=1e-5) and np.allclose(got.probability_0 + got.probability_1, 1)
    assert '10 predictions from 30 labelled rows' in out


BAD = [
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
]

@pytest.mark.parametrize('new, words', BAD, ids=[str(list(b[0])[0]) + str(i) for i, b in enumerate(BAD)])
def test_bad_input_is_one_sentence_and_writes_nothing(shop, new, words):
    (shop/'out.csv').unlink(missing_ok=True)
    code, err, out = run('predict', *options(shop, **new))
    assert code == 2 and len(err) == 1 and err[0].startswith('rdbpfn: ') and words in err[0] and 'secret' not in err[0], (code, err)
    assert not (shop/'out.csv').exists() and not list(shop.glob('.*tmp'))


@pytest.mark.parametrize('edit, words', [
    (lambda f: f.assign(label=1), 'class'), (lambda f: f[:0], 'no context'), (lambda f: f.assign(id='x'), "not in table 'customers'"),
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
    for arguments, words in ((('--preset', 'huge'), "no preset 'huge'"), (('--preset', 'tiny', '--resume'), 'no checkpoint'), (('--preset', 'tiny', '--minutes', -1), '--minutes')):
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


def test_help_lists_the_commands():
    done = subprocess.run([sys.executable, '-m', 'rdbpfn.cli', '--help'], capture_output=True, text=True, env=os.environ | dict(COLUMNS='100'))
    assert all(c in done.stdout for c in ('demo', 'predict', 'pretrain', 'info', 'sample', 'schemas', 'evaluate', 'report', 'bench'))
