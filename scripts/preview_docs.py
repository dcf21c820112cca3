"""Renders the site into _docs without quarto: nbdev turns the notebooks into pages, smalldocs into HTML.

    python scripts/preview_docs.py && python -m http.server -d _docs

Formulas need a network in the browser (KaTeX comes from the web).
"""
import re, shutil, sys, tempfile
from pathlib import Path
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.config import load
from smalldocs.site import Site

number = re.compile(r'\b\d+[a-z]?_(?=\w+\.ipynb\b)')


def unnumbered(
    proc: Path, # what nbdev made of the notebooks
    to: Path, # a new folder
    site_url: str # address of the published site, which nbdev puts before its links
) -> None:
    "Copy the pages under the names that quarto gives them: 11_dfs.ipynb becomes dfs.html, and links follow"
    for path in filter(Path.is_file, proc.rglob('*')):
        new = to/number.sub('', str(path.relative_to(proc)))
        new.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in ('.ipynb', '.yml'): shutil.copy2(path, new)
        else: new.write_text(number.sub('', path.read_text(encoding='utf-8').replace(f']({site_url}/', '](')), encoding='utf-8')


def render() -> Site: # the built site, with its pages, warnings and broken links
    "Make _docs from nbs"
    config = get_config()
    refresh_quarto_yml()
    proc = proc_nbs(n_workers=2, force=True)
    with tempfile.TemporaryDirectory() as folder:
        unnumbered(proc, Path(folder)/'nbs', config.doc_host + config.doc_baseurl)
        site = Site(load(Path(folder)/'nbs'), quiet=True)
        site.out = config.doc_path.resolve()
        site.build()
    return site


def problems_of(
    site: Site # what `render` gave
) -> list: # one line for each
    "What a reader would stumble over: syntax that is not rendered, links to nowhere"
    known = ('output-file', 'format.html.grid')                 # `unnumbered` has done its work; widths are quarto's
    warnings = [w for w in site.warnings if not any(k in w for k in known)]
    return list(dict.fromkeys(warnings + [f'{page}: broken link {link}' for page, link in site.broken]))


if __name__ == '__main__':
    site = render()
    problems = problems_of(site)
    print(*problems, f'{len(site.pages)} pages in {site.out}', sep='\n')
    sys.exit(bool(problems))
