"""The settings of the documentation's site, which `make docs` builds."""

import importlib
import inspect
import pydoc
import sys
from operator import attrgetter

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

import pyasync

project = "pyasync"
version = release = pyasync.__version__
copyright = "the pyasync contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"pyasync {version}"
html_show_sphinx = False
# Each name must be that of something: `find_name` knows what Sphinx does not. These are typeshed's.
nitpicky = True
nitpick_ignore_regex = [("py:class", "MaybeNone|PathOf|ReadableBuffer|WriteableBuffer")]

myst_heading_anchors = 3  # for links such as streams.md#closing

# A name in single backticks in a docstring is a link to what it names.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"

#: Classes that the application calls by itself. Objects of all others come from a function.
CALLED = {"AsyncStream", "StdioPipe", "StdioStream"}
#: The public members of a class whose other attributes are the package's own.
MEMBERS = {"Loop": "call_threadsafe, stats"}


class PublicNames(SphinxDirective):
    """``.. public-names:: tcp pipes``: the public names of two modules, from their docstrings.

    A new public name is on the site without a word here.
    """

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        lines = [".. py:currentmodule:: pyasync"]
        for module in self.arguments[0].split():
            for name in names_of(f"pyasync.{module}"):
                lines += ["", *directive_for(name)]
        return self.parse_text_to_nodes("\n".join(lines))


def names_of(module):
    """Return the public names that a module defines, in the order of its source."""
    source = inspect.getsource(importlib.import_module(module))
    found = [name for name in pyasync.__all__ if home_of(name) == module]
    return sorted(found, key=lambda name: source.find(f" {name}"))


def home_of(name):
    return getattr(getattr(pyasync, name), "__module__", None)


def directive_for(name):
    value = getattr(pyasync, name)
    if inspect.isfunction(value):
        return [f".. autofunction:: {name}"]
    if not inspect.isclass(value):  # a member of an enumeration, such as IGNORE
        comments = ModuleAnalyzer.for_module(value.__module__).find_attr_docs()
        words = comments[type(value).__name__, name]
        return [f".. py:data:: {name}", "", *(f"   {line}" for line in words)]
    if issubclass(value, Exception):
        return [f".. autoexception:: {name}()", "   :show-inheritance:", "   :members:"]
    if name in MEMBERS:
        return [f".. autoclass:: {name}", f"   :members: {MEMBERS[name]}"]
    lines = [f".. autoclass:: {name}", "   :members:", "   :undoc-members:"]
    return [*lines, "   :inherited-members: BufferedIOBase"]


def hide_constructor(app, what, name, value, options, signature, returns):
    """Leave out how a class is called that no application calls."""
    if what in ("class", "exception") and name.rpartition(".")[2] not in CALLED:
        return "", returns
    return None


def find_name(app, env, node, contnode):
    """Resolve a name that is not found where it stands.

    If it is a public name, in another module's docstring or by the module that defines it, it
    becomes a link. Any other name of the package or of the standard library becomes plain text.
    What does not exist stays unresolved, and is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    domain = env.domains["py"]
    for candidate in (f"pyasync.{target}", f"pyasync.{target.rpartition('.')[2]}"):
        if candidate in domain.objects:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", candidate, node, contnode
            )
    owners = [module for name, module in sys.modules.items() if name.startswith("pyasync")]
    if any(has(owner, target) for owner in owners) or pydoc.locate(target) is not None:
        return contnode
    return None


def has(owner, path):
    try:
        attrgetter(path)(owner)
    except AttributeError:
        return False
    return True


def check_names(app, env):
    """Warn of a public name that no page has."""
    found = env.domains["py"].objects
    for name in pyasync.__all__:
        home = home_of(name)
        if home and f"pyasync.{name}" not in found and f"{home}.{name}" not in found:
            getLogger(__name__).warning("no page of the reference has %s", name)


def without_overloads(self, analyze=ModuleAnalyzer.analyze):
    """Analyze a module; of a function show the one signature that has all of its keywords."""
    analyze(self)
    self.overloads = {}


def setup(app):
    ModuleAnalyzer.analyze = without_overloads
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("missing-reference", find_name)
    app.connect("env-check-consistency", check_names)
