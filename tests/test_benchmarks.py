"""Registry, loaders and suites: sizes, names, both of RelBench's interfaces, folders, submissions."""
import json, subprocess, sys
from configparser import ConfigParser
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock
import numpy as np, pandas as pd, pytest
from rdbpfn import benchmarks as bm
from rdbpfn.benchmarks import RELATIONAL, SINGLE, Entry, OneTable, find_entries, from_relbench, load_suite, read_table, relbench_entries, size_note, write_predictions
from rdbpfn.core import InputError
from rdbpfn.database import Database
from rdbpfn.evaluate import FewShot
from rdbpfn.examples import Task

days = pd.date_range('2020-01-01', periods=100)


@pytest.fixture
def folder(tmp_path):
    "Ten shops with sales; is their number even? And how large is it?"
    rng = np.random.default_rng(0)
    shops = pd.DataFrame(dict(shop=np.arange(10), size=rng.normal(size=10)))
    sales = pd.DataFrame(dict(sale=np.arange(400), shop=rng.integers(0, 10, 400), day=rng.choice(days, 400), paid=rng.normal(size=400), sign=rng.integers(0, 2, 400)))
    Database.from_frames(dict(shops=shops, sales=sales), dict(shops='shop', sales='sale'), dict(sales={'shop': 'shops'}), dict(sales='day')).to_folder(tmp_path/'town')
    for name, label in dict(even=lambda s: s % 2, large=lambda s: s/10).items():
        (to := tmp_path/'town'/'tasks'/name).mkdir(parents=True)
        for split, span in dict(train=(20, 50), val=(50, 60), test=(60, 90)).items():
            pd.DataFrame([(s, d, label(s)) for d in days[span[0]:span[1]:5] for s in range(10)], columns=['shop', 'at', 'label']).to_parquet(to/f'{split}.parquet')
        (to/'task.json').write_text(json.dumps(dict(entity='shop', time='at', label='label', entity_table='shops')))
    return tmp_path


class RelBench:
    "RelBench's task on the same data, with the attributes that both versions have"
    def __init__(self, folder, kind='binary_classification', own_db=False, remove=(), label='label'):
        self.task, self.task_type, self.remove_columns = Task.from_folder(folder/'town', 'even'), SimpleNamespace(value=kind), list(remove)
        self.entity_table, self.entity_col, self.time_col, self.target_col = 'shops', 'shop', 'at', label
        self.asked_past, self.kept = [], {}                       # RelBench keeps a database and gives it to every task
        if own_db: self.get_db = self._db                         # version 3: the task cuts what it must not see
        else: self.dataset = SimpleNamespace(get_db=self._db)
    def _db(self, upto_test_timestamp):
        self.asked_past.append(upto_test_timestamp)
        db = self.task.database
        tables = self.kept or {t.name: SimpleNamespace(df=db.table_dict[t.name].copy(), pkey_col=t.pkey_col, time_col=t.time_col, fkey_col_to_pkey_table={f.columns[0]: f.parent for f in db.schema.fkeys_of(t.name)}) for t in db.schema.tables}
        self.kept = tables
        return SimpleNamespace(table_dict=tables)
    def get_table(self, split, mask_input_cols):
        assert mask_input_cols is False, 'labels of the test split are needed to score it'
        return SimpleNamespace(df=getattr(self.task, split).rename(columns={'label': self.target_col}).assign(extra=1))


def fake(version, tasks):
    module = ModuleType('relbench')
    opened = []
    def load_dataset(where):
        opened.append(where)
        return SimpleNamespace(get_task_names=lambda: list(tasks), load_task=tasks.__getitem__)
    if version == 3: module.load_dataset = load_dataset
    old = SimpleNamespace(get_task=lambda db, n, download: opened.append((db, n, download)) or tasks[n], get_task_names=lambda db: list(tasks))
    return mock.patch.dict(sys.modules, {'relbench': module, 'relbench.tasks': old}), opened


def test_registry_is_the_papers():
    assert len(RELATIONAL) == 19 and len(SINGLE) == 23 and RELATIONAL.index.is_unique and SINGLE.index.is_unique
    assert RELATIONAL.sum().tolist() == [17969038, 1380191, 1374347], 'Table 2'
    assert (SINGLE.rows.sum(), SINGLE['columns'].sum()) == (2524104, 890), 'Table 3'
    assert SINGLE.openml.is_unique and SINGLE.openml.between(44089, 45039).all()


@pytest.mark.parametrize('version', (2, 3))
@pytest.mark.parametrize('own_db', (False, True))
def test_relbench_gives_the_features_of_the_folder(folder, version, own_db):
    theirs = RelBench(folder, own_db=own_db)
    patch, opened = fake(version, dict(even=theirs, large=RelBench(folder, 'regression')))
    with patch: (entry,) = relbench_entries('rel-town')
    assert entry.name == 'rel-town/even' and opened[0] == ('rel-town' if version == 3 else ('rel-town', 'even', True))
    a, b = (FewShot(t, n_shots=(20,), n_draws=1) for t in (replace(Task.from_folder(folder/'town', 'even'), name=entry.name), entry.load()))
    for x, y in zip(a.cell(20, 0), b.cell(20, 0)): (pd.testing.assert_frame_equal if isinstance(x, pd.DataFrame) else np.testing.assert_array_equal)(x, y)
    assert theirs.asked_past == [False], 'the whole database, once: the regime decides what is seen'


def test_removed_columns_are_gone(folder):
    theirs = RelBench(folder, remove=[('sales', 'sign'), ('shops', 'not there')])
    task = from_relbench(theirs, 'rel-town/even')
    assert 'sign' not in task.database.schema['sales'].names and 'sign' in theirs.kept['sales'].df, 'the next task of their database has it'
    X = FewShot(task, n_shots=(20,), n_draws=1).data[1]
    assert not [c for c in X if 'sign' in c] and [c for c in X if 'paid' in c]


def test_a_label_in_the_entity_table_is_no_feature(folder):
    "Autocomplete tasks ask for a column of the database"
    task = from_relbench(RelBench(folder, label='size'), 'rel-town/size')
    assert 'size' in task.database.schema['shops'].names and not [c for c in FewShot(task, n_shots=(20,), n_draws=1).data[1] if c == 'size']


def test_dbinfer_is_hosted_elsewhere():
    patch, opened = fake(3, {})
    with patch:
        bm.relbench_tasks('dbinfer-avs'), bm.relbench_tasks('rel-f1'), bm.relbench_tasks('rel-f1', '/data')
    assert opened == ['stanford-star/dbinfer/dbinfer-avs', 'rel-f1', '/data/rel-f1']


def test_old_relbench_has_no_folders():
    patch, _ = fake(2, {})
    with patch, pytest.raises(InputError, match='version 3'): bm.relbench_tasks('rel-f1', '/data')


def registry(*tasks):
    "RelBench 2's: classes, arguments and options, by database and task; an autocomplete task has its type among the options"
    kinds = dict(binary=(SimpleNamespace(task_type=SimpleNamespace(value='binary_classification')), (), {}), number=(SimpleNamespace(task_type=SimpleNamespace(value='regression')), (), {}),
                 column=(SimpleNamespace(), (), dict(task_type=SimpleNamespace(value='binary_classification'))), unknown=(SimpleNamespace(), (), {}))
    return {'rel-town': {f'{n}-{k}': kinds[k] for n, k in tasks}}


def test_every_task_of_relbench_2(folder):
    "The registry tells what is binary, and nothing is opened before its turn"
    patch, opened = fake(2, {n: RelBench(folder) for n in ('even-binary', 'size-column', 'odd-unknown')})
    with patch:
        sys.modules['relbench.tasks'].task_registry = registry(('even', 'binary'), ('large', 'number'), ('size', 'column'), ('odd', 'unknown'))
        entries = load_suite('relbench-all')
        assert [e.name for e in entries] == ['rel-town/even-binary', 'rel-town/size-column', 'rel-town/odd-unknown'] and opened == []
        assert entries[0].load().name == 'rel-town/even-binary' and opened == [('rel-town', 'even-binary', True)]


def hub(files, kinds):
    "RelBench 3's hosts: the lists of their files, and a manifest for each task"
    api = lambda: SimpleNamespace(list_repo_files=lambda repo, repo_type: files[repo])
    hf = SimpleNamespace(RELBENCH_REPOS=tuple(files), download_task_manifest=lambda database, task: f'{database}/{task}')
    manifest = SimpleNamespace(TaskManifest=SimpleNamespace(load=lambda path: SimpleNamespace(task_type=kinds[path])))
    return {'huggingface_hub': SimpleNamespace(HfApi=api), 'relbench.hf': hf, 'relbench.manifest': manifest}


def test_every_task_of_relbench_3(folder):
    files = dict(one=['README.md', 'rel-town/manifest.yaml', 'rel-town/db/shops.parquet', 'rel-town/tasks/even/manifest.yaml', 'rel-town/tasks/even/train.parquet', 'rel-town/tasks/large/manifest.yaml'],
                 two=['rel-town/tasks/odd/manifest.yaml', 'rel-town/tasks/even/manifest.yaml'])
    modules = hub(files, {'rel-town/even': 'binary_classification', 'rel-town/odd': 'binary_classification', 'rel-town/large': 'regression'})
    patch, opened = fake(3, dict(even=RelBench(folder), odd=RelBench(folder)))
    with patch, mock.patch.dict(sys.modules, modules):
        sys.modules['relbench'].hf, sys.modules['relbench'].manifest = modules['relbench.hf'], modules['relbench.manifest']
        entries = load_suite('relbench-all')
        assert [e.name for e in entries] == ['rel-town/even', 'rel-town/odd'] and opened == []
        assert entries[1].load().name == 'rel-town/odd' and opened == ['rel-town']
        sys.modules['huggingface_hub'].HfApi = lambda: (_ for _ in ()).throw(OSError('offline'))
        with pytest.raises(InputError, match=r'RelBench did not list its tasks \(OSError\)'): load_suite('relbench-all')


def test_every_task_of_a_folder_of_relbench(folder):
    (folder/'rel-x').mkdir()
    (folder/'rel-x'/'manifest.yaml').write_text('')
    patch, opened = fake(3, dict(even=RelBench(folder), large=RelBench(folder, 'regression')))
    with patch: assert [e.name for e in load_suite('relbench-all', folder)] == ['rel-x/even']
    assert opened == [str(folder/'rel-x')]


def test_every_task_that_the_installed_relbench_knows():
    pytest.importorskip('relbench')
    if hasattr(sys.modules['relbench'], 'load_dataset'): pytest.skip('version 3 asks its hosts')
    names = [e.name for e in load_suite('relbench-all')]
    assert {t for t in RELATIONAL.index if t.startswith('rel-')} <= set(names) and 'rel-f1/driver-position' not in names


def test_suites_without_relbench():
    with mock.patch.dict(sys.modules, {'relbench': None}):
        with pytest.raises(InputError, match='not installed'): load_suite('relbench-all')
        said = []
        with pytest.raises(InputError, match="Nothing of the suite 'relbench' can be had: RelBench is not installed"): list(bm.open_entries('relbench', load_suite('relbench'), said.append))
        assert said == []


def test_without_relbench():
    with mock.patch.dict(sys.modules, {'relbench': None}), pytest.raises(InputError, match=r"pip install 'rdbpfn\[relbench\]'"): load_suite('relbench')[0].load()


def test_a_folder_is_searched(folder):
    pd.DataFrame(dict(x=[1, 2], y=[0, 1])).to_csv(folder/'loose.csv', index=False)
    (folder/'tables').mkdir()
    pd.DataFrame(dict(x=[1, 2], y=[0, 1])).to_parquet(folder/'tables'/'credit.parquet')
    (folder/'notes.txt').write_text('no data')
    names = ['town/even', 'single/credit', 'single/loose']
    assert [e.name for e in find_entries(folder)] == names == [e.name for e in load_suite('dev', folder)]
    assert [e.name for e in load_suite('town', folder)] == names[:1] and [e.name for e in load_suite('single', folder)] == names[1:]
    assert [e.name for e in find_entries(folder/'town')] == names[:1], 'the tables of a database are no single tables'
    with pytest.raises(InputError, match='town'): load_suite('twon', folder)


def test_manifest_folders_are_relbenchs(folder):
    (folder/'rel-x').mkdir()
    (folder/'rel-x'/'manifest.yaml').write_text('')
    patch, opened = fake(3, dict(even=RelBench(folder)))
    with patch: assert [e.name for e in find_entries(folder)] == ['rel-x/even', 'town/even']
    assert opened == [str(folder/'rel-x')]


def test_a_local_folder_stands_in_for_relbench_and_openml(folder):
    (folder/'town').rename(folder/'rel-hm')
    (folder/'rel-hm'/'tasks'/'even').rename(folder/'rel-hm'/'tasks'/'user-churn')
    pd.DataFrame(dict(x=[1, 2], y=[0, 1])).to_csv(folder/'pol.csv', index=False)
    task = next(e for e in load_suite('paper', folder) if e.name == 'rel-hm/user-churn')
    with pytest.warns(UserWarning, match='rel-hm/user-churn: sizes differ .*train 60 instead of 3,871,410'): assert task.load().name == 'rel-hm/user-churn'
    table = next(e for e in load_suite('paper-single', folder) if e.name == 'single/pol')
    with pytest.warns(UserWarning, match='rows 2 instead of 10,082, columns 1 instead of 26'): assert table.load().name == 'single/pol'


def test_local_tables_are_found_in_sub_folders(folder, monkeypatch):
    "As the other suites do: next to the folder's databases, in the folder itself or one below; what is not there comes from OpenML"
    asked = []
    monkeypatch.setattr(bm, 'openml_table', asked.append)
    (folder/'tables').mkdir()
    pd.DataFrame(dict(x=[1, 2], y=[0, 1])).to_parquet(folder/'tables'/'pol.parquet')
    pd.DataFrame(dict(x=[1, 2, 3], y=[0, 1, 1])).to_csv(folder/'tables'/'heloc.csv', index=False)
    opened = {e.name: e.open() for e in load_suite('paper-single', folder) if e.name in ('single/pol', 'single/heloc', 'single/credit')}
    assert (opened['single/pol'].sizes['rows'], opened['single/heloc'].sizes['rows'], asked) == (2, 3, ['credit'])
    with pytest.raises(InputError, match='There is no folder'): load_suite('paper-single', folder/'nowhere')


@pytest.mark.skipif(not (Path(__file__).resolve().parents[2]/'shared'/'data').is_dir(), reason='the development data are not here')
def test_the_tables_of_the_paper_in_the_development_folder(monkeypatch):
    def asked(name): raise InputError('online')
    monkeypatch.setattr(bm, 'openml_table', asked)
    found = [e.name for e, _ in bm.open_entries('paper-single', load_suite('paper-single', Path(__file__).resolve().parents[2]/'shared'/'data'), lambda line: None)]
    assert len(found) == 8 and 'single/compas-two-years_cat' in found


def test_openml_offline_says_what_to_do():
    def offline(**how): raise OSError('no route')
    with pytest.raises(InputError, match='put pol.parquet into a folder'): bm.openml_table('pol', offline)


def test_size_note_names_every_difference():
    table = OneTable('t', pd.DataFrame(dict(a=[1], b=[2], y=[0])))
    assert size_note(table, dict(rows=1, columns=2)) is None and size_note(table, {}) is None
    assert size_note(table, dict(rows=0)) == 'sizes differ from the published ones (rows 1 instead of 0)'
    assert size_note(table, dict(rows=3, columns=9)) == 'sizes differ from the published ones (rows 1 instead of 3, columns 2 instead of 9)'


def test_entries_are_lazy():
    def never(): raise AssertionError
    assert Entry('rel-f1/driver-dnf', never).published == dict(train=11411, val=566, test=702)
    assert Entry('single/heloc', never).published == dict(rows=10000, columns=22) and Entry('x/y', never).published == {}


def test_bad_tables_are_told(tmp_path):
    (tmp_path/'a.parquet').write_text('not parquet')
    with pytest.raises(InputError, match='neither Parquet nor CSV'): read_table(tmp_path/'a.parquet')


def test_submission_holds_every_row_once(folder, tmp_path):
    task = replace(Task.from_folder(folder/'town', 'even'), name='rel-town/even')
    p = np.linspace(0, 1, len(task.test))
    back = pd.read_csv(write_predictions(task, p, tmp_path/'out'), parse_dates=['at'])
    assert (tmp_path/'out'/'rel-town__even.csv').exists() and list(back) == ['shop', 'at', 'label']
    assert np.allclose(back.label, p) and (back[['shop', 'at']] == task.test[['shop', 'at']].reset_index(drop=True)).all(None)
    twice = replace(task, test=pd.concat([task.test, task.test[:3]]))
    with pytest.raises(InputError, match='3 test rows repeat'): write_predictions(twice, np.zeros(len(twice.test)), tmp_path)
    with pytest.raises(InputError, match='1 of .* predictions are no probabilities'): write_predictions(task, np.r_[np.nan, p[1:]], tmp_path)


development = Path(__file__).resolve().parents[2]/'shared'/'data'


@pytest.mark.skipif(not development.is_dir(), reason='the development data are not here')
def test_development_suite():
    entries = load_suite('dev', development)
    assert [e.name.split('/')[0] == 'single' for e in entries] == [False]*8 + [True]*8
    for e in entries:
        if e.published: assert size_note(e.open(), e.published) is None, e.name
    assert sum(bool(e.published) for e in entries) == 10


# RelArena

root = Path(__file__).resolve().parents[1]


def test_the_package_declares_its_relarena_model(tmp_path):
    "The metadata that RelArena reads: the entry point is there and names a module that can be imported"
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '-e', str(tmp_path)], cwd=root, check=True, capture_output=True)
    (file,) = tmp_path.glob('*.egg-info/entry_points.txt')
    parser = ConfigParser(delimiters=['='])
    parser.read(file)
    assert dict(parser['relarena.models']) == {'rdbpfn': 'rdbpfn.arena'}
    module = EntryPoint('rdbpfn', parser['relarena.models']['rdbpfn'], 'relarena.models').load()
    assert callable(module.register) and module.ArenaModel.name == 'rdbpfn'


def test_relarena_takes_the_model(folder):
    "With RelArena itself: importing the module registers a model that it can make, fit and ask"
    pytest.importorskip('relarena_core')
    from relarena_core.model import RelArenaModel
    from relarena_core.registry import registry as theirs
    import rdbpfn.arena
    cls = theirs.get('rdbpfn')
    assert issubclass(cls, (RelArenaModel, rdbpfn.arena.ArenaModel)) and theirs.kind('rdbpfn') == 'model' and theirs.search_space('rdbpfn').default_overrides == {}
    assert [t.value for t in cls.supported_task_types] == ['binary_classification']
    task, model = RelBench(folder, own_db=True), cls({})
    db, table = task.get_db(upto_test_timestamp=False), lambda split: task.get_table(split, mask_input_cols=False)
    model.fit(task, db, table('train'), table('val'), seed=0, time_limit=60.)
    p = model.predict(task, db, SimpleNamespace(df=table('test').df.drop(columns=task.target_col)))
    assert p.shape == (len(table('test').df),) and ((p >= 0) & (p <= 1)).all()
