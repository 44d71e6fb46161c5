"""Control fidelity on a scale that means the same for every base, condition and data set."""


def is_degenerate(floor: float, ceiling: float, min_span: float = 0.05) -> bool:
    """Whether floor and ceiling are too close, or the wrong way round, for a score to be placed between them.

    A base that can draw nothing, such as one with a random VAE, reconstructs its own targets no better than chance.
    """
    return not ceiling - floor >= min_span  # so that NaN counts as degenerate too


def calibrate(score: float, floor: float, ceiling: float, min_span: float = 0.05) -> float:
    """Calibrated control fidelity, (score - floor) / (ceiling - floor): 0, the control is ignored; 1, the VAE's best.

    `floor` is the score of the same prompts and noise at control strength 0, `ceiling` that of the VAE's reconstruction
    of the targets. The value is not clipped: a sample with cleaner edges than the reconstruction scores above 1.
    Where the span is degenerate (`is_degenerate`) there is no scale to stand on, dividing by it would turn noise into
    large numbers of either sign, and such a base cannot show obedience whatever its control branch does: 0.0.
    """
    if is_degenerate(floor, ceiling, min_span):
        return 0.0
    return (score - floor) / (ceiling - floor)
