"""Hook of mkdocs: the site's files are those of the repository, under their own paths, so that links work in both."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "docs", "benchmarks/results", "examples")
SUFFIXES = {".md", ".svg", ".png", ".gif", ".json", ".py", ".ipynb", ""}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """README.md, the changes, docs/, results and examples, beside the files of the theme."""
    theme = [file for file in files if file.inclusion is InclusionLevel.UNDEFINED and file.src_dir != config.docs_dir]
    found = [path for place in PLACES for path in [ROOT / place, *sorted((ROOT / place).rglob("*"))]]
    paths = [path for path in found if path.is_file() and path.suffix in SUFFIXES and path.parent.name != "site"
             and "runs" not in path.relative_to(ROOT).parts]
    return Files([*theme, *(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls)
                            for path in paths)])
