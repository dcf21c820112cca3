"""The relational estimator: one answer whatever the form of the database, nothing from the future, and scikit-learn's habits."""
import numpy as np, pandas as pd, pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sqlalchemy import create_engine
from rdbpfn.baselines import logistic, random_forest
from rdbpfn.classifier import RDBPFNClassifier
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.examples import DATA, load_task
from rdbpfn.relational import RelationalClassifier, questions

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
    before, p = m.features(asked), m.predict_proba(asked)
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
    pd.testing.assert_frame_equal(before, m.features(asked), check_exact=True)
    assert np.array_equal(p, m.predict_proba(asked))
    m.db_ = perturbed(lambda t: t < last)
    assert not before.equals(m.features(asked))


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
    pd.testing.assert_frame_equal(m.features(asked), model(task).fit(known, known[task.target_col]).features(asked))


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


def test_questions_without_time_see_everything(task):
    rows, cutoffs = questions(task.database, ask(task, 4), 'planes', 'tailnum', None)
    assert cutoffs is None and len(rows) == 4
