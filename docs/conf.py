"""Sphinx configuration: `make docs`."""

import re

import spectral_triton

project = "spectral_triton"
author = "the spectral_triton authors"
release = version = spectral_triton.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["examples"]
myst_enable_extensions = ["amsmath", "dollarmath"]
autosummary_generate = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
napoleon_custom_sections = ["Shape"]
html_theme = "furo"
html_title = f"spectral_triton {release}"


def list_public_names(app):
    """Writes reference.md: whatever the package exports, and the functions of its two modules."""
    import inspect
    from pathlib import Path

    lines = ["# Reference", "", "Everything importable from `spectral_triton`.", ""]
    modules = []
    lines += ["```{eval-rst}", ".. currentmodule:: spectral_triton", "", ".. autosummary::", ""]
    for name in spectral_triton.__all__:
        value = getattr(spectral_triton, name)
        if inspect.ismodule(value):
            modules.append(name)
        else:
            lines.append(f"   {name}")
    lines.append("")
    for name in spectral_triton.__all__:
        value = getattr(spectral_triton, name)
        if not inspect.ismodule(value):
            if inspect.isclass(value):
                # Methods of our base classes too, but not those of torch's.
                lines += [f".. autoclass:: {name}", "   :inherited-members: Module, Sequential", ""]
            else:
                lines += [f".. autofunction:: {name}", ""]
    lines += ["``spectral_triton.analysis``", "-" * 28, ""]
    for name in ("bounds", "gradient_flow", "spectra", "expressivity"):
        lines += [f".. automodule:: spectral_triton.analysis.{name}", ""]
    for name in modules:
        module = getattr(spectral_triton, name)
        lines += [f".. automodule:: spectral_triton.{name}", "   :no-members:", ""]
        for function, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and inspect.isfunction(value) and not function.startswith("_"):
                lines += [f".. autofunction:: spectral_triton.{name}.{function}", ""]
    lines += ["```", ""]
    Path(app.srcdir, "reference.md").write_text("\n".join(lines), encoding="utf-8")


def offer_reports_as_files(app, name, source):
    """Reports lie beside the documentation in the repository; in the built pages they are files."""
    source[0] = re.sub(
        r"(?<!!)(\[[^]]+\])\((\.\./perf/[^)#]+)(#[^)]*)?\)", r"\1(<path:\2>)", source[0]
    )


def setup(app):
    app.connect("source-read", offer_reports_as_files)
    app.connect("builder-inited", list_public_names)
