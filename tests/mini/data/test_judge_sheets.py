import numpy as np
import pytest
import torch

from escdiff.mini.data.sheets import (
    ABSENT,
    FIGURES,
    IDENTITIES,
    PICTURES,
    SCENES,
    SINGLES,
    VIEWS,
    Sheets,
    build_sheets,
    labels_of,
    main_colors,
    sheet,
)
from escdiff.mini.scene_oracle import BONDS, CLASSES, SceneOracleConfig
from escdiff.mini.world.geometry.faces import FACE
from escdiff.mini.world.geometry.figures import BODIES

CONFIG = SceneOracleConfig()


def test_a_sheet_holds_scenes_things_figures_and_faces_in_order():
    pictures = sheet(3, 5)
    assert pictures == sheet(3, 5) != sheet(3, 6) and len(pictures) == PICTURES
    assert all(picture.relation for picture in pictures[:SCENES])
    assert all(len(picture.things) == 1 for picture in pictures[SCENES:])
    figures = pictures[SCENES + SINGLES :][:FIGURES]
    assert all(figure.things[0].shape.family in BODIES for figure in figures)
    faces = [picture.things[0].shape for picture in pictures[-IDENTITIES * VIEWS :]]
    assert {face.family for face in faces} == {FACE}
    assert [len(set(faces[i : i + VIEWS])) for i in range(0, len(faces), VIEWS)] == [1] * IDENTITIES
    assert len(set(faces)) == IDENTITIES


def test_labels_say_what_a_picture_shows_and_nothing_of_what_it_does_not():
    pictures = sheet(1, 0)
    hidden = (0.0,) * 4
    boxes = [[(0.1, 0.2, 0.6, 0.9), hidden, hidden][: len(picture.things)] for picture in pictures]
    labels = labels_of(pictures, boxes)
    for i, picture in enumerate(pictures):
        first = picture.things[0]
        assert CONFIG.families[labels["family"][i, 0]] == first.shape.family
        assert (labels["family"][i, 1:] == ABSENT).all()  # what cannot be seen is not there
        named = {CONFIG.colors[c] for c in labels["color"][i, 0].nonzero().flatten()}
        assert named == set(main_colors(first)) and labels["color"][i, 0].sum() == pytest.approx(1)
        relation = int(labels["relation"][i])
        assert relation == (CLASSES["relation"].index(BONDS[picture.relation]) if picture.relation else ABSENT)
        assert (labels["pose"][i] != ABSENT) == (first.shape.family in BODIES)
        assert (labels["face_id"][i] != ABSENT) == (labels["expression"][i] != ABSENT) == (first.shape.family == FACE)
    assert labels["face_id"][-IDENTITIES * VIEWS :].tolist() == np.repeat(range(IDENTITIES), VIEWS).tolist()


@pytest.mark.slow
def test_sheets_are_kept_and_read_back(tmp_path):
    build_sheets(tmp_path, 1, seed=2, size=16)
    pixels, labels = Sheets(tmp_path).__getitems__([(0, 2)])
    assert pixels.shape == (PICTURES, 3, 16, 16) and {len(values) for values in labels.values()} == {PICTURES}
    own = sheet(2, 2)
    assert next(CONFIG.families[f] for f in labels["family"][:, 0] if f != ABSENT) == own[0].things[0].shape.family
    box = labels["box"][-1, 0]
    assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    assert len(Sheets(tmp_path)) == 4 and torch.isfinite(labels["face"]).all()
