"""Models by name: the same features for all, seeds, what is not installed, what a record calls them."""
import os, signal, sys
from types import SimpleNamespace
from unittest import mock
import numpy as np, pandas as pd, pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from rdbpfn.baselines import (IN_CONTEXT, MODELS, AutoGluon, ConstantPerEntity, NotInstalled, encode, make_model, name_models, split_passes, tabicl, tabpfn)
from rdbpfn.core import InputError
from rdbpfn.evaluate import run_cell, SingleTable

here = ('constant', 'constant_per_entity', 'logistic', 'random_forest', 'lightgbm')


def frame(n, seed):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(dict(city=pd.Categorical(rng.choice(['Oslo', 'Rome', 'Bern'], n)), age=np.where(rng.random(n) < .2, np.nan, rng.normal(size=n)),
                          flag=rng.random(n) < .5, size=rng.normal(size=n), weight=rng.normal(size=n)), index=rng.integers(0, 9, n))
    X.columns = ['city', 'age', 'flag', 'COUNT(orders: {paid})', 'MEAN(a <- b.c, d)']          # names that boosters dislike
    return X, (X['COUNT(orders: {paid})'] + (X.city == 'Oslo') + rng.normal(size=n)/3 > .3).astype(int).to_numpy()


@pytest.mark.parametrize('name', here)
def test_every_model_takes_mixed_frames(name):
    (X, y), (Xq, yq) = frame(120, 0), frame(60, 1)
    p = make_model(name, seed=1).fit(X, y).predict_proba(Xq)
    assert p.shape == (60, 2) and np.allclose(p.sum(1), 1) and (p >= 0).all()
    if name in ('logistic', 'random_forest', 'lightgbm'): assert ((p[:, 1] > .5) == yq).mean() > .8


@pytest.mark.parametrize('name', ('random_forest', 'lightgbm'))
def test_seed_decides(name):
    (X, y), (Xq, _) = frame(80, 0), frame(40, 1)
    one, same, other = (make_model(name, seed=s).fit(X, y).predict_proba(Xq) for s in (3, 3, 4))
    assert (one == same).all() and (name == 'lightgbm' or (one != other).any())


def test_paper_settings():
    assert make_model('random_forest')[-1].n_estimators == 500
    xgb = make_model('xgboost')[-1].get_params()
    assert {k: xgb[k] for k in ('n_estimators', 'learning_rate', 'max_depth', 'subsample', 'colsample_bytree')} == dict(n_estimators=5000, learning_rate=.01, max_depth=12, subsample=.8, colsample_bytree=.8)
    assert AutoGluon().presets == 'medium_quality' and AutoGluon().time_limit == 60
    assert all(make_model(n)[-1].get_params().get('n_jobs', 1) == 1 for n in ('random_forest', 'xgboost', 'lightgbm'))


def test_codes_belong_to_the_context():
    X = pd.DataFrame(dict(c=pd.Categorical(['b', 'a', None])))
    coder = encode().fit(X)
    np.testing.assert_array_equal(coder.transform(pd.DataFrame(dict(c=pd.Categorical(['z', 'b', None]))))[:, 0], [-1, 1, np.nan])


def test_many_categories_stay_few_columns():
    X = pd.DataFrame(dict(c=pd.Categorical([f'c{i % 60}' for i in range(200)])))
    assert encode(one_hot=True).fit(X).transform(X).shape[1] <= 20


def test_entity_rates():
    X = pd.DataFrame(dict(x=0.), index=['a', 'a', 'a', 'b', 'c'])
    p = ConstantPerEntity().fit(X, np.array([1, 1, 0, 0, 1])).predict_proba(X.set_axis(['b', 'a', 'z', 'c', 'a']))[:, 1]
    assert p.tolist() == pytest.approx([0, 2/3, .6, 1, 2/3])


def test_entity_baseline_on_a_single_table_is_the_base_rate():
    table = SingleTable('t', pd.DataFrame(dict(x=range(100), y=np.arange(100) % 2)), 'y')
    assert run_cell(table, 'constant_per_entity', 70, 0)['auc'] == .5


@pytest.mark.parametrize('name', ('tabpfn', 'tabpfn-1', 'tabicl', 'tabicl-4', 'autogluon', 'mitra'))
def test_not_installed_is_one_sentence(name):
    package = {'autogluon': 'autogluon.tabular', 'mitra': 'autogluon.tabular'}.get(name, name.split('-')[0])
    with mock.patch.dict(sys.modules, {package: None, package.split('.')[0]: None}), pytest.raises(NotInstalled, match=f"'{package}' is not installed: pip install"): make_model(name)


@pytest.mark.filterwarnings('error')
def test_those_who_are_not_there_are_left_out_once():
    said = []
    with mock.patch.dict(sys.modules, dict(tabpfn=None)): assert name_models(['tabpfn-1', 'constant'], said.append) == dict(constant='constant')
    (line,) = said
    assert line.startswith("tabpfn-1 is left out. The package 'tabpfn' is not installed: pip install tabpfn")


class Installed(ClassifierMixin, BaseEstimator):
    "An in-context model whose weights are here or not"
    def __init__(self, random_state=None, n_estimators=None, n_jobs=None): self.random_state, self.n_estimators, self.n_jobs = random_state, n_estimators, n_jobs
    def fit(self, X, y):
        if not weights: raise OSError('no route to the host')
        if weights == 'too large': os.kill(os.getpid(), signal.SIGKILL)
        self.classes_ = np.array([0, 1])
        return self
    def predict_proba(self, X): return np.tile([.4, .6], (len(X), 1))

weights = None


@pytest.mark.parametrize('state, reason', ((None, 'OSError: no route to the host'), ('too large', 'killed: the process ended with status -9'), ('here', None)))
@pytest.mark.parametrize('name, cls', (('tabpfn', 'TabPFN'), ('tabicl-2', 'TabICL')))
def test_a_model_without_its_weights_is_left_out(name, cls, state, reason, monkeypatch):
    said = []
    monkeypatch.setattr(sys.modules[__name__], 'weights', state)
    monkeypatch.setitem(sys.modules, name.split('-')[0], SimpleNamespace(**{f'{cls}Classifier': Installed}))
    assert list(name_models(['constant', name], said.append)) == ['constant'] + [name]*(reason is None)
    assert len(said) == (reason is not None) and all(line.startswith(f'{name} is left out. It is installed but') and reason in line and 'are its weights here?' in line for line in said)


def test_none_is_left(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tabpfn', None)
    with pytest.raises(InputError, match='None of the models tabpfn, tabpfn-1 can be run here'): name_models(['tabpfn', 'tabpfn-1'], lambda line: None)


def test_passes_of_in_context_models():
    fakes = {k: SimpleNamespace(**{f'{n}Classifier': lambda **how: SimpleNamespace(**how, fit=None, predict_proba=None)}) for k, n in dict(tabpfn='TabPFN', tabicl='TabICL').items()}
    with mock.patch.dict(sys.modules, fakes):
        assert make_model('tabpfn-1', seed=5)[-1].n_estimators == 1 and make_model('tabicl-7')[-1].n_estimators == 7
        assert not hasattr(make_model('tabpfn')[-1], 'n_estimators') and make_model('tabpfn', seed=5)[-1].random_state == 5
        assert tabicl(n_jobs=3)[-1].n_jobs == 3 and tabpfn(passes=2)[-1].n_estimators == 2


def test_autogluon_sees_named_columns_and_the_label():
    seen = {}
    class Predictor:
        def __init__(self, label, **how): seen.update(label=label, how=how)
        def fit(self, frame, **how): seen.update(frame=frame, fit=how)
        def predict_proba(self, frame): return pd.DataFrame({0: [.25]*len(frame), 1: [.75]*len(frame)})
    X, y = frame(30, 0)
    with mock.patch.dict(sys.modules, {'autogluon': SimpleNamespace(), 'autogluon.tabular': SimpleNamespace(TabularPredictor=Predictor)}):
        p = make_model('mitra').fit(X, y).predict_proba(X[:4])
    assert p[:, 1].tolist() == [.75]*4 and (seen['frame'][seen['label']] == y).all() and seen['frame'].columns[:2].tolist() == ['c0', 'c1']
    assert seen['fit']['hyperparameters'] == {'MITRA': {'fine_tune': False}} and seen['how']['problem_type'] == 'binary'


def test_names_in_records(tmp_path):
    (w := tmp_path/'my weights.v2.safetensors').write_bytes(b'')
    with mock.patch('rdbpfn.baselines.make_model'):
        assert list(name_models([f'{w}', f'{w}-1', f'old={w}-4', 'rdbpfn-1', 'a.b:C'])) == ['my weights.v2', 'my weights.v2-1', 'old', 'rdbpfn-1', 'a.b:C']
    with pytest.raises(InputError, match="Two models are called 'x'"): name_models(['x=constant', 'x=logistic'])
    assert split_passes('a-b') == ('a-b', None) and split_passes('a-12') == ('a', 12)


def test_registry_names_do_not_look_like_passes():
    assert all(split_passes(n)[1] is None for n in (*MODELS, *IN_CONTEXT))
    with pytest.raises(InputError, match='tabicl'): make_model('tabikl')
