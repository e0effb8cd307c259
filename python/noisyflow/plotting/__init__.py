"""Figures: every function takes results and an Axes, draws, and returns the Axes.

The only package that knows matplotlib, which it imports when a figure is made.
"""

from noisyflow.plotting.benchmark import (
    contestants,
)
from noisyflow.plotting.binning import (
    bin_widths,
)
from noisyflow.plotting.bottleneck import (
    information_over_beta,
    information_while_training,
    trade_off,
)
from noisyflow.plotting.codes import (
    information_of_codes,
)
from noisyflow.plotting.common import (
    layer_colors,
    legend_above,
    legend_of_layers,
    new_figure,
    png,
)
from noisyflow.plotting.digits import (
    errors_by_network,
    networks_over_epochs,
)
from noisyflow.plotting.estimators import (
    errors,
    estimates,
    information_over_noise,
)
from noisyflow.plotting.film import (
    Scenes,
    film,
    has_ffmpeg,
)
from noisyflow.plotting.neurons import (
    class_scatter,
    decision_regions,
    densities,
    information_over_steps,
    learning,
    symbols,
)
from noisyflow.plotting.plane import (
    information_plane,
)
from noisyflow.plotting.representations import (
    constellation,
    distance_histograms,
    similarity_histograms,
)
from noisyflow.plotting.training import (
    activation_histograms,
    histories,
    history,
    information,
    scatter_3d,
)

__all__ = [
    "Scenes",
    "activation_histograms",
    "bin_widths",
    "class_scatter",
    "constellation",
    "contestants",
    "decision_regions",
    "densities",
    "distance_histograms",
    "errors",
    "errors_by_network",
    "estimates",
    "film",
    "has_ffmpeg",
    "histories",
    "history",
    "information",
    "information_of_codes",
    "information_over_beta",
    "information_over_noise",
    "information_over_steps",
    "information_plane",
    "information_while_training",
    "layer_colors",
    "learning",
    "legend_above",
    "legend_of_layers",
    "networks_over_epochs",
    "new_figure",
    "png",
    "scatter_3d",
    "similarity_histograms",
    "symbols",
    "trade_off",
]
