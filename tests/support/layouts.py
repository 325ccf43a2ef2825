"""Tiny data sets in the layouts of the real ones."""

import json

from PIL import Image


def image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (4, 3), shade)
    image.putpixel((3, 2), 255)  # or they would be refused as too dark
    image.save(path)


SPECIES = [  # id, name, class, order, family, images
    (0, "Corvus corax", "Aves", "Passeriformes", "Corvidae", 3),
    (1, "Pica pica", "Aves", "Passeriformes", "Corvidae", 2),
    (2, "Parus major", "Aves", "Passeriformes", "Paridae", 1),
    (3, "Anas acuta", "Aves", "Anseriformes", "Anatidae", 2),
    (4, "Apis mellifera", "Insecta", "Hymenoptera", "Apidae", 2),
    (5, "Bombus terrestris", "Insecta", "Hymenoptera", "Apidae", 2),
    (6, "Haliotis iris", "Gastropoda", "NA", "NA", 2),
    (7, "Lottia gigantea", "Gastropoda", "NA", "NA", 2),
]


def inat2018(root, *, ranks=True, times=1):
    """As published: annotations that hide the names, and the names and ranks apart; more images by `times`."""
    images, annotations = [], []
    for number, _, _, _, _, count in SPECIES:
        for i in range(count * times):
            name = f"train_val2018/Animalia/{number}/{i}.png"
            image(root / name, 10 * number + i)
            images.append({"id": len(images), "file_name": name})
            annotations.append({"id": len(images), "image_id": len(images) - 1, "category_id": number})
    hidden = [{"id": s[0], "name": str(s[0]), "supercategory": "Animalia"} for s in SPECIES]
    content = {"images": images, "annotations": annotations, "categories": hidden}
    (root / "train2018.json").write_text(json.dumps(content))
    if ranks:
        (root / "categories.json").write_text(
            json.dumps(
                [
                    {"id": i, "name": name, "kingdom": "Animalia", "class": c, "order": o, "family": f}
                    for i, name, c, o, f, _ in SPECIES
                ]
            )
        )
    return root


def cub(root, classes, images=2):
    """As published, with two or more images of each class: the first for training."""
    lines = {"images.txt": [], "image_class_labels.txt": [], "train_test_split.txt": []}
    for number in classes:
        for i in range(images):
            index = len(lines["images.txt"]) + 1
            name = f"{number:03d}.Bird/{i}.png"
            image(root / "images" / name, number)
            lines["images.txt"].append(f"{index} {name}")
            lines["image_class_labels.txt"].append(f"{index} {number}")
            lines["train_test_split.txt"].append(f"{index} {int(i == 0)}")
    for file, text in lines.items():
        (root / file).write_text("\n".join(text) + "\n")
    return root
