"""The sampler that a search has by default. It needs nothing but Optuna, and can be given to any study of Optuna's."""
