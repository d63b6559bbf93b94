"""The meshes of a run side by side in a live viewer, `fsd view RUN`; viser is an extra of the package.

>>> server = view("runs/mushroom", port=8080)
>>> server.sleep_forever()
"""

import os
from typing import TYPE_CHECKING

from fsd.objects import Finished, finished

if TYPE_CHECKING:
    import viser

SPACING = 2.2
# From the axes of a GLB (y up, faces +z) to those of the world: half a turn about (0, 1, 1).
UPRIGHT = (0.0, 0.0, 0.5**0.5, 0.5**0.5)


def view(run: str | os.PathLike[str], port: int = 8080, host: str = "127.0.0.1") -> "viser.ViserServer":
    """Starts a server for the browser: a menu of prompts, a slider of seeds, the guidance methods side by side.

    Returns it running; `stop()` ends it.

    Raises ImportError without viser, ValueError where the run has no mesh.
    """
    objects = [one for one in finished(run) if (one.path / "mesh.glb").is_file()]
    if not objects:
        raise ValueError(f"{run} holds no mesh: no object is finished, or all are empty; see its report.html")
    try:
        import viser
    except ImportError as error:
        raise ImportError('the viewer needs its extra: pip install "fsd[viewer]"') from error
    server = viser.ViserServer(host=host, port=port, label="fsd", verbose=False)
    server.scene.set_up_direction("+z")
    # In front of the objects, which face +y.
    server.initial_camera.position = (0.0, 4.5, 1.5)
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    _controls(server, objects)
    return server


def side_by_side(objects: list[Finished], prompt: str, seed: int) -> list[tuple[Finished, float]]:
    """The objects of a prompt and seed with where each stands on the x axis, the first method on the left."""
    shown = [one for one in objects if one.prompt == prompt and one.seed == seed]
    # Who looks along -y has -x on the right.
    return [(one, SPACING * ((len(shown) - 1) / 2 - place)) for place, one in enumerate(shown)]


def _controls(server: "viser.ViserServer", objects: list[Finished]) -> None:
    prompts = list(dict.fromkeys(one.prompt for one in objects))
    seeds = sorted({one.seed for one in objects})
    prompt = server.gui.add_dropdown("prompt", prompts, visible=len(prompts) > 1)
    # A slider over places in the list: seeds may have gaps.
    place = server.gui.add_slider("seed", 0, max(1, len(seeds) - 1), 1, 0, disabled=len(seeds) == 1)
    words = server.gui.add_markdown("")
    nodes = []

    def show(_: object = None) -> None:
        for node in nodes:
            node.remove()
        nodes.clear()
        seed = seeds[min(place.value, len(seeds) - 1)]
        shown = side_by_side(objects, prompt.value, seed)
        for one, x in shown:
            data = (one.path / "mesh.glb").read_bytes()
            name = f"/{one.path.name}"
            nodes.append(server.scene.add_glb(name, data, wxyz=UPRIGHT, position=(x, 0.0, 0.0)))
            label = f"{one.guidance} {one.about['label'] or ''}".strip()
            # Below its mesh, so that it goes where the mesh goes.
            server.scene.add_label(f"{name}/words", label, position=(0.0, 1.1, 0.0), anchor="center-center")
        words.content = f"**seed {seed}** of *{prompt.value}*" + ("" if shown else ": not finished")

    prompt.on_update(show)
    place.on_update(show)
    show()
