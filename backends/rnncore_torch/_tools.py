"""A model with other types of modules in it, for tools that know those of ``torch.nn`` alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch.nn import Module

__all__ = ["with_types"]


def with_types(module: Module, types: dict[type[Module], type[Module]]) -> Module:
    """The same tree of modules, on the same parameters and buffers, with those of exactly these types as the others.

    A module that holds none is the same object; one that does is a shallow copy.
    """
    done: dict[int, Module] = {}

    def changed(old: Module) -> Module:
        if id(old) not in done:
            children = {n: m if m is None else changed(m) for n, m in old._modules.items()}
            kind = types.get(type(old), type(old))
            if kind is type(old) and all(children[n] is m for n, m in old._modules.items()):
                done[id(old)] = old
            else:
                done[id(old)] = _copied(old, kind, children.items())
        return done[id(old)]

    return changed(module)


def _copied(old: Module, kind: type[Module], children: Iterable[tuple[str, Module | None]]) -> Module:
    new = kind.__new__(kind)
    new.__dict__.update(old.__dict__)
    new.__dict__["_modules"] = dict(children)
    return new
