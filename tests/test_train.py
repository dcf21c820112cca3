"""Long runs: a killed run resumes to the same bits, two processes follow one, damage ends in a sentence, and the tiny preset learns."""
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load_file
from rdbpfn.core import InputError
from rdbpfn.model import ModelConfig
from rdbpfn.train import PRESETS, auc, averaged, load_checkpoint, make_optimizer, micro_batch, micro_loss, pretrain, start, step_shape, train_step

SMALL = replace(PRESETS['tiny'], steps=12, rows=(20, 40), cols=(2, 4), tokens=512, model=ModelConfig(n_layers=1, width=16, n_heads=2, hidden=16))
ENV = os.environ | dict(OMP_NUM_THREADS='1')


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def script(steps, out, resume=False, extra='', **options):
    "A program that runs SMALL for so many steps"
    return f'''
import torch, os, sys; torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import SMALL, replace, pretrain
{extra}
pretrain(replace(SMALL, steps={steps}), {str(out)!r}, resume={resume}, save_every=0., progress_bar=False)
'''


def test_kill_at_random_moments_resumes_to_the_same_bits(tmp_path):
    steps = 400
    pretrain(replace(SMALL, steps=steps), tmp_path/'whole', save_every=1e9, validate_every=1e9, progress_bar=False)
    rng, kills = np.random.default_rng(0), 0
    for _ in range(10):
        resume = (tmp_path/'killed'/'checkpoint.safetensors').exists()
        p = subprocess.Popen([sys.executable, '-c', script(steps, tmp_path/'killed', resume)], env=ENV, stderr=subprocess.PIPE)
        while p.poll() is None and not (tmp_path/'killed'/'checkpoint.safetensors').exists(): time.sleep(.02)
        before = progress(tmp_path/'killed') if resume else 0
        deadline = time.time() + 60
        while p.poll() is None and time.time() < deadline and progress(tmp_path/'killed') < min(before + 2, steps): time.sleep(.01)
        time.sleep(float(rng.uniform(0, .15)))
        if p.poll() is None: p.kill(); kills += 1
        p.wait()
    assert kills >= 5, 'the run finished before it could be killed'
    if progress(tmp_path/'killed') < steps: subprocess.run([sys.executable, '-c', script(steps, tmp_path/'killed', True)], env=ENV, check=True)
    a, b = (load_file(tmp_path/d/'rdbpfn.safetensors') for d in ('whole', 'killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def progress(out):
    try: return load_checkpoint(out/'checkpoint.safetensors', torch.device('cpu'))[3]['step']
    except InputError: return 0


def test_two_processes_follow_the_same_path_as_one(tmp_path):
    extra = "import torch.distributed as dist\ndist.init_process_group('gloo')"
    (tmp_path/'two.py').write_text(script(12, tmp_path/'two', extra=extra))
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(tmp_path/'two.py')], env=ENV, check=True, capture_output=True)
    pretrain(SMALL, tmp_path/'one', progress_bar=False)
    a, b = (load_file(tmp_path/d/'rdbpfn.safetensors') for d in ('one', 'two'))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 2e-3
    one, two = (json.loads((tmp_path/d/'metrics.jsonl').read_text().splitlines()[-1]) for d in ('one', 'two'))
    assert one['tables'] == two['tables'] and abs(one['train_loss'] - two['train_loss']) < 1e-3


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


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    pretrain(replace(SMALL, steps=2), tmp_path, progress_bar=False)
    good = (tmp_path/'checkpoint.safetensors').read_bytes()
    import safetensors.torch
    def full(tensors, path, *_): Path(path).write_bytes(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError): pretrain(replace(SMALL, steps=4), tmp_path, resume=True, progress_bar=False)
    assert (tmp_path/'checkpoint.safetensors').read_bytes() == good and not list(tmp_path.glob('.*.tmp'))


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


RELATIONAL = replace(SMALL, rows=(48, 96), cols=(3, 6), relational=.5, seed=1)


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
