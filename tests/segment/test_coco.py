"""COCO annotations: what pycocotools reads back from them."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from dinoviz.segment import coco

RANDOM = np.random.default_rng(0)


def disc(radius: int = 20) -> np.ndarray:
    y, x = np.mgrid[:60, :90]
    return (x - 40) ** 2 + (y - 30) ** 2 <= radius**2


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((5, 7), bool),
        disc(),
        ~disc(),
        np.eye(40, dtype=bool),
        np.ones((1, 1), bool),
        RANDOM.random((33, 47)) < 0.1,
    ],
    ids=["full", "disc", "hole", "diagonal", "pixel", "noise"],
)
def test_a_data_set_is_read_back_by_pycocotools(mask, tmp_path):
    found = [{"number": 3, "annotation": coco.annotation(mask, 0.71239)}]
    h, w = mask.shape
    entries = [
        {"name": "empty.png", "width": w, "height": h, "classes": []},
        {"name": "a.png", "width": w, "height": h, "classes": found},
    ]
    with (tmp_path / "coco.json").open("w") as file:
        coco.write(file, {3: "flower"}, lambda: iter(entries))
    data = COCO(tmp_path / "coco.json")
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == ["empty.png", "a.png"]
    assert data.loadCats(data.getCatIds()) == [{"id": 3, "name": "flower"}]
    assert data.getAnnIds(imgIds=[1]) == []
    (annotation,) = data.loadAnns(data.getAnnIds(imgIds=[2]))
    assert np.array_equal(data.annToMask(annotation), mask)
    rows, columns = np.nonzero(mask)
    assert annotation["area"] == mask.sum()
    assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert annotation["score"] == 0.7124
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"][0]["category_id"] == 3
