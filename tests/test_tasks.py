"Tasks: nothing leaks, nothing is invalid, and the same seed gives the same bytes"
import numpy as np, pytest
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.dfs import hops_from, plan_features, values_of
from rdbpfn.dfs_tensor import Engine
from rdbpfn.examples import flights
from rdbpfn.prior import sample_database
from rdbpfn.tasks import column_candidates, future_candidates, make_view, each_task, propensity, squashed, static_candidates, teaches
from rdbpfn.views import SMALL, TaskConfig, View, add_features, children_with_time, choose_rows, standard_ranks, visits


def overwrite(db, moment):
    "A copy whose value columns are nonsense at and after a moment, and whose later rows point elsewhere"
    frames = {n: f.copy() for n, f in db.table_dict.items()}
    for t in db.schema.tables:
        if not t.time_col: continue
        late = np.flatnonzero(db.times(t.name).view('int64') >= moment)
        for c in t.columns:
            if c.kind == 'number': frames[t.name].loc[late, c.name] = -12345.
            if c.kind in ('category', 'boolean') and len(late): frames[t.name].loc[late, c.name] = frames[t.name][c.name].iloc[late[::-1]].to_numpy()
        for f in db.schema.fkeys_of(t.name):
            if len(late): frames[t.name].loc[late, f.columns[0]] = frames[t.name][f.columns[0]].iloc[late[::-1]].to_numpy()
    return Database(frames, db.schema)


def test_no_feature_of_a_snapshot_sees_the_future():
    seen = 0
    for seed in range(25):
        db = sample_database(seed)
        for entity in db.schema.names:
            if not children_with_time(db, entity) or db.schema[entity].time_col: continue
            view = choose_rows(np.random.default_rng(seed), db, entity, 150, SMALL)
            one = view.cutoffs.min()
            make = lambda d: add_features(np.random.default_rng(1), View(d, entity, view.rows, np.full(len(view.rows), one), view.window, False), TaskConfig(depth=(3, 3), hidden_share=0.)).x
            a, b = make(db), make(overwrite(db, one))
            assert a.tobytes() == b.tobytes()
            seen += a.shape[1]
    assert seen > 200


def test_static_targets_cannot_be_computed_from_what_is_shown():
    "The columns and children that a target is made of may change without changing any feature shown beside it"
    checked = 0
    for seed in range(60):
        db = sample_database(seed)
        for entity in db.schema.names:
            if any(t.time_col for t in db.schema.tables): continue
            rows = np.arange(min(150, db.n_rows(entity)))
            view = View(db, entity, rows, None, 0, False)
            plan = plan_features(db.schema, entity, 2).features
            for target in column_candidates(view):
                shown = [f for f in plan if not target.leaks(f)]
                frames = {n: f.copy() for n, f in db.table_dict.items()}
                column = frames[entity][target.name]
                frames[entity][target.name] = column.iloc[::-1].to_numpy()
                specs = [(f.path, f.column, f.kind, f.aggs) for f in shown]
                x, z = (Engine(d, np.zeros(1, 'int64'), False).pairs(specs, entity, rows, rows*0, target=True) for d in (db, Database(frames, db.schema)))
                assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(x, z))
                checked += len(shown)
            for target in static_candidates(view):
                hop = next(h for h in hops_from(db.schema, entity) if not h.forward and f'({h.label}' in target.name)
                assert all(target.leaks(f) == (bool(f.path) and f.path[0] == hop) for f in plan)
    assert checked > 50


def test_future_labels_come_from_the_window_alone():
    db = flights()
    view = choose_rows(np.random.default_rng(0), db, 'planes', 100, TaskConfig(snapshot_share=1.))
    found = {c.name: c.values for c in future_candidates(view)}
    f = db.table_dict['flights']
    key = db.table_dict['planes'][db.schema['planes'].pkey_col].to_numpy()
    t = db.times('flights').view('int64')
    fkey = next(k for k in db.schema.fkeys_to('planes') if k.child == 'flights')
    for i in range(0, 100, 9):
        mine = f[(f[fkey.columns[0]] == key[view.rows[i]]).to_numpy() & (t >= view.cutoffs[i]) & (t < view.cutoffs[i] + view.window)]
        assert found['COUNT(flights) in the window'][i] == len(mine)
        assert np.isclose(found['MEAN(flights.distance) in the window'][i], mine['distance'].mean(), equal_nan=True)


def test_every_task_is_valid():
    for seed in range(80):
        for task in each_task(seed, sample_database(seed), 200, 12, 120):
            x, y, n = task.x, task.y, 120 if len(task.y) > 126 else round(.7*len(task.y))
            assert x.dtype == y.dtype == np.float32 and x.shape == (len(y), len(task.names)) and x.shape[1] <= 12 and len(y) <= 200
            assert .05 <= y.mean() <= .95 and 0 < y[:n].mean() < 1 and 0 < y[n:].mean() < 1
            assert not np.isinf(x).any() and len(set(task.names)) == len(task.names)


def test_queries_lie_later_where_that_is_asked_for():
    config, seen = TaskConfig(later_share=1.), 0
    for seed in range(30):
        db = sample_database(seed)
        for entity in db.schema.names:
            view, _ = make_view(np.random.default_rng(seed), db, entity, 100, 60, config)
            if view.cutoffs is not None and len(view.rows) > 60:
                assert view.cutoffs[:60].max() <= view.cutoffs[60:].min()
                seen += 1
    assert seen > 10


def test_a_propensity_is_a_sum_of_features_and_noise_that_a_row_shares_for_a_while():
    rng, R, shared, signal = np.random.default_rng(3), 400, [], []
    rows, cutoffs = np.repeat(np.arange(R//2), 2), np.tile([0, 10**15], R//2)
    for _ in range(300):
        view = View(None, 'any', rows, cutoffs, 1, False, (), rng.normal(size=(R, 5)))
        values = propensity(rng, view, squashed(view.x)).values
        fit = view.x @ np.linalg.lstsq(view.x, values, rcond=None)[0]
        rest = (values - fit).reshape(-1, 2)
        signal.append(np.corrcoef(fit, values)[0, 1]); shared.append(np.corrcoef(rest.T)[0, 1])
    assert np.quantile(signal, .1) < .35 and np.quantile(signal, .9) > .85             # from nearly nothing to nearly everything
    assert max(shared) > .7 and abs(np.quantile(shared, .2)) < .15                    # one season for both looks, or two


def test_only_propensities_come_where_they_alone_are_wanted():
    config, some = TaskConfig(propensity_share=1.), 0
    for seed in range(20):
        tasks, again = ([*each_task(seed, sample_database(seed), 200, 12, 120, config)] for _ in range(2))
        assert all(t.target == 'propensity' for t in tasks) and [t.x.tobytes() + t.y.tobytes() for t in tasks] == [t.x.tobytes() + t.y.tobytes() for t in again]
        some += len(tasks)
    assert some > 60


def test_noise_rarely_passes_and_signal_always():
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(200):
        x, y = rng.normal(size=(300, 10)), rng.random(300) < .4
        passed += teaches(x, standard_ranks(x), y)
        y = x[:, 3] + .5*rng.normal(size=300) > 0
        assert teaches(x, standard_ranks(x), y)
    assert passed <= 20


def test_parents_without_rows_have_no_children_to_visit():
    import pandas as pd
    empty = Database.from_frames({'p': pd.DataFrame({'id': pd.Series([], dtype='int64')}), 'c': pd.DataFrame({'cid': [1, 2], 'p': [7, 8]})}, {'p': 'id', 'c': 'cid'}, {'c': {'p': 'p'}})
    assert [visits(empty, f, 0) for f in plan_features(empty.schema, 'p')] == [0.]


def test_bad_input_is_told():
    for depth in ((3, 1), (1.5, 2), (1,), 2):
        with pytest.raises(InputError, match='TaskConfig.depth must be'): TaskConfig(depth=depth)
    with pytest.raises(InputError, match='at least 20 rows and 1 column, got n_rows=10'): next(each_task(0, flights(), 10))
    for field, value in (('noise_share', 1.5), ('generated', 0), ('depth', (0, 9)), ('n_targets', 0)):
        with pytest.raises(InputError, match=f'TaskConfig.{field} must lie in'): TaskConfig(**{field: value})
