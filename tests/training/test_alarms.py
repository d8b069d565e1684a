"""What the alarms say of real runs, healthy and sick, that `record_courses` wrote down."""

import json

import pytest

from tests.training.record_courses import COURSES, FOLDER
from training.config.pretrain import PretrainConfig
from training.dino.collapse import Watch

UNIFORM, FEW, SAME_WAY, LOWER = "uniform answer", "same few prototypes", "point the same way", "lower lr"
EXPECTED = {
    "dino": (),
    "dino-ibot-koleo": (),
    "dino-ibot-koleo-own-head": (),
    "sinkhorn": (),
    "sinkhorn-ibot-koleo": (),
    "ibot-alone": (),
    "four-prototypes": (),
    "eight-prototypes-sinkhorn": (),
    "narrow-bottleneck": (),
    "not-sharp": (UNIFORM, "lower teacher_temperature"),
    "not-centred": (FEW, "centring ema or sinkhorn"),
    "high-lr": (SAME_WAY, UNIFORM, LOWER),
    "high-lr-ibot-koleo": (UNIFORM, LOWER),
    "high-lr-sinkhorn": ("stays at 5.55", LOWER),
}


def said(name: str) -> list[str]:
    """The alarms of a course, each once, in their order."""
    course = json.loads((FOLDER / f"{name}.json").read_text())
    watch = Watch(PretrainConfig(**course["config"]), course["steps"])
    return list(dict.fromkeys(filter(None, map(watch.alarm, course["records"]))))


@pytest.mark.parametrize("name", COURSES)
def test_a_sick_course_is_named_with_its_cause_and_a_healthy_one_is_left_alone(name):
    found = said(name)
    assert bool(found) == bool(EXPECTED[name])
    for words in EXPECTED[name]:
        assert words in " ".join(found)


def test_a_course_is_recorded_with_the_settings_that_are_written_here():
    for name, values in COURSES.items():
        course = json.loads((FOLDER / f"{name}.json").read_text())
        assert values.items() <= course["config"].items(), name
        assert course["records"][-1]["step"] == course["steps"]


if __name__ == "__main__":  # the table of what is said
    for name in COURSES:
        print(f"{name:28} {' / '.join(said(name)) or '-'}")
