"""What is proven of these estimators, one function per theorem, and what to plan for.

- `risk`: the theorems of Goldfeld, Greenewald and Polyanskiy on the plug-in entropy.
- `chi_square`: its bias and fluctuation, explicit for every number of samples.
- `planning`: `plan`, how many samples, queries and seconds an answer needs.
"""

from __future__ import annotations

from noisyflow.theory.chi_square import (
    chi_square_atoms,
    chi_square_cube,
    chi_square_diameter,
    chi_square_gaussian,
    chi_square_sub_gaussian,
    chi_square_uniform,
    plug_in_bias_bound,
    plug_in_bias_estimate,
    plug_in_deviation_bound,
    plug_in_std_bound,
    total_variation_bound,
    wasserstein_bound,
)
from noisyflow.theory.planning import Requirement, SamplePlan, plan
from noisyflow.theory.risk import (
    label_information_risk,
    monte_carlo_rmse,
    monte_carlo_rmse_bounded,
    monte_carlo_rmse_second_moment,
    mutual_information_risk,
    plug_in_bias_lower_bound,
    plug_in_risk_bounded,
    plug_in_risk_sub_gaussian,
    plug_in_samples_necessary,
    sample_complexity_exponent,
)

__all__ = [
    "Requirement",
    "SamplePlan",
    "chi_square_atoms",
    "chi_square_cube",
    "chi_square_diameter",
    "chi_square_gaussian",
    "chi_square_sub_gaussian",
    "chi_square_uniform",
    "label_information_risk",
    "monte_carlo_rmse",
    "monte_carlo_rmse_bounded",
    "monte_carlo_rmse_second_moment",
    "mutual_information_risk",
    "plan",
    "plug_in_bias_bound",
    "plug_in_bias_estimate",
    "plug_in_bias_lower_bound",
    "plug_in_deviation_bound",
    "plug_in_risk_bounded",
    "plug_in_risk_sub_gaussian",
    "plug_in_samples_necessary",
    "plug_in_std_bound",
    "sample_complexity_exponent",
    "total_variation_bound",
    "wasserstein_bound",
]
