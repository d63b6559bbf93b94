"""Multi-view priors: the views of one object are denoised together (MVDream, arXiv 2308.16512).

The network is a Stable Diffusion whose UNet takes a camera with each view (class_embed_type="projection" with 16
inputs) and whose self-attention runs over the tokens of all views of an object at once; what is said in the prompt is
read by each view alone.  A pipeline folder holds the weights as usual; the joining is done here.

The 16 numbers are the camera-to-world matrix, row by row, with its position scaled to length 1, in MVDream's world:
z up, and azimuth 0 on +x, a quarter turn from ours.

    >>> prior = MultiViewPrior.from_pretrained("path-or-hub-id", views=4)
    >>> cameras = fsd.cameras.orbit(8, generator, views=4)              # two objects, four views each
"""

import os
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fsd.cameras import Cameras
from fsd.inputs import check_cameras
from fsd.priors.diffusers import Condition, DiffusersPrior
from fsd.priors.loading import load_pipeline, offloaded
from fsd.priors.prompts import EncodedPrompt

CAMERA_NUMBERS = 16


def open_prior(
    path: str | os.PathLike[str],
    views: int | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    offload: bool = False,
    **settings: Any,
) -> "DiffusersPrior | MultiViewPrior":
    """The prior that a pipeline's network asks for: of `views` (4 if None) at a time if it takes cameras, else of
    single images.  Errors and `settings` as for these."""
    pipeline = load_pipeline(path, device, precision, offload)
    prior: DiffusersPrior | MultiViewPrior
    if takes_cameras(pipeline):
        prior = MultiViewPrior(pipeline, 4 if views is None else views, device=device, **settings)
    else:
        prior = DiffusersPrior(pipeline, device=device, **settings)
    return offloaded(prior, device, offload)


def takes_cameras(pipeline: Any) -> bool:
    """Whether the network has the input of a multi-view UNet."""
    config = getattr(getattr(pipeline, "unet", None), "config", {})
    inputs = config.get("projection_class_embeddings_input_dim")
    return config.get("class_embed_type") == "projection" and inputs == CAMERA_NUMBERS


class MultiViewPrior:
    """A prior of `views` views at a time; batches hold all views of the first object, then of the second.

    `settings` are those of DiffusersPrior; view words are left out unless asked for, as the camera says it all. The
    pipeline stays as it is here too.
    Raises ValueError for a network without a camera input, or `views` below 1.
    """

    def __init__(self, pipeline: Any, views: int = 4, view_words: bool = False, **settings: Any) -> None:
        if views < 1:
            raise ValueError(
                f"views is {views}; give how many views of an object are denoised together, at least 1"
            )
        if not takes_cameras(pipeline):
            raise ValueError(
                "the network takes no cameras: a multi-view UNet has class_embed_type='projection' with "
                f"{CAMERA_NUMBERS} inputs. For a model of single images use DiffusersPrior"
            )
        self.single = DiffusersPrior(pipeline, view_words=view_words, **settings)
        self.views = views
        join_views(self.single.net, views)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        views: int = 4,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        offload: bool = False,
        **settings: Any,
    ) -> "MultiViewPrior":
        """As DiffusersPrior.from_pretrained."""
        pipeline = load_pipeline(path, device, precision, offload)
        return offloaded(cls(pipeline, views, device=device, **settings), device, offload)

    @property
    def net(self) -> Any:
        """As DiffusersPrior.net."""
        return self.single.net

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one view."""
        return self.single.latent_shape

    @property
    def image_size(self) -> int:
        """Of one view, in pixels."""
        return self.single.image_size

    @property
    def calls(self) -> int:
        """Passes of the network; all views of a batch are one."""
        return self.single.calls

    @property
    def generator(self) -> torch.Generator:
        """As DiffusersPrior.generator."""
        return self.single.generator

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "MultiViewPrior":
        """As DiffusersPrior.to."""
        self.single.to(device, dtype)
        return self

    def free_text_encoder(self) -> None:
        """As DiffusersPrior.free_text_encoder."""
        self.single.free_text_encoder()

    def encode_text(self, prompt: str, negative_prompt: str = "") -> EncodedPrompt:
        """As DiffusersPrior.encode_text."""
        return self.single.encode_text(prompt, negative_prompt)

    def condition(self, prompt: EncodedPrompt, cameras: Cameras) -> Condition:
        """The prompt, and each view's camera.  Raises ValueError for a number of cameras that `views` does not
        divide."""
        check_cameras(cameras)
        if len(cameras) % self.views:
            raise ValueError(
                f"{len(cameras)} cameras for a prior of {self.views} views of an object; give a multiple, for "
                f"instance by orbit(batch, generator, views={self.views})"
            )
        extra = {"class_labels": camera_numbers(cameras)}
        return self.single.condition(prompt, cameras)._replace(extra=extra)

    def encode_image(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
        """As DiffusersPrior.encode_image."""
        return self.single.encode_image(image)

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """As DiffusersPrior.alpha_sigma."""
        return self.single.alpha_sigma(t)

    def predict_noise(
        self, x_t: Float[Tensor, "b c h w"], t: float, condition: Condition, guidance_scale: float
    ) -> Float[Tensor, "b c h w"]:
        """As DiffusersPrior.predict_noise; the views of each object see each other."""
        return self.single.predict_noise(x_t, t, condition, guidance_scale)


def camera_numbers(cameras: Cameras) -> Float[Tensor, "b 16"]:
    """What MVDream is told of a camera (see the module)."""
    c2w = cameras.c2w
    # Our azimuth 0 stands on +y and theirs on +x; both grow counter-clockwise.
    turn = c2w.new_tensor([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    turned = turn @ c2w
    turned[:, :3, 3] /= turned[:, :3, 3].norm(dim=1, keepdim=True).clamp_min(1e-8)
    return turned.flatten(1)


def join_views(unet: Any, views: int) -> None:
    """Lets every self-attention of a UNet run over all `views` of an object."""
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(JoinedViews(views))


class JoinedViews:
    """Self-attention over the tokens of all views of an object, in the form of diffusers' attention processors."""

    def __init__(self, views: int) -> None:
        self.views = views

    def __call__(
        self, attn: Any, hidden_states: Float[Tensor, "b n c"], *unused: Any, **ignored: Any
    ) -> Float[Tensor, "b n c"]:
        """Of the layer `attn`; its further arguments are for attention to other tokens, and there are none."""
        batch, tokens, _ = hidden_states.shape
        together = hidden_states.reshape(batch // self.views, self.views * tokens, -1)
        q, k, v = (
            project(together).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = attn.to_out[0](mixed).reshape(batch, tokens, -1)
        return out / attn.rescale_output_factor
