"""The protocol's parts against hand-made cases: support draws, regimes, shared features, processes, failures, resume, missing cells."""
import json, multiprocessing, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from rdbpfn import evaluate as ev
from rdbpfn.baselines import in_processes, make_model
from rdbpfn.benchmarks import Entry, OneTable, find_entries
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.dfs import plan_features
from rdbpfn.dfs_tensor import compute_features
from rdbpfn.evaluate import FewShot, SingleTable, Validation, draw_support, evaluate, feature_maker, run_cell, run_suite, side_by_side
from rdbpfn.examples import Task
from rdbpfn.measures import calibration_error, score
from rdbpfn.model import RDBPFN, ModelConfig, load_model
from rdbpfn.records import KEY, as_table, current, key_of, read_records, summary, weights_id


def task_features(task, frame, *how, **more): return feature_maker(task, *how, **more)(frame)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "30 shops with a sale a day of 2020; asked each 10 days whether a shop's number is even; sales tell, and so does the future"
    path, rng, days = tmp_path_factory.mktemp('sales'), np.random.default_rng(0), pd.date_range('2020-01-01', periods=300)
    shops = pd.DataFrame(dict(shop=np.arange(30), size=rng.normal(size=30)))
    sales = pd.DataFrame(dict(sale=np.arange(3000), shop=rng.integers(0, 30, 3000), day=rng.choice(days, 3000), paid=rng.normal(size=3000)))
    sales['paid'] += sales.shop % 2
    Database.from_frames(dict(shops=shops, sales=sales), dict(shops='shop', sales='sale'), dict(sales={'shop': 'shops'}), dict(sales='day')).to_folder(path)
    asked = lambda first, last: pd.DataFrame([(s, d, s % 2) for d in days[first:last:10] for s in range(30)], columns=['shop', 'at', 'even'])
    for name, table, key in (('by-shop', 'shops', 'shop'), ('by-sale', 'sales', 'sale')):
        (path/'tasks'/name).mkdir(parents=True)
        for split, span in dict(train=(50, 150), val=(150, 200), test=(200, 300)).items():
            if key == 'shop': frame = asked(*span)
            else: frame = sales[sales.day.between(days[span[0]], days[span[1]-1])].assign(at=lambda d: d.day, even=lambda d: d.shop % 2)[['sale', 'at', 'even']]
            frame.to_parquet(path/'tasks'/name/f'{split}.parquet')
        about = dict(entity=key, time='at', label='even', entity_table=table, mask=['paid'] if key == 'sale' else [])
        (path/'tasks'/name/'task.json').write_text(json.dumps(about))
    return path


@pytest.fixture(scope='module')
def task(folder): return Task.from_folder(folder, 'by-shop')


def test_draws_are_uniform_and_without_replacement():
    counts, n = np.zeros(40), 400
    for d in range(n):
        at = draw_support('t', 40, 10, d)
        assert len(set(at)) == 10
        counts[at] += 1
    assert abs(counts - n/4).max() < 5*(n*.25*.75)**.5, 'every row is drawn a quarter of the time'
    assert draw_support('t', 40, 10, 0).tolist() == draw_support('t', 40, 40, 0)[:10].tolist()


def test_draws_are_the_same_on_every_machine():
    assert draw_support('driver-top3', 1353, 5, 0).tolist() == [353, 836, 862, 141, 1276]


def test_draws_do_not_depend_on_model_regime_or_depth(task):
    a, b = FewShot(task, n_shots=(64,), max_depth=1), FewShot(task, 'frozen', n_shots=(64,))
    assert (a.support(64, 3) == b.support(64, 3)).all()
    assert (a.cell(64, 3)[1] == b.cell(64, 3)[1]).all()


def test_frozen_is_upto_and_own_cutoff(task):
    "Against the words of the definition: a copy of the database without anything from T on, each row with its own cutoff"
    T, db = task.test['at'].min(), task.database
    frames = dict(db.table_dict, sales=db.table_dict['sales'].query('day < @T').reset_index(drop=True))
    plan = plan_features(db.schema, 'shops', 2)
    want = compute_features(Database(frames, db.schema), plan, task.test['shop'].to_numpy(), task.test['at'])
    pd.testing.assert_frame_equal(task_features(task, task.test, T), want)
    frozen, seed = (FewShot(task, regime, n_shots=(9,)).data[2] for regime in ('frozen', 'seed'))
    assert frozen.index.tolist() == task.test['shop'].tolist(), 'the index says who is asked about'
    frozen, seed = frozen.reset_index(drop=True), seed.reset_index(drop=True)
    pd.testing.assert_frame_equal(frozen, want)
    more = (seed['COUNT(sales)'] - want['COUNT(sales)'])[(task.test['at'] > T).to_numpy()]
    assert (more >= 0).all() and (more > 0).mean() > .9
    pd.testing.assert_frame_equal(task_features(task, task.train, T), task_features(task, task.train))


@pytest.mark.parametrize('regime', ev.REGIMES)
def test_no_regime_sees_what_it_must_not(folder, task, regime):
    "Everything from the end of the regime on is replaced by noise: no feature may move"
    T, rng, db = task.test['at'].min(), np.random.default_rng(1), task.database
    query = task.test if regime == 'frozen' else task.test[task.test['at'] == T]
    frozen_at, before = (T if regime == 'frozen' else None), None
    for _ in range(2):
        X = task_features(task, query, frozen_at)
        before = X if before is None else pd.testing.assert_frame_equal(X, before)
        late = (db.table_dict['sales'].day >= T).to_numpy()
        sales = db.table_dict['sales'].copy()
        sales.loc[late, 'paid'], sales.loc[late, 'shop'] = 1e6, rng.integers(0, 30, late.sum())
        changed = Database(dict(db.table_dict, sales=sales), db.schema)
        task = Task(**{f: getattr(task, f) for f in Task.__dataclass_fields__})
        task.__dict__['database'] = changed


def test_frozen_keeps_the_row_of_an_event(folder):
    task = Task.from_folder(folder, 'by-sale')
    T = task.test['at'].min()
    seed, frozen = task_features(task, task.test), task_features(task, task.test, T)
    assert 'paid' not in seed and (seed['shops.size'] == frozen['shops.size']).all()
    assert (seed['DAYS_SINCE(day)'] == 0).all() and (frozen['DAYS_SINCE(day)'] == 0).all(), "the row's own date, as of its own time"
    n, last = 'shops.COUNT(sales)', 'shops.MAX(sales.DAYS_SINCE(day))'
    assert (frozen[n] <= seed[n]).all() and (frozen[n] < seed[n]).mean() > .9
    sales = task.database.table_dict['sales']
    row, shop = task.test.iloc[-1], sales.shop[task.test.sale.iloc[-1]]
    seen = sales[(sales.shop == shop) & (sales.day < T)]
    assert frozen[n].iloc[-1] == len(seen)
    assert frozen[last].iloc[-1] == (row['at'] - seen.day.min()).days


def test_features_are_made_once_and_only_where_needed(task, tmp_path, monkeypatch):
    made, plans, cuts = [], [], []
    real, plan, cut = ev.features_as_of, ev.plan_features, ev.freeze
    monkeypatch.setattr(ev, 'features_as_of', lambda db, plan, rows, *a: made.append(len(rows)) or real(db, plan, rows, *a))
    monkeypatch.setattr(ev, 'plan_features', lambda *a, **k: plans.append(1) or plan(*a, **k))
    monkeypatch.setattr(ev, 'freeze', lambda *a: cuts.append(1) or cut(*a))
    protocol = FewShot(task, n_shots=(10, 20), n_draws=3, max_depth=1)
    evaluate(protocol, dict(a='constant', b='logistic'), tmp_path/'r.jsonl')
    union = {i for d in range(3) for i in protocol.support(20, d)}
    assert made == [len(union), len(task.test)] and len(plans) == len(cuts) == 1, 'planned, and the database cut, once for both'
    evaluate(FewShot(task, n_shots=(10, 20), n_draws=3, max_depth=1), dict(a='constant', b='logistic'), tmp_path/'r.jsonl')
    assert len(made) == 2, 'nothing to run, so nothing to compute'


def test_target_is_no_feature(folder, task):
    db = task.database
    leaky = Task(**{f: getattr(task, f) for f in Task.__dataclass_fields__})
    shops = db.table_dict['shops'].assign(even=lambda d: d.shop % 2)
    leaky.__dict__['database'] = Database.from_frames(dict(db.table_dict, shops=shops), dict(shops='shop', sales='sale'), dict(sales={'shop': 'shops'}), dict(sales='day'))
    assert not [c for c in task_features(leaky, task.test) if 'even' in c]


def test_a_cell_holds_the_rows_of_its_draw(task):
    protocol = FewShot(task, n_shots=(10, 20), n_draws=2, max_depth=1)
    for n, draw in ((10, 0), (20, 1)):
        rows = task.train.iloc[draw_support(task.name, len(task.train), n, draw)]
        X, y, Xq, yq = protocol.cell(n, draw)
        pd.testing.assert_frame_equal(X.reset_index(drop=True), task_features(task, rows, max_depth=1))
        assert (y == rows.even).all() and (yq == task.test.even).all() and len(Xq) == len(yq)


def test_it_learns_what_there_is_to_learn(task):
    protocol = FewShot(task, n_shots=(150,), n_draws=1)
    good, none = (run_cell(protocol, m, 150, 0) for m in ('logistic', 'constant'))
    assert good['auc'] > .9 and none['auc'] == .5 and good['log_loss'] < none['log_loss']
    assert {'seconds', 'cpu_seconds', 'base_rate'} <= good.keys()


def test_max_query_is_a_fixed_subset(task):
    a, b = (FewShot(task, n_shots=(20,), n_draws=1, max_query=50) for _ in range(2))
    frozen = FewShot(task, 'frozen', n_shots=(30,), n_draws=2, max_query=50)
    pd.testing.assert_frame_equal(a.questions, frozen.questions)
    assert frozen.data[2].index.tolist() == a.data[2].index.tolist() and a.questions.index.is_monotonic_increasing
    T = task.test['at'].min()
    pd.testing.assert_frame_equal(frozen.data[2].reset_index(drop=True), task_features(task, frozen.questions, T)), 'T is that of the split, not of the subset'
    assert len(a.data[2]) == 50 and a.data[2].equals(b.data[2]) and a.about['n_query'] == 50
    assert 0 < a.data[4].mean() < 1


class Fails:
    "A model that gives up on the second draw of its first run, and on `again` later ones; a file counts, for it runs in other processes"
    def fit(self, X, y):
        with log.open('a') as f: f.write('.')
        n = len(log.read_text())
        if n == 2: raise MemoryError('3 TB wanted')
        if 3 < n <= 3 + again: raise MemoryError(f'{n} TB wanted') if n != 6 else KeyError('something else')
        return self
    def predict_proba(self, X): return np.tile([.4, .6], (len(X), 1))

log, again = None, 0


def set_up_failures(tmp_path, monkeypatch, n):
    monkeypatch.setattr(sys.modules[__name__], 'log', tmp_path/'log')
    monkeypatch.setattr(sys.modules[__name__], 'again', n)


def test_failure_is_recorded_and_tried_again(task, tmp_path, monkeypatch):
    set_up_failures(tmp_path, monkeypatch, 0)
    out, models, protocol = tmp_path/'r.jsonl', dict(f=f'{__name__}:Fails', c='constant'), FewShot(task, n_shots=(20,), n_draws=3, max_depth=1)
    made = evaluate(protocol, models, out)
    bad = [r for r in made if 'error' in r]
    assert len(made) == 6 and [(r['model'], r['draw'], r['error']) for r in bad] == [('f', 1, 'MemoryError: 3 TB wanted')] and 'auc' not in bad[0]
    assert '— (2 of 3)' in as_table(made, 3).to_string() and '0.500 ± 0.000' in as_table(made, 3).to_string()
    assert [(r['model'], r['draw'], 'auc' in r) for r in evaluate(protocol, models, out)] == [('f', 1, True)]
    assert len(read_records(out)) == 6 and summary(read_records(out), 3).missing.sum() == 0
    assert len(out.read_text().splitlines()) == 7, 'the failure stays on record'


def test_the_same_failure_is_written_once(task, tmp_path, monkeypatch):
    "Four more runs fail (the third in another way): one line for each way, not for each run, and then the score"
    set_up_failures(tmp_path, monkeypatch, 4)
    out, models, protocol = tmp_path/'r.jsonl', dict(f=f'{__name__}:Fails'), FewShot(task, n_shots=(20,), n_draws=3, max_depth=1)
    sizes = []
    for _ in range(7):
        made = evaluate(protocol, models, out)
        sizes.append((len(out.read_text().splitlines()), len(made)))
    assert sizes == [(3, 3), (3, 1), (3, 1), (4, 1), (5, 1), (6, 1), (6, 0)]
    assert all('auc' in r for r in read_records(out))


def test_one_class_and_too_few_rows_are_records(task, tmp_path):
    protocol, out = FewShot(task, n_shots=(1, 10**6), n_draws=2, max_depth=1), tmp_path/'r.jsonl'
    errors = [r['error'] for r in evaluate(protocol, dict(c='constant'), out)]
    assert errors[0].startswith('one class') and '300 rows to draw from' in errors[2]
    before = out.read_text()
    assert evaluate(protocol, dict(c='constant'), out) == [] and out.read_text() == before, 'what can never run is done'


def test_questions_of_one_class_are_not_tried_again(task, tmp_path):
    frame = pd.DataFrame(dict(x=np.arange(1000.), y=np.arange(1000) == draw_support('t', 1000, 1000, 0)[0]))
    protocol = SingleTable('t', frame, 'y', n_draws=1)
    (record,) = evaluate(protocol, dict(c='constant'), tmp_path/'r.jsonl')
    assert record['error'].startswith('NoScore: The 300 query rows hold only one class')
    assert evaluate(protocol, dict(c='constant'), tmp_path/'r.jsonl') == []


def test_certainty_has_a_price():
    assert score(np.array([1, 0]), np.array([0., 0.]))['log_loss'] == pytest.approx(-np.log(1e-6)/2)


def test_nan_probabilities_and_one_class_queries_have_no_score():
    with pytest.raises(InputError, match='not finite'): score(np.array([0, 1]), np.array([np.nan, .5]))
    with pytest.raises(InputError, match='only one class'): score(np.zeros(3), np.ones(3))


def test_resume_from_any_byte(tmp_path):
    "However a run is cut off, the next one completes the file to the same cells and loses no whole record"
    frame = pd.DataFrame(dict(x=np.arange(60.), y=np.arange(60) % 2))
    protocol, models, full = SingleTable('t', frame, 'y', n_draws=2), dict(c='constant', d='constant'), tmp_path/'full.jsonl'
    evaluate(protocol, models, full)
    text, want = full.read_bytes(), sorted(map(str, map(key_of, read_records(full))))
    for cut in range(0, len(text), 37):
        out = tmp_path/f'{cut}.jsonl'
        out.write_bytes(text[:cut])
        with pytest.warns(UserWarning) if b'\n' not in text[cut-1:cut+1] and cut else _nothing():
            made = evaluate(protocol, models, out)
            assert sorted(map(str, map(key_of, read_records(out)))) == want
        whole = sum(_is_json(l) for l in text[:cut].splitlines())
        assert len(made) == 4 - whole


def test_a_file_of_something_else_is_left_alone(tmp_path):
    (tmp_path/'k.jsonl').write_text('id,label\n1,0\n')
    with pytest.raises(InputError, match='Line 1 of .* is no record'): read_records(tmp_path/'k.jsonl')
    protocol = SingleTable('t', pd.DataFrame(dict(x=np.arange(60.), y=np.arange(60) % 2)), 'y', n_draws=1)
    with pytest.raises(InputError, match='is no record'): evaluate(protocol, dict(c='constant'), tmp_path/'k.jsonl')
    assert (tmp_path/'k.jsonl').read_text() == 'id,label\n1,0\n'


def _is_json(line):
    try: return bool(json.loads(line))
    except json.JSONDecodeError: return False


class _nothing:
    def __enter__(self): pass
    def __exit__(self, *a): pass


def test_foreign_file_is_refused_not_overwritten(tmp_path):
    (out := tmp_path/'r.jsonl').write_text('{"task": "t", "score": 1}\n')
    with pytest.raises(InputError, match="Line 1 .* no 'model'"): evaluate(SingleTable('t', pd.DataFrame(dict(x=[1, 2]*9, y=[0, 1]*9)), 'y'), dict(c='constant'), out)
    assert out.read_text() == '{"task": "t", "score": 1}\n'


def test_table_never_mixes(task):
    base = dict(zip(KEY, ('t', 'a', None, 64, 0, 'seed', 'dfs-2', 'test', 9)), auc=.5, log_loss=.7)
    for k, v in dict(task='u', n_shots=128, regime='frozen', features='dfs-1', split='val', n_query=8).items():
        assert len(as_table([base, dict(base, **{k: v})], 1)) == 2, k
    assert '—' in as_table([base, dict(base, task='u', model='b')], 1).loc['u'].iloc[0].tolist()
    with pytest.raises(InputError, match='2 sets of weights'): as_table([base, dict(base, weights='new')], 1)


def test_new_weights_make_new_cells(task, tmp_path, monkeypatch):
    out, protocol = tmp_path/'r.jsonl', FewShot(task, n_shots=(20,), n_draws=2, max_depth=1)
    monkeypatch.setattr(ev, 'make_model', lambda m, seed: make_model('constant'))
    for i, content in enumerate((b'old', b'new')):
        (w := tmp_path/'w.safetensors').write_bytes(content)
        assert len(evaluate(protocol, dict(ours=f'{w}-1', base='constant'), out)) == (4 if i == 0 else 2)
    assert len(current(out, dict(ours=f'{w}-1'))) == len(read_records(out)) == 4
    assert 'path' not in out.read_text() and str(tmp_path) not in out.read_text()


def test_labels_that_are_not_two():
    with pytest.raises(InputError, match='3 different'): ev.as_binary('t', [0, 1, 2])
    with pytest.raises(InputError, match='without a label'): ev.as_binary('t', [0, 1, None])


def test_single_table_halves_do_not_meet():
    frame = pd.DataFrame(dict(i=np.arange(5000), y=np.arange(5000) % 2))
    for draw in range(3):
        X, y, Xq, yq = SingleTable('t', frame, 'y').cell(700, draw)
        assert (len(X), len(Xq), len({*X.i} | {*Xq.i})) == (700, 300, 1000) and (y == X.i % 2).all() and (yq == Xq.i % 2).all()
    assert SingleTable('small', frame[:100], 'y').n_shots == (70,)


# more than one process

def slow_square(x):
    time.sleep(.01*(x % 3))
    return x*x


@pytest.mark.parametrize('processes', (1, 2, 5))
def test_processes_do_all_cells_once(processes):
    got = list(in_processes(slow_square, [(i,) for i in range(12)], processes))
    assert sorted(got) == [((i,), i*i) for i in range(12)]


def test_processes_without_cells(): assert list(in_processes(slow_square, [], 3)) == []


def test_parallel_records_are_the_serial_ones(task, tmp_path):
    models = dict(constant='constant', line='logistic', trees='lightgbm')
    scores = []
    for processes in (1, 3):
        evaluate(FewShot(task, n_shots=(20, 40), n_draws=2, max_depth=1), models, out := tmp_path/f'{processes}.jsonl', processes)
        scores.append({key_of(r): (r['auc'], r['log_loss'], r['ece']) for r in read_records(out)})
    assert len(scores[0]) == 12 and scores[0] == scores[1]


def test_features_are_made_once_for_all_processes(task, tmp_path, monkeypatch):
    real, log = ev.features_as_of, tmp_path/'calls'
    def noted(*args):
        with log.open('a') as f: f.write(f'{os.getpid()}\n')
        return real(*args)
    monkeypatch.setattr(ev, 'features_as_of', noted)
    evaluate(FewShot(task, n_shots=(20,), n_draws=3, max_depth=1), dict(a='constant', b='logistic'), tmp_path/'r.jsonl', 3)
    assert log.read_text().split() == [str(os.getpid())]*2


class Hungry:
    "A model that the operating system kills on some draws"
    def fit(self, X, y):
        if y.sum() % 2: os.kill(os.getpid(), signal.SIGKILL)
        return self
    def predict_proba(self, X): return np.tile([.4, .6], (len(X), 1))


@pytest.mark.parametrize('processes', (1, 2))
def test_a_killed_process_is_one_record(task, tmp_path, processes):
    protocol = FewShot(task, n_shots=(21,), n_draws=8, max_depth=1)
    made = evaluate(protocol, dict(h=f'{__name__}:Hungry', c='constant'), tmp_path/'r.jsonl', processes)
    odd = {d for d in range(8) if protocol.cell(21, d)[1].sum() % 2}
    assert 0 < len(odd) < 8 and len(made) == 16
    assert {r['draw'] for r in made if 'error' in r} == odd
    assert {r['error'] for r in made if 'error' in r} == {'killed: the process ended with status -9 (out of memory?)'}
    assert all('auc' in r for r in made if r['model'] == 'c')
    assert all('error' in r for r in read_records(tmp_path/'r.jsonl') if r['model'] == 'h' and r['draw'] in odd), 'the kill is on record'


class Starved:
    def fit(self, X, y): os.kill(os.getpid(), signal.SIGKILL)
    def predict_proba(self, X): pass


def test_every_process_may_die(task, tmp_path):
    made = evaluate(FewShot(task, n_shots=(20,), n_draws=5, max_depth=1), dict(s=f'{__name__}:Starved'), tmp_path/'r.jsonl', 2)
    assert sorted(r['draw'] for r in made) == [0, 1, 2, 3, 4] and all('killed' in r['error'] for r in made)


def test_killed_run_is_resumed_and_leaves_no_process(tmp_path):
    "SIGKILL to the parent in the middle: its workers end, whole lines stay, the next run does the rest"
    program = '''
import sys, time
import numpy as np, pandas as pd
from rdbpfn.evaluate import SingleTable, evaluate
class Slow:
    def fit(self, X, y): time.sleep(.15); return self
    def predict_proba(self, X): return np.tile([.4, .6], (len(X), 1))
sys.modules['slow'] = sys.modules['__main__']
frame = pd.DataFrame(dict(x=np.arange(60.), y=np.arange(60) % 2))
evaluate(SingleTable('t', frame, 'y', n_draws=12), dict(s='slow:Slow'), sys.argv[1], 2)
'''
    out = tmp_path/'r.jsonl'
    run = subprocess.Popen([sys.executable, '-c', program, str(out)], start_new_session=True)
    deadline = time.time() + 240
    while not (out.exists() and out.read_text().count('\n') >= 3) and time.time() < deadline: time.sleep(.02)
    run.kill(); run.wait()
    before = len(read_records(out))
    assert 3 <= before < 12
    while _alive(run.pid) and time.time() < deadline: time.sleep(.05)
    assert not _alive(run.pid), 'a worker outlived its parent'
    subprocess.run([sys.executable, '-c', program, str(out)], check=True)
    assert len(read_records(out)) == 12 and out.read_text().count('\n') == 12


def _alive(group):
    try: os.killpg(group, 0)
    except ProcessLookupError: return False
    return True


def test_features_that_fail_are_records(task, tmp_path, monkeypatch):
    def broken(*a): raise MemoryError('the features')
    monkeypatch.setattr(ev, 'features_as_of', broken)
    made = evaluate(FewShot(task, n_shots=(20,), n_draws=2, max_depth=1), dict(a='constant'), tmp_path/'r.jsonl', 2)
    assert [r['error'] for r in made] == ['MemoryError: the features']*2


# suites

def as_suite(monkeypatch, entries): monkeypatch.setattr(ev, 'load_suite', lambda name, data: entries)


@pytest.mark.filterwarnings('error')
def test_a_suite_says_when_sizes_differ(task, tmp_path, monkeypatch):
    as_suite(monkeypatch, [Entry('rel-f1/driver-top3', lambda: task), Entry('sales/by-shop', lambda: task)])
    said = []
    made = run_suite('any', tmp_path/'r.jsonl', ['constant'], processes=1, say=said.append, n_shots=(20,), n_draws=1)
    assert made[0]['note'].startswith('sizes differ from the published ones (train 300 instead of 1,353') and 'note' not in made[1]
    assert [r['task'] for r in made] == ['rel-f1/driver-top3', 'sales/by-shop'] and 'sizes differ' in said[0]
    assert [r['n_query'] for r in made] == [len(task.test)]*2


@pytest.mark.filterwarnings('error')
def test_a_task_or_model_that_cannot_be_had_is_passed_over(task, tmp_path, monkeypatch):
    def gone(): raise InputError('no network.')
    as_suite(monkeypatch, [Entry('a/gone', gone), Entry('a/away', gone), Entry('a/here', lambda: task), Entry('a/late', gone)])
    monkeypatch.setitem(sys.modules, 'tabpfn', None)
    said = []
    made = run_suite('any', tmp_path/'r.jsonl', ['constant', 'tabpfn'], processes=1, say=said.append, n_shots=(20,), n_draws=1)
    assert [(r['task'], r['model']) for r in made] == [('a/here', 'constant')]
    assert said[0].startswith("tabpfn is left out. The package 'tabpfn' is not installed: pip install tabpfn")
    assert said[1:3] + said[4:] == [f'a/{n} is left out: no network.' for n in ('gone', 'away', 'late')] and said[3].startswith('a/here, seed: 1 cells')


def test_nothing_to_be_had_is_an_error(task, tmp_path, monkeypatch):
    said, out = [], tmp_path/'r.jsonl'
    monkeypatch.setitem(sys.modules, 'relbench', None)
    with pytest.raises(InputError, match=r"Nothing of the suite 'relbench' can be had: RelBench is not installed: pip install"): run_suite('relbench', out, ['constant'], say=said.append)
    monkeypatch.setitem(sys.modules, 'tabpfn', None)
    with pytest.raises(InputError, match='None of the models tabpfn can be run here'): run_suite('flights', out, ['tabpfn'], say=said.append)
    assert len(said) == 1 and not out.exists()


@pytest.mark.parametrize('bad, message', ((dict(features='nosuch'), 'choose from paper, recent, full'), (dict(max_query=-5), 'questions must be 1 or more, got -5'), (dict(n_draws=0), 'draws must be 1 or more, got 0'),
                                          (dict(n_shots=(64, 0)), 'shots must be 1 or more, got 0'), (dict(n_shots=()), 'shots must be 1 or more'), (dict(regimes=('seed', 'frosen')), 'frozen'), (dict(split='train'), 'val'),
                                          (dict(processes=-1), 'processes must be 1 or more, or 0')))
def test_bad_options_are_refused_before_anything_is_done(bad, message, tmp_path, monkeypatch):
    def never(*a): raise AssertionError('opened')
    monkeypatch.setattr(ev, 'load_suite', never)
    with pytest.raises(InputError, match=message): run_suite('flights', tmp_path/'r.jsonl', ['constant'], **bad)
    assert not list(tmp_path.iterdir())


def test_protocols_refuse_bad_options(task):
    for bad in (dict(features='nosuch'), dict(max_query=0), dict(n_draws=0), dict(n_shots=(0,))):
        with pytest.raises(InputError): FewShot(task, **bad)
    with pytest.raises(InputError, match='draws'): SingleTable('t', pd.DataFrame(dict(x=[1, 2], y=[0, 1])), 'y', n_draws=0)
    with pytest.raises(InputError, match='At least 1 process'): list(in_processes(slow_square, [(1,)], 0))


def test_predictions_of_a_suite(task, tmp_path, monkeypatch):
    "A file for each task, model, regime and number of shots, of draw 0; what is missing is made again, what is there is not, and the records stay as they are"
    table = SingleTable('t', pd.DataFrame(dict(x=np.arange(60.), y=np.arange(60) % 2)), 'y')
    as_suite(monkeypatch, [Entry('rel-a/b', lambda: replace(task)), Entry('single/t', lambda: OneTable('t', table.frame))])
    out, to = tmp_path/'r.jsonl', tmp_path/'sub'
    how = dict(processes=1, say=lambda text: None, regimes=('seed', 'frozen'), n_shots=(20, 30, 10**6), n_draws=2, max_query=None)
    run_suite('any', out, ['constant', 'logistic'], **how)
    before = out.read_text()
    made = run_suite('any', out, ['constant', 'logistic'], predictions=to, **how)
    assert out.read_text() == before and len(made) == 8, 'draw 0 of two models, regimes and numbers of shots was asked once more, for its answers'
    assert {str(f.relative_to(to)) for f in to.rglob('*.csv')} == {f'{m}_{r}_dfs-2_{n}/rel-a__b.csv' for m in ('constant', 'logistic') for r in ('seed', 'frozen') for n in (20, 30)}
    file = to/'logistic_frozen_dfs-2_30'/'rel-a__b.csv'
    got = pd.read_csv(file, parse_dates=['at'])
    assert list(got) == ['shop', 'at', 'even'] and (got[['shop', 'at']] == task.test[['shop', 'at']].reset_index(drop=True)).all(None)
    auc, = (r['auc'] for r in read_records(out) if (r['model'], r['regime'], r['n_shots'], r['draw'], r['task']) == ('logistic', 'frozen', 30, 0, 'rel-a/b'))
    assert score(task.test.even.to_numpy(), got.even.to_numpy())['auc'] == pytest.approx(auc), 'the very answers that were scored'
    file.unlink()
    (made,) = run_suite('any', out, ['constant', 'logistic'], predictions=to, **how)
    assert file.exists() and (made['model'], made['regime'], made['n_shots'], made['draw']) == ('logistic', 'frozen', 30, 0)
    assert 'p' not in made and out.read_text() == before and not list(to.rglob('*.tmp'))
    assert run_suite('any', out, ['constant', 'logistic'], predictions=to, **how) == []


def test_a_crash_between_predictions_and_record_loses_nothing(task, tmp_path, monkeypatch):
    protocol, out = FewShot(replace(task, name='rel-a/b'), n_shots=(20,), n_draws=1), tmp_path/'r.jsonl'
    def crash(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(ev, 'append_record', crash)
        with pytest.raises(KeyboardInterrupt): evaluate(protocol, dict(c='constant'), out, predictions=tmp_path/'sub')
    assert len(list((tmp_path/'sub').rglob('*.csv'))) == 1 and not out.exists()
    assert len(evaluate(protocol, dict(c='constant'), out, predictions=tmp_path/'sub')) == 1 and len(read_records(out)) == 1


def test_predictions_want_every_question(task, tmp_path, monkeypatch):
    for bad in (dict(), dict(max_query=50), dict(max_query=None, split='val')):
        with pytest.raises(InputError, match='every row of the test split'): run_suite('flights', tmp_path/'r.jsonl', ['constant'], predictions=tmp_path/'sub', **bad)
    twice = replace(task, test=pd.concat([task.test, task.test[:3]]))
    as_suite(monkeypatch, [Entry('rel-a/b', lambda: twice)])
    with pytest.raises(InputError, match='3 test rows repeat'): run_suite('any', tmp_path/'r.jsonl', ['constant'], predictions=tmp_path/'sub', max_query=None)
    assert not list(tmp_path.iterdir())


def test_submission_folders_name_their_setting(tmp_path):
    about = dict(model='rdbpfn', weights=weights_id('rdbpfn'), regime='seed', features='dfs-2', n_shots=64)
    assert ev.submission_folder(tmp_path, about) == tmp_path/f"rdbpfn_{about['weights']}_seed_dfs-2_64"
    assert len({ev.submission_folder(tmp_path, about | d) for d in (dict(), dict(model='a/b'), dict(weights='0'), dict(regime='frozen'), dict(features='full-2'), dict(n_shots=65))}) == 6
    assert ev.submission_folder(tmp_path, about | dict(model='../x')).parent == tmp_path


def test_cells_run_outside_even_one_at_a_time():
    assert {pid for _, pid in in_processes(lambda i: os.getpid(), [(i,) for i in range(4)], 1)}.isdisjoint({os.getpid()})


def test_without_fork_cells_run_here(monkeypatch):
    monkeypatch.setattr(multiprocessing, 'get_all_start_methods', lambda: ['spawn'])
    assert list(in_processes(lambda i: os.getpid(), [(0,)], 2)) == [((0,), os.getpid())]


def test_an_open_gpu_is_not_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    assert list(in_processes(lambda i: os.getpid(), [(0,)], 2)) == [((0,), os.getpid())]


def test_a_suite_resumes(task, tmp_path, monkeypatch):
    as_suite(monkeypatch, [Entry('a/b', lambda: task)])
    how = dict(processes=2, regimes=('seed', 'frozen'), n_shots=(20,), max_query=40)
    assert len(run_suite('any', tmp_path/'r.jsonl', ['constant', 'logistic'], n_draws=2, **how)) == 8
    assert len(run_suite('any', tmp_path/'r.jsonl', ['constant', 'logistic'], n_draws=3, **how)) == 4
    assert len(run_suite('any', tmp_path/'r.jsonl', ['constant', 'logistic'], n_draws=3, **how | dict(max_query=41))) == 12, 'other questions are other cells'
    assert set(pd.DataFrame(read_records(tmp_path/'r.jsonl')).regime) == {'seed', 'frozen'}


def test_side_by_side_is_a_cell(task):
    answers, scores, shape = side_by_side(task, ('logistic', 'constant'), 100, 80, draw=1)
    cell = run_cell(FewShot(task, n_shots=(100,), n_draws=2, max_query=80), 'logistic', 100, 1)
    assert scores['logistic']['auc'] == cell['auc'] and shape[0] == 100 and len(answers) == 80
    assert score(answers.even.to_numpy(), answers.logistic.to_numpy())['log_loss'] == cell['log_loss']


def test_entity_baseline_knows_the_entity(task):
    protocol = FewShot(task, n_shots=(250,), n_draws=1)
    assert run_cell(protocol, 'constant_per_entity', 250, 0)['auc'] > .95, 'a shop is even or it is not'


def test_calibration_error_against_its_definition():
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    y = (rng.random(5000) < p**2).astype(int)
    bins = np.minimum(np.floor(p*10), 9)
    want = sum((bins == b).mean()*abs(p[bins == b].mean() - y[bins == b].mean()) for b in range(10))
    assert calibration_error(y, p) == pytest.approx(want)
    assert calibration_error(y, p**2) < .02 < calibration_error(y, p)
    assert calibration_error(np.array([1, 0]), np.array([.85, .95])) == pytest.approx((.15 + .95)/2), 'gaps of two bins do not cancel'
    assert calibration_error(np.array([1]), np.array([1.])) == 0 == calibration_error(np.array([0]), np.array([0.]))


def test_old_records_without_a_measure_are_read(tmp_path):
    old = dict(zip(KEY, ('t', 'a', None, 64, 0, 'seed', 'dfs-2', 'test', 9)), auc=.5, log_loss=.7)
    new = dict(old, draw=1, ece=.1)
    assert np.isnan(summary([old], 1).ece[0]) and np.isnan(summary([old, new], 2).ece[0]), 'a mean over some of the draws is no mean'
    assert summary([dict(old, ece=.3), new], 2).ece[0] == pytest.approx(.2)


def test_validation_asks_what_the_protocol_asks(folder):
    "The questions are those of the validation split, of as many labelled rows as there are, and a network changes nothing but the answers"
    ask, net = Validation('dev', folder, n_shots=(20, 60, 10**6), n_draws=2, max_query=80), load_model()
    found = ask(net)
    assert found == ask(net) and set(found) == {f'{k}_{n}' for k in ('auc', 'log_loss', 'ece') for n in (20, 60)}
    protocols = [FewShot(e.load(), n_shots=(20, 60), n_draws=2, split='val', max_query=80) for e in find_entries(folder)]
    for n in (20, 60): assert found[f'auc_{n}'] == pytest.approx(np.mean([run_cell(p, 'rdbpfn', n, d)['auc'] for p in protocols for d in range(2)]), abs=1e-6)
    assert ask(RDBPFN(ModelConfig(n_layers=1)).eval())['log_loss_60'] != found['log_loss_60']


def test_validation_needs_a_validation_split(tmp_path):
    pd.DataFrame(dict(a=np.arange(50.), target=np.arange(50) % 2)).to_csv(tmp_path/'alone.csv', index=False)
    with pytest.raises(InputError, match='no relational task whose validation split'): Validation('dev', tmp_path, say=lambda text: None)
