"""Tables and comparisons from records alone: hand-made cases, known laws, and what happens when a record is missing."""
import json
from pathlib import Path
import numpy as np, pandas as pd, pytest
from scipy import stats
from rdbpfn.core import InputError
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from typer.testing import CliRunner
from rdbpfn.figures import draw_ranks, normalised, to_latex, to_markdown
from rdbpfn.records import KEY, MEASURES, as_table, averages, cells, check_draws, key_of, matrix, merge_records, missing_table, model_index, read_cost, read_published, read_records, select, summary
from rdbpfn.report import beside_published, best_on_validation, distances, figure_2, figure_4, make_report, over_tasks, own_scores, paired, published_scores, ranks, t_interval, trained_on
from rdbpfn.workshop import workshop

nbs = Path(__file__).resolve().parent.parent/'nbs'


def record(task='a', model='m', draw=0, n_shots=64, auc=.7, **more):
    return dict(task=task, model=model, weights=None, n_shots=n_shots, draw=draw, regime='seed', features='dfs-2', split='test', n_query=9, auc=auc, log_loss=.6, ece=.1, seconds=1., cpu_seconds=1.) | more


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    return [record(t, m, d, n, float(.6 + .05*i + .02*(m == 'x') + luck)) for i, t in enumerate('abc') for n in (64, 128) for d, luck in enumerate(rng.normal(0, .03, 4)) for m in ('x', 'y')]


def numbers(frame): return {(i, c): frame.loc[i, c] for i in frame.index for c in frame.columns if not pd.isna(frame.loc[i, c])}
def write(path, records): path.write_text(''.join(json.dumps(r) + '\n' for r in records)); return path


def test_a_deleted_record_empties_its_cell_and_changes_no_other(records):
    whole_m, whole_a = matrix(select(records, n_shots=64), n_draws=4), averages(records, n_draws=4)
    for i in range(0, len(records), 7):
        less, gone = records[:i] + records[i+1:], records[i]
        m, a = numbers(matrix(select(less, n_shots=64), n_draws=4)), numbers(averages(less, n_draws=4))
        assert m == {k: v for k, v in numbers(whole_m).items() if gone['n_shots'] != 64 or k != (gone['task'], gone['model'])}
        assert a == {k: v for k, v in numbers(whole_a).items() if not (k[0][3] == gone['n_shots'] and k[1] == gone['model'])}


def test_a_deleted_record_makes_a_dash_with_its_count_in_the_table(records):
    whole, less = as_table(records, 4), as_table(records[:2] + records[3:], 4)
    assert less.x.iloc[0] == '— (3 of 4)' and '±' in whole.x.iloc[0]
    assert (whole != less).to_numpy().sum() == 1
    void = {k: v for k, v in records[0].items() if k != 'auc'} | dict(error='one class: all 64 labels of this draw are 0')
    assert as_table([void, *records[1:]], 4).x.iloc[0].endswith('(3 of 4)') and '±' in as_table([void, *records[1:]], 4).x.iloc[0], 'a void draw is nobody\'s'


def test_a_deleted_record_empties_its_comparison_and_that_over_tasks(records):
    whole = paired(records, 'x', 'y', n_draws=4)
    for i in range(0, len(records), 5):
        gone, less = records[i], paired(records[:i] + records[i+1:], 'x', 'y', n_draws=4)
        hit = (gone['task'], 'test', 'dfs-2', 'seed', gone['n_shots'])
        assert less.loc[hit, ['mean', 'se', 'low', 'high', 'above']].isna().all() and less.loc[hit, ['n', 'missing']].tolist() == [3, 1]
        assert less.drop([hit]).equals(whole.drop([hit]).astype(less.dtypes))
        o = over_tasks(less)
        assert o['mean'].isna().tolist() == [k[3] == gone['n_shots'] for k in o.index] and o[o['mean'].isna()][['low', 'high', 'above']].isna().all(axis=None)


def test_a_task_without_one_model_is_still_a_row_of_the_comparison(records):
    third = [r | dict(model='z') for r in select(records, model='x')]
    less = [r for r in records if r['task'] != 'c'] + third                              # x and y have lost task c, z has not
    p = paired(less, 'x', 'y', n_draws=4)
    assert p.xs('c', level='task')[['n', 'missing']].to_numpy().tolist() == [[0, 4]]*2 and over_tasks(p)['mean'].isna().all()
    assert over_tasks(paired(select(records, task=('a', 'b')), 'x', 'y', n_draws=4, tasks=['a', 'b', 'c']))['mean'].isna().all()


def test_a_draw_that_nobody_has_is_missed(records, tmp_path):
    less = [r for r in records if (r['draw'], r['n_shots']) != (3, 64)]
    assert averages(less, n_draws=4)['x'].isna().tolist() == [True, False]
    text = make_report(write(tmp_path/'r.jsonl', less), tmp_path/'out', n_draws=4)[0].read_text()
    assert text.count('— (3 of 4)') == 6*len(MEASURES)
    assert '0 of' not in text and '— (4 of 10)' in make_report(tmp_path/'r.jsonl', tmp_path/'out')[0].read_text(), 'ten draws unless told otherwise'


def test_more_draws_than_asked_for_are_left_out_and_said(records, tmp_path):
    first = [r for r in records if r['draw'] < 2]
    assert summary(records, 2).equals(summary(first, 2)) and paired(records, 'x', 'y', n_draws=2).equals(paired(first, 'x', 'y', n_draws=2))
    assert '24 records of draw 2 or later are left out' in make_report(write(tmp_path/'r.jsonl', records), tmp_path/'out', n_draws=2)[0].read_text()


def test_a_deleted_task_is_no_average(records):
    a = averages([r for r in records if (r['task'], r['model']) != ('c', 'y')], n_draws=4)
    assert a.n_tasks.tolist() == [3, 3] and a.x.notna().all() and a.y.isna().all()


def test_a_task_that_nobody_has_at_these_shots_is_no_average(records):
    a = averages([r for r in records if (r['task'], r['n_shots']) != ('c', 64)], n_draws=4)
    assert a.n_tasks.tolist() == [3, 3] and a.x.isna().tolist() == [True, False]


def test_a_task_that_nobody_has_at_all_is_missed_by_its_suite(records, tmp_path):
    less = write(tmp_path/'r.jsonl', [r for r in records if r['task'] != 'c'])
    assert averages(read_records(less), n_draws=4, tasks=['a', 'b', 'c'])[['x', 'y']].isna().all(axis=None)
    text = make_report(less, tmp_path/'out', n_draws=4, tasks=['a', 'b', 'c'])[0].read_text()
    assert '3 tasks: a, b, c' in text and '| x | test | dfs-2 | seed | 64, 128 | c | 8 | 0 |' in text
    text = make_report(less, tmp_path/'out', n_draws=4)[0].read_text()
    assert '2 tasks: a, b' in text and '## Missing\n\nNothing.' in text


def test_a_suite_has_its_tasks_only(records):
    a = averages(records, n_draws=4, tasks=['a', 'b'])
    assert a.n_tasks.tolist() == [2, 2] and a.equals(averages(select(records, task=('a', 'b')), n_draws=4))


def test_averages_of_one_setting_and_of_many(records):
    assert len(averages(select(records, n_shots=64), n_draws=4)) == 1 and len(averages(records, n_draws=4)) == 2
    assert averages(records, n_draws=4)['x'].iloc[0] == pytest.approx(np.mean([r['auc'] for r in records if (r['model'], r['n_shots']) == ('x', 64)]))


def test_different_questions_never_meet(records):
    at_64 = select(records, n_shots=64)
    with pytest.raises(InputError, match="a has several results of model 'x'"): matrix(at_64 + [record('a', 'x', d, n_query=8) for d in range(4)], n_draws=4)
    with pytest.raises(InputError, match='2 sets of weights'): averages(records + [record('a', 'x', 3, weights='new')], n_draws=4)
    with pytest.raises(InputError, match='several n_shots .64, 128.'): matrix(records, n_draws=4)
    with pytest.raises(InputError, match='several features'): matrix(at_64 + [record('a', 'z', d, features='full-2') for d in range(4)], n_draws=4)
    assert len(averages(records + [r | dict(regime='frozen') for r in records], n_draws=4)) == 4
    p = paired(records, 'x', 'y', n_draws=4)
    with pytest.raises(InputError, match='a has several results at 64'): over_tasks(pd.concat([p, p.iloc[:1]]))


def drawn(records): return [r | dict(base_rate=(7*r['draw'] + len(r['task']))/64) for r in records]


@pytest.mark.parametrize('call', (check_draws, lambda r: matrix(select(r, n_shots=64), n_draws=4), lambda r: averages(r, n_draws=4), lambda r: paired(r, 'x', 'y', n_draws=4)))
def test_models_with_other_labelled_rows_are_refused(records, call):
    whole = drawn(records + [r | dict(model='z') for r in select(records, model='x')])
    call(whole)
    other = [r | dict(base_rate=.9) if (r['task'], r['model'], r['draw'], r['n_shots']) == ('b', 'y', 2, 64) else r for r in whole]
    with pytest.raises(InputError, match=r'b, 64 labelled rows, draw 2: the models were given other labelled rows .*0.9 for y \(seed, dfs-2\).*Run again: y \(seed, dfs-2\)\.'): call(other)


def test_other_rows_in_another_regime_are_refused_and_a_tie_names_both(records):
    frozen = [r | dict(regime='frozen', base_rate=.9) for r in select(records, model='x')]
    with pytest.raises(InputError, match=r'Run again: x \(frozen, dfs-2\)\.'): check_draws(drawn(records) + frozen)
    with pytest.raises(InputError, match=r'Run again: x \(frozen, dfs-2\)\.'): averages(drawn(records) + frozen, n_draws=4)
    with pytest.raises(InputError, match=r'Run again: x \(frozen, dfs-2\), x \(seed, dfs-2\)\.'): check_draws(drawn(select(records, model='x')) + frozen)


def test_models_with_another_number_of_questions_are_refused(records):
    other = [r | dict(n_query=8) if r['model'] == 'y' else r for r in records]
    with pytest.raises(InputError, match='another number of questions .n_query 9 for x; 8 for y.'): averages(other, n_draws=4)
    with pytest.raises(InputError, match='another number of questions'): paired(other, 'x', 'y', n_draws=4)


def test_a_failure_or_a_void_draw_has_no_rows_to_compare(records):
    bad = drawn(records)[0] | dict(error='out of memory')
    del bad['base_rate'], bad['auc']
    check_draws([bad, *drawn(records)[1:]])


def test_files_that_share_cells_are_merged_if_they_agree(records, tmp_path):
    records = drawn(records)
    again = [r | dict(seconds=9., version='0.2') for r in records[:5]]
    assert merge_records(records, again) == records and merge_records(again, records)[:5] == again
    a, b = write(tmp_path/'a.jsonl', records), write(tmp_path/'b.jsonl', again)
    one, two = (make_report(p, tmp_path/'out', n_draws=4)[0].read_text() for p in (a, [a, b]))
    assert one == two
    for field, value in dict(auc=.1, log_loss=9., ece=.9, base_rate=.9).items():
        with pytest.raises(InputError, match="different answers of 'y' to a, seed, dfs-2, 64 labelled rows, draw 1"): merge_records(records, [records[3] | {field: value}])
    failed = {k: v for k, v in records[3].items() if k not in ('auc', 'log_loss', 'ece', 'base_rate')} | dict(error='out of memory')
    with pytest.raises(InputError, match='different answers'): merge_records(records, [failed])


def test_missing_cells_are_listed_with_records_and_without(records):
    less = [r for r in records if (r['task'], r['model'], r['n_shots']) != ('b', 'y', 128) and r is not records[2]]
    every = cells(less, 4)
    assert len(every) == 2*2*3 and every[every.missing > 0][['model', 'n_shots', 'task', 'n', 'missing']].to_numpy().tolist() == [['x', 64, 'a', 3, 1], ['y', 128, 'b', 0, 4]]
    assert missing_table(every)[['model', 'n_shots', 'tasks', 'draws_missing']].to_numpy().tolist() == [['x', '64', 'a', 1], ['y', '128', 'b', 4]]
    assert not len(missing_table(cells(records, 4)))


def test_every_measure_has_its_completeness(records):
    without = [{k: v for k, v in r.items() if k != 'ece'} if (r['task'], r['model'], r['draw'], r['n_shots']) == ('a', 'x', 0, 64) else r for r in records]
    assert averages(without, 'ece', 4)['x'].isna().tolist() == [True, False] and averages(without, 'auc', 4)['x'].notna().all()
    assert as_table(without, 4, 'ece').x.iloc[0] == '—'


def test_failed_cells_are_empty(records):
    bad = record('a', 'x', 0, error='out of memory'); del bad['auc']
    m = matrix(select([bad if (r['task'], r['model'], r['draw'], r['n_shots']) == ('a', 'x', 0, 64) else r for r in records], n_shots=64), n_draws=4)
    assert m.isna().to_numpy().tolist() == [[True, False], [False, False], [False, False]]


def test_a_draw_of_one_class_is_void_for_all_and_leaves_the_cell_complete(records):
    def void(r): return {k: v for k, v in r.items() if k != 'auc'} | dict(error='one class: all 64 labels of this draw are 0')
    some = [void(r) if (r['task'], r['draw'], r['n_shots']) == ('a', 0, 64) else r for r in records]
    m, p = matrix(select(some, n_shots=64), n_draws=4), paired(some, 'x', 'y', n_draws=4)
    assert not m.isna().to_numpy().any() and p['mean'].notna().all() and p.iloc[0][['n', 'missing']].tolist() == [3, 0]
    assert m.loc['a', 'x'] == pytest.approx(np.mean([r['auc'] for r in records if (r['task'], r['model'], r['n_shots']) == ('a', 'x', 64) and r['draw']]))


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low < .3 < high for low, high in (t_interval(.3 + rng.normal(size=6), .9) for _ in range(2000))]
    assert abs(np.mean(hits) - .9) < 4*(.09/2000)**.5


def test_paired_sees_through_shared_luck(records):
    p = paired(records, 'x', 'y', n_draws=4)
    assert np.allclose(p['mean'], .02) and (p.low > .0199).all() and (p.above == 1).all() and p.n.tolist() == [4]*6
    q = paired(records, 'y', 'x', n_draws=4)
    assert np.allclose(q['mean'], -p['mean']) and np.allclose(q.low, -p.high)


def test_paired_is_by_draw_not_by_position():
    a, b = (.6, .9, .7), (.65, .88, .75)
    rows = [record(model='x', draw=d, auc=v) for d, v in enumerate(a)] + [record(model='y', draw=d, auc=v) for d, v in reversed(list(enumerate(b)))]
    p = paired(rows, 'x', 'y', n_draws=3).iloc[0]
    assert p['mean'] == pytest.approx(np.mean([-.05, .02, -.05])) and p.above == pytest.approx(1/3) and p.n == 3
    assert paired(rows[1:], 'x', 'y', n_draws=3).iloc[0].n == 2


def test_paired_against_scipy():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 9))
    rows = [record(model=m, draw=d, auc=float(v)) for m, vs in dict(x=x, y=y).items() for d, v in enumerate(vs)]
    want = stats.ttest_rel(x, y).confidence_interval(.95)
    p = paired(rows, 'x', 'y', n_draws=9).iloc[0]
    assert [p.low, p.high, p.se] == pytest.approx([want.low, want.high, stats.sem(x - y)])


def test_over_tasks_resamples_tasks():
    rows = [record(t, m, d, auc=.5 + (m == 'x')*g) for t, g in dict(a=0., b=.1, c=.2, d=.3).items() for m in 'xy' for d in range(2)]
    o = over_tasks(p := paired(rows, 'x', 'y', n_draws=2)).iloc[0]
    assert o.n_tasks == 4 and o['mean'] == pytest.approx(.15) and o.above == 3
    exact = [np.mean(c) for c in np.stack(np.meshgrid(*[[0., .1, .2, .3]]*4)).reshape(4, -1).T]         # all 256 resamples
    assert [o.low, o.high] == pytest.approx(np.quantile(exact, [.025, .975]).tolist(), abs=.011)
    assert over_tasks(p).equals(over_tasks(p))


def test_ranks_by_hand_and_by_scipy():
    m = pd.DataFrame(dict(p=[.9, .8, .7, .9], q=[.8, .9, .6, .9], r=[.1, .2, .3, .4]), index=list('abcd'))
    r = ranks(m)
    assert r['ranks'].to_dict() == dict(p=(1 + 2 + 1 + 1.5)/4, q=(2 + 1 + 2 + 1.5)/4, r=3.) and r['n_tasks'] == 4
    assert r['p_value'] == pytest.approx(stats.friedmanchisquare(m.p, m.q, m.r).pvalue)
    assert r['cd'] == pytest.approx(2.343*(3*4/(6*4))**.5, abs=1e-3)                                      # Demsar's table: q(3) = 2.343
    assert ranks(m.assign(r=[np.nan, .2, .3, .4]))['left_out'] == ['a'] and np.isnan(ranks(m[['p', 'q']])['p_value'])


@pytest.mark.parametrize('k, n', ((2, 2), (3, 16), (9, 5)))
def test_rank_bars_join_those_within_the_critical_difference(k, n):
    rng = np.random.default_rng(k)
    r, ax = ranks(pd.DataFrame(rng.normal(size=(n, k)) + np.arange(k), columns=[f'm{i}' for i in range(k)])), Figure().subplots()
    draw_ranks(ax, r)
    assert len(ax.texts) == k
    bars = [(x[0] + .03, x[1] - .03) for x in (line.get_xdata() for line in ax.lines)]
    at = r['ranks'].to_numpy()
    joined = lambda a, b: any(l - 1e-9 <= a and b <= h + 1e-9 for l, h in bars)
    for i in range(k):
        for j in range(i + 1, k): assert joined(at[i], at[j]) == (at[j] - at[i] <= r['cd'] and at[i] < at[j]) or at[i] == at[j]


def test_best_on_validation_looks_at_validation_only():
    rows = [record(model=m, auc=a) for m, a in dict(x=.9, y=.5).items()] + [record(model=m, auc=a, split='val') for m, a in dict(x=.4, y=.6).items()]
    (r,) = best_on_validation(rows, ('x', 'y'), 'best', 1)
    assert (r['model'], r['chosen'], r['auc'], r['split']) == ('best', 'y', .5, 'test')
    assert best_on_validation(rows, ('x',), n_draws=1)[0]['auc'] == .9
    other = [r | dict(n_shots=128) for r in rows if r['split'] == 'test']
    assert len(best_on_validation(rows + other, ('x', 'y'), n_draws=1)) == 1, 'no validation at these shots, so no choice'


def test_no_choice_without_every_validation_draw():
    rows = [record(t, m, d, split=s, auc=.5 + .1*(m == 'x')) for t in 'ab' for m in 'xy' for d in range(2) for s in ('val', 'test')]
    assert {r['task'] for r in best_on_validation(rows, ('x', 'y'), n_draws=2)} == {'a', 'b'}
    assert {(r['task'], r['chosen']) for r in best_on_validation(rows[2:], ('x', 'y'), n_draws=2)} == {('b', 'x')}, 'x lacks a validation draw of a, though it would have won'
    with pytest.raises(InputError, match='no complete validation records of x, y'): best_on_validation(rows, ('x', 'y'), n_draws=3)
    with pytest.raises(InputError, match='2 sets of weights'): best_on_validation([r | dict(weights='old') if (r['model'], r['split']) == ('x', 'val') else r for r in rows], ('x', 'y'), n_draws=2)


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
    table = beside_published(rows, published, ('rdb-pfn',), 1).reset_index().set_index(['task', 'n_shots'])['published rdb-pfn']
    assert table.to_dict() == {('rel-f1/driver-top3', 512): '0.802', ('rel-f1/driver-top3', 100): '', ('own/task', 512): '', ('single/credit', 700): '0.845'}


def test_text_tables():
    frame = pd.DataFrame(dict(a_b=['x & y', '50 %'], v=[.12345, np.nan], n=[3, 4]))
    assert to_markdown(frame).splitlines()[2:] == ['| x & y | 0.1235 | 3 |', '| 50 % | — | 4 |']
    assert r'a\_b & v & n \\' in to_latex(frame) and r'x \& y & 0.1235 & 3 \\' in to_latex(frame) and r'50 \% & -- & 4 \\' in to_latex(frame)


def test_distances_from_the_published_numbers_by_hand():
    published = pd.DataFrame([('relational', 64, 'p', 'a', .60), ('relational', 64, 'q', 'a', .50)], columns=['benchmark', 'n_shots', 'model', 'task', 'auc'])
    rows = [record(model=m, draw=d, auc=v) for m, vs in dict(x=(.6, .8), y=(.5, .6)).items() for d, v in enumerate(vs)]
    d = distances(rows, published, dict(x='p', y='q'), 2).droplevel([0, 1, 2])
    assert d.ours.to_dict() == pytest.approx({'x': .7, 'y': .55, 'x minus y': .15}) and d.difference.to_dict() == pytest.approx({'x': .1, 'y': .05, 'x minus y': .05})
    assert d.error.to_dict() == pytest.approx({'x': np.std([.6, .8], ddof=1), 'y': np.std([.5, .6], ddof=1), 'x minus y': np.std([.1, .2], ddof=1)})      # s sqrt(2/2)
    assert distances(rows[1:], published, dict(x='p', y='q'), 2).index.get_level_values('model').tolist() == ['y'], 'complete cells only'


def test_normalised_scores_are_of_the_same_models_at_every_number_of_shots(records):
    assert normalised(pd.DataFrame(dict(a=[.5, .9], b=[.6, .8], c=[.7, .7]))).to_dict() == pytest.approx(dict(a=.5, b=.5, c=.5))
    z = [r | dict(model='z', auc=.9) for r in select(records, model='x', n_shots=64)]
    assert list(own_scores(records + z, 4)) == ['x', 'y'] and own_scores(records + z, 4).equals(own_scores(records, 4))
    scores = published_scores(read_published(nbs/'results'/'published.json'))
    assert scores.shape == (5, 15) and scores.loc[1024, 'rdb-pfn'] == pytest.approx(.84, abs=.005)


def test_report_is_made_from_the_file_alone(records, tmp_path):
    failed = record('a', 'z', error='MemoryError: 3 TB'); del failed['auc']
    old = record('b', 'z', 0, note='sizes differ from the published ones', version='0.0.9')
    files = make_report(write(tmp_path/'r.jsonl', [*(r | dict(version='0.1.0') for r in records), failed | dict(version='0.1.0'), old]), tmp_path/'out', n_draws=4)
    text = files[0].read_text()
    assert all(f.is_file() and f.stat().st_size for f in files) and {f.suffix for f in files} == {'.md', '.tex', '.svg'}
    for part in ('## AUC, by task', '## Log loss, by task', '## Calibration error, averages over tasks', '## Seconds, averages over tasks', '## x minus y, by task', '## x minus y, over tasks', '## Missing', '## Failures',
                 '| z | a | MemoryError: 3 TB | 1 |', '## Notes', 'sizes differ', '(1 of 4)', '| model z | records of several version: 0.1.0, 0.0.9 |', '3 tasks: a, b, c'): assert part in text, part
    assert str(tmp_path) not in text
    again = make_report([tmp_path/'r.jsonl'], tmp_path/'out2', n_draws=4)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again], 'same records, same bytes'
    titles = {f.name: f.read_text() for f in files if f.suffix == '.svg'}
    assert 'test, dfs-2, seed</text>' in titles['shots_test_dfs-2_seed.svg'] and 'test, dfs-2, seed, 64 labelled rows</text>' in titles['cost_test_dfs-2_seed_64.svg'], 'the regime is in the picture'


def test_report_of_one_cell_or_none(tmp_path):
    assert '0.700' in make_report(write(tmp_path/'r.jsonl', [record()]), tmp_path, n_draws=1)[0].read_text()
    (tmp_path/'empty.jsonl').write_text('')
    with pytest.raises(InputError, match='no records'): make_report(tmp_path/'empty.jsonl', tmp_path)
    with pytest.raises(InputError, match='no file of records'): make_report(tmp_path/'not here.jsonl', tmp_path)
    with pytest.raises(InputError, match="no model 'nosuch' in the records"): make_report(tmp_path/'r.jsonl', tmp_path, 'nosuch')
    with pytest.raises(InputError, match="no model 'nosuch' in the records"): make_report(tmp_path/'r.jsonl', tmp_path, choose=('nosuch',))


def sh(*arguments):
    done = CliRunner().invoke(workshop, [str(a) for a in arguments])
    return done.exit_code, done.output.strip()


def test_the_command_reaches_draws_suite_and_choice(records, tmp_path):
    both = write(tmp_path/'r.jsonl', records + [r | dict(split='val') for r in records])
    code, said = sh('report', both, '--out', tmp_path/'out', '--draws', 4, '--choose', 'x, y', '--reference', 'y')
    text = (tmp_path/'out'/'report.md').read_text()
    assert (code, said) == (0, str(tmp_path/'out'/'report.md')) and 'best on validation' in text and '## y minus x, by task' in text and '4 draws of a complete cell' in text
    assert sh('report', both, '--out', tmp_path/'out', '--draws', 0) == (2, 'rdbpfn: --draws must be 1 or more, got 0.')
    assert sh('report', both, '--out', tmp_path/'out', '--draws', 4, '--suite', 'nosuch')[0] == 2
    assert sh('report', both, '--out', tmp_path/'out', '--draws', 4, '--choose', 'x,z')[1].startswith("rdbpfn: There is no model 'z' in the records")
    one = write(tmp_path/'f.jsonl', [record('rel-f1/driver-dnf', 'x', d) for d in range(2)])
    assert sh('report', one, '--out', tmp_path/'paper', '--draws', 2, '--suite', 'paper')[0] == 0
    assert '19 tasks: ' in (tmp_path/'paper'/'report.md').read_text()


def test_model_index_is_yaml_of_complete_cells(records):
    yaml = pytest.importorskip('yaml')
    index = yaml.safe_load(model_index(records[1:], 'x', n_draws=4))['model-index'][0]
    assert index['name'] == 'rdbpfn' and len(index['results']) == 5
    assert index['results'][0]['metrics'][0]['type'] == 'roc_auc' and index['results'][0]['dataset']['name'] in 'abc'


results = nbs/'results'


@pytest.mark.parametrize('name', ('relf1', 'dev'))
def test_committed_records_are_read(name):
    found = read_records(results/f'{name}.jsonl')
    assert found and all(set(KEY) <= set(r) for r in found)
    assert not any('/' in r['model'] or r['task'].startswith('/') for r in found), 'no path of a machine'
    assert all(0 <= r['auc'] <= 1 for r in found if 'auc' in r)


def test_committed_records_are_of_the_same_questions_and_agree():
    dev, f1 = (read_records(results/f'{name}.jsonl') for name in ('dev', 'relf1'))
    for records in (dev, f1, merge_records(dev, f1)): check_draws(records)
    assert len(merge_records(dev, f1)) == len({key_of(r) for r in dev + f1}) < len(dev) + len(f1)


@pytest.fixture(scope='module')
def committed(tmp_path_factory):
    out = tmp_path_factory.mktemp('report')
    code, said = sh('report', results/'dev.jsonl', results/'relf1.jsonl', '--out', out, '--reference', 'rdbpfn', '--published', results/'published.json', '--log', results/'pretrain.jsonl', '--judged', results/'stages.jsonl')
    assert code == 0, said
    return out


def rows(text, title): return [line.strip('| ').split(' | ') for line in text.split(f'## {title}\n\n')[1].split('\n\n')[0].splitlines()]


def test_the_report_of_the_committed_records_has_the_numbers_of_the_site(committed):
    text, dev, f1 = (committed/'report.md').read_text(), *(read_records(results/f'{n}.jsonl') for n in ('dev', 'relf1'))
    for measure, title in (('auc', 'AUC'), ('log_loss', 'Log loss'), ('cpu_seconds', 'Processor seconds')):
        names, _, *lines = rows(text, f'{title}, averages over tasks')
        said = {tuple(l[:4]): dict(zip(names[4:], l[4:])) for l in lines}
        for records in (dev, f1):
            for k, row in averages(select(records, features=('dfs-2', 'columns')) if records is dev else select(records, features='full-2'), measure).iterrows():
                assert {m: said[tuple(map(str, k))][m] for m in row.index} == {m: '—' if pd.isna(v) else str(int(v)) if m == 'n_tasks' else f'{v:.4f}' for m, v in row.items()}
    names, _, *lines = rows(text, 'rdbpfn minus random_forest, over tasks')
    o = over_tasks(paired([r for r in dev if r['regime'] != 'rows'], 'rdbpfn', 'random_forest'))
    assert {l[3]: l[5] for l in lines if l[1:3] == ['dfs-2', 'seed']} == {str(k[3]): f'{v:.4f}' for k, v in o['mean'].items()}
    names, _, *lines = rows(text, 'Distance from the published numbers')
    far = distances(select(f1, n_shots=512), read_published(results/'published.json'))
    assert [l[4:] for l in lines if l[2] == '512'] == [[f'{v:.4f}' for v in r] for r in far.to_numpy()]
    assert len(rows(text, 'Beside the published numbers')) > 10
    page = json.loads((nbs/'30_results.ipynb').read_text())
    shown = ''.join(''.join(o.get('data', {}).get('text/plain', '')) for c in page['cells'] for o in c.get('outputs', []))
    assert all(f'{v:.4f}'.rstrip('0') in shown for v in o['mean'].dropna()), 'the notebook shows the means of the report: run it again'


def test_the_figures_of_the_committed_records_are_those_of_the_paper(committed):
    assert {'figure_2.svg', 'figure_3.svg', 'figure_4.svg', 'formula_1.svg', 'single_tables.svg', 'learning_curves.svg', 'scores_test_dfs-2_seed.svg', 'ranks_test_dfs-2_frozen_512.svg'} <= {f.name for f in committed.iterdir()}
    assert all(f'>{name}<' in (committed/'figure_2.svg').read_text() for name in ('ours, seed', 'ours, frozen', 'rdb-pfn', 'tabicl-1.1'))
    assert all(f'>{name}<' in (committed/'figure_4.svg').read_text() for name in ('rdbpfn', 'rdb-pfn-single-table', 'published rdb-pfn'))
    assert all(f'>{name}<' in (committed/'formula_1.svg').read_text() for name in ('driver-dnf, frozen', 'driver-top3, seed', 'rdbpfn, all features', "released, paper's features"))
    assert all(f'>{s}<' in (committed/'learning_curves.svg').read_text() for s in ('noisy, 128 x 36', 'released', 'ours'))


def test_no_name_of_figure_2_lies_on_another():
    fig = figure_2(read_published(results/'published.json'), read_cost(results/'published.json'), select(read_records(results/'relf1.jsonl'), features='dfs-2'), trained_on(results/'pretrain.jsonl'))
    (canvas := FigureCanvasAgg(fig)).draw()
    for ax in fig.axes:
        boxes = [Text.get_window_extent(t, canvas.get_renderer()) for t in ax.texts]
        assert len(boxes) >= 4 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_figure_4_has_no_bar_for_a_model_that_lacks_a_draw():
    published = read_published(results/'published.json')
    rows = [record(f'single/{t}', m, d, 700, regime='rows', features='columns', split='70/30') for t in ('pol', 'heloc') for m in ('rdbpfn', 'stage_1') for d in range(2)]
    bars = lambda records: [t.get_text() for t in figure_4(published, records, 2).axes[1].get_yticklabels()]
    assert 'stage_1' in bars(rows) and 'published rdb-pfn' in bars(rows)
    assert 'stage_1' not in bars(rows[:-1]) and 'rdbpfn' in bars(rows[:-1])
