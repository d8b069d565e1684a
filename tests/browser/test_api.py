"""The page's functions called from Python, as gradio_client and MCP clients do."""

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

pytestmark = pytest.mark.browser

ENDPOINTS = (
    *("/encode", "/attention", "/attention_download", "/patch_pca", "/pca_download"),
    *("/segment", "/segment_download", "/segment_video", "/compare", "/depth", "/depth_download"),
)


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    return Client(app, verbose=False, download_files=tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def coffee_file(coffee, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "coffee.png"
    coffee.save(path)
    return handle_file(path)


def test_every_endpoint_is_documented_and_typed(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == set(ENDPOINTS)
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
        for parameter in endpoint["parameters"]:
            assert parameter["python_type"]["type"] not in ("", "Any"), (name, parameter)


def test_encode_describes_the_model(client, coffee_file):
    status = client.predict(coffee_file, "embedded", "224", api_name="/encode")
    assert "patches of 14 px" in str(status)


def test_attention_of_a_patch(client, coffee_file, coffee):
    photo, heat, heads, caption = client.predict(
        coffee_file, "embedded", "224", 11, "head 2", "300, 200", "viridis", 0.5, True, 0.6, api_name="/attention"
    )
    assert "layer 11 of 12" in caption
    for path in (photo, heat, heads):
        assert np.asarray(Image.open(path)).std() > 5
    shown = Image.open(heat)
    assert shown.width / shown.height == pytest.approx(coffee.width / coffee.height, rel=0.01)


def test_attention_from_the_defaults(client, coffee_file):
    assert "query: CLS" in client.predict(image=coffee_file, resolution="224", api_name="/attention")[-1]


@pytest.mark.parametrize("endpoint", ["attention_download", "pca_download", "patch_pca"])
def test_a_picture_is_all_that_an_endpoint_needs(client, coffee_file, endpoint):
    assert client.predict(image=coffee_file, resolution="224", api_name=f"/{endpoint}")


def test_the_words_of_the_schema_are_accepted(client, coffee_file):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name in ("resolution", "red"):
        parameter = next(p for p in endpoints["/patch_pca"]["parameters"] if p["parameter_name"] == name)
        word = parameter["type"]["enum"][1] if "enum" in parameter["type"] else parameter["parameter_default"]
        arguments = {"image": coffee_file, "resolution": "224", name: word}
        assert client.predict(**arguments, api_name="/patch_pca")


def test_patch_pca_of_two_pictures(client, coffee_file):
    result = client.predict(image=coffee_file, resolution="224", others=[coffee_file], api_name="/patch_pca")
    assert "joint basis of 2 pictures" in result[-1]
    assert len(result[1]) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shown": "head 99"}, "head 99"),
        ({"query": "here"}, "query"),
        ({"model": "dinov9"}, "dinov9"),
        ({"image": None}, "picture"),
        ({"resolution": "100"}, "100"),
        ({"layer": 40}, "40"),
        ({"mass": 0}, "0"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(client, coffee_file, arguments, named):
    with pytest.raises(AppError, match=named):
        client.predict(**{"image": coffee_file, "resolution": "224", **arguments}, api_name="/attention")
