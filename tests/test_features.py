import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import dinoviz
from dinoviz.cache import FeatureCache, image_digest
from dinoviz.errors import DinovizError, Stopped
from dinoviz.features import Features, layer_index, layer_indices
from dinoviz.memory import features_bytes
from tests.benchmarks import memory

ROOMY = 1 << 30


class Counting:
    """A backbone that counts its passes, and can be held or made to fail in the middle of one."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.key, self.layers = backbone.key, backbone.layers
        self.passes = 0
        self.started, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()
        self.failures: list[Exception] = []

    def encode(self, image, resolution, layers, *, on_block=None) -> Features:
        self.passes += 1
        self.started.release()
        assert self.go_on.wait(30)
        if self.failures:
            raise self.failures.pop()
        return self.backbone.encode(image, resolution, layers, on_block=on_block)


@pytest.fixture
def counting(tiny_backbone) -> Counting:
    return Counting(tiny_backbone)


@pytest.fixture
def held(counting) -> Counting:
    """A backbone whose passes begin, and end only when `go_on` is set."""
    counting.go_on.clear()
    return counting


def until_waiting(thread: threading.Thread, cache: FeatureCache) -> None:
    """Give a thread the time to reach the wait for another's pass; there is nothing to see from outside."""
    thread.join(0.2)
    assert thread.is_alive()
    assert cache.nbytes == 0


def test_the_second_look_encodes_nothing(counting, astronaut):
    cache = FeatureCache(ROOMY)
    first = cache.encode(counting, astronaut, 224)
    assert cache.encode(counting, astronaut, 224) is first
    assert counting.passes == 1


def test_cached_features_equal_those_of_the_backbone(counting, tiny_backbone, astronaut):
    features = FeatureCache(ROOMY).encode(counting, astronaut, 224, "all")
    np.testing.assert_array_equal(features.patches, tiny_backbone.encode(astronaut, 224).patches)


def test_an_equal_picture_is_the_same_picture(counting, astronaut):
    cache = FeatureCache(ROOMY)
    assert cache.encode(counting, astronaut.copy(), 224) is cache.encode(counting, astronaut, 224)


def test_image_resolution_layers_and_weights_are_different_entries(counting, tiny_folders, astronaut, chelsea):
    cache = FeatureCache(ROOMY)
    other = Counting(dinoviz.load(tiny_folders["dinov2"], device="cpu"))
    cache.encode(counting, astronaut, 224)
    cache.encode(counting, chelsea, 224)
    cache.encode(counting, astronaut, 238)
    cache.encode(counting, astronaut, 224, layers=(0,))
    cache.encode(other, astronaut, 224)
    assert (counting.passes, other.passes) == (4, 1)


def test_the_same_layers_by_another_name_are_the_same_entry(counting, astronaut):
    cache = FeatureCache(ROOMY)
    cache.encode(counting, astronaut, 224, layers="all")
    cache.encode(counting, astronaut, 224, layers=(-1, 0, 1))
    assert counting.passes == 1


def test_a_picture_of_the_same_bytes_and_another_shape_is_another_picture():
    values = np.arange(16 * 32 * 3, dtype=np.uint8)
    one, other = (Image.fromarray(values.reshape(shape)) for shape in ((16, 32, 3), (32, 16, 3)))
    assert one.tobytes() == other.tobytes()
    assert image_digest(one) != image_digest(other)


def test_the_least_recently_used_leaves_first(counting, astronaut, chelsea, coffee):
    size = counting.backbone.encode(chelsea, 224).nbytes
    cache = FeatureCache(int(2.5 * size))  # all three pictures have nearly one size
    cache.encode(counting, astronaut, 224)
    cache.encode(counting, chelsea, 224)
    cache.encode(counting, astronaut, 224)  # looked at again: now chelsea is the oldest
    cache.encode(counting, coffee, 224)
    assert cache.peek(counting, image_digest(chelsea), 224) is None
    assert cache.peek(counting, image_digest(astronaut), 224) is not None
    assert cache.peek(counting, image_digest(coffee), 224) is not None


def test_bytes_are_bounded_and_counted(counting, chelsea):
    size = counting.backbone.encode(chelsea, 224).nbytes
    cache = FeatureCache(int(3.5 * size))
    for shift in range(8):
        cache.encode(counting, Image.fromarray(np.roll(np.asarray(chelsea), shift, axis=1)), 224)
        assert cache.nbytes == size * min(shift + 1, 3)


def test_features_count_the_bytes_of_every_array_once(tiny_backbone, chelsea):
    features = tiny_backbone.encode(chelsea, 224, "all")
    arrays = {id(a): a for a in (features.cls, features.patches, features.registers)}
    for tokens in features.captured.values():
        arrays |= {id(a): a for a in (tokens.patches, tokens.cls, tokens.norms, tokens.query, tokens.key)}
    assert features.nbytes == sum(array.nbytes for array in arrays.values())


def test_features_larger_than_the_bound_stay_until_the_next(counting, astronaut, chelsea):
    cache = FeatureCache(1)
    features = cache.encode(counting, astronaut, 224)
    assert cache.encode(counting, astronaut, 224) is features  # it is being looked at
    cache.encode(counting, chelsea, 224)
    assert cache.peek(counting, image_digest(astronaut), 224) is None


def test_equal_requests_at_once_encode_once(held, astronaut):
    cache = FeatureCache(ROOMY)
    with ThreadPoolExecutor(6) as threads:
        requests = [threads.submit(cache.encode, held, astronaut, 224) for _ in range(6)]
        held.started.acquire()
        held.go_on.set()
        results = {id(request.result(30)) for request in requests}
    assert len(results) == 1
    assert held.passes == 1


def test_other_requests_do_not_wait_for_a_pass_that_is_under_way(held, counting, astronaut, chelsea):
    cache = FeatureCache(ROOMY)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(cache.encode, held, astronaut, 224)
        held.started.acquire()
        other = Counting(counting.backbone)
        cache.encode(other, chelsea, 224)
        assert not slow.done()
        held.go_on.set()
        slow.result(30)


def test_a_failure_reaches_all_who_wait_and_is_tried_again_later(held, astronaut):
    cache = FeatureCache(ROOMY)
    held.failures = [DinovizError("The tower is closed.")]
    told = []

    def ask():
        try:
            cache.encode(held, astronaut, 224)
        except DinovizError as error:
            told.append(str(error))

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    held.started.acquire()
    second.start()
    until_waiting(second, cache)
    held.go_on.set()
    first.join(30)
    second.join(30)
    assert told == ["The tower is closed."] * 2
    assert held.passes == 1
    assert isinstance(cache.encode(held, astronaut, 224), Features)
    assert held.passes == 2


def test_who_stops_does_not_stop_another_who_waits(held, astronaut):
    cache = FeatureCache(ROOMY)
    held.failures = [Stopped()]
    outcomes = {}

    def ask(name):
        try:
            outcomes[name] = cache.encode(held, astronaut, 224)
        except Stopped as stopped:
            outcomes[name] = stopped

    first, second = (threading.Thread(target=ask, args=(name,)) for name in ("stops", "waits"))
    first.start()
    held.started.acquire()
    second.start()
    until_waiting(second, cache)
    held.go_on.set()
    first.join(30)
    second.join(30)
    assert isinstance(outcomes["stops"], Stopped)
    assert isinstance(outcomes["waits"], Features)
    assert held.passes == 2


def test_a_true_stop_leaves_nothing_behind(tiny_backbone, astronaut):
    cache = FeatureCache(ROOMY)

    def stop(done, of):
        raise Stopped

    with pytest.raises(Stopped):
        cache.encode(tiny_backbone, astronaut, 224, on_block=stop)
    assert cache.nbytes == 0
    assert isinstance(cache.encode(tiny_backbone, astronaut, 224), Features)


def test_peek_never_encodes(counting, astronaut):
    cache = FeatureCache(ROOMY)
    digest = image_digest(astronaut)
    assert cache.peek(counting, digest, 224) is None
    assert counting.passes == 0
    features = cache.encode(counting, astronaut, 224)
    assert cache.peek(counting, digest, 224) is features
    assert cache.peek(counting, digest, 224, layers="all") is None
    assert counting.passes == 1


def test_a_layer_that_does_not_exist_is_refused_without_a_pass(counting, astronaut):
    cache = FeatureCache(ROOMY)
    with pytest.raises(DinovizError, match=r"3 layers.* not 7"):
        cache.encode(counting, astronaut, 224, layers=(7,))
    assert counting.passes == 0


@pytest.mark.parametrize(("layer", "index"), [(0, 0), (11, 11), (-1, 11), (-12, 0)])
def test_layer_index_counts_as_a_python_list(layer, index):
    assert layer_index(layer, 12) == index


@pytest.mark.parametrize(("wanted", "indices"), [("all", (0, 1, 2)), ((-1,), (2,)), ((2, 0, -1), (0, 2)), ((), ())])
def test_layer_indices_are_sorted_and_unique(wanted, indices):
    assert layer_indices(wanted, 3) == indices


@pytest.mark.parametrize("layers", ["all", (-1,), (0, 1)])
def test_the_size_of_features_is_known_before_there_are_any(tiny, astronaut, layers):
    features = tiny.backbone.encode(astronaut, 224, layers)
    estimate = features_bytes(tiny.backbone, features.grid.patches, layers)
    # What is not counted is small: norms, CLS tokens, and the last layer's patches where that was not asked for.
    assert 0.6 * features.nbytes < estimate < 1.05 * features.nbytes


@pytest.mark.slow  # a process of its own, in which nothing was freed before
@pytest.mark.parametrize(("what", "side"), [("decode", 7071), ("encode", 518), ("encode", 1036)])
def test_the_estimates_of_memory_are_near_what_is_measured(embedded_backbone, what, side):
    row = memory.in_fresh_process(what, side)
    # Below, and what waits for its turn would exceed the budget; far above, and it would wait for nothing.
    assert 0.8 * row["peak"] < row["estimate"] < 2 * row["peak"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked to give memory back")
def test_what_was_freed_after_a_pass_is_given_back(embedded_backbone):
    row = memory.in_fresh_process("encode", 1036)
    assert row["left"] < row["kept"] + 0.2 * row["peak"]
