"""Tables and comparisons from records alone: hand-made cases, known laws, and what happens when a record is missing."""
import json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from scipy import stats
from rdbpfn.core import InputError
from rdbpfn.records import KEY, read_records
from rdbpfn.report import (averages, beside_published, best_on_validation, draw_ranks, make_report, matrix, model_index, most_draws, over_tasks, paired, ranks, read_published,
                           select, t_interval, to_latex, to_markdown)

nbs = Path(__file__).resolve().parent.parent/'nbs'


def record(task='a', model='m', draw=0, n_shots=64, auc=.7, **more):
    return dict(task=task, model=model, weights=None, n_shots=n_shots, draw=draw, regime='seed', features='dfs-2', split='test', n_query=9, auc=auc, log_loss=.6, ece=.1, seconds=1., cpu_seconds=1.) | more


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    return [record(t, m, d, n, float(.6 + .05*i + .02*(m == 'x') + luck)) for i, t in enumerate('abc') for n in (64, 128) for d, luck in enumerate(rng.normal(0, .03, 4)) for m in ('x', 'y')]


def numbers(frame): return {(i, c): frame.loc[i, c] for i in frame.index for c in frame.columns if not pd.isna(frame.loc[i, c])}


def test_a_deleted_record_empties_its_cell_and_changes_no_other(records):
    whole_m, whole_a = matrix(select(records, n_shots=64)), averages(records)
    for i in range(0, len(records), 7):
        less, gone = records[:i] + records[i+1:], records[i]
        m, a = numbers(matrix(select(less, n_shots=64), n_draws=4)), numbers(averages(less, n_draws=4))
        here = {k: v for k, v in numbers(whole_m).items() if gone['n_shots'] != 64 or k != (gone['task'], gone['model'])}
        assert m == here
        assert a == {k: v for k, v in numbers(whole_a).items() if not (k[0][3] == gone['n_shots'] and k[1] == gone['model'])}


def test_a_deleted_task_is_no_average(records):
    a = averages([r for r in records if (r['task'], r['model']) != ('c', 'y')])
    assert a.n_tasks.tolist() == [3, 3] and a.x.notna().all() and a.y.isna().all()


def test_averages_of_one_setting_and_of_many(records):
    assert len(averages(select(records, n_shots=64))) == 1 and len(averages(records)) == 2
    assert averages(records)['x'].iloc[0] == pytest.approx(np.mean([r['auc'] for r in records if (r['model'], r['n_shots']) == ('x', 64)]))


def test_different_questions_never_meet(records):
    with pytest.raises(InputError, match="a has several results of model 'x'"): matrix(select(records, n_shots=64) + [record('a', 'x', d, n_query=8) for d in range(4)])
    with pytest.raises(InputError, match='2 sets of weights'): averages(records + [record('a', 'x', 9, weights='new')])
    assert len(averages(records + [r | dict(regime='frozen') for r in records])) == 4


def test_failed_cells_are_empty(records):
    bad = record('a', 'x', 0, error='out of memory'); del bad['auc']
    m = matrix(select([bad if (r['task'], r['model'], r['draw'], r['n_shots']) == ('a', 'x', 0, 64) else r for r in records], n_shots=64))
    assert m.isna().to_numpy().tolist() == [[True, False], [False, False], [False, False]]


def test_a_draw_of_one_class_is_void_for_all_and_leaves_the_cell_complete(records):
    def void(r): return {k: v for k, v in r.items() if k != 'auc'} | dict(error='one class: all 64 labels of this draw are 0')
    some = [void(r) if (r['task'], r['draw'], r['n_shots']) == ('a', 0, 64) else r for r in records]
    m = matrix(select(some, n_shots=64))
    assert not m.isna().to_numpy().any()
    assert m.loc['a', 'x'] == pytest.approx(np.mean([r['auc'] for r in records if (r['task'], r['model'], r['n_shots']) == ('a', 'x', 64) and r['draw']]))


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low < .3 < high for low, high in (t_interval(.3 + rng.normal(size=6), .9) for _ in range(2000))]
    assert abs(np.mean(hits) - .9) < 4*(.09/2000)**.5


def test_paired_sees_through_shared_luck(records):
    p = paired(records, 'x', 'y')
    assert np.allclose(p['mean'], .02) and (p.low > .0199).all() and (p.above == 1).all() and p.n.tolist() == [4]*6
    q = paired(records, 'y', 'x')
    assert np.allclose(q['mean'], -p['mean']) and np.allclose(q.low, -p.high)


def test_paired_is_by_draw_not_by_position():
    a, b = (.6, .9, .7), (.65, .88, .75)
    rows = [record(model='x', draw=d, auc=v) for d, v in enumerate(a)] + [record(model='y', draw=d, auc=v) for d, v in reversed(list(enumerate(b)))]
    p = paired(rows, 'x', 'y').iloc[0]
    assert p['mean'] == pytest.approx(np.mean([-.05, .02, -.05])) and p.above == pytest.approx(1/3) and p.n == 3
    assert paired(rows[1:], 'x', 'y').iloc[0].n == 2


def test_paired_against_scipy():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 9))
    rows = [record(model=m, draw=d, auc=float(v)) for m, vs in dict(x=x, y=y).items() for d, v in enumerate(vs)]
    want = stats.ttest_rel(x, y).confidence_interval(.95)
    assert paired(rows, 'x', 'y')[['low', 'high']].iloc[0].tolist() == pytest.approx([want.low, want.high])


def test_over_tasks_resamples_tasks():
    rows = [record(t, m, d, auc=.5 + (m == 'x')*g) for t, g in dict(a=0., b=.1, c=.2, d=.3).items() for m in 'xy' for d in range(2)]
    o = over_tasks(paired(rows, 'x', 'y')).iloc[0]
    assert o.n_tasks == 4 and o['mean'] == pytest.approx(.15) and o.above == 3
    exact = [np.mean(c) for c in np.stack(np.meshgrid(*[[0., .1, .2, .3]]*4)).reshape(4, -1).T]         # all 256 resamples
    assert [o.low, o.high] == pytest.approx(np.quantile(exact, [.025, .975]).tolist(), abs=.011)
    assert over_tasks(paired(rows, 'x', 'y')).equals(over_tasks(paired(rows, 'x', 'y')))


def test_ranks_by_hand_and_by_scipy():
    m = pd.DataFrame(dict(p=[.9, .8, .7, .9], q=[.8, .9, .6, .9], r=[.1, .2, .3, .4]), index=list('abcd'))
    r = ranks(m)
    assert r['ranks'].to_dict() == dict(p=(1 + 2 + 1 + 1.5)/4, q=(2 + 1 + 2 + 1.5)/4, r=3.) and r['n_tasks'] == 4
    assert r['p_value'] == pytest.approx(stats.friedmanchisquare(m.p, m.q, m.r).pvalue)
    assert r['cd'] == pytest.approx(2.343*(3*4/(6*4))**.5, abs=1e-3)                                      # Demsar's table: q(3) = 2.343
    assert ranks(m.assign(r=[np.nan, .2, .3, .4]))['left_out'] == ['a'] and np.isnan(ranks(m[['p', 'q']])['p_value'])


@pytest.mark.parametrize('k, n', ((2, 2), (3, 16), (9, 5)))
def test_rank_bars_join_those_within_the_critical_difference(k, n):
    class Axes:
        def __init__(self): self.bars, self.names = [], []
        def plot(self, x, y, **how): self.bars.append((x[0] + .03, x[1] - .03))
        def annotate(self, text, *a, **how): self.names.append(text)
        def __getattr__(self, name): return lambda *a, **how: None
    rng = np.random.default_rng(k)
    r, ax = ranks(pd.DataFrame(rng.normal(size=(n, k)) + np.arange(k), columns=[f'm{i}' for i in range(k)])), Axes()
    draw_ranks(ax, r)
    assert len(ax.names) == k
    at = r['ranks'].to_numpy()
    joined = lambda a, b: any(l - 1e-9 <= a and b <= h + 1e-9 for l, h in ax.bars)
    for i in range(k):
        for j in range(i + 1, k): assert joined(at[i], at[j]) == (at[j] - at[i] <= r['cd'] and at[i] < at[j]) or at[i] == at[j]


def test_best_on_validation_looks_at_validation_only():
    rows = [record(model=m, auc=a) for m, a in dict(x=.9, y=.5).items()] + [record(model=m, auc=a, split='val') for m, a in dict(x=.4, y=.6).items()]
    (r,) = best_on_validation(rows, ('x', 'y'), 'best')
    assert (r['model'], r['chosen'], r['auc'], r['split']) == ('best', 'y', .5, 'test')
    assert best_on_validation(rows, ('x',))[0]['auc'] == .9
    other = [r | dict(n_shots=128) for r in rows if r['split'] == 'test']
    assert len(best_on_validation(rows + other, ('x', 'y'))) == 1, 'no validation at these shots, so no choice'


def test_published_rows_add_up():
    published = read_published(nbs/'results'/'published.json')
    wide = published.pivot(index=['benchmark', 'n_shots', 'model'], columns='task', values='auc')
    checked = 0
    for _, row in wide.iterrows():
        row = row.dropna()
        if len(row) in (20, 24): checked += 1; assert abs(row.drop('average').mean() - row.average) < 6e-5
    assert checked == 18
    assert published.auc.between(.45, 1).all() and len(wide) == 5*15 + 15
    known = published.set_index(['n_shots', 'model', 'task']).auc
    assert [known[n, 'rdb-pfn', 'average'] for n in (64, 128, 256, 512, 1024)] == [.6517, .6688, .6942, .7102, .7245]
    assert [known[n, 'rdb-pfn', 'rel-f1/driver-dnf'] for n in (64, 128, 256, 512, 1024)] == [.6932, .7, .7171, .7219, .7188]
    assert [known[n, 'rdb-pfn', 'rel-f1/driver-top3'] for n in (64, 128, 256, 512, 1024)] == [.7952, .8013, .809, .8023, .8115]
    assert [known[n, 'random_forest', 'average'] for n in (64, 128, 256, 512, 1024)] == [.6415, .6483, .6613, .6723, .6768]
    assert [known[n, 'xgboost', 'average'] for n in (64, 128, 256, 512, 1024)] == [.6127, .6286, .6518, .6725, .6777]
    assert [known[n, 'tabpfn-2', 'average'] for n in (64, 128, 256, 512, 1024)] == [.6557, .6680, .6967, .7093, .7238]


def test_published_stand_beside_ours_and_nowhere_else():
    published = read_published(nbs/'results'/'published.json')
    rows = [record('rel-f1/driver-top3', n_shots=512), record('rel-f1/driver-top3', n_shots=100), record('own/task', n_shots=512), record('single/credit', n_shots=700)]
    table = beside_published(rows, published, ('rdb-pfn',)).reset_index().set_index(['task', 'n_shots'])['published rdb-pfn']
    assert table.to_dict() == {('rel-f1/driver-top3', 512): '0.802', ('rel-f1/driver-top3', 100): '', ('own/task', 512): '', ('single/credit', 700): '0.845'}


def test_text_tables():
    frame = pd.DataFrame(dict(a_b=['x & y', '50 %'], v=[.12345, np.nan], n=[3, 4]))
    assert to_markdown(frame).splitlines()[2:] == ['| x & y | 0.1235 | 3 |', '| 50 % | — | 4 |']
    assert r'a\_b & v & n \\' in to_latex(frame) and r'x \& y & 0.1235 & 3 \\' in to_latex(frame) and r'50 \% & -- & 4 \\' in to_latex(frame)


def test_report_is_made_from_the_file_alone(records, tmp_path):
    failed = record('a', 'z', error='MemoryError: 3 TB'); del failed['auc']
    (tmp_path/'r.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in [*records, failed, record('b', 'z', 0, note='sizes differ from the published ones')]))
    files = make_report(tmp_path/'r.jsonl', tmp_path/'out')
    text = files[0].read_text()
    assert all(f.is_file() and f.stat().st_size for f in files) and {f.suffix for f in files} == {'.md', '.tex', '.png'}
    for part in ('## Results', '## Averages over tasks', '## x minus y, by task', '## x minus y, over tasks', '## Failures', 'MemoryError: 3 TB', '## Notes', 'sizes differ', '(1 of 4)'): assert part in text, part
    assert str(tmp_path) not in text
    again = make_report([tmp_path/'r.jsonl'], tmp_path/'out2')
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again], 'same records, same bytes'


def test_report_of_one_cell_or_none(tmp_path):
    (tmp_path/'r.jsonl').write_text(json.dumps(record()) + '\n')
    assert '0.700' in make_report(tmp_path/'r.jsonl', tmp_path)[0].read_text()
    (tmp_path/'empty.jsonl').write_text('')
    with pytest.raises(InputError, match='no records'): make_report(tmp_path/'empty.jsonl', tmp_path)
    with pytest.raises(InputError, match='no file of records'): make_report(tmp_path/'not here.jsonl', tmp_path)


def test_model_index_is_yaml_of_complete_cells(records):
    yaml = pytest.importorskip('yaml')
    index = yaml.safe_load(model_index(records[1:], 'x'))['model-index'][0]
    assert index['name'] == 'rdbpfn' and len(index['results']) == 5
    assert index['results'][0]['metrics'][0]['type'] == 'roc_auc' and index['results'][0]['dataset']['name'] in 'abc'


@pytest.mark.parametrize('name', ('relf1', 'dev'))
def test_committed_records_are_read(name):
    if not (path := nbs/'results'/f'{name}.jsonl').exists(): pytest.skip('no such records yet')
    found = read_records(path)
    assert found and all(set(KEY) <= set(r) for r in found) and most_draws(found) >= 2
    assert not any('/' in r['model'] or r['task'].startswith('/') for r in found), 'no path of a machine'
    assert all(0 <= r['auc'] <= 1 for r in found if 'auc' in r)
