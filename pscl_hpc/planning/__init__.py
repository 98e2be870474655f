"""What a pretraining would cost on more devices than there are at hand: measured rates in, predictions out."""

from pscl_hpc.planning.links import Links
from pscl_hpc.planning.measure import measure_rates
from pscl_hpc.planning.network import difference, measured_keys
from pscl_hpc.planning.predict import Prediction, predict
from pscl_hpc.planning.rates import Contrast, Rates, load_rates, save_rates

__all__ = [
    "Contrast",
    "Links",
    "Prediction",
    "Rates",
    "difference",
    "load_rates",
    "measure_rates",
    "measured_keys",
    "predict",
    "save_rates",
]
