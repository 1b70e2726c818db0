"""Gives the site the folders of the repository, so that a link between pages is the same in both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by those of the repository that are pages, or that a page links to."""
    root = Path(config.config_file_path).parent
    for file in list(files.documentation_pages()) + list(files.media_files()):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    linked = {
        target for page in pages for link in LINK.findall(page.read_text(encoding="utf-8"))
        if (target := (page.parent / link).resolve()).is_file()
    }  # fmt: skip
    for path in sorted({*pages, *linked}):
        name = path.relative_to(root).as_posix()
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files
