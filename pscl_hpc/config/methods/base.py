"""What the configurations of all pretraining methods have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pscl_hpc.config.common import Count, Strict


class MethodBase(Strict):
    """Base of the method sections. A subclass has a literal ``name``, by which it is chosen."""

    name: str
    smallest_batch: ClassVar[int] = 2
    """Fewest unlabelled images of one forward pass: an image alone has no negatives."""

    smallest_per_rank: ClassVar[int] = 1
    """Fewest images of one rank's forward pass where each rank has batch statistics of its own."""

    def check(self, *, widths: tuple[int, ...]) -> None:
        """Raise ValueError where the section does not fit a trunk of these widths, fine to coarse."""

    def paired_stride(self, *, scales: int) -> int:
        """Stride in pixels of the coarsest map whose patches are paired by their place in the views, given the number of
        decoder maps; 0 where no patches are paired so."""
        return 0


class ReferenceConfig(Strict):
    """The annotated images whose patches serve as class templates."""

    ids: tuple[str, ...] = ()
    """Image ids in the archive, ``dataset/stem``. Each step uses ``per_batch`` of them, drawn at random."""
    per_batch: Count = 1
    """Reference images in each forward pass. Templates come from all of them."""
    square: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of the one square of each reference whose annotation is used, as in fine-tuning; 0: all of it."""
    in_pool: bool = False
    """References are also drawn as unlabelled images, as released: then one image can be twice in a batch and its own
    image-level negative."""
    crop: Literal["random", "covering"] = "covering"
    """covering: of 16 random windows the one that shows the most classes; random: the first window."""


class ReferencedMethod(MethodBase):
    """A method that takes class templates from annotated images."""

    reference: ReferenceConfig = ReferenceConfig()
    """Where templates come from."""
    smallest_batch: ClassVar[int] = 1

    def check(self, *, widths: tuple[int, ...]) -> None:
        """Raise ValueError where no annotated image is named."""
        if not self.reference.ids:
            raise ValueError(f"method.reference.ids names no annotated image; {self.name} needs at least one")
