"""The relational estimator: one answer whatever the form of the database, nothing from the future, and scikit-learn's habits."""
import sqlite3, warnings
import numpy as np, pandas as pd, pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sqlalchemy import create_engine
from rdbpfn.baselines import logistic, random_forest
from rdbpfn.classifier import RDBPFNClassifier
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.dfs_tensor import compute_features
from rdbpfn.examples import DATA, load_task
from rdbpfn.in_place import InPlace, open_database
from rdbpfn.questions import ask_sql, labelled, questions, task_from_sql
from rdbpfn.relational import RelationalClassifier, RelationalRegressor, place_of

ONE = RDBPFNClassifier(n_estimators=1)


@pytest.fixture(scope='module')
def task(): return load_task('plane-no-flight-7d')


def ask(task, n, seed=0): return task.train.sample(n, random_state=seed)


def model(task, database=None, **options):
    return RelationalClassifier(database or task.database, task.entity_table, task.entity_col, task.time_col, mask=task.mask, **dict(classifier=ONE) | options)


def test_folder_and_database_and_sqlite_give_the_same_answer(task, tmp_path):
    db, known, asked = task.database, ask(task, 80), ask(task, 15, 1)
    p = [model(task, d).fit(known, known[task.target_col]).predict_proba(asked) for d in (db, DATA/'flights')]
    assert np.array_equal(*p)
    small = {n: db.table_dict[n] for n in ('planes', 'airlines')}
    engine = create_engine(f'sqlite:///{tmp_path}/small.db')
    for n, f in small.items(): f.to_sql(n, engine, index=False)
    engine.dispose()
    keys = dict(pkey_col={'planes': 'tailnum', 'airlines': 'carrier'})
    a, b = Database.from_frames(small, **keys), Database.from_sql(f'sqlite:///{tmp_path}/small.db', **keys)
    got = [RelationalClassifier(d, 'planes', classifier=ONE).fit(known, known[task.target_col]).predict_proba(asked) for d in (a, b)]
    assert np.allclose(*got, atol=1e-6)


@pytest.mark.parametrize('name', ['plane-no-flight-7d', 'flight-late15'])
def test_the_future_does_not_exist(name):
    "Change every row at and after the last cutoff: features and answers stay bit-identical; change the past, and they move"
    task = load_task(name); db = task.database
    known, asked = ask(task, 60), task.test.sample(300, random_state=0).nsmallest(25, task.time_col)
    m, last = model(task).fit(known, known[task.target_col]), asked[task.time_col].max()
    before, p = m.feature_frame(asked), m.predict_proba(asked)
    def perturbed(rows_of):
        frames, rng = {n: f.copy() for n, f in db.table_dict.items()}, np.random.default_rng(0)
        for t in db.schema.tables:
            if not t.time_col: continue
            hit = rows_of(pd.Series(db.times(t.name))).to_numpy()
            for c in t.columns:
                if t.name == task.entity_table and c.name not in task.mask: continue       # the asked rows' own open columns are what is asked about
                if c.kind == 'number': frames[t.name].loc[hit, c.name] = rng.normal(1e5, 1e4, hit.sum()).round()
        return Database(frames, db.schema)
    m.db_ = perturbed(lambda t: t >= last)
    pd.testing.assert_frame_equal(before, m.feature_frame(asked), check_exact=True)
    assert np.array_equal(p, m.predict_proba(asked))
    m.db_ = perturbed(lambda t: t < last)
    assert not before.equals(m.feature_frame(asked))


def test_clone_shares_the_database_and_search_reaches_the_classifier(task):
    m = model(task, n_context=50)
    c = clone(m)
    assert c.database is m.database and c.n_context == 50 and c.classifier is not m.classifier and not hasattr(c, 'plan_')
    known = ask(task, 80)
    found = GridSearchCV(m, dict(classifier__n_estimators=[1, 2], max_depth=[1]), cv=2, scoring='roc_auc').fit(known, known[task.target_col])
    assert set(found.best_params_) == {'classifier__n_estimators', 'max_depth'} and np.isfinite(found.best_score_)


def test_context_is_a_reproducible_subset(task):
    known, asked = ask(task, 300), ask(task, 5, 1)
    fit = lambda **o: model(task, n_context=40, **o).fit(known, known[task.target_col])
    a, b, other = fit(), fit(), fit(random_state=1)
    assert a.n_context_ == 40 and np.array_equal(a.predict_proba(asked), b.predict_proba(asked)) and not np.array_equal(a.predict_proba(asked), other.predict_proba(asked))


@pytest.mark.parametrize('classifier', [logistic(), random_forest()])
def test_any_classifier_gets_the_same_features(task, classifier):
    known, asked = ask(task, 60), ask(task, 7, 1)
    m = model(task, classifier=classifier).fit(known, known[task.target_col])
    assert m.predict_proba(asked).shape == (7, 2) and set(m.predict(asked)) <= {0, 1}
    pd.testing.assert_frame_equal(m.feature_frame(asked), model(task).fit(known, known[task.target_col]).feature_frame(asked))


def test_text_labels_and_text_times(task):
    known = ask(task, 60).assign(timestamp=lambda f: f.timestamp.astype(str))
    y = known[task.target_col].map({0: 'flies', 1: 'rests'})
    m = model(task).fit(known, y)
    assert m.classes_.tolist() == ['flies', 'rests'] and set(m.predict(known[:9])) <= set(m.classes_)
    number = model(task).fit(known, known[task.target_col])
    assert np.array_equal(m.predict_proba(known[:9]), number.predict_proba(known[:9]))


BAD = [
    (dict(entity_table='plane'), {}, 'plane'), (dict(entity_col='tail'), {}, "no column 'tail'"), (dict(time_col='day'), {}, "no column 'day'"),
    (dict(mask=('colour',)), {}, 'colour'), (dict(database='no/such/folder'), {}, 'no/such/folder'), (dict(max_depth=-1), {}, 'max_depth'),
    ({}, dict(tailnum='N0'), "60 of 60 keys in column 'tailnum' are not in table 'planes', 'N0' for one"), ({}, dict(timestamp=3), 'holds numbers'),
    ({}, dict(timestamp=pd.NaT), '60 of 60 cutoffs')]

@pytest.mark.parametrize('options, edit, words', BAD, ids=[next(iter(o or e)) for o, e, _ in BAD])
def test_bad_input_is_told_in_a_sentence(task, options, edit, words):
    known = ask(task, 60)
    with pytest.raises(InputError, match=words) as told: clone(model(task)).set_params(**options).fit(known.assign(**edit), known[task.target_col])
    assert '\n' not in str(told.value)


def test_contexts_that_cannot_be_learned_from(task):
    known = ask(task, 30); y = known[task.target_col]
    for X, labels, words in ((known[:0], y[:0], 'no context'), (known, y[:-1], '30 rows, but y has 29'), (known, y*0, 'class'), (known.to_numpy(), y, 'must be a DataFrame')):
        with pytest.raises(InputError, match=words): model(task).fit(X, labels)


def test_numbers_with_many_ties_keep_their_mean_in_a_balanced_context():
    "Three of five are zero and the columns tell nothing: the answer is about the mean of all, not that of a context in which zeros are rarer"
    rng, n = np.random.default_rng(0), 2000
    people = pd.DataFrame(dict(id=np.arange(n), a=rng.normal(size=n), b=rng.normal(size=n)))
    y = np.where(rng.uniform(size=n) < .6, 0., rng.uniform(1, 10, n))
    m = RelationalRegressor(Database.from_frames({'people': people}, pkey_col={'people': 'id'}), 'people', n_context=200).fit(people[['id']], y)
    assert m.n_context_ == 200 and abs(m.predict(people[['id']].head(300)).mean() - y.mean()) < .15*y.mean()
    zero = m.classifier_.predict_above(m.feature_frame(people[['id']].head(300)))[:, 0]
    assert abs(zero.mean() - (y > 0).mean()) < .06


@pytest.mark.parametrize('n_context', [0, -1, 2.5, None])
def test_another_classifier_is_told_of_a_bad_number_of_rows_too(task, n_context):
    known = ask(task, 60)
    with pytest.raises(InputError, match='n_context must be a whole number of 1 or more'): model(task, classifier=logistic(0), n_context=n_context).fit(known, known[task.target_col])


def test_questions_without_time_see_everything(task):
    rows, cutoffs = questions(task.database, ask(task, 4), 'planes', 'tailnum', None)
    assert cutoffs is None and len(rows) == 4


# ---- forms of a task, regimes, and what scikit-learn does with an estimator

@parametrize_with_checks([RelationalClassifier(DATA/'flights', 'planes'), RelationalRegressor(DATA/'flights', 'planes')])
def test_scikit_learns_own_checks(estimator, check): check(estimator)


@pytest.fixture(scope='module')
def tiny():
    "Customers with a text key full of traps, a table named like a keyword, and one without rows"
    rng, n = np.random.default_rng(0), 40
    keys = [f"o'hara \"{i}\"; DROP TABLE --" for i in range(n)]
    buys = pd.DataFrame({'id': np.arange(400), 'who': rng.choice(keys[:35], 400), 'group': rng.normal(size=400), 'day': pd.Timestamp('2024-01-01') + pd.to_timedelta(rng.integers(0, 100*24, 400), 'h')})
    return Database.from_frames({'customers': pd.DataFrame({'key': keys, 'select': rng.normal(size=n)}), 'order': buys, 'empty': pd.DataFrame({'id': pd.Series([], dtype='int64'), 'who': pd.Series([], dtype=object), 'x': pd.Series([], dtype=float)})},
                                pkey_col=dict(customers='key', order='id', empty='id'), fkey_col_to_pkey_table=dict(order={'who': 'customers'}, empty={'who': 'customers'}), time_col=dict(order='day'))


def tiny_questions(db, n=60, seed=0):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({'key': rng.choice(db.table_dict['customers']['key'], n), 'when': pd.Timestamp('2024-02-01') + pd.to_timedelta(rng.integers(0, 60, n), 'D')})
    return X, (db.table_dict['customers'].set_index('key').loc[X.key, 'select'] > 0).to_numpy(int)


@pytest.mark.parametrize('features', ['paper', 'recent', 'full', {'number': ('mean', 'last'), 'key': ('count',)}], ids=str)
@pytest.mark.parametrize('regime', ['seed', 'frozen', '2024-03-01'])
def test_features_and_regimes(tiny, features, regime):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', features=features, regime=regime, n_estimators=1).fit(X, y)
    p = m.predict_proba(X)
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1) and m.used_['regime'].startswith(regime[:4] if regime == 'seed' else 'frozen')
    if regime == 'seed': return
    moment, rows = np.datetime64(m.frozen_at_, 'ns'), m.db_.table_dict['order']
    assert moment == (X['when'].max() if regime == 'frozen' else pd.Timestamp(regime)) and (rows.day < moment).all(), 'nothing from the moment on is left'


def test_frozen_events_see_nothing_after_the_moment(task):
    "An event younger than the moment: the features are those of the moment, with days put right"
    task = load_task('flight-late15'); known = ask(task, 80)
    at = known[task.time_col].min()
    m = model(task, regime=at).fit(known, known[task.target_col])
    plan = m.plan_
    rows, own = questions(task.database, known, task.entity_table, task.entity_col, task.time_col)
    early = compute_features(task.database, plan, rows, np.full(len(rows), at.to_datetime64().astype('datetime64[ns]')))
    now, days = m.feature_frame(known.reset_index(drop=True)), (own - at.to_datetime64())/np.timedelta64(1, 'D')
    for f in plan:
        if f.kind == 'datetime' or 'since' in f.aggs: np.testing.assert_allclose(now[f.name], early[f.name] + days)
        else: pd.testing.assert_series_equal(now[f.name], early[f.name])


def test_search_over_features_and_regime(tiny):
    X, y = tiny_questions(tiny)
    found = GridSearchCV(RelationalClassifier(tiny, 'customers', time_col='when', n_estimators=1), dict(features=['paper', 'recent'], regime=['seed', 'frozen'], context=['random', 'recent']), cv=2).fit(X, y)
    assert len(found.cv_results_['params']) == 8 and np.isfinite(found.cv_results_['mean_test_score']).all()
    assert np.isfinite(cross_val_score(make_pipeline('passthrough', found.best_estimator_), X, y, cv=2)).all()


def test_several_contexts_read_more_rows(task):
    known = ask(task, 300)
    m = RelationalClassifier.for_task(task, n_estimators=3, n_context=50, context='random').fit(known, known[task.target_col])
    assert m.n_context_ == 150 and m.classifier_.used_['members'] == 3
    assert RelationalClassifier.for_task(task, n_estimators=3, n_context=50, context='recent').fit(known, known[task.target_col]).n_context_ == 50


def test_sql_task_is_the_frame_task(tiny):
    sql = '''SELECT "key", day AS at, "select" > 0 AS label FROM customers, (SELECT unnest([TIMESTAMP '2024-02-01', TIMESTAMP '2024-03-01', TIMESTAMP '2024-03-20']) AS day)'''
    task = task_from_sql(tiny, sql, 'customers', '2024-03-01', '2024-03-20')
    assert [len(f) for f in (task.train, task.val, task.test)] == [40]*3 and (task.entity_col, task.time_col, task.target_col) == ('key', 'at', 'label')
    m = RelationalClassifier.for_task(task, n_estimators=1).fit(*labelled(task))
    p = RelationalClassifier(tiny, 'customers', 'key', 'at', n_estimators=1).fit(task.train, task.train.label).predict_proba(task.test)
    assert np.array_equal(m.predict_proba(labelled(task, 'test')[0]), p)
    for bad, words in ((sql.replace('customers', 'clients'), 'clients'), ('SELECT 1', 'key'), (sql.replace('"select" > 0', 'NULL'), '120 of the 120'), ('DELETE FROM customers', 'not DELETE')):
        with pytest.raises(InputError, match=words): task_from_sql(tiny, bad, 'customers', '2024-03-01', '2024-03-20')
    assert len(tiny.table_dict['customers']) == 40


# ---- save, load, other states of the database

@pytest.mark.parametrize('rows', [True, False])
def test_round_trip(tiny, tmp_path, rows):
    X, y = tiny_questions(tiny)
    for m in (RelationalClassifier(tiny, 'customers', time_col='when', features='recent', regime='frozen', mask=('select',)).fit(X, y), RelationalRegressor(tiny, 'customers', time_col='when', n_estimators=1).fit(X, y + .5)):
        back = type(m).load(m.save(tmp_path/'m', training_rows=rows), tiny, 'cpu')
        answer = (lambda e: e.predict_proba(X)) if hasattr(m, 'classes_') else (lambda e: e.predict_quantiles(X))
        np.testing.assert_allclose(answer(back), answer(m), atol=1e-4)
        assert back.used_ == m.used_ and back.plan_.names == m.plan_.names
        np.testing.assert_allclose(answer(clone(back).fit(X, y if hasattr(m, 'classes_') else y + .5)), answer(m), atol=1e-4)


def test_the_path_of_a_database_is_remembered_and_forests_are_refused(task, tmp_path):
    known = ask(task, 60)
    m = model(task, DATA/'flights').fit(known, known[task.target_col])
    assert np.allclose(RelationalClassifier.load(m.save(tmp_path/'m')).predict_proba(known[:5]), m.predict_proba(known[:5]), atol=1e-5)
    with pytest.raises(InputError, match='cannot be saved'): model(task, classifier=random_forest()).fit(known, known[task.target_col]).save(tmp_path/'m')


def test_a_relative_path_means_the_file_it_was_fitted_on(tmp_path, monkeypatch):
    "In another folder the same name may be another database"
    keys = [f'{i}' for i in range(40)]
    for folder, scale in (('here', 1), ('there', -1)):
        (tmp_path/folder).mkdir()
        with sqlite3.connect(tmp_path/folder/'s.db') as con:
            con.execute('create table c(key text primary key, v real)'); con.executemany('insert into c values (?, ?)', [(k, scale*int(k)) for k in keys])
        con.close()
    X, y = pd.DataFrame(dict(key=keys)), [int(int(k) > 19) for k in keys]
    for where in ('s.db', 'sqlite:///s.db'):
        monkeypatch.chdir(tmp_path/'here')
        m = RelationalClassifier(where, 'c').fit(X, y)
        want, file = m.predict_proba(X), m.save(tmp_path/'m')
        monkeypatch.chdir(tmp_path/'there')
        assert np.allclose(RelationalClassifier.load(file).predict_proba(X), want, atol=1e-5)
    assert [place_of(p) for p in ('postgresql://u:secret@h/d', 'duckdb:///x.db?token=1', None)] == [None]*3


@pytest.mark.parametrize('mask', ['select', None, ('select',), []])
def test_a_mask_is_saved_however_it_is_given(tiny, tmp_path, mask):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', mask=mask).fit(X, y)
    assert RelationalClassifier.load(m.save(tmp_path/'m'), tiny).plan_.names == m.plan_.names and ('select' in m.plan_.names) == (not mask)


def test_other_classifiers_may_see_fewer_classes(tiny):
    "A context need not hold every label, yet columns of the answer are those of all labels"
    from sklearn.tree import DecisionTreeClassifier
    n = 200
    c = pd.DataFrame(dict(id=range(n), v=np.r_[[0.]*2, [1.]*98, [2.]*100]))
    y = np.r_[['a']*2, ['b']*98, ['c']*100]
    m = RelationalClassifier(Database.from_frames(dict(c=c), dict(c='id')), 'c', classifier=DecisionTreeClassifier(), context='random', n_context=40).fit(c[['id']], y)
    assert set(m.classifier_.classes_) == {'b', 'c'} and m.predict_proba(c[['id']]).shape == (n, 3) and m.score(c[['id']], y) == .99


def test_features_and_explanations_keep_the_index(tiny):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when').fit(X, y)
    some = X.sample(10, random_state=0)
    for frame in (m.feature_frame(some), m.explain(some).features, m.explain(some).values): assert frame.index.equals(some.index)
    assert np.allclose(m.feature_frame(some).to_numpy(float), m.feature_frame(X).loc[some.index].to_numpy(float), equal_nan=True)


def test_what_is_not_fitted_or_does_not_fit_says_so(tiny):
    X, y = tiny_questions(tiny)
    for m in (RelationalClassifier(tiny, 'customers', time_col='when'), RelationalRegressor(tiny, 'customers', time_col='when')):
        for method in ('predict', 'predict_proba', 'predict_quantiles', 'feature_frame', 'explain'):
            if hasattr(m, method):
                with pytest.raises(NotFittedError): getattr(m, method)(X)
    with pytest.raises(InputError, match='RelationalRegressor needs a RDBPFNRegressor as classifier, got RDBPFNClassifier'): RelationalRegressor(tiny, 'customers', time_col='when', classifier=ONE).fit(X, y)
    with pytest.raises(InputError, match='2 columns called'): RelationalClassifier(tiny, 'customers', time_col='when').fit(pd.concat([X, X[['when']]], axis=1), y)
    with pytest.raises(InputError, match='It is the index'): RelationalClassifier(tiny, 'customers', time_col='when').fit(X.set_index('key'), y)
    with pytest.raises(InputError, match='there is no table|cannot be answered|frame'): ask_sql(tiny, 'select count(*) from frame')


def test_a_key_of_two_columns_is_refused_in_a_sentence():
    d = Database.from_frames(dict(e=pd.DataFrame(dict(a=[1, 2], b=[1, 2], v=[0., 1.]))), dict(e=('a', 'b')))
    for col in (None, 'a', ['a', 'b']):
        with pytest.raises(InputError, match='no primary key of one column .a, b.'): RelationalClassifier(d, 'e', col).fit(pd.DataFrame(dict(a=[1, 2], b=[1, 2])), [0, 1])


def test_a_database_that_changes(tiny):
    X, y = tiny_questions(tiny)
    frames = {n: f.copy() for n, f in tiny.table_dict.items()}
    keys = dict(pkey_col=dict(customers='key', order='id'), fkey_col_to_pkey_table=dict(order={'who': 'customers'}), time_col=dict(order='day'))
    m = RelationalClassifier(Database.from_frames(frames, **keys), 'customers', time_col='when', n_estimators=1).fit(X, y)
    before = m.predict_proba(X)
    new = pd.DataFrame({'key': ['new'], 'select': [0.]})
    grown = Database.from_frames(frames | dict(customers=pd.concat([frames['customers'], new])), **keys)
    with pytest.raises(InputError, match="'new' for one"): m.predict_proba(pd.DataFrame({'key': ['new'], 'when': ['2024-03-01']}))
    other = m.on(grown)
    assert np.array_equal(other.predict_proba(X), before) and other.predict_proba(pd.DataFrame({'key': ['new'], 'when': ['2024-03-01']})).shape == (1, 2)
    assert m.database is not grown, 'the first estimator stays where it was'
    with pytest.raises(InputError, match='has changed: .*group'): m.on(Database.from_frames(frames | dict(order=frames['order'].drop(columns='group')), **keys))


def test_an_estimator_knows_the_keys_of_frames(tiny):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', n_estimators=1, label_delay='1D').fit(X, y)
    frames = {**tiny.table_dict}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(m.on(frames).predict_proba(X), m.predict_proba(X))
    with pytest.raises(InputError, match="no table 'customers'|no column"): m.on({t: f for t, f in frames.items() if t != 'customers'})


def file_of(frames, path):
    "Customers and their orders as a SQLite file"
    with sqlite3.connect(path) as con:
        con.execute('create table customers(key text primary key, "select" real)')
        con.execute('create table "order"(id integer primary key, who text references customers(key), day timestamp, "group" real)')
        for n, f in frames.items(): f.to_sql(n, con, if_exists='append', index=False)
    return path


@pytest.mark.parametrize('change, told', [
    (lambda con: con.execute("""update "order" set "group" = 'n/a' where rowid % 2"""), "order.group .*such as 'n/a'"),
    (lambda con: con.execute('update "order" set "group" = "group" > 0'), None),                      # numbers that happen to be 0 and 1 are numbers still
    (lambda con: con.execute('alter table "order" add column shipped timestamp'), None),            # the time is the one that it was
    (lambda con: con.execute('alter table "order" rename column day to moment'), "'day'")])
def test_what_a_column_means_is_kept_or_told(tiny, tmp_path, change, told):
    "A number that becomes a category, a time that goes or gets a rival: the same features, or a sentence"
    X, y = tiny_questions(tiny)
    db = file_of({n: tiny.table_dict[n] for n in ('customers', 'order')}, tmp_path/'shop.db')
    m = RelationalClassifier(str(db), 'customers', time_col='when', features='paper', n_estimators=1).fit(X, y)
    m.save(tmp_path/'m.rdbpfn')
    counts = m.feature_frame(X)['COUNT(order)']
    with sqlite3.connect(db) as con: change(con)
    for again in (lambda: m.on(str(db)), lambda: RelationalClassifier.load(tmp_path/'m.rdbpfn')):
        if told:
            with pytest.raises(InputError, match=told): again()
        else: assert again().feature_frame(X)['COUNT(order)'].equals(counts)


def test_a_database_in_memory_that_means_something_else_is_refused(tiny):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', features='paper', n_estimators=1).fit(X, y)
    keys = dict(pkey_col=dict(customers='key', order='id'), fkey_col_to_pkey_table=dict(order={'who': 'customers'}, empty={'who': 'customers'}))
    with pytest.raises(InputError, match="'order' had its time in column 'day' and has none now"): m.on(Database.from_frames(tiny.table_dict, **keys, time_col=dict(order=None)))
    with pytest.raises(InputError, match="column 'select' of table 'customers' was of kind number and is of kind category now"):
        m.on(Database.from_frames(tiny.table_dict, **keys, time_col=dict(order='day'), kinds=dict(customers={'select': 'category'})))


# ---- in place

def tiny_source(tiny, tmp_path, kind):
    "The same database in three places"
    if kind == 'folder': return tiny.to_folder(tmp_path/'tiny')
    if kind == 'sqlite': return str(file_of({n: tiny.table_dict[n] for n in ('customers', 'order')}, tmp_path/'tiny.db'))
    import ibis
    con = ibis.duckdb.connect()
    for n, f in tiny.table_dict.items(): con.create_table(n, f.astype({'x': float} if 'x' in f else {}), schema=None if len(f) else ibis.schema(dict(id='int64', who='string', x='float64')))
    return con


@pytest.mark.parametrize('kind', ['folder', 'sqlite', 'duckdb'])
@pytest.mark.parametrize('options', [dict(features='full'), dict(features='recent', regime='frozen', max_depth=1), dict(features='paper', regime='2024-03-01')], ids=lambda o: o['features'])
def test_a_database_in_place_gives_the_answers_of_one_in_memory(tiny, tmp_path, kind, options):
    X, y = tiny_questions(tiny)
    keys = dict(pkey_col=dict(customers='key', order='id', empty='id'), fkey_col_to_pkey_table=dict(order={'who': 'customers'}, empty={'who': 'customers'}), time_col=dict(order='day')) if kind == 'duckdb' else {}
    source = tiny_source(tiny, tmp_path, kind)
    there, here = InPlace.open(source, **keys), Database.open(source, **keys)
    assert {t.name: t for t in there.schema.tables} == {t.name: t for t in here.schema.tables} and {*there.schema.fkeys} == {*here.schema.fkeys}
    a, b = (RelationalClassifier(d, 'customers', time_col='when', n_estimators=1, **options).fit(X, y) for d in (there, here))
    assert a.plan_.names == b.plan_.names and a.used_ == b.used_
    one, two = (m.feature_frame(X[:20]).astype(object) for m in (a, b))
    pd.testing.assert_frame_equal(one, two, rtol=1e-9)
    assert np.allclose(a.predict_proba(X[:20]), b.predict_proba(X[:20]), atol=1e-4)
    a.save(tmp_path/'m.rdbpfn')
    assert np.allclose(RelationalClassifier.load(tmp_path/'m.rdbpfn', there).predict_proba(X[:20]), a.predict_proba(X[:20]), atol=1e-4)
    for bad, words in ((X.assign(key='ghost'), "60 of 60 keys are not in table 'customers', 'ghost' for one"), (X.assign(key=7), 'whole numbers where customers.key holds text')):
        with pytest.raises(InputError, match=words): a.predict_proba(bad)


def test_an_ibis_connection_is_asked_in_place(tiny, tmp_path):
    "No table is copied: the estimator holds a schema"
    X, y = tiny_questions(tiny)
    db = open_database(tiny_source(tiny, tmp_path, 'duckdb'), pkey_col=dict(customers='key', order='id'), fkey_col_to_pkey_table=dict(order={'who': 'customers'}), time_col=dict(order='day'))
    assert isinstance(db, InPlace) and not hasattr(db, 'table_dict')
    with pytest.raises(InputError, match='needs the database in memory'): RelationalClassifier(db, 'customers', time_col='when', label_delay='1D').fit(X, y)


def test_features_are_kept_in_a_folder(tiny, tmp_path):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', n_estimators=1, cache=tmp_path/'kept').fit(X, y)
    first = m.predict_proba(X[:10])
    files = sorted((tmp_path/'kept').iterdir())
    again = RelationalClassifier(tiny, 'customers', time_col='when', n_estimators=1, cache=tmp_path/'kept').fit(X, y)
    assert np.array_equal(again.predict_proba(X[:10]), first) and sorted((tmp_path/'kept').iterdir()) == files and len(files) == 2


# ---- bad input that is none, or is told

def test_cutoffs_before_all_data_and_entities_without_rows(tiny):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', features='recent').fit(X, y)
    early = m.feature_frame(X.assign(when='1999-01-01'))
    assert (early['COUNT(order)'] == 0).all() and early['LAST(order.group)'].isna().all() and np.isfinite(m.predict_proba(X.assign(when='1999-01-01'))).all()
    assert (m.feature_frame(X)['COUNT(empty)'] == 0).all() and not {'COUNT(empty)', 'MEAN(empty.x)'} & set(m.read_plan_.names)


def test_time_zones_keys_and_holes(tiny):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', n_estimators=1).fit(X, y)
    shifted = X.assign(when=X['when'].dt.tz_localize('UTC').dt.tz_convert('Asia/Tokyo'))
    assert np.array_equal(m.predict_proba(shifted), m.predict_proba(X))
    mixed = X.assign(when=[str(t) + '+00:00'*(i % 2) for i, t in enumerate(X['when'])])
    for bad, words in ((mixed, 'time zone on 30 of its 60'), (X.assign(key=7), 'whole numbers where customers.key holds text'), (X.assign(key=None), '60 of 60 keys'), (X.assign(when='soon'), 'ISO 8601'), (X.drop(columns='key'), "no column 'key'")):
        with pytest.raises(InputError, match=words): m.predict_proba(bad)


def test_questions_that_are_none(tiny, tmp_path):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', n_estimators=1).fit(X, y)
    for bad, words in ((X[:0], 'X has no rows: ask at least one'), (X.assign(when='9999-12-31'), '60 of 60 cutoffs .* beyond the years')):
        with pytest.raises(InputError, match=words): m.predict_proba(bad)
    for sql in (f"copy (select 1) to '{tmp_path/'x.csv'}'", 'create table t as select 1', f"select 1; copy (select 1) to '{tmp_path/'x.csv'}'", "attach 'x.db'", ''):
        with pytest.raises(InputError, match='one query that reads'): ask_sql(tiny, sql)
    assert not list(tmp_path.iterdir()), 'a query writes nothing'
    assert len(ask_sql(tiny, 'with a as (from customers) select * from a limit 3')) == 3


def test_an_entity_table_without_rows():
    db = Database.from_frames({'a': pd.DataFrame({'id': pd.Series([], dtype='int64'), 'x': pd.Series([], dtype=float)})}, pkey_col={'a': 'id'})
    with pytest.raises(InputError, match="2 of 2 keys in column 'id' are not in table 'a'"): RelationalClassifier(db, 'a').fit(pd.DataFrame({'id': [1, 2]}), [0, 1])


OPTIONS = [(dict(features='all'), 'feature set'), (dict(regime='thawed'), 'regime'), (dict(regime='frozen', time_col=None), 'needs cutoffs'), (dict(context='late'), 'context policy'), (dict(n_estimators=0), 'n_estimators'), (dict(model=3), 'model must be')]

@pytest.mark.parametrize('options, words', OPTIONS, ids=lambda v: str(v)[:20])
def test_bad_options(tiny, options, words):
    X, y = tiny_questions(tiny)
    with pytest.raises(InputError, match=words): RelationalClassifier(tiny, 'customers', **dict(time_col='when') | options).fit(X, y)


# ---- numbers, several classes, explanations

def test_several_classes_and_numbers(tiny):
    X, _ = tiny_questions(tiny, 90)
    z = tiny.table_dict['customers'].set_index('key').loc[X.key, 'select'].to_numpy()
    three = RelationalClassifier(tiny, 'customers', time_col='when').fit(X, np.digitize(z, [-.5, .5]))
    assert three.predict_proba(X).shape == (90, 3) and (three.predict(X) == np.digitize(z, [-.5, .5])).mean() > .8
    number = RelationalRegressor(tiny, 'customers', time_col='when').fit(X, z)
    low, middle, high = number.predict_quantiles(X).T
    assert np.corrcoef(number.predict(X), z)[0, 1] > .9 and (low <= middle).all() and (middle <= high).all()


def test_explanations_find_the_table_that_matters(tiny):
    X, y = tiny_questions(tiny, 90)
    m = RelationalClassifier(tiny, 'customers', time_col='when').fit(X, y)
    told = m.explain(X[:20])
    assert told.groups.abs().mean().idxmax() == 'customers' and told.top(n=1).feature[0] == 'select' and set(told.groups) <= {'customers', 'customers <- order[who]'}
    assert list(m.explain(X[:3], by='table').groups) == ['customers', 'order']
    with pytest.raises(InputError, match='by'): m.explain(X, by='row')
    with pytest.raises(InputError, match='cannot|Only answers'): RelationalClassifier(tiny, 'customers', time_col='when', classifier=logistic()).fit(X, y).explain(X)


def test_features_in_words_path_and_sql(tiny):
    X, y = tiny_questions(tiny)
    m = RelationalClassifier(tiny, 'customers', time_col='when', max_depth=1, n_estimators=1).fit(X, y)
    table = m.describe_features(sql=True).set_index('feature')
    assert table.path['COUNT(order)'] == 'customers <- order[who]' and 'SELECT' in table.sql['COUNT(order)'] and table.read['select'] and not table.read['COUNT(empty)']


def test_a_table_whose_time_nobody_named_is_refused(tmp_path):
    "Two columns of dates: with cutoffs the estimator asks which is the time; told, or without cutoffs, it answers"
    with sqlite3.connect(tmp_path/'two.db') as con:
        con.executescript('create table c(id integer primary key, age real); create table o(id integer primary key, c integer references c(id), placed date, shipped date, amount real);')
        con.executemany('insert into c values (?, ?)', [(i, 20. + i) for i in range(30)])
        con.executemany('insert into o values (?, ?, ?, ?, ?)', [(k, k % 30, f'2024-0{1 + k % 6}-01', f'2024-0{1 + k % 6}-09', k % 7) for k in range(200)])
    con.close()
    X, y, path = pd.DataFrame(dict(id=range(30), when='2024-03-15')), np.arange(30) % 2, str(tmp_path/'two.db')
    for opened in (Database.open, InPlace.open):
        with pytest.warns(UserWarning, match='several columns of dates'): db = opened(path)
        with pytest.raises(InputError, match="--times o.placed"): RelationalClassifier(db, 'c', time_col='when', n_estimators=1).fit(X, y)
        assert RelationalClassifier(db, 'c', n_estimators=1).fit(X, y).feature_frame(X)['COUNT(o)'].sum() == 200
        told = RelationalClassifier(opened(path, time_col={'o': 'placed'}), 'c', time_col='when', n_estimators=1).fit(X, y)
        assert told.feature_frame(X)['COUNT(o)'].sum() == sum(k % 6 < 3 for k in range(200))


# ---- what a newcomer does

@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(id=range(200), age=rng.normal(size=200), churned=rng.integers(0, 2, 200)))
    return Database.from_frames(dict(people=frame), dict(people='id')), frame


@pytest.mark.parametrize('wrong', [dict(max_depth=-1), dict(n_estimators=0), dict(model='nope.safetensors'), dict(features=['mean']), dict(regime='frozen'), dict(mask='nope')])
def test_a_fit_that_fails_leaves_the_one_before(people, wrong):
    db, frame = people
    m = RelationalClassifier(db, 'people', device='cpu').fit(frame[['id']][:100], frame.churned[:100])
    before, was = m.predict_proba(frame[['id']]), {k: getattr(m, k) for k in wrong}
    with pytest.raises(InputError): m.set_params(**wrong).fit(frame[['id']], frame.churned.map(str) + '!')
    m.set_params(**was)
    np.testing.assert_array_equal(m.predict_proba(frame[['id']]), before)
    assert m.classes_.tolist() == [0, 1]


def test_the_column_that_y_is_named_after_is_no_feature(people, tmp_path):
    db, frame = people
    fit = lambda y, **o: RelationalClassifier(db, 'people', device='cpu', **o).fit(frame[['id']], y)
    m = fit(frame.churned)
    assert m.plan_.names == ['age'] and m.target is None and m.target_ == ('people', 'churned')
    for y in (frame.churned.to_numpy(), frame.churned.rename('label'), frame.churned.rename(None)): assert fit(y).plan_.names == ['age', 'churned']
    assert fit(frame.churned, target=('people', 'age')).plan_.names == ['churned']                       # what is told counts
    again = RelationalClassifier.load(m.save(tmp_path/'m.rdbpfn'), db)
    assert again.plan_.names == ['age'] and again.target_ == ('people', 'churned') and m.on(db).plan_.names == ['age']
    np.testing.assert_array_equal(again.predict_proba(frame[['id']]), m.predict_proba(frame[['id']]))


def test_frames_of_arrow_are_those_of_pandas(people):
    import pyarrow as pa
    db, frame = people
    day = frame.assign(day=np.random.default_rng(1).permutation(pd.date_range('2020', periods=200))).drop(columns='churned')
    table, y = pa.Table.from_pandas(day), (day.day > '2020-04-01').map({False: 'no', True: 'yes'})
    a, b = RDBPFNClassifier(device='cpu').fit(day, y), RDBPFNClassifier(device='cpu').fit(table, y)
    assert a.encoder_.plan == b.encoder_.plan and 'date' in a.encoder_.plan.values()
    for one in (a, b):
        for rows in (day, table): np.testing.assert_array_equal(one.predict_proba(rows), a.predict_proba(day))
    arrow = Database.from_frames(dict(people=pa.Table.from_pandas(frame)), dict(people='id'))
    assert arrow.schema == db.schema
    ask = lambda d, X: RelationalClassifier(d, 'people', device='cpu').fit(X, frame.churned).predict_proba(X)
    np.testing.assert_array_equal(ask(arrow, pa.Table.from_pandas(frame[['id']])), ask(db, frame[['id']]))
    when = frame[['id']].assign(when=pd.Timestamp('2020-01-01') + pd.to_timedelta(frame.id, 'D'))
    past = lambda X: RelationalClassifier(db, 'people', time_col='when', label_delay='1D', device='cpu').fit(X, frame.churned).predict_proba(X)
    np.testing.assert_array_equal(past(pa.Table.from_pandas(when)), past(when))


@pytest.mark.parametrize('options, said', [
    (dict(features=['mean']), "no feature set .*or give {kind of column: aggregations}"), (dict(features=dict(numbr=('mean',))), 'choose from the kinds number, category'),
    (dict(regime=['seed']), "The regime must be 'seed'"), (dict(regime=3), "The regime must be 'seed'")])
def test_choices_that_there_are_not(people, options, said):
    db, frame = people
    with pytest.raises(InputError, match=said): RelationalClassifier(db, 'people', device='cpu', **options).fit(frame[['id']], frame.churned)


def test_one_aggregation_may_be_named_alone(people):
    db, frame = people
    assert RelationalClassifier(db, 'people', device='cpu', features=dict(number='mean')).fit(frame[['id']], frame.churned).plan_.names == ['age']


def test_sentences_show_values_and_not_their_types(people):
    db, frame = people
    with pytest.raises(InputError, match='999 for one') as e: RelationalClassifier(db, 'people', device='cpu').fit(frame[['id']], frame.churned).predict(pd.DataFrame(dict(id=[999])))
    assert 'int64' not in str(e.value)
    for thing, name in ((frame, 'DataFrame'), (3, 'int'), ([frame], 'list')):
        with pytest.raises(InputError, match=f'No database can be made of {name}: give'): Database.open(thing)
    with pytest.raises(InputError, match='The numbers to predict are times'): RelationalRegressor(db, 'people', device='cpu').fit(frame[['id']], pd.date_range('2020', periods=200))


def test_tasks_in_sql(people, tmp_path):
    db, frame = people
    with pytest.raises(InputError, match='Validation begins at 2024-05-01 00:00:00, after testing at 2024-04-01'): task_from_sql(db, "select id, timestamp '2024-03-01' as day, churned from people", 'people', '2024-05-01', '2024-04-01')
    place = InPlace.open(f'duckdb:///{_duck(frame, tmp_path)}')
    t = task_from_sql(place, "select id, timestamp '2024-03-01' + to_days(id::int) as day, churned from people", 'people', '2024-05-01', '2024-07-01')
    assert t.database is place and (len(t.train), len(t.val), len(t.test)) == (61, 61, 78) and t.mask == ('churned',)


def _duck(frame, folder):
    import duckdb
    with duckdb.connect(folder/'p.duckdb') as con: con.execute('create table people (id integer primary key, age double, churned integer)'); con.register('f', frame); con.execute('insert into people select * from f')
    return folder/'p.duckdb'


def test_lines_of_later_orders_tell_nothing_if_they_have_the_time_of_their_order():
    "Which products are hot shows in orders after the cutoff only, and an order's lines have no time of their own"
    rng = np.random.default_rng(0)
    hot = rng.integers(0, 2, 80)
    placed = pd.Timestamp('2024-01-01') + pd.to_timedelta(np.r_[rng.integers(0, 59, 240), rng.integers(60, 90, 160)], 'D')
    frames = dict(products=pd.DataFrame(dict(sku=range(80))), orders=pd.DataFrame(dict(oid=range(400), placed=placed)),
                  items=pd.DataFrame(dict(oid=range(400), sku=np.r_[rng.integers(80, size=240), rng.choice(np.flatnonzero(hot), 160)])))
    asked, keys = pd.DataFrame(dict(sku=range(80), day='2024-03-01')), dict(pkey_col=dict(products='sku', orders='oid'), fkey_col_to_pkey_table=dict(items=dict(oid='orders', sku='products')))
    def told(rows, **times):
        db = Database.open({**frames, 'items': frames['items'][:rows]}, **keys, time_col=times)
        return RelationalClassifier(db, 'products', entity_col='sku', time_col='day', classifier=ONE).fit(asked[:50], hot[:50]).feature_frame(asked)
    with pytest.warns(UserWarning, match="'items' has no time, so its rows are seen before the rows of 'orders'"): leak = told(None, orders='placed')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        whole, early = (told(rows, orders='placed', items='oid/placed') for rows in (None, 240))
    pd.testing.assert_frame_equal(whole, early)
    assert roc_auc_score(hot, leak['COUNT(items)']) > .8 > .65 > roc_auc_score(hot, whole['COUNT(items)'])


def test_an_estimator_knows_who_lends_a_time(tmp_path):
    "The table that a time comes from need not be one that the features read"
    rng = np.random.default_rng(0)
    frames = dict(tags=pd.DataFrame(dict(tag=range(30))), o=pd.DataFrame(dict(oid=range(40), placed=pd.date_range('2024-01-01', periods=40))), i=pd.DataFrame(dict(item=range(60), oid=rng.integers(40, size=60))),
                  n=pd.DataFrame(dict(nid=range(90), item=rng.integers(60, size=90), tag=rng.integers(30, size=90), x=rng.normal(size=90))))
    keys = dict(pkey_col=dict(tags='tag', o='oid', i='item', n='nid'), fkey_col_to_pkey_table=dict(i={'oid': 'o'}, n={'item': 'i', 'tag': 'tags'}))
    X, y = pd.DataFrame(dict(tag=range(30), day='2024-02-01')), rng.integers(0, 2, 30)
    m = RelationalClassifier(Database.open(frames, **keys, time_col=dict(o='placed', i='oid/placed', n='item/oid/placed')), 'tags', time_col='day', max_depth=1, classifier=None, n_estimators=1).fit(X, y)
    m.save(tmp_path/'m.rdbpfn')
    with sqlite3.connect(tmp_path/'q.db') as con:
        con.executescript('create table tags (tag integer primary key); create table o (oid integer primary key, placed text); create table i (item integer primary key, oid integer references o); create table n (nid integer primary key, item integer references i, tag integer references tags, x real)')
        for t, f in frames.items(): f.assign(**{c: f[c].astype(str) for c in f if c == 'placed'}).to_sql(t, con, if_exists='append', index=False)
    con.close()
    want = m.predict_proba(X)
    for again in (m.on(frames), m.on(str(tmp_path/'q.db')), RelationalClassifier.load(tmp_path/'m.rdbpfn', str(tmp_path/'q.db')), m.on(InPlace.open(tmp_path/'q.db', time_col=dict(o='placed', i='oid/placed', n='item/oid/placed')))):
        assert np.allclose(again.predict_proba(X), want, atol=1e-6)
    with pytest.raises(InputError, match="no table 'o'"): m.on({t: f for t, f in frames.items() if t != 'o'})
