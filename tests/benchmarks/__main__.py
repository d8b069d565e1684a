"""All benchmarks, one after the other: `make bench`."""

from tests.benchmarks import encode, pca_stability, segmentation, training_speed, video

if __name__ == "__main__":
    encode.main()
    print()
    pca_stability.main()
    print()
    segmentation.main()
    print()
    video.main()
    print()
    training_speed.main()
