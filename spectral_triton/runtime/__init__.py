"""How the library lives inside PyTorch: which kernels run on which device, cached weights, sharded
parameters, registered operators, forward-mode derivatives and the checks of arguments.
"""

from spectral_triton.runtime.backend import backend_info, use_backend
from spectral_triton.runtime.cached import cached
from spectral_triton.runtime.evaluation import keep_weights_in_eval

__all__ = ["backend_info", "cached", "keep_weights_in_eval", "use_backend"]
