"The prior: whole databases, in order, the same bytes on any number of workers, and configs that refuse nonsense"
import hashlib, os
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from rdbpfn.columns import ColumnConfig
from rdbpfn.content import ContentConfig
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.prior import LARGE, SMALL, PriorConfig, broken_promises, sample_blueprint, sample_database, write_databases
from rdbpfn.stream import bench_prior, bench_rows, database_seed, in_order, sample_batch, tasks_of
from rdbpfn.structure import StructureConfig
from rdbpfn.tasks import each_task
from rdbpfn.temporal import TemporalConfig
from rdbpfn.topology import TopologyConfig
from rdbpfn.views import TaskConfig
from rdbpfn.worlds import TabularConfig


def digest(seed, config=SMALL):
    h = hashlib.sha256()
    for t in sample_database(seed, config).table_dict.values(): h.update(pd.util.hash_pandas_object(t).to_numpy().tobytes())
    return h.hexdigest()


def test_databases_are_whole():
    for seed in range(200): assert not broken_promises(sample_database(seed)), seed
    for seed in range(20): assert not broken_promises(sample_database(seed, LARGE)), seed


def test_broken_promises_are_seen():
    db = next(d for d in map(sample_database, range(50)) if any(d.schema[f.child].time_col and d.schema[f.parent].time_col for f in d.schema.fkeys))
    f = next(f for f in db.schema.fkeys if db.schema[f.child].time_col and db.schema[f.parent].time_col)
    def broken(table, column, value):
        frames = {n: t.copy() for n, t in db.table_dict.items()}
        frames[table].loc[frames[table].index[-1], column] = value
        return ' '.join(broken_promises(Database(frames, db.schema)))
    assert 'duplicate key' in broken(f.parent, 'id', 0)
    assert 'dangling' in broken(f.child, f.columns[0], 10**6)
    assert 'a child before its parent' in broken(f.child, 'time', pd.Timestamp('1900-01-01')) and 'not in the order of time' in broken(f.child, 'time', pd.Timestamp('1900-01-01'))
    t, c = next((t.name, c.name) for t in db.schema.tables for c in t.columns if c.kind == 'number')
    assert 'infinite' in broken(t, c, np.inf)


def test_same_bytes_on_any_number_of_workers():
    want = [digest(s) for s in range(12)]
    assert want == list(in_order(digest, range(12), 4)) == list(in_order(digest, range(12), 1))
    assert len(set(want)) == 12


def test_every_database_has_six_balanced_targets():
    for seed in range(60): assert len(list(each_task(seed, sample_database(seed), config=TaskConfig(noise_share=1.)))) == 6, seed


def test_presets_differ_in_columns():
    for config, low, high in ((SMALL, 8, 12), (LARGE, 12, 24)):
        n = [sample_blueprint(s, config).n_columns for s in range(100)]
        assert min(n) >= low and max(n) <= high and len(set(n)) > 3


def test_both_schema_priors_are_used():
    designed, learned = (replace(SMALL, learned_share=s) for s in (0., 1.))
    same = [sum(sample_blueprint(s) == sample_blueprint(s, c) for s in range(64)) for c in (designed, learned)]
    assert min(same) > 15 and sum(same) >= 64


@pytest.mark.parametrize('make, words', [
    (lambda: PriorConfig(learned_share=-.1), 'PriorConfig.learned_share must lie in'), (lambda: PriorConfig(days=(0, 10)), 'PriorConfig.days must lie in'),
    (lambda: PriorConfig(ticks=(1, 1, 0, 0)), 'PriorConfig.ticks must be 4 chances'), (lambda: StructureConfig(candidates=(0, 4)), 'StructureConfig.candidates must lie in'),
    (lambda: TopologyConfig(rows=(0, 10)), 'TopologyConfig.rows must lie in'), (lambda: TopologyConfig(tables=(2, 3), max_fkeys=9), 'TopologyConfig.max_fkeys must lie in'),
    (lambda: ContentConfig(n_rounds=(-1, 2)), 'ContentConfig.n_rounds must lie in')])
def test_impossible_configs_are_refused(make, words):
    with pytest.raises(InputError) as e: make()
    assert words in str(e.value)


@pytest.mark.parametrize('make, field, bad', [
    (TabularConfig, 'n_layers', [(3, 1), (1,), (1.5, 2)]), (TabularConfig, 'noise', [(.5, .01), .5]), (TabularConfig, 'minority', [(.5, .05)]), (ColumnConfig, 'noise', [(1., .01)]), (ColumnConfig, 'n_categories', [(10, 2)]),
    (PriorConfig, 'days', [(7000., 60.), (60.,)]), (StructureConfig, 'candidates', [5, (8, 2)]), (ContentConfig, 'n_rounds', [(2, 1), (0, 1.)]), (TemporalConfig, 'n_forms', [(4, 1), (1, 2, 3)]), (TemporalConfig, 'strength', [(1., 0.)])])
def test_pairs_that_hold_nothing_are_refused(make, field, bad):
    for value in bad:
        with pytest.raises(InputError) as e: make(**{field: value})
        assert f'{make.__name__}.{field} must be (smallest, largest)' in str(e.value)
    make(**{field: (getattr(make(), field)[0],)*2})                               # a single value is a pair, too


def test_folders_hold_what_was_drawn_and_go_on(tmp_path):
    write_databases(tmp_path, 2)
    os.remove(tmp_path/'000001'/'schema.json')
    kept = (tmp_path/'000000'/'schema.json').stat().st_mtime_ns
    write_databases(tmp_path, 3)
    assert (tmp_path/'000000'/'schema.json').stat().st_mtime_ns == kept
    for s in range(3):
        for n, t in Database.from_folder(tmp_path/f'{s:06}').table_dict.items(): pd.testing.assert_frame_equal(t, sample_database(s).table_dict[n])


def test_the_stream_is_a_function_of_seed_and_index():
    one = lambda i: [t.x.tobytes() for t in tasks_of(3, i, 100, 8)]
    assert list(map(one, range(6))) == list(in_order(one, range(6), 3))
    assert database_seed(0, 1) - database_seed(0, 0) == 1 and database_seed(1, 0) > database_seed(0, 2**32 - 1)
    a, b = sample_batch(0, 4, 4, 100, 8, 70), sample_batch(0, 4, 4, 100, 8, 70)
    assert a[0].tobytes() == b[0].tobytes() and a[0].tobytes() != sample_batch(0, 5, 4, 100, 8, 70)[0].tobytes()


def test_the_bench_reports_what_it_promises():
    r = bench_prior(4)
    assert {'databases_per_s', 'tasks_per_s', 'peak_rss_mb', 'stage_share'} <= set(r) and abs(sum(r['stage_share'].values()) - 1) < 1e-9
    assert r['databases_per_s'] > 3 and r['tasks_per_s'] > 5                        # a tenth of what is expected of a free core
    rows = bench_rows((1_000, 30_000))
    assert rows[1]['seconds'] < 40*max(rows[0]['seconds'], .01)
