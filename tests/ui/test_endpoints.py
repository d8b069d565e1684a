"""How handlers name the parameters of the API."""

from dataclasses import dataclass

from dinoviz.ui.endpoints import takes_settings
from tests.ui.tab_handlers import parameters


@dataclass
class Settings:
    layer: int
    raw: bool = False


class Handlers:
    @takes_settings(Settings)
    def draw(self, image: str, *values) -> tuple:
        return image, *values


def test_values_have_the_names_of_the_settings():
    handlers = Handlers()
    assert parameters(handlers.draw) == "image layer raw"
    assert handlers.draw("cat.png", 3, True) == ("cat.png", 3, True)
