"""Sphinx configuration: `make docs`."""

import inspect
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
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_custom_sections = ["Shape"]
html_theme = "furo"
html_title = f"spectral_triton {release}"


WINGS = {
    "layers": ("Layers", "Linear layers, convolutions and networks of them."),
    "recurrent": ("Recurrent networks", "Layers, cells, and the recurrence as a function."),
    "spectra": ("Spectra", "The bounds of singular values, and how they are reached."),
    "svd": ("Factored matrices", "W = U diag(σ) Vᵀ, as a parameter and as an operator."),
    "householder": ("Reflectors", "Products of Householder reflectors."),
    "models": (
        "Whole models",
        "Converting, baking, rates by kind of parameter, Lipschitz constants.",
    ),
    "parametrizations": ("Parametrizations and starts", "For tensors of any module."),
    "analysis": ("Analysis", "What is known of a network, before and after training."),
    "runtime": ("Backend and cache", "Which implementation runs, and forming a matrix once."),
}
PLACES = {"recurrence": "recurrent", "init": "parametrizations"}
RETURNED = {
    "runtime": ("runtime.backend.BackendInfo",),
    "models": ("models.conversion_report.ConversionReport",),
}
"""What public functions return without its being a public name."""


def list_public_names(app):
    """Writes one page of the reference for each wing, and reference.md, which lists them."""
    from pathlib import Path

    entries = {wing: [] for wing in WINGS}
    for name in spectral_triton.__all__:
        value = getattr(spectral_triton, name)
        if inspect.ismodule(value):
            entries["parametrizations"] += module_entries(name, value)
        else:
            wing = value.__module__.split(".")[1]
            entries[PLACES.get(wing, wing)].append(entry(name, value))
    for name in ("bounds", "gradient_flow", "spectra", "expressivity"):
        entries["analysis"].append(f".. automodule:: spectral_triton.analysis.{name}\n")
    for wing, names in RETURNED.items():
        for name in names:
            if name.split(".")[-1] not in spectral_triton.__all__:
                entries[wing].append(f".. autoclass:: spectral_triton.{name}\n")
    index = [
        "# Reference",
        "",
        "What is importable from `spectral_triton`, by what it is about.",
        "",
    ]
    for wing, (title, what) in WINGS.items():
        lines = [
            f"# {title}",
            "",
            what,
            "",
            "```{eval-rst}",
            ".. currentmodule:: spectral_triton",
            "",
        ]
        Path(app.srcdir, f"reference-{wing}.md").write_text(
            "\n".join([*lines, *entries[wing], "```", ""]), encoding="utf-8"
        )
        names = ", ".join(
            re.findall(r"auto(?:class|function):: (?:\S+\.)?(\w+)", "\n".join(entries[wing]))
        )
        index.append(f"* [{title}](reference-{wing}.md): {names or what}")
    index += ["", "```{toctree}", ":hidden:", *(f"reference-{wing}" for wing in WINGS), "```", ""]
    Path(app.srcdir, "reference.md").write_text("\n".join(index), encoding="utf-8")


def entry(name, value):
    """One class or function; methods of our base classes too, but not those of torch's."""
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :inherited-members: Module, Sequential\n"
    return f".. autofunction:: {name}\n"


def module_entries(name, module):
    """A public module and its own functions."""
    lines = [f".. automodule:: spectral_triton.{name}\n   :no-members:\n"]
    for function, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if own and inspect.isfunction(value) and not function.startswith("_"):
            lines.append(f".. autofunction:: spectral_triton.{name}.{function}\n")
    return lines


def offer_reports_as_files(app, name, source):
    """Reports lie beside the documentation in the repository; in the built pages they are files."""
    source[0] = re.sub(
        r"(?<!!)(\[[^]]+\])\((\.\./perf/[^)#]+)(#[^)]*)?\)", r"\1(<path:\2>)", source[0]
    )


def setup(app):
    app.connect("source-read", offer_reports_as_files)
    app.connect("builder-inited", list_public_names)
