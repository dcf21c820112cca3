"""What must hold of the repository as a whole: generated files, order of the layers, sizes, imports, packaging, nothing private."""
import ast, importlib, json, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest, yaml
from make_readme import readme
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rdbpfn.records import weights_id

root = Path(__file__).resolve().parent.parent
notebooks = sorted(root.glob('nbs/*.ipynb'))
numbered = [p for p in notebooks if p.name[0].isdigit()]
modules = sorted(p for p in root.glob('rdbpfn/*.py') if not p.name.startswith('_'))
named = dict(ids=lambda p: p.stem)
heavy = {'torch', 'dgl', 'featuretools', 'ibis', 'sqlalchemy', 'matplotlib'}
light = ['rdbpfn', 'rdbpfn.core', 'rdbpfn.schema', 'rdbpfn.database', 'rdbpfn.examples', 'rdbpfn.cli']
max_module, max_cell, max_notebook = 350, 40, 400*1024     # lines, lines, bytes


def run(*args, cwd=root):
    "Run a program; fail with what it wrote"
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True)
    assert not done.returncode, f'{args}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def sources():
    "Every file that is committed or would be"
    names = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard').split('\0')
    return [root/n for n in names if n and (root/n).exists()]


@pytest.fixture
def copy(tmp_path):
    "A copy of the repository that a test may change"
    for path in sources():
        to = tmp_path/path.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to, follow_symlinks=False)
    return tmp_path


def contents(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts}


# what is generated agrees with its source

@pytest.mark.parametrize('program', ['import nbdev; nbdev.nbdev_export()', 'from nbdev.clean import nbdev_clean; nbdev_clean()',
                                     'from nbdev.quarto import refresh_quarto_yml; refresh_quarto_yml()'],
                         ids=['nbdev_export', 'nbdev_clean', 'nbdev.yml'])
def test_nbdev_changes_nothing(copy, program):
    before = contents(copy)
    run(sys.executable, '-c', program, cwd=copy)
    after = contents(copy)
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    assert not changed, f'{program} changes these files: run it and commit them'


def test_readme_is_the_index():
    assert (root/'README.md').read_text(encoding='utf-8') == readme(), 'run python scripts/make_readme.py'


def test_sidebar_lists_every_notebook():
    first, *parts = yaml.safe_load((root/'nbs/sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed = [first, *(name for part in parts for name in part['contents'])]
    assert sorted(listed) == [p.name for p in notebooks]
    for part in parts: assert part['contents'] == sorted(part['contents']), f"{part['section']}: in the order of their numbers"
    navbar = yaml.safe_load((root/'nbs/_quarto.yml').read_text())['website']['navbar']['left']
    assert {entry['href'] for entry in navbar} <= set(listed)


def test_quarto_file_is_one_file(): assert (root/'nbs/_quarto.yml').resolve() == root/'_quarto.yml'


# the order of the layers

def number_of(path):
    "Number of the notebook that a module comes from: '01' < '01b' < '02'"
    head = re.search(r'File to edit: \S*?nbs/(\d\d[a-z]?)_\w+\.ipynb', path.read_text(encoding='utf-8'))
    assert head, f'{path.name} does not come from a numbered notebook'
    return head[1]


def own_imports(path):
    "Modules of this package that a module imports, wherever in the file, and the imported names"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from ((a.name.split('.')[1], [a.name]) for a in node.names if a.name.startswith('rdbpfn.'))
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').split('.')[0] == 'rdbpfn'):
            module, names = (node.module or '').removeprefix('rdbpfn').strip('.'), [a.name for a in node.names]
            yield from [(module, names)] if module else [(n, [n]) for n in names]


@pytest.mark.parametrize('path', modules, **named)
def test_module_imports_lower_layers_only(path):
    layers = {p.stem: number_of(p) for p in modules}
    for module, names in own_imports(path):
        assert '*' not in names, f'{path.name} imports * from {module}'
        assert module == '__version__' or layers.get(module, 'none') < layers[path.stem], f'{path.name} imports {module}, which is no module below it'


@pytest.mark.parametrize('path', modules, **named)
def test_module_is_short(path): assert len(path.read_text(encoding='utf-8').splitlines()) <= max_module


@pytest.mark.parametrize('path', notebooks, **named)
def test_notebook_form(path):
    cells = [(c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
    assert re.fullmatch(r'# \S.*\n\n> \S.*', cells[0][1]), 'the first cell is "# Title", an empty line and "> One sentence", and nothing else'
    assert path.stat().st_size <= max_notebook
    for kind, source, outputs in cells:
        code = [l for l in source.splitlines() if l.strip() and not l.lstrip().startswith('#')] if kind == 'code' else []
        assert len(code) <= max_cell, source
        assert not any(o['output_type'] == 'error' for o in outputs), f'a stored error under\n{source}'
    if path in numbered and any('#| default_exp' in source for _, source, _ in cells):
        assert cells[-1][1] == '#| hide\nimport nbdev; nbdev.nbdev_export()', 'the last cell exports'


# what the reader and the user get

def test_site_renders(copy):
    "Every notebook becomes a page, with no broken link and no syntax that the site does not know"
    if sys.version_info < (3, 11): pytest.skip('smalldocs needs Python 3.11')
    out = run(sys.executable, 'scripts/preview_docs.py', cwd=copy)
    assert len(list(copy.glob('_docs/*.html'))) == len(notebooks), out
    assert 'def seed_of(' in re.sub('<[^>]+>', '', (copy/'_docs/core.html').read_text(encoding='utf-8')), 'exported code is on the page'


@pytest.mark.parametrize('module', light)
def test_import_is_light(module):
    loaded = json.loads(run(sys.executable, '-c', f'import json, sys, {module}; print(json.dumps([*sys.modules]))'))
    assert not heavy & set(loaded)


def test_top_level_names():
    names = run(sys.executable, '-c', 'import rdbpfn; print([getattr(rdbpfn, n).__name__ for n in rdbpfn.__all__] == rdbpfn.__all__ != [])')
    assert names.strip() == 'True'


def test_no_pickle():
    risky = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve', 'read_pickle', 'to_pickle', 'allow_pickle'}
    for path in root.glob('rdbpfn/*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = {node.arg} if isinstance(node, ast.keyword) else {getattr(node, 'attr', None), getattr(node, 'id', None)}
            if isinstance(node, (ast.Import, ast.ImportFrom)): names = {*(getattr(node, 'module', None) or '').split('.'), *(a.name.split('.')[0] for a in node.names)}
            assert not names & risky, f'{path.name}:{node.lineno} can run code from a file'
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or getattr(node.func.value, 'id', None) != 'torch': continue
            # the authors' checkpoint is a torch file; it is read by the unpickler that knows tensors and nothing else
            only_tensors = any(k.arg == 'weights_only' and getattr(k.value, 'value', None) is True for k in node.keywords)
            assert node.func.attr not in ('load', 'save') or only_tensors, f'{path.name}:{node.lineno} uses torch.{node.func.attr}, which is pickle: use safetensors'


def test_nothing_private():
    private = re.compile(rb'(?<![\w.])/(work|root|home/\w+|Users/\w+|tmp/w)\b|pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org|--(extra-)?index-url|--find[-]links')
    found = {str(p.relative_to(root)): m[0] for p in sources() if (m := private.search(p.read_bytes()))}
    assert not found, 'a path of one machine or the address of a package registry'


def test_wheel_holds_everything(copy):
    "The wheel made from the source archive has every committed file of the package, and the licence"
    run(sys.executable, 'setup.py', '-q', 'sdist', '-d', 'out', cwd=copy)
    archive, = copy.glob('out/*.tar.gz')
    shutil.unpack_archive(archive, copy/'unpacked')
    unpacked, = (copy/'unpacked').iterdir()
    run(sys.executable, 'setup.py', '-q', 'bdist_wheel', '-d', copy/'out', cwd=unpacked)
    wheel, = copy.glob('out/*.whl')
    inside = zipfile.ZipFile(wheel).namelist()
    wanted = {str(p.relative_to(root)) for p in sources() if p.is_relative_to(root/'rdbpfn')}
    assert wanted == {n for n in inside if n.startswith('rdbpfn/')}
    assert any(n.endswith('LICENSE') for n in inside)


distributions = cache(packages_distributions)             # import name -> packages; slow


def settings():
    "What settings.ini says"
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def required(*keys):
    "Names of the packages under some keys of settings.ini, written in one way"
    return {canonicalize_name(Requirement(r).name) for key in keys for r in settings()[key].split()}


def test_settings_are_well_formed():
    assert settings()['version'] == importlib.import_module('rdbpfn').__version__
    required(*(key for key in settings() if key.endswith('requirements')))       # no space within a requirement: setup.py splits there


@pytest.mark.parametrize('path', modules, **named)
def test_imports_are_required(path):
    "What a module imports is installed without the tools of the developer"
    keys = [key for key in settings() if key.endswith('requirements') and key != 'dev_requirements']
    installed, wanted = distributions(), required(*keys)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level: names = [node.module]
        else: continue
        for name in {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - {'rdbpfn'}:
            packages = {canonicalize_name(p) for p in installed.get(name, [name])}
            assert packages & wanted, f'{path.name} imports {name}: add it to the requirements in settings.ini'


def test_records_and_card_are_of_the_shipped_weights():
    shipped, records = weights_id('rdbpfn'), []
    for path in sorted(root.glob('nbs/results/*.jsonl')):
        some = [r | dict(file=path.name) for r in map(json.loads, path.read_text().splitlines())]
        records += [r for r in some if r.get('weights') and r.get('model', 'rdbpfn').startswith('rdbpfn') and 'digest' not in r]
    assert {r['file'] for r in records} >= {'dev.jsonl', 'relf1.jsonl', 'regression.jsonl'}
    assert {(r['file'], r['weights']) for r in records if r['weights'] != shipped} == set()
    judged = [json.loads(line) for line in (root/'nbs/results/stages.jsonl').read_text().splitlines()]
    ours = [r for r in judged if r['hours']]
    assert ours[-1]['digest'] == shipped and all(r['hours'] <= ours[-1]['hours'] for r in ours)
    runs = json.loads((root/'nbs/results/pretrain_config.json').read_text())
    card = (root/'rdbpfn/weights/README.md').read_text(encoding='utf-8')
    assert f"{runs[-1]['progress']['tables']:,} synthetic tables" in card and f"{runs[-1]['progress']['core_seconds']/3600:.2f} core-hours" in card
    assert runs[-1]['digest'] == shipped and runs[0]['config']['relational'] == 0
    assert all(runs[before - 1]['progress']['tables'] < r['progress']['tables'] for i, r in enumerate(runs) if (before := r.get('after', i)))


@pytest.mark.parametrize('page', ['21_evaluate', '30_results', 'index'])
def test_pages_show_the_records_of_today(page):
    "A page is executed again when its records change"
    from rdbpfn.records import as_table, read_records, select
    kept = as_table(select(read_records(root/'nbs/results/relf1.jsonl'), features='dfs-2', n_shots=512)).rdbpfn
    shown = json.dumps([c['outputs'] for c in json.loads((root/f'nbs/{page}.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code'], ensure_ascii=False)
    assert len(kept) == 4 and all(cell in shown for cell in kept), kept
