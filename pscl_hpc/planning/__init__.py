"""Cost of a pretraining on more devices than are available: measured rates in, predictions out."""

from pscl_hpc.planning.measure import measure_rates
from pscl_hpc.planning.predict import Links, Prediction, assumptions, predict
from pscl_hpc.planning.rates import Contrast, Rates, difference, load_rates, measured_keys, save_rates

__all__ = [
    "Contrast",
    "Links",
    "Prediction",
    "Rates",
    "assumptions",
    "difference",
    "load_rates",
    "measure_rates",
    "measured_keys",
    "predict",
    "save_rates",
]
