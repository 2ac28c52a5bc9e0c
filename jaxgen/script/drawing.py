"""What `jaxgen sample`, `reconstruct` and `interpolate` do with a family: options, codes, and files."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import keys, plot
from jaxgen.data import images
from jaxgen.latent import interpolate
from jaxgen.script import command_line

SPELLED = {"steps": ("steps", "num_steps")}
"""Names of an option in families that call it otherwise."""


def options(family: Any, cfg: Any, given: Mapping[str, Any], function: str = "sample") -> dict[str, Any]:
    """The arguments of a family's function for options of the command line that are not None.

    Raises ValueError, naming what the function takes, for an option that it does not take, and for a sampler
    that the config has not.
    """
    parameters = inspect.signature(getattr(family, function)).parameters
    known = {
        option: next((name for name in SPELLED.get(option, (option,)) if name in parameters), None)
        for option in given
    }
    found = {}
    for option, value in given.items():
        if value is None:
            continue
        name = known[option]
        if name is None:
            takes = ", ".join(f"--{each}".replace("_", "-") for each, name in known.items() if name) or "none"
            asked = option.replace("_", "-")
            raise ValueError(
                f"{_short(family)} cannot {function} with --{asked}: of such options it takes {takes}"
            )
        found[name] = _sampler(cfg, value) if option == "sampler" else value
    return found


def samples(key: Array, family: Any, state: Any, n: int, cfg: Any, **given: Any) -> Array:
    """n draws, (n, *shape), by the arguments of the family's `sample`; labels are taken in turn."""
    draw = jax.jit(lambda key, state: family.sample(key, state, n, cfg, **_in_turn(given, n)))
    drawn: Array = draw(key, state)
    return drawn


def reconstructions(family: Any, state: Any, x: Any, cfg: Any, **given: Any) -> Array:
    """Reconstructions of x (N, *shape) by the arguments of the family's `reconstruct`, of the same shape."""
    again = jax.jit(lambda state, x: family.reconstruct(state, x, cfg, **_in_turn(given, len(x))))
    found: Array = again(state, jnp.asarray(x))
    return found


def between(
    key: Array, family: Any, state: Any, n: int, num_points: int, cfg: Any, arc: bool, **given: Any
) -> Array:
    """Data on n paths between codes of draws of the model, (n, num_points, *shape).

    Raises ValueError for a family without codes that can be decoded.
    """
    draw_key, code_key = keys.named(key, "samples", "codes")
    real = hasattr(family, "to_codes") and "label" not in given  # where `encode` may give integers
    to, back = ("to_codes", "from_codes") if real else ("encode", "decode")
    if not hasattr(family, back) or not (hasattr(family, to) or hasattr(family, "draw_codes")):
        raise ValueError(f"{_short(family)} has no codes to go between: it needs encode and decode")

    def labelled(name: str, count: int) -> dict[str, Any]:
        return (
            _in_turn(given, count) if "label" in inspect.signature(getattr(family, name)).parameters else {}
        )

    @jax.jit
    def draw(state):
        if hasattr(family, to):
            x = family.sample(draw_key, state, 2 * n, cfg, **labelled("sample", 2 * n))
            codes = getattr(family, to)(state, x, cfg, **labelled(to, 2 * n))
        else:
            codes = family.draw_codes(code_key, 2 * n, cfg)
        along = interpolate.slerp if arc else interpolate.lerp
        flat = codes.reshape(2, n, -1)
        path = interpolate.path(flat[0], flat[1], num_points, along).swapaxes(0, 1)
        path = path.reshape(n * num_points, *codes.shape[1:])
        return getattr(family, back)(state, path, cfg, **labelled(back, n * num_points))

    x = draw(state)
    return x.reshape(n, num_points, *x.shape[1:])


def read_pictures(files: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Pictures in files as data of a model of this shape, (N, *shape) in [-1, 1], resized and cropped to it.

    Raises ValueError for a model of something else; DataError for a file that is no picture.
    """
    if len(shape) != 3 or shape[-1] not in (1, 3, 4):
        raise ValueError(f"pictures are (height, width, 1, 3 or 4), and this model is of data {tuple(shape)}")
    height, width, channels = shape
    pixels = [images.decode(file, channels, (height, width), str(file)) for file in files]
    return np.stack(pixels).astype(np.float32) / 127.5 - 1


def check_out(out: Path, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a file that `write` does not write, and for a folder of what is no picture."""
    if not _is_folder(out) and out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out is a .png, an .npz or a folder, not {out.name!r}")
    if _is_folder(out) and len(shape) != 3:
        raise ValueError(
            f"a folder is for pictures, and these data are {tuple(shape)}: give a .png or an .npz"
        )


def write(out: Path, x: Any, columns: int | None = None) -> None:
    """Data (N, *shape) as one picture (.png), as arrays (.npz), or a picture each into a folder."""
    x = np.asarray(jax.block_until_ready(x))  # NumPy would abort where there was no memory for it
    folder = out if _is_folder(out) else out.parent
    folder.mkdir(parents=True, exist_ok=True)
    if folder == out:
        plot.save_each(out, x)
    elif out.suffix == ".npz":
        np.savez(out, **{"image" if x.ndim == 4 else "x": x})  # type: ignore[arg-type]
    elif x.ndim == 4:
        plot.save_grid(out, x, columns)
    else:
        plot.save_samples(out, x)


def _is_folder(out: Path) -> bool:
    return out.is_dir() or not out.suffix


def _in_turn(given: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The arguments with n labels, those given in turn; NumPy's, which are checked where they are used."""
    return {
        name: np.resize(np.asarray(value, np.int32), n) if name == "label" else value
        for name, value in given.items()
    }


def _sampler(cfg: Any, name: str) -> Any:
    """A sampler by the word that stands for it on the command line, with the numbers of its defaults."""
    holder = cfg if hasattr(cfg, "sampler") else cfg.prior  # latent diffusion
    classes = command_line.part_classes(typing.get_type_hints(type(holder))["sampler"])
    command_line.check_word("sampler", name, classes)
    return classes[name]()


def _short(family: Any) -> str:
    return family.__name__.removeprefix("jaxgen.")
