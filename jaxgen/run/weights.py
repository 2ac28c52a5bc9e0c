"""Weights to and from files that other programs read: NumPy's .npz, or .safetensors.

    weights.save("vae.safetensors", state.params)
    state = state._replace(params=weights.load("vae.safetensors", like=state.params))

An array has its path in the tree as its name, such as "encoder/Dense_0/kernel".
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def save(path: str | Path, tree: Any) -> None:
    """Write all arrays of a tree, such as the `params` of a State; a file of that name is replaced.

    Raises ValueError for a name that ends otherwise, where safetensors is not installed, and for a tree with
    random keys, such as a whole State.
    """
    arrays, path = _named(tree), _path(path)
    if any(jnp.issubdtype(array.dtype, jax.dtypes.prng_key) for array in arrays.values()):
        raise ValueError("random keys are no weights: save a part of the State, such as state.params")
    if path.suffix == ".npz":
        np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    else:
        _safetensors().save_file({name: jnp.asarray(array) for name, array in arrays.items()}, str(path))


def load(path: str | Path, like: Any) -> Any:
    """A tree as `like`, an array or its shape at each leaf, with the arrays of a file that `save` wrote.

    Raises ValueError for a file that has others, naming the first, or names and safetensors as `save` does.
    """
    path = _path(path)
    if path.suffix == ".npz":
        with np.load(path) as file:
            found = dict(file)
    else:
        found = _safetensors().load_file(str(path))
    wanted = _named(like)
    for name in [*wanted, *found]:
        here, there = (named[name].shape if name in named else None for named in (wanted, found))
        if here != there:
            told = ["absent" if shape is None else f"of shape {shape}" for shape in (there, here)]
            raise ValueError(f"{name} is {told[0]} in {path} and {told[1]} in the model")
    return jax.tree.unflatten(
        jax.tree.structure(like), [_read(found[name], leaf.dtype) for name, leaf in wanted.items()]
    )


def _read(array: Any, dtype: Any) -> Any:
    """An array of a file; NumPy writes bfloat16 as bytes of no type."""
    return jnp.asarray(array.view(dtype) if array.dtype.kind == "V" else array, dtype)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _path(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"weights are in a file that ends in .npz or .safetensors, not {path.name!r}")
    return path


def _safetensors() -> Any:
    try:
        import safetensors.flax
    except ImportError:
        raise ValueError(
            'a .safetensors file needs pip install "jaxgen[safetensors]"; .npz does not'
        ) from None
    return safetensors.flax
