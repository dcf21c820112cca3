__version__ = "0.1.0"

# The names that most users need. Each is imported when it is first asked for, so that `import rdbpfn` stays quick
# and loads no torch, dgl or featuretools (tests/test_repository.py checks that).
_home = dict(Database='database', InPlace='in_place', InputError='core', RDBPFNClassifier='classifier', RDBPFNRegressor='classifier',
             RelationalClassifier='relational', RelationalRegressor='relational', Task='questions')
__all__ = list(_home)


def __getattr__(name):
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_home[name]}'), name)


def __dir__(): return sorted([*globals(), *_home])
