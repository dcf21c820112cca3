"""Writes README.md from nbs/index.ipynb, as a reader of the notebook sees it; needs no quarto.

    python scripts/make_readme.py
"""
import json, posixpath, re
from pathlib import Path

root = Path(__file__).resolve().parent.parent
notice = '<!-- Made from nbs/index.ipynb by scripts/make_readme.py: edit the notebook, not this file. -->'
left_out = re.compile(r'^#\|\s*(hide|export|exporti|default_exp|include:\s*false)\b', re.M)
directive = re.compile(r'^#\|.*\n?', re.M)
link = re.compile(r'\]\((?!\w+:|#|/)([^)\s]+)\)')


def output_text(
    output: dict # one output of a code cell
) -> str: # Markdown
    "What a cell printed or returned, as Markdown"
    if output.get('name') == 'stderr': return ''
    data = output.get('data', {})
    if any(k.startswith('image/') for k in data):
        raise SystemExit('README.md cannot hold the picture of a cell: save it as a file in nbs and link to it.')
    if 'text/markdown' in data: return ''.join(data['text/markdown']).strip()
    text = ''.join(output.get('text', data.get('text/plain', ''))).rstrip()
    return f'```\n{text}\n```' if text else ''


def cell_text(
    cell: dict # one cell of the notebook
) -> str: # Markdown, empty for a cell that the reader does not see
    "A cell and its outputs as Markdown, with links that start at the top of the repository"
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown': return link.sub(lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", source).strip()
    if cell['cell_type'] != 'code' or left_out.search(source): return ''
    parts = [directive.sub('', source).strip(), *map(output_text, cell['outputs'])]
    code = f'```python\n{parts[0]}\n```' if parts[0] and not re.search(r'^#\|\s*echo:\s*false', source, re.M) else ''
    return '\n\n'.join(filter(None, [code, *parts[1:]]))


def readme() -> str: # the whole text of README.md
    "The notebook nbs/index.ipynb as Markdown"
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    title, *rest = [text for text in map(cell_text, cells) if text]
    return '\n\n'.join([title, notice, *rest]) + '\n'


if __name__ == '__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
