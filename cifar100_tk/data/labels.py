"""The class names of CIFAR-100 and CIFAR-10, the super-classes of CIFAR-100, and the super-class of each class."""

from __future__ import annotations

from typing import Final

# One line per super-class: its name, then its five classes. Both lists are numbered in alphabetical order.
_TREE: Final = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

COARSE_NAMES: Final[tuple[str, ...]] = tuple(sorted(_TREE))
"""The 20 super-class names; an image's `coarse_label` is an index into them."""

FINE_NAMES: Final[tuple[str, ...]] = tuple(sorted(fine for family in _TREE.values() for fine in family.split()))
"""The 100 class names; an image's `fine_label` is an index into them."""

COARSE_OF_FINE: Final[tuple[int, ...]] = tuple(
    next(number for number, coarse in enumerate(COARSE_NAMES) if fine in _TREE[coarse].split()) for fine in FINE_NAMES
)
"""The super-class index, 0..19, of each of the 100 classes."""


CIFAR10_NAMES: Final[tuple[str, ...]] = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""The 10 class names of CIFAR-10, which has no super-classes; an image's `label` is an index into them."""


def display_name(name: str) -> str:
    """Return the name of a class or super-class as people read it. Files and the Python API keep the data set's own name.

    >>> display_name("aquarium_fish")
    'aquarium fish'
    """
    return name.replace("_", " ")


def superclasses_of(class_names: tuple[str, ...]) -> tuple[str | None, ...]:
    """Return each class's super-class if all names are from CIFAR-100 or the built-in images, else None for each."""
    from cifar100_tk.data import shapes100

    published = {fine: COARSE_NAMES[coarse] for fine, coarse in zip(FINE_NAMES, COARSE_OF_FINE, strict=True)}
    builtin = {fine: fine.partition("_")[2] for fine in shapes100.NAMES.fine}
    for known in (published, builtin):
        if all(name in known for name in class_names):
            return tuple(known[name] for name in class_names)
    return (None,) * len(class_names)
