"""Every notebook of nbs/ runs from its first cell to its last, in a process of its own, without a network.

Run one as the test does: python tests/test_notebooks.py nbs/00_core.ipynb
"""
import os, socket, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(root.glob('nbs/*.ipynb'))
seconds = 600


def refuse_network():
    "Let this process reach itself and nothing else"
    connect = socket.socket.connect
    def local_only(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ('127.0.0.1', '::1', 'localhost'):
            raise OSError(f'A notebook must run without a network, and this one asked for {address[0]}.')
        return connect(self, address)
    socket.socket.connect = local_only


def execute(path):
    "Run one notebook as `nbdev_test` does, leaving out the cells flagged in settings.ini; the traceback goes to stderr"
    from nbdev.config import get_config
    from nbdev.test import test_nb
    refuse_network()
    os.chdir(root)                                        # where nbdev looks for settings.ini
    config = get_config()
    passed, _ = test_nb(path.resolve(), skip_flags=config.tst_flags.split(), basepath=config.config_path)
    return passed


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_notebook(path):
    try: done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired: pytest.fail(f'{path.name} ran for more than {seconds} s.', pytrace=False)
    if done.returncode: pytest.fail(f'{path.name} failed.\n{done.stdout[-2000:]}{done.stderr[-8000:]}', pytrace=False)


if __name__ == '__main__': sys.exit(not execute(Path(sys.argv[1])))
