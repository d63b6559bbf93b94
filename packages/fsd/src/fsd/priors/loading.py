"""Loading a diffusers pipeline from a folder or the hub, with errors that say what to pass instead."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError

from fsd.priors.families import FAMILIES, Family

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Parts that judge or mark pictures: nothing here is shown them, and the first weighs more than a network.
UNUSED = ("safety_checker", "watermarker")


class Incomplete(OSError):
    """Files lack weights. A variant beside them holds other numbers, such as averaged ones, and is no remedy."""


def load_pipeline(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    offload: bool = False,
) -> Any:
    """The pipeline, on the device; with `offload` its network stays in the computer's memory, for `offloaded`.

    Raises ValueError for a precision that the device has not, a folder that holds no pipeline, or one of a class
    that is not known; OSError for a model that is neither here nor on the hub, or cannot be read.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    target = torch.device(device)
    if precision == "fp16" and target.type == "cpu":
        raise ValueError("precision fp16 does not run on a CPU; use fp32, or bf16 for half the memory")
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    refuse_folder(path)
    path = os.path.expanduser(path)
    try:
        index: Any = DiffusionPipeline.load_config(path)
        kind = index.get("_class_name")
        if kind not in FAMILIES:
            raise ValueError(f"{path} holds a {kind}; pipelines that can be used are {', '.join(FAMILIES)}")
        # A part that a folder lists as absent, such as the VAE of a model of pixels, is absent on purpose.
        absent = [name for name, entry in index.items() if entry == [None, None]]
        unused: dict[str, Any] = {name: None for name in index if name in UNUSED or name in absent}
        if "requires_safety_checker" in index:
            unused["requires_safety_checker"] = False
        dtype: Any = PRECISIONS[precision]
        if precision == "fp16" and "vae" in index:
            # Its gradient is needed, and many overflow in fp16.
            dtype = {"vae": torch.float32, "default": dtype}
        pipeline = _read(path, dtype=dtype, **unused)
    except Incomplete:
        raise
    except (OSError, EntryNotFoundError) as error:
        if Path(path).is_dir():
            raise OSError(f"{path} is incomplete or cannot be read ({_first_line(error)})") from error
        raise OSError(
            f"cannot load {path} ({_first_line(error)}). Give the folder of a pipeline (with model_index.json), or "
            "the id of one on the hub, owner/name. Models that older repositories take by default, such as "
            "stabilityai/stable-diffusion-2-1-base, are no longer there: take a copy, or any other Stable Diffusion, "
            "SDXL, PixArt, SD3 or Flux. Without a network only folders and what is in the cache can be loaded."
        ) from error
    for name, part in pipeline.components.items():
        _refuse_missing(path, name, _without_numbers(part))
    if not offload:
        return pipeline.to(target)
    net = getattr(pipeline, FAMILIES[type(pipeline).__name__].net)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module) and module is not net:
            module.to(target)
    return pipeline


def offloaded(prior: Any, device: str | torch.device, offload: bool) -> Any:
    """The prior; with `offload` each layer of its network comes to the device when it is needed."""
    if offload:
        target = torch.device(device)
        prior.net.enable_group_offload(
            target, torch.device("cpu"), offload_type="leaf_level", use_stream=target.type == "cuda"
        )
    return prior


def _read(path: str, **settings: Any) -> Any:
    """The pipeline. Where weights lie there in a variant alone (`*.fp16.safetensors`), that one is read.

    Raises OSError for files that are absent, damaged or belong to other networks.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    errors: list[OSError] = []
    here = Path(path).is_dir()
    for variant in [None, *(variants_in(path) if here else ["fp16"])]:
        try:
            folder = path if here else DiffusionPipeline.download(path, variant=variant, **settings)
            parts = whole_encoders(folder, variant, **settings)
            return DiffusionPipeline.from_pretrained(folder, variant=variant, **parts, **settings)
        except (Incomplete, ImportError, torch.OutOfMemoryError):
            raise
        except OSError as error:
            errors.append(error)
        except Exception as error:
            # Diffusers, transformers and safetensors raise many types for a damaged or foreign file.
            raise OSError(f"{type(error).__name__}: {_first_line(error)}") from error
    raise errors[0]


def variants_in(folder: str | os.PathLike[str], part: str = "*") -> list[str]:
    """Variants of the weights in a pipeline folder, fp16 and bf16 first: `model.fp16.safetensors` is "fp16"."""
    names = [file.name for kind in ("safetensors", "bin") for file in Path(folder).glob(f"{part}/*.{kind}")]
    found = {match[1] for name in names if (match := re.search(r"^[^.]+\.(\w+?)(-\d+-of-\d+)?\.\w+$", name))}
    return sorted(found, key=lambda name: (name not in ("fp16", "bf16"), name != "fp16", name))


def whole_encoders(
    folder: str | os.PathLike[str], variant: str | None = None, dtype: Any = torch.float32, **others: Any
) -> dict[str, Any]:
    """The networks of transformers in a pipeline folder, but for those that `others` names.

    transformers gives weights that a file lacks random values, and diffusers passes that on.
    Raises Incomplete, naming the weights, where some are missing or of another shape.
    """
    import transformers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    own = dtype.get("default") if isinstance(dtype, dict) else dtype
    index: Any = DiffusionPipeline.load_config(folder)
    found: dict[str, Any] = {}
    for name, entry in index.items():
        if name in others or not isinstance(entry, (list, tuple)) or entry[0] != "transformers":
            continue
        kind: Any = getattr(transformers, entry[1], None)
        if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
            continue
        place = Path(folder) / name
        given: dict[str, Any] = {"variant": variant} if variant in variants_in(folder, name) else {}
        part, report = kind.from_pretrained(
            place, dtype=own, output_loading_info=True, ignore_mismatched_sizes=True, **given
        )
        # Refused here, by name. Those of another shape come with both shapes, or by name alone.
        other = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
        _refuse_missing(folder, name, sorted({*report["missing_keys"], *other}))
        found[name] = part
    return found


def _without_numbers(part: Any) -> list[str]:
    if not isinstance(part, torch.nn.Module):
        return []
    return [key for key, value in part.state_dict().items() if value.is_meta]


def _refuse_missing(path: str | os.PathLike[str], name: str, missing: Sequence[str]) -> None:
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise Incomplete(
            f"{path} is incomplete: the files of its {name} hold no numbers, or of another shape, for "
            f"{', '.join(missing[:4])}{more}; download it again"
        )


def refuse_folder(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a folder or file that is no pipeline, FileNotFoundError for a path that is not there."""
    place = Path(os.path.expanduser(path))
    if place.is_dir():
        index = place / "model_index.json"
        try:
            if "_class_name" in json.loads(index.read_text(encoding="utf-8")):
                return
            problem = "its model_index.json names no pipeline class"
        except FileNotFoundError:
            problem = "it has no model_index.json"
        except ValueError as error:
            problem = f"its model_index.json cannot be read ({error})"
        raise ValueError(
            f"{path} is no pipeline folder: {problem}. A pipeline folder holds model_index.json and a folder for "
            "each part (unet or transformer, vae, text_encoder, tokenizer, scheduler), as save_pretrained writes it"
        )
    if place.is_file():
        raise ValueError(
            f"{path} is a file; give the folder of a pipeline. A single .safetensors or .ckpt file becomes one by "
            "diffusers' from_single_file(...).save_pretrained(FOLDER)"
        )
    text = os.fspath(path)
    if place.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise FileNotFoundError(
            f"{path} does not exist; give the folder of a pipeline, or an id on the hub in the form owner/name"
        )


def refuse_unfit(pipeline: Any, family: Family) -> None:
    """Raises ValueError for a pipeline without a part that is needed, and for networks of other jobs: inpainting,
    super-resolution, few-step distillates."""
    net: Any = getattr(pipeline, family.net, None)
    vae: Any = getattr(pipeline, "vae", None)
    for name, part in ((family.net, net), ("scheduler", getattr(pipeline, "scheduler", None))):
        if part is None:
            raise ValueError(f"the pipeline has no {name}; give a whole {family.name}")
    if vae is not None:
        _refuse_vae(vae)
    elif family.vae and net.config.in_channels != 3:
        raise ValueError(
            f"the pipeline has no vae, and its network takes latents of {net.config.in_channels} channels: images "
            f"cannot be encoded; give a whole {family.name}"
        )
    channels = net.config.in_channels
    expected = 3 if vae is None else vae.config.latent_channels * (4 if family.distilled else 1)
    if channels != expected:
        raise ValueError(
            f"the network takes {channels} channels where {expected} are denoised: it is one for inpainting, editing "
            f"or super-resolution; give a text-to-image {family.name}"
            + (" (stage I of DeepFloyd-IF)" if vae is None else "")
        )
    if getattr(net.config, "time_cond_proj_dim", None) is not None:
        raise ValueError(
            "the network is a latent consistency model, made for few steps; give the model that it was made from"
        )


def _refuse_vae(vae: Any) -> None:
    encoder = getattr(vae, "encoder", None)
    lacks = [
        name for name in ("latent_channels", "scaling_factor") if getattr(vae.config, name, None) is None
    ]
    if not callable(getattr(vae, "encode", None)) or not isinstance(encoder, torch.nn.Module):
        raise ValueError(
            f"the vae of the pipeline ({type(vae).__name__}) has no encoder, and images must be encoded; give one that "
            "has, such as AutoencoderKL or AutoencoderTiny"
        )
    if lacks:
        raise ValueError(
            f"the vae of the pipeline ({type(vae).__name__}) has no {' and no '.join(lacks)} in its config, so the "
            "size of its latents is not known; give an AutoencoderKL or AutoencoderTiny"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
