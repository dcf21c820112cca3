"""Long runs: a killed run resumes to the same bits, two processes follow one, damage ends in a sentence, and the tiny preset learns."""
import hashlib, json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load_file
from rdbpfn.core import InputError
from rdbpfn.model import ModelConfig
from rdbpfn.runs import load_checkpoint, pretrain, start
from rdbpfn.train import PRESETS, auc, averaged, make_optimizer, micro_batch, micro_loss, step_shape, train_step

SMALL = replace(PRESETS['tiny'], steps=12, rows=(20, 40), cols=(2, 4), tokens=512, model=ModelConfig(n_layers=1, width=16, n_heads=2, hidden=16))
RELATIONAL = replace(SMALL, rows=(48, 96), cols=(3, 6), relational=.5, seed=1)
MUON = replace(RELATIONAL, optimizer='muon', warmup=2)
ENV = os.environ | dict(OMP_NUM_THREADS='1')


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LOGGED = """import json, time, rdbpfn.runs as runs
real = runs.train_step
def logged(*args):
    begin = time.time()
    out = real(*args)
    if runs.dist.is_initialized() and runs.dist.get_rank(): return out
    with open({file!r}, 'a') as f: f.write(json.dumps([args[3], begin, out[0]]) + chr(10))
    time.sleep({pause})
    return out
runs.train_step = logged"""


def script(steps, out, resume=False, extra='', save_every=0., config='SMALL'):
    "A program that runs SMALL, or another configuration of this file, for so many steps"
    return f'''
import torch, os, sys; torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import MUON, SMALL, replace, pretrain
{extra}
pretrain(replace({config}, steps={steps}), {str(out)!r}, resume={resume}, save_every={save_every}, progress_bar=False)
'''


def test_ten_kills_at_random_moments_cost_at_most_the_interval_and_no_bit(tmp_path):
    "Every step is written down with its time, so that what a kill cost can be measured: from the first step that was lost to the kill"
    steps, every, rng, lost, logged = 10**6, .3, np.random.default_rng(0), [], 0
    log, run = tmp_path/'steps.jsonl', tmp_path/'killed'
    for kill in range(10):
        before = progress(run)
        extra = LOGGED.format(file=str(log), pause=.005)
        p = subprocess.Popen([sys.executable, '-c', script(steps, run, kill > 0, extra, every)], env=ENV, stderr=subprocess.PIPE)
        while progress(run) == before: time.sleep(.02); assert p.poll() is None, p.stderr.read()
        time.sleep(float(rng.uniform(0, 2*every)))
        p.kill(); died = time.time(); p.wait()
        after, seen = progress(run), [json.loads(line) for line in log.read_text().splitlines()]
        assert after > before and len(seen[-1]) == 3
        mine, logged = seen[logged:], len(seen)                                    # of this process
        slack = 1 + 2*max(np.diff([begin for _, begin, _ in mine]), default=0.)    # a step and a save come on top, on a busy machine
        lost.append(max([died - begin for step, begin, _ in mine if step == after], default=0.) - slack)
    assert len(lost) == 10 and max(lost) < every, lost
    end = progress(run) + 5
    pretrain(replace(SMALL, steps=end), run, resume=True, save_every=1e9, validate_every=1e9, progress_bar=False)
    pretrain(replace(SMALL, steps=end), tmp_path/'whole', save_every=1e9, validate_every=1e9, progress_bar=False)
    a, b = (load_file(tmp_path/d/'rdbpfn.safetensors') for d in ('whole', 'killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    twice = {}
    for step, _, loss in map(json.loads, log.read_text().splitlines()): twice.setdefault(step, set()).add(loss)
    assert all(len(losses) == 1 for losses in twice.values()), 'a step that was made again has the same loss'


def progress(out):
    try: return load_checkpoint(out/'checkpoint.safetensors', torch.device('cpu'))[3]['step']
    except InputError: return 0


def two_processes(tmp_path, steps, out, extra='', **options):
    "The end of a run by two processes that `torchrun` starts"
    (tmp_path/'two.py').write_text(script(steps, out, extra=f"import torch.distributed as dist\ndist.init_process_group('gloo')\n{extra}", **options))
    return subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(tmp_path/'two.py')], env=ENV, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize('config', ['SMALL', 'MUON'])
def test_two_processes_follow_the_trajectory_of_one(tmp_path, config):
    "Single tables with AdamW, and databases, too, with Muon: the loss of every step, and the weights at the end"
    for d in ('one', 'two'):
        extra = LOGGED.format(file=str(tmp_path/f'{d}.jsonl'), pause=0)
        done = two_processes(tmp_path, 12, tmp_path/d, extra, config=config) if d == 'two' else subprocess.run([sys.executable, '-c', script(12, tmp_path/d, extra=extra, config=config)], env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = ([json.loads(line) for line in (tmp_path/f'{d}.jsonl').read_text().splitlines()] for d in ('one', 'two'))
    assert [s for s, _, _ in one] == [s for s, _, _ in two] == [*range(12)] and len({loss for _, _, loss in one}) == 12
    assert max(abs(a[2] - b[2]) for a, b in zip(one, two)) < 1e-5
    a, b = (load_file(tmp_path/d/'rdbpfn.safetensors') for d in ('one', 'two'))
    fresh = start(globals()[config], tmp_path/'fresh', False, torch.device('cpu'))[0].state_dict()
    moved, apart = (max(float((a[k] - other[k]).abs().max()) for k in a) for other in (fresh, b))
    assert apart < 1e-5 < 1e-3 < moved, 'far less apart than they have moved'
    one, two = (json.loads((tmp_path/d/'metrics.jsonl').read_text().splitlines()[-1]) for d in ('one', 'two'))
    assert one['tables'] == two['tables']


def test_processes_never_meet_the_same_table():
    seen = [hashlib.sha256(micro_batch(MUON, i)[0].tobytes()).hexdigest() for rank in range(2) for i in range(rank, 40, 2)]
    assert len(set(seen)) == 40


def test_a_process_that_dies_stops_the_others_with_a_sentence_and_leaves_a_checkpoint(tmp_path):
    dies = """import rdbpfn.runs as runs
real = runs.train_step
def fatal(*args):
    if args[3] == 8 and dist.get_rank() == 1: os._exit(9)
    return real(*args)
runs.train_step = fatal"""
    done = two_processes(tmp_path, 12, tmp_path/'run', dies)
    assert done.returncode != 0 and 'Another process of this run has died during step 8' in done.stderr and '--resume' in done.stderr
    assert 0 < progress(tmp_path/'run') <= 8
    pretrain(SMALL, tmp_path/'run', resume=True, progress_bar=False)
    pretrain(SMALL, tmp_path/'whole', progress_bar=False)
    a, b = (load_file(tmp_path/d/'rdbpfn.safetensors') for d in ('whole', 'run'))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-5


def test_ctrl_c_saves(tmp_path):
    p = subprocess.Popen([sys.executable, '-c', script(10**6, tmp_path/'run')], env=ENV)
    while not (tmp_path/'run'/'checkpoint.safetensors').exists(): time.sleep(.05); assert p.poll() is None
    p.send_signal(signal.SIGINT)
    assert p.wait(60) == 0 and progress(tmp_path/'run') > 0
    assert json.loads((tmp_path/'run'/'metrics.jsonl').read_text().splitlines()[-1])['step'] == progress(tmp_path/'run')


def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights(tmp_path):
    pretrain(SMALL, tmp_path, progress_bar=False)
    good = (tmp_path/'checkpoint.safetensors').read_bytes()
    model, optimizer, config, _ = load_checkpoint(tmp_path/'checkpoint.safetensors', torch.device('cpu'))
    with torch.no_grad(): model.head[2].bias.fill_(torch.nan)
    kept = model.cell.weight.clone()
    with pytest.raises(InputError, match='loss is nan .* at step 3 .seed 0.'): train_step(model, optimizer, config, 3, [micro_batch(config, 6)])
    assert torch.equal(model.cell.weight, kept) and (tmp_path/'checkpoint.safetensors').read_bytes() == good


def test_bad_beginnings(tmp_path):
    cpu = torch.device('cpu')
    with pytest.raises(InputError, match='no checkpoint'): start(SMALL, tmp_path, True, cpu)
    with pytest.raises(InputError, match='nowhere.*to begin with'): start(SMALL, tmp_path, False, cpu, tmp_path/'nowhere')
    last = pretrain(replace(SMALL, steps=2), tmp_path, progress_bar=False)
    again = pretrain(replace(SMALL, steps=2), tmp_path, resume=True, progress_bar=False)
    assert again['step'] == 2 and again == {k: last[k] for k in again}, 'a run that has ended goes nowhere'
    with pytest.raises(InputError, match='already holds a run'): start(SMALL, tmp_path, False, cpu)
    with pytest.raises(InputError, match='another configuration'): start(replace(SMALL, lr=.1), tmp_path, True, cpu)
    path = tmp_path/'checkpoint.safetensors'; good = path.read_bytes()
    for bad in (good[:-7], good[:100], b'', b'x'*1000):
        path.write_bytes(bad)
        with pytest.raises(InputError, match='damaged'): start(SMALL, tmp_path, True, cpu)


def test_a_full_disk_ends_in_a_sentence_and_leaves_the_last_checkpoint(tmp_path):
    pretrain(replace(SMALL, steps=2), tmp_path, progress_bar=False)
    good = {f: (tmp_path/f).read_bytes() for f in ('checkpoint.safetensors', 'rdbpfn.safetensors', 'metrics.jsonl')}
    assert len(good['checkpoint.safetensors']) > 20_000
    extra = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"       # no file may be larger
    done = subprocess.run([sys.executable, '-c', script(4, tmp_path, True, extra)], env=ENV, capture_output=True, text=True)
    assert done.returncode != 0 and 'InputError' in done.stderr and 'cannot be written after step 3' in done.stderr and 'Make room, then go on with --resume' in done.stderr, done.stderr
    assert all((tmp_path/f).read_bytes() == b for f, b in good.items()) and not list(tmp_path.glob('.*.tmp'))
    assert pretrain(replace(SMALL, steps=4), tmp_path, resume=True, progress_bar=False)['step'] == 4


def test_a_checkpoint_of_which_one_bit_has_changed_or_a_tensor_is_missing_is_damaged(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file
    pretrain(replace(SMALL, steps=2), tmp_path, progress_bar=False)
    path = tmp_path/'checkpoint.safetensors'; good = path.read_bytes()
    for at in (-1, -len(good)//3, -len(good)//2):
        bad = bytearray(good); bad[at] ^= 1; path.write_bytes(bad)
        with pytest.raises(InputError, match='damaged'): start(SMALL, tmp_path, True, torch.device('cpu'))
    path.write_bytes(good)
    with safe_open(path, 'pt') as f: header, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    old = {k: v for k, v in header.items() if k != 'digest'}
    save_file({k: v for k, v in tensors.items() if 'cell' not in k}, path, old)
    with pytest.raises(InputError, match='damaged'): start(SMALL, tmp_path, True, torch.device('cpu'))
    save_file(tensors, path, old)                                              # checkpoints of early runs have no checksum
    assert start(SMALL, tmp_path, True, torch.device('cpu'))[3]['step'] == 2


def test_a_run_whose_rate_falls_to_0_says_why_it_takes_no_more_steps(tmp_path):
    short = replace(MUON, steps=2, decay=2)
    pretrain(short, tmp_path, progress_bar=False)
    with pytest.raises(InputError, match='ends after 2 steps, where its learning rate is 0.*--init'): start(replace(short, steps=4), tmp_path, True, torch.device('cpu'))
    with pytest.raises(InputError, match='another configuration'): start(replace(short, steps=4, lr=.1), tmp_path, True, torch.device('cpu'))


def test_bench_train_prints_one_object(monkeypatch):
    from functools import partial
    from typer.testing import CliRunner
    from rdbpfn import speed
    from rdbpfn.cli import app
    monkeypatch.setattr(speed, 'generation_share', partial(speed.generation_share, first=1))
    monkeypatch.setattr(speed, 'bench_train', partial(speed.bench_train, seconds=.01, steps=1))
    found = json.loads(CliRunner().invoke(app, ['bench', 'train', '--json']).stdout)
    assert set(found) == {'shapes', 'matmul_gflops', 'generation'} and [*found['shapes']] == ['128x8', '600x18', '600x30']
    for shape in found['shapes'].values():
        assert set(shape) == {'tables_per_s', 'naive_tables_per_s', 'ratio', 'tables_per_s_2core', 'gflops', 'share_of_peak'} and min(shape.values()) > 0
    assert all(0 < share < 1 for share in found['generation'].values())


def test_the_paper_presets_are_those_of_its_code():
    "C.2.3 and the released code: 72,000 and 105,600 steps of eight tables, of 600 x 18 and 600 x 30, 32 bits, no warm-up, plain z-scores"
    for name, cols, lr, steps, relational in (('paper', 18, 5e-4, 72_000, 0.), ('paper-relational', 30, 1e-3, 105_600, 1.)):
        c = PRESETS[name]
        assert (c.lr, c.steps, c.relational, c.warmup, c.clip, c.bf16, c.decay, c.drift, c.optimizer) == (lr, steps, relational, 0, 1., False, 0, 0., 'schedule-free') and c.model == ModelConfig()
        shapes = [step_shape(c, s) for s in range(200)]
        assert {(B*c.micro, R, C) for B, R, C, _ in shapes} == {(8, 600, cols)} and 60 <= min(n for *_, n in shapes) < 120 and 480 < max(n for *_, n in shapes) <= 540


def test_averaged_weights_are_those_of_the_optimiser_in_evaluation_mode():
    model = start(SMALL, Path('/nonexistent'), False, torch.device('cpu'))[0]
    optimizer = make_optimizer(model, SMALL)
    for s in range(5): train_step(model, optimizer, SMALL, s, [micro_batch(SMALL, s)])
    ours = averaged(model, optimizer)
    optimizer.eval()
    assert max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), model.parameters())) < 1e-6


def test_muon_stops_and_goes_on_to_the_bit(tmp_path):
    config = replace(SMALL, optimizer='muon', steps=6)
    pretrain(config, tmp_path/'whole', progress_bar=False)
    for steps in (3, 6): pretrain(replace(config, steps=steps), tmp_path/'halves', resume=steps > 3, progress_bar=False)
    assert all((tmp_path/'whole'/f).read_bytes() == (tmp_path/'halves'/f).read_bytes() for f in ('rdbpfn.safetensors',))
    model, optimizer, _, _ = load_checkpoint(tmp_path/'halves'/'checkpoint.safetensors', torch.device('cpu'))
    assert all(torch.equal(a, optimizer.state[p]['mean']) for a, p in zip(averaged(model, optimizer).parameters(), model.parameters()))
    assert optimizer.param_groups[0]['step'] == 6
    with pytest.raises(InputError, match='schedule-free, muon'): replace(SMALL, optimizer='sgd')


def test_the_learning_rate_falls_to_nothing_at_the_end(tmp_path):
    config, rates = replace(SMALL, optimizer='muon', steps=6, decay=4), []
    model, optimizer, _, _ = start(config, tmp_path, False, torch.device('cpu'))
    for s in range(6):
        train_step(model, optimizer, config, s, [micro_batch(config, s)])
        rates.append(optimizer.param_groups[0]['lr']/config.lr)
    assert np.allclose(rates, [1, 1, 1, .75, .5, .25])


def test_every_micro_batch_brings_new_tables():
    model = start(SMALL, Path('/nonexistent'), False, torch.device('cpu'))[0]
    losses = [micro_loss(model, SMALL, micro_batch(SMALL, i), torch.device('cpu')).item() for i in range(4*SMALL.micro)]
    assert len(set(losses)) == len(losses)


def test_stage_two_begins_with_the_weights_and_the_cost_of_stage_one(tmp_path):
    from rdbpfn.model import load_model
    pretrain(SMALL, tmp_path/'one', progress_bar=False)
    model, _, _, progress = start(RELATIONAL, tmp_path/'two', False, torch.device('cpu'), tmp_path/'one')
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(tmp_path/'one'/'rdbpfn.safetensors').parameters()))
    earlier = load_checkpoint(tmp_path/'one'/'checkpoint.safetensors', torch.device('cpu'))[3]
    assert progress['step'] == 0 and progress['tables'] == earlier['tables'] > 0 and progress['core_seconds'] == earlier['core_seconds'] > 0
    with pytest.raises(InputError, match='trained ModelConfig'): start(PRESETS['cpu-relational'], tmp_path/'three', False, torch.device('cpu'), tmp_path/'one')
    with pytest.raises(InputError, match='no checkpoint'): start(RELATIONAL, tmp_path/'three', False, torch.device('cpu'), tmp_path/'nowhere')


@pytest.mark.parametrize('told', [dict(evidence=True), dict(evidence=True, ridge=True)])
def test_a_run_without_evidence_can_be_the_beginning_of_one_with_it_and_not_the_other_way_round(tmp_path, told):
    from rdbpfn.model import load_model
    plain = replace(SMALL, steps=3)
    with_it = replace(RELATIONAL, steps=3, model=replace(SMALL.model, **told))
    pretrain(plain, tmp_path/'one', progress_bar=False)
    model = start(with_it, tmp_path/'two', False, torch.device('cpu'), tmp_path/'one')[0]
    old = load_model(tmp_path/'one'/'rdbpfn.safetensors')
    assert model.cell.weight.shape[1] == 5 and model.cell.weight[:, 1:].abs().min() > 0 and model.target.weight.shape[1] == (7 if 'ridge' in told else 1)
    assert all(torch.equal(a[..., :b.shape[-1]], b) for a, b in zip(model.parameters(), old.parameters()))
    again = start(with_it, tmp_path/'two', False, torch.device('cpu'), tmp_path/'one')[0]
    assert torch.equal(again.cell.weight, model.cell.weight)
    pretrain(with_it, tmp_path/'two', init=tmp_path/'one', progress_bar=False)
    less = [plain, replace(plain, model=replace(SMALL.model, evidence=True))][:len(told)]
    for config in less:
        with pytest.raises(InputError, match='trained ModelConfig.*evidence=True'): start(config, tmp_path/'three', False, torch.device('cpu'), tmp_path/'two')


def test_a_stopped_relational_run_is_the_same_to_the_last_bit_also_with_workers(tmp_path):
    six = replace(RELATIONAL, steps=6)
    pretrain(six, tmp_path/'whole', progress_bar=False)
    pretrain(replace(RELATIONAL, steps=3), tmp_path/'halves', progress_bar=False, workers=2)
    pretrain(six, tmp_path/'halves', resume=True, progress_bar=False, workers=1)
    a, b = ((tmp_path/d/'rdbpfn.safetensors').read_bytes() for d in ('whole', 'halves'))
    assert a == b
    last = json.loads((tmp_path/'whole'/'metrics.jsonl').read_text().splitlines()[-1])
    assert 0 < last['sample_share'] < 1 and {'valid_auc', 'valid_relational_auc', 'valid_relational_base_loss'} <= set(last)


def test_relational_micro_batches_come_in_their_share(monkeypatch):
    import rdbpfn.train as train
    x, y, n = micro_batch(replace(RELATIONAL, relational=1.), 5)
    assert x.shape[:2] == y.shape and 2 <= n <= x.shape[1] - 2 and not np.isinf(x).any()
    calls = []
    monkeypatch.setattr(train, 'relational_batch', lambda *a: calls.append(1) or (np.zeros((1, 4, 1), 'float32'), np.zeros((1, 4), 'float32')))
    for i in range(300): micro_batch(replace(RELATIONAL, relational=.3), i)
    assert .2 < len(calls)/300 < .4
    for i in range(30): micro_batch(SMALL, i)
    assert len(calls) < 130


def test_shapes_stay_inside_the_preset():
    for config in PRESETS.values():
        for s in range(0, 20_000, 57):
            B, R, C, n = step_shape(config, s)
            assert B >= 1 and config.rows[0] <= R <= config.rows[1] and config.cols[0] <= C <= config.cols[1] and 2 <= n <= R - 2


def test_auc_agrees_with_scikit_learn():
    from sklearn.metrics import roc_auc_score
    score, y = torch.rand(20, 50).round(decimals=1), (torch.rand(20, 50) < .3).float()
    assert np.allclose(auc(score, y), [roc_auc_score(b, a) for a, b in zip(score, y)])


def test_tiny_preset_learns_from_the_command_line(tmp_path):
    "The README's promise: a minute on two cores, and it visibly learns"
    done = subprocess.run([sys.executable, '-m', 'rdbpfn.cli', 'pretrain', '--preset', 'tiny', '--out', str(tmp_path/'tiny'), '--validate-on', 'flights'], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (tmp_path/'tiny'/'metrics.jsonl').read_text().splitlines()]
    assert records[-1]['step'] == PRESETS['tiny'].steps
    assert records[-2]['train_loss'] < .63 < records[0]['train_loss'] and records[-1]['valid_auc'] > .66, [r['train_loss'] for r in records]
    assert .3 < records[-1]['valid_real_auc_128'] < .9 and records[-1]['valid_real_log_loss_128'] > .3, 'asked of real tasks, too'
    again = subprocess.run([sys.executable, '-m', 'rdbpfn.cli', 'pretrain', '--preset', 'tiny', '--out', str(tmp_path/'tiny')], env=ENV, capture_output=True, text=True)
    assert again.returncode == 2 and 'already holds a run' in again.stderr and 'Traceback' not in again.stderr
